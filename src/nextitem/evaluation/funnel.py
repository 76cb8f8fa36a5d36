"""Funnel of a staged model: how many candidates and targets each stage keeps or drops."""

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
    """Figures of one stage, over the evaluated requests.

    Attributes:
        name: name of the stage.
        candidates: number of items after the stage, mean over requests.
        recall: share of all targets that are among these items.
        retention: share of the targets that reach the stage which are among these items ("kept" in JSON). All targets
            count as reaching the first stage.
        ndcg: NDCG@10 of the stage's order.
        p50_ms: median milliseconds that the stage takes for one request alone.

    """

    name: str
    candidates: float
    recall: float
    retention: float
    ndcg: float
    p50_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures of the stage as JSON values, in the public format."""
        return {
            "name": self.name,
            "candidates": self.candidates,
            "recall": self.recall,
            "kept": self.retention,
            "ndcg": self.ndcg,
            "p50_ms": self.p50_ms,
        }


def funnel(
    model: Staged, requests: SequenceBatch, *, k: int = 20, batch_size: int = 256, num_timed: int = 50
) -> list[FunnelStage]:
    """Return the figures of every stage of a model.

    Args:
        model: the staged model.
        requests: requests with targets.
        k: length of the final list.
        batch_size: number of requests that are answered together.
        num_timed: number of requests that are answered alone, to measure times.

    Returns:
        The stages in their order.

    """
    assert requests.targets is not None, "requests must have targets"
    names: list[str] = []
    sums: dict[str, torch.Tensor] = {}
    num_targets = 0
    for batch in requests.split(batch_size):
        assert batch.targets is not None
        num_targets += len(batch.targets.values)
        names = []
        for name, answer in _stages(model, batch, k):
            names.append(name)
            width = max(1, answer.item_ids.shape[1])
            num_hits = accuracy.recall(answer.item_ids, batch.targets, width).nan_to_num() * batch.targets.lengths
            ndcg = accuracy.ndcg(answer.item_ids, batch.targets, 10)
            figures = torch.stack(
                [(answer.item_ids > 0).sum().double(), num_hits.sum().double(), ndcg.nansum().double()]
            )
            sums[name] = sums.get(name, torch.zeros(3, dtype=torch.float64)) + figures
    times = _times(model, requests, k, num_timed)
    result: list[FunnelStage] = []
    num_received = float(num_targets)
    for name in names:
        num_candidates, num_hits_of_stage, ndcg_sum = sums[name].tolist()
        result.append(
            FunnelStage(
                name,
                candidates=num_candidates / requests.num_requests,
                recall=num_hits_of_stage / max(1, num_targets),
                retention=num_hits_of_stage / num_received if num_received else float("nan"),
                ndcg=ndcg_sum / requests.num_requests,
                p50_ms=times[name],
            )
        )
        num_received = num_hits_of_stage
    return result


@torch.inference_mode()
def _stages(model: Staged, batch: SequenceBatch, k: int) -> list[tuple[str, Recommendations]]:
    """Return the answer of every stage to a batch."""
    return list(model.stages(batch, k))


@torch.inference_mode()
def _times(model: Staged, requests: SequenceBatch, k: int, num_timed: int) -> dict[str, float]:
    """Return the median milliseconds of each stage for a request alone, after three warm-up requests."""
    milliseconds: dict[str, list[float]] = {}
    for request in islice(cycle(requests.sample(num_timed + 3).split(1)), num_timed + 3):
        start_time = time.perf_counter()
        for name, _ in model.stages(request, k):
            now = time.perf_counter()
            milliseconds.setdefault(name, []).append(1000 * (now - start_time))
            start_time = now
    return {name: float(torch.tensor(values[3:]).median()) for name, values in milliseconds.items()}
