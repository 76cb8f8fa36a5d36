"""Recommender: the guarantees of the public method `recommend` for any model."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import polars as pl
import pytest
import torch
from torch import Tensor

from nextitem.core import recommender
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Config
from nextitem.core.errors import ContractError
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations, Relaxation
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import top_candidates, top_items

N = 5


class Fixed(Recommender):
    """A model that answers every request with the same items, valid or not."""

    Config = Config

    def __init__(self, answer: list[int]) -> None:
        ids = [str(number) for number in range(N)]
        super().__init__(Config(), Catalog(IdMap(pl.Series(ids)), pl.DataFrame({"item_id": ids})))
        self.answer = answer
        self.set_popularity(torch.tensor([0.0, 1, 5, 5, 2, 0]))

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        ids = torch.tensor(self.answer).expand(batch.num_requests, -1)
        return Recommendations(ids, -torch.arange(ids.shape[1]).float().expand(ids.shape))


class Scores(Fixed):
    """A model that prefers large item numbers."""

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        return top_items(torch.arange(N + 1).float().repeat(batch.num_requests, 1), batch, k)


def requests(histories: list[list[int]], **fields: object) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories), **fields)  # type: ignore[arg-type]


def mask(*items: int) -> Tensor:
    return torch.isin(torch.arange(N + 1), torch.tensor(items))[None, :]


def test_unseen_items_follow_the_training_events() -> None:
    model = Fixed([])
    unseen = model.unseen_items()
    assert unseen is not None
    assert unseen.nonzero()[:, 0].tolist() == [5]
    assert model.unseen_items() is unseen  # read once
    model.set_popularity(torch.tensor([0.0, 0, 5, 5, 2, 1]))
    unseen = model.unseen_items()
    assert unseen is not None
    assert unseen.nonzero()[:, 0].tolist() == [1]
    model.load_state_dict(Fixed([]).state_dict())
    unseen = model.unseen_items()
    assert unseen is not None
    assert unseen.nonzero()[:, 0].tolist() == [5]
    model.popularity = torch.tensor([0.0, 1, 1, 1, 1, 1])
    assert model.unseen_items() is None


def test_an_empty_history_is_answered_by_popularity_and_marked() -> None:
    answer = Scores([]).recommend(requests([[], [1], []]), 3)
    assert answer.item_ids.tolist() == [[2, 3, 4], [5, 4, 3], [2, 3, 4]]
    assert answer.fallback is not None
    assert answer.fallback.tolist() == [True, False, True]


class Relaxed(Scores):
    """A model that reports a relaxed rule in slot 2 of each request."""

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        relaxations = [Relaxation(row, "a rule", 2) for row in range(batch.num_requests)]
        return replace(super()._recommend(batch, k), relaxations=relaxations)


def test_relaxations_name_the_request_that_they_belong_to() -> None:
    answer = Relaxed([]).recommend(requests([[], [1], [], [2]]), 3)
    assert [relaxation.request for relaxation in answer.relaxations] == [1, 3]
    answer = Relaxed([]).recommend(requests([[1], [2]]), 3)
    assert [relaxation.request for relaxation in answer.relaxations] == [0, 1]


def test_the_popularity_fallback_respects_exclusions_and_allow_lists() -> None:
    batch = requests([[], []], allowed=mask(2, 4, 5), excluded=Jagged.from_rows([[2], []]))
    assert Scores([]).recommend(batch, 3).item_ids.tolist() == [[4, 5, 0], [2, 4, 5]]


def test_an_allow_list_of_one_item_and_k_above_the_number_of_items_work() -> None:
    assert Scores([]).recommend(requests([[1]], allowed=mask(3)), 9).item_ids.tolist() == [[3, *[0] * 8]]
    assert Scores([]).recommend(requests([[1]]), 9).item_ids.tolist() == [[5, 4, 3, 2, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("answer", "fields", "message"),
    [
        ([1, 2], {"excluded": Jagged.from_rows([[2]])}, "excluded"),
        ([1, 2], {"allowed": mask(1)}, "forbidden"),
        ([1, 6], {}, "not in the catalogue"),
        ([1, 2, 3], {}, "lists of shape"),
    ],
)
def test_an_invalid_answer_of_a_model_raises_a_contract_error(
    answer: list[int], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        Fixed(answer).recommend(requests([[1]], **fields), 2)


def test_invalid_requests_raise_an_error() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        Scores([]).recommend(requests([[1]]), 0)
    with pytest.raises(ValueError, match=r"history contains item number 6; this catalogue has 1\.\.5"):
        Scores([]).recommend(requests([[6]]), 2)
    with pytest.raises(ValueError, match="6 columns"):
        Scores([]).recommend(requests([[1]], allowed=torch.ones(1, 3, dtype=torch.bool)), 2)


def test_recommend_restores_training_mode() -> None:
    model = Scores([]).train()
    model.recommend(requests([[1]]), 2)
    assert model.training


def test_recommend_restores_training_mode_if_the_model_fails() -> None:
    class Fails(Scores):
        def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
            raise RuntimeError("out of memory")

    model = Fails([]).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        model.recommend(requests([[1]]), 2)
    assert model.training


def test_request_errors_are_returned_for_invalid_requests_only() -> None:
    batch = requests([[1], [6], [2], [3]], excluded=Jagged.from_rows([[], [], [9], []]))
    errors = Scores([]).request_errors(batch)
    assert [error is None for error in errors] == [True, False, False, True]
    assert errors[1] == "history contains item number 6; this catalogue has 1..5"
    assert errors[2] == "excluded contains item number 9; this catalogue has 1..5"


def test_scores_that_are_not_finite_raise_an_error() -> None:
    for bad in (float("nan"), float("inf")):
        scores = torch.tensor([[0.0, 1.0, bad, 2.0]])
        with pytest.raises(ValueError, match="must be finite"):
            top_items(scores, requests([[1]]), 2)
    candidates = Jagged.from_rows([[1, 2]])
    with pytest.raises(ValueError, match="must be finite"):
        top_candidates(candidates, torch.tensor([0.0, -torch.inf]), requests([[1]]), 2, num_items=3)


class Weighted(Scores):
    """A model with a trainable weight and a buffer."""

    def __init__(self) -> None:
        super().__init__([])
        self.weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
        self.register_buffer("step", torch.tensor(3))


def test_the_fingerprint_depends_on_class_items_and_weights() -> None:
    model, twin = Weighted().eval(), Weighted().eval()
    first = model.weights_fingerprint()
    assert twin.weights_fingerprint() == first
    assert Scores([]).eval().weights_fingerprint() != first
    with torch.no_grad():
        twin.train().weight[0, 0] = 7
    changed = twin.eval().weights_fingerprint()
    assert changed != first
    model.load_state_dict(twin.state_dict())
    assert model.weights_fingerprint() == changed
    model.set_popularity(torch.tensor([0.0, 9, 9, 9, 9, 9]))  # the encoding of a history does not depend on it
    model.train().eval()
    assert model.weights_fingerprint() == changed
    ids = pl.Series("item_id", ["a", "b", "c", "d", "e"])
    model.catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    assert model.weights_fingerprint() != changed


def test_the_fingerprint_reads_a_value_that_was_expanded() -> None:
    model, twin = Weighted().eval(), Weighted().eval()
    model.register_buffer("one", torch.tensor([5, 0])[:1])
    twin.register_buffer("one", torch.tensor([5]).as_strided((1,), (0,)))
    assert twin.weights_fingerprint() == model.weights_fingerprint()


def test_the_fingerprint_is_computed_once_while_weights_cannot_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, numbers = Weighted().eval(), count(1)
    monkeypatch.setattr(recommender, "weights_fingerprint", lambda *facts: str(next(numbers)))
    assert [model.weights_fingerprint() for _ in range(3)] == ["1", "1", "1"]
    model.recommend(requests([[1]]), 2)
    assert model.weights_fingerprint() == "1"
    assert model.train().weights_fingerprint() == "2"
    assert model.weights_fingerprint() == "3"  # weights may change at any time
    assert [model.eval().weights_fingerprint() for _ in range(2)] == ["4", "4"]
