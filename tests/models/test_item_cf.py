"""Tests of item-CF against its formula in dense loops, and against the implicit library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from implicit.nearest_neighbours import CosineRecommender
from support.memory import peak_bytes

from nextitem.core.batch import SequenceBatch
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.models import item_cf
from nextitem.models.item_cf import ItemCF, ItemCFConfig
from nextitem.neighbours import votes
from nextitem.testing.known_answers import build


def random_sequences(seed: int, *, users: int = 40, items: int = 25) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, items + 1, rng.integers(2, 12)).tolist() for _ in range(users)]


def fitted(sequences: list[list[int]], items: int, **settings: object) -> ItemCF:
    dataset = build(sequences, [f"t{number}" for number in range(items)], name="random")
    model = ItemCF(ItemCFConfig(**settings), dataset.catalog)
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    model.fit(dataset)
    return model


@pytest.mark.parametrize("window", [None, 3])
def test_similarities_equal_the_formula(window: int | None) -> None:
    sequences, items, decay = random_sequences(0), 25, 0.7
    model = fitted(sequences, items, window=window, decay=decay, neighbours=25, normalise_rows=False)
    expected = np.zeros((items + 1, items + 1))
    num_users = np.zeros(items + 1)
    for sequence in sequences:
        penalty = 1 / math.log(1 + len(set(sequence)))
        for item in set(sequence):
            num_users[item] += 1
        if window is None:
            for i in set(sequence):
                for j in set(sequence) - {i}:
                    expected[i, j] += penalty
        else:
            for a in range(len(sequence)):
                for b in range(a + 1, min(a + window, len(sequence) - 1) + 1):
                    expected[sequence[a], sequence[b]] += decay ** (b - a - 1) * penalty
                    expected[sequence[b], sequence[a]] += decay ** (b - a - 1) * penalty
    np.fill_diagonal(expected, 0)
    expected /= np.sqrt(np.maximum(num_users, 1)[:, None] * np.maximum(num_users, 1)[None, :])
    similarities = model.similarities.matrix().toarray()
    np.testing.assert_allclose(similarities, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(similarities, similarities.T, rtol=1e-5)


def test_pairs_far_apart_in_time_count_less() -> None:
    dataset = build([[1, 2, 3], [3, 1]], ["a", "b", "c"], name="dated")
    log, days = dataset.interactions, np.array([0, 10, 40, 5, 5])
    dated = Interactions(log.user_ids, log.item_ids, 2, 3, timestamps=days * 86_400_000)
    model = ItemCF(ItemCFConfig(decay=0.5, half_life_days=10, normalise_rows=False), dataset.catalog)
    model.fit(dataset.with_interactions(dated))
    three, two = 1 / math.log(4), 1 / math.log(3)
    expected = np.zeros((4, 4))
    expected[1, 2] = three * 0.5 / math.sqrt(2 * 1)
    expected[2, 3] = three * 0.5**3 / math.sqrt(1 * 2)
    expected[1, 3] = (three * 0.5 * 0.5**4 + two) / math.sqrt(2 * 2)
    np.testing.assert_allclose(model.similarities.matrix().toarray(), expected + expected.T, rtol=1e-5)
    undated = ItemCF(ItemCFConfig(half_life_days=10), dataset.catalog)
    undated.fit(dataset)
    assert undated.similarities.values.numel() == 6


def test_a_request_sums_decayed_votes() -> None:
    model = fitted(random_sequences(1), 25, recent_items=3, recency_decay=0.5)
    similar = model.similarities.matrix().toarray()
    history = [4, 9, 2, 7]
    expected = similar[7] + 0.5 * similar[2] + 0.25 * similar[9]
    answer = model.recommend(SequenceBatch(Jagged.from_rows([history])), 25)
    scores = dict(zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True))
    for item in range(1, 26):
        assert scores[item] == pytest.approx(expected[item], abs=2e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_decay_and_penalty_it_is_the_cosine_of_implicit(seed: int) -> None:
    sequences, items = random_sequences(seed, users=60, items=40), 40
    settings = {"window": None, "activity_penalty": False, "normalise_rows": False, "recent_items": None}
    model = fitted(sequences, items, neighbours=items, recency_decay=1.0, **settings)
    rows = [user for user, sequence in enumerate(sequences) for _ in sequence]
    columns = [item - 1 for sequence in sequences for item in sequence]
    user_items = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(sequences), items))
    user_items.data[:] = 1
    peer = CosineRecommender(K=items)
    peer.fit(user_items, show_progress=False)
    theirs, their_scores = peer.recommend(np.arange(len(sequences)), user_items, N=5, filter_already_liked_items=True)
    batch = SequenceBatch(Jagged.from_rows(sequences), excluded=Jagged.from_rows(sequences))
    ours = model.recommend(batch, 5)
    for row in range(len(sequences)):
        their_row = {i + 1: s for i, s in zip(theirs[row].tolist(), their_scores[row].tolist(), strict=True) if i >= 0}
        our_row = dict(zip(ours.item_ids[row].tolist(), ours.scores[row].tolist(), strict=True))
        last = min(their_row.values())
        for item, score in their_row.items():
            if score > last + 1e-5 and score > 1e-4:  # below: ties at the cut
                assert our_row[item] == pytest.approx(score, rel=1e-4, abs=2e-6)


@pytest.mark.parametrize("cost", [5, 50])  # below the pairs of one item's events, and of one event
@pytest.mark.parametrize(("window", "repeats"), [(None, "all"), (4, "all"), (4, "closest")])
def test_blocks_of_items_have_the_same_result_as_one_block(
    window: int | None, repeats: str, cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = random_sequences(2)
    settings = {"window": window, "repeats": repeats, "neighbours": 30}  # no cut, which rounding could move
    whole = fitted(sequences, 30, **settings)  # items 26 to 30 have no events
    monkeypatch.setattr(item_cf, "BLOCK_COST", cost)
    blocks = fitted(sequences, 30, **settings)
    assert blocks.similarities.shape.tolist() == [31, 31]
    np.testing.assert_allclose(blocks.similarities.matrix().toarray(), whole.similarities.matrix().toarray(), rtol=1e-6)


def test_a_pair_that_recurs_counts_each_time_or_once_a_user() -> None:
    """By hand: f = 1 of all pairs in the window, |U(1)| = |U(2)| = 2, the first user has 2 items."""
    settings = {"decay": 1.0, "normalise_rows": False}
    single, recurring = [[1, 2], [1, 3], [2, 3]], [[1, 2, 1, 2, 1, 2], [1, 3], [2, 3]]
    single_pair = 1 / math.log(3) / 2
    assert single_pair == pytest.approx(0.455, abs=5e-4)
    assert 9 * single_pair == pytest.approx(4.096, abs=5e-4)  # 3 events of each item form 9 pairs
    for sequences, repeats, expected in (
        (single, "all", single_pair),
        (recurring, "all", 9 * single_pair),
        (single, "closest", single_pair),
        (recurring, "closest", single_pair),
    ):
        similar = fitted(sequences, 3, repeats=repeats, **settings).similarities.matrix().toarray()
        assert similar[1, 2] == similar[2, 1] == pytest.approx(expected, rel=1e-5)
        assert similar[1, 3] == pytest.approx(single_pair, rel=1e-5)


def test_the_closest_pair_of_a_user_is_the_one_with_the_largest_weight() -> None:
    sequences = [[1, 5, 2, 6, 1, 2], [2, 1, 3, 4], [1, 3, 3, 3, 3, 2]]
    model = fitted(sequences, 6, decay=0.5, window=4, repeats="closest", normalise_rows=False)
    expected = np.zeros((7, 7))
    counts = np.array([sum(item in sequence for sequence in sequences) for item in range(7)])
    for sequence in sequences:
        for i in set(sequence):
            for j in set(sequence) - {i}:
                places = [[p for p, item in enumerate(sequence) if item == target_item] for target_item in (i, j)]
                distance = min(abs(a - b) for a in places[0] for b in places[1])
                if distance <= 4:
                    expected[i, j] += 0.5 ** (distance - 1) / math.log(1 + len(set(sequence)))
    expected /= np.sqrt(np.maximum(counts, 1)[:, None] * np.maximum(counts, 1))
    np.testing.assert_allclose(model.similarities.matrix().toarray(), expected, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 60])
def test_memory_is_linear_in_the_items_of_crawlers(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three users with 3,000 items, 9 million pairs of items, 72 MB; and one user with item 1 4,000 times."""
    monkeypatch.setattr(item_cf, "BLOCK_COST", 2**15)
    rng = np.random.default_rng(0)
    crawlers = [(rng.permutation(3000) + 1).tolist() for _ in range(3)]
    dataset = build([*crawlers, [1] * 4000], [str(number) for number in range(3000)], name="crawlers")
    model = ItemCF(ItemCFConfig(window=window, neighbours=5), dataset.catalog)
    assert peak_bytes(lambda: model.fit(dataset)) < 5e6


@pytest.mark.parametrize("seed", range(4))
def test_sparse_lists_equal_dense_ones(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With allowed and excluded items, requests with fewer votes than list places, and ties."""
    rng = np.random.default_rng(seed)
    sequences, items = random_sequences(seed, users=30, items=60), 60
    model = fitted(sequences, items, neighbours=4, window=None, activity_penalty=False, recency_decay=1.0)
    batch = SequenceBatch(
        Jagged.from_rows(sequences),
        excluded=Jagged.from_rows([sequence[: int(rng.integers(0, 5))] for sequence in sequences]),
        allowed=torch.from_numpy(rng.random((30, items + 1)) < 0.6) if seed % 2 else None,
    )
    for k in (1, 7, 70):
        monkeypatch.setattr(votes, "DENSE_FROM", 0.0)
        dense = model.recommend(batch, k)
        monkeypatch.setattr(votes, "DENSE_FROM", 2.0)
        sparse = model.recommend(batch, k)
        assert torch.equal(sparse.item_ids, dense.item_ids)
        assert torch.equal(sparse.scores, dense.scores)


def test_items_without_similarity_follow_by_popularity() -> None:
    model = fitted([[1, 2], [3, 4], [3, 5], [3, 5]], 6)
    answer = model.recommend(SequenceBatch(Jagged.from_rows([[1]]), excluded=Jagged.from_rows([[1]])), 5)
    assert answer.item_ids.tolist() == [[2, 3, 5, 4, 6]]
