"""Fused kernels, compared with the formula, in Triton's interpreter and on a GPU if there is one; their compilation."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_cases import make, run
from torch import Tensor

from nextitem.ops.hstu_attention import Layout, hstu_attention, hstu_attention_reference

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from nextitem.ops.triton import hstu_attention as fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def hstu_attention_fused(
    *tokens_and_layout: Any,
    normaliser: float,
    scale: float = 1.0,
    position_weights: Tensor | None = None,
    time_weights: Tensor | None = None,
) -> Tensor:
    """Call the fused kernels as `hstu_attention` does on a GPU."""
    *tokens, layout = tokens_and_layout
    return fused.FusedAttention.apply(*tokens, position_weights, time_weights, layout, normaliser, scale)  # type: ignore[no-any-return, no-untyped-call]


def inputs(
    lengths: list[int], num_queries: list[int] | None, *, dtype: torch.dtype = torch.float32, **sizes: Any
) -> tuple[list[Tensor], Layout]:
    """Return inputs of a type that the kernels support, on the device that they run on."""
    return make(lengths, num_queries=num_queries, dtype=dtype, device=DEVICE, **sizes)


def assert_close_to_reference(
    parts: list[Tensor], layout: Layout, *, position: bool, time: bool, tolerance: float = 2e-5
) -> None:
    """Assert that output and gradients equal those of the formula, with errors relative to the largest value."""
    actual, actual_grads = run(hstu_attention_fused, parts, layout, position=position, time=time)
    expected, expected_grads = run(hstu_attention_reference, parts, layout, position=position, time=time)
    for left, right in zip([actual, *actual_grads], [expected, *expected_grads], strict=True):
        assert left.dtype == right.dtype
        largest = float(right.abs().max()) if right.numel() else 1.0
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance * max(largest, 1e-3))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=3).filter(
        lambda rows: any(length for length, _ in rows)
    ),
    tail=st.booleans(),
    position=st.booleans(),
    time=st.booleans(),
    heads=st.integers(1, 2),
    widths=st.sampled_from([(3, 4), (16, 16), (20, 5)]),
    programs=st.sampled_from([1, 2, 512]),
)
def test_kernels_equal_the_formula(
    rows: list[tuple[int, float]],
    tail: bool,
    position: bool,
    time: bool,
    heads: int,
    widths: tuple[int, int],
    programs: int,
) -> None:
    """Covers rows of zero, one and several tiles; all or the last queries of each row; widths not a power of two."""
    lengths = [length for length, _ in rows]
    num_queries = [round(share * length) for length, share in rows] if tail else None
    if num_queries is not None and not sum(num_queries):
        num_queries = lengths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "TILE", 32)  # 16 for float32, the minimum size of a matrix product
        patch.setattr(fused, "PROGRAMS", programs)
        assert_close_to_reference(
            *inputs(lengths, num_queries, heads=heads, widths=widths), position=position, time=time
        )


def test_kernels_equal_the_formula_with_the_default_tile_size() -> None:
    assert_close_to_reference(
        *inputs([70, 3, 0, 33], None, heads=2, widths=(20, 12), longest=70), position=True, time=True
    )
    assert_close_to_reference(
        *inputs([70, 3, 90], [1, 3, 65], heads=1, widths=(16, 16), longest=90), position=True, time=True
    )


def test_kernels_accept_a_batch_without_tokens() -> None:
    parts, layout = inputs([0, 0], None, heads=2, widths=(4, 4))
    out = hstu_attention_fused(*parts[:3], layout, normaliser=1.0, position_weights=parts[3], time_weights=parts[4])
    out.sum().backward()
    assert out.shape == (0, 2, 4)
    assert parts[3].grad is not None
    assert not parts[3].grad.any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_equal_the_formula_on_a_gpu(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    parts, layout = inputs([300, 1, 0, 128, 65], None, heads=4, widths=(64, 32), longest=300, dtype=dtype)
    assert_close_to_reference(
        parts, layout, position=True, time=True, tolerance=2e-5 if dtype == torch.float32 else 2e-2
    )
    query, key, value, position, time = parts
    here, there = (
        way(query, key, value, layout, normaliser=7.0, position_weights=position, time_weights=time)
        for way in (hstu_attention, hstu_attention_fused)
    )
    assert torch.equal(here, there)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nextitem.ops.triton import hstu_attention as fused

IDS = {"offsets", "query_offsets", "query_times", "key_times"}
TABLES = {"position", "time", "by_distance", "by_bucket"}
NUMBERS = {"heads", "width_k", "width_v", "middle", "blocks", "tiles", "reach"}
for architecture in (80, 90):
    for dtype in ("fp32", "bf16"):
        flags = {"POSITION": True, "TIME": True, "TILE": 32 if dtype == "fp32" else 64, "K": 64, "V": 64, "BINS": 256}
        flags["PRECISION"] = "tf32"
        for kernel in (fused._outputs, fused._key_gradients, fused._query_gradients, fused._bias_gradients):
            types, constants = {}, {}
            for index, name in enumerate(kernel.arg_names):
                if name in flags:
                    types[name], constants[(index,)] = "constexpr", flags[name]
                elif name in IDS or name in TABLES:
                    types[name] = "*i64" if name in IDS else "*fp32"
                else:
                    types[name] = "i32" if name in NUMBERS else "fp32" if name in ("scale", "inverse") else "*" + dtype
            target = GPUTarget("cuda", architecture, 32)
            binary = triton.compile(ASTSource(kernel, types, constants), target=target, options={"num_warps": 8})
            assert binary.asm["cubin"]
            print(architecture, dtype, kernel.__name__, binary.metadata.shared)
            assert binary.metadata.shared <= 99 * 1024  # shared memory of a block on the smallest of these chips
"""


@pytest.mark.slow
def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """Compiles to machine code for two generations of GPUs; no GPU is needed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 16
