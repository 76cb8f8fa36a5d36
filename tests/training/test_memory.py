"""Test that freed memory stays with the process."""

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
ctypes.CDLL(None).mallopt(-3, 2**17)  # the initial value of glibc, which may raise it by itself as blocks are freed
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        parts = [torch.zeros(2**18) for _ in range(40)]  # a megabyte each, all freed together
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps
faults(3)
default_faults = faults(10)
keep_freed_memory()
faults(3)
print(default_faults, min(faults(10) for _ in range(3)))
"""


def test_blocks_that_are_freed_and_allocated_again_cause_no_page_faults() -> None:
    process = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=False)
    if process.returncode == 3:
        pytest.skip("the C library is not glibc")
    default_faults, kept_faults = map(float, process.stdout.split())
    assert default_faults > 1000
    assert kept_faults < default_faults / 10  # not 0: a system short of memory may reclaim some pages
