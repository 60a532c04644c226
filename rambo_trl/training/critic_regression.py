"""SAC's critics fitted to the logged returns, before they bootstrap."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import HardUpdate, SACLoss

from rambo_trl.data.returns import discounted_returns
from rambo_trl.training.gradient_step import ProgressBar, adam
from rambo_trl.training.pretraining import train_on_rows

__all__ = ["critic_values", "regress_critics"]


def critic_values(loss: SACLoss, rows: TensorDictBase) -> Tensor:
    """Every critic's value of the rows' own actions.

    Args:
        loss: holds the critics; their parameters are used live.
        rows: [*B], with what the critics read.

    Returns:
        [num_critics, *B, 1]
    """
    network = loss.qvalue_network

    def value(params: TensorDictBase, rows: TensorDictBase) -> Tensor:
        with params.to_module(network, preserve_module_state=False):
            return network(rows).get(loss.tensor_keys.state_action_value)

    return torch.vmap(value, (0, None))(loss.qvalue_network_params, rows.select(*network.in_keys))


def regress_critics(
    loss: SACLoss,
    transitions: TensorDictBase,
    *,
    gamma: float,
    updates: int,
    batch_size: int = 256,
    lr: float = 3e-4,
    compile: bool = False,
    bar: ProgressBar | None = None,
) -> dict[str, float]:
    """Fit SAC's critics to the logged discounted returns, before they bootstrap.

    They then start from the value of the logged behaviour instead of from nothing (Jelley et al.
    2024, https://arxiv.org/abs/2406.13376, sec. 4). The target critics become copies of them.

    Args:
        loss: SAC's loss; only its critics change.
        transitions: the data [N], normalised, episode by episode.

    Keyword Args:
        gamma: discount factor, below 1.
        updates: gradient steps.
        batch_size: rows per update.
        lr: Adam's learning rate.
        compile: compile the update.
        bar: progress in updates.

    Returns:
        Mean metrics (``loss_returns``, in the square of the rewards' unit) of the last, perhaps
        incomplete, pass.
    """
    rows = transitions.select(*loss.qvalue_network.in_keys)
    rows["return"] = discounted_returns(transitions, gamma)
    device = loss.log_alpha.device
    critics = loss.qvalue_network_params
    step = adam((critics.parameters(), lr))

    def losses(batch: TensorDictBase) -> TensorDictBase:
        error = critic_values(loss, batch) - batch.get("return")
        return TensorDict(loss_returns=error.square().mean(dim=(1, 2)).sum())

    means = train_on_rows(
        losses, step, rows.to(device), updates, batch_size, compile, "the critics' regression", bar
    )
    HardUpdate(loss, value_network_update_interval=1).step()
    return means
