"""Greedy MAP inference: compared with a naive search by determinants and an example; duplicates, windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextitem.ops.greedy_map import greedy_map, greedy_map_reference


def search(kernels: Tensor, k: int, *, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the result of `greedy_map` for complete kernels [B, N, N]."""
    rows = torch.arange(len(kernels))
    return greedy_map(lambda places: kernels[rows, places], kernels.diagonal(dim1=1, dim2=2), k, window=window)


def kernel(seed: int, items: int, width: int, *, batch: int = 1) -> Tensor:
    """Return random kernels [batch, items, items], positive definite if width >= items, else of rank `width`."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn((batch, items, width), generator=generator, dtype=torch.float64)
    return vectors @ vectors.transpose(1, 2)


def test_the_example_by_hand_skips_a_near_duplicate() -> None:
    """Items 0 and 1 have the largest diagonal entries and are nearly equal, so 2 is selected after 0."""
    similarity = torch.tensor([[1, 0.9, 0.1], [0.9, 0.98, 0.1], [0.1, 0.1, 0.9]], dtype=torch.float64)
    selected, added = search(similarity[None], 2)
    assert selected.tolist() == [[0, 2]]
    torch.testing.assert_close(added.exp(), torch.tensor([[1.0, 0.89]], dtype=torch.float64))


@given(
    seed=st.integers(0, 10**6), items=st.integers(1, 9), extra=st.integers(0, 4), window=st.none() | st.integers(2, 9)
)
@settings(max_examples=60, deadline=None)
def test_greedy_map_equals_the_naive_search(seed: int, items: int, extra: int, window: int | None) -> None:
    kernels = kernel(seed, items, items + extra)
    selected, added = search(kernels, items, window=window)
    expected, gains = greedy_map_reference(kernels[0], items, window=window)
    assert selected[0].tolist() == expected
    torch.testing.assert_close(added[0], torch.tensor(gains, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_gains_sum_to_the_log_determinant(seed: int) -> None:
    kernels = kernel(seed, 12, 15, batch=3)
    selected, added = search(kernels, 7)
    for row in range(3):
        part = kernels[row][selected[row]][:, selected[row]]
        torch.testing.assert_close(added[row].sum(), torch.logdet(part))


def test_log_quality_scales_rows_and_columns_of_the_kernel() -> None:
    kernels = kernel(0, 10, 12, batch=2)
    log_quality = torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scaled = kernels * (log_quality[:, :, None] + log_quality[:, None]).exp()
    rows = torch.arange(2)
    diagonal = kernels.diagonal(dim1=1, dim2=2)
    actual = greedy_map(lambda items: kernels[rows, items], diagonal, 6, log_quality=log_quality)
    expected = search(scaled, 6)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_are_selected_after_all_others(seed: int) -> None:
    """Even duplicates of high quality come last, in order of their numbers."""
    single = kernel(seed, 6, 6)[0]
    twice = torch.arange(6).repeat_interleave(2)
    kernels = single[twice][:, twice][None]
    log_quality = torch.zeros(1, 12, dtype=torch.float64)
    log_quality[0, 4:6] = 40.0  # q^2 = e^80
    selected, added = greedy_map(
        lambda places: kernels[0, places], kernels[0].diagonal()[None], 12, log_quality=log_quality
    )
    assert sorted((selected[0, :6] // 2).tolist()) == list(range(6))
    assert selected[0, 0] == 4
    assert selected[0, 6:].tolist() == sorted(selected[0, 6:].tolist())
    assert bool((added[0, 6:] == -torch.inf).all())


@pytest.mark.parametrize("width", [2, 5])
def test_gains_are_finite_up_to_the_rank_of_the_kernel(width: int) -> None:
    selected, added = search(kernel(3, 9, width), 9)
    assert bool(added[0, :width].isfinite().all())
    assert bool((added[0, width:] == -torch.inf).all())
    assert sorted(selected[0].tolist()) == list(range(9))


@pytest.mark.parametrize("window", [8, 20])
def test_a_window_as_long_as_the_list_changes_nothing(window: int) -> None:
    kernels = kernel(4, 15, 20, batch=4)
    assert torch.equal(search(kernels, 8, window=window)[0], search(kernels, 8)[0])


def test_a_window_lets_a_value_be_selected_again() -> None:
    """There are three values with four items each: with a window of three the values alternate."""
    value = torch.arange(3).repeat(4)
    kernels = (value[:, None] == value).double()[None]
    selected, added = search(kernels, 12, window=3)
    assert value[selected[0]].tolist() == [0, 1, 2] * 4
    assert bool(added.isfinite().all())
    assert value[search(kernels, 12)[0][0, :3]].tolist() == [0, 1, 2]


def test_barred_items_are_never_selected() -> None:
    kernels = kernel(5, 8, 8)
    barred = torch.zeros(1, 8, dtype=torch.float64)
    barred[0, [0, 3]] = -torch.inf
    selected, _ = greedy_map(lambda places: kernels[0, places], kernels[0].diagonal()[None], 6, barred=barred)
    assert sorted(selected[0].tolist()) == [1, 2, 4, 5, 6, 7]
