"""Fused softmax over siblings, compared with the plain one: in Triton's interpreter, or on a GPU if there is one.

Also the compilation of the kernels for GPUs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trie_cases import problem, vectors_of
from torch import Tensor

from nextitem.ops.trie_softmax import ChildRanges, trie_softmax, trie_softmax_reference

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from nextitem.ops.triton import trie_softmax as fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def trie_softmax_fused(
    hidden: Tensor, vectors: Tensor, children: ChildRanges, targets: Tensor, vector_rows: Tensor | None = None
) -> Tensor:
    """Call the fused kernels as `trie_softmax` does on a GPU."""
    return fused.FusedTrieSoftmax.apply(hidden, vectors, children, targets, vector_rows)  # type: ignore[no-any-return, no-untyped-call]


def gradients(log_probs: Tensor, hidden: Tensor, vectors: Tensor) -> list[Tensor]:
    """Return the gradients of a weighted sum of the log-probabilities by both inputs; zeros if it reads neither."""
    weights = torch.linspace(-1, 2, len(log_probs), device=hidden.device)
    inputs = (hidden, vectors)
    grads = torch.autograd.grad((log_probs.float() * weights).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(part) if grad is None else grad for part, grad in zip(inputs, grads, strict=True)]


def assert_close_to_reference(
    counts: list[int],
    num_rows: int,
    *,
    width: int,
    seed: int = 0,
    num_vectors: int | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 2e-5,
) -> None:
    """Assert that values and gradients equal the plain ones, with errors relative to the largest value.

    If `num_vectors` is passed, nodes share so many vectors. The plain computation is in float64.
    """
    children, targets, num_nodes = problem(counts, num_rows, seed=seed, device=DEVICE)
    generator = torch.Generator().manual_seed(seed)
    rows = None if num_vectors is None else torch.randint(num_vectors, (num_nodes,), generator=generator).to(DEVICE)
    size = num_nodes if num_vectors is None else num_vectors
    hidden, vectors = vectors_of(len(targets), size, width=width, seed=seed, dtype=dtype, device=DEVICE)
    exact = [part.detach().double().requires_grad_() for part in (hidden, vectors)]
    actual = trie_softmax_fused(hidden, vectors, children, targets, rows)
    expected = trie_softmax_reference(exact[0], exact[1], children, targets, vector_rows=rows)
    lefts, rights = (actual, *gradients(actual, hidden, vectors)), (expected, *gradients(expected, *exact))
    for left, right in zip(lefts, rights, strict=True):
        assert left.dtype == dtype
        largest = float(right.detach().abs().max()) if right.numel() else 1.0
        torch.testing.assert_close(left.double(), right, rtol=0, atol=tolerance * max(largest, 1.0))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9) | st.sampled_from([16, 40]), min_size=1, max_size=5).filter(any),
    num_rows=st.integers(0, 60),
    width=st.sampled_from([5, 16, 20]),
    num_vectors=st.none() | st.integers(1, 30),
    tile=st.sampled_from([32, 64]),
    seed=st.integers(0, 99),
)
def test_kernels_equal_the_plain_computation(
    counts: list[int], num_rows: int, width: int, num_vectors: int | None, tile: int, seed: int
) -> None:
    """Covers no row; parents of zero, one and several tiles; one, two and more blocks of rows; shared vectors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "TILE", tile)  # float32 has half of it
        assert_close_to_reference(counts, num_rows, width=width, num_vectors=num_vectors, seed=seed)


@pytest.mark.parametrize(
    ("counts", "num_rows", "width", "num_vectors"),
    [([90], 100, 64, None), ([1, 300, 2], 12, 100, None), ([70, 0, 3, 1], 30, 5, 40), ([3, 2], 0, 5, None)],
    ids=["one parent", "a large parent beside small ones", "shared vectors", "no row"],
)
def test_kernels_equal_the_plain_computation_with_the_default_tile_size(
    counts: list[int], num_rows: int, width: int, num_vectors: int | None
) -> None:
    assert_close_to_reference(counts, num_rows, width=width, num_vectors=num_vectors)


def test_wide_vectors_have_smaller_tiles() -> None:
    assert_close_to_reference([40, 3], 40, width=300)


def test_rows_without_competing_children_have_no_gradient() -> None:
    hidden, vectors = vectors_of(4, 7, dtype=torch.float32, device=DEVICE)
    starts, counts = torch.tensor([4, 5, 4, 2], device=DEVICE), torch.tensor([1, 0, 1, 2], device=DEVICE)
    log_probs = trie_softmax_fused(hidden, vectors, ChildRanges(starts, counts), starts)
    assert log_probs[:3].tolist() == [0, 0, 0]
    by_hidden, by_vectors = gradients(log_probs, hidden, vectors)
    assert by_hidden.any(1).tolist() == [False, False, False, True]
    assert by_vectors.any(1).nonzero()[:, 0].tolist() == [2, 3]


@pytest.mark.parametrize("num_vectors", [None, 9])
def test_the_same_input_gives_the_same_result(num_vectors: int | None) -> None:
    children, targets, num_nodes = problem([30, 2, 70, 5], 60, device=DEVICE)
    rows = None if num_vectors is None else (torch.arange(num_nodes) % num_vectors).to(DEVICE)
    size = num_nodes if num_vectors is None else num_vectors
    hidden, vectors = vectors_of(len(targets), size, dtype=torch.float32, device=DEVICE)
    results = []
    for _ in range(2):
        log_probs = trie_softmax_fused(hidden, vectors, children, targets, rows)
        results.append((log_probs, *gradients(log_probs, hidden, vectors)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    children, targets, num_nodes = problem([6, 3], 8, device=DEVICE)
    hidden, vectors = vectors_of(len(targets), num_nodes, dtype=torch.float32, device=DEVICE)
    both = torch.autograd.grad(trie_softmax_fused(hidden, vectors, children, targets).sum(), (hidden, vectors))
    (by_hidden,) = torch.autograd.grad(trie_softmax_fused(hidden, vectors.detach(), children, targets).sum(), (hidden,))
    (by_vectors,) = torch.autograd.grad(
        trie_softmax_fused(hidden.detach(), vectors, children, targets).sum(), (vectors,)
    )
    assert torch.equal(by_hidden, both[0])
    assert torch.equal(by_vectors, both[1])


def test_vectors_can_have_more_digits_than_hidden_states() -> None:
    children, targets, num_nodes = problem([40, 3], 30, device=DEVICE)
    hidden, vectors = vectors_of(len(targets), num_nodes, width=16, dtype=torch.float32, device=DEVICE)
    half = hidden.detach().half().requires_grad_()
    actual = trie_softmax_fused(half, vectors, children, targets)
    expected = trie_softmax_fused(hidden, vectors, children, targets)
    assert actual.dtype == torch.float16
    for left, right in zip(gradients(actual, half, vectors), gradients(expected, hidden, vectors), strict=True):
        torch.testing.assert_close(left.float(), right, rtol=0, atol=4e-3 * float(right.abs().max()))
    torch.testing.assert_close(actual.float(), expected, rtol=4e-3, atol=4e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_kernels_equal_the_plain_computation_on_a_gpu(dtype: torch.dtype, tolerance: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for width, num_vectors in ((64, None), (100, 700), (5, None), (300, None)):
        assert_close_to_reference(
            [1, 800, 2, 0, 37, 90], 300, width=width, num_vectors=num_vectors, dtype=dtype, tolerance=tolerance
        )
    children, targets, num_nodes = problem([1, 800, 2, 0, 37, 90], 300, device=DEVICE)
    hidden, vectors = vectors_of(len(targets), num_nodes, width=64, dtype=dtype, device=DEVICE)
    here, there = (way(hidden, vectors, children, targets) for way in (trie_softmax, trie_softmax_fused))
    assert torch.equal(here, there)


COMPILE = """
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nextitem.ops.triton import trie_softmax as fused

IDS = {"vector_rows", "starts", "counts", "columns", "ends", "order", "firsts", "parents", "tile_ends", "nodes"}
TABLES = {"normalisers", "slopes", "row_grads", "by_node"}
KINDS = {**dict.fromkeys(IDS, "*i64"), **dict.fromkeys(TABLES, "*fp32")}
KINDS |= {**dict.fromkeys(("readers", "sorted_rows"), "*i32")}
KINDS |= dict.fromkeys(("width", "num_rows", "num_nodes", "num_vectors"), "i32")
for architecture, width in ((80, 64), (80, 512), (90, 100)):
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        flags = {"SLOPES": True, "INDIRECT": True, "BLOCK": 8, **fused.constants(width, dtype)}
        options = {option: flags.pop(option) for option in ("num_warps", "num_stages")}
        for kernel in (fused._log_probabilities, fused._vector_gradients, fused._shared_sums):
            types, constants = {}, {}
            for index, argument in enumerate(kernel.arg_names):
                types[argument] = "constexpr" if argument in flags else KINDS.get(argument, "*" + name)
                if argument in flags:
                    constants[(index,)] = flags[argument]
            target = GPUTarget("cuda", architecture, 32)
            binary = triton.compile(ASTSource(kernel, types, constants), target=target, options=options)
            assert binary.asm["cubin"]
            print(architecture, name, width, kernel.__name__, binary.metadata.shared)
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
    assert done.stdout.count("\n") == 18
