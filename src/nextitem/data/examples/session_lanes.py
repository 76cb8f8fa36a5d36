"""Session-parallel batches: sessions advance in parallel lanes, one event per step (arXiv 1511.06939, section 3.2)."""

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
    """One step of all lanes that still have a session: B of the `num_lanes` lanes.

    Attributes:
        items: [B] int64: the item of the event that is read.
        targets: [B] int64: the item of the event after it; 0 if that event may not be a target.
        lanes: [B] int64, ascending: the lane of each row, 0..num_lanes - 1.
        begins: [B] bool: a session begins here, so the state of the lane's former session must be reset.
        num_lanes: number of lanes of a full batch.
        seed: seed of the random samples of this batch (negatives).

    """

    items: Tensor
    targets: Tensor
    lanes: Tensor
    begins: Tensor
    num_lanes: int
    seed: int

    def to(self, device: torch.device | str) -> LaneBatch:
        """Return the same batch on another device."""
        items, targets, lanes, begins = (
            part.to(device) for part in (self.items, self.targets, self.lanes, self.begins)
        )
        return LaneBatch(items, targets, lanes, begins, self.num_lanes, self.seed)

    def share(self, rank: int, count: int) -> LaneBatch:
        """Return this process's part of the batch: the lanes whose number modulo `count` is `rank`.

        A lane always belongs to the same process, which stores its state.
        """
        rows = self.lanes % count == rank
        return replace(
            self, items=self.items[rows], targets=self.targets[rows], lanes=self.lanes[rows], begins=self.begins[rows]
        )

    @property
    def loss_count(self) -> int:
        """Return the number of lanes of a full batch, by which the loss of a part of a batch is divided too."""
        return self.num_lanes


class SessionLanes:
    """Stream of all sessions of a log (histories of users, if the log has users), in the order of their start.

    Sessions are never shuffled. A lane whose session has ended starts the next one at the following step, independently
    of other lanes. If no session remains, the batch shrinks. So an epoch reads every event that has a successor exactly
    once. `batch_size` is the number of lanes. Sessions of one event are left out.
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
        """Return the number of steps in one epoch."""
        return len(self._plan(batch_size)[2]) - 1

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[LaneBatch]:
        """Yield the steps `start`, `start + 1`, ... of an epoch; epochs differ in the seeds, not in the events."""
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
        """Return lane and row in the log of every event that is read, in the order of step and lane, and step offsets.

        Events of step s are those from offsets[s] to offsets[s + 1] - 1.
        """
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
    """Return the lane of each session, and the step at which it begins: in the first free lane, the lowest of those.

    `steps` are the number of steps of each session.
    """
    lanes, begins = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.int64)
    free_lanes = [(0, lane) for lane in range(num_lanes)]  # heap of (step from which the lane is free, lane)
    for session, count in enumerate(steps.tolist()):
        begin, lane = free_lanes[0]
        lanes[session], begins[session] = lane, begin
        heapreplace(free_lanes, (begin + count, lane))
    return lanes, begins
