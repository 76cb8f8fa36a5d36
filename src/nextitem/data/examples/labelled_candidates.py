"""Labelled candidates: requests with items to rank, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from nextitem.core.batch import OWN_EVENTS, SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.data.examples.event_requests import EventRequests
from nextitem.data.examples.length_pools import batches_by_length
from nextitem.data.impression_requests import impression_requests
from nextitem.data.last_time import last_time

TARGET = "target"  # the label of sampled candidates: is it the item that came next?
HOUR_MS = 3_600_000


class LabelledRequests:
    """Requests that stand: what was shown, or what the channels of a cascade found.

    Batches hold requests with histories of similar length; who meets whom, and the order of batches, follow from
    (seed, epoch).
    """

    def __init__(self, requests: SequenceBatch) -> None:
        self.requests = requests
        self.lengths = requests.items.lengths.numpy()

    def num_batches(self, batch_size: int) -> int:
        """Batches in one epoch."""
        return -(-self.requests.num_requests // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Batches `start`, ... of an epoch."""
        for rows in batches_by_length(self.lengths, batch_size, epoch=epoch, seed=seed, start=start):
            yield self.requests.select(torch.from_numpy(rows))


class SampledCandidates:
    """Every event that may be a target as a request, with negatives drawn from the catalogue as its other candidates.

    For logs without impressions. What a user was never shown counts as a negative: whoever ranks what was chosen for
    showing should learn from that instead (sample selection bias). Negatives are drawn by popularity ** `power`.
    Examples of an undated log carry OWN_EVENTS, so that no count of the log contains the example itself.
    """

    def __init__(self, train: Dataset, *, num_negatives: int, power: float, max_history_length: int) -> None:
        self.events = EventRequests(train, max_history_length=max_history_length)
        self.num_negatives = num_negatives
        log = train.interactions
        weights = log.item_counts().astype(np.float64) ** power
        weights[0] = 0
        self.cumulative = np.cumsum(weights / weights.sum())

    def num_batches(self, batch_size: int) -> int:
        """Batches in one epoch."""
        return self.events.num_batches(batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Batches `start`, ... of an epoch."""
        for number, rows in enumerate(self.events.orders(batch_size, epoch=epoch, seed=seed, start=start), start=start):
            yield self.batch(rows, np.random.default_rng([seed, epoch, number]))

    def batch(self, rows: NDArray[np.int64], rng: np.random.Generator) -> SequenceBatch:
        """The requests of these targets; the target stands first among its candidates."""
        batch = self.events.batch(rows)
        assert batch.targets is not None
        targets = batch.targets.values.numpy()
        drawn = np.searchsorted(self.cumulative, rng.random((len(rows), self.num_negatives)), side="right")
        items = np.concatenate([targets[:, None], np.minimum(drawn, len(self.cumulative) - 1)], axis=1)
        candidates = torch.from_numpy(items.astype(np.int64))
        labels = (candidates == candidates[:, :1]).float()
        labelled = with_candidates(batch, candidates, {TARGET: labels})
        if batch.request_times is not None:
            return labelled
        return replace(labelled, candidate_features={OWN_EVENTS: labelled.candidate_labels[TARGET]})


def with_candidates(batch: SequenceBatch, items: torch.Tensor, labels: dict[str, torch.Tensor]) -> SequenceBatch:
    """The requests with the same number of candidates each, `items [B, K]`, and labels [B, K]."""
    offsets = torch.arange(items.shape[0] + 1) * items.shape[1]
    return replace(
        batch,
        candidates=Jagged(items.flatten(), offsets),
        candidate_labels={name: Jagged(values.flatten(), offsets) for name, values in labels.items()},
    )


def shown_requests(train: Dataset, *, delay_hours: float = 0.0) -> SequenceBatch:
    """What training saw shown, as requests, each with the history before it.

    Labels come late: what was shown later than `delay_hours` before the end of the log is left out, since a missing
    click may still come. So are requests of which no label is known. UserError if there are no impressions, or
    nothing is left.
    """
    shown = train.impressions
    if shown is None or shown.timestamps is None or not len(shown.request_ids):
        raise UserError(f"{train.name}: there are no impressions to learn from before the first request that is asked")
    if not shown.labels:
        raise UserError(f"{train.name}: name the label columns: [impressions] labels = [...] in dataset.toml")
    times = np.full(int(shown.request_ids.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(times, shown.request_ids, shown.timestamps)
    asked = np.zeros(len(times), dtype=np.bool_)
    asked[shown.request_ids] = True
    delay_ms = delay_hours * HOUR_MS
    # `last_time`: if one page is dated years ahead, the labels of today's pages are no riper for that.
    ripe = asked & (times <= last_time(shown.timestamps) - delay_ms) if delay_ms else asked
    if not ripe.any():
        raise UserError(f"{train.name}: delay_hours = {delay_hours} leaves no impressions to learn from; lower it")
    requests = impression_requests(train, times, ripe)
    has_label = torch.zeros(requests.num_requests, dtype=torch.bool)
    for labels in requests.candidate_labels.values():
        has_label[labels.row_ids()[~labels.values.isnan()]] = True
    if not bool(has_label.any()):
        raise UserError(f"{train.name}: no label of the impressions to learn from is known; fill labels in")
    return requests if bool(has_label.all()) else requests.select(has_label.nonzero()[:, 0])


def require_both_labels(requests: SequenceBatch, label: str) -> None:
    """Raise UserError if all candidates have the label, or none has: then there is nothing to tell apart."""
    values = requests.candidate_labels[label].values
    values = values[~values.isnan()]
    count = int((values > 0).sum())
    if not len(values):
        raise UserError(f"label {label!r} is not known of any impression to learn from; fill it in or learn others")
    if not 0 < count < len(values):
        raise UserError(
            f"{'none' if not count else 'each'} of the {len(values)} candidates to learn from has the label {label!r}, "
            "so nothing can be learnt from it; leave it out of model.tasks and [impressions] labels, or learn from "
            'events with model.learn_from = "events"'
        )


def examination(requests: SequenceBatch, label: str) -> torch.Tensor:
    """How likely a slot is looked at, [slots + 1], slot 1 being 1: its share of the label over that of slot 1.

    Right where slots are filled at random; where better items stand higher it is too steep, and a model that weighs by
    its inverse (position-based model, Joachims et al. 2017) corrects too much. Slot 0 stands for "unknown" and has 1.
    """
    labels = requests.candidate_labels[label].values
    has_label = ~labels.isnan()
    slots = requests.candidate_features["slot"].values.long()
    count = max(1, int(slots.max())) + 1
    shown = torch.bincount(slots[has_label], minlength=count)
    clicks = torch.bincount(slots[has_label], weights=(labels[has_label] > 0).double(), minlength=count)
    rate = clicks / shown.clamp(min=1)
    seen = torch.where(shown > 0, rate / rate[1].clamp(min=1e-9), torch.ones_like(rate)).clamp(0.01, 1)
    seen[0] = 1
    return seen.float()
