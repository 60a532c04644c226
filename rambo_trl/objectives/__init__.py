"""Losses over TensorDicts; their sum is the paper's Eq. 9."""

from rambo_trl.objectives.adversarial_model import AdversarialModelLoss
from rambo_trl.objectives.behaviour_anchor import BehaviourAnchorLoss
from rambo_trl.objectives.combo import COMBOLoss
from rambo_trl.objectives.likelihood_budget import LikelihoodBudget
from rambo_trl.objectives.model_likelihood import EnsembleModelLoss
from rambo_trl.objectives.model_trust import ModelTrustLoss

__all__ = [
    "AdversarialModelLoss",
    "EnsembleModelLoss",
    "ModelTrustLoss",
    "LikelihoodBudget",
    "BehaviourAnchorLoss",
    "COMBOLoss",
]
