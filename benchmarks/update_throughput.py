"""Updates per second, compiled and eager: python benchmarks/update_throughput.py.

SAC, the adversarial model update by either density, the likelihood step of the fit and behaviour
cloning, all with the published sizes on Hopper's 11 + 3 entries and batches of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from measuring import (
    LIMIT_HEAD,
    against_limit,
    arguments,
    draw_bars,
    limit_on,
    machine,
    markdown_table,
    matmul_rate,
    measure,
    measured_on,
    save,
    set_up,
    times,
    workload_options,
)
from workload import VARIANTS, Workload, published_products

CAPTION = "Milliseconds of each update"
NAMES = {
    "sac": "SAC update",
    "adversarial": "adversarial model update",
    "adversarial_member": "the same, member's density",
    "adversarial_fewer": "and 64 real rows an elite",
    "likelihood": "likelihood step, 7 members",
    "cloning": "behaviour cloning step",
}


def updates(
    work: Workload, variants: dict[str, Workload], num: int
) -> dict[str, Callable[[], Any]]:
    """``num`` updates of each kind."""
    work.rollouts()
    likelihood, cloning = times(work.likelihood_step()), times(work.cloning_step())
    return {
        "sac": lambda: work.agent_updates(num),
        "adversarial": lambda: work.model_updates(num),
        **{name: partial(variant.model_updates, num) for name, variant in variants.items()},
        "likelihood": lambda: likelihood(num),
        "cloning": lambda: cloning(num),
    }


def main() -> None:
    """Measure, print, write the JSON file and the figure."""
    args = arguments(__doc__).parse_args()
    set_up(args)
    # on a GPU more between two reads of the metrics, which wait for it
    num = 5 if args.quick else 20 if args.device == "cpu" else 500
    results: list[dict[str, Any]] = []
    for compile in (True, False):
        options = {"compile": compile, "num_starts": 2000, **workload_options(args)}
        variants = {name: Workload(**x, **options) for name, x in VARIANTS.items()}
        for name, step in updates(Workload(**options), variants, num).items():
            seconds = measure(
                step,
                device=args.device,
                repeats=2 if args.quick else 7,
                least=0.1 if args.quick else 1.0,
            )
            result = {"update": name, "compiled": compile, "updates_per_second": num / seconds}
            results.append(result)
            print(result, flush=True)
    content = {
        "machine": machine(args),
        "matmul_flop_per_second": matmul_rate(args.device),
        "flop": published_products(**workload_options(args)),
        "results": results,
    }
    save(args.out, "update_throughput", content, report, draw)


def titles(content: dict[str, Any]) -> list[str]:
    """The kinds of update that were measured."""
    measured = {result["update"] for result in content["results"]}
    return [title for name, title in NAMES.items() if name in measured]


def rates(content: dict[str, Any], *, compiled: bool) -> list[float]:
    """Updates a second, in the order of NAMES."""
    by_name = {r["update"]: r for r in content["results"] if r["compiled"] == compiled}
    return [by_name[name]["updates_per_second"] for name in NAMES if name in by_name]


def report(content: dict[str, Any]) -> str:
    """Updates a second, and how near the compiled ones are to what the products take alone."""
    columns = rates(content, compiled=False), rates(content, compiled=True)
    rows = [
        [title, f"{eager:.0f}", f"{compiled:.0f}", f"{compiled / eager:.1f} x"]
        for title, eager, compiled in zip(titles(content), *columns, strict=True)
    ]
    head = ["update", "eager, per s", "compiled, per s", "faster"]
    if "flop" in content:
        head += LIMIT_HEAD
        names = [name for name, title in NAMES.items() if title in titles(content)]
        for row, name, rate in zip(rows, names, columns[1], strict=True):
            row += against_limit(content, name, 1 / rate, lambda s: f"{1e3 * s:.1f} ms")
    return f"{measured_on(content['machine'])}{limit_on(content)}\n\n" + markdown_table(head, rows)


def draw(content: dict[str, Any]) -> Figure:
    """Milliseconds of each update, compiled beside eager."""
    series = {
        label: [1e3 / rate for rate in rates(content, compiled=label == "compiled")]
        for label in ("compiled", "eager")
    }
    return draw_bars("What an update of 256 rows takes", "milliseconds", titles(content), series)


if __name__ == "__main__":
    main()
