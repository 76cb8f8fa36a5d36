"""Sparse matrices of neighbourhood models: storage with the weights, largest entries of rows, padded rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextitem.core.interactions import Interactions

GROUP = 16  # number of entries whose common maximum is compared first
PADDED_ENTRIES = 2**22  # number of entries in a padded block: 16 MiB of values


class SparseRows(nn.Module):
    """CSR matrix whose parts are buffers of a module, so that it is saved and loaded with the weights.

    The buffers are empty until `store` is called. Loading a bundle gives them their saved size.
    """

    shape: Tensor
    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shape", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("offsets", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0))
        self._views: dict[str, tuple[weakref.ref[Tensor], sp.csr_matrix]] = {}  # by name, with the values that each has

    def store(self, matrix: sp.csr_matrix) -> None:
        """Store the entries of a scipy CSR matrix as float32."""
        matrix.sort_indices()
        self.shape = torch.tensor(matrix.shape, dtype=torch.int64)
        self.offsets = torch.from_numpy(matrix.indptr.astype(np.int64))
        self.columns = torch.from_numpy(matrix.indices.astype(np.int32))
        self.values = torch.from_numpy(matrix.data.astype(np.float32))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Load buffers as any module does, those of another size included: a matrix of other training data."""
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if saved is not None and buffer is not None and saved.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(saved.shape)
        self._views = {}  # loading may write into the same tensors
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def row(self, number: int, *, missing: float = 0.0) -> Tensor:
        """Return one row as a dense tensor; entries that are not stored become `missing`."""
        low, high = int(self.offsets[number]), int(self.offsets[number + 1])
        dense = self.values.new_full((int(self.shape[1]),), missing)
        dense[self.columns[low:high].long()] = self.values[low:high]
        return dense

    def matrix(self) -> sp.csr_matrix:
        """Return the scipy matrix, which shares memory with the buffers if they are on the CPU. Do not change it."""

        def new_matrix() -> sp.csr_matrix:
            parts = (self.values.cpu().numpy(), self.columns.cpu().numpy(), self.offsets.cpu().numpy())
            return sp.csr_matrix(parts, shape=tuple(self.shape.tolist()))

        return self._view("matrix", new_matrix)

    def transposed(self) -> sp.csr_matrix:
        """Return the transposed matrix in rows. Do not change it."""
        return self._view("transposed", lambda: self.matrix().T.tocsr())

    def _view(self, name: str, make: Callable[[], sp.csr_matrix]) -> sp.csr_matrix:
        """Return a matrix that is made once for the present values."""
        former = self._views.get(name)
        if former is not None and former[0]() is self.values:
            return former[1]
        self._views[name] = (weakref.ref(self.values), make())
        return self._views[name][1]


def weighted_histories(items: Tensor, offsets: Tensor, weights: Tensor, *, num_items: int) -> sp.csr_matrix:
    """Return jagged item ids as a sparse matrix of weights [B, N + 1]; weights of a repeated item are added."""
    parts = (weights.cpu().numpy(), items.cpu().numpy(), offsets.cpu().numpy())
    matrix = sp.csr_matrix(parts, shape=(len(offsets) - 1, num_items + 1), copy=True)
    matrix.sum_duplicates()
    return matrix


def users_by_items(log: Interactions) -> sp.csr_matrix:
    """Return a binary matrix of users x items [U + 1, N + 1]: 1 if a user has an event with the item."""
    shape = (log.num_users + 1, log.num_items + 1)
    has_event = sp.csr_matrix((np.ones(len(log), np.float32), (log.user_ids, log.item_ids)), shape=shape)
    has_event.data[:] = 1
    return has_event


def ages(offsets: Tensor) -> Tensor:
    """Return the number of events of the same row that follow each event, [T]: 0 for the last event of a row."""
    lengths = offsets[1:] - offsets[:-1]
    ends = offsets[1:].repeat_interleave(lengths)
    return ends - 1 - torch.arange(ends.numel(), device=ends.device)


def padded_places(matrix: sp.csr_matrix, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return the places of the stored entries of some rows in a padded array, and the indices of these entries.

    Returns:
        Which places of the array are no padding, bool [R, longest], and the indices of the entries in `matrix.data`
        that go to these places, in order.

    """
    lengths = np.diff(matrix.indptr)[rows]
    is_filled = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    starts = matrix.indptr[rows] - np.cumsum(lengths) + lengths
    return is_filled, np.repeat(starts, lengths) + np.arange(lengths.sum())


def padded_rows(matrix: sp.csr_matrix, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return the stored entries of some rows as padded arrays.

    Returns:
        Values [R, longest] float32, -inf in padding, and their columns [R, longest] int64, 0 in padding.

    """
    is_filled, entries = padded_places(matrix, rows)
    values, columns = np.full(is_filled.shape, -np.inf, np.float32), np.zeros(is_filled.shape, np.int64)
    values[is_filled], columns[is_filled] = matrix.data[entries], matrix.indices[entries]
    return torch.from_numpy(values), torch.from_numpy(columns)


def row_blocks(costs: NDArray[Any], max_cost: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose `costs [R]` (0 or more) sum to at most `max_cost`; a costlier row is alone."""
    total, low = np.cumsum(costs, dtype=np.float64), 0
    while low < len(costs):
        before = total[low - 1] if low else 0.0
        high = max(low + 1, int(np.searchsorted(total, before + max_cost, side="right")))
        yield low, high
        low = high


def keep_largest(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """Return a matrix with the `count` largest entries of each row; of equal ones those with the smaller column.

    Columns are sorted within each row of the result.
    """
    lengths = np.diff(matrix.indptr)
    rows = [np.flatnonzero(lengths <= count)]
    entries = [padded_places(matrix, rows[0])[1]]
    rows[0] = np.repeat(rows[0], lengths[rows[0]])
    by_length = np.argsort(lengths, kind="stable")[::-1]
    long = by_length[: int((lengths > count).sum())]
    while len(long):  # rows of similar length are processed together, so there is little padding
        part = long[: max(1, PADDED_ENTRIES // int(lengths[long[0]]))]
        entries.append(_largest_entries(matrix, part, count))
        rows.append(np.repeat(part, count))
        long = long[len(part) :]
    row, entry = np.concatenate(rows), np.concatenate(entries)
    largest = sp.csr_matrix((matrix.data[entry], (row, matrix.indices[entry])), shape=matrix.shape)
    largest.sort_indices()
    return largest


def keep_largest_of_dense(values: NDArray[np.float32], count: int) -> sp.csr_matrix:
    """Return the `count` largest positive entries of each row of a dense array [R, N] as a sparse matrix.

    Ties are as in `keep_largest`. It is fast for arrays of which most entries are positive.
    """
    rows, columns = values.shape
    width = columns // GROUP
    threshold = np.zeros((rows, 1), np.float32)
    if width > count:
        # At least `count` groups have a maximum of this threshold or more, so smaller entries cannot be selected.
        maxima = values[:, : width * GROUP].reshape(rows, GROUP, width).max(axis=1)
        threshold = np.partition(maxima, -count, axis=1)[:, -count][:, None]
    is_candidate = values >= threshold
    is_candidate &= values > 0
    entries = np.flatnonzero(is_candidate)
    ends = np.concatenate([[0], np.cumsum(np.count_nonzero(is_candidate, axis=1))])
    return keep_largest(sp.csr_matrix((values.ravel()[entries], entries % columns, ends), shape=values.shape), count)


def _largest_entries(matrix: sp.csr_matrix, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the indices in `matrix.data` of the `count` largest entries of each row, row after row.

    Each of the rows has to have more than `count` entries.
    """
    # NumPy only: blocks run on threads of their own, and torch would start a team of threads in each.
    is_filled, entries = padded_places(matrix, rows)
    values = np.full(is_filled.shape, -np.inf, np.float32)
    values[is_filled] = matrix.data[entries]
    smallest = np.partition(values, -count, axis=1)[:, -count][:, None]
    is_selected = values > smallest
    tied_row, place = np.nonzero(values == smallest)
    # Of the entries that equal the smallest selected value, only the first by column fit.
    num_free = count - is_selected.sum(axis=1)
    order = np.lexsort((matrix.indices[matrix.indptr[rows[tied_row]] + place], tied_row))
    rank = np.arange(len(order)) - np.searchsorted(tied_row, tied_row)
    fitting = order[rank < num_free[tied_row]]
    is_selected[tied_row[fitting], place[fitting]] = True
    row, place = np.nonzero(is_selected)
    selected_entries: NDArray[np.int64] = matrix.indptr[rows[row]] + place
    return selected_entries
