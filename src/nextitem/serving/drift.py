"""Drift of what a model recommends and of what it is told, over a sliding window of its latest lists and events.

Lists drift if the data do, if a model ages, or if something upstream breaks. These figures need no labels:

* score_psi: population stability index of the scores against a reference, sum over bins of (p - q) ln(p / q). The bins
  are tenths of the reference. By convention 0.1 is a small shift, 0.25 a large one.
* mean_log_popularity: mean of ln(1 + training events) of the items of lists.
* top_item_share: share of recommended items that are among the most popular hundredth of the catalogue.
* coverage: share of the catalogue that occurs in the lists of the window.
* fallback_share: share of lists that the model did not make.
* unknown_item_share: share of events whose item the model does not know.

A request costs one append. The figures are computed when somebody asks for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nextitem.core.recommender import Recommender

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

WINDOW = 10_000  # latest lists, and latest events
MIN_LISTS = 200  # in the window, before there are figures of lists
MIN_EVENTS = 100  # in the window, before there is a share of unknown items
SCORES_READ = 10  # first scores of a list, so that long lists do not look like other models
NUM_BINS = 10
TOP_SHARE = 0.01
DESCRIPTIONS = {
    "score_psi": "Population stability index of the scores of lists against the first lists of this version.",
    "mean_log_popularity": "Mean of ln(1 + training events) of recommended items.",
    "top_item_share": "Share of recommended items among the most popular hundredth of the catalogue.",
    "coverage": "Share of the catalogue in the latest lists.",
    "fallback_share": "Share of the latest lists that the model did not make.",
    "unknown_item_share": "Share of the latest events whose item the model does not know.",
    "update_time_seconds": "End of the last update, seconds since 1970.",
    "update_seconds": "Duration of the last update, seconds.",
    "update_promoted": "Whether the version of the last update is in use, 1 or 0.",
    "update_gain": "Judged figure of the version of the last update, minus that of the version before.",
    "update_failures": "Updates in a row that ended with an error.",
}


class DriftMonitor:
    """The figures of one version of a model. All methods may be called from several threads."""

    def __init__(
        self,
        model: Recommender,
        *,
        window: int = WINDOW,
        min_lists: int = MIN_LISTS,
        reference_scores: NDArray[np.float64] | None = None,
    ) -> None:
        """Begin an empty window.

        Args:
            model: the model, which is asked for the numbers and the popularity of items.
            window: number of latest lists and of latest events.
            min_lists: number of lists in the window before there are figures of lists.
            reference_scores: scores that later ones are compared with; None: those of the first `window` lists.

        """
        self._ids = model.catalog.ids
        popularity = model.popularity.cpu().double().numpy()
        self._log_popularity = np.log1p(popularity)
        num_top = max(1, round(TOP_SHARE * model.num_items))
        top = np.argsort(-popularity[1:], kind="stable")[:num_top] + 1
        self._is_top = np.zeros(len(popularity), dtype=np.bool_)
        self._is_top[top] = True
        self._window, self._min_lists = window, min_lists
        self._lists: deque[tuple[Sequence[object], Sequence[float], bool]] = deque(maxlen=window)
        self._events: deque[bool] = deque(maxlen=window)
        self._reference = reference_scores
        self._first_scores: list[Sequence[float]] = []
        self._lock = threading.Lock()

    def add_list(self, item_ids: Sequence[object], scores: Sequence[float], *, is_fallback: bool) -> None:
        """Count a list that was recommended."""
        first = scores[:SCORES_READ]
        with self._lock:
            self._lists.append((item_ids, first, is_fallback))
            if self._reference is None and not is_fallback:
                self._first_scores.append(first)
                if len(self._first_scores) == self._window:
                    self._reference, self._first_scores = _flat(self._first_scores), []

    def add_events(self, item_ids: Sequence[str]) -> None:
        """Count events that were received."""
        is_unknown = self._ids.lookup(item_ids) == 0
        with self._lock:
            self._events.extend(is_unknown.tolist())

    def figures(self) -> dict[str, float]:
        """Return the figures of the window by name, those for which there are enough lists or events."""
        with self._lock:
            lists, events, reference = list(self._lists), list(self._events), self._reference
            first = list(self._first_scores)
        figures: dict[str, float] = {}
        if len(events) >= MIN_EVENTS:
            figures["unknown_item_share"] = float(np.mean(events))
        if len(lists) < self._min_lists:
            return figures
        figures["fallback_share"] = float(np.mean([is_fallback for _, _, is_fallback in lists]))
        items = self._ids.lookup([str(item) for item_ids, _, _ in lists for item in item_ids])
        items = items[items > 0]
        if len(items):
            figures["mean_log_popularity"] = float(self._log_popularity[items].mean())
            figures["top_item_share"] = float(self._is_top[items].mean())
        figures["coverage"] = len(np.unique(items)) / len(self._ids)
        scores = _flat([part for _, part, is_fallback in lists if not is_fallback])
        reference = _flat(first) if reference is None else reference
        if len(scores) and len(reference):
            figures["score_psi"] = stability_index(reference, scores)
        return figures


def stability_index(reference: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return the population stability index of `values` against `reference`; 0 if their shares of the bins are equal.

    The bins are bounded by the tenths of the reference; equal bounds make one. Half a value is added to each bin, so
    that an empty one is no infinity.
    """
    bounds = np.unique(np.quantile(reference, np.arange(1, NUM_BINS) / NUM_BINS))
    counts = [
        np.bincount(np.searchsorted(bounds, part, side="right"), minlength=len(bounds) + 1) + 0.5
        for part in (reference, values)
    ]
    q, p = (count / count.sum() for count in counts)
    return float(((p - q) * np.log(p / q)).sum())


class ModelGauges:
    """Collector of prometheus_client: figures of models as gauges nextitem_NAME with the label `model`."""

    def __init__(self, figures: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """Collect what `figures` returns: figures by name, by the name of the model."""
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges that there are figures for."""
        from prometheus_client.core import GaugeMetricFamily

        figures = self._figures()
        for name, description in DESCRIPTIONS.items():
            gauge = GaugeMetricFamily(f"nextitem_{name}", description, labels=["model"])
            for model, values in figures.items():
                if name in values:
                    gauge.add_metric([model], values[name])
            if gauge.samples:
                yield gauge


def _flat(parts: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return the finite scores of all parts."""
    flat = np.array([score for part in parts for score in part], dtype=np.float64)
    return flat[np.isfinite(flat)]
