"""Tests of user-CF against its formula, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch
from support.memory import peak_bytes

from nextitem.core.batch import SequenceBatch
from nextitem.core.ids import stable_keys
from nextitem.core.jagged import Jagged
from nextitem.models import user_cf
from nextitem.models.user_cf import UserCF, UserCFConfig, last_takers
from nextitem.neighbours import votes
from nextitem.testing.known_answers import build

PLAIN = {"takers": None, "recent_items": None, "recency_decay": 1.0}


def random_sequences(seed: int, *, users: int = 40, items: int = 25) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, items + 1, rng.integers(2, 12)).tolist() for _ in range(users)]


def fitted(sequences: list[list[int]], items: int, **settings: object) -> UserCF:
    dataset = build(sequences, [f"t{number}" for number in range(items)], name="random")
    model = UserCF(UserCFConfig(**settings), dataset.catalog)
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    model.fit(dataset)
    return model


def similarity(left: set[int], right: set[int], sequences: list[list[int]]) -> float:
    shared = sum(1 / math.log(1 + sum(item in sequence for sequence in sequences)) for item in left & right)
    return shared / math.sqrt(len(left) * len(right))


@pytest.mark.parametrize("neighbours", [5, 1000])
def test_scores_equal_the_formula(neighbours: int) -> None:
    sequences = random_sequences(0)
    model = fitted(sequences, 25, neighbours=neighbours, **PLAIN)
    for history in ([4, 9, 2, 7, 4], [1], [25, 3]):
        similar = np.array([similarity(set(history), set(sequence), sequences) for sequence in sequences])
        best = np.argsort(-similar.round(6), kind="stable")[:neighbours]
        expected = np.zeros(26)
        for user in best:
            expected[list(set(sequences[user]))] += similar[user]
        answer = model.recommend(SequenceBatch(Jagged.from_rows([history])), 25)
        scores = dict(zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True))
        for item in range(1, 26):
            assert scores[item] == pytest.approx(expected[item], abs=3e-6)


def test_recent_items_count_more() -> None:
    sequences = [[1, 3], [2, 4]]
    plain = fitted(sequences, 4, **PLAIN)
    answer = plain.recommend(SequenceBatch(Jagged.from_rows([[1, 2]])), 4)
    scores = dict(zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True))
    assert scores[3] == pytest.approx(scores[4])
    decayed = fitted(sequences, 4, takers=None, recency_decay=0.5)
    answer = decayed.recommend(SequenceBatch(Jagged.from_rows([[1, 2]])), 4)
    scores = dict(zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True))
    assert scores[4] == pytest.approx(2 * scores[3], rel=1e-4)


def test_a_user_does_not_vote_on_their_own_request() -> None:
    model = fitted([[1, 2, 3], [1, 4]], 4, **PLAIN)
    key = int(stable_keys(pl.Series(["u1"]))[0])
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [1, 2]]), user_ids=torch.tensor([key, 0]))
    similar = model.similar_users(batch).toarray()
    assert similar[0, 1] == 0
    assert similar[0, 2] == pytest.approx(similar[1, 2])
    assert similar[1, 1] > similar[1, 2] > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_only_the_last_users_of_an_item_are_compared(seed: int) -> None:
    dataset = build(random_sequences(seed), [f"t{n}" for n in range(25)], name="dated")
    log = dataset.interactions
    last_users = last_takers(log, 3).toarray()
    assert log.timestamps is not None
    for item in range(1, 26):
        last: dict[int, int] = {}
        for user, other, time in zip(log.user_ids, log.item_ids, log.timestamps, strict=True):
            if other == item:
                last[int(user)] = max(last.get(int(user), 0), int(time))
        best = sorted(last, key=lambda user: (last[user], user), reverse=True)[:3]
        assert np.flatnonzero(last_users[item]).tolist() == sorted(best)


def test_memory_is_limited_by_blocks_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request has six crawlers among its neighbours, who vote for 3,000 items each."""
    monkeypatch.setattr(user_cf, "BLOCK_COST", 2**14)
    monkeypatch.setattr(votes, "BLOCK_ENTRIES", 2**14)
    rng = np.random.default_rng(0)
    crawlers = [(rng.permutation(3000) + 1).tolist() for _ in range(6)]
    model = fitted([*crawlers, *[[int(item)] for item in rng.integers(1, 3001, 50)]], 3000)
    batch = SequenceBatch(Jagged.from_rows(rng.integers(1, 3001, (300, 1)).tolist()))
    whole = model.recommend(batch, 10)
    assert peak_bytes(lambda: model.recommend(batch, 10)) < 3e6  # 300 rows of 3,000 votes are 7 MB, and once more
    monkeypatch.undo()
    assert torch.equal(model.recommend(batch, 10).item_ids, whole.item_ids)


def test_items_without_votes_follow_by_popularity() -> None:
    model = fitted([[1, 2], [3, 4], [3, 5], [3, 5]], 6)
    answer = model.recommend(SequenceBatch(Jagged.from_rows([[1]]), excluded=Jagged.from_rows([[1]])), 5)
    assert answer.item_ids.tolist() == [[2, 3, 5, 4, 6]]
