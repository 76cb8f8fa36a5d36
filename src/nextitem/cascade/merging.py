"""Merging: combine the lists of several retrieval channels into one list of candidates.

Scores of different channels cannot be compared. So each rank in a channel's list is scored by a measured rate: how
often the item at that rank was the next one (`ChannelRates`). If several channels retrieve an item, its score combines
the rates of its ranks in all of them.

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

PRIOR = 1.0  # hits that are added to those of each channel to smooth its rates; spread over the ranks as 1 / rank


@dataclass(frozen=True, eq=False)
class Candidates:
    """Merged candidates of all channels, best first.

    Attributes:
        items: [B, C] int64; 0 is padding, at the tail.
        scores: [B, C] estimated probability that the item is the next one, from its ranks; -inf at padding.
        ranks: [B, C, c] rank of the item in each channel, from 1; 0: the channel did not retrieve it.
        channel: [B, C] index of the channel in which the item's rank has the highest rate.

    """

    items: Tensor
    scores: Tensor
    ranks: Tensor
    channel: Tensor

    def ranks_of(self, items: Tensor) -> Tensor:
        """Return the ranks [B, k, c] in the channels of `items [B, k]`, which must be candidates.

        Entries at padding (item 0) are undefined.
        """
        return self.ranks.gather(1, self._indices_of(items)[..., None].expand(-1, -1, self.ranks.shape[2]))

    def channel_of(self, items: Tensor) -> Tensor:
        """Return the channel [B, k] of `items [B, k]`, which must be candidates; entries at padding are undefined."""
        return self.channel.gather(1, self._indices_of(items))

    def append(self, items: Tensor, *, channel: int) -> Candidates:
        """Return these candidates followed by `items [B, k]`, which must not be among them.

        The new items come from the channel with the index `channel`, which has no ranks: their ranks and scores are 0.
        """
        both = torch.cat([self.items, items], 1)
        order = (both == 0).to(torch.uint8).argsort(dim=1, stable=True)  # padding to the tail
        scores = F.pad(self.scores, (0, items.shape[1]), value=0.0)
        ranks = F.pad(self.ranks, (0, 0, 0, items.shape[1]))
        channels = F.pad(self.channel, (0, items.shape[1]), value=channel)
        both = both.gather(1, order)
        return Candidates(
            both,
            scores.gather(1, order).masked_fill(both == 0, -torch.inf),
            ranks.gather(1, order[..., None].expand(ranks.shape)),
            channels.gather(1, order),
        )

    def _indices_of(self, items: Tensor) -> Tensor:
        """Return the index [B, k] of each of `items [B, k]` among the candidates; undefined for other items."""
        sorted_items, order = self.items.sort(1)
        positions = torch.searchsorted(sorted_items, items).clamp(max=self.items.shape[1] - 1)
        return order.gather(1, positions)


class ChannelRates(nn.Module):
    """Table `rates [c, quota]`: how often the item at each rank of each channel's list was the next one.

    Before rates are measured they are 0.1 / rank, the same for all channels.
    """

    rates: Tensor

    def __init__(self, quotas: Sequence[int]) -> None:
        super().__init__()
        ranks = torch.arange(1, max(quotas) + 1)
        prior = (0.1 / ranks).expand(len(quotas), -1).clone()
        for channel, quota in enumerate(quotas):
            prior[channel, quota:] = 0
        self.quotas = tuple(quotas)
        self.register_buffer("rates", prior)

    def measure(self, lists: Sequence[Tensor], targets: Jagged) -> None:
        """Measure the rates from each channel's lists [B, quota] for requests with these targets.

        Ranks are pooled in groups that double in size (1, 2, 3 - 4, 5 - 8, ...). The rate of a later group is never
        higher than that of an earlier one.
        """
        for channel, items in enumerate(lists):
            quota = items.shape[1]
            hits = _hits(items, targets).double().sum(0)
            group = torch.arange(quota).clamp(min=1).float().log2().floor().long() + 1
            group[0] = 0
            sizes = torch.bincount(group).double()
            prior = PRIOR * torch.zeros_like(sizes).index_add_(0, group, 1 / torch.arange(1, quota + 1).double())
            group_hits = torch.zeros_like(sizes).index_add_(0, group, hits)
            rate = (group_hits + prior / prior.sum()) / (sizes * (len(items) + PRIOR))
            self.rates[channel, :quota] = rate.cummin(0).values[group].float()

    def merge(self, answers: Sequence[Recommendations], count: int) -> Candidates:
        """Return the `count` items with the highest scores of all that the channels retrieved.

        The score of an item is 1 - the product over channels of (1 - rate of its rank). Ties go to the smaller item
        number.
        """
        lists = [answer.item_ids[:, :quota] for answer, quota in zip(answers, self.quotas, strict=True)]
        items, order = torch.cat(lists, 1).sort(dim=1, stable=True)
        # [B, Q]: equal items are adjacent, and each run of equal items is one candidate. The first run is that of
        # padding, if there is any.
        is_first = F.pad(items[:, 1:] != items[:, :-1], (1, 0), value=True)
        run = is_first.long().cumsum(1) - 1
        widths = [items_of_channel.shape[1] for items_of_channel in lists]
        channel = torch.repeat_interleave(torch.arange(len(lists)), torch.tensor(widths)).to(items.device)
        rank = torch.cat([torch.arange(1, width + 1) for width in widths]).to(items.device)
        shape = (len(items), items.shape[1], len(lists))
        ranks = torch.zeros(shape, dtype=torch.int64, device=items.device)
        rows = torch.arange(len(items), device=items.device)[:, None]
        ranks[rows, run, channel[order]] = rank[order]
        distinct = torch.zeros_like(items).scatter_(1, run, items)
        rates = self.rates[torch.arange(len(lists), device=items.device), (ranks - 1).clamp(min=0)] * (ranks > 0)
        scores = (1 - (1 - rates).prod(2)).masked_fill(distinct == 0, -torch.inf)
        count = min(count, items.shape[1])
        # Distinct items rise along a row and the sort is stable, so ties go to the smaller number.
        best_scores, best = scores.sort(dim=1, descending=True, stable=True)
        best_scores, best = best_scores[:, :count], best[:, :count]
        index = best[..., None].expand(-1, -1, len(lists))
        return Candidates(
            distinct.gather(1, best).masked_fill(best_scores == -torch.inf, 0),
            best_scores,
            ranks.gather(1, index),
            rates.gather(1, index).argmax(2),
        )


def _hits(items: Tensor, targets: Jagged) -> Tensor:
    """Return whether each item is one of its request's targets, bool [B, quota]."""
    span = int(max(items.max(), targets.values.max())) + 1
    rows = torch.arange(len(items), device=items.device)[:, None]
    return torch.isin(items + rows * span, targets.values + targets.row_ids() * span) & (items > 0)
