"""The benchmarks, one after the other: python benchmarks/run_all.py.

Options that all share, such as ``--threads``, are handed on; ``data_loading.py`` takes ``--out``
alone. Without ``--peer`` there is no comparison. ``learning.py`` takes hours, and
``score_by_minute.py`` reads finished runs: they are not among them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

NAMES = (
    "compare",
    "rollout_throughput",
    "update_throughput",
    "threads_by_phase",
    "iteration",
    "scaling",
    "soak",
)


def main() -> None:
    """Run them, and exit with 1 where one has failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--peer", help="a checkout of OfflineRL-Kit, to compare with")
    parser.add_argument("--out", default="runs/benchmarks", help="folder of the results")
    args, shared = parser.parse_known_args()
    out = ["--out", args.out]
    rows = ["--rows", "10000", "--train-rows", "10000"] if "--quick" in shared else []
    runs = {name: [*out, *shared] for name in NAMES} | {"data_loading": [*out, *rows]}
    if args.peer is None:
        del runs["compare"]
    else:
        runs["compare"] += ["--peer", args.peer]
    failed = []
    for name, options in runs.items():
        print(f"== {name}", flush=True)
        script = Path(__file__).with_name(f"{name}.py")
        if subprocess.run([sys.executable, str(script), *options], check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
