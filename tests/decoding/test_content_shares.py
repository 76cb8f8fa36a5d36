"""Shares of items without a training event, compared with their definition, and merged lists with the best of both."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.decoding.content_shares import ContentShares, ContentSharesConfig

N = 9
HISTORIES = [[1, 2, 3], [4], [5, 5, 6, 7]]
UNSEEN = torch.isin(torch.arange(N + 1), torch.tensor([7, 8, 9]))


def shares_of(**settings: float) -> ContentShares:
    content = torch.randn(N + 1, 4, generator=torch.Generator().manual_seed(0))
    content[0] = 0
    return ContentShares(ContentSharesConfig.model_validate(settings), content)


def batch_of(rows: list[list[int]], *, allowed: Tensor | None = None) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(rows), excluded=Jagged.from_rows(rows), allowed=allowed)


def expected_shares(shares: ContentShares, history: list[int]) -> dict[int, float]:
    """Return the shares of the items outside the history, by their definition."""
    config, vectors = shares.config, shares.directions
    recent = history[-config.recent_items :]
    profile = sum((config.recency_decay**age * vectors[item] for age, item in enumerate(reversed(recent))), vectors[0])
    others = [item for item in range(1, N + 1) if item not in history]
    powers = {
        item: math.exp(float(torch.cosine_similarity(profile, vectors[item], 0)) / config.temperature)
        for item in others
    }
    return {item: power / sum(powers.values()) for item, power in powers.items()}


@pytest.mark.parametrize("settings", [{}, {"recent_items": 2, "recency_decay": 0.5, "temperature": 0.4}])
def test_shares_equal_their_definition(settings: dict[str, float]) -> None:
    shares = shares_of(**settings)
    actual = shares(batch_of(HISTORIES)).exp()
    for row, history in enumerate(HISTORIES):
        expected = expected_shares(shares, history)
        assert actual[row, 0] == 0
        assert {i: float(actual[row, i]) for i in range(1, N + 1) if actual[row, i] > 0} == pytest.approx(
            expected, rel=1e-4
        )


def test_a_history_without_content_has_equal_shares() -> None:
    shares = shares_of()
    shares.directions[4] = 0
    torch.testing.assert_close(shares(batch_of([[4]]))[0, 5:].exp(), torch.full((5,), 1 / 8))


@pytest.mark.parametrize("weight", [0.01, 1.0, 100.0])
def test_a_merged_list_has_the_best_of_both(weight: float) -> None:
    shares, k = shares_of(weight=weight), 4
    probabilities = torch.tensor([0.0, 0.3, 0.25, 0.2, 0.1, 0.08, 0.07])
    rows = [[item for item in range(1, 7) if item not in history] for history in HISTORIES]
    rows = [sorted(row, key=lambda item: -float(probabilities[item]))[:k] for row in rows]
    items = Jagged.from_rows(rows).to_padded(k)
    scores = probabilities[items].log()
    answer = shares.merge(Recommendations(items, scores), batch_of(HISTORIES), UNSEEN)
    for row, history in enumerate(HISTORIES):
        expected = {item: float(probabilities[item]) for item in rows[row]}
        new = expected_shares(shares, history)
        expected |= {item: weight * share for item, share in new.items() if UNSEEN[item]}
        best = sorted(expected, key=lambda item: -expected[item])[:k]
        assert answer.item_ids[row].tolist() == best
        assert answer.scores[row].exp().tolist() == pytest.approx([expected[item] for item in best], rel=1e-4)


def test_only_allowed_items_are_added() -> None:
    allowed = torch.isin(torch.arange(N + 1), torch.tensor([1, 8]))[None]
    none = Recommendations(torch.zeros((3, 5), dtype=torch.int64), torch.full((3, 5), -torch.inf))
    answer = shares_of().merge(none, batch_of(HISTORIES, allowed=allowed), UNSEEN)
    assert answer.item_ids.tolist() == [[8, 0, 0, 0, 0]] * 3
