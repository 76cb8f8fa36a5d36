"""The blocked full softmax against the plain one, forward and backward: time and peak memory.

    python benchmarks/softmax_loss.py [--positions 4000] [--width 64] [--items 12101 100000 1000000] [--repeat 7]

The two take turns, after a round that does not count. Prints one JSON line for each number of items: median
milliseconds, memory in MiB of one call in a process of its own, and the median of the ratios of the rounds. The plain
version is skipped if its logits would take more than 4 GiB.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import torch
from measure import Results, in_own_process, interleaved, median_ms, median_ratio, parser
from peers.meter import memory_mb
from torch import Tensor

from nextitem.ops.softmax_loss import softmax_loss, softmax_loss_reference

WAYS = {"blocked": softmax_loss, "plain": softmax_loss_reference}
PLAIN_AT_MOST = 2**30  # logits: beyond 4 GiB the plain version is not run


def forward_and_backward(name: str, hidden: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the loss of that name."""
    return torch.autograd.grad(WAYS[name](hidden, table, targets), (hidden, table))


def memory_of_one_call(name: str, *, positions: int, items: int, width: int) -> int:
    """Return the MiB by which one call raises the peak memory of this process."""
    hidden = torch.randn(positions, width, requires_grad=True)
    table = torch.randn(items + 1, width, requires_grad=True)
    before = memory_mb("VmRSS")
    gradients = forward_and_backward(name, hidden, table, torch.randint(1, items + 1, (positions,)))
    del gradients
    return int(memory_mb("VmHWM") - before)


def main() -> None:
    options = parser(__doc__, positions=4000, width=64, repeat=7)
    options.add_argument("--items", type=int, nargs="+", default=[12_101, 100_000, 1_000_000])
    options.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.cell:
        print(json.dumps({"mib": memory_of_one_call(**arguments.cell)}))
        return
    results = Results(arguments)
    for items in arguments.items:
        torch.manual_seed(0)
        hidden = torch.randn(arguments.positions, arguments.width, requires_grad=True)
        table = (0.1 * torch.randn(items + 1, arguments.width)).requires_grad_()
        targets = torch.randint(1, items + 1, (arguments.positions,))
        names = list(WAYS) if arguments.positions * items <= PLAIN_AT_MOST else ["blocked"]
        works = {name: partial(forward_and_backward, name, hidden, table, targets) for name in names}
        seconds = interleaved(works, repeats=arguments.repeat)
        sizes = {"positions": arguments.positions, "items": items, "width": arguments.width}
        row: dict[str, object] = {**sizes}
        for name in names:
            row[f"{name}_ms"] = median_ms(seconds[name], 1)
            row[f"{name}_mib"] = in_own_process(__file__, {"name": name, **sizes})["mib"]
        if "plain" in names:
            row["blocked_over_plain"] = median_ratio(seconds["blocked"], seconds["plain"])
        results.add_printed(f"{items} items", {**row, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
