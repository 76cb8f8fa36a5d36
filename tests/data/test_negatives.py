"""Sampled negatives: shapes, distribution, and the log of the expected counts."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.negatives import Negatives, sample_negatives

POPULARITY = torch.tensor([0.0, 9.0, 3.0, 0.0, 1.0])


def batch() -> NextItemBatch:
    items = Jagged.from_rows([[1, 2, 3], [4, 1]])
    return NextItemBatch(items, items.with_values(torch.tensor([2, 0, 4, 1, 2])), 0)


def sample(seed: int = 0, **options: object) -> Negatives:
    generator = torch.Generator().manual_seed(seed)
    return sample_negatives(batch(), POPULARITY, generator=generator, **{"count": 6, "shared_by": "batch", **options})  # type: ignore[arg-type]


def test_negatives_belong_to_a_batch_a_sequence_or_a_position() -> None:
    assert sample().negatives.shape == (6,)
    assert sample(shared_by="position").negatives.shape == (4, 6)  # real targets only
    by_sequence = sample(shared_by="sequence", count=50)
    assert by_sequence.negatives.shape == (2, 50)
    assert by_sequence.lengths is not None
    assert by_sequence.is_excluded is not None
    assert by_sequence.lengths.tolist() == [2, 2]
    assert bool(by_sequence.is_excluded[0].all())  # items 1, 2, 3 and target 4: the whole catalogue
    assert torch.equal(by_sequence.is_excluded[1], by_sequence.negatives[1] != 3)
    assert sample().lengths is None
    assert sample(shared_by="position").is_excluded is None


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_items_are_sampled_by_popularity_to_the_power_with_the_right_log_q(power: float) -> None:
    sampled = sample(count=40_000, power=power)
    expected = 40_000 * (POPULARITY[1:] + 1) ** power / ((POPULARITY[1:] + 1) ** power).sum()
    counts = torch.bincount(sampled.negatives, minlength=5)[1:].double()
    exactly = expected.double() * (40_000 / expected.double().sum())  # the sum in float32 is not exact
    assert chisquare(counts.numpy(), exactly.numpy()).pvalue > 1e-3
    if power == 0:
        assert sampled.log_q is None
    else:
        assert sampled.log_q is not None
        torch.testing.assert_close(sampled.log_q[1:].exp(), expected)


def test_the_same_seed_returns_the_same_negatives() -> None:
    assert torch.equal(sample(3).negatives, sample(3).negatives)
    assert not torch.equal(sample(3, count=40).negatives, sample(4, count=40).negatives)
