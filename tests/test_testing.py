"""Tests of check_recommender: it passes a model that keeps the contract, and names the check that another fails."""

from __future__ import annotations

import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.errors import ContractError
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import top_items
from nextitem.models.item_cf import ItemCF
from nextitem.models.popularity import Popularity
from nextitem.testing import check_recommender


class Forgetful(Popularity):
    """Model that loses its counts when it is saved."""

    counts: torch.Tensor | None = None

    def fit(self, train: Dataset) -> None:
        super().fit(train)
        self.counts = self.decayed_counts.clone()

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        counts = self.popularity if self.counts is None else -self.counts
        return top_items(counts.repeat(batch.num_requests, 1).float(), batch, k)


class Sociable(Popularity):
    """Model whose lists depend on the other requests of the batch."""

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        scores = self.decayed_counts.repeat(batch.num_requests, 1).float()
        if batch.num_requests > 2:
            scores = -scores
        return top_items(scores, batch, k)


class Stubborn(Popularity):
    """Model that lists excluded items."""

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        items = torch.arange(1, k + 1).repeat(batch.num_requests, 1).clamp(max=self.num_items)
        is_beyond_catalog = torch.arange(k) >= self.num_items
        items = items.masked_fill(is_beyond_catalog, 0)
        return Recommendations(items, torch.zeros(items.shape).masked_fill(items == 0, -torch.inf))


def test_a_model_that_keeps_the_contract_passes() -> None:
    check_recommender(ItemCF, known_answers=["planted-clusters"])
    check_recommender("popularity", settings={"model.half_life_days": 3.0})


@pytest.mark.parametrize(
    ("model", "message"),
    [(Forgetful, "check_a_bundle_answers_as_the_model_did"), (Sociable, "check_a_batch_equals_single_requests")],
)
def test_the_check_that_a_model_fails_is_named(model: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_recommender(model)


def test_a_forbidden_item_is_refused_by_the_contract_itself() -> None:
    with pytest.raises(ContractError, match="Stubborn returned a forbidden item"):
        check_recommender(Stubborn)


def test_the_share_of_right_answers_is_in_the_message() -> None:
    with pytest.raises(AssertionError, match=r"check_known_answers: cycle: [0-9]+% of the answers are right"):
        check_recommender("popularity", known_answers=["cycle"])
