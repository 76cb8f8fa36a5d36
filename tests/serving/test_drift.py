"""Figures of drift have known answers, and the alerts of the documentation name metrics that exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.trained_models import rich_run

from nextitem.core.recommender import Recommender
from nextitem.serving import drift
from nextitem.serving.drift import DESCRIPTIONS, DriftMonitor, ModelGauges, stability_index

PAGE = Path(__file__).parents[2] / "docs" / "serving" / "monitoring.md"


@pytest.fixture
def model() -> Recommender:
    return rich_run("item-cf").model


def test_the_stability_index_is_that_of_the_definition() -> None:
    reference = np.arange(1000.0)
    assert stability_index(reference, reference) == 0
    # All values in the last of ten bins: p = (0.5, ..., 1000.5) / 1005, q = 100.5 / 1005 = 0.1.
    p = np.array([0.5] * 9 + [1000.5]) / 1005
    expected = float(((p - 0.1) * np.log(p / 0.1)).sum())
    assert stability_index(reference, np.full(1000, 5000.0)) == pytest.approx(expected)
    assert expected > 0.25
    # A third more in one half than in the other, a small shift: (2/3 - 1/2) ln(4/3) + (1/3 - 1/2) ln(2/3).
    halves = np.concatenate([np.arange(500.0).repeat(2), np.arange(500.0, 1000.0)])
    assert stability_index(reference, halves) == pytest.approx(np.log(2) / 6, rel=0.01)
    assert np.isfinite(stability_index(np.ones(5), np.zeros(3)))  # one bin


def test_figures_of_lists_have_known_answers(model: Recommender) -> None:
    ids = model.catalog.ids.external.to_list()
    popularity = model.popularity[1:].numpy()
    top = int(popularity.argmax())
    other = int(popularity.argmin())
    monitor = DriftMonitor(model, window=4, min_lists=3)
    monitor.add_list([ids[0]], [1.0], is_fallback=True)  # leaves the window
    for _ in range(2):
        monitor.add_list([ids[top], ids[other]], [2.0, 1.0], is_fallback=False)
    assert monitor.figures()["fallback_share"] == pytest.approx(1 / 3)
    monitor.add_list([ids[top], ids[other]], [2.0, 1.0], is_fallback=True)
    monitor.add_list([ids[top], "nowhere"], [2.0, 1.0], is_fallback=False)
    figures = monitor.figures()
    assert figures["fallback_share"] == 0.25
    assert figures["top_item_share"] == pytest.approx(4 / 7)
    assert figures["coverage"] == 2 / len(ids)
    expected = (4 * np.log1p(popularity[top]) + 3 * np.log1p(popularity[other])) / 7
    assert figures["mean_log_popularity"] == pytest.approx(expected)
    assert figures["score_psi"] == 0  # these lists are the reference


def test_scores_are_compared_with_the_first_lists_or_given_ones(model: Recommender) -> None:
    item = [model.catalog.ids.external[0]]
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(model, window=500)
    for shift, low, high in ((0.0, 0.0, 0.05), (3.0, 1.0, np.inf)):
        for score in rng.normal(shift, 1, 500):
            monitor.add_list(item, [float(score)], is_fallback=False)
        assert low <= monitor.figures()["score_psi"] <= high
    compared = DriftMonitor(model, window=500, reference_scores=rng.normal(3, 1, 2000))
    for score in rng.normal(3, 1, 500):
        compared.add_list(item, [float(score)], is_fallback=False)
        compared.add_list(item, [99.0], is_fallback=True)  # of another scale
    assert compared.figures()["score_psi"] < 0.1


def test_unknown_items_are_counted_in_events(model: Recommender) -> None:
    item = str(model.catalog.ids.external[0])
    monitor = DriftMonitor(model, window=200)
    monitor.add_events([item] * 99)
    assert monitor.figures() == {}  # too few
    monitor.add_events(["nowhere"] * 33)
    assert monitor.figures() == {"unknown_item_share": 0.25}
    monitor.add_events([item] * 200)
    assert monitor.figures() == {"unknown_item_share": 0.0}


def test_figures_become_gauges_of_their_model() -> None:
    registry = CollectorRegistry()
    figures = {"a": {"coverage": 0.25, "update_failures": 2.0}, "b": {"coverage": 0.5}}
    registry.register(ModelGauges(lambda: figures))
    lines = generate_latest(registry).decode().splitlines()
    assert 'nextitem_coverage{model="a"} 0.25' in lines
    assert 'nextitem_coverage{model="b"} 0.5' in lines
    assert 'nextitem_update_failures{model="a"} 2.0' in lines
    assert not any("score_psi" in line for line in lines)


def test_the_page_describes_each_figure_and_its_alerts_name_metrics_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in DESCRIPTIONS:
        assert f"`nextitem_{name}`" in text, name
    rules = "\n".join(re.findall(r"```yaml\n(.*?)```", text, re.S))
    files = Path(drift.__file__).parent.glob("*.py")
    served = {name for file in files for name in re.findall(r'"(nextitem_[a-z_]+)"', file.read_text(encoding="utf-8"))}
    served |= {f"nextitem_{name}" for name in DESCRIPTIONS}
    served |= {f"{name}_{ending}" for name in tuple(served) for ending in ("bucket", "count", "sum")}
    used = set(re.findall(r"nextitem_[a-z_]+", rules))
    assert used
    assert used <= served
