"""Networks as TensorDict modules: the ensemble world model, the actor and the critics."""

from rambo_trl.modules.actor_critic import make_actor, make_qvalue
from rambo_trl.modules.ensemble import EnsembleWorldModel

__all__ = ["EnsembleWorldModel", "make_actor", "make_qvalue"]
