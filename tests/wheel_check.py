"""Build the wheel and use it without the repository: ``python tests/wheel_check.py``.

By default the wheel alone is installed, beside the packages of the environment that runs this; with
``--fresh`` everything it asks for is installed too, as for a user. ``--train`` also runs a recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv", "venv", "build", "dist", "runs", "outputs", "multirun", "shared", "*.egg-info",
    "__pycache__", ".*_cache",
)  # fmt: skip


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the copy that it was built from, since builds leave files behind."""
    copy = folder / "source"
    shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
    say("build")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    run([*command, str(copy)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel, copy


def check_contents(wheel: Path, source: Path) -> None:
    """Every module, policy, table and configuration file of the repository, nothing else of it."""
    expected = {"rambo_trl/py.typed"}
    for pattern in ("rambo_trl/**/*.py", "rambo_trl/**/*.csv", "rambo_trl/policies/*.safetensors"):
        expected |= {str(path.relative_to(source)) for path in source.glob(pattern)}
    for pattern in ("**/*.py", "config/**/*.yaml"):
        found = (source / "recipes").glob(pattern)
        expected |= {f"rambo_trl_recipes/{path.relative_to(source / 'recipes')}" for path in found}
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    assert names == expected, f"missing {expected - names}, too much {names - expected}"


def install(wheel: Path, folder: Path, *, fresh: bool) -> Path:
    """The Python of a new environment that holds the wheel."""
    say("install")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if fresh:
        run([*pip, f"{wheel}[recipes]"], folder)
        return python
    run([*pip, "--no-deps", str(wheel)], folder)
    # a plain path: what is installed there from a checkout, this project too, stays out
    (place,) = (folder / "venv").glob("**/site-packages")
    own = Path(sysconfig.get_path("purelib"))
    others = [path for path in map(Path, sys.path) if path.name == "site-packages" and path != own]
    (place / "others.pth").write_text("".join(f"{path}\n" for path in [own, *others]))
    return python


def use(python: Path, folder: Path, *, train: bool) -> None:
    """Import it, run the README's example, the commands, and a recipe if asked to."""
    say("import")
    where = run([str(python), "-c", "import rambo_trl; print(rambo_trl.__file__)"], folder)
    assert str(folder) in where, f"imported from {where}"
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "example.py").write_text(next(b for b in blocks if "AdversarialModelLoss" in b))
    say("the README's example")
    run([str(python), "example.py"], folder)
    say("commands")
    assert "--format" in run([str(python), "-m", "rambo_trl.export", "--help"], folder)
    command = str(python.with_name("rambo-trl"))
    assert "one of" in run([command], folder, code=2)
    assert "seed: 4" in run([command, "rambo", "--cfg", "job", "seed=4"], folder)
    say("report")
    make_up_run(folder / "made-up")
    # reads the paper's table and its settings of the data set
    table = run([command, "report", "made-up", "--out", "report"], folder)
    assert "| RAMBO, `paper` | 1 |" in table and "| 84.9 +- 2.6 |" in table, table
    if train:
        say("train")
        words = ["task=inverteddoublependulum-medium-replay", "schedule=smoke", "run_dir=mine"]
        run([command, "rambo", *words], folder)
        assert (folder / "mine/policy.safetensors").is_file()


def make_up_run(path: Path) -> None:
    """The folder of a run that has ended, without the adversary, as published for its data."""
    path.mkdir()
    (path / "config.yaml").write_text("seed: 0\n")
    results = {
        "method": "RAMBO", "adversarial_weight": 0.0, "dataset": "d4rl/walker2d_medium-v2.hdf5",
        "schedule": "paper", "seed": 0, "epochs": 2000, "score": 80.0, "diverged": False,
    }  # fmt: skip
    (path / "results.json").write_text(json.dumps(results))


def run(command: Sequence[str], folder: Path, code: int = 0) -> str:
    """What a program says; anything but the expected exit code ends this one."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == code, f"{' '.join(command)} ended with {done.returncode}:\n{said}"
    return said


def say(text: str) -> None:
    """A line on what is being done."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every check; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="install all requirements anew")
    parser.add_argument("--train", action="store_true", help="run a recipe as well")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        wheel, source = build(folder)
        check_contents(wheel, source)
        use(install(wheel, folder, fresh=options.fresh), folder, train=options.train)
    say(f"{wheel.name} is whole and works")


if __name__ == "__main__":
    main()
