"""Tests of items without a training event: ranked by their content, or below all other items."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from support.trained_models import few_epochs, requests

from nextitem.cascade.cascade import Cascade, CascadeConfig
from nextitem.core.config import parse
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import partly_unseen

RUNS = TemporaryDirectory()  # removed when the tests end
UNSEEN = [7, 14, 21, 28, 35]
HISTORIES = [[1], [8, 9, 10], [22, 23], [29, 15, 34, 30], [4, 4, 4, 5]]
NUM_ITEMS = 35
BY_CONTENT = ["content-neighbours", "new-items", "item-graph", "tiger", "cobra"]


def trained(name: str, with_column: bool = False) -> Recommender:
    """Return a model trained by its debug recipe; models that cannot rank unseen items train for one epoch only."""
    return _trained(name, with_column)  # the cache distinguishes a default from the same value passed


@cache
def _trained(name: str, with_column: bool) -> Recommender:
    dataset = partly_unseen(with_column=with_column)
    short = [] if name in BY_CONTENT or with_column else few_epochs(name, 1)
    out = Path(RUNS.name) / f"{name}-{with_column}"
    run = train(
        name, dataset, out=out, recipe=f"debug/{name}", protocol="leave-one-out", progress=False, overrides=short
    )
    return run.model


@pytest.mark.parametrize("name", MODELS)
def test_every_model_declares_whether_it_can_rank_unseen_items(name: str) -> None:
    base_classes = [base for base in MODELS[name].load().__mro__ if base is not Recommender]
    assert any("can_rank_unseen_items" in vars(base) for base in base_classes)
    assert trained(name).can_rank_unseen_items == (name in BY_CONTENT)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in BY_CONTENT])
def test_a_model_that_cannot_rank_unseen_items_lists_them_last(name: str) -> None:
    model = trained(name)
    answer = model.recommend(requests(HISTORIES), NUM_ITEMS + 2)
    for row in answer.item_ids.tolist():
        assert row[-7:] == [*UNSEEN, 0, 0]
        assert sorted(row[:-7]) == [item for item in range(1, NUM_ITEMS + 1) if item not in UNSEEN]
    scores = answer.scores[:, :NUM_ITEMS]
    assert bool(scores.isfinite().all())
    assert bool((scores[:, -5:] < scores[:, -6:-5]).all())


@pytest.mark.parametrize("name", [name for name in MODELS if name not in BY_CONTENT])
def test_unseen_items_fill_lists_that_would_be_too_short(name: str) -> None:
    model = trained(name)
    allowed = torch.isin(torch.arange(NUM_ITEMS + 1), torch.tensor([5, 14, 16, 21, 35]))[None]
    answer = model.recommend(requests([[1], [8, 9]], allowed=allowed, excluded=Jagged.from_rows([[16, 21], []])), 4)
    assert answer.item_ids[0].tolist() == [5, 14, 35, 0]
    assert sorted(answer.item_ids[1, :2].tolist()) == [5, 16]
    assert answer.item_ids[1, 2:].tolist() == [14, 21]


@pytest.mark.parametrize(
    ("name", "with_column"),
    [*((name, False) for name in BY_CONTENT), ("lr", True), ("din", True), ("gbdt", True), ("two-tower", True)],
)
def test_a_model_that_can_rank_unseen_items_ranks_them_by_content(name: str, with_column: bool) -> None:
    """The first unseen item is that of the history's cluster."""
    model = trained(name, with_column)
    assert model.can_rank_unseen_items
    unseen = torch.isin(torch.arange(NUM_ITEMS + 1), torch.tensor(UNSEEN))[None]
    histories = [[7 * cluster + 1, 7 * cluster + 3] for cluster in range(5)]
    answer = model.recommend(requests(histories, allowed=unseen), 5)
    is_right = [row[0] == UNSEEN[cluster] for cluster, row in enumerate(answer.item_ids.tolist())]
    assert sum(is_right) >= 4


def test_re_rankers_of_a_cascade_apply_to_unseen_items_too() -> None:
    """Unseen items fill a list before its re-rankers read it, so that no rule is bypassed."""
    catalog = partly_unseen(with_column=True).catalog
    channels = {"popularity": {"quota": 6, "model": {"name": "popularity"}}}
    rule = {"kind": "drop", "column": "kind", "values": ["violin bow string"]}
    config = parse(CascadeConfig, {"channels": channels, "reranking": [{"name": "rules", "rules": [rule]}]}, where="t")
    model = Cascade(config, catalog).eval()
    model.set_popularity((~torch.isin(torch.arange(NUM_ITEMS + 1), torch.tensor([0, *UNSEEN]))).float())
    allowed = torch.isin(torch.arange(NUM_ITEMS + 1), torch.tensor([1, 7, 15, 21, 28]))[None]
    assert not model.can_rank_unseen_items
    answer = model.recommend(requests([[2]], allowed=allowed), 5)
    assert answer.item_ids.tolist() == [[1, 7, 28, 0, 0]]  # 15 and 21 are violins
    assert answer.channel is not None
    assert [answer.channels[channel_number] for channel_number in answer.channel[0, :3].tolist()] == [
        "popularity",
        "popular",
        "popular",
    ]
