"""The fused kernels against the formula: in Triton's interpreter, in its compiler, and on a GPU where there is one."""

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
from torch import Tensor

from nextitem.core.jagged import offsets_of
from nextitem.ops.hstu_attention import Layout, hstu_attention, hstu_attention_reference

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from nextitem.ops.triton import hstu_attention as fused

DAY = 86_400_000


def draw(
    lengths: list[int], asked: list[int] | None, *, heads: int, widths: tuple[int, int], reach: int
) -> tuple[list[Tensor], Layout]:
    """Query, key, value, position weights, time weights (float32, as if learnt) and their layout."""
    generator = torch.Generator().manual_seed(len(lengths))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    total, count = sum(lengths), sum(lengths if asked is None else asked)
    parts = [normal(count, heads, widths[0]), normal(total, heads, widths[0]), normal(total, heads, widths[1])]
    steps = torch.randint(0, 40 * DAY, (total,), generator=generator)
    times = (steps * torch.randint(0, 2, (total,), generator=generator)).cumsum(0)
    ends = offsets_of(torch.tensor(lengths))[1:]
    queries = torch.cat([torch.arange(int(end) - n, int(end)) for end, n in zip(ends, asked or lengths, strict=True)])
    layout = Layout(
        offsets_of(torch.tensor(lengths)),
        None if asked is None else offsets_of(torch.tensor(asked)),
        (times + 5500)[queries],
        times,
    )
    return [*parts, normal(2 * reach - 1), normal(129)], layout


def hstu_attention_fused(
    *tokens_and_layout: Any,
    normaliser: float,
    scale: float = 1.0,
    position_weights: Tensor | None = None,
    time_weights: Tensor | None = None,
) -> Tensor:
    """As `hstu_attention` calls it on a GPU."""
    *tokens, layout = tokens_and_layout
    return fused.FusedAttention.apply(*tokens, position_weights, time_weights, layout, normaliser, scale)  # type: ignore[no-any-return, no-untyped-call]


def both(parts: list[Tensor], layout: Layout, *, position: bool, time: bool, tolerance: float = 2e-5) -> None:
    """Outputs and all gradients are those of the formula, to a share of the largest."""
    results = []
    for way in (hstu_attention_fused, hstu_attention_reference):
        used = [part.detach().requires_grad_() for part in parts]
        out = way(
            *used[:3],
            layout,
            normaliser=7.0,
            scale=0.8,
            position_weights=used[3] if position else None,
            time_weights=used[4] if time else None,
        )
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
        named = [*used[:3], *([used[3]] if position else []), *([used[4]] if time else [])]
        results.append([out.detach(), *torch.autograd.grad((out * weights).sum(), named)])
    for found, wanted in zip(*results, strict=True):
        assert found.dtype == wanted.dtype
        largest = float(wanted.abs().max()) if wanted.numel() else 1.0
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * max(largest, 1e-3))


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
    """Rows of no, one and several tiles; all queries or the last of each row; widths that are no power of two."""
    lengths = [length for length, _ in rows]
    asked = [round(share * length) for length, share in rows] if tail else None
    if asked is not None and not sum(asked):
        asked = lengths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "TILE", 32)  # 16 for float32, the least that a product takes
        patch.setattr(fused, "PROGRAMS", programs)
        both(*draw(lengths, asked, heads=heads, widths=widths, reach=45), position=position, time=time)


def test_tiles_as_they_are_used() -> None:
    both(*draw([70, 3, 0, 33], None, heads=2, widths=(20, 12), reach=70), position=True, time=True)
    both(*draw([70, 3, 90], [1, 3, 65], heads=1, widths=(16, 16), reach=90), position=True, time=True)


def test_nothing_to_do() -> None:
    parts, layout = draw([0, 0], None, heads=2, widths=(4, 4), reach=5)
    used = [part.requires_grad_() for part in parts]
    out = hstu_attention_fused(*used[:3], layout, normaliser=1.0, position_weights=used[3], time_weights=used[4])
    out.sum().backward()
    assert out.shape == (0, 2, 4)
    assert used[3].grad is not None
    assert not used[3].grad.any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_the_same(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    parts, layout = draw([300, 1, 0, 128, 65], None, heads=4, widths=(64, 32), reach=300)
    on_gpu = Layout(*(None if part is None else part.cuda() for part in vars(layout).values()))  # type: ignore[arg-type]
    used = [part.cuda().to(dtype) if number < 3 else part.cuda() for number, part in enumerate(parts)]
    both(used, on_gpu, position=True, time=True, tolerance=2e-5 if dtype == torch.float32 else 2e-2)
    biases = {"normaliser": 7.0, "position_weights": used[3], "time_weights": used[4]}
    here = hstu_attention(*used[:3], on_gpu, **biases)  # type: ignore[arg-type]
    assert torch.equal(here, hstu_attention_fused(*used[:3], on_gpu, **biases))


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
            for place, name in enumerate(kernel.arg_names):
                if name in flags:
                    types[name], constants[(place,)] = "constexpr", flags[name]
                elif name in IDS or name in TABLES:
                    types[name] = "*i64" if name in IDS else "*fp32"
                else:
                    types[name] = "i32" if name in NUMBERS else "fp32" if name in ("scale", "share") else "*" + dtype
            target = GPUTarget("cuda", architecture, 32)
            made = triton.compile(ASTSource(kernel, types, constants), target=target, options={"num_warps": 8})
            assert made.asm["cubin"]
            print(architecture, dtype, kernel.__name__, made.metadata.shared)
            assert made.metadata.shared <= 99 * 1024  # what the smallest of these chips has for a block
"""


@pytest.mark.slow
def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """To machine code, for two generations of chips; needs none of them."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**clean, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 16
