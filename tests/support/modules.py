"""Access to the parts of a network by path, with their types."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def part(module: nn.Module, path: str, kind: type[ModuleT]) -> ModuleT:
    """Return the submodule at a path such as "layers.0", which must be of this kind."""
    submodule = module.get_submodule(path)
    assert isinstance(submodule, kind), f"{path} is {type(submodule).__name__}, not {kind.__name__}"
    return submodule
