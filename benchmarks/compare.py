"""Side by side with OfflineRL-Kit: python benchmarks/compare.py --peer PATH.

PATH is a checkout of https://github.com/yihaosun1124/OfflineRL-Kit; nothing of it is installed or
changed. All do the same work by turns, each in a process of its own, as its users run it, with
the published sizes and settings on Hopper's 11 + 3 entries: imagined rollouts, the SAC update, the
adversarial update, the likelihood step, and an iteration (one rollout of 50,000 x 5 and 1,000
updates of each player). Ours has the adversarial update and the iteration once more with
adversary_density=member, and so with a quarter of the real rows, beside the peer's same work. The
figures are the medians over rounds, and of the ratio within a round. With --bfloat16 ours has a
second turn in each, the world model's hidden products in bfloat16.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from matplotlib.figure import Figure
from measuring import (
    LIMIT_HEAD,
    Side,
    against_limit,
    arguments,
    at_least,
    draw_bars,
    limit_on,
    machine,
    markdown_table,
    matmul_rate,
    measure_in_turns,
    measured_on,
    save,
    set_up,
    times,
    workload_options,
)
from workload import VARIANTS, Workload, hopper_like, published_products

from rambo_trl.runtime.places import expand_home

CAPTION = "Times faster than OfflineRL-Kit"
NAMES = {
    "rollouts": "imagined rollouts",
    "sac": "SAC update",
    "adversarial": "adversarial update",
    "adversarial_member": "adversarial update, member's density",
    "adversarial_fewer": "adversarial update, member's density, 64 rows",
    "likelihood": "likelihood step",
    "iteration": "one iteration",
    "iteration_member": "one iteration, member's density",
    "iteration_fewer": "one iteration, member's density, 64 rows",
}
#: what makes an iteration, with each adversarial update
ITERATIONS = {
    name.replace("adversarial", "iteration"): ("rollouts", "sac", name)
    for name in ("adversarial", *VARIANTS)
}
#: what is measured in the same turns, each beside the peer's work of the first name
TURNS = (("rollouts",), ("sac",), ("adversarial", *VARIANTS), ("likelihood",), tuple(ITERATIONS))
HORIZON, BATCH = 5, 256
#: what the results call how many times faster than the peer each of ours is
RATIOS = {"ours": "ratio", "bfloat16": "bfloat16_ratio"}


def check_checkout(parser: argparse.ArgumentParser, path: Path) -> None:
    """End with an error where ``--peer`` is not the peer's folder."""
    if not (path / "offlinerlkit").is_dir():
        parser.error(
            f"--peer {path} holds no folder offlinerlkit: clone "
            "https://github.com/yihaosun1124/OfflineRL-Kit and give its path"
        )


def make_importable(path: Path) -> None:
    """Let the checkout's modules be imported, with stand-ins for packages that are not installed.

    They are imported at the top of its files and used for nothing that is measured.
    """
    sys.path.insert(0, str(path))
    for package, modules in {
        "gym": ("gym", "gym.envs", "gym.envs.mujoco"),
        "d4rl": ("d4rl",),
        "pandas": ("pandas",),
        "tensorboard": ("torch.utils.tensorboard",),
    }.items():
        if importlib.util.find_spec(package) is None:
            sys.modules.update((name, MagicMock()) for name in modules)


class Peer:
    """OfflineRL-Kit's RAMBO, put together as its own example does."""

    def __init__(self, path: Path, num_rows: int, num_starts: int) -> None:
        self.num_starts = num_starts
        make_importable(path)
        from offlinerlkit.buffer import ReplayBuffer
        from offlinerlkit.dynamics import EnsembleDynamics
        from offlinerlkit.modules import ActorProb, Critic, EnsembleDynamicsModel, TanhDiagGaussian
        from offlinerlkit.nets import MLP
        from offlinerlkit.policy import RAMBOPolicy
        from offlinerlkit.utils.scaler import StandardScaler
        from offlinerlkit.utils.termination_fns import get_termination_fn, obs_unnormalization

        rows = hopper_like(num_rows)
        data = {
            "observations": rows["observation"].numpy(),
            "next_observations": rows["next", "observation"].numpy(),
            "actions": rows["action"].numpy(),
            "rewards": rows["next", "reward"].numpy(),
            "terminals": rows["next", "terminated"].numpy(),
        }
        sizes = {"obs_shape": (11,), "obs_dtype": np.float32, "action_dim": 3}
        self.real = ReplayBuffer(num_rows, **sizes, action_dtype=np.float32)
        self.real.load_dataset(data)
        self.imagined = ReplayBuffer(5 * num_starts * HORIZON, **sizes, action_dtype=np.float32)
        model = EnsembleDynamicsModel(
            11, 3, [200] * 4, 7, 5, weight_decays=[2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
        )
        with torch.no_grad():  # small steps, as after a fit: rows live for all k steps
            model.output_layer.weight.mul_(0.01)
            model.output_layer.bias[..., 12:] = -9.0
        model.set_elites(list(range(5)))
        scaler = StandardScaler()
        scaler.fit(np.concatenate([data["observations"], data["actions"]], axis=-1))
        ends = obs_unnormalization(
            get_termination_fn(task="hopper-medium-v2"), np.float32(0), np.float32(1)
        )
        adam = torch.optim.Adam
        self.dynamics = EnsembleDynamics(model, adam(model.parameters(), lr=3e-4), scaler, ends)
        backbone = MLP(input_dim=11, hidden_dims=[256, 256])
        dist = TanhDiagGaussian(
            latent_dim=backbone.output_dim, output_dim=3, unbounded=True, conditioned_sigma=True
        )
        actor = ActorProb(backbone, dist)
        critics = [Critic(MLP(input_dim=14, hidden_dims=[256, 256])) for _ in range(2)]
        log_alpha = torch.zeros(1, requires_grad=True)
        self.policy = RAMBOPolicy(
            self.dynamics,
            actor,
            *critics,
            adam(actor.parameters(), lr=1e-4),
            *(adam(critic.parameters(), lr=3e-4) for critic in critics),
            adam(model.parameters(), lr=3e-4),
            alpha=(-3, log_alpha, adam([log_alpha], lr=1e-4)),
            adv_weight=3e-4,
            adv_rollout_length=HORIZON,
            adv_rollout_batch_size=BATCH,
        )
        self.policy.train()
        self.inputs = scaler.transform(
            np.concatenate([data["observations"], data["actions"]], axis=-1)
        )
        self.targets = np.concatenate(
            [data["next_observations"] - data["observations"], data["rewards"]], axis=-1
        )

    def rollouts(self) -> None:
        """Collect once and store."""
        starts = self.real.sample(self.num_starts)["observations"].numpy()
        transitions, info = self.policy.rollout(starts, HORIZON)
        if info["num_transitions"] < 0.99 * self.num_starts * HORIZON:
            raise RuntimeError("the peer's rollouts ended early: the comparison would not be fair")
        self.imagined.add_batch(**transitions)

    def agent_updates(self, num: int) -> None:
        """Take SAC updates."""
        for _ in range(num):
            real, imagined = self.real.sample(BATCH // 2), self.imagined.sample(BATCH // 2)
            self.policy.learn({"real": real, "fake": imagined})

    def model_updates(self, num: int) -> None:
        """Take adversarial updates."""
        self.policy._adv_train_steps = num
        self.policy.update_dynamics(self.real)

    def likelihood_steps(self, num: int) -> None:
        """Take steps of the maximum-likelihood fit."""
        rows = np.random.randint(len(self.inputs), size=(7, num * BATCH))
        self.dynamics.learn(self.inputs[rows], self.targets[rows], BATCH, 0.001)


def commit(path: Path) -> str | None:
    """The peer's commit, where the folder is a git checkout."""
    result = subprocess.run(
        ["git", "-C", str(path), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None


def starts_of(args: argparse.Namespace) -> int:
    """Rollouts of an iteration."""
    return 1000 if args.quick else 50_000


def updates_of(args: argparse.Namespace) -> int:
    """Updates of each player in an iteration."""
    return 2 if args.quick else 1000


def make_ours(args: argparse.Namespace) -> dict[str, Callable[[int], Any]]:
    """Our side's works, compiled and set up as the recipes set it up."""
    set_up(args)
    options = {"num_starts": starts_of(args), "horizon": HORIZON, **workload_options(args)}
    ours = Workload(compile=True, **options)
    variants = {name: Workload(compile=True, **x, **options) for name, x in VARIANTS.items()}
    return with_iterations(
        rollouts=lambda _: ours.rollouts(),
        sac=ours.agent_updates,
        adversarial=ours.model_updates,
        likelihood=times(ours.likelihood_step()),
        **{name: work.model_updates for name, work in variants.items()},
    )


def make_peer(args: argparse.Namespace) -> dict[str, Callable[[int], Any]]:
    """The peer's works, with torch as it comes."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    peer = Peer(args.peer, 100_000, starts_of(args))
    return with_iterations(
        rollouts=lambda num: peer.rollouts() if num else None,  # long enough to need no waking
        sac=peer.agent_updates,
        adversarial=peer.model_updates,
        likelihood=peer.likelihood_steps,
    )


def with_iterations(**works: Callable[[int], Any]) -> dict[str, Callable[[int], Any]]:
    """A side's works, and the iterations whose parts it has."""

    def iterate(parts: Sequence[str], num: int) -> None:
        for part in parts:
            works[part](num)

    whole = {
        name: partial(iterate, parts)
        for name, parts in ITERATIONS.items()
        if works.keys() >= set(parts)
    }
    return {**works, **whole}


def wake(side: Side, name: str) -> None:
    """Do a little of a work before its turn: the others have lasted for up to a minute."""
    for part in ITERATIONS.get(name, (name,)):
        side.do(part, 0 if part == "rollouts" else 5)


def main() -> None:
    """Compare, print, write the JSON file and the figure."""
    parser = arguments(__doc__)
    parser.add_argument("--peer", type=expand_home, required=True, help="the checkout's folder")
    parser.add_argument(
        "--rounds",
        type=at_least(1),
        default=9,
        help="turns of each, 3 of the iteration (default: 9)",
    )
    args = parser.parse_args()
    if args.device != "cpu":
        parser.error("the comparison is made on the CPU")
    check_checkout(parser, args.peer)
    set_up(args)
    rounds = 1 if args.quick else args.rounds
    num = 2 if args.quick else 50
    units = {"rollouts": starts_of(args) * HORIZON, "iteration": 1}
    updates = {"iteration": updates_of(args)}
    plain = argparse.Namespace(**{**vars(args), "bfloat16": False})
    rate, flop = matmul_rate(), products(plain)
    sides = {"ours": Side(make_ours, plain)}
    if args.bfloat16:
        sides["bfloat16"] = Side(make_ours, args)
    sides["peer"] = Side(make_peer, args)
    for side in sides.values():
        side.do("rollouts", 1)  # for the updates to draw from
    results: dict[str, dict[str, Any]] = {}
    for names in TURNS:
        name, once = names[0], names[0] in ITERATIONS
        turns = [(key, x) for key in sides for x in (names if key != "peer" else (name,))]
        seconds = measure_in_turns(
            [partial(sides[key].do, x, updates.get(name, num)) for key, x in turns],
            rounds=min(rounds, 3) if once else rounds,
            warmups=0 if once else 1,
            least=0 if once or args.quick else 1.0,
            wake=[partial(wake, sides[key], x) for key, x in turns],
        )
        measured = dict(zip(turns, seconds, strict=True))
        for x in names:
            by_side = {key: measured[key, name if key == "peer" else x] for key in sides}
            results[x] = summarise(by_side, units.get(name, num))
            print(NAMES[x], results[x], flush=True)
    content = {
        "machine": machine(plain),
        "peer_commit": commit(args.peer),
        "rounds": rounds,
        "matmul_flop_per_second": rate,
        "flop": flop,
        "results": results,
    }
    save(args.out, "compare", content, report, draw)


def products(args: argparse.Namespace) -> dict[str, float]:
    """FLOP of the matrix products of a unit of each of our works."""
    flop = published_products(**workload_options(args))
    for name, (rollouts, *players) in ITERATIONS.items():
        transitions, updates = starts_of(args) * HORIZON, updates_of(args)
        flop[name] = transitions * flop[rollouts] + updates * sum(flop[x] for x in players)
    return {name: flop[name] for name in NAMES}


def summarise(seconds: Mapping[str, Sequence[float]], units: int) -> dict[str, Any]:
    """A work's seconds by side and round, and how many times the peer's ours are within a round."""
    result: dict[str, Any] = {"units": units}
    for key, values in seconds.items():
        result[f"{key}_seconds"] = [x / units for x in values]
        if key in RATIOS:
            ratios = [p / x for x, p in zip(values, seconds["peer"], strict=True)]
            result |= {RATIOS[key]: statistics.median(ratios), f"{RATIOS[key]}s": ratios}
    return result


def time_text(name: str, seconds: float) -> str:
    """What a unit of a work takes, in the unit that the work is counted in."""
    if name == "rollouts":
        return f"{1 / seconds:,.0f} transitions/s"
    return f"{seconds:.1f} s" if name in ITERATIONS else f"{1e3 * seconds:.1f} ms"


def report(content: dict[str, Any]) -> str:
    """Ours beside the peer."""
    results = content["results"]
    peer = "OfflineRL-Kit"
    if content["peer_commit"]:
        peer += f" ({content['peer_commit']})"
    head = ["work"]
    names = {name: title for name, title in NAMES.items() if name in results}
    rows = [[title] for title in names.values()]
    for key, title in (("peer", peer), ("ours", "rambo_trl"), ("bfloat16", "with bfloat16")):
        if not all(f"{key}_seconds" in result for result in results.values()):
            continue
        head += [title, "faster"] if key in RATIOS else [title]
        for row, name in zip(rows, names, strict=True):
            row.append(time_text(name, statistics.median(results[name][f"{key}_seconds"])))
            if key in RATIOS:
                row.append(f"{results[name][RATIOS[key]]:.1f} x")
        if key == "ours" and "flop" in content:
            head += LIMIT_HEAD
            for row, name in zip(rows, names, strict=True):
                seconds = statistics.median(results[name]["ours_seconds"])
                row += against_limit(content, name, seconds, partial(time_text, name))
    return f"{measured_on(content['machine'])}{limit_on(content)}\n\n" + markdown_table(head, rows)


def draw(content: dict[str, Any]) -> Figure:
    """How many times faster, a bar for each kind of work and each of our turns."""
    labels = {"ratio": "float32", "bfloat16_ratio": "the model's hidden products in bfloat16"}
    names = {name: title for name, title in NAMES.items() if name in content["results"]}
    series = {
        label: [content["results"][name][ratio] for name in names]
        for ratio, label in labels.items()
        if ratio in content["results"]["rollouts"]
    }
    title = "Times faster than OfflineRL-Kit, same work, same run"
    return draw_bars(title, "ratio (log)", list(names.values()), series, unit=" x", log=True)


if __name__ == "__main__":
    main()
