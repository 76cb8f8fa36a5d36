"""stable_topk, compared with a stable sort of whole rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.ops.topk import stable_topk, stable_topk_reference


@st.composite
def score_rows(draw: Any) -> tuple[torch.Tensor, int]:
    # Few distinct values, so that there are ties within the first k, across the k-th entry, and of -inf.
    value = st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 2.0])
    width = draw(st.integers(1, 40))
    row = st.lists(value, min_size=width, max_size=width)
    rows = draw(st.lists(row, min_size=1, max_size=5))
    return torch.tensor(rows), draw(st.integers(1, width))


@settings(max_examples=300, deadline=None)
@given(case=score_rows())
def test_topk_equals_the_reference(case: tuple[torch.Tensor, int]) -> None:
    scores, k = case
    values, indices = stable_topk(scores, k)
    expected_values, expected_indices = stable_topk_reference(scores, k)
    assert torch.equal(values, expected_values)
    real = values > -torch.inf
    assert torch.equal(indices[real], expected_indices[real])


def test_topk_of_large_rows_with_ties_at_the_last_entry_equals_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 50, (8, 5000), generator=generator).float()
    for k in (1, 20, 99, 4999, 5000):
        for fast, plain in zip(stable_topk(scores, k), stable_topk_reference(scores, k), strict=True):
            assert torch.equal(fast, plain)


@pytest.mark.parametrize("k", [1, 3])
def test_topk_does_not_change_its_input(k: int) -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0], [3.0, 2.0, 1.0]])
    before = scores.clone()
    stable_topk(scores, k)
    assert torch.equal(scores, before)


def test_topk_of_rows_of_minus_infinity_returns_distinct_indices() -> None:
    values, indices = stable_topk(torch.full((2, 6), -torch.inf), 3)
    assert (values == -torch.inf).all()
    assert all(len(set(row)) == 3 for row in indices.tolist())
