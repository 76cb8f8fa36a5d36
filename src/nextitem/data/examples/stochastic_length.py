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
    lengths = batch.items.lengths
    max_count = max(1, int(max_length ** (alpha / 2)))
    stays_whole = (
        torch.rand(len(lengths), generator=generator).to(lengths.device) < max_length**alpha / lengths.double() ** 2
    )
    counts = torch.where((lengths <= max_count) | stays_whole, lengths, max_count)
    # Gumbel noise plus log weights: the `counts` highest are a sample without replacement.
    noise = -torch.log(-torch.log(torch.rand(len(batch.items.values), generator=generator).clamp_(1e-20, 1 - 1e-7)))
    keys = noise.to(lengths.device) + _recency(batch).clamp(min=1e-6).log()
    rows = batch.items.row_ids()
    by_key = torch.argsort(keys, descending=True)
    by_row = by_key[torch.argsort(rows[by_key], stable=True)]
    place = torch.empty_like(rows)
    place[by_row] = torch.arange(len(rows), device=rows.device) - batch.items.offsets[rows]
    is_sampled = place < counts[rows]
    offsets = offsets_of(counts)
    return batch.map(lambda column: Jagged(column.values[is_sampled], offsets))


def _recency(batch: NextItemBatch) -> Tensor:
    """Return 1 - age / total age of the sequence, by time if the log has times, otherwise by position, [T]."""
    rows, ends = batch.items.row_ids(), batch.items.offsets[1:] - 1
    if batch.timestamps is not None:
        last = batch.timestamps.values[ends.clamp(min=0)]
        age = (last[rows] - batch.timestamps.values).double()
    else:
        age = (ends[rows] - torch.arange(len(rows), device=rows.device)).double()
    total = torch.zeros(batch.items.num_rows, dtype=age.dtype, device=age.device).index_add_(0, rows, age)
    return 1 - age / total.clamp(min=1)[rows]
