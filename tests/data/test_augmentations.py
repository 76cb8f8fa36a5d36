"""Views of histories: what each kind keeps, hides or moves, whatever the rows and shares."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.jagged import Jagged
from nextitem.data.examples.augmentations import augmented, crop, mask, reorder


@st.composite
def cases(draw: Any) -> tuple[Jagged, list[float], torch.Generator]:
    """Rows of distinct items (row r holds 1000 r + 1, ...), a share for each, and a generator."""
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
    for row, part, kept in zip(
        histories.to_lists(), crop(histories, share(shares), generator).to_lists(), shares, strict=True
    ):
        assert len(part) == max(min(1, len(row)), math.floor(kept * len(row)))
        assert set(part) <= set(row)
        assert all(after == before + 1 for before, after in pairwise(part))


@settings(deadline=None)
@given(cases())
def test_a_mask_keeps_length_and_places(case: tuple[Jagged, list[float], torch.Generator]) -> None:
    histories, shares, generator = case
    masked = mask(histories, share(shares), generator, symbol=-7)
    assert torch.equal(masked.offsets, histories.offsets)
    for row, view, hidden in zip(histories.to_lists(), masked.to_lists(), shares, strict=True):
        assert view.count(-7) == math.floor(hidden * len(row))
        assert all(item in (-7, own) for own, item in zip(row, view, strict=True))


@settings(deadline=None)
@given(cases())
def test_a_reordering_permutes_one_window_only(case: tuple[Jagged, list[float], torch.Generator]) -> None:
    histories, shares, generator = case
    moved = reorder(histories, share(shares), generator)
    assert torch.equal(moved.offsets, histories.offsets)
    for row, view, part in zip(histories.to_lists(), moved.to_lists(), shares, strict=True):
        assert sorted(view) == row
        changed = [place for place, (own, item) in enumerate(zip(row, view, strict=True)) if own != item]
        if changed:
            assert changed[-1] - changed[0] < math.floor(part * len(row))


@settings(deadline=None)
@given(cases())
def test_a_view_is_one_of_the_three(case: tuple[Jagged, list[float], torch.Generator]) -> None:
    histories, _, generator = case
    view = augmented(histories, cropped=0.6, masked=0.3, reordered=0.6, generator=generator)
    for row, seen in zip(histories.to_lists(), view.to_lists(), strict=True):
        cropped, masked, moved = len(seen) < len(row), 0 in seen, seen != sorted(seen)
        assert min(1, len(row)) <= len(seen) <= len(row)
        assert cropped + masked + (moved and not masked) <= 1
        assert set(seen) <= {0, *row}


def test_every_place_has_its_turn() -> None:
    """Over 3000 rows of five: crops begin, masks fall and windows lie anywhere, evenly."""
    rows, generator = 3000, torch.Generator().manual_seed(0)
    histories = Jagged.from_rows([[1, 2, 3, 4, 5]] * rows)
    parts = crop(histories, share([0.6] * rows), generator).values.view(rows, 3)
    starts = torch.bincount(parts[:, 0] - 1) / rows
    assert starts.tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    hidden = (mask(histories, share([0.4] * rows), generator).values.view(rows, 5) == 0).double().mean(0)
    assert hidden.tolist() == pytest.approx([0.4] * 5, abs=0.05)
    moved = reorder(histories, share([0.6] * rows), generator).values.view(rows, 5)
    # A window of three lies in three places; an item in it stays where it is once in three.
    expected = [2 / 9, 4 / 9, 6 / 9, 4 / 9, 2 / 9]
    assert (moved != torch.arange(1, 6)).double().mean(0).tolist() == pytest.approx(expected, abs=0.05)
    ways = augmented(histories, cropped=0.6, masked=0.4, reordered=1.0, generator=generator)
    assert float((ways.lengths == 3).double().mean()) == pytest.approx(1 / 3, abs=0.05)


def test_the_generator_alone_decides() -> None:
    histories = Jagged.from_rows([[*range(1, 21)], [*range(30, 45)]])

    def view(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return augmented(histories, cropped=0.6, masked=0.3, reordered=0.6, generator=generator).to_lists()

    assert view(1) == view(1)
    assert view(1) != view(2)
