"""Tell whether a tensor has been written to since something was made of it."""

from __future__ import annotations

from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """Return a number that rises whenever the tensor is written to in place, as by load_state_dict.

    What was made of a tensor is stale if the number has risen, or if another tensor has taken its place. Tensors of
    inference mode are not counted: theirs is 0.
    """
    return 0 if tensor.is_inference() else int(tensor._version)
