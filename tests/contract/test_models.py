"""What every registered model must do: the known answers that it declares, and the contract's invariants."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from known_answers import DATASETS, share_right

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.data.protocols import make_split
from nextitem.pipeline.run import Run, load_run, spelling, train

RUNS = TemporaryDirectory()  # goes when the tests end


def trained(name: str, data: str = "cycle", again: int = 0) -> Run:
    """The model's debug recipe on a tiny data set, trained once; `again` asks for another training."""
    return _trained(name, data, again)  # the cache tells a default from the same value given


@cache
def _trained(name: str, data: str, again: int) -> Run:
    out = Path(RUNS.name) / f"{name}-{data}-{again}"
    return train(name, DATASETS[data](), out=out, recipe=f"debug/{name}", protocol="leave-one-out", progress=False)


def requests(histories: list[list[int]], **fields: object) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories), **fields)  # type: ignore[arg-type]


def mask(model: Recommender, *items: int) -> torch.Tensor:
    return torch.isin(torch.arange(model.num_items + 1), torch.tensor(items))[None, :]


SOLVES = [(name, data) for name, entry in MODELS.items() for data in getattr(entry.load(), "known_answers", ())]


@pytest.mark.parametrize(("name", "data"), SOLVES)
def test_known_answers(name: str, data: str) -> None:
    dataset = DATASETS[data]()
    split = make_split(dataset, "leave-one-out")
    test = replace(split.test, excluded=None if data == "cycle" else split.test.items)
    found = trained(name, data).model.recommend(test, 3)
    last = test.items.values[test.items.offsets[1:] - 1].numpy()
    assert share_right(data, dataset, found, last) >= 0.9


@pytest.mark.parametrize("name", ["tiger", "cobra", "sasrec"])
def test_models_that_spell_are_told_by_what_they_have(name: str) -> None:
    run = trained(name)
    found = spelling(run, make_split(DATASETS["cycle"](), "leave-one-out"), requests=20)
    if name == "sasrec":
        assert found is None
    else:
        assert found is not None
        assert found["levels"][0]["survival"] > 0


@pytest.mark.parametrize("name", MODELS)
def test_an_allowed_set_of_one_is_found(name: str) -> None:
    model = trained(name).model
    for item in (1, model.num_items):
        found = model.recommend(requests([[2], [3, 4]], allowed=mask(model, item)), 5)
        assert found.item_ids.tolist() == [[item, 0, 0, 0, 0]] * 2


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_answers_as_single_requests_do(name: str) -> None:
    model = trained(name).model
    histories = [[1], [4, 5, 6, 7, 8, 9], [2, 3], [], [12, 1, 2]]
    together = model.recommend(requests(histories), 4)
    for row, history in enumerate(histories):
        alone = model.recommend(requests([history]), 4)
        assert alone.item_ids[0].tolist() == together.item_ids[row].tolist()
        torch.testing.assert_close(alone.scores[0], together.scores[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_exclusions_are_kept_and_k_may_exceed_the_catalogue(name: str) -> None:
    model = trained(name).model
    found = model.recommend(requests([[1, 2], [5]], excluded=Jagged.from_rows([[3, 4, 1], []])), model.num_items + 3)
    lists = [[item for item in row if item] for row in found.item_ids.tolist()]
    assert sorted(lists[0]) == sorted(set(range(1, model.num_items + 1)) - {3, 4, 1})
    assert sorted(lists[1]) == list(range(1, model.num_items + 1))


@pytest.mark.parametrize("name", MODELS)
def test_nothing_allowed_gives_an_empty_list(name: str) -> None:
    model = trained(name).model
    found = model.recommend(requests([[1], [2]], allowed=mask(model, 3), excluded=Jagged.from_rows([[3], []])), 2)
    assert found.item_ids.tolist() == [[0, 0], [3, 0]]


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_history_is_answered_by_popularity(name: str) -> None:
    model = trained(name).model
    found = model.recommend(requests([[]]), 3)
    assert found.fallback is not None
    assert found.fallback.tolist() == [True]
    best = model.popularity.argsort(descending=True, stable=True)[:3]
    assert found.item_ids[0].tolist() == best.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_answers_as_the_model_did(name: str) -> None:
    run = trained(name)
    batch = requests([[1, 2, 3], [7], [4, 9]])
    before, after = run.model.recommend(batch, 5), load_run(run.folder).model.recommend(batch, 5)
    assert torch.equal(before.item_ids, after.item_ids)
    assert torch.equal(before.scores, after.scores)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    first, second = trained(name).model.state_dict(), trained(name, again=1).model.state_dict()
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
