"""Speed of HSTU's attention, compared with scaled dot-product attention of the same shape and with the plain path.

    python benchmarks/hstu_attention.py [--device cuda] [--rows 32] [--longest 2048] [--heads 8] [--width 64]
        [--dtype bfloat16] [--rounds 10]

Rows have random lengths, from a half to the whole of --longest. Rates are in TFLOP/s of the arithmetic that
causal attention of these lengths needs: 2 products forward and 5 backward of half of length^2 x heads x width
multiply-adds each. Every way is rated by this arithmetic alone. SDPA gets rows padded to the longest, as its causal
path takes them; its rate by that padded shape is printed too, as the rate that full rows would reach. The plain path is
the blocked one, on the same device. Prints one JSON line: of each way the median milliseconds and the rate, and the
fused kernel's share of SDPA's rate by its own shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from measure import Results, parser, timed_median
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.jagged import offsets_of
from nextitem.ops.hstu_attention import Layout, _Attention, hstu_attention


def gpu_clock() -> float:
    """Return seconds after the GPU has finished its work."""
    torch.cuda.synchronize()
    return time.perf_counter()


def rate(pairs: float, ms: float, *, heads: int, width: int) -> float:
    """Return TFLOP/s: 7 products of `pairs` x width multiply-adds a head."""
    return round(7 * 2 * pairs * heads * width / ms / 1e9, 3)


def main() -> None:
    options = parser(__doc__, rows=32, longest=2048, heads=8, width=64, rounds=10)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--dtype", default="bfloat16")
    arguments = options.parse_args()
    results = Results(arguments)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    clock = gpu_clock if device.type == "cuda" else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(arguments.longest // 2, arguments.longest + 1, (arguments.rows,), generator=generator)
    lengths[0] = arguments.longest
    total, shape = int(lengths.sum()), {"heads": arguments.heads, "width": arguments.width}
    times = torch.randint(0, 86_400_000, (total,), generator=generator).cumsum(0).to(device)
    layout = Layout(offsets_of(lengths).to(device), None, times, times)

    def normal(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, kind).requires_grad_()

    tokens = [normal(total, arguments.heads, arguments.width) for _ in range(3)]
    biases = [normal(2 * arguments.longest - 1, kind=torch.float32), normal(129, kind=torch.float32)]
    grad = torch.randn(total, arguments.heads, arguments.width, generator=generator).to(device, dtype)
    real = float((lengths.double() * (lengths + 1) / 2).sum())
    padded = arguments.rows * arguments.longest * (arguments.longest + 1) / 2
    row: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "tokens": total,
        **{name: getattr(arguments, name) for name in ("rows", "longest", "heads", "width", "dtype")},
    }

    def record(name: str, work: Callable[[], Tensor], inputs: list[Tensor], way_back: Tensor) -> float:
        """Add the figures of one way to the row; return its milliseconds, forward and backward."""
        ms = 1000 * timed_median(
            lambda: torch.autograd.grad(work(), inputs, way_back), repeats=arguments.rounds, clock=clock
        )
        row[name] = {"ms": round(ms, 2), "tflops": rate(real, ms, **shape)}
        return ms

    q, k, v = tokens
    normaliser = float(arguments.longest)
    blocked = (q, k, v, *biases, layout, normaliser, 1.0)
    record("blocked", lambda: _Attention.apply(*blocked), [*tokens, *biases], grad)  # type: ignore[no-untyped-call]
    own_ms = 0.0
    if device.type == "cuda":
        fused = partial(hstu_attention, q, k, v, layout, normaliser=normaliser)
        position = partial(fused, position_weights=biases[0])
        position_and_time = partial(position, time_weights=biases[1])
        own_ms = record("fused, no bias", fused, tokens, grad)
        record("fused, position", position, [*tokens, biases[0]], grad)
        record("fused, position and time", position_and_time, [*tokens, *biases], grad)
    padded_q, padded_k, padded_v = (
        normal(arguments.rows, arguments.heads, arguments.longest, arguments.width) for _ in range(3)
    )
    peer_ms = record(
        "sdpa",
        lambda: F.scaled_dot_product_attention(padded_q, padded_k, padded_v, is_causal=True),
        [padded_q, padded_k, padded_v],
        torch.randn_like(padded_q),
    )
    peer = rate(padded, round(peer_ms, 2), **shape)
    row["sdpa by its padded shape, tflops"] = peer
    if own_ms:
        row["fused without bias / sdpa"] = round(rate(real, own_ms, **shape) / peer, 3)
    results.add_printed(str(row["device"]), row)


if __name__ == "__main__":
    main()
