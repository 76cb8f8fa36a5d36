"""Merging: the lists of several retrieval channels as one list of candidates.

Scores of different channels have nothing in common. What a place in a channel's list is worth is measured instead: how
often the item at that place was the next one (`ChannelRates`). An item that several channels bring is worth what their
places say together.

Shapes: B requests, Q items of all channels together, C candidates, c channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations

PRIOR = 1.0  # hits that a channel's rates are pulled by, spread as 1 / place


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the channels found, best first.

    items    [B, C] int64, 0 at the tail
    worth    [B, C] chance that the item is the next one, by its places; -inf at padding
    ranks    [B, C, c] the item's place in each channel, from 1; 0: the channel did not bring it
    channel  [B, C] the channel whose place says most for it
    """

    items: Tensor
    worth: Tensor
    ranks: Tensor
    channel: Tensor

    def ranks_of(self, items: Tensor) -> Tensor:
        """The places [B, k, c] of some of these candidates, `items [B, k]`; 0 for others."""
        return self.ranks.gather(1, self._places(items)[..., None].expand(-1, -1, self.ranks.shape[2]))

    def channel_of(self, items: Tensor) -> Tensor:
        """The channel [B, k] of some of these candidates."""
        return self.channel.gather(1, self._places(items))

    def followed_by(self, items: Tensor, *, channel: int) -> Candidates:
        """The same, then `items [B, k]` that are none of them, from a channel without places."""
        both = torch.cat([self.items, items], 1)
        order = (both == 0).to(torch.uint8).argsort(dim=1, stable=True)  # padding to the tail
        worth = F.pad(self.worth, (0, items.shape[1]), value=0.0)
        ranks = F.pad(self.ranks, (0, 0, 0, items.shape[1]))
        brought = F.pad(self.channel, (0, items.shape[1]), value=channel)
        both = both.gather(1, order)
        return Candidates(
            both,
            worth.gather(1, order).masked_fill(both == 0, -torch.inf),
            ranks.gather(1, order[..., None].expand(ranks.shape)),
            brought.gather(1, order),
        )

    def _places(self, items: Tensor) -> Tensor:
        ordered, places = self.items.sort(1)
        found = torch.searchsorted(ordered, items).clamp(max=self.items.shape[1] - 1)
        return places.gather(1, found)


class ChannelRates(nn.Module):
    """How often the item at each place of each channel's list was the next one, `rates [c, quota]`.

    Before anything is measured, 1 / place of equal channels.
    """

    rates: Tensor

    def __init__(self, quotas: Sequence[int]) -> None:
        super().__init__()
        places = torch.arange(1, max(quotas) + 1)
        prior = (0.1 / places).expand(len(quotas), -1).clone()
        for channel, quota in enumerate(quotas):
            prior[channel, quota:] = 0
        self.quotas = tuple(quotas)
        self.register_buffer("rates", prior)

    def measure(self, lists: Sequence[Tensor], targets: Jagged) -> None:
        """From each channel's lists [B, quota] for requests with these targets.

        Places are put together in doubling groups (1, 2, 3 - 4, 5 - 8, ...), and a later group is never worth more.
        """
        for channel, items in enumerate(lists):
            quota = items.shape[1]
            hits = _hits(items, targets).double().sum(0)
            group = torch.arange(quota).clamp(min=1).float().log2().floor().long() + 1
            group[0] = 0
            sizes = torch.bincount(group).double()
            prior = PRIOR * torch.zeros_like(sizes).index_add_(0, group, 1 / torch.arange(1, quota + 1).double())
            found = torch.zeros_like(sizes).index_add_(0, group, hits)
            rate = (found + prior / prior.sum()) / (sizes * (len(items) + PRIOR))
            self.rates[channel, :quota] = rate.cummin(0).values[group].float()

    def merge(self, answers: Sequence[Recommendations], count: int) -> Candidates:
        """The `count` most promising of all items that the channels bring; ties go to the smaller item number."""
        lists = [answer.item_ids[:, :quota] for answer, quota in zip(answers, self.quotas, strict=True)]
        items, order = torch.cat(lists, 1).sort(dim=1, stable=True)
        # [B, Q]: equal items stand together; each run of them is one candidate, the first is padding's, if there is any
        new = F.pad(items[:, 1:] != items[:, :-1], (1, 0), value=True)
        run = new.long().cumsum(1) - 1
        width = [each.shape[1] for each in lists]
        channel = torch.repeat_interleave(torch.arange(len(lists)), torch.tensor(width)).to(items.device)
        place = torch.cat([torch.arange(1, each + 1) for each in width]).to(items.device)
        shape = (len(items), items.shape[1], len(lists))
        ranks = torch.zeros(shape, dtype=torch.int64, device=items.device)
        rows = torch.arange(len(items), device=items.device)[:, None]
        ranks[rows, run, channel[order]] = place[order]
        distinct = torch.zeros_like(items).scatter_(1, run, items)
        chances = self.rates[torch.arange(len(lists), device=items.device), (ranks - 1).clamp(min=0)] * (ranks > 0)
        worth = (1 - (1 - chances).prod(2)).masked_fill(distinct == 0, -torch.inf)
        kept = min(count, items.shape[1])
        # Stable, and distinct items rise along a row: ties fall to the smaller number.
        values, best = worth.sort(dim=1, descending=True, stable=True)
        values, best = values[:, :kept], best[:, :kept]
        picked = ranks.gather(1, best[..., None].expand(-1, -1, len(lists)))
        return Candidates(
            distinct.gather(1, best).masked_fill(values == -torch.inf, 0),
            values,
            picked,
            chances.gather(1, best[..., None].expand(-1, -1, len(lists))).argmax(2),
        )


def _hits(items: Tensor, targets: Jagged) -> Tensor:
    """bool [B, quota]: is the item one of the request's targets?"""
    span = int(max(items.max(), targets.values.max())) + 1
    rows = torch.arange(len(items), device=items.device)[:, None]
    return torch.isin(items + rows * span, targets.values + targets.row_ids() * span) & (items > 0)
