"""Labelled candidates: requests with items to rank, and labels such as clicks."""

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

TARGET = "target"  # name of the label of sampled candidates: 1 for the item that came next, 0 for others
HOUR_MS = 3_600_000


class LabelledRequests:
    """Stream of precomputed requests with candidates: impressions, or the output of a cascade's channels.

    A batch contains requests with histories of similar length. The composition and the order of batches depend on
    (seed, epoch) alone.
    """

    def __init__(self, requests: SequenceBatch) -> None:
        self.requests = requests
        self.lengths = requests.items.lengths.numpy()

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return -(-self.requests.num_requests // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        for rows in batches_by_length(self.lengths, batch_size, epoch=epoch, seed=seed, start=start):
            yield self.requests.select(torch.from_numpy(rows))


class SampledCandidates:
    """Stream of requests for every event that may be a target, with sampled negatives as further candidates.

    For logs without impressions. Items that a user was never shown count as negatives. A model that ranks items
    selected for display should learn from impressions instead (sample selection bias). Negatives are sampled from the
    catalogue with probabilities proportional to popularity ** `power`. Examples of an undated log have the feature
    OWN_EVENTS, so that counts of the log can exclude the example itself.
    """

    def __init__(self, train: Dataset, *, num_negatives: int, power: float, max_history_length: int) -> None:
        self.events = EventRequests(train, max_history_length=max_history_length)
        self.num_negatives = num_negatives
        log = train.interactions
        weights = log.item_counts().astype(np.float64) ** power
        weights[0] = 0
        self.cumulative = np.cumsum(weights / weights.sum())

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return self.events.num_batches(batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        for number, rows in enumerate(
            self.events.batch_rows(batch_size, epoch=epoch, seed=seed, start=start), start=start
        ):
            yield self.batch(rows, np.random.default_rng([seed, epoch, number]))

    def batch(self, rows: NDArray[np.int64], rng: np.random.Generator) -> SequenceBatch:
        """Return the requests of the targets with these indices, [B]; the target is the first candidate."""
        batch = self.events.batch(rows)
        assert batch.targets is not None
        targets = batch.targets.values.numpy()
        negatives = np.searchsorted(self.cumulative, rng.random((len(rows), self.num_negatives)), side="right")
        items = np.concatenate([targets[:, None], np.minimum(negatives, len(self.cumulative) - 1)], axis=1)
        candidates = torch.from_numpy(items.astype(np.int64))
        labels = (candidates == candidates[:, :1]).float()
        labelled = with_candidates(batch, candidates, {TARGET: labels})
        if batch.request_times is not None:
            return labelled
        return replace(labelled, candidate_features={OWN_EVENTS: labelled.candidate_labels[TARGET]})


def with_candidates(batch: SequenceBatch, items: torch.Tensor, labels: dict[str, torch.Tensor]) -> SequenceBatch:
    """Return the requests with the candidates `items [B, K]`, the same number for each, and labels [B, K] by name."""
    offsets = torch.arange(items.shape[0] + 1) * items.shape[1]
    return replace(
        batch,
        candidates=Jagged(items.flatten(), offsets),
        candidate_labels={name: Jagged(values.flatten(), offsets) for name, values in labels.items()},
    )


def impression_examples(train: Dataset, *, delay_hours: float = 0.0) -> SequenceBatch:
    """Return the impressions of the training data as requests, each with the history before it.

    Labels arrive late. Impressions later than `delay_hours` before the end of the log are left out, since a missing
    click may still arrive. Requests without any known label are left out too.

    Raises UserError if there are no impressions, or none remain.
    """
    impressions = train.impressions
    if impressions is None or impressions.timestamps is None or not len(impressions.request_ids):
        raise UserError(f"{train.name}: there are no impressions to learn from before the first evaluated request")
    if not impressions.labels:
        raise UserError(f"{train.name}: name the label columns: [impressions] labels = [...] in dataset.toml")
    times = np.full(int(impressions.request_ids.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(times, impressions.request_ids, impressions.timestamps)
    is_requested = np.zeros(len(times), dtype=np.bool_)
    is_requested[impressions.request_ids] = True
    delay_ms = delay_hours * HOUR_MS
    # `last_time` ignores stray dates: one page dated years ahead must not make the labels of today's pages final.
    is_final = is_requested & (times <= last_time(impressions.timestamps) - delay_ms) if delay_ms else is_requested
    if not is_final.any():
        raise UserError(f"{train.name}: delay_hours = {delay_hours} leaves no impressions to learn from; lower it")
    requests = impression_requests(train, times, is_final)
    has_label = torch.zeros(requests.num_requests, dtype=torch.bool)
    for labels in requests.candidate_labels.values():
        has_label[labels.row_ids()[~labels.values.isnan()]] = True
    if not bool(has_label.any()):
        raise UserError(f"{train.name}: no label of the impressions to learn from is known; fill labels in")
    return requests if bool(has_label.all()) else requests.select(has_label.nonzero()[:, 0])


def require_both_labels(requests: SequenceBatch, label: str) -> None:
    """Raise UserError if all candidates have the label or none has: a model cannot learn from a single class."""
    values = requests.candidate_labels[label].values
    values = values[~values.isnan()]
    count = int((values > 0).sum())
    if not len(values):
        raise UserError(f"no impression to learn from has a known label {label!r}; fill it in, or use others")
    if not 0 < count < len(values):
        raise UserError(
            f"{'none' if not count else 'each'} of the {len(values)} candidates to learn from has the label {label!r}, "
            "so a model cannot learn from it; remove it from model.tasks and [impressions] labels, or learn from "
            'events with model.learn_from = "events"'
        )


def examination(requests: SequenceBatch, label: str) -> torch.Tensor:
    """Estimate the probability that a slot is examined relative to slot 1, [slots + 1]: its label rate / slot 1's rate.

    The estimate is right if slots are filled at random. If better items have higher slots it is too steep, and a model
    that weights by its inverse (position-based model, Joachims et al. 2017) corrects too much. Slot 0 is an unknown
    slot, and has the value 1.
    """
    labels = requests.candidate_labels[label].values
    has_label = ~labels.isnan()
    slots = requests.candidate_features["slot"].values.long()
    count = max(1, int(slots.max())) + 1
    num_shown = torch.bincount(slots[has_label], minlength=count)
    clicks = torch.bincount(slots[has_label], weights=(labels[has_label] > 0).double(), minlength=count)
    rate = clicks / num_shown.clamp(min=1)
    probability = torch.where(num_shown > 0, rate / rate[1].clamp(min=1e-9), torch.ones_like(rate)).clamp(0.01, 1)
    probability[0] = 1
    return probability.float()


def without_slots(batch: SequenceBatch) -> SequenceBatch:
    """Return the requests without slots of their candidates, as a slot is unknown at inference."""
    features = {name: column for name, column in batch.candidate_features.items() if name != "slot"}
    return replace(batch, candidate_features=features)
