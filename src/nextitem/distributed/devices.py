"""Selection of a torch device by its name."""

from __future__ import annotations

import torch

from nextitem.core.errors import UserError


def device_of(name: str) -> torch.device:
    """Return the device called `name`: auto (a GPU if there is one), cpu, cuda, cuda:1, ...

    Raises UserError if the name is wrong or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r}: choose auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device
