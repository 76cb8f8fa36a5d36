"""Logits of each position's own negatives, forward and backward: in chunks, all at once, or from the whole table.

    python benchmarks/sampled_logits.py [--positions 1600] [--width 64] [--repeats 3] [--threads 1]

`chunks` gathers the negatives' vectors in chunks, `at_once` gathers them all, `picked` scores every item and picks the
negatives' scores. The three take turns. Prints one JSON line for each number of items and of negatives: the best of
the repeats, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from measure import Results, interleaved, parser
from torch import Tensor

from nextitem.ops.sampled_logits import sampled_logits, sampled_logits_reference


def logits_from_all(hidden: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """Score the whole table and return the scores of `items`."""
    return (hidden @ table.T).gather(1, items)


Way = Callable[[Tensor, Tensor, Tensor], Tensor]
WAYS: dict[str, Way] = {"chunks": sampled_logits, "at_once": sampled_logits_reference, "picked": logits_from_all}


def forward_and_backward(way: Way, hidden: Tensor, table: Tensor, items: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a loss over the logits."""
    return torch.autograd.grad(way(hidden, table, items).logsumexp(1).sum(), (hidden, table))


def main() -> None:
    options = parser(__doc__, positions=1600, width=64, repeats=3, threads=1)
    options.add_argument("--items", type=int, nargs="+", default=[2_000, 12_000, 50_000])
    options.add_argument("--negatives", type=int, nargs="+", default=[16, 128])
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    shared = {name: getattr(arguments, name) for name in ("positions", "width", "repeats", "threads")}
    for num_items in arguments.items:
        for negatives in arguments.negatives:
            hidden = torch.randn(arguments.positions, arguments.width, requires_grad=True)
            table = torch.randn(num_items + 1, arguments.width, requires_grad=True)
            items = torch.randint(1, num_items + 1, (arguments.positions, negatives))
            works = {name: partial(forward_and_backward, way, hidden, table, items) for name, way in WAYS.items()}
            seconds = interleaved(works, repeats=arguments.repeats, warmup=0)
            figures = {name: round(1000 * min(values), 1) for name, values in seconds.items()}
            row = {"items": num_items, "negatives": negatives, **figures, **shared}
            results.add_printed(f"{num_items} items, {negatives} negatives", row)


if __name__ == "__main__":
    main()
