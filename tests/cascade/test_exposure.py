"""Exposure by provider: known lists, the floor that each provider gets, its ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_catalog import build, candidates, lists, requests, shelf

from nextitem.cascade.exposure import slot_exposures
from nextitem.core.errors import UserError


def test_the_exposure_of_places() -> None:
    torch.testing.assert_close(
        slot_exposures(3), torch.tensor([1, 0.63093, 0.5], dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_providers_of_equal_merit_take_turns() -> None:
    """All scores equal: a holds the smaller numbers, so it would fill the list alone."""
    found = build("exposure", shelf(["a"] * 5 + ["b"] * 5), column="brand", share=1).rerank(
        candidates([list(range(1, 11))], scores=[[1.0] * 10]), requests([[1]]), 6
    )
    # Each is owed half of 1, 1.63, 2.13, 2.56, 2.95, 3.30. After 1: b .82 >= .63; then b .43 < .50, so the best item;
    # b .65 >= .43; b .41 >= .39; b .20 < .36.
    assert lists(found) == [[1, 6, 2, 7, 8, 3]]


def test_a_provider_without_merit_is_owed_nothing() -> None:
    found = build("exposure", shelf(["a"] * 3 + ["b"] * 2), column="brand", share=1).rerank(
        candidates([[1, 2, 3, 4, 5]], scores=[[9.0, 9.0, 9.0, 0.0, 0.0]]), requests([[1]]), 3
    )
    assert lists(found) == [[1, 2, 3]]


def test_share_0_keeps_the_order() -> None:
    found = build("exposure", shelf(["a", "b"] * 5), column="brand", share=0).rerank(
        candidates([[1, 3, 5, 7, 2, 4]]), requests([[1]]), 5
    )
    assert lists(found) == [[1, 3, 5, 7, 2]]


def test_items_without_a_provider_are_owed_nothing() -> None:
    found = build("exposure", shelf(["a", "a", "a", None, None]), column="brand", share=1).rerank(
        candidates([[1, 2, 3, 4, 5]], scores=[[1.0] * 5]), requests([[1]]), 3
    )
    assert lists(found) == [[1, 2, 3]]


@given(
    seed=st.integers(0, 10**6),
    providers=st.integers(1, 6),
    share=st.sampled_from([0.3, 0.6, 0.8, 1.0]),
    k=st.integers(1, 20),
)
@settings(max_examples=150, deadline=None)
def test_no_provider_with_items_left_falls_short_by_the_first_place(
    seed: int, providers: int, share: float, k: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    brand = torch.randint(providers, (60,), generator=draw)
    scores = torch.rand(60, generator=draw).sort(descending=True).values
    found = build("exposure", shelf([f"p{int(b)}" for b in brand]), column="brand", share=share).rerank(
        candidates([list(range(1, 61))], scores=[scores.tolist()]), requests([[1]]), k
    )
    shown = torch.tensor(lists(found)[0]) - 1
    worth = (scores - scores[-1]) / (scores[0] - scores[-1])
    place = slot_exposures(k)
    for provider in range(providers):
        own = brand == provider
        exposure = float(place[own[shown]].sum())
        owed = share * float(worth[own].sum() / worth.sum()) * float(place.sum())
        if int(own[shown].sum()) < int(own.sum()):
            assert exposure > owed - 1.0


def test_an_unknown_column_is_said() -> None:
    with pytest.raises(UserError, match="'tags' is of type categorical-list"):
        build("exposure", shelf(["a"]), column="tags")
