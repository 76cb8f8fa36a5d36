"""VectorModel: scores and lists from user and item vectors."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from torch import Tensor

from nextitem.core import vector_model
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Config
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.roles import ItemScorer
from nextitem.core.vector_model import VectorModel

N = 9


class Tables(VectorModel):
    """A model with random vectors: the request vector is a row of one table, by its last item; item vectors another."""

    Config = Config

    def __init__(self, *, has_bias: bool = False) -> None:
        ids = pl.Series("item_id", [f"i{number}" for number in range(N)])
        super().__init__(Config(), Catalog(IdMap(ids), pl.DataFrame({"item_id": ids})))
        generator = torch.Generator().manual_seed(0)
        self.users, self.items = torch.randn((2, N + 1, 4), generator=generator)
        self.bias = torch.arange(N + 1).float() if has_bias else None

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        return self.scale_users(self.users[batch.items.values[batch.items.offsets[1:] - 1]])

    def item_vectors(self) -> Tensor:
        return self.scale_items(self.items)

    def item_biases(self) -> Tensor | None:
        return self.bias


BATCH = SequenceBatch(
    Jagged.from_rows([[1], [2, 3], [9], [4], [5]]), excluded=Jagged.from_rows([[1], [3, 4], [], [], [5]])
)


def test_scores_are_inner_products_plus_biases() -> None:
    model = Tables()
    assert isinstance(model, ItemScorer)
    products = model.users[[1, 3, 9, 4, 5]] @ model.items.T
    torch.testing.assert_close(model.scores(BATCH), products)
    torch.testing.assert_close(Tables(has_bias=True).scores(BATCH), products + torch.arange(N + 1))


def test_with_a_temperature_scores_are_cosines_over_it() -> None:
    model = Tables()
    model.temperature = 0.1
    cosines = torch.nn.functional.cosine_similarity(model.users[[1, 3, 9, 4, 5], None], model.items[None], dim=2)
    torch.testing.assert_close(model.scores(BATCH), cosines / 0.1)


def test_blocks_of_requests_give_the_same_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tables(has_bias=True)
    whole = model.recommend(BATCH, 4)
    for rows in (1, 2, 3):
        monkeypatch.setattr(vector_model, "BLOCK_SCORES", rows * (N + 1) + 3)
        answer = model.recommend(BATCH, 4)
        assert torch.equal(answer.item_ids, whole.item_ids)
        torch.testing.assert_close(answer.scores, whole.scores)


def test_unseen_items_are_ranked_last_whatever_their_bias() -> None:
    model = Tables(has_bias=True)
    model.set_popularity(torch.tensor([0.0, 1, 1, 0, 2, 2, 2, 1, 0, 0]))
    answer = model.recommend(SequenceBatch(Jagged.from_rows([[1], [2]])), N)
    assert [row[-3:] for row in answer.item_ids.tolist()] == [[3, 8, 9]] * 2
    only = torch.isin(torch.arange(N + 1), torch.tensor([9]))[None]
    assert model.recommend(SequenceBatch(Jagged.from_rows([[1]]), allowed=only), 2).item_ids.tolist() == [[9, 0]]
    model.set_popularity(torch.zeros(N + 1))  # no item has a training event
    assert model.unseen_items() is None
