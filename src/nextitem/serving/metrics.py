"""Metrics of a server, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nextitem.serving.drift import DESCRIPTIONS

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.5, 1.0, 2.0, 5.0)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "nextitem_requests_total", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "nextitem_request_seconds", "Time of a request.", ["path"], buckets=SECONDS, registry=registry
        )
        self.fallbacks = Counter(
            "nextitem_fallbacks_total", "Lists that a model did not make.", ["model", "reason"], registry=registry
        )
        self.events = Counter("nextitem_events_total", "Events that were stored.", registry=registry)
        self.waiting = Gauge(
            "nextitem_waiting_requests", "Requests that wait for a model.", ["model"], registry=registry
        )
        self.expected = Gauge(
            "nextitem_expected_seconds",
            "Seconds after which a request that comes now can expect its answer.",
            ["model"],
            registry=registry,
        )
        self.swaps = Counter(
            "nextitem_version_swaps_total", "Versions that were taken into use.", ["model"], registry=registry
        )
        self.refusals = Counter(
            "nextitem_version_refusals_total", "Versions that were refused.", ["model"], registry=registry
        )
        self.is_refused = Gauge(
            "nextitem_version_is_refused",
            "1 if the version that should be used was refused, and another one serves.",
            ["model"],
            registry=registry,
        )
        self.shadow_overlap = Histogram(
            "nextitem_shadow_overlap",
            "Share of the items of a list that a shadow model has in its list, too.",
            ["model", "shadow"],
            buckets=SHARES,
            registry=registry,
        )
        self.shadow_seconds = Histogram(
            "nextitem_shadow_seconds", "Time of an answer of a shadow.", ["shadow"], buckets=SECONDS, registry=registry
        )
        self.shadow_dropped = Counter(
            "nextitem_shadow_dropped_total", "Requests that a shadow did not answer.", ["shadow"], registry=registry
        )
        self.cache = Gauge(
            "nextitem_state_cache",
            "States of the histories of recent users: hits, misses, evictions of this version, and bytes.",
            ["model", "figure"],
            registry=registry,
        )
        self._figures = {
            name: Gauge(f"nextitem_{name}", description, ["model"], registry=registry)
            for name, description in DESCRIPTIONS.items()
        }
        self._children: dict[tuple[str, int], tuple[Any, Any]] = {}

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Count and time a request."""
        children = self._children.get((path, status))
        if children is None:  # looking labels up takes longer than counting
            children = (self.requests.labels(path, str(status)), self.seconds.labels(path))
            self._children[path, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def set_figures(self, model: str, figures: Mapping[str, float], cache: Mapping[str, float]) -> None:
        """Set the figures of drift and updates of a model, as far as there are any, and those of its state cache."""
        for name, gauge in self._figures.items():
            if name in figures:
                gauge.labels(model).set(figures[name])
            else:  # such as those of a new version, whose window is empty
                gauge.remove_by_labels({"model": model})
        for name, value in cache.items():
            self.cache.labels(model, name).set(value)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self.registry)
