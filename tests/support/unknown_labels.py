"""Requests with candidates whose label is not known, and the same requests without these candidates."""

from __future__ import annotations

from dataclasses import replace

import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged


def hide_labels(batch: SequenceBatch, *, every: int = 3) -> SequenceBatch:
    """The requests with every third label of their candidates not known (NaN), the same ones for all labels."""
    hidden = torch.arange(len(batch.candidates.values)) % every == 0 if batch.candidates is not None else None
    assert hidden is not None
    labels = {name: each.with_values(each.values.masked_fill(hidden, float("nan"))) for name, each in _labels(batch)}
    return replace(batch, candidate_labels=labels)


def drop_unlabelled(batch: SequenceBatch) -> SequenceBatch:
    """The requests without the candidates whose (first) label is not known, and without requests that have none."""
    assert batch.candidates is not None
    has_label = ~next(iter(batch.candidate_labels.values())).values.isnan()
    lengths = torch.bincount(batch.candidates.row_ids()[has_label], minlength=batch.num_requests)

    def kept(column: Jagged) -> Jagged:
        return Jagged.from_lengths(column.values[has_label], lengths)

    smaller = replace(
        batch,
        candidates=kept(batch.candidates),
        candidate_features={name: kept(column) for name, column in batch.candidate_features.items()},
        candidate_labels={name: kept(column) for name, column in _labels(batch)},
    )
    return smaller.select((lengths > 0).nonzero()[:, 0])


def _labels(batch: SequenceBatch) -> list[tuple[str, Jagged]]:
    return list(batch.candidate_labels.items())
