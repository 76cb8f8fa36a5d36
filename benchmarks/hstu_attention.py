"""Forward and backward of HSTU's attention beside scaled dot-product attention of the same shape and the plain path.

    python benchmarks/hstu_attention.py [--device cuda] [--rows 32] [--longest 2048] [--heads 8] [--width 64]
        [--dtype bfloat16] [--rounds 10]

Rows have lengths drawn evenly from a half to the whole of --longest. Rates are in TFLOP/s of the arithmetic that
causal attention of these lengths asks for: 2 products forward and 5 backward of half of length^2 x heads x width
multiply-adds each, for every way alike, whatever it computes beside them. SDPA gets rows padded to the longest, as its
causal path takes them; its rate by that padded shape is printed too, which is what full rows would reach. The plain
path is the blocked one, on the same device. One JSON line: of each way the median milliseconds and the rate, and the
fused kernel's share of SDPA's rate by its own shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.jagged import offsets_of
from nextitem.ops.hstu_attention import Layout, _Attention, hstu_attention


def milliseconds(work: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor, *, rounds: int) -> float:
    """Median of forward and backward, after a first round that does not count."""
    taken = []
    for _ in range(rounds + 1):
        if grad.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        torch.autograd.grad(work(), inputs, grad)
        if grad.is_cuda:
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken[1:])


def rate(pairs: float, taken: float, *, heads: int, width: int) -> float:
    """TFLOP/s: 7 products of `pairs` x width multiply-adds a head."""
    return round(7 * 2 * pairs * heads * width / taken / 1e9, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--longest", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=10)
    chosen = parser.parse_args()
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(chosen.longest // 2, chosen.longest + 1, (chosen.rows,), generator=generator)
    lengths[0] = chosen.longest
    total, shape = int(lengths.sum()), {"heads": chosen.heads, "width": chosen.width}
    times = torch.randint(0, 86_400_000, (total,), generator=generator).cumsum(0).to(device)
    layout = Layout(offsets_of(lengths).to(device), None, times, times)

    def normal(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, kind).requires_grad_()

    tokens = [normal(total, chosen.heads, chosen.width) for _ in range(3)]
    biases = [normal(2 * chosen.longest - 1, kind=torch.float32), normal(129, kind=torch.float32)]
    grad = torch.randn(total, chosen.heads, chosen.width, generator=generator).to(device, dtype)
    real = float((lengths.double() * (lengths + 1) / 2).sum())
    padded = chosen.rows * chosen.longest * (chosen.longest + 1) / 2
    told: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "tokens": total,
        **{name: getattr(chosen, name) for name in ("rows", "longest", "heads", "width", "dtype")},
    }

    def record(name: str, work: Callable[[], Tensor], inputs: list[Tensor], way_back: Tensor) -> float:
        taken = milliseconds(work, inputs, way_back, rounds=chosen.rounds)
        found = {"ms": round(taken, 2), "tflops": rate(real, taken, **shape)}
        told[name] = found
        return float(found["tflops"])

    q, k, v = tokens
    normaliser = float(chosen.longest)
    plain = (q, k, v, *biases, layout, normaliser, 1.0)
    record("blocked", lambda: _Attention.apply(*plain), [*tokens, *biases], grad)  # type: ignore[no-any-return,no-untyped-call]
    own = 0.0
    if device.type == "cuda":
        own = record("fused, no bias", lambda: hstu_attention(q, k, v, layout, normaliser=normaliser), tokens, grad)
        given = {"normaliser": normaliser, "position_weights": biases[0]}
        record("fused, position", lambda: hstu_attention(q, k, v, layout, **given), [*tokens, biases[0]], grad)  # type: ignore[arg-type]
        given["time_weights"] = biases[1]
        record("fused, position and time", lambda: hstu_attention(q, k, v, layout, **given), [*tokens, *biases], grad)  # type: ignore[arg-type]
    padding = [normal(chosen.rows, chosen.heads, chosen.longest, chosen.width) for _ in range(3)]
    way_back = torch.randn_like(padding[0])
    record("sdpa", lambda: F.scaled_dot_product_attention(*padding, is_causal=True), padding, way_back)
    peer = rate(padded, told["sdpa"]["ms"], **shape)  # type: ignore[index]
    told["sdpa by its padded shape, tflops"] = peer
    if own:
        told["fused without bias / sdpa"] = round(own / peer, 3)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
