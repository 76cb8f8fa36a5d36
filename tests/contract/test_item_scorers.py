"""Tests of roles.ItemScorer: the scores of the whole catalogue are those that determine a model's lists."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.trained_models import requests, trained

from nextitem.core.jagged import Jagged
from nextitem.core.registry import MODELS
from nextitem.core.roles import ItemScorer
from nextitem.core.top_items import top_items

HISTORIES = [[1], [4, 5, 6, 7, 8, 9], [2, 3], [12, 1, 2, 2], [7, 7]]
SCORERS = [name for name, entry in MODELS.items() if issubclass(entry.load(), ItemScorer)]


def test_the_models_that_score_all_items_are_known() -> None:
    expected = {"popularity", "geo-popularity", "item-cf", "user-cf", "swing", "item-graph", "content-neighbours"}
    expected |= {"gru4rec", "sasrec", "hstu", "nextitnet", "sr-gnn", "matrix-factorisation", "two-tower", "blend"}
    assert set(SCORERS) == expected


@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_finite_numbers_for_every_item(name: str) -> None:
    model = trained(name).model
    assert isinstance(model, ItemScorer)
    with torch.no_grad():
        scores = model.scores(requests(HISTORIES))
    assert scores.shape == (len(HISTORIES), model.num_items + 1)
    assert scores.is_floating_point()
    assert bool(scores[:, 1:].isfinite().all())


@pytest.mark.parametrize("name", SCORERS)
def test_a_list_contains_the_items_with_the_best_scores(name: str) -> None:
    model = trained(name).model
    assert isinstance(model, ItemScorer)
    allowed = (torch.arange(model.num_items + 1) % 3 > 0)[None]
    plain = requests(HISTORIES)
    batches = [plain, replace(plain, excluded=plain.items), replace(plain, allowed=allowed)]
    batches.append(replace(batches[2], excluded=Jagged.from_rows([[2], [], [4, 1], [11], [7, 8]])))
    for batch in batches:
        for k in (3, model.num_items + 2):
            with torch.no_grad():
                expected = top_items(model.scores(batch), batch, k)
            answer = model.recommend(batch, k)
            assert answer.item_ids.tolist() == expected.item_ids.tolist()
            torch.testing.assert_close(answer.scores, expected.scores)


@pytest.mark.parametrize("name", SCORERS)
def test_exclusions_allow_lists_and_candidates_do_not_change_scores(name: str) -> None:
    model = trained(name).model
    assert isinstance(model, ItemScorer)
    plain = requests(HISTORIES)
    allowed = torch.isin(torch.arange(model.num_items + 1), torch.tensor([2, 5]))[None]
    narrowed = replace(plain, excluded=plain.items, allowed=allowed, candidates=plain.items)
    with torch.no_grad():
        assert torch.equal(model.scores(plain)[:, 1:], model.scores(narrowed)[:, 1:])
