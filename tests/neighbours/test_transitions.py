"""Transition counts, positive information and vectors, compared with loops and with known answers."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.interactions import Interactions
from nextitem.neighbours.transitions import count_transitions, positive_information, transition_vectors

LAGS = (1.0, 0.5, 0.25)


def log_of(histories: list[list[int]], num_items: int) -> Interactions:
    users = np.repeat(np.arange(1, len(histories) + 1), [len(history) for history in histories]).astype(np.int32)
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    return Interactions(users, items, max(1, len(histories)), num_items)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), max_size=8), max_size=5))
def test_counts_equal_a_loop_over_pairs_of_events(histories: list[list[int]]) -> None:
    expected: Counter[tuple[int, int]] = Counter()
    for history in histories:
        for place, earlier in enumerate(history):
            for weight, later in zip(LAGS, history[place + 1 :], strict=False):
                expected[earlier, later] += weight  # type: ignore[assignment]
    counts = count_transitions(log_of(histories, 6), LAGS).todok()
    assert {(int(a), int(b)): float(value) for (a, b), value in counts.items()} == dict(expected)


def test_information_is_the_log_of_observed_over_expected_and_never_negative() -> None:
    counts = sp.csr_matrix(np.array([[0, 4, 1], [4, 0, 1], [1, 1, 2]], dtype=np.float32))
    result = positive_information(counts).toarray()
    assert result[0, 1] == np.float32(math.log(4 * 14 / (5 * 5)))
    assert result[0, 2] == 0  # 1 * 14 / (5 * 4) is less than 1
    assert result[2, 2] == np.float32(math.log(2 * 14 / (4 * 4)))


def test_items_of_the_same_sequences_are_near_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    histories = [list(1 + 10 * (user % 3) + rng.permutation(10)[:6]) for user in range(300)]
    vectors = transition_vectors(log_of(histories, 30), LAGS, 8, seed=0)
    assert vectors.shape == (30, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(30))
    group = torch.arange(30) // 10
    is_same = group[:, None] == group
    cosines = vectors @ vectors.T
    assert float(cosines[is_same].min()) > 0.7
    assert float(cosines[~is_same].max()) < 0.1
    assert torch.equal(vectors, transition_vectors(log_of(histories, 30), LAGS, 8, seed=0))


def test_items_without_transitions_to_other_items_have_no_vector() -> None:
    vectors = transition_vectors(log_of([[1, 2, 1, 2], [3, 3, 3], [4]], 5), LAGS, 4, seed=0)
    assert vectors.isnan().any(1).tolist() == [False, False, True, True, True]
    assert bool(transition_vectors(log_of([[3, 3], [4]], 5), LAGS, 4, seed=0).isnan().all())
    assert transition_vectors(log_of([], 3), LAGS, 4, seed=0).shape == (3, 3)
