"""Sparse rows: equal the same operations on dense rows."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.neighbours import sparse_rows
from nextitem.neighbours.sparse_rows import (
    SparseRows,
    ages,
    keep_largest,
    keep_largest_of_dense,
    padded_rows,
    weighted_histories,
)
from nextitem.ops.topk import stable_topk_reference


def random_matrix(seed: int, *, rows: int, columns: int) -> sp.csr_matrix:
    """Return a random matrix with few distinct positive values, so that there are many ties.

    Columns are not sorted, as after a product of sparse matrices.
    """
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 4, (rows, columns)) * (rng.random((rows, columns)) < 0.5)
    matrix = sp.csr_matrix(dense.astype(np.float32))
    for low, high in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        order = rng.permutation(high - low)
        matrix.indices[low:high], matrix.data[low:high] = matrix.indices[low:high][order], matrix.data[low:high][order]
    matrix.has_sorted_indices = False
    return matrix


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), columns=st.integers(1, 12), count=st.integers(1, 12))
def test_keep_largest_equals_a_stable_sort_of_dense_rows(seed: int, rows: int, columns: int, count: int) -> None:
    matrix = random_matrix(seed, rows=rows, columns=columns)
    dense = torch.from_numpy(matrix.toarray())
    values, places = stable_topk_reference(dense, min(count, columns))
    expected = torch.zeros_like(dense).scatter_(1, places, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_rows, "PADDED_ENTRIES", 20)
        patch.setattr(sparse_rows, "GROUP", 2)
        results = [keep_largest(matrix, count), keep_largest_of_dense(dense.numpy(), count)]
    for largest in results:
        assert torch.equal(torch.from_numpy(largest.toarray()), expected)
        assert largest.has_sorted_indices
        assert largest.nnz == int((expected > 0).sum())
        assert int(np.diff(largest.indptr).max()) <= count


def test_keep_largest_of_an_empty_matrix_is_empty() -> None:
    assert keep_largest(sp.csr_matrix((3, 4), dtype=np.float32), 2).nnz == 0
    assert keep_largest(sp.csr_matrix((0, 4), dtype=np.float32), 2).shape == (0, 4)


def test_padded_rows_contain_the_entries_of_the_selected_rows() -> None:
    matrix = sp.csr_matrix(np.array([[0, 2.0, 3, 0], [0, 0, 0, 0], [5, 0, 0, 7]], dtype=np.float32))
    values, columns = padded_rows(matrix, np.array([2, 1, 0]))
    assert values.tolist() == [[5, 7], [-np.inf, -np.inf], [2, 3]]
    assert columns.tolist() == [[0, 3], [0, 0], [1, 2]]


def test_stored_matrix_is_returned_unchanged() -> None:
    matrix = random_matrix(3, rows=4, columns=5)
    rows = SparseRows()
    rows.store(matrix)
    np.testing.assert_array_equal(rows.matrix().toarray(), matrix.toarray())


def test_weights_of_another_size_are_loaded() -> None:
    saved, loaded = SparseRows(), SparseRows()
    saved.store(random_matrix(3, rows=4, columns=5))
    loaded.store(random_matrix(4, rows=2, columns=3))
    loaded.load_state_dict(saved.state_dict())
    np.testing.assert_array_equal(loaded.matrix().toarray(), saved.matrix().toarray())


def test_weights_of_a_repeated_item_in_a_history_are_added() -> None:
    items, offsets = torch.tensor([2, 3, 2, 1]), torch.tensor([0, 3, 3, 4])
    assert ages(offsets).tolist() == [2, 1, 0, 0]
    histories = weighted_histories(items, offsets, 0.5 ** ages(offsets).float(), num_items=3)
    assert histories.toarray().tolist() == [[0, 0, 1.25, 0.5], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_views_follow_the_values() -> None:
    first = sp.random(6, 5, density=0.4, random_state=np.random.default_rng(0), format="csr", dtype=np.float32)
    second = sp.random(4, 7, density=0.4, random_state=np.random.default_rng(1), format="csr", dtype=np.float32)
    rows, others = SparseRows(), SparseRows()
    rows.store(first)
    others.store(second)
    assert rows.transposed() is rows.transposed()
    np.testing.assert_array_equal(rows.transposed().toarray(), first.T.toarray())
    twin = copy(rows)
    twin._buffers = dict(rows._buffers)
    twin.store(second)
    for _ in range(2):
        np.testing.assert_array_equal(rows.matrix().toarray(), first.toarray())
        np.testing.assert_array_equal(twin.matrix().toarray(), second.toarray())
    rows.load_state_dict(others.state_dict())
    np.testing.assert_array_equal(rows.matrix().toarray(), second.toarray())
    np.testing.assert_array_equal(rows.transposed().toarray(), second.T.toarray())
    others.store((second * 2).tocsr())
    rows.load_state_dict(others.state_dict())  # the same sizes: written into the tensors that stand
    np.testing.assert_array_equal(rows.transposed().toarray(), 2 * second.T.toarray())
