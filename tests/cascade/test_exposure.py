"""Exposure by provider: lists computed by hand, and the minimum exposure of each provider."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_catalog import build, candidates, lists, requests, shelf

from nextitem.cascade.exposure import slot_exposures
from nextitem.core.errors import UserError


def test_the_exposure_of_a_slot_falls_with_its_logarithm() -> None:
    torch.testing.assert_close(
        slot_exposures(3), torch.tensor([1, 0.63093, 0.5], dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_providers_of_equal_merit_share_the_slots() -> None:
    """All scores are equal. Provider a has the smaller item numbers, so it would fill the list alone."""
    answer = build("exposure", shelf(["a"] * 5 + ["b"] * 5), column="brand", share=1).rerank(
        candidates([list(range(1, 11))], scores=[[1.0] * 10]), requests([[1]]), 6
    )
    # Each is owed half of 1, 1.63, 2.13, 2.56, 2.95, 3.30. After item 1, the debt to b is 0.82 >= 0.63, the exposure of
    # slot 2. Then it is 0.43 < 0.50, so the best item follows. Then 0.65 >= 0.43; 0.41 >= 0.39; 0.20 < 0.36.
    assert lists(answer) == [[1, 6, 2, 7, 8, 3]]


def test_a_provider_without_merit_gets_no_exposure() -> None:
    answer = build("exposure", shelf(["a"] * 3 + ["b"] * 2), column="brand", share=1).rerank(
        candidates([[1, 2, 3, 4, 5]], scores=[[9.0, 9.0, 9.0, 0.0, 0.0]]), requests([[1]]), 3
    )
    assert lists(answer) == [[1, 2, 3]]


def test_a_share_of_0_keeps_the_order() -> None:
    answer = build("exposure", shelf(["a", "b"] * 5), column="brand", share=0).rerank(
        candidates([[1, 3, 5, 7, 2, 4]]), requests([[1]]), 5
    )
    assert lists(answer) == [[1, 3, 5, 7, 2]]


def test_items_without_a_provider_get_no_exposure() -> None:
    answer = build("exposure", shelf(["a", "a", "a", None, None]), column="brand", share=1).rerank(
        candidates([[1, 2, 3, 4, 5]], scores=[[1.0] * 5]), requests([[1]]), 3
    )
    assert lists(answer) == [[1, 2, 3]]


@given(
    seed=st.integers(0, 10**6),
    num_providers=st.integers(1, 6),
    share=st.sampled_from([0.3, 0.6, 0.8, 1.0]),
    k=st.integers(1, 20),
)
@settings(max_examples=150, deadline=None)
def test_no_provider_with_items_left_lacks_the_exposure_of_the_first_slot(
    seed: int, num_providers: int, share: float, k: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    brand = torch.randint(num_providers, (60,), generator=generator)
    scores = torch.rand(60, generator=generator).sort(descending=True).values
    answer = build("exposure", shelf([f"p{int(code)}" for code in brand]), column="brand", share=share).rerank(
        candidates([list(range(1, 61))], scores=[scores.tolist()]), requests([[1]]), k
    )
    selection = torch.tensor(lists(answer)[0]) - 1
    relevance = (scores - scores[-1]) / (scores[0] - scores[-1])
    exposures = slot_exposures(k)
    for provider in range(num_providers):
        is_of_provider = brand == provider
        exposure = float(exposures[is_of_provider[selection]].sum())
        minimum = share * float(relevance[is_of_provider].sum() / relevance.sum()) * float(exposures.sum())
        if int(is_of_provider[selection].sum()) < int(is_of_provider.sum()):
            assert exposure > minimum - 1.0


def test_an_error_names_a_column_of_the_wrong_type() -> None:
    with pytest.raises(UserError, match="'tags' is of type categorical-list"):
        build("exposure", shelf(["a"]), column="tags")
