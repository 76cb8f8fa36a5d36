"""Session-parallel lanes: sessions run side by side, one event a step (GRU4Rec, arXiv 1511.06939, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import heapreplace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.interactions import Interactions


@dataclass(frozen=True, eq=False)
class LaneBatch:
    """One step of all lanes that still have a session, B of `num_lanes`.

    items      [B] int64: the event that is read
    targets    [B] int64: the event after it; 0 where it may not be a target
    lanes      [B] int64, rising: the lane of each row, 0..num_lanes - 1
    begins     [B] bool: a session begins here, so nothing of the lane's former session may be remembered
    num_lanes  of a full batch
    seed       of what is drawn for this batch (negatives)
    """

    items: Tensor
    targets: Tensor
    lanes: Tensor
    begins: Tensor
    num_lanes: int
    seed: int

    def to(self, device: torch.device | str) -> LaneBatch:
        """The same on another device."""
        items, targets, lanes, begins = (
            part.to(device) for part in (self.items, self.targets, self.lanes, self.begins)
        )
        return LaneBatch(items, targets, lanes, begins, self.num_lanes, self.seed)

    def share(self, rank: int, count: int) -> LaneBatch:
        """The lanes whose number leaves `rank` when divided by `count`: a lane stays where its state is."""
        own = self.lanes % count == rank
        return replace(
            self, items=self.items[own], targets=self.targets[own], lanes=self.lanes[own], begins=self.begins[own]
        )

    @property
    def loss_count(self) -> int:
        """Lanes of a full batch: what the sum over rows is divided by, in a part of a batch too."""
        return self.num_lanes


class SessionLanes:
    """Every session of a log (a user's history where the log has users), in order of their start, never shuffled.

    A lane whose session has ended takes the next one at the following step, whatever the other lanes do; when no
    session is left, the batch shrinks. So an epoch reads every event that has a successor exactly once. `batch_size`
    is the number of lanes. Sessions of one event are left out.
    """

    def __init__(self, log: Interactions) -> None:
        with_item = log.with_items()
        self.items = with_item.item_ids.astype(np.int64)
        self.targets = self.items * with_item.is_target()
        lengths = np.diff(with_item.offsets)
        sessions = np.flatnonzero(lengths >= 2)
        if with_item.timestamps is not None:
            begins = with_item.timestamps[with_item.offsets[sessions]]
            sessions = sessions[np.argsort(begins, kind="stable")]
        self.starts, self.steps = with_item.offsets[sessions], lengths[sessions] - 1
        self._plans: dict[int, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = {}

    def num_batches(self, batch_size: int) -> int:
        """Steps in one epoch."""
        return len(self._plan(batch_size)[2]) - 1

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[LaneBatch]:
        """Steps `start`, ... of an epoch. The events are those of every epoch; what is drawn is not."""
        lanes, places, offsets = self._plan(batch_size)
        first = np.zeros(len(self.items), np.bool_)
        first[self.starts] = True
        items, targets, begins = (torch.from_numpy(part) for part in (self.items, self.targets, first))
        lane_of, place_of = torch.from_numpy(lanes), torch.from_numpy(places)
        rng = np.random.default_rng([seed, epoch])
        seeds = rng.integers(0, 2**63, len(offsets) - 1).tolist()
        bounds = offsets.tolist()
        for step in range(start, len(bounds) - 1):
            here = place_of[bounds[step] : bounds[step + 1]]
            yield LaneBatch(
                items[here],
                targets[here + 1],
                lane_of[bounds[step] : bounds[step + 1]],
                begins[here],
                batch_size,
                seeds[step],
            )

    def _plan(self, num_lanes: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Lane and place in the log of every event that is read, by step and lane, and each step's offsets."""
        if num_lanes not in self._plans:
            lane, begin = _schedule(self.steps, num_lanes)
            within = np.arange(int(self.steps.sum())) - np.repeat(np.cumsum(self.steps) - self.steps, self.steps)
            lanes = np.repeat(lane, self.steps)
            step = np.repeat(begin, self.steps) + within
            order = np.lexsort((lanes, step))
            places = np.repeat(self.starts, self.steps) + within
            offsets = np.searchsorted(step[order], np.arange(int(step.max(initial=-1)) + 2))
            self._plans[num_lanes] = (lanes[order], places[order], offsets)
        return self._plans[num_lanes]


def _schedule(steps: NDArray[np.int64], num_lanes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lane of each session, and the step at which it begins: the lane that is free first, the lowest of those."""
    lanes, begins = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.int64)
    free = [(0, lane) for lane in range(num_lanes)]  # a heap: the step from which a lane is free
    for session, count in enumerate(steps.tolist()):
        begin, lane = free[0]
        lanes[session], begins[session] = lane, begin
        heapreplace(free, (begin + count, lane))
    return lanes, begins
