"""Blocks of candidates: batches with the same requests and a bounded number of their candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged


def candidate_blocks(batch: SequenceBatch, size: int) -> Iterator[SequenceBatch]:
    """Yield the requests with at most `size` of all candidates at a time, in order; each keeps all requests."""
    candidates = batch.candidates
    assert candidates is not None
    count = len(candidates.values)
    if count <= size:
        yield batch
        return
    for first in range(0, count, size):
        offsets = candidates.offsets.clamp(first, min(first + size, count)) - first

        def part(column: Jagged, first: int = first, offsets: Tensor = offsets) -> Jagged:
            return Jagged(column.values[first : first + int(offsets[-1])], offsets)

        yield replace(
            batch,
            candidates=part(candidates),
            candidate_features={name: part(column) for name, column in batch.candidate_features.items()},
            candidate_labels={name: part(column) for name, column in batch.candidate_labels.items()},
        )
