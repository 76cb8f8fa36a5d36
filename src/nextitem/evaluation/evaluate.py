"""Evaluation of recommended lists: figures of one model on one set of requests, over the full catalogue."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle, islice, zip_longest
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.data.text import ContentConfig, content_vectors
from nextitem.distributed import processes
from nextitem.evaluation.intervals import interval
from nextitem.evaluation.metrics import accuracy, beyond_accuracy
from nextitem.evaluation.slices import slice_masks

ACCURACY = {
    "recall": accuracy.recall,
    "ndcg": accuracy.ndcg,
    "mrr": accuracy.mrr,
    "hit_rate": accuracy.hit_rate,
    "map": accuracy.average_precision,
    "precision": accuracy.precision,
}

NOTABLE_TIES = 0.01  # share of lists that are cut inside a tie, from which on a note is written
MAX_BATCH_SIZE = 512  # requests that are answered together
MIN_BATCH_SIZE = 16
SHOWN_METRICS = ("recall@10", "ndcg@10", "mrr@10", "coverage@10", "auc", "gauc", "log_loss")  # by repr
SCORES_AT_ONCE = 2**25  # number of scores of a batch, one for each request and item: 128 MiB
DIVERSITY_WIDTH = 32  # width of the content vectors that diversity is measured by


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures of one model on one set of requests.

    Attributes:
        model: name of the model.
        protocol: name of the protocol.
        refit: whether the model was trained on validation events, too.
        requests: number of requests that were judged.
        users: number of users who made them; None if users are anonymous.
        metrics: name@k -> mean over the requests on which the metric is defined.
        intervals: name@k -> 95% bootstrap interval of that mean; only for metrics that are means over requests.
        slices: slice -> {"requests": number of requests, metric -> mean}.
        values: name@k -> one value per request, [requests] float64 (NaN: not defined), for paired comparisons; of a
            ranker, gauc -> one value per group.
        lists: the recommended item ids, [requests, K] int64.
        generation: generation quality (evaluation.generation), if it was measured.
        funnel: figures of each stage of a staged model (evaluation.funnel), as JSON values.
        parts: figures of each part of a blend alone (`part_figures`), as JSON values.
        guide: model, weight and combination of the guide that steers a generator, as JSON values; None without one.
        calibration: label -> bins of equal size of a ranker's probabilities, lowest first, each with "predicted" (mean
            probability), "observed" (share of positives) and "count"; empty if the scores are no probabilities.

    """

    model: str
    protocol: str
    refit: bool
    requests: int
    users: int | None
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    slices: dict[str, dict[str, float]]
    values: dict[str, Tensor] = field(repr=False, default_factory=dict)
    lists: Tensor = field(repr=False, default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    generation: dict[str, Any] | None = None
    funnel: list[dict[str, Any]] | None = None
    parts: list[dict[str, Any]] | None = None
    guide: dict[str, Any] | None = None
    calibration: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return two lines: the model with its test requests, and the main figures."""
        users = "" if self.users is None else f" of {self.users:,} users"
        figures = ", ".join(f"{name} {self.metrics[name]:.4f}" for name in SHOWN_METRICS if name in self.metrics)
        what = f"Evaluation of {self.model or 'a model'}: protocol {self.protocol}, {self.requests:,} requests{users}"
        return f"{what}\n{figures}" if figures else what

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures should know, one sentence for each note."""
        name, share, notes = self.model or "the model", self.metrics.get("ties@10", 0.0), []
        if self.guide is not None:
            notes.append(
                f"{name}: the search is guided by {self.guide['model']}, with weight {self.guide['weight']:.3g}"
            )
        if share >= NOTABLE_TIES:
            notes.append(
                f"{name}: {share:.0%} of the lists of 10 are cut inside a tie; item numbers decide which of the "
                "equally good items they contain, so figures may be off in either direction"
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """Return the public format of `nextitem evaluate --json`."""
        return {
            "model": self.model,
            "protocol": self.protocol,
            "refit": self.refit,
            "users": self.users,
            "requests": self.requests,
            "metrics": {name: _json_number(value) for name, value in self.metrics.items()},
            "intervals": {
                name: [_json_number(low), _json_number(high)] for name, (low, high) in self.intervals.items()
            },
            "slices": {
                name: {key: _json_number(value) for key, value in part.items()} for name, part in self.slices.items()
            },
            **({} if self.generation is None else {"generation": self.generation}),
            **({} if self.funnel is None else {"funnel": self.funnel}),
            **({} if self.parts is None else {"parts": self.parts}),
            **({} if self.guide is None else {"guide": self.guide}),
            **({"calibration": self.calibration} if self.calibration else {}),
        }


def evaluate_lists(
    model: Recommender,
    requests: SequenceBatch,
    *,
    train: Dataset,
    ks: Sequence[int] = (5, 10, 20),
    batch_size: int | None = None,
    set_requests: SequenceBatch | None = None,
    model_name: str = "",
    protocol: str = "",
    refit: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Return the figures of a model on requests, over the full catalogue. Deterministic.

    If some targets are cold and some warm, cold_warm_recall@10 is the harmonic mean of the two slices' figures. ties@k
    (k below the largest) is the share of lists that are cut inside a tie at k. Item numbers decide which of the equally
    good items such a list contains, and item numbers are not random.

    Args:
        model: the model.
        requests: requests with targets, and with exclusions and allow-lists if there are any.
        train: training data, read for the popularity and transitions of beyond-accuracy metrics and slices. Nothing is
            trained on it here.
        ks: cutoffs of the metrics.
        batch_size: number of requests that are answered together. None: chosen by the number of items, see
            `recommend_all`.
        set_requests: the same requests with all later events as targets (`time` protocol). They add set_recall@k,
            set_ndcg@k, ... of the same lists.
        model_name: name of the model in the result.
        protocol: name of the protocol in the result.
        refit: whether the model was trained on validation events, too.
        progress: print a progress bar if stderr is a terminal.

    Returns:
        The figures.

    """
    assert requests.targets is not None, "requests must have targets"
    lists, is_tied = _lists_and_ties(model, requests, max(ks), batch_size=batch_size, progress=progress)
    popularity = torch.from_numpy(train.interactions.item_counts()).double()
    values: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    vectors = item_vectors(train.catalog)
    for k in ks:
        for name, metric in ACCURACY.items():
            values[f"{name}@{k}"] = metric(lists, requests.targets, k)
            if set_requests is not None and set_requests.targets is not None:
                values[f"set_{name}@{k}"] = metric(lists, set_requests.targets, k)
        values[f"serendipity@{k}"] = beyond_accuracy.serendipity(lists, requests.targets, popularity, k)
        values[f"novelty@{k}"] = beyond_accuracy.novelty(lists[:, :k], popularity)
        values[f"popularity_bias@{k}"] = beyond_accuracy.popularity_bias(lists[:, :k], requests.items, popularity)
        if vectors is not None:
            values[f"diversity@{k}"] = beyond_accuracy.diversity(lists[:, :k], vectors)
        if k < max(ks):
            metrics[f"ties@{k}"] = _mean(is_tied[:, k - 1].double())
        metrics[f"coverage@{k}"] = beyond_accuracy.coverage(lists[:, :k], num_items=model.num_items)
        metrics[f"gini@{k}"] = beyond_accuracy.gini(lists[:, :k], num_items=model.num_items)
    metrics |= {name: _mean(value) for name, value in values.items()}
    identifiers = model.identifiers  # those that the model has learned, if it has
    catalog = model.catalog if identifiers is None else model.catalog.with_identifiers(identifiers)
    slices = _slices(slice_masks(requests, train, catalog), values, ks)
    for name in slices.get("cold", {}):
        if name in slices.get("warm", {}) and name != "requests":
            metrics[f"cold_warm_{name}"] = _harmonic(slices["cold"][name], slices["warm"][name])
    return Evaluation(
        model=model_name,
        protocol=protocol,
        refit=refit,
        requests=requests.num_requests,
        users=num_users(requests),
        metrics=dict(sorted(metrics.items())),
        intervals={name: interval(value) for name, value in sorted(values.items())},
        slices=slices,
        values=values,
        lists=lists,
    )


def recommend_all(
    model: Recommender, requests: SequenceBatch, k: int, *, batch_size: int | None = None, progress: bool = False
) -> Tensor:
    """Return the lists of all requests, [B, k] int64.

    Args:
        model: the model.
        requests: B requests.
        k: length of the lists.
        batch_size: number of requests that are answered together. None: the number whose scores of all items amount to
            SCORES_AT_ONCE, within 16 and 512.
        progress: print a progress bar if stderr is a terminal.

    Returns:
        Item ids, best first, 0 is padding.

    """
    return _lists_and_ties(model, requests, k, batch_size=batch_size, progress=progress)[0]


def _lists_and_ties(
    model: Recommender, requests: SequenceBatch, k: int, *, batch_size: int | None, progress: bool
) -> tuple[Tensor, Tensor]:
    """Return all lists, [B, k] int64, and whether an item has the score of the next one, bool [B, k - 1]."""
    if batch_size is None:
        batch_size = min(MAX_BATCH_SIZE, max(MIN_BATCH_SIZE, SCORES_AT_ONCE // (model.num_items + 1)))
    # Each of several processes answers its share of the batches. Then every process gathers all lists.
    rank, num_processes = processes.rank(), processes.world_size()
    starts = range(rank * batch_size, requests.num_requests, num_processes * batch_size)
    num_batches = len(starts)
    batches: Iterable[SequenceBatch] = (
        requests.select(torch.arange(start, min(start + batch_size, requests.num_requests))) for start in starts
    )
    console = Console(stderr=True)
    if progress and console.is_terminal and rank == 0:
        batches = track(batches, "evaluating", total=num_batches, console=console, transient=True)
    device = model.popularity.device
    parts = [_items_and_ties(model.recommend(batch.to(device), k)) for batch in batches]
    answers = torch.cat(parts) if parts else torch.zeros(0, 2 * k - 1, dtype=torch.int64)
    if num_processes > 1:
        batches_of_ranks = [torch.split(part, batch_size) for part in processes.gather(answers)]
        answers = torch.cat([part for turn in zip_longest(*batches_of_ranks) for part in turn if part is not None])
    return answers[:, :k].contiguous(), answers[:, k:] > 0


def _items_and_ties(answer: Recommendations) -> Tensor:
    """Return items and ties side by side, [B, 2 k - 1] int64: k items, and k - 1 times 1 or 0.

    A 1 means that an item has the score of the next one. There are no ties in lists that a re-ranker has ordered.
    """
    items, scores = answer.item_ids, answer.scores
    is_tied = (scores[:, 1:] == scores[:, :-1]) & (items[:, 1:] > 0) & (answer.ordered_by != "reranking")
    return torch.cat([items, is_tied.long()], 1).cpu()


def quick_score(model: Recommender, requests: SequenceBatch, *, metric: str = "ndcg@10") -> float:
    """Return the figure by which the best epoch is selected; `metric` is name@k of an accuracy metric."""
    assert requests.targets is not None, "requests must have targets"
    name, _, k = metric.partition("@")
    lists = recommend_all(model, requests, int(k))
    return _mean(ACCURACY[name](lists, requests.targets, int(k)))


@dataclass(frozen=True)
class Latency:
    """Time of one request alone, in milliseconds.

    Attributes:
        p50_ms: median.
        p99_ms: 99th percentile.
        cpu_ms: processor time, summed over cores; mean. The work of an accelerator is not in it.

    """

    p50_ms: float
    p99_ms: float
    cpu_ms: float


def latency(
    model: Recommender, requests: SequenceBatch, *, k: int = 10, count: int = 100, max_seconds: float = 2.0
) -> Latency:
    """Return the time of one request alone.

    `count` requests are measured, after ten warm-up requests. A slow model is measured by fewer: the last one starts
    before `max_seconds`, but at least half of `count` are measured.
    """
    device = model.popularity.device
    singles = cycle([single.to(device) for single in requests.sample(count + 10).split(1)])
    for single in islice(singles, 10):
        model.recommend(single, k)
    times: list[float] = []
    first_cpu_time, first_time = time.process_time(), time.perf_counter()
    while len(times) < count and (2 * len(times) < count or time.perf_counter() - first_time < max_seconds):
        start_time = time.perf_counter()
        model.recommend(next(singles), k)
        times.append(1000 * (time.perf_counter() - start_time))
    cpu_time = time.process_time() - first_cpu_time
    milliseconds = torch.tensor(times, dtype=torch.float64)
    return Latency(float(milliseconds.median()), float(milliseconds.quantile(0.99)), 1000 * cpu_time / len(times))


@lru_cache(maxsize=1)
def item_vectors(catalog: Catalog) -> Tensor | None:
    """Return the item vectors between which diversity measures distances, [N + 1, D].

    They are TF-IDF vectors of the items' text, else of their features; None if items have neither. They never depend on
    what one model reads: on a scoreboard, diversity has to mean the same for every model.
    """
    try:
        return content_vectors(catalog, ContentConfig(dim=DIVERSITY_WIDTH))
    except UserError:
        return None  # neither text nor features


def _slices(
    masks: Mapping[str, Tensor], values: Mapping[str, Tensor], ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Return the number of requests and the means of recall and NDCG for each slice that is not empty."""
    k = 10 if 10 in ks else ks[0]
    metrics = [name for name in (f"recall@{k}", f"ndcg@{k}") if name in values]
    return {
        name: {"requests": int(mask.sum()), **{metric: _mean(values[metric][mask]) for metric in metrics}}
        for name, mask in masks.items()
        if bool(mask.any())
    }


def num_users(requests: SequenceBatch) -> int | None:
    """Count the users who made the requests, each unknown visitor as one; None if users are anonymous."""
    if requests.user_ids is None:
        return None
    users = requests.user_ids[requests.user_ids > 0]
    return int(torch.unique(users).numel()) + requests.num_requests - len(users)


def _harmonic(left: float, right: float) -> float:
    """Return the harmonic mean, which is high only if both values are."""
    return 0.0 if left + right == 0 else 2 * left * right / (left + right)


def _mean(values: Tensor) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    return float(values.nanmean()) if values.numel() else float("nan")


def _json_number(value: float) -> float | None:
    """Return the value, or None for NaN, which JSON lacks."""
    return None if value != value else value
