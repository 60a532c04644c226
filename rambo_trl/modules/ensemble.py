"""The probabilistic ensemble world model (paper sec. 5.2): 7 Gaussian networks, 5 elites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from rambo_trl.modules.functional import (
    elite_permutation,
    gaussian_mixture_log_prob,
    repeat_members,
    row_blocks,
    soft_clamp,
    threads_of,
)
from rambo_trl.modules.statistics import mean_and_std

__all__ = ["EnsembleWorldModel"]


class EnsembleWorldModel(TensorDictModuleBase):
    r"""An ensemble of Gaussian networks predicting the next observation and the reward.

    Each member maps a standardised (observation, action) to the mean and the log-variance of
    ``(next observation - observation, standardised reward)``. As a density the model is the uniform
    mixture of its elite members; sampling picks one elite per row, then draws from its
    Gaussian (paper sec. 5.2).

    All members' parameters are stacked along the first dimension, so that a layer is one
    batched product. Indices of the elites and the statistics of the inputs and the reward are
    buffers and travel with the ``state_dict``. Everything but the networks is in the data's units.

    Args:
        observation_size: number of observation entries.
        action_size: number of action entries.

    Keyword Args:
        num_members: networks in the ensemble.
        num_elites: members that make up the density, chosen once after the maximum-likelihood
            fit; until then the first ones.
        hidden_sizes: widths of the SiLU layers.
        log_var_init: start of the learnt lower and upper bounds of the log-variance, the reward's
            in units of :attr:`reward_std`.
        observation_key, action_key, reward_key: entries that are read and, under ``"next"``,
            written.
        matmul_dtype: torch.bfloat16, to which the products between hidden layers and their factors
            are then rounded: a CPU or GPU with bfloat16 units multiplies at least twice as fast.
            Parameters, inputs, activations, the first and the last layer and the output keep
            their dtype. None, the default, rounds nothing.
        device: where the parameters are put.

    Raises:
        ValueError: if there are more elites than members, a size is not positive, or
            ``matmul_dtype`` is another dtype.

    Reference: https://arxiv.org/abs/2204.12581

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from rambo_trl.modules import EnsembleWorldModel
        >>> model = EnsembleWorldModel(3, 1, hidden_sizes=(16, 16))
        >>> td = TensorDict({"observation": torch.zeros(4, 3), "action": torch.zeros(4, 1)}, [4])
        >>> td = model(td)
        >>> td["next", "observation"].shape, td["next", "reward"].shape
        (torch.Size([4, 3]), torch.Size([4, 1]))
        >>> model.log_prob(td).shape
        torch.Size([4])
    """

    elites: Tensor
    input_mean: Tensor
    input_std: Tensor
    #: mean [1] and standard deviation [1] of the rewards that the networks' outputs are scaled by
    reward_mean: Tensor
    reward_std: Tensor
    #: optional entry with every elite's ``mean`` and ``log_var`` of a row, [*B, num_elites, D],
    #: from which densities are then computed
    prediction_key = "elite_prediction"
    #: entry of rows that :meth:`draw` drew: ``mean`` and ``log_var`` [*B, D] by the elite that drew
    drawn_key = "drawn_prediction"

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        num_members: int = 7,
        num_elites: int = 5,
        hidden_sizes: Sequence[int] = (200, 200, 200, 200),
        log_var_init: tuple[float, float] = (-10.0, 0.5),
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
        reward_key: NestedKey = "reward",
        matmul_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if min(observation_size, action_size, num_members, *hidden_sizes) < 1:
            raise ValueError(
                "observation_size, action_size, num_members and hidden_sizes must be positive"
            )
        if not 1 <= num_elites <= num_members:
            raise ValueError(
                f"num_elites must lie in [1, num_members={num_members}], got {num_elites}"
            )
        if matmul_dtype not in (None, torch.bfloat16):
            raise ValueError(f"matmul_dtype must be torch.bfloat16 or None, got {matmul_dtype}")
        self.observation_size = observation_size
        self.action_size = action_size
        self.num_members = num_members
        self.num_elites = num_elites
        self.hidden_sizes = tuple(hidden_sizes)
        self.matmul_dtype = matmul_dtype
        self.output_size = observation_size + 1
        self.observation_key = observation_key
        self.action_key = action_key
        self.reward_key = reward_key
        self.next_observation_key = unravel_key(("next", observation_key))
        self.next_reward_key = unravel_key(("next", reward_key))
        self.in_keys = [observation_key, action_key]
        self.out_keys = [self.next_observation_key, self.next_reward_key]

        input_size = observation_size + action_size
        sizes = [input_size, *self.hidden_sizes, 2 * self.output_size]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            weight = torch.empty(num_members, fan_in, fan_out, device=device)
            std = 0.5 / fan_in**0.5
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(num_members, 1, fan_out, device=device)))
        low, high = log_var_init
        self.min_log_var = nn.Parameter(torch.full((self.output_size,), float(low), device=device))
        self.max_log_var = nn.Parameter(torch.full((self.output_size,), float(high), device=device))
        self.register_buffer("elites", torch.arange(num_elites, device=device))
        self.register_buffer("input_mean", torch.zeros(input_size, device=device))
        self.register_buffer("input_std", torch.ones(input_size, device=device))
        self.register_buffer("reward_mean", torch.zeros(1, device=device))
        self.register_buffer("reward_std", torch.ones(1, device=device))
        # the elites' weights while they are trained, see elites_apart(); not part of the state
        self.__dict__["_detached"] = None
        self.__dict__["_is_apart"] = False

    def fit_input_statistics(
        self, observation: Tensor, action: Tensor, rows: Tensor | None = None
    ) -> None:
        """Set the inputs' standardisation from the training rows.

        Args:
            observation: [N, observation_size].
            action: [N, action_size].
            rows: the training rows' numbers; all rows where None.
        """

        def inputs(start: int, stop: int) -> Tensor:
            chosen = slice(start, stop) if rows is None else rows[start:stop]
            return torch.cat([observation[chosen], action[chosen]], dim=-1)

        mean, std = mean_and_std(inputs, len(observation if rows is None else rows))
        self.input_mean.copy_(mean)
        self.input_std.copy_(torch.where(std < 1e-6, torch.ones_like(std), std))

    def fit_reward_statistics(self, reward: Tensor, rows: Tensor | None = None) -> None:
        """Set the scale of the predicted reward from the training rows.

        Rewards of any unit are then learnt equally well. Rewards that are all equal keep their
        size.

        Args:
            reward: [N, 1].
            rows: the training rows' numbers; all rows where None.
        """

        def rewards(start: int, stop: int) -> Tensor:
            return reward[slice(start, stop) if rows is None else rows[start:stop]].double()

        mean, std = mean_and_std(rewards, len(reward if rows is None else rows))
        size = torch.where(mean == 0, torch.ones_like(mean), mean.abs())
        self.reward_mean.copy_(mean)
        self.reward_std.copy_(torch.where(std <= 1e-6 * mean.abs(), size, std))

    @property
    def output_scale(self) -> Tensor:
        """The units [observation_size + 1] that errors of the predictions are measured in.

        They are 1 for the next observation, which is normalised, and the reward's deviation.
        """
        return torch.cat([self.reward_std.new_ones(self.observation_size), self.reward_std])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load as torch does; states saved before rewards were scaled mean an unscaled reward."""
        state_dict.setdefault(f"{prefix}reward_mean", torch.zeros_like(self.reward_mean))
        state_dict.setdefault(f"{prefix}reward_std", torch.ones_like(self.reward_std))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_elites(self, holdout_error: Tensor) -> None:
        """Choose the members with the lowest holdout error as elites.

        Args:
            holdout_error: mean squared error per member [num_members].

        Raises:
            ValueError: if the shape is another, or an error is not finite.
        """
        if holdout_error.shape != (self.num_members,) or not holdout_error.isfinite().all():
            raise ValueError(
                f"set_elites needs one finite error per member [{self.num_members}], "
                f"got {holdout_error}"
            )
        self.elites.copy_(holdout_error.argsort()[: self.num_elites])

    def layers(self, members: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The layers' weights and biases of some members.

        Args:
            members: indices [M] of the members, or :attr:`elites`; all of them by default.

        Returns:
            Weights [M, fan_in, fan_out] and biases [M, 1, fan_out], one of each a layer.

        Raises:
            RuntimeError: inside :meth:`elites_apart`, if neither all members nor
                :attr:`elites` itself is asked for.
        """
        if not self._is_apart:
            if members is None:
                return list(self.weights), list(self.biases)
            return [w[members] for w in self.weights], [b[members] for b in self.biases]
        half = len(self._detached) // 2
        if members is self.elites:
            return self._detached[:half], self._detached[half:]
        if members is not None:
            raise RuntimeError("inside elites_apart() members must be None or world_model.elites")
        stacked = [
            all_members.index_copy(0, self.elites, elites)
            for elites, all_members in zip(self._detached, self._stacks(), strict=True)
        ]
        return stacked[:half], stacked[half:]

    def _stacks(self) -> list[Tensor]:
        """All members' weights, then their biases."""
        return [*self.weights, *self.biases]

    def elite_parameters(self) -> list[nn.Parameter]:
        """The parameters to train inside :meth:`elites_apart`: the elites' and the bounds.

        They are the same tensors at every call, and hold the elites' values inside
        :meth:`elites_apart` only.
        """
        if self._detached is None:
            self.__dict__["_detached"] = [
                nn.Parameter(p.detach()[: self.num_elites].clone()) for p in self._stacks()
            ]
        return [*self._detached, self.min_log_var, self.max_log_var]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EnsembleWorldModel:
        """Apply ``.to()`` and its like to the detached elite weights too."""
        super()._apply(fn, recurse)
        for parameter in self._detached or ():
            parameter.data = fn(parameter.data)
        return self

    @contextmanager
    def elites_apart(self) -> Iterator[None]:
        """Detach the elites from the ensemble, to train them without touching the others.

        Inside this context the elites' weights are separate tensors (:meth:`elite_parameters`),
        so that no update gathers them from the stack of all members and scatters their gradient
        back. They are written back at the end, and before the ensemble is saved or copied.
        """
        self.elite_parameters()
        with torch.no_grad():
            for elites, all_members in zip(self._detached, self._stacks(), strict=True):
                elites.copy_(all_members[self.elites])
        self.__dict__["_is_apart"] = True
        try:
            yield
        finally:
            self._write_back()
            self.__dict__["_is_apart"] = False

    @torch.no_grad()
    def _write_back(self) -> None:
        """Copy the detached elites' weights into the ensemble."""
        if self._is_apart:
            for elites, all_members in zip(self._detached, self._stacks(), strict=True):
                all_members[self.elites] = elites

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state with the elites' current weights, inside :meth:`elites_apart` too."""
        self._write_back()
        return super().state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles: an ensemble whose elites are not detached."""
        self._write_back()
        return {**self.__dict__, "_is_apart": False}

    def predict(
        self, observation: Tensor, action: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate members on rows: mean and log-variance of (next observation, reward).

        Args:
            observation: [B, observation_size], the same rows for every member, or
                [M, B, observation_size], separate rows for each.
            action: [B, action_size] or [M, B, action_size].
            members: indices [M] of the members; all of them by default.

        Returns:
            Mean and log-variance, each [M, B, observation_size + 1], the reward last.
        """
        weights, biases = self.layers(members)
        num_members, rows = weights[0].shape[0], observation.shape[-2]
        x = (torch.cat([observation, action], dim=-1) - self.input_mean) / self.input_std
        blocks = row_blocks(num_members, rows, threads_of(x))
        x = x.expand(num_members, rows, x.shape[-1])
        x = x.reshape(num_members * blocks, rows // blocks, x.shape[-1])
        last = len(weights) - 1
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            rounded = None if i in (0, last) else self.matmul_dtype
            # compiled, a separate sum is fused into the activation; baddbmm's copy is not
            product = _product(x, repeat_members(weight, blocks), rounded)
            x = product + repeat_members(bias, blocks)
            if i < last:
                x = nn.functional.silu(x)
        x = x.reshape(num_members, rows, x.shape[-1])
        delta, log_var = x.chunk(2, dim=-1)
        reward = delta[..., -1:] * self.reward_std + self.reward_mean
        mean = torch.cat([delta[..., :-1] + observation, reward], dim=-1)
        log_var = soft_clamp(log_var, self.min_log_var, self.max_log_var)
        return mean, log_var + 2 * self.output_scale.log()

    def predict_together(
        self, *batches: tuple[Tensor, Tensor], members: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """:meth:`predict` of several batches in one pass: fewer and larger products.

        Args:
            batches: observation and action of each, [B, ...] or [M, B, ...]; B may differ.
            members: as in :meth:`predict`.

        Returns:
            Mean and log-variance of each batch, each [M, B, observation_size + 1].
        """
        num_members = self.num_members if members is None else len(members)
        observation, action = (
            torch.cat([x.expand(num_members, *x.shape[-2:]) for x in parts], dim=1)
            for parts in zip(*batches, strict=True)
        )
        rows = [observation.shape[-2] for observation, _ in batches]
        mean, log_var = (
            x.split(rows, dim=1) for x in self.predict(observation, action, members=members)
        )
        return list(zip(mean, log_var, strict=True))

    def predict_drawn(
        self, rows: tuple[Tensor, Tensor], *batches: tuple[Tensor, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Predict each row by one uniformly chosen elite alone, and further batches by all elites.

        The choice is that of :meth:`sample`, which then draws from the prediction.

        Args:
            rows: observation [B, observation_size] and action [B, action_size].
            batches: as in :meth:`predict_together`, in whose single pass the rows take part.

        Returns:
            Mean and log-variance of the rows, each [B, observation_size + 1], and of each batch,
            each [num_elites, B, observation_size + 1].
        """
        order, inverse = elite_permutation(len(rows[0]), self.num_elites, rows[0].device)
        observation, action = (x[order.view(self.num_elites, -1)] for x in rows)
        (mean, log_var), *others = self.predict_together(
            (observation, action), *batches, members=self.elites
        )
        return [(mean.flatten(0, 1)[inverse], log_var.flatten(0, 1)[inverse]), *others]

    def sample(
        self,
        observation: Tensor,
        action: Tensor,
        prediction: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw (s', r) from one uniformly chosen elite per row.

        A random permutation cut into equal blocks gives each row its elite, so that only
        that member is evaluated on it: the marginal of every row is uniform over the elites.

        Args:
            observation: [B, observation_size].
            action: [B, action_size].
            prediction: every elite's mean and log-variance on these rows, as :meth:`predict`
                gives them, each [num_elites, B, observation_size + 1], or those by the elite that
                draws, each [B, observation_size + 1], as :meth:`predict_drawn` gives them; the
                members are then not evaluated again.

        Returns:
            The next observation [B, observation_size] and the reward [B, 1], detached: the
            paper's Model Gradient (Eq. 5) does not differentiate through the sample.
        """
        with torch.no_grad():
            if prediction is not None and prediction[0].ndim == 2:
                value = _gaussian_sample(*prediction)
                return value[:, :-1], value[:, -1:]
            rows = observation.shape[0]
            order, inverse = elite_permutation(rows, self.num_elites, observation.device)
            block = order.view(self.num_elites, -1)
            if prediction is None:
                mean, log_var = self.predict(observation[block], action[block], self.elites)
            else:
                member = torch.arange(self.num_elites, device=block.device).unsqueeze(-1)
                mean, log_var = (x[member, block] for x in prediction)
            value = _gaussian_sample(mean, log_var).flatten(0, 1)[inverse]
        return value[:, :-1], value[:, -1:]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write a sampled ``("next", observation)`` and ``("next", reward)``."""
        return self._write(tensordict, *self.sample(*self._flat_rows(tensordict)))

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """As calling the model, and write by which elite each row was drawn, for its density.

        Each row is evaluated by that elite alone. Its prediction, written as :attr:`drawn_key`,
        has a gradient, so that :meth:`member_log_prob` evaluates nothing again.
        """
        rows, shape = self._flat_rows(tensordict), tensordict.batch_size
        (prediction,) = self.predict_drawn(rows)
        mean, log_var = (x.reshape(*shape, self.output_size) for x in prediction)
        tensordict.set(self.drawn_key, TensorDict({"mean": mean, "log_var": log_var}, shape))
        return self._write(tensordict, *self.sample(*rows, prediction))

    def _flat_rows(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Observations [B, observation_size] and actions [B, action_size] of rows [*B]."""
        return (
            tensordict.get(self.observation_key).reshape(-1, self.observation_size),
            tensordict.get(self.action_key).reshape(-1, self.action_size),
        )

    def _write(
        self, tensordict: TensorDictBase, next_observation: Tensor, reward: Tensor
    ) -> TensorDictBase:
        """Write what was sampled for the flat rows."""
        shape = tensordict.batch_size
        tensordict.set(
            self.next_observation_key, next_observation.reshape(*shape, self.observation_size)
        )
        tensordict.set(self.next_reward_key, reward.reshape(*shape, 1))
        return tensordict

    def _elite_prediction(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [num_elites, B, D], from the input where it holds them."""
        known = tensordict.get(self.prediction_key, None)
        if known is not None:
            shape = (-1, self.num_elites, self.output_size)
            return tuple(known.get(k).reshape(shape).movedim(1, 0) for k in ("mean", "log_var"))
        return self.predict(*self._flat_rows(tensordict), self.elites)

    def get_dist(self, tensordict: TensorDictBase) -> MixtureSameFamily:
        """The elites' uniform mixture over (next observation, reward).

        Returns:
            A distribution of batch shape [*B] and event shape [observation_size + 1].
        """
        mean, log_var = self._elite_prediction(tensordict)
        shape = (*tensordict.batch_size, self.num_elites, self.output_size)
        mean, log_var = (x.movedim(0, -2).reshape(shape) for x in (mean, log_var))
        return MixtureSameFamily(
            Categorical(logits=mean.new_zeros(shape[:-1])),
            Independent(Normal(mean, (0.5 * log_var).exp()), 1),
        )

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        r"""Log-density of the recorded transition, :math:`\log T(s', r | s, a)`.

        Args:
            tensordict: holds observation, action and under ``"next"`` the observation and
                the reward that were drawn or recorded. Where it also holds the elites'
                predictions (:attr:`prediction_key`), they are not evaluated again.

        Returns:
            [*B], summed over the dimensions of the next observation and the reward.
        """
        return self._log_density(tensordict, *self._elite_prediction(tensordict))

    def member_log_prob(self, tensordict: TensorDictBase) -> Tensor:
        r"""Log-density of drawn transitions under the elite that drew each.

        Given :math:`(s', r)`, the elite that drew it is distributed as the mixture's
        responsibilities. The gradient of this density has therefore the gradient of
        :meth:`log_prob` as its conditional mean.

        Args:
            tensordict: rows [*B] that :meth:`draw` wrote.

        Returns:
            [*B], summed over the dimensions of the next observation and the reward.

        Raises:
            KeyError: if the rows do not say which elite drew them.
            RuntimeError: if a gradient is asked for that they were drawn without.
        """
        drawn = tensordict.get(self.drawn_key, None)
        if drawn is None:
            raise KeyError(f"the rows hold no {self.drawn_key!r}: draw them with draw()")
        mean, log_var = (drawn.get(k).reshape(1, -1, self.output_size) for k in ("mean", "log_var"))
        if torch.is_grad_enabled() and not mean.requires_grad:
            raise RuntimeError(
                "rows drawn without gradients have no member_log_prob with one: call draw() "
                "outside of no_grad, in each update"
            )
        return self._log_density(tensordict, mean, log_var)

    def _log_density(self, tensordict: TensorDictBase, mean: Tensor, log_var: Tensor) -> Tensor:
        """Log-density [*B] of recorded transitions in a uniform mixture of Gaussians [E, B, D]."""
        reward = tensordict.get(self.next_reward_key).reshape(*tensordict.batch_size, 1)
        value = torch.cat([tensordict.get(self.next_observation_key), reward], dim=-1)
        # in units in which squares neither overflow nor vanish
        scale = self.output_scale
        log_prob = gaussian_mixture_log_prob(
            value.reshape(-1, self.output_size) / scale, mean / scale, log_var - 2 * scale.log()
        )
        return (log_prob - scale.log().sum()).reshape(tensordict.batch_size)


def _gaussian_sample(mean: Tensor, log_var: Tensor) -> Tensor:
    return mean + torch.randn_like(mean) * (0.5 * log_var).exp()


def _product(x: Tensor, weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The batched product, its factors and result rounded to ``dtype``, in the dtype of ``x``."""
    if dtype is None:
        return torch.bmm(x, weight)
    return torch.bmm(x.to(dtype), weight.to(dtype)).to(x.dtype)
