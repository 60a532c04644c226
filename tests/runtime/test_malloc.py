"""Freed memory stays with the process, unless the user has decided otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
import torch
from rambo_trl.runtime.malloc import keep_freed_memory

torch.set_num_threads(1)
libc = ctypes.CDLL(None)
libc.mallopt(-1, 0)  # as bad as it gets: what is freed is given back
libc.mallopt(-3, 4096)
kept = keep_freed_memory() if sys.argv[1] == "kept" else None


def an_update():
    held = [torch.ones(250, 1000) for _ in range(20)]  # 1 MB each


for _ in range(3):
    an_update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    an_update()
print(kept, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def page_faults(how: str, **env: str) -> tuple[str, int]:
    """What the function returned, and an update's page faults."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **env},
    )
    kept, faults = result.stdout.split()
    return kept, int(faults)


@glibc
def test_an_updates_memory_is_used_again() -> None:
    kept, faults = page_faults("kept")
    assert kept == "True"
    assert faults < 100  # of 5,000 pages
    assert page_faults("as it is")[1] > 1000


@glibc
def test_the_users_own_settings_stay() -> None:
    kept, faults = page_faults("kept", MALLOC_TRIM_THRESHOLD_="0")
    assert kept == "False" and faults > 1000
