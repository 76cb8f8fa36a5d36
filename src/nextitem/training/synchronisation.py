"""Synchronisation: the buffers that parts of a model change in training become the same in all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.core.roles import Synchronised
from nextitem.distributed import processes


class Synchronisation:
    """The declared buffers of a model (roles.Synchronised), before and after a batch; no effect with one process."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [
            (part, name, kind)
            for part in model.modules()
            if isinstance(part, Synchronised)
            for name, kind in part.synchronised.items()
        ]
        self._former: list[Tensor] = []

    def begin(self) -> None:
        """Store the values before a batch."""
        if processes.world_size() > 1:
            self._former = [part.get_buffer(name).detach().clone() for part, name, _ in self._buffers]

    @torch.no_grad()
    def end(self, weight: float) -> None:
        """Replace the values after a batch by those of all processes, each of which calls it.

        `weight` is the factor of this process's loss, as in `HasBatchHook.after_batch`.
        """
        if processes.world_size() == 1 or not self._buffers:
            return
        shares = []
        for (part, name, kind), former in zip(self._buffers, self._former, strict=True):
            value = part.get_buffer(name).detach().double()
            share = value - former if kind == "sum" else value * (weight / processes.world_size())
            shares.append((share if weight else torch.zeros_like(share)).flatten().cpu())
        totals = torch.stack(processes.gather(torch.cat(shares))).sum(0).split([len(share) for share in shares])
        for (part, name, kind), former, total in zip(self._buffers, self._former, totals, strict=True):
            buffer, change = part.get_buffer(name), total.view(former.shape).to(former.device)
            buffer.copy_(former + change if kind == "sum" else change)
