"""Freed blocks stay for the next tensors: counted in page faults, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")

FAULTS = """
import resource, sys
import numpy as np
from moonshelf.memory import give_back, keep_freed
if sys.argv[1] == "keep":
    keep_freed()
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
faults(2)
print(faults(10), resident(), give_back() or resident())
"""


def measured(how: str) -> tuple[int, int, int]:
    """Page faults of ten arrays of 64 MiB in turn; resident MiB before and after `give_back`."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    faults, before, after = map(int, done.stdout.split())
    return faults, before, after


def test_a_kept_block_is_not_mapped_again_and_can_be_given_back() -> None:
    faults, before, after = measured("keep")
    assert faults < 100  # a huge page holds 2 MiB, so that even these would be 320 if they were mapped anew
    assert before - after > 50
    assert measured("plain")[0] > 3 * max(faults, 30)
