"""A heating tank as a Gymnasium environment, and the PI controllers that it is logged under.

Water is stirred in a tank, flows through it at a rate that the controller sets against a demand
that varies, and is heated by an electric element that lags behind its power. An element that gets
too hot trips the plant and ends the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Number = float | Array
Pair = tuple[Number, Number]

STEP_S, STEPS = 20, 200  #: of the controller, and of a batch
#: so many steps are played for a discounted return: with 0.995 a step, 0.7 % of it is cut off
DISCOUNTED_STEPS = 1000
#: what is measured, and what is set
OBSERVATIONS = ("tank_C", "element_C", "inlet_C", "ambient_C", "demand_l_s")
ACTIONS = ("power_W", "flow_l_s")
DEMAND = 0.02, 0.06  #: between these it jumps, in l/s
ACTION_LOW, ACTION_HIGH = np.array([0.0, 0.01]), np.array([12_000.0, 0.08])
#: of a step in the log's columns, ``next`` being the row that it leads to
REWARD = (
    "1 - 0.1 * abs(tank_C - 60) - 20 * abs(demand_l_s - flow_l_s) - 0.00003 * power_W "
    "- 30 * next.trip"
)


@dataclass(frozen=True)
class Plant:
    """The tank's constants.

    Attributes:
        water_J_K: heat capacity of the tank's content.
        element_J_K: heat capacity of the heater.
        transfer_W_K: from the heater to the water.
        loss_W_K: from the water to the room.
        flow_J_K_l: heat capacity of a litre.
        trip_C: heater temperature that trips the plant.
        noise: standard deviations of the readings, in the order of ``OBSERVATIONS``.
    """

    water_J_K: float = 60 * 4186.0
    element_J_K: float = 16_000.0
    transfer_W_K: float = 200.0
    loss_W_K: float = 15.0
    flow_J_K_l: float = 4186.0
    trip_C: float = 115.0
    noise: tuple[float, ...] = (0.1, 0.3, 0.05, 0.05, 0.0002)

    def rates(self, state: Pair, action: Pair, inlet: Number, ambient: Number) -> Pair:
        """The energy balances of water and heater, in K/s.

        Args:
            state: temperatures of the water and of the heater.
            action: power in W and flow in l/s.
            inlet: temperature of the water that flows in.
            ambient: temperature of the room.
        """
        water, element = state
        power, flow = action
        heat = self.transfer_W_K * (element - water)
        carried = flow * self.flow_J_K_l * (water - inlet)
        lost = self.loss_W_K * (water - ambient)
        return (heat - carried - lost) / self.water_J_K, (power - heat) / self.element_J_K

    def after(
        self, state: Pair, action: Pair, inlet: Number, ambient: Number, seconds: float = STEP_S
    ) -> Pair:
        """State some seconds later, by one Runge-Kutta step of fourth order.

        The fastest of the two time constants is 80 s, four steps of the controller.
        """

        def rates_at(ahead: float, slope: Pair) -> Pair:
            at = (state[0] + ahead * slope[0], state[1] + ahead * slope[1])
            return self.rates(at, action, inlet, ambient)

        k1 = rates_at(0, (0, 0))
        k2 = rates_at(seconds / 2, k1)
        k3 = rates_at(seconds / 2, k2)
        k4 = rates_at(seconds, k3)
        water, element = (
            x + seconds / 6 * (a + 2 * b + 2 * c + d)
            for x, a, b, c, d in zip(state, k1, k2, k3, k4, strict=True)
        )
        return water, element


PLANT = Plant()


class Tanks:
    """Tanks side by side, each with its own start and disturbances.

    Inlet and demand wander, and the demand jumps about twice a batch. All that is random is drawn
    whatever the actions are: with the same seed, controllers meet the same disturbances.

    Args:
        random: draws everything.
        number: of tanks.
        plant: their constants.
    """

    def __init__(self, random: np.random.Generator, number: int, plant: Plant = PLANT) -> None:
        self.random, self.number, self.plant = random, number, plant
        water = random.uniform(35, 62, number)
        self._state: Pair = (water, water)
        self._season, self.ambient = random.uniform(7, 17, number), random.uniform(15, 25, number)
        self._level = random.uniform(*DEMAND, number)
        self._inlet, self._demand = self._season, self._level
        self.reading = self._read()

    def step(self, action: Array) -> tuple[Array, Bools]:
        """Hold power and flow [number, 2] for ``STEP_S`` seconds.

        Returns:
            The rewards and which tanks trip, [number] each; ``reading`` [number, 5] is the new one.
        """
        power, flow = np.clip(action, ACTION_LOW, ACTION_HIGH).T
        self._state = self.plant.after(self._state, (power, flow), self._inlet, self.ambient)
        trip = np.asarray(self._state[1] > self.plant.trip_C)
        reward = reward_of(self.reading, power, flow, trip)
        random, size = self.random, self.number
        drift = 0.02 * (self._season - self._inlet)
        self._inlet = self._inlet + drift + 0.15 * random.normal(size=size)
        jumps, level = random.random(size) < 0.01, random.uniform(*DEMAND, size)
        self._level = np.where(jumps, level, self._level)
        wander = 0.05 * (self._level - self._demand) + 0.001 * random.normal(size=size)
        self._demand = np.where(jumps, level, np.clip(self._demand + wander, 0.01, 0.08))
        self.reading = self._read()
        return reward, trip

    def _read(self) -> Array:
        true = np.stack([*self._state, self._inlet, self.ambient, self._demand], axis=1)
        return true + self.plant.noise * self.random.normal(size=true.shape)


def reward_of(reading: Array, power: Array, flow: Array, trip: Bools) -> Array:
    """``REWARD`` of rows: temperature and flow that miss what is wanted, energy, and trips."""
    missed = 0.1 * np.abs(reading[..., 0] - 60) + 20 * np.abs(reading[..., 4] - flow)
    return 1 - missed - 0.00003 * power - 30 * trip


class HeatingTank(gymnasium.Env[Array, Array]):
    """One tank as a Gymnasium environment; a batch ends by a trip or after ``STEPS`` steps.

    Observations [5] and actions [2] are in the units of their names.
    """

    def __init__(self, plant: Plant = PLANT) -> None:
        self.plant = plant
        self.observation_space = spaces.Box(0.0, 150.0, (len(OBSERVATIONS),), np.float64)
        self.action_space = spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start a batch with a tank between cold and warm."""
        super().reset(seed=seed)
        self._tanks = Tanks(self.np_random, 1, self.plant)
        return self._tanks.reading[0], {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Hold power and flow [2] for ``STEP_S`` seconds."""
        reward, trip = self._tanks.step(np.asarray(action)[None])
        return self._tanks.reading[0], reward.item(), trip.item(), False, {}


gymnasium.register("HeatingTank-v0", f"{__name__}:HeatingTank", max_episode_steps=STEPS)


class Operation:
    """The controllers of the log: PI control of the temperature, one tuning a batch, and dither.

    Args:
        seed: of the tunings and the dither.
        batches: how many tanks are controlled at once.
    """

    def __init__(self, seed: int, batches: int) -> None:
        self.random = np.random.default_rng(seed)
        uniform, n = self.random.uniform, batches
        self.gain = np.exp(uniform(np.log(200), np.log(1500), n))  # W/K
        self.reset_s = np.exp(uniform(np.log(200), np.log(1500), n))
        self.setpoint, self.limit = uniform(57, 63, n), uniform(8_000, 11_000, n)
        self.share = uniform(0.85, 1.0, n)  # of the demand that is let through
        self.integral, self.dither = uniform(1_000, 4_000, n), np.zeros((2, n))

    def __call__(self, reading: Array) -> Array:
        """Actions [batches, 2] in readings [batches, 5], one step after the other."""
        error = self.setpoint - reading[:, 0]
        power = self.gain * error + self.integral
        free = (power > 0) & (power < self.limit)  # else the integral would wind up
        self.integral += np.where(free, self.gain / self.reset_s * STEP_S * error, 0)
        self.dither = 0.8 * self.dither + self.random.normal(size=self.dither.shape)
        power = np.clip(power, 0, self.limit) + 500 * self.dither[0]
        flow = self.share * reading[:, 4] + 0.0015 * self.dither[1]
        return np.clip(np.stack([power, flow], axis=1), ACTION_LOW, ACTION_HIGH)


@dataclass
class Played:
    """What batches gave in the simulator, one entry a batch.

    Attributes:
        returns: summed rewards of a batch.
        rewards: of each step, those beyond a batch's included, [steps, batches]; 0 behind a trip.
        trips: whether the plant tripped within the batch.
        readings: observations [steps + 1, batches, 5], NaN behind the end.
        actions: [steps, batches, 2].
    """

    returns: Array
    rewards: Array
    trips: Bools
    readings: Array
    actions: Array

    def discounted(self, gamma: float) -> Array:
        """The discounted returns of batches that go on for all the steps that were played."""
        return gamma ** np.arange(len(self.rewards)) @ self.rewards


def play(controller: Callable[[Array], Array], *, batches: int, seed: int, steps: int) -> Played:
    """Play batches side by side; the same seed gives the same starts and disturbances."""
    tanks = Tanks(np.random.default_rng(seed), batches)
    running = np.ones(batches, dtype=bool)
    readings, actions, rewards, trips = [tanks.reading], [], [], []
    seen = tanks.reading
    for _ in range(steps):
        action = controller(seen)
        reward, tripped = tanks.step(action)
        rewards.append(np.where(running, reward, 0))
        trips.append(running & tripped)
        actions.append(np.where(running[:, None], action, np.nan))
        readings.append(np.where(running[:, None], tanks.reading, np.nan))
        running &= ~tripped
        seen = np.where(running[:, None], tanks.reading, seen)  # what has ended stands still
    earned = np.stack(rewards)
    return Played(
        returns=earned[:STEPS].sum(axis=0),
        rewards=earned,
        trips=np.logical_or.reduce(trips[:STEPS]),
        readings=np.stack(readings),
        actions=np.stack(actions),
    )
