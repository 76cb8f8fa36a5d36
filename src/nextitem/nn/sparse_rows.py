"""SparseRows: a sparse matrix as buffers of a module, so that it is saved and loaded with the weights."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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


def ages(items_offsets: Tensor) -> Tensor:
    """How many events of the same row follow each value, [T]: 0 for a row's last."""
    lengths = items_offsets[1:] - items_offsets[:-1]
    ends = items_offsets[1:].repeat_interleave(lengths)
    return ends - 1 - torch.arange(ends.numel(), device=ends.device)


def row_entries(matrix: sp.csr_matrix, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the entries of the given rows stand in `matrix.data`, row after row."""
    lengths = np.diff(matrix.indptr)[rows]
    return np.repeat(matrix.indptr[rows] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def padded_rows(matrix: sp.csr_matrix, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The stored entries of the given rows: values [R, longest] float32, -inf in padding, and columns, 0 there."""
    lengths = np.diff(matrix.indptr)[rows]
    values = np.full((len(rows), max(1, lengths.max(initial=0))), -np.inf, np.float32)
    columns = np.zeros(values.shape, np.int64)
    filled = np.arange(values.shape[1]) < lengths[:, None]
    places = row_entries(matrix, rows)
    values[filled], columns[filled] = matrix.data[places], matrix.indices[places]
    return torch.from_numpy(values), torch.from_numpy(columns)


def keep_largest(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """The `count` largest entries of each row; of equal ones those with the smaller column.

    Columns of the answer rise within each row.
    """
    matrix = matrix.tocsc().tocsr()  # sorts columns in linear time
    lengths = np.diff(matrix.indptr)
    kept = np.repeat(lengths <= count, lengths)
    by_length = np.argsort(lengths, kind="stable")[::-1]
    long = by_length[: int((lengths > count).sum())]
    while len(long):  # rows of about equal lengths together: little padding
        part = long[: max(1, PADDED_ENTRIES // int(lengths[long[0]]))]
        filled = np.arange(lengths[part[0]]) < lengths[part][:, None]
        kept[row_entries(matrix, part)] = _among_largest(padded_rows(matrix, part)[0], count).numpy()[filled]
        long = long[len(part) :]
    ends = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_matrix((matrix.data[kept], matrix.indices[kept], ends), shape=matrix.shape)


def _among_largest(values: Tensor, count: int) -> Tensor:
    """bool [R, L]: the `count` largest of each row; of equal ones the first."""
    top = values.topk(count, dim=1).values
    cut = top[:, -1:]
    kept = values > cut
    rows, places = (values == cut).nonzero(as_tuple=True)
    first = torch.searchsorted(rows, torch.arange(len(values)))
    fits = torch.arange(len(rows)) - first[rows] < (top == cut).sum(dim=1)[rows]
    kept[rows[fits], places[fits]] = True
    return kept
