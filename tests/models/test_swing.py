"""Tests of Swing against its formula, computed with loops over pairs of users."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from support.memory import peak_bytes

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.models.swing import Swing, SwingConfig
from nextitem.neighbours import swing_similarities
from nextitem.neighbours.sparse_rows import users_by_items
from nextitem.testing.known_answers import build


def random_sequences(seed: int, *, users: int = 40, items: int = 25) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, items + 1, rng.integers(2, 12)).tolist() for _ in range(users)]


def fitted(sequences: list[list[int]], items: int, **settings: object) -> Swing:
    dataset = build(sequences, [f"t{number}" for number in range(items)], name="random")
    model = Swing(SwingConfig(**settings), dataset.catalog)
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    model.fit(dataset)
    return model


@pytest.mark.parametrize(("has_user_weights", "alpha"), [(True, 1.0), (False, 1.0), (True, 5.0)])
def test_similarities_equal_the_formula(has_user_weights: bool, alpha: float) -> None:
    sequences = random_sequences(0)
    model = fitted(sequences, 25, neighbours=25, normalise_rows=False, user_weights=has_user_weights, alpha=alpha)
    user_items = [set(sequence) for sequence in sequences]
    expected = np.zeros((26, 26))
    for left, right in combinations(user_items, 2):
        weight = 1 / math.sqrt(len(left) * len(right)) if has_user_weights else 1.0
        for i, j in combinations(sorted(left & right), 2):
            expected[i, j] += weight / (alpha + len(left & right))
    np.testing.assert_allclose(model.similarities.matrix().toarray(), expected + expected.T, rtol=1e-5, atol=1e-8)


def test_users_with_few_shared_items_count_more() -> None:
    """Users 1 and 2 share only items 1 and 2; users 3 and 4 share items 1, 3, 4, 5, 6."""
    model = fitted([[1, 2, 7], [1, 2, 8], [1, 3, 4, 5, 6], [1, 3, 4, 5, 6]], 8)
    row = model.similarities.matrix().toarray()[1]
    assert row[2] == 1
    assert 0 < row[3] < 0.5


@pytest.mark.parametrize(("pairs", "sums"), [(5, 200), (30, 20), (2**22, 200), (30, 2**24)])
def test_blocks_of_users_and_items_have_the_same_result_as_one_block(
    pairs: int, sums: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = random_sequences(2)
    whole = fitted(sequences, 30, neighbours=30)  # no cut, which rounding could move
    monkeypatch.setattr(swing_similarities, "BLOCK_PAIRS", pairs)
    monkeypatch.setattr(swing_similarities, "MAX_SUMS", sums)
    blocks = fitted(sequences, 30, neighbours=30)
    np.testing.assert_allclose(blocks.similarities.matrix().toarray(), whole.similarities.matrix().toarray(), rtol=1e-5)


def test_memory_is_linear_in_the_shared_items_of_crawlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three users who share 2,000 items form swings at 4 million pairs of items: 32 MB, and more in between."""
    monkeypatch.setattr(swing_similarities, "BLOCK_PAIRS", 2**16)
    monkeypatch.setattr(swing_similarities, "MAX_SUMS", 2**18)
    rng = np.random.default_rng(0)
    crawlers = [(rng.permutation(2000) + 1).tolist() for _ in range(3)]
    titles = [str(number) for number in range(2000)]
    dataset = build([*crawlers, *random_sequences(0)], titles, name="crawlers")
    model = Swing(SwingConfig(neighbours=5), dataset.catalog)
    model.fit(build(random_sequences(0), titles, name="warm"))
    peak = peak_bytes(lambda: model.fit(dataset))
    assert model.similarities.values.numel() == 5 * 2000
    assert peak < 12e6


def test_an_item_with_many_users_counts_a_sample_of_them() -> None:
    sequences = [[1, 2]] * 50 + [[1, 3]] * 4
    sampled = swing_similarities._sample_users(
        users_by_items(build(sequences, ["a", "b", "c"], name="x").interactions), 10
    )
    assert sampled.sum(axis=0).tolist() == [[0, 10, 10, 4]]
    model = fitted(sequences, 3, takers=10, normalise_rows=False)
    again = fitted(sequences, 3, takers=10, normalise_rows=False)
    assert torch.equal(model.similarities.values, again.similarities.values)
    assert float(model.similarities.values.max()) < float(
        fitted(sequences, 3, normalise_rows=False).similarities.values.max()
    )


def test_a_request_sums_decayed_votes() -> None:
    model = fitted(random_sequences(1), 25, recent_items=2, recency_decay=0.5)
    similar = model.similarities.matrix().toarray()
    answer = model.recommend(SequenceBatch(Jagged.from_rows([[4, 9, 2]])), 25)
    scores = dict(zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True))
    for item in range(1, 26):
        assert scores[item] == pytest.approx(similar[2, item] + 0.5 * similar[9, item], abs=2e-6)
