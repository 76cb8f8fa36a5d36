"""Extension of a model: the weights of a former model in the same model of a later catalogue.

Items of the former catalogue keep their numbers. So a tensor with a row for each item keeps its rows, and rows of new
items follow with their initial values. Parts whose state has another layout take over by themselves (roles.TakesOver).
Whatever else has another shape in the new model means something else there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.core.roles import TakesOver


@torch.no_grad()
def take_over_weights(model: nn.Module, former: nn.Module, *, num_items: int, num_former_items: int) -> None:
    """Copy parameters and buffers of a former model into the same model of a later catalogue.

    Args:
        model: the model of the later catalogue, which is changed in place.
        former: the former model.
        num_items: number of items of the later catalogue.
        num_former_items: number of items of the former catalogue.

    Raises:
        ValueError: a tensor is missing, or has another shape that is not due to the rows of new items; the message is a
            clause that says which.

    """
    former_parts = dict(former.named_modules())
    prefixes: list[str] = []
    for name, part in model.named_modules():
        if isinstance(part, TakesOver) and not f"{name}.".startswith(tuple(prefixes)):
            prefixes.append(f"{name}.")
            if name not in former_parts:
                raise ValueError(f"the former model has no {name}")
            part.take_over(former_parts[name])
    sources = former.state_dict()
    for name, target in model.state_dict(keep_vars=True).items():
        if name.startswith(tuple(prefixes)):
            continue
        source = sources.get(name)
        if source is None:
            raise ValueError(f"the former model has no {name}")
        if not isinstance(source, Tensor):
            raise ValueError(f"{name} cannot be extended")
        has_item_rows = source.dim() > 0 and len(source) == num_former_items + 1
        if source.shape == target.shape:
            target.copy_(source)
        elif has_item_rows and len(target) == num_items + 1 and target.shape[1:] == source.shape[1:]:
            target[: len(source)].copy_(source)
        else:
            shapes = f"{tuple(source.shape)}, and {tuple(target.shape)} with the new items"
            raise ValueError(f"{name} has shape {shapes}")
