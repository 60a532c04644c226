"""Insulin doses for a person with diabetes: NeoRL-2's Simglucose."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np

__all__ = ["PATIENTS", "SimglucoseEnv"]

PATIENTS = tuple(f"{a}#{n:03d}" for a in ("adolescent", "adult", "child") for n in range(1, 6))
#: the patient's entries of an observation, after the glucose
OBSERVED = (
    "BW", "Fsnc", "Ib", "Km0", "Vi", "Vm0", "Vmx", "b", "d", "f", "k1", "k2", "ka1", "ka2", "kabs",
    "kd", "ke1", "ke2", "ki", "kmax", "kp1", "kp2", "kp3", "ksc", "m1", "m2", "m30", "m4", "p2u",
    "u2ss",
)  # fmt: skip
#: minute of the day and grams of every meal, eaten at 5 g a minute
_MEALS = ((420, 45), (570, 10), (720, 70), (900, 10), (1080, 80), (1290, 10))
_EATEN = 5
_DAY = 24 * 60
_EATING = {time + minute for time, grams in _MEALS for minute in range(grams // _EATEN)}
#: minutes of a step, and steps of the integration in a minute
_MINUTES, _SUBSTEPS = 3, 2
#: largest dose in U/min, and the pump's step in pmol/min; an insulin unit has 6,000 pmol
_MAX_DOSE, _PUMP_STEP, _PMOL = 5.0, 0.05, 6000.0
_LOWEST, _HIGHEST = 40.0, 600.0


class SimglucoseEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """The blood glucose of a person with type 1 diabetes, whose insulin pump is controlled.

    The task Simglucose of NeoRL-2 (Gao et al. 2025, https://arxiv.org/abs/2503.19267): the
    UVA/Padova model (Dalla Man, Rizza and Cobelli 2007, "Meal simulation model of the
    glucose-insulin system") with the parameters of the package simglucose (Xie 2018). Fifteen
    patients, without noise of the sensor; six meals at fixed times of the day. It is
    ``rambo_trl/Simglucose-v0``: 480 steps of 3 minutes, a day.

    Observations [31] are the glucose by the sensor, in mg/dl, and 30 parameters of the patient. The
    time of the day, what was eaten and the insulin on its way are not observed. The action [1] in
    [-1, 1] is a dose of 0 to 5 U/min. With the risk ``10 (1.509 (ln(g)^1.084 - 5.381))^2`` of a
    glucose g, the reward is 1 plus a hundredth of what the risk falls by, -15 at 40 mg/dl or less
    and 0 at 600 or more; an episode ends where the glucose, averaged over the step, leaves these.

    A patient and the full hour at which an episode starts are drawn uniformly, or given by
    ``reset(options=...)`` as ``"patient"`` and ``"hour"``.

    Raises:
        ImportError: if the package simglucose, whose file of parameters is read, is not installed.
    """

    def __init__(self) -> None:
        self._patients = _read_patients()
        self.observation_space = gymnasium.spaces.Box(0.0, 1000.0, (31,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a patient, in their steady state without food, and the time of the day."""
        super().reset(seed=seed)
        drawn: dict[str, Any] = {
            "hour": int(self.np_random.integers(24)),
            "patient": PATIENTS[self.np_random.integers(len(PATIENTS))],
        }
        drawn |= options or {}
        self._patient = self._patients[drawn["patient"]]
        self._state: list[float] = list(self._patient.start)
        self._minute = 60 * drawn["hour"]
        self._stomach, self._food, self._was_eating = 0.0, 0.0, False
        self._sensed = self._shown = self._glucose()
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Let three minutes pass at a constant dose."""
        dose = (float(np.clip(np.asarray(action).reshape(()), -1.0, 1.0)) + 1) / 2 * _MAX_DOSE
        dose = round(dose * _PMOL / _PUMP_STEP) * _PUMP_STEP
        glucose = 0.0
        for _ in range(_MINUTES):
            self._pass_minute(dose / self._patient.BW)
            glucose += self._glucose() / _MINUTES
        before, held = self._shown, self._sensed
        self._sensed = min(max(self._glucose(), 10.0), _HIGHEST)  # measured at the end of a step
        self._shown = (held * (_MINUTES - 1) + self._sensed) / _MINUTES
        if self._shown <= _LOWEST:
            reward = -15.0
        elif self._shown >= _HIGHEST:
            reward = 0.0
        else:
            reward = 1 + (_risk(before) - _risk(self._shown)) / 100
        return self._observation(), reward, not _LOWEST <= glucose <= _HIGHEST, False, {}

    def _pass_minute(self, insulin: float) -> None:
        """Integrate a minute by the classical Runge-Kutta method; insulin in pmol/kg/min."""
        eating = self._minute % _DAY in _EATING
        if eating and not self._was_eating:
            self._stomach, self._food = self._state[0] + self._state[1], 0.0
        self._food += 1000.0 * _EATEN * eating
        self._was_eating = eating
        inputs = (self._patient, insulin, 1000.0 * _EATEN * eating, self._stomach + self._food)
        for _ in range(_SUBSTEPS):
            x, h = self._state, 1.0 / _SUBSTEPS
            k1 = _slopes(x, *inputs)
            k2 = _slopes([a + h / 2 * b for a, b in zip(x, k1, strict=True)], *inputs)
            k3 = _slopes([a + h / 2 * b for a, b in zip(x, k2, strict=True)], *inputs)
            k4 = _slopes([a + h * b for a, b in zip(x, k3, strict=True)], *inputs)
            self._state = [
                a + h / 6 * (b + 2 * c + 2 * d + e)
                for a, b, c, d, e in zip(x, k1, k2, k3, k4, strict=True)
            ]
        self._minute += 1

    def _glucose(self) -> float:
        """Glucose under the skin, where the sensor is, in mg/dl."""
        return self._state[12] / self._patient.Vg

    def _observation(self) -> np.ndarray:
        return np.array([self._shown, *self._patient.observed], dtype=np.float32)


def _risk(glucose: float) -> float:
    return 10 * (1.509 * (math.log(glucose) ** 1.084 - 5.381)) ** 2


def _slopes(
    x: Sequence[float], p: SimpleNamespace, insulin: float, food: float, meal: float
) -> tuple[float, ...]:
    """The model's thirteen time derivatives, per minute.

    Args:
        x: food in the stomach, solid and liquid, and in the gut [mg]; glucose in plasma and tissue
            [mg/kg]; insulin in plasma [pmol/kg]; its action on utilisation, the two delays of its
            action on production [pmol/l]; insulin in the liver and its two stores under the skin
            [pmol/kg]; glucose under the skin [mg/kg].
        p: the patient's parameters.
        insulin: the dose, in pmol/kg/min.
        food: what is eaten, in mg/min.
        meal: what the stomach held when the last meal began, and what was eaten since, in mg.
    """
    solid, liquid, gut, plasma, tissue, blood, action, delay1, delay2, liver, skin1, skin2, sub = x
    emptying = p.kmax
    if meal > 0:
        held = solid + liquid
        rise = math.tanh(2.5 / (1 - p.b) / meal * (held - p.b * meal))
        fall = math.tanh(2.5 / p.d / meal * (held - p.d * meal))
        emptying = p.kmin + (p.kmax - p.kmin) / 2 * (rise - fall + 2)
    production = max(p.kp1 - p.kp2 * plasma - p.kp3 * delay2, 0.0)
    appearance = p.f * p.kabs * gut / p.BW
    excretion = p.ke1 * max(plasma - p.ke2, 0.0)
    exchange = p.k1 * plasma - p.k2 * tissue
    use = (p.Vm0 + p.Vmx * action) * tissue / (p.Km0 + tissue)
    level = blood / p.Vi
    return (
        food - p.kmax * solid,
        p.kmax * solid - emptying * liquid,
        emptying * liquid - p.kabs * gut,
        (plasma >= 0) * (production + appearance - p.Fsnc - excretion - exchange),
        (tissue >= 0) * (exchange - use),
        (blood >= 0) * (p.m1 * liver - (p.m2 + p.m4) * blood + p.ka1 * skin1 + p.ka2 * skin2),
        p.p2u * (level - p.Ib - action),
        p.ki * (level - delay1),
        p.ki * (delay1 - delay2),
        (liver >= 0) * (p.m2 * blood - (p.m1 + p.m30) * liver),
        (skin1 >= 0) * (insulin - (p.ka1 + p.kd) * skin1),
        (skin2 >= 0) * (p.kd * skin1 - p.ka2 * skin2),
        (sub >= 0) * p.ksc * (plasma - sub),
    )


def _read_patients() -> dict[str, SimpleNamespace]:
    """The patients' parameters, by name; the package itself is not imported."""
    spec = importlib.util.find_spec("simglucose")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "the patients' parameters come with the package simglucose, of which no more is "
            "needed: pip install --no-deps simglucose"
        )
    path = Path(spec.submodule_search_locations[0]) / "params" / "vpatient_params.csv"
    patients = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row.pop("Name")
            values = {key: float(value) for key, value in row.items()}
            patients[name] = SimpleNamespace(
                **values,
                observed=[values[key] for key in OBSERVED],
                start=[values[f"x0_{i:2d}"] for i in range(1, 14)],
            )
    return patients
