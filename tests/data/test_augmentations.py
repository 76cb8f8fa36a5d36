"""Augmented histories: properties of crops, masks and reorderings for random rows and shares."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.jagged import Jagged
from nextitem.data.examples.augmentations import augment, crop, mask, reorder


@st.composite
def cases(draw: Any) -> tuple[Jagged, list[float], torch.Generator]:
    """Return rows of distinct items (row r contains 1000 r + 1, ...), a share for each, and a generator."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    rows = [[1000 * row + place + 1 for place in range(length)] for row, length in enumerate(lengths)]
    shares = draw(st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.6, 1.0]), min_size=len(rows), max_size=len(rows)))
    return Jagged.from_rows(rows), shares, torch.Generator().manual_seed(draw(st.integers(0, 2**30)))


def share(shares: list[float]) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64)


@settings(deadline=None)
@given(cases())
def test_a_crop_is_a_contiguous_part(case: tuple[Jagged, list[float], torch.Generator]) -> None:
    histories, shares, generator = case
    for row, part, crop_share in zip(
        histories.to_lists(), crop(histories, share(shares), generator).to_lists(), shares, strict=True
    ):
        assert len(part) == max(min(1, len(row)), math.floor(crop_share * len(row)))
        assert set(part) <= set(row)
        assert all(after == before + 1 for before, after in pairwise(part))


@settings(deadline=None)
@given(cases())
def test_a_mask_changes_neither_length_nor_order(case: tuple[Jagged, list[float], torch.Generator]) -> None:
    histories, shares, generator = case
    masked = mask(histories, share(shares), generator, symbol=-7)
    assert torch.equal(masked.offsets, histories.offsets)
    for row, view, hidden in zip(histories.to_lists(), masked.to_lists(), shares, strict=True):
        assert view.count(-7) == math.floor(hidden * len(row))
        assert all(item in (-7, original) for original, item in zip(row, view, strict=True))


@settings(deadline=None)
@given(cases())
def test_a_reordering_permutes_one_window_only(case: tuple[Jagged, list[float], torch.Generator]) -> None:
    histories, shares, generator = case
    moved = reorder(histories, share(shares), generator)
    assert torch.equal(moved.offsets, histories.offsets)
    for row, view, part in zip(histories.to_lists(), moved.to_lists(), shares, strict=True):
        assert sorted(view) == row
        changed = [place for place, (original, item) in enumerate(zip(row, view, strict=True)) if original != item]
        if changed:
            assert changed[-1] - changed[0] < math.floor(part * len(row))


@settings(deadline=None)
@given(cases())
def test_a_view_is_a_crop_a_mask_or_a_reordering(case: tuple[Jagged, list[float], torch.Generator]) -> None:
    histories, _, generator = case
    view = augment(histories, crop_share=0.6, mask_share=0.3, reorder_share=0.6, generator=generator)
    for row, view_row in zip(histories.to_lists(), view.to_lists(), strict=True):
        is_cropped, is_masked, is_moved = len(view_row) < len(row), 0 in view_row, view_row != sorted(view_row)
        assert min(1, len(row)) <= len(view_row) <= len(row)
        assert is_cropped + is_masked + (is_moved and not is_masked) <= 1
        assert set(view_row) <= {0, *row}


def test_crops_masks_and_windows_are_uniform_over_places() -> None:
    """Check 3000 rows of five items: crops, masks and reordered windows are at every place equally often."""
    rows, generator = 3000, torch.Generator().manual_seed(0)
    histories = Jagged.from_rows([[1, 2, 3, 4, 5]] * rows)
    parts = crop(histories, share([0.6] * rows), generator).values.view(rows, 3)
    starts = torch.bincount(parts[:, 0] - 1) / rows
    assert starts.tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    hidden = (mask(histories, share([0.4] * rows), generator).values.view(rows, 5) == 0).double().mean(0)
    assert hidden.tolist() == pytest.approx([0.4] * 5, abs=0.05)
    moved = reorder(histories, share([0.6] * rows), generator).values.view(rows, 5)
    # A window of three has three places; an item in it stays at its place with probability 1 / 3.
    expected = [2 / 9, 4 / 9, 6 / 9, 4 / 9, 2 / 9]
    assert (moved != torch.arange(1, 6)).double().mean(0).tolist() == pytest.approx(expected, abs=0.05)
    views = augment(histories, crop_share=0.6, mask_share=0.4, reorder_share=1.0, generator=generator)
    assert float((views.lengths == 3).double().mean()) == pytest.approx(1 / 3, abs=0.05)


def test_views_depend_on_the_generator_alone() -> None:
    histories = Jagged.from_rows([[*range(1, 21)], [*range(30, 45)]])

    def view(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return augment(histories, crop_share=0.6, mask_share=0.3, reorder_share=0.6, generator=generator).to_lists()

    assert view(1) == view(1)
    assert view(1) != view(2)
