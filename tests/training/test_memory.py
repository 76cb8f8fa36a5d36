"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import ctypes, resource, sys
import torch
from nextitem.training.memory import keep_freed_memory
if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit(3)
ctypes.CDLL(None).mallopt(-3, 2**17)  # as glibc begins; it may raise it by itself, or not, as blocks happen to be freed
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        parts = [torch.zeros(2**18) for _ in range(40)]  # a megabyte each, all freed together
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps
faults(3)
left_alone = faults(10)
keep_freed_memory()
faults(3)
print(left_alone, min(faults(10) for _ in range(3)))
"""


def test_blocks_that_are_freed_and_taken_again_cost_no_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("the C library is not glibc")
    left_alone, kept = map(float, done.stdout.split())
    assert left_alone > 1000
    assert kept < left_alone / 10  # none of its own; a system under pressure may take some pages back
