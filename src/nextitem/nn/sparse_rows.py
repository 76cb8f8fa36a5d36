"""SparseRows: a sparse matrix as buffers of a module, so that it is saved and loaded with the weights."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn


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
