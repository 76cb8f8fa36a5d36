"""SparseRows: a sparse matrix as buffers of a module, so that it is saved and loaded with the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextitem.core.interactions import Interactions

GROUP = 16  # entries whose maximum is looked at first
PADDED_ENTRIES = 2**22  # entries that are padded at a time: 16 MiB of values


class SparseRows(nn.Module):
    """A CSR matrix. Its buffers are empty until `store`; a bundle gives them the saved size."""

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

    def store(self, matrix: sp.csr_matrix) -> None:
        """Takes over the entries of a scipy CSR matrix, as float32."""
        matrix.sort_indices()
        self.shape = torch.tensor(matrix.shape, dtype=torch.int64)
        self.offsets = torch.from_numpy(matrix.indptr.astype(np.int64))
        self.columns = torch.from_numpy(matrix.indices.astype(np.int32))
        self.values = torch.from_numpy(matrix.data.astype(np.float32))

    def row(self, number: int, *, missing: float = 0.0) -> Tensor:
        """One row as a dense tensor; entries that are not stored are `missing`."""
        low, high = int(self.offsets[number]), int(self.offsets[number + 1])
        dense = self.values.new_full((int(self.shape[1]),), missing)
        dense[self.columns[low:high].long()] = self.values[low:high]
        return dense

    def matrix(self) -> sp.csr_matrix:
        """The matrix, sharing memory with the buffers."""
        parts = (self.values.cpu().numpy(), self.columns.cpu().numpy(), self.offsets.cpu().numpy())
        return sp.csr_matrix(parts, shape=tuple(self.shape.tolist()))


def weighted_histories(items: Tensor, offsets: Tensor, weights: Tensor, *, num_items: int) -> sp.csr_matrix:
    """Jagged item ids as a sparse matrix [B, N + 1]; weights of an item that stands twice are added."""
    parts = (weights.cpu().numpy(), items.cpu().numpy(), offsets.cpu().numpy())
    matrix = sp.csr_matrix(parts, shape=(len(offsets) - 1, num_items + 1), copy=True)
    matrix.sum_duplicates()
    return matrix


def users_by_items(log: Interactions) -> sp.csr_matrix:
    """Binary users x items [U + 1, N + 1]: who took what."""
    shape = (log.num_users + 1, log.num_items + 1)
    taken = sp.csr_matrix((np.ones(len(log), np.float32), (log.user_ids, log.item_ids)), shape=shape)
    taken.data[:] = 1
    return taken


def ages(items_offsets: Tensor) -> Tensor:
    """How many events of the same row follow each value, [T]: 0 for a row's last."""
    lengths = items_offsets[1:] - items_offsets[:-1]
    ends = items_offsets[1:].repeat_interleave(lengths)
    return ends - 1 - torch.arange(ends.numel(), device=ends.device)


def padded_places(matrix: sp.csr_matrix, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Room for the given rows side by side: which places are filled, bool [R, longest], and by which entries."""
    lengths = np.diff(matrix.indptr)[rows]
    filled = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    starts = matrix.indptr[rows] - np.cumsum(lengths) + lengths
    return filled, np.repeat(starts, lengths) + np.arange(lengths.sum())


def padded_rows(matrix: sp.csr_matrix, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The stored entries of the given rows: values [R, longest] float32, -inf in padding, and columns, 0 there."""
    filled, entries = padded_places(matrix, rows)
    values, columns = np.full(filled.shape, -np.inf, np.float32), np.zeros(filled.shape, np.int64)
    values[filled], columns[filled] = matrix.data[entries], matrix.indices[entries]
    return torch.from_numpy(values), torch.from_numpy(columns)


def row_blocks(costs: NDArray[Any], most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose `costs [R]` (0 or more) sum to `most` at most, or that hold one row."""
    total, low = np.cumsum(costs, dtype=np.float64), 0
    while low < len(costs):
        before = total[low - 1] if low else 0.0
        high = max(low + 1, int(np.searchsorted(total, before + most, side="right")))
        yield low, high
        low = high


def keep_largest(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """The `count` largest entries of each row; of equal ones those with the smaller column.

    Columns of the answer rise within each row.
    """
    lengths = np.diff(matrix.indptr)
    rows = [np.flatnonzero(lengths <= count)]
    entries = [padded_places(matrix, rows[0])[1]]
    rows[0] = np.repeat(rows[0], lengths[rows[0]])
    by_length = np.argsort(lengths, kind="stable")[::-1]
    long = by_length[: int((lengths > count).sum())]
    while len(long):  # rows of about equal lengths together: little padding
        part = long[: max(1, PADDED_ENTRIES // int(lengths[long[0]]))]
        entries.append(_largest_entries(matrix, part, count))
        rows.append(np.repeat(part, count))
        long = long[len(part) :]
    row, entry = np.concatenate(rows), np.concatenate(entries)
    kept = sp.csr_matrix((matrix.data[entry], (row, matrix.indices[entry])), shape=matrix.shape)
    kept.sort_indices()
    return kept


def keep_largest_of_dense(values: NDArray[np.float32], count: int) -> sp.csr_matrix:
    """The same for an array [R, N] of which most entries are positive; those that are not are never kept."""
    rows, columns = values.shape
    width = columns // GROUP
    least = np.zeros((rows, 1), np.float32)
    if width > count:
        # `count` groups hold an entry as large as the least of the `count` largest maxima: smaller ones are out.
        maxima = values[:, : width * GROUP].reshape(rows, GROUP, width).max(axis=1)
        least = np.partition(maxima, -count, axis=1)[:, -count][:, None]
    kept = values >= least
    kept &= values > 0
    entries = np.flatnonzero(kept)
    ends = np.concatenate([[0], np.cumsum(np.count_nonzero(kept, axis=1))])
    return keep_largest(sp.csr_matrix((values.ravel()[entries], entries % columns, ends), shape=values.shape), count)


def _largest_entries(matrix: sp.csr_matrix, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where the `count` largest entries of each row stand in `matrix.data`, row after row; all rows are longer."""
    # NumPy throughout: blocks run on threads of their own, and torch would start a team of threads in each.
    filled, entries = padded_places(matrix, rows)
    values = np.full(filled.shape, -np.inf, np.float32)
    values[filled] = matrix.data[entries]
    last = np.partition(values, -count, axis=1)[:, -count][:, None]
    kept = values > last
    tied_row, place = np.nonzero(values == last)
    # Of the entries that equal the last one, only the first by column fit.
    room = count - kept.sum(axis=1)
    order = np.lexsort((matrix.indices[matrix.indptr[rows[tied_row]] + place], tied_row))
    rank = np.arange(len(order)) - np.searchsorted(tied_row, tied_row)
    fits = order[rank < room[tied_row]]
    kept[tied_row[fits], place[fits]] = True
    row, place = np.nonzero(kept)
    found: NDArray[np.int64] = matrix.indptr[rows[row]] + place
    return found
