"""The work that the benchmarks time: the paper's parts and sizes on made-up data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import _recipes  # noqa: F401  # for the launcher
import rambo
import torch
from launcher.command_line import compose_jobs
from measuring import product_flop
from tensordict import TensorDict
from torch import Tensor
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded
from torchrl.objectives import BCLoss

from rambo_trl.data import OfflineDataset, RealModelReplayBuffer
from rambo_trl.experiment.run import Inspection
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import EnsembleModelLoss
from rambo_trl.runtime.cuda_graphs import capture_on_gpu
from rambo_trl.training.gradient_step import GradientStep, adam
from rambo_trl.training.phases import AgentPhase, ModelPhase

__all__ = [
    "ODD_SIZES",
    "VARIANTS",
    "WARM_UP",
    "Workload",
    "hopper_like",
    "published_products",
    "sizes_of",
]

#: calls before a CUDA graph is captured, and one more
WARM_UP = 4

#: adversarial updates that do less than the published one, by name: keywords of :class:`Workload`
VARIANTS: dict[str, dict[str, Any]] = {
    "adversarial_member": {"adversary_density": "member"},
    "adversarial_fewer": {"adversary_density": "member", "likelihood_batch_size": 64},
}

#: a moment's work, for tests: rows that neither the elites nor chunks nor batches divide
ODD_SIZES: dict[str, Any] = {
    "num_rows": 211,
    "num_members": 4,
    "num_elites": 3,
    "hidden_sizes": (16, 16),
    "agent_hidden_sizes": (16, 16),
    "num_starts": 47,
    "horizon": 3,
    "batch_size": 14,
    "adversarial_weight": 0.1,
}


def sizes_of(schedule: str) -> dict[str, Any]:
    """Keywords of :class:`Workload` for a schedule as it stands, on the default task."""
    (cfg,) = compose_jobs("rambo", [f"schedule={schedule}"], check=lambda cfg: None)
    return {
        "schedule": schedule,
        "num_members": cfg.model.num_members,
        "num_elites": cfg.model.num_elites,
        "hidden_sizes": tuple(cfg.model.hidden_sizes),
        "agent_hidden_sizes": tuple(cfg.agent.hidden_sizes),
        "num_starts": cfg.rollout_starts,
        "horizon": cfg.rollout_length,
        "retained_epochs": cfg.retained_epochs,
        "batch_size": cfg.agent.batch_size,
        "real_fraction": cfg.agent.real_fraction,
        "adversarial_weight": cfg.adversarial_weight,
        "adversary_density": cfg.adversary_density,
        "likelihood_batch_size": cfg.model.likelihood_batch_size,
    }


def published_products(**options: Any) -> dict[str, float]:
    """:meth:`Workload.products` with the published sizes, and those of the variants' update."""
    flop = Workload(num_starts=1000, **options).products()
    for name, variant in VARIANTS.items():
        flop[name] = Workload(num_starts=1000, **variant, **options).update_product()
    return flop


def hopper_like(num_rows: int, observation_size: int = 11, action_size: int = 3) -> TensorDict:
    """Transitions [num_rows] of Hopper's sizes, small steps of a state in its healthy range.

    They are noise: what is timed does not depend on what the numbers mean, but rows that
    terminate at once would leave less to do.
    """
    observation = 0.1 * torch.randn(num_rows, observation_size)
    observation[:, 0], observation[:, 1] = 1.25, 0.0  # height and angle
    terminated = torch.zeros(num_rows, 1, dtype=torch.bool)
    return TensorDict(
        {
            "observation": observation,
            "action": 2 * torch.rand(num_rows, action_size) - 1,
            "next": {
                "observation": observation + 0.001 * torch.randn_like(observation),
                "reward": torch.randn(num_rows, 1),
                "terminated": terminated,
                "done": terminated.clone(),
            },
        },
        [num_rows],
    )


@dataclass
class Workload:
    """Algorithm 1's parts with the published settings, fresh and untrained.

    The world model's last layer is shrunk, so that its steps stay in Hopper's healthy range and
    rollouts run their whole length, as they do after a fit.

    Attributes:
        compile: compile what the recipes compile.
        device: where everything lives.
        schedule: whose settings those are that have no attribute here.
    """

    compile: bool = False
    device: str = "cpu"
    schedule: str = "paper"
    observation_size: int = 11
    action_size: int = 3
    num_rows: int = 100_000
    num_members: int = 7
    num_elites: int = 5
    hidden_sizes: tuple[int, ...] = (200, 200, 200, 200)
    matmul_dtype: torch.dtype | None = None
    agent_hidden_sizes: tuple[int, ...] = (256, 256)
    num_starts: int = 50_000
    horizon: int = 5
    retained_epochs: int = 5
    batch_size: int = 256
    real_fraction: float = 0.5
    adversarial_weight: float = 3e-4
    adversary_density: str = "mixture"
    likelihood_batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.observation_size, self.action_size)
        torch.manual_seed(self.seed)
        self.data = hopper_like(self.num_rows, *sizes).to(self.device)
        bfloat16 = self.matmul_dtype is torch.bfloat16
        (cfg,) = compose_jobs(
            "rambo",
            [
                f"schedule={self.schedule}",
                f"device={self.device}",
                f"compile={self.compile}",
                f"termination={'auto' if self.observation_size == 11 else 'none'}",
                f"model.num_members={self.num_members}",
                f"model.num_elites={self.num_elites}",
                f"model.hidden_sizes={list(self.hidden_sizes)}",
                f"model.batch_size={self.batch_size}",
                f"model_matmul_dtype={'bfloat16' if bfloat16 else 'float32'}",
                f"agent.hidden_sizes={list(self.agent_hidden_sizes)}",
                f"agent.batch_size={self.batch_size}",
                f"agent.real_fraction={self.real_fraction}",
                f"agent.actor_lr={1e-4}",
                f"rollout_starts={self.num_starts}",
                f"rollout_length={self.horizon}",
                f"retained_epochs={self.retained_epochs}",
                f"adversarial_weight={self.adversarial_weight}",
                f"adversary_density={self.adversary_density}",
                f"model.likelihood_batch_size={self.likelihood_batch_size or 'null'}",
            ],
            check=lambda cfg: None,
        )
        self._beta = cfg.model.beta
        torchrl_logger.setLevel("ERROR")  # that made-up data are odd does not matter here
        dataset = OfflineDataset(
            self.data.cpu(),
            action_spec=Bounded(-1, 1, shape=(self.action_size,)),
            env_id="Hopper-v5",
            normalize=False,
        )
        inspection = Inspection()
        rambo.train(inspection, cfg, dataset)
        parts = inspection.parts
        self.world_model: EnsembleWorldModel = parts["world_model"]
        with torch.no_grad():
            self.world_model.weights[-1].mul_(0.01)
            self.world_model.biases[-1][..., self.world_model.output_size :] = -9.0
        self.agent: AgentPhase = parts["agent"]
        self.model: ModelPhase = parts["model"]
        self.collector = parts["collector"].forward
        self.model_buffer = parts["model_buffer"]
        self.env, self.model_loss = self.model.env, self.model.model_loss
        self.actor, self.action_spec = inspection.policy, dataset.action_spec
        self.mixed = RealModelReplayBuffer(
            self.model.real_buffer,
            self.model_buffer,
            real_fraction=self.real_fraction,
            batch_size=self.batch_size,
        )

    def state(self) -> dict[str, Tensor]:
        """The tensors of the model and of the agent, live, by name."""
        modules = {"model": self.world_model, "agent": self.agent.loss}
        named = {f"{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}
        return {k: v.detach() for k, v in named.items() if isinstance(v, Tensor)}

    def rollouts(self) -> int:
        """Collect once and store; returns the number of transitions."""
        flat = self.collector.collect()
        self.model_buffer.extend(flat.select(*self.mixed.keys))
        return flat.shape[0]

    def agent_updates(self, num: int) -> dict[str, float]:
        """Take SAC updates; the model buffer must not be empty."""
        return self.agent.run(self.mixed.batches(num))

    def model_updates(self, num: int) -> dict[str, float]:
        """Take adversarial updates."""
        return self.model.run(num)

    def likelihood_step(self) -> Callable[[], Any]:
        """A step of the maximum-likelihood fit: every member on a batch of its own."""
        step = GradientStep(
            EnsembleModelLoss(self.world_model, beta=self._beta),
            adam((self.world_model.parameters(), 3e-4)),
            compile=self.compile,
        )
        shape = (self.num_members, self.batch_size)
        # what the fit draws, and no more
        data = self.data.select(*self.world_model.in_keys, *self.world_model.out_keys)
        run = capture_on_gpu(step.__call__, self.compile)
        return lambda: run(data[self._rows(shape)])

    def cloning_step(self) -> Callable[[], Any]:
        """A step of behaviour cloning."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The name target_actor_network_params")
            loss = BCLoss(self.actor)
        step = GradientStep(loss, adam((loss.parameters(), 1e-4)), compile=self.compile)
        data = self.data.select("observation", "action")
        run = capture_on_gpu(step.__call__, self.compile)
        return lambda: run(data[self._rows((self.batch_size,))])

    def products(self) -> dict[str, float]:
        """FLOP of the matrix products, backward passes included; the workload is not compiled.

        Those of a transition of ``rollouts`` and of an update of each other kind.
        """
        return {
            "rollouts": product_flop(self.rollouts) / (self.num_starts * self.horizon),
            "sac": product_flop(lambda: self.agent_updates(1)),
            "adversarial": self.update_product(),
            "likelihood": product_flop(self.likelihood_step()),
            "cloning": product_flop(self.cloning_step()),
        }

    def update_product(self) -> float:
        """FLOP of the matrix products of an adversarial update, as :meth:`products` has them."""
        return product_flop(lambda: self.model_updates(1))

    def _rows(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(self.num_rows, shape, device=self.device)
