"""Speed of the softmax over siblings, compared with gathered children and with the full softmax over all items.

    python benchmarks/trie_softmax.py [--rows 4096] [--width 64] [--full-rows 4096] [--repeat 7] [--device cuda]
        [--dtype bfloat16] [--tries 110x110 316x316 1000x1000 100x100x100]

`--tries` names the number of children of the nodes of each level. Each row is an event with a random item, whose
log-probability is the sum of those of its ancestors: one softmax a level, forward and backward, with the gradients of
hidden states and of all tables. The ways are

    fused    `ops.trie_softmax` on a GPU: kernels, if Triton is installed
    grouped  `ops.trie_softmax` on a CPU: products of the rows of one parent; it runs on a GPU too
    padded   the children's vectors of every row are gathered, [rows, children, width], in blocks of at most 1 GiB
    full     `ops.softmax_loss` over a table of all items, with at most --full-rows rows; its time is scaled to --rows
             (with few rows that is too long: the gradient of the table costs the same for any number of rows)
    plain    the same with all logits at once, `ops.softmax_loss_reference`, if they take at most 4 GiB

Inputs of each softmax are ready; the division of rows into groups counts, as every batch needs its own. The ways take
turns, after a round that does not count. Prints one JSON line for each trie: median milliseconds, and the medians of
the ratios of the rounds. `difference` is the largest difference of a log-probability between the first way and padded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import torch
from measure import Results, interleaved, median_ms, median_ratio, parser
from torch import Tensor

from nextitem.ops.softmax_loss import softmax_loss, softmax_loss_reference
from nextitem.ops.trie_softmax import ChildRanges, _TrieSoftmax, trie_softmax

GATHERED = 2**28  # gathered numbers in memory at once
PLAIN_AT_MOST = 2**30  # logits
Way = Callable[[Tensor, Tensor, ChildRanges, Tensor], Tensor]


def grouped(hidden: Tensor, vectors: Tensor, children: ChildRanges, targets: Tensor) -> Tensor:
    """Return what `trie_softmax` returns, computed in groups on every device."""
    rows = torch.arange(len(targets), device=targets.device)
    out: Tensor = _TrieSoftmax.apply(hidden, vectors, children, targets, rows, None)  # type: ignore[no-untyped-call]
    return out


def padded(hidden: Tensor, vectors: Tensor, children: ChildRanges, targets: Tensor) -> Tensor:
    """Return what `trie_softmax` returns, computed with the gathered vectors of the children of every row."""
    numbers = torch.arange(children.max_count, device=hidden.device)
    nodes = children.starts[:, None] + numbers
    is_padding = numbers >= children.counts[:, None]
    gathered = vectors[nodes.masked_fill(is_padding, 0)]
    logits = torch.einsum("rd,rcd->rc", hidden, gathered).masked_fill(is_padding, -torch.inf)
    return logits.log_softmax(1).gather(1, (targets - children.starts)[:, None])[:, 0]


def levels_of(
    fan_outs: list[int], items: Tensor, width: int, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor, Tensor, int]]:
    """Return of each level a table of node vectors, the first child and the target of each row, and the fan-out."""
    levels = []
    for depth, fan_out in enumerate(fan_outs):
        targets = items // math.prod(fan_outs[depth + 1 :])
        table = 0.1 * torch.randn(math.prod(fan_outs[: depth + 1]), width, device=items.device)
        levels.append((table.to(dtype).requires_grad_(), targets // fan_out * fan_out, targets, fan_out))
    return levels


def log_probs(way: Way, hidden: Tensor, levels: list[tuple[Tensor, Tensor, Tensor, int]], rows: slice) -> Tensor:
    """Return the log-probability of the item of each of the rows."""
    total = []
    for table, starts, targets, fan_out in levels:
        children = ChildRanges(starts[rows], torch.full_like(starts[rows], fan_out))
        total.append(way(hidden[rows], table, children, targets[rows]))
    return torch.stack(total).sum(0)


def step(
    way: Way, hidden: Tensor, levels: list[tuple[Tensor, Tensor, Tensor, int]], block: int, synchronise: bool
) -> None:
    """Compute the mean log-probability and its gradients, `block` rows at a time."""
    inputs = [hidden, *(table for table, *_ in levels)]
    sums: list[Tensor] = []
    for begin in range(0, len(hidden), block):
        loss = log_probs(way, hidden, levels, slice(begin, begin + block)).sum() / len(hidden)
        grads = torch.autograd.grad(loss, inputs)
        sums = [left.add_(right) for left, right in zip(sums, grads, strict=True)] if sums else list(grads)
    if synchronise:
        torch.cuda.synchronize()


def full_step(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], hidden: Tensor, table: Tensor, items: Tensor, synchronise: bool
) -> None:
    """Compute the loss of the full softmax and its gradients."""
    torch.autograd.grad(loss(hidden, table, items + 1), (hidden, table))
    if synchronise:
        torch.cuda.synchronize()


def main() -> None:
    is_gpu = torch.cuda.is_available()
    options = parser(__doc__, rows=4096, width=64, full_rows=4096 if is_gpu else 256, repeat=7)
    options.add_argument("--device", default="cuda" if is_gpu else "cpu")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--tries", nargs="+", default=["110x110", "316x316", "1000x1000", "100x100x100"])
    arguments = options.parse_args()
    results = Results(arguments)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    synchronise = device.type == "cuda"
    for name in arguments.tries:
        torch.manual_seed(0)
        fan_outs = [int(number) for number in name.split("x")]
        num_items = math.prod(fan_outs)
        items = torch.randint(num_items, (arguments.rows,), device=device)
        hidden = torch.randn(arguments.rows, arguments.width, device=device).to(dtype).requires_grad_()
        levels = levels_of(fan_outs, items, arguments.width, dtype)
        block = min(arguments.rows, max(1, GATHERED // (max(fan_outs) * arguments.width)))
        full_rows = min(arguments.rows, arguments.full_rows)
        table = torch.zeros(num_items + 1, arguments.width, device=device, dtype=dtype)
        table[1:].normal_(std=0.1)
        full = (hidden.detach()[:full_rows].requires_grad_(), table.requires_grad_(), items[:full_rows], synchronise)
        own: dict[str, Way] = {"fused": trie_softmax, "grouped": grouped} if synchronise else {"grouped": trie_softmax}
        works: dict[str, Callable[[], object]] = {
            way_name: partial(step, way, hidden, levels, arguments.rows, synchronise) for way_name, way in own.items()
        }
        works["padded"] = partial(step, padded, hidden, levels, block, synchronise)
        works["full"] = partial(full_step, softmax_loss, *full)
        if full_rows * num_items <= PLAIN_AT_MOST:
            works["plain"] = partial(full_step, softmax_loss_reference, *full)
        seconds = interleaved(works, repeats=arguments.repeat, clock=time.perf_counter)
        for way_name in works.keys() & {"full", "plain"}:
            seconds[way_name] = [value * arguments.rows / full_rows for value in seconds[way_name]]
        first = next(iter(own))
        with torch.no_grad():
            rows = slice(0, block)
            pair = [log_probs(way, hidden, levels, rows).double() for way in (own[first], padded)]
        metrics: dict[str, object] = {"trie": name, "items": num_items, "device": arguments.device}
        metrics |= {"dtype": arguments.dtype, "rows": arguments.rows, "full_rows": full_rows, "width": arguments.width}
        metrics |= {f"{way}_ms": median_ms(values) for way, values in seconds.items()}
        metrics |= {
            f"{way}_over_{first}": median_ratio(values, seconds[first])
            for way, values in seconds.items()
            if way != first
        }
        metrics |= {"difference": float((pair[0] - pair[1]).abs().max()), "threads": torch.get_num_threads()}
        results.add_printed(f"{name} {arguments.dtype}", metrics)


if __name__ == "__main__":
    main()
