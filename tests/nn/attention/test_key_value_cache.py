"""Key/value cache: new positions follow the cached ones of their row, and see exactly these and themselves."""

from __future__ import annotations

import torch

from nextitem.nn.attention.key_value_cache import KeyValueCache, NewPositions


def numbered(*entries: list[int]) -> torch.Tensor:
    """Return keys and values [B, P, 2, 1, 1]: the keys are the numbers, the values their negatives."""
    keys = torch.tensor(entries, dtype=torch.float32)
    return torch.stack([keys, -keys], -1)[..., None, None]


def test_rows_grow_by_different_numbers_of_positions() -> None:
    cached = numbered([1, 2, 3], [4, 99, 99])
    further = NewPositions(torch.tensor([3, 1]), torch.tensor([1, 2]))
    cache = KeyValueCache(cached, further)
    grown = cache.append(numbered([5, 77], [6, 7]))
    assert cache.keys_values is grown
    assert grown[:, :, 0, 0, 0].tolist() == [[1, 2, 3, 5], [4, 6, 7, 0]]
    assert torch.equal(grown[:, :, 1], -grown[:, :, 0])
    assert cached[1, 1, 0, 0, 0] == 99
    assert cache.visible is not None
    num_visible = cache.visible[:, 0].sum(-1)
    assert num_visible[0, 0] == 4
    assert num_visible[1].tolist() == [2, 3]


def test_unused_columns_of_the_cache_are_dropped() -> None:
    cache = KeyValueCache(numbered([1, 99, 99, 99]), NewPositions(torch.tensor([1]), torch.tensor([1])))
    assert cache.append(numbered([2]))[0, :, 0, 0, 0].tolist() == [1, 2]


def test_first_pass_stores_its_keys_and_values() -> None:
    cache = KeyValueCache()
    assert cache.visible is None
    assert cache.append(numbered([1, 2]))[0, :, 0, 0, 0].tolist() == [1, 2]
