"""Funnel: what each stage of a staged model keeps, and what it throws away too early."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import Staged
from nextitem.evaluation.metrics import accuracy


@dataclass(frozen=True)
class FunnelStage:
    """One stage, over the requests that were asked.

    candidates  items that are left after it, mean over requests
    recall      share of the targets that are among them
    kept        share of the targets that it received and kept; the first stage receives all
    ndcg        NDCG@10 of its order
    p50_ms      median time that it takes for one request alone
    """

    name: str
    candidates: float
    recall: float
    kept: float
    ndcg: float
    p50_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def funnel(
    model: Staged, requests: SequenceBatch, *, k: int = 20, batch_size: int = 256, timed: int = 50
) -> list[FunnelStage]:
    """Every stage of the model on these requests, which need targets; `timed` of them are asked alone for times."""
    assert requests.targets is not None, "requests must have targets"
    names: list[str] = []
    sums: dict[str, torch.Tensor] = {}
    targets = 0
    for batch in requests.split(batch_size):
        assert batch.targets is not None
        targets += len(batch.targets.values)
        names = []
        for name, left in _stages(model, batch, k):
            names.append(name)
            width = max(1, left.item_ids.shape[1])
            found = accuracy.recall(left.item_ids, batch.targets, width).nan_to_num() * batch.targets.lengths
            ndcg = accuracy.ndcg(left.item_ids, batch.targets, 10)
            figures = torch.stack([(left.item_ids > 0).sum().double(), found.sum().double(), ndcg.nansum().double()])
            sums[name] = sums.get(name, torch.zeros(3, dtype=torch.float64)) + figures
    times = _times(model, requests, k, timed)
    result: list[FunnelStage] = []
    received = float(targets)
    for name in names:
        candidates, found, ndcg = sums[name].tolist()
        result.append(
            FunnelStage(
                name,
                candidates / requests.num_requests,
                found / max(1, targets),
                found / received if received else float("nan"),
                ndcg / requests.num_requests,
                times[name],
            )
        )
        received = found
    return result


@torch.inference_mode()
def _stages(model: Staged, batch: SequenceBatch, k: int) -> list[tuple[str, Recommendations]]:
    return list(model.stages(batch, k))


@torch.inference_mode()
def _times(model: Staged, requests: SequenceBatch, k: int, count: int) -> dict[str, float]:
    """Median milliseconds of each stage for a request alone, after three warm ones."""
    spent: dict[str, list[float]] = {}
    for request in islice(cycle(requests.sample(count + 3).split(1)), count + 3):
        began = time.perf_counter()
        for name, _ in model.stages(request, k):
            now = time.perf_counter()
            spent.setdefault(name, []).append(1000 * (now - began))
            began = now
    return {name: float(torch.tensor(values[3:]).median()) for name, values in spent.items()}
