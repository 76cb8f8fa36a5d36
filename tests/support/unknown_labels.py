"""Requests with candidates of unknown label, and the same requests without these candidates."""

from __future__ import annotations

from dataclasses import replace

import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged


def hide_labels(batch: SequenceBatch, *, every: int = 3) -> SequenceBatch:
    """Return the requests with every third candidate unlabelled (NaN), the same candidates for all labels."""
    is_hidden = torch.arange(len(batch.candidates.values)) % every == 0 if batch.candidates is not None else None
    assert is_hidden is not None
    labels = {
        name: column.with_values(column.values.masked_fill(is_hidden, float("nan"))) for name, column in _labels(batch)
    }
    return replace(batch, candidate_labels=labels)


def drop_unlabelled(batch: SequenceBatch) -> SequenceBatch:
    """Return the requests without candidates whose (first) label is unknown, and without requests of no candidate."""
    assert batch.candidates is not None
    has_label = ~next(iter(batch.candidate_labels.values())).values.isnan()
    lengths = torch.bincount(batch.candidates.row_ids()[has_label], minlength=batch.num_requests)

    def labelled_part(column: Jagged) -> Jagged:
        return Jagged.from_lengths(column.values[has_label], lengths)

    smaller = replace(
        batch,
        candidates=labelled_part(batch.candidates),
        candidate_features={name: labelled_part(column) for name, column in batch.candidate_features.items()},
        candidate_labels={name: labelled_part(column) for name, column in _labels(batch)},
    )
    return smaller.select((lengths > 0).nonzero()[:, 0])


def _labels(batch: SequenceBatch) -> list[tuple[str, Jagged]]:
    return list(batch.candidate_labels.items())
