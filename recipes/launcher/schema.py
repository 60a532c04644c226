"""What the recipes' settings may be: a pydantic model for each method.

Values come from the files in ``config/``; the models have no defaults of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rambo_trl.experiment.folder import GIVEN_PARTS


def check_device(name: str) -> str:
    """Refuse a device that is not there, saying which there are."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or count == 0:
            raise ValueError(f"device={name}, but no CUDA device is available: use device=cpu")
        if device.index is not None and device.index >= count:
            raise ValueError(
                f"device={name}, but there are only {count}: cuda:0 to cuda:{count - 1}"
            )
    return name


Whole = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Discount = Annotated[float, Field(ge=0, le=0.99999)]
Averaging = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Sizes = Annotated[list[Whole], Field(min_length=1)]


class Settings(BaseModel):
    """A group of settings; what a task or schedule has besides is another method's."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


class Evaluation(Settings):
    """``evaluation.*``."""

    episodes: Whole
    every: Whole
    last: Whole


class Operation(Settings):
    """How a run is operated: none of it touches what was learnt, so a resumed run may change it."""

    epochs: Whole
    device: Annotated[Text, AfterValidator(check_device)]
    compile: bool
    deterministic: bool
    float32_matmul_precision: Literal["highest", "high", "medium"]
    threads: Whole | None
    on_divergence: Literal["stop", "continue"]
    odd_data: Literal["refuse", "accept"]
    evaluate_beside: bool | None
    evaluation: Evaluation
    checkpoint_every: Whole
    checkpoint_minutes: Positive | None
    checkpoints_kept: Whole
    logger: Literal["csv", "tensorboard", "wandb", "mlflow", "trackio"]
    video: Literal["none", "gif", "mp4"]
    retries: Annotated[int, Field(ge=0)]


class Agent(Settings):
    """``agent.*`` of behaviour cloning: an actor."""

    hidden_sizes: Sizes
    batch_size: Whole
    actor_lr: Positive


AgentT = TypeVar("AgentT", bound=Agent)


class Shared(Operation, Generic[AgentT]):
    """What all methods have; with nothing more, a method without a model."""

    seed: Seed
    resume: Text | None
    run_dir: Text | None
    schedule_name: Text
    dataset: Text
    env_id: Text | None
    reward_shift: Annotated[float, Field(ge=-1e30, le=1e30)]
    reward_scale: Literal["auto"] | Positive
    agent_updates: Whole
    agent: AgentT


class AgentWithCritics(Agent):
    """``agent.*`` of an actor with critics."""

    gamma: Discount
    tau: Averaging
    critic_lr: Positive


class SacAgent(AgentWithCritics):
    """``agent.*`` of SAC, with its temperature."""

    alpha_lr: Positive
    alpha_init: Positive


class Td3BcAgent(AgentWithCritics):
    """``agent.*`` of TD3+BC."""

    bc_alpha: Positive
    policy_noise: NonNegative
    noise_clip: NonNegative
    actor_every: Whole


class RebracAgent(AgentWithCritics):
    """``agent.*`` of ReBRAC; null stands for the published value."""

    actor_penalty: NonNegative | None
    critic_penalty: NonNegative | None
    hidden_layers: Whole
    layer_norm: bool
    policy_noise: NonNegative
    noise_clip: NonNegative
    actor_every: Whole
    batch_size: Whole | None  # type: ignore[assignment]
    gamma: Discount | None  # type: ignore[assignment]
    critic_lr: Positive | None  # type: ignore[assignment]
    actor_lr: Positive | None  # type: ignore[assignment]


class IqlAgent(AgentWithCritics):
    """``agent.*`` of IQL; null stands for the published value."""

    expectile: Annotated[float, Field(ge=0.5, le=0.99999)] | None
    temperature: Positive | None
    scale_rewards: bool
    value_lr: Positive


class CqlAgent(SacAgent):
    """``agent.*`` of CQL."""

    conservative_weight: NonNegative
    num_actions: Whole


class Bc(Shared[Agent]):
    """Settings of ``bc.py``."""

    episode_share: Annotated[float, Field(gt=0, le=1)]


class PretrainedParts(Settings):
    """Where parts of pretraining lie."""

    pretrained: Text | None
    cache_dir: Text
    fitted_model: Text | None
    cloned_policy: Text | None

    @model_validator(mode="after")
    def _one_source(self) -> PretrainedParts:
        for key in GIVEN_PARTS:
            if self.pretrained not in (None, "auto") and getattr(self, key) is not None:
                raise ValueError(
                    f"pretrained={self.pretrained} holds a model and a policy: leave {key} out, or "
                    "use pretrained=auto"
                )
        return self


class MixedAgent(SacAgent):
    """``agent.*`` of SAC on real and imagined rows."""

    real_fraction: Share


class MobileAgent(MixedAgent):
    """``agent.*`` of MOBILE; null stands for the published value."""

    real_fraction: Share | None  # type: ignore[assignment]
    fixed_alpha: NonNegative | None


class Cloning(Settings):
    """``cloning.*``."""

    updates: Annotated[int, Field(ge=0)] | None
    passes: Annotated[int, Field(ge=0)] | None
    batch_size: Whole
    lr: Positive
    episode_share: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _a_budget(self) -> Cloning:
        if self.updates is None and self.passes is None:
            raise ValueError("cloning.updates or cloning.passes must be a number, both are null")
        return self


class WorldModel(Settings):
    """``model.*``."""

    num_members: Whole
    num_elites: Whole
    hidden_sizes: Sizes
    batch_size: Whole
    lr: Positive
    patience: Whole
    min_improvement: Share
    max_updates: Whole | None
    holdout_every: Whole | None
    max_passes: Whole | None
    lr_decay: Literal["none", "cosine"]
    beta: Share

    @model_validator(mode="after")
    def _decay(self) -> WorldModel:
        if self.lr_decay == "cosine" and self.max_updates is None and self.max_passes is None:
            raise ValueError("model.lr_decay=cosine needs model.max_updates, over which it falls")
        return self

    @model_validator(mode="after")
    def _elites(self) -> WorldModel:
        if self.num_elites > self.num_members:
            raise ValueError(
                f"model.num_elites ({self.num_elites}) must not exceed model.num_members "
                f"({self.num_members})"
            )
        return self


MixedAgentT = TypeVar("MixedAgentT", bound=MixedAgent)


class ModelBasedWith(Shared[MixedAgentT], PretrainedParts, Generic[MixedAgentT]):
    """What the methods with a world model share."""

    termination: Text
    model_matmul_dtype: Literal["float32", "bfloat16"]
    rollout_starts: Whole
    rollout_length: Whole | None  # null, where a method has it: the published one
    rollout_policy: Literal["current", "random"]
    retained_epochs: Whole
    clone_behaviour: bool
    model: WorldModel
    cloning: Cloning


class ModelBased(ModelBasedWith[MixedAgent]):
    """The same with SAC as it is."""


class RamboAgent(MixedAgent):
    """``agent.*`` of RAMBO."""

    target_entropy: Annotated[float, Field(ge=-20, le=0.69)]  # that of uniform actions
    layer_norm: bool
    deterministic_backup: bool
    lr_decay: Literal["none", "cosine"]
    critic_warmup: Annotated[int, Field(ge=0)]
    regression_updates: Annotated[int, Field(ge=0)]
    actor_average: Annotated[float, Field(ge=0, lt=1)]
    anchor_weight: NonNegative
    anchor_final: NonNegative
    anchor_yields: bool
    anchor_batch_size: Whole


class Mopo(ModelBased):
    """Settings of ``mopo.py``."""

    penalty_coefficient: NonNegative | None


class Mobile(ModelBasedWith[MobileAgent]):
    """Settings of ``mobile.py``."""

    penalty_coefficient: NonNegative | None
    num_samples: Whole
    clip_targets: bool | None


class Halting(Settings):
    """``halting.*`` of MOReL."""

    num_stds: NonNegative | None
    penalty: NonNegative


class Morel(ModelBased):
    """Settings of ``morel.py``."""

    rollout_length: Whole
    halting: Halting


class Combo(ModelBased):
    """Settings of ``combo.py``."""

    conservative_weight: NonNegative | None
    penalized_actions: Literal["rollout", "policy", "logsumexp"]
    num_actions: Whole


class AdversarialModel(WorldModel):
    """``model.*`` of RAMBO."""

    adversarial_lr: Positive
    adversarial_lr_decay: Literal["none", "cosine"]
    adversarial_batch_size: Whole | None
    likelihood_batch_size: Whole | None


class Rambo(ModelBasedWith[RamboAgent]):
    """Settings of ``rambo.py``."""

    rollout_length: Whole
    model: AdversarialModel
    model_updates: Annotated[int, Field(ge=0)]
    refit: bool
    early_share: Annotated[float, Field(ge=0, lt=1)]
    early_steps: Whole
    imagined_episodes: Annotated[int, Field(ge=0)]
    imagined_steps: Whole
    adversarial_weight: NonNegative
    num_critics: Whole
    adversary_density: Literal["mixture", "member"]
    advantage_clip: Positive | None
    model_updates_every: Whole
    model_term: Literal["likelihood", "kl", "total_variation"]
    likelihood_budget: Positive | None
    budget_lr: Positive
    value_budget: Positive | None
    rollout_direction: Literal["forward", "reverse", "both"]

    @model_validator(mode="after")
    def _variants(self) -> Rambo:
        if self.likelihood_budget and not self.adversarial_weight:
            raise ValueError(
                "likelihood_budget needs an adversarial_weight above 0 to start from, got 0: give "
                "one, or leave the budget out"
            )
        if self.rollout_direction == "reverse" and self.adversarial_weight:
            raise ValueError(
                "rollout_direction=reverse leaves the agent nothing that the adversary touches: "
                "use both, or adversarial_weight=0"
            )
        if self.rollout_direction == "both" and self.rollout_starts < 2:
            raise ValueError(
                f"rollout_direction=both needs 2 rollout_starts, got {self.rollout_starts}"
            )
        if self.rollout_direction != "forward" and self.termination == "learned":
            raise ValueError(
                f"rollout_direction={self.rollout_direction} needs a termination rule that judges "
                "by the next observation, and termination=learned looks at the whole step: use "
                "none or MODULE:FUNCTION"
            )
        return self


class FinetunedAgent(Settings):
    """``agent.*`` of fine-tuning; null stands for the run's."""

    gamma: Discount | None
    tau: Averaging | None
    batch_size: Whole | None
    real_fraction: Share | None
    critic_lr: Positive | None
    actor_lr: Positive | None
    alpha_lr: Positive | None
    critic_warmup: Annotated[int, Field(ge=0)]
    actor_average: Annotated[float, Field(ge=0, lt=1)] | None
    anchor_weight: NonNegative | None
    anchor_final: NonNegative


class FinetunedModel(Settings):
    """``model.*`` of fine-tuning; null stands for the run's."""

    adversarial_lr: Positive | None


class Finetune(Operation):
    """Settings of ``finetune.py``; null stands for the run's."""

    run: Text | None
    source: dict[str, Any] | None
    seed: Seed
    resume: Text | None
    run_dir: Text | None
    schedule_name: Text | None
    dataset: Text | None
    env_id: Text | None
    termination: Text | None
    reward_shift: Annotated[float, Field(ge=-1e30, le=1e30)] | None
    reward_scale: Literal["auto"] | Positive | None
    online_steps: Whole
    online_share: Share | None
    agent_updates: Whole
    model_updates: Annotated[int, Field(ge=0)]
    model_updates_every: Whole
    adversarial_weight: NonNegative | None
    rollout_starts: Whole | None
    rollout_length: Whole | None
    retained_epochs: Whole | None
    agent: FinetunedAgent
    model: FinetunedModel


#: settings by method
SETTINGS: Mapping[str, type[Settings]] = {
    "rambo": Rambo,
    "finetune": Finetune,
    "mopo": Mopo,
    "mobile": Mobile,
    "morel": Morel,
    "combo": Combo,
    "cql": Shared[CqlAgent],
    "iql": Shared[IqlAgent],
    "td3_bc": Shared[Td3BcAgent],
    "rebrac": Shared[RebracAgent],
    "bc": Bc,
}
