"""An environment of one's own, by MODULE:ID."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import pytest

from rambo_trl.data import make_environment

MODULE = """
import gymnasium

class Still(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

gymnasium.register("Still-v0", Still, max_episode_steps=7)
"""


def test_the_module_that_registers_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_still_envs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    try:
        env = make_environment("my_still_envs:Still-v0")
        assert env.observation_space.shape == (2,)
        assert env.spec is not None and env.spec.max_episode_steps == 7
        with pytest.raises(ValueError, match="my_still_envs:Other-v0 is not installed"):
            make_environment("my_still_envs:Other-v0")
    finally:
        gymnasium.registry.pop("Still-v0", None)
        sys.modules.pop("my_still_envs", None)
    assert sys.path == path


def test_a_module_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_broken_envs.py").write_text("1 / 0")
    for module, words in (("my_broken_envs", "division"), ("my_missing_envs", "No module named")):
        with pytest.raises(ValueError, match=f"{module} cannot be imported .*{words}") as caught:
            make_environment(f"{module}:Still-v0")
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
