"""Batches of requests in which all requests of a user are together, so that a model reads the user's history once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch

MS_PER_DAY = 86_400_000
Order = Literal["shuffled", "time"]


class UserRequests:
    """Stream of precomputed requests with candidates, in batches of whole users with about equal work.

    A user with more work than a batch is cut into several parts of consecutive requests. The work of a request is the
    number of its candidates, plus, for the last one of those that share a history, the length of that history: a batch
    of few long histories costs as much as one of many short ones. The composition and order of batches depend on
    (seed, epoch).
    """

    def __init__(
        self,
        requests: SequenceBatch,
        *,
        order: Order = "shuffled",
        days: float = 1.0,
        lengths: torch.Tensor | None = None,
        period_ms: int | None = None,
    ) -> None:
        """Find the requests of each user.

        Args:
            requests: the requests; those without a user have a part of their own.
            order: order of an epoch: users in random order, or parts by time, so that the model sees each request once
                and after all earlier ones (single-pass streaming).
            days: with order "time", requests of a user that are more than these days apart are in different parts.
            lengths: [B] int64: number of tokens that the model reads of each history; None: its number of events.
            period_ms: requests of a part share a history only within one of these periods; None: all of them.

        """
        assert requests.candidates is not None, "requests must have candidates"
        self.requests, self.order = requests, order
        count = requests.num_requests
        times = np.zeros(count, np.int64) if requests.request_times is None else requests.request_times.numpy()
        users = np.zeros(count, np.int64) if requests.user_ids is None else requests.user_ids.numpy()
        owners = np.where(users == 0, -1 - np.arange(count), users)
        periods = times // int(days * MS_PER_DAY) if order == "time" else np.zeros(count, np.int64)
        self._rows = np.lexsort((np.arange(count), times, periods, owners))
        self._lengths = (requests.items.lengths if lengths is None else lengths).numpy()[self._rows]
        self._candidates = requests.candidates.lengths.numpy()[self._rows]
        keys = np.stack([owners[self._rows], periods[self._rows]])
        self._is_first = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(0)])[:count]
        self._times = times[self._rows]
        numbers = np.zeros(count, np.int64) if period_ms is None else self._times // period_ms
        self._is_period_end = np.append(numbers[1:] != numbers[:-1], True)[:count]

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch: as many as with exactly `batch_size` requests in each."""
        return -(-self.requests.num_requests // batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[SequenceBatch]:
        """Yield the batches `start`, `start + 1`, ... of an epoch."""
        firsts, ends, work = self._parts(batch_size)
        if self.order == "time":
            order = np.argsort(self._times[firsts], kind="stable")
        else:
            order = np.random.default_rng([seed, epoch]).permutation(len(firsts))
        for members in batches_of_work(work[order], self.num_batches(batch_size))[start:]:
            parts = [self._rows[firsts[part] : ends[part]] for part in order[members]]
            yield self.requests.select(torch.from_numpy(np.concatenate(parts)))

    def _parts(self, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the first request, the end, and the work of each part."""
        count, num_batches = len(self._rows), self.num_batches(batch_size)
        first_of_user = np.maximum.accumulate(np.where(self._is_first, np.arange(count), 0))
        is_first = self._is_first | ((np.arange(count) - first_of_user) % batch_size == 0)
        firsts = np.flatnonzero(is_first)
        ends = np.append(firsts[1:], count)
        sums = np.concatenate([[0], np.cumsum(self._candidates)])
        is_read = self._is_period_end.copy()
        is_read[ends - 1] = True
        reads = np.concatenate([[0], np.cumsum(self._lengths * is_read)])
        work = sums[ends] - sums[firsts] + reads[ends] - reads[firsts] + 1
        assert len(firsts) >= num_batches
        return firsts, ends, work


def batches_of_work(work: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Cut consecutive parts into `count` batches of about equal work, none of them empty.

    Args:
        work: positive work of each part [n], n >= count.
        count: number of batches.

    Returns:
        The indices of the parts of each batch.

    """
    middles = np.cumsum(work) - work / 2
    numbers = np.minimum((middles * count / work.sum()).astype(np.int64), count - 1)
    places = np.arange(len(work))
    numbers = np.maximum.accumulate(np.minimum(numbers, places))  # part i is in one of the batches 0 to i
    # Part n - j, counted from the end, is in one of the last j batches; so no batch is skipped at the end.
    numbers = np.maximum(numbers, count - (len(work) - places))
    # A step of more than one batch leaves a batch empty: pull later parts back to fill it.
    numbers = np.minimum(numbers, _without_gaps(numbers, count))
    cuts = np.searchsorted(numbers, np.arange(count + 1))
    return [places[cuts[number] : cuts[number + 1]] for number in range(count)]


def _without_gaps(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the ascending numbers with steps of at most one, moved down as little as possible."""
    places = np.arange(len(numbers))
    # The largest sequence below `numbers` that starts at 0 and rises by at most 1: min over earlier i of n_i + (j - i).
    lowered = np.minimum.accumulate(np.append(0, numbers[1:]) - places) + places
    return np.maximum(lowered, np.maximum(0, count - (len(numbers) - places)))
