"""Detect whether a tensor has been written to since something was computed from it."""

from __future__ import annotations

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """Return a number that increases whenever the tensor is written to in place, for example by load_state_dict.

    A result computed from a tensor is stale if this number has increased, or if another tensor has replaced the tensor.
    PyTorch does not count writes to tensors of inference mode: their number is 0.
    """
    return 0 if tensor.is_inference() else int(tensor._version)
