"""Stochastic length: training reads a random part of each long history (HSTU, arXiv 2402.17152, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged, offsets_of
from nextitem.data.examples.next_item import NextItemBatch


def stochastic_length(
    batch: NextItemBatch, *, max_length: int, alpha: float, generator: torch.Generator
) -> NextItemBatch:
    """Shorten most sequences with more than `max_length ** (alpha / 2)` events to that number of events.

    A longer sequence of n events stays whole with probability max_length ** alpha / n ** 2 (eq. 5), so that the cost of
    attention grows with max_length ** alpha. Otherwise events are sampled without replacement, with weights
    1 - age / total age, so that recent ones are more likely. Sampled events keep their order, their time and their true
    successor.

    Args:
        batch: sequences of any length.
        max_length: maximal length of a sequence (N of the paper).
        alpha: exponent between 1 and 2 that controls the sparsity.
        generator: source of random numbers, on the CPU.

    """
    timestamps = None if batch.timestamps is None else batch.timestamps.values
    is_sampled = sampled_events(batch.items, timestamps, max_length=max_length, alpha=alpha, generator=generator)
    offsets = offsets_of(torch.bincount(batch.items.row_ids()[is_sampled], minlength=batch.items.num_rows))
    return batch.map(lambda column: Jagged(column.values[is_sampled], offsets))


def sampled_events(
    items: Jagged, times: Tensor | None, *, max_length: int, alpha: float, generator: torch.Generator | None = None
) -> Tensor:
    """Return which events of the histories `items` are read, bool [T]; see `stochastic_length`.

    Args:
        items: histories of any length.
        times: time of each event [T] in milliseconds, or None: events are as far apart as their places.
        max_length: maximal length of a sequence (N of the paper).
        alpha: exponent between 1 and 2 that controls the sparsity.
        generator: source of random numbers, on the CPU; None: the global one.

    """
    lengths = items.lengths
    max_count = max(1, int(max_length ** (alpha / 2)))
    stays_whole = (
        torch.rand(len(lengths), generator=generator).to(lengths.device) < max_length**alpha / lengths.double() ** 2
    )
    counts = torch.where((lengths <= max_count) | stays_whole, lengths, max_count)
    # Gumbel noise plus log weights: the `counts` highest are a sample without replacement.
    noise = -torch.log(-torch.log(torch.rand(len(items.values), generator=generator).clamp_(1e-20, 1 - 1e-7)))
    keys = noise.to(lengths.device) + _recency(items, times).clamp(min=1e-6).log()
    rows = items.row_ids()
    by_key = torch.argsort(keys, descending=True)
    by_row = by_key[torch.argsort(rows[by_key], stable=True)]
    place = torch.empty_like(rows)
    place[by_row] = torch.arange(len(rows), device=rows.device) - items.offsets[rows]
    return place < counts[rows]


def _recency(items: Jagged, times: Tensor | None) -> Tensor:
    """Return 1 - age / total age of the sequence, by time if there are times, otherwise by position, [T]."""
    rows, ends = items.row_ids(), items.offsets[1:] - 1
    if times is not None:
        last = times[ends.clamp(min=0)]
        age = (last[rows] - times).double()
    else:
        age = (ends[rows] - torch.arange(len(rows), device=rows.device)).double()
    total = torch.zeros(items.num_rows, dtype=age.dtype, device=age.device).index_add_(0, rows, age)
    return 1 - age / total.clamp(min=1)[rows]
