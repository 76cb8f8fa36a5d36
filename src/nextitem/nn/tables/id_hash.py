"""Hash functions of 64-bit ids, and the slices of ids by which processes divide a table.

Every hash is the finaliser of SplitMix64 (Steele et al., OOPSLA 2014) in the wrapping arithmetic of int64, so it is the
same on every machine and device.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_SLICES = 64  # an id belongs to one slice; processes own whole slices, so at most this many processes divide a table
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def hash_ids(ids: Tensor, seed: int = 0) -> Tensor:
    """Return a 63-bit hash of each id, int64 of at least 0, in the shape of `ids`; seeds select unrelated hashes."""
    value = ids + _signed(_GOLDEN * (seed + 1))
    value = (value ^ _shift_right(value, 30)) * _signed(_FACTORS[0])
    value = (value ^ _shift_right(value, 27)) * _signed(_FACTORS[1])
    return (value ^ _shift_right(value, 31)) & (2**63 - 1)


def slices_of(ids: Tensor) -> Tensor:
    """Return the slice of each id, 0 .. NUM_SLICES - 1."""
    return hash_ids(ids) % NUM_SLICES


def cells_of(ids: Tensor, *, count: int, seed: int) -> Tensor:
    """Return a cell of each id, 0 .. `count` - 1; ids of different slices never share a cell.

    `count` is a multiple of NUM_SLICES. As no cell is shared between slices, what is stored in cells can be divided
    among processes without a change of any result.
    """
    return slices_of(ids) + NUM_SLICES * (hash_ids(ids, seed) % (count // NUM_SLICES))


def hash_normal(ids: Tensor, width: int) -> Tensor:
    """Return standard normal numbers [n, width] for ids [n] that depend on nothing but the id and the column."""
    columns = torch.arange(width, device=ids.device)
    hashes = hash_ids(hash_ids(ids, 1)[:, None] + columns, 2)
    uniform = ((hashes >> 10) + 0.5).double() / 2**53  # within (0, 1)
    normal: Tensor = torch.special.ndtri(uniform).float()
    return normal


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned number."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Return `value` shifted right with zeros from the left."""
    shifted: Tensor = (value >> bits) & (2 ** (64 - bits) - 1)
    return shifted
