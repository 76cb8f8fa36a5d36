"""FrozenCopy: a copy of a model that is not trained, whose weights are buffers of whoever holds it."""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from nextitem.core.recommender import Recommender
from nextitem.decoding.guidance import GuidedRecommender


class FrozenCopy(nn.Module):
    """Copy of a model in evaluation mode, without its guide.

    Its weights are buffers, so a checkpoint contains them. Its parts are hidden from `modules()`: hooks, growing tables
    and optimizers must not see a second model. What never changes (catalogue, trie, content) is shared.
    """

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        if isinstance(model, GuidedRecommender):
            model = model.without_guide()
        fixed = {name for name, _ in model.named_buffers()} - set(model.state_dict())
        shared: list[object] = [model.catalog, *(buffer for name, buffer in model.named_buffers() if name in fixed)]
        copied = deepcopy(model, {id(part): part for part in shared})
        self._copy = (copied.eval().requires_grad_(False),)
        for number, tensor in enumerate(_tensors(copied)):
            self.register_buffer(f"weight_{number}", tensor.detach())

    @property
    def model(self) -> Recommender:
        """The copied model, on the device of the buffers."""
        model, weights = self._copy[0], self._weights()
        if weights and model.popularity.device != weights[0].device:
            model.to(weights[0].device)
        for tensor, weight in zip(_tensors(model), weights, strict=True):
            if tensor.data_ptr() != weight.data_ptr():
                tensor.data = weight
        return model

    @torch.no_grad()
    def copy_from(self, model: Recommender) -> None:
        """Take over the weights of the model that this is a copy of."""
        if isinstance(model, GuidedRecommender):
            model = model.without_guide()
        for weight, source in zip(self._weights(), _tensors(model), strict=True):
            weight.copy_(source)
        self._copy[0].train().eval()  # drops whatever was computed from the former weights

    def _weights(self) -> list[Tensor]:
        return [cast(Tensor, value) for value in self._buffers.values()]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return parameters and persistent buffers of a model, in order; a tensor with two names once."""
    distinct = {id(value): value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    return list(distinct.values())
