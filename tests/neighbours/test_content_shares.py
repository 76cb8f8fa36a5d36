"""Shares of items without a training event, compared with their definition, and merged lists with the best of both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.neighbours import content_shares
from nextitem.neighbours.content_shares import ContentShares, ContentSharesConfig

N = 9
HISTORIES = [[1, 2, 3], [4], [5, 5, 6, 7]]
UNSEEN = torch.isin(torch.arange(N + 1), torch.tensor([7, 8, 9]))
TRAINING = [[1, 2, 3, 1], [4, 2], [2, 5, 6], [3, 3, 5, 1, 2], [6, 4]]


def dataset_of(histories: list[list[int]], num_items: int) -> Dataset:
    lengths = [len(history) for history in histories]
    users = np.repeat(np.arange(1, len(histories) + 1), lengths).astype(np.int32)
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    ids = pl.Series("item_id", range(num_items))
    log = Interactions(users, items, len(histories), num_items)
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    return Dataset("small", log, catalog, Users(IdMap(pl.Series("user_id", range(len(histories))))))


def counts_of(histories: list[list[int]], num_items: int) -> Tensor:
    items = torch.tensor([item for history in histories for item in history])
    return torch.bincount(items, minlength=num_items + 1).float()


def shares_of(histories: list[list[int]] = TRAINING, content: Tensor | None = None, **values: Any) -> ContentShares:
    """Return shares that know the transitions and counts of these training histories."""
    if content is None:
        content = torch.randn(N + 1, 4, generator=torch.Generator().manual_seed(0))
    content[0] = 0
    shares = ContentShares(ContentSharesConfig.model_validate(values), content)
    counts = counts_of(histories, len(content) - 1)
    shares.count_transitions(dataset_of(histories, len(content) - 1))
    unseen = (counts == 0).index_fill(0, torch.tensor([0]), False)
    shares.set_popularity(counts, unseen)
    return shares


def batch_of(rows: list[list[int]], *, allowed: Tensor | None = None) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(rows), excluded=Jagged.from_rows(rows), allowed=allowed)


def expected_transitions(histories: list[list[int]], num_items: int) -> NDArray[np.float64]:
    """Return T by a loop over the pairs of events of a user."""
    counts = np.zeros((num_items + 1, num_items + 1))
    for history in histories:
        for place, earlier in enumerate(history):
            for weight, later in zip(content_shares.LAG_WEIGHTS, history[place + 1 :], strict=False):
                counts[earlier, later] += weight
                counts[later, earlier] += weight * content_shares.BACKWARD
    normalised: NDArray[np.float64] = counts / np.maximum(counts.sum(1, keepdims=True), 1e-9)
    return normalised


def expected_bonus(shares: ContentShares, training: list[list[int]], history: list[int]) -> dict[int, float]:
    """Return b of the items without an event, by its definition, with every item with events as a near one."""
    config, size = shares.config, len(shares.directions)
    counts = counts_of(training, size - 1).numpy()
    seen = [item for item in range(1, size) if counts[item]]
    new = [item for item in range(1, size) if not counts[item]]
    weights = np.zeros(size)
    for age, item in enumerate(reversed(history[-config.recent_items :])):
        weights[item] += config.recency_decay**age
    step = weights @ expected_transitions(training, size - 1)
    walk = step + content_shares.SECOND_STEP * step @ expected_transitions(training, size - 1)
    reached = {item: walk[item] / math.sqrt(counts[item]) for item in seen}
    mean = sum(reached.values()) / len(seen)
    bonus = {}
    for item in new:
        cosines = [float(shares.directions[item] @ shares.directions[near]) for near in seen]
        powers = [math.exp(cosine / content_shares.NEAREST_TEMPERATURE) for cosine in cosines]
        inherited = sum(power * reached[near] for power, near in zip(powers, seen, strict=True)) / sum(powers)
        has_content = bool(shares.directions[item].any())
        bonus[item] = math.log(1 + inherited / mean) if mean > 0 and has_content else 0.0
    return bonus


def expected_shares(shares: ContentShares, training: list[list[int]], history: list[int]) -> dict[int, float]:
    """Return the shares of the items outside the history, by their definition."""
    config, vectors = shares.config, shares.directions
    recent = history[-config.recent_items :]
    profile = sum((config.recency_decay**age * vectors[item] for age, item in enumerate(reversed(recent))), vectors[0])
    bonus = expected_bonus(shares, training, history)
    powers = {
        item: math.exp(
            (
                float(torch.cosine_similarity(profile, vectors[item], 0))
                + config.transition_weight * bonus.get(item, 0.0)
            )
            / config.temperature
        )
        for item in range(1, len(vectors))
        if item not in history
    }
    return {item: power / sum(powers.values()) for item, power in powers.items()}


SETTINGS: list[dict[str, Any]] = [
    {},
    {"recent_items": 2, "recency_decay": 0.5, "temperature": 0.4},
    {"transition_weight": 0.5, "temperature": 0.2},
    {"transition_weight": 0.0},
]


@pytest.mark.parametrize("values", SETTINGS, ids=str)
def test_shares_equal_their_definition(values: dict[str, Any]) -> None:
    shares = shares_of(**values)
    actual = shares(batch_of(HISTORIES)).exp()
    for row, history in enumerate(HISTORIES):
        expected = expected_shares(shares, TRAINING, history)
        assert actual[row, 0] == 0
        assert {i: float(actual[row, i]) for i in range(1, N + 1) if actual[row, i] > 0} == pytest.approx(
            expected, rel=1e-4
        )


@settings(max_examples=40, deadline=None)
@given(
    training=st.lists(st.lists(st.integers(1, 8), max_size=6), min_size=1, max_size=6),
    histories=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=12), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_shares_equal_their_definition_for_any_training_data(
    training: list[list[int]], histories: list[list[int]], seed: int
) -> None:
    if not any(training):
        training = [[1]]
    content = torch.randn(13, 3, generator=torch.Generator().manual_seed(seed))
    content[torch.rand(13, generator=torch.Generator().manual_seed(seed)) < 0.2] = 0
    shares = shares_of(training, content, transition_weight=0.3, temperature=0.3)
    actual = shares(batch_of(histories)).exp()
    for row, history in enumerate(histories):
        expected = expected_shares(shares, training, history)
        assert {item: float(actual[row, item]) for item in expected} == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_new_item_inherits_the_transitions_of_the_one_item_like_it() -> None:
    """Item 2 follows item 1; item 3 is like item 2, and item 4 like item 1."""
    content = torch.tensor([[0.0, 0], [1, 0], [0, 1], [0, 1], [1, 0]])
    shares = shares_of([[1, 2]], content, transition_weight=0.2, temperature=1.0)
    log_q = shares(SequenceBatch(Jagged.from_rows([[1]])))[0]
    # w = T + 0.3 T T: item 2 by one step, and item 1 by a second one back; both have one event.
    assert float(log_q[3] - log_q[2]) == pytest.approx(0.2 * math.log(1 + 1 / 0.65), rel=1e-4)
    assert float(log_q[4] - log_q[1]) == pytest.approx(0.2 * math.log(1 + 0.3 / 0.65), rel=1e-4)


def test_only_the_nearest_items_are_inherited_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_shares, "NEAREST_ITEMS", 2)
    monkeypatch.setattr(content_shares, "BLOCK_ENTRIES", 8)  # several blocks
    shares = shares_of()
    for row, item in enumerate(shares.new_items.tolist()):
        cosines = shares.directions[1:7] @ shares.directions[item]
        assert shares.near_items[row].tolist() == (cosines.argsort(descending=True)[:2] + 1).tolist()


def test_few_transitions_of_an_item_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_shares, "MAX_TRANSITIONS", 1)
    shares = shares_of()
    assert shares.transitions is not None
    stored, expected = shares.transitions.matrix().toarray(), expected_transitions(TRAINING, N)
    assert np.count_nonzero(stored, axis=1).max() == 1
    np.testing.assert_allclose(stored.max(1), expected.max(1), rtol=1e-6)


def test_a_history_without_transitions_has_the_shares_of_content_alone() -> None:
    with_transitions, without = shares_of(), shares_of(transition_weight=0.0)
    batch = batch_of([[7], [8, 9]])  # none of these items has an event
    torch.testing.assert_close(with_transitions(batch), without(batch))
    alone = shares_of([[item] for item in range(1, 7)])  # no user has a second event
    torch.testing.assert_close(alone(batch_of(HISTORIES)), without(batch_of(HISTORIES)))


def test_a_history_without_content_has_equal_shares() -> None:
    shares = shares_of(transition_weight=0.0)
    shares.directions[4] = 0
    torch.testing.assert_close(shares(batch_of([[4]]))[0, 5:].exp(), torch.full((5,), 1 / 8))


def test_an_item_without_content_inherits_nothing() -> None:
    content = torch.randn(N + 1, 4, generator=torch.Generator().manual_seed(1))
    content[8] = 0
    shares = shares_of(content=content)
    assert shares.near_weights[shares.new_items == 8].count_nonzero() == 0
    assert shares.near_weights[shares.new_items != 8].count_nonzero() > 0


def test_a_list_stays_as_it_is_if_every_item_has_events() -> None:
    shares = shares_of()
    shares.set_popularity(torch.ones(N + 1), None)
    answer = Recommendations(torch.tensor([[5, 6]]), torch.tensor([[-1.0, -2.0]]))
    assert shares.merge(answer, batch_of([[1, 2]])) is answer


def test_content_is_required() -> None:
    with pytest.raises(ValueError, match="needs a catalogue with content"):
        ContentShares(ContentSharesConfig(), None)


@pytest.mark.parametrize("power", [0.4, 1.0])
@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
def test_a_merged_list_has_the_best_of_both(weight: float, power: float) -> None:
    shares, k = shares_of(weight=weight, power=power), 4
    probabilities = torch.tensor([0.0, 0.3, 0.25, 0.2, 0.1, 0.08, 0.07])
    rows = [[item for item in range(1, 7) if item not in history] for history in HISTORIES]
    rows = [sorted(row, key=lambda item: -float(probabilities[item]))[:k] for row in rows]
    items = Jagged.from_rows(rows).to_padded(k)
    scores = probabilities[items].log()
    answer = shares.merge(Recommendations(items, scores), batch_of(HISTORIES))
    for row, history in enumerate(HISTORIES):
        expected = {item: float(probabilities[item]) for item in rows[row]}
        new = expected_shares(shares, TRAINING, history)
        expected |= {item: weight * share**power for item, share in new.items() if UNSEEN[item]}
        best = sorted(expected, key=lambda item: -expected[item])[:k]
        assert answer.item_ids[row].tolist() == best
        assert answer.scores[row].exp().tolist() == pytest.approx([expected[item] for item in best], rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    allowed=st.sets(st.integers(1, N)),
    rows=st.lists(st.lists(st.integers(1, N), min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_only_new_items_that_a_request_allows_are_added(allowed: set[int], rows: list[list[int]]) -> None:
    mask = torch.isin(torch.arange(N + 1), torch.tensor(sorted(allowed), dtype=torch.int64))[None]
    none = Recommendations(torch.zeros((len(rows), 5), dtype=torch.int64), torch.full((len(rows), 5), -torch.inf))
    answer = shares_of().merge(none, batch_of(rows, allowed=mask))
    for history, items in zip(rows, answer.item_ids.tolist(), strict=True):
        assert {item for item in items if item} == (allowed & {7, 8, 9}) - set(history)
