"""Tests of the hash table of ids: against a dict, with collisions, removals, growth, and ids of any sign."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.nn.tables.id_hash import NUM_SLICES, cells_of, hash_ids, hash_normal, slices_of
from nextitem.nn.tables.id_index import MIN_SLOTS, IdIndex

MASK = 2**64 - 1
IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5)


def split_mix(value: int, seed: int) -> int:
    """Return the hash of one id by Python's own integers."""
    value = (value + 0x9E3779B97F4A7C15 * (seed + 1)) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return (value ^ (value >> 31)) & (2**63 - 1)


def test_hashes_equal_those_of_exact_integers() -> None:
    ids = [0, 1, -1, 2**62, -(2**63), 2**63 - 1, 123456789]
    for seed in (0, 7):
        assert hash_ids(torch.tensor(ids), seed).tolist() == [split_mix(value, seed) for value in ids]
    # The reference numbers of SplitMix64 for the seed 0, without the highest bit.
    assert hash_ids(torch.tensor([0])).item() == 0xE220A8397B1DCDAF & (2**63 - 1)


def test_cells_are_even_and_never_shared_between_slices() -> None:
    ids = torch.arange(-20_000, 20_000)
    cells = cells_of(ids, count=4 * NUM_SLICES, seed=5)
    assert torch.equal(cells % NUM_SLICES, slices_of(ids))
    counts = torch.bincount(cells, minlength=4 * NUM_SLICES).float()
    assert float((counts - counts.mean()).square().mean() / counts.mean()) == pytest.approx(1, abs=0.3)  # Poisson


def test_initial_vectors_are_normal_and_depend_on_the_id_alone() -> None:
    vectors = hash_normal(torch.arange(20_000), 3)
    assert vectors.mean(0).abs().max() < 0.03
    assert (vectors.std(0) - 1).abs().max() < 0.02
    assert torch.corrcoef(vectors.T)[0, 1].abs() < 0.03
    assert torch.equal(hash_normal(torch.tensor([7, 3]), 3), vectors[[7, 3]])


def colliding_ids(count: int) -> torch.Tensor:
    """Return ids whose searches begin in the same slot of the smallest index."""
    ids = torch.arange(1, 200_000)
    first_slots = IdIndex()._first_slots(ids)
    return ids[first_slots == first_slots[0]][:count]


def test_ids_that_collide_are_all_found_and_can_be_removed() -> None:
    ids, index = colliding_ids(12), IdIndex()
    index.insert(ids, torch.arange(12))
    assert index.num_slots == MIN_SLOTS
    assert index.lookup(ids).tolist() == list(range(12))
    index.remove(ids[[0, 5]])  # the later ones stay reachable behind the markers
    assert index.lookup(ids).tolist() == [-1, 1, 2, 3, 4, -1, 6, 7, 8, 9, 10, 11]
    index.insert(ids[[5]], torch.tensor([99]))
    assert index.lookup(ids[[0, 5, 11]]).tolist() == [-1, 99, 11]
    assert len(index) == 11


def test_the_index_grows_before_it_is_more_than_half_full() -> None:
    index = IdIndex()
    index.insert(torch.arange(1, 33), torch.arange(32))
    assert index.num_slots == 64
    index.insert(torch.tensor([33]), torch.tensor([32]))
    assert index.num_slots == 128
    assert index.lookup(torch.arange(0, 35)).tolist() == [-1, *range(33), -1]


def test_markers_of_removed_ids_do_not_make_the_index_grow() -> None:
    index = IdIndex()
    for start in range(0, 5000, 10):
        ids = torch.arange(start, start + 10)
        index.insert(ids, ids)
        index.remove(ids)
    assert index.num_slots == MIN_SLOTS
    assert len(index) == 0
    assert index.lookup(torch.arange(5000)).eq(-1).all()


def test_nothing_is_looked_up_inserted_and_removed() -> None:
    index, none = IdIndex(), torch.zeros(0, dtype=torch.int64)
    index.insert(none, none)
    index.remove(none)
    assert index.lookup(none).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(IDS, unique=True, max_size=30)), max_size=12))
def test_any_sequence_of_changes_equals_that_of_a_dict(changes: list[tuple[bool, list[int]]]) -> None:
    index, reference, next_row = IdIndex(), dict[int, int](), 0
    for is_insertion, ids in changes:
        selected = [value for value in ids if (value not in reference) == is_insertion]
        tensor = torch.tensor(selected, dtype=torch.int64)
        if is_insertion:
            rows = list(range(next_row, next_row + len(selected)))
            next_row += len(selected)
            index.insert(tensor, torch.tensor(rows, dtype=torch.int64))
            reference.update(zip(selected, rows, strict=True))
        else:
            index.remove(tensor)
            for value in selected:
                del reference[value]
        queries = [*ids, *reference, 0, 17]
        expected = [reference.get(value, -1) for value in queries]
        assert index.lookup(torch.tensor(queries, dtype=torch.int64)).tolist() == expected
        assert len(index) == len(reference)
