"""Updates per second, compiled and eager: python benchmarks/update_throughput.py.

SAC, the adversarial model update, the likelihood step of the fit and behaviour cloning, all with
the published sizes on Hopper's 11 + 3 entries and batches of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measuring import (
    COLORS,
    arguments,
    finish_figure,
    machine,
    make_figure,
    matmul_rate,
    measure,
    model_dtype,
    save_figure,
    set_up,
    write_json,
)
from workload import Workload

NAMES = {
    "sac": "SAC update",
    "adversarial": "adversarial model update",
    "likelihood": "likelihood step, 7 members",
    "cloning": "behaviour cloning step",
}


def updates(work: Workload, num: int) -> dict[str, Callable[[], Any]]:
    """``num`` updates of each kind."""
    work.rollouts()
    likelihood, cloning = work.likelihood_step(), work.cloning_step()
    return {
        "sac": lambda: work.agent_updates(num),
        "adversarial": lambda: work.model_updates(num),
        "likelihood": lambda: [likelihood() for _ in range(num)],
        "cloning": lambda: [cloning() for _ in range(num)],
    }


def main() -> None:
    """Measure, print, write the JSON file and the figure."""
    parser = arguments((__doc__ or "").partition(":")[0])
    args = parser.parse_args()
    set_up(args)
    torch.manual_seed(0)
    # on a GPU more between two reads of the metrics, which wait for it
    num = 5 if args.quick else 20 if args.device == "cpu" else 500
    results: list[dict[str, Any]] = []
    for compile in (True, False):
        work = Workload(
            device=args.device, compile=compile, num_starts=2000, matmul_dtype=model_dtype(args)
        )
        for name, step in updates(work, num).items():
            seconds = measure(
                step,
                device=args.device,
                repeats=2 if args.quick else 7,
                least=0.1 if args.quick else 1.0,
            )
            results.append(
                {"update": name, "compiled": compile, "updates_per_second": num / seconds}
            )
            how = "compiled" if compile else "eager"
            print(
                f"{NAMES[name]:28} {how:8} {num / seconds:7.1f} / s  {1e3 * seconds / num:6.2f} ms",
                flush=True,
            )
    write_json(
        args.out / "update_throughput.json",
        {
            "machine": machine(args),
            "matmul_flop_per_second": matmul_rate(args.device),
            "results": results,
        },
    )
    draw(results, args.out / "update_throughput.png")


def draw(results: list[dict[str, Any]], path: Any) -> None:
    """Milliseconds of each update, compiled beside eager."""
    figure, (ax,) = make_figure(height=3.2)
    for i, (compiled, label) in enumerate(((True, "compiled"), (False, "eager"))):
        times = {
            r["update"]: 1e3 / r["updates_per_second"] for r in results if r["compiled"] == compiled
        }
        at = [j + 0.38 * (i - 0.5) for j in range(len(NAMES))]
        bars = ax.barh(at, [times[n] for n in NAMES], height=0.36, color=COLORS[i], label=label)
        ax.bar_label(bars, fmt=" %.1f", fontsize=8)
    ax.set_yticks(range(len(NAMES)), list(NAMES.values()))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.legend(frameon=False)
    finish_figure(ax, "What an update of 256 rows takes", "milliseconds", "")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
