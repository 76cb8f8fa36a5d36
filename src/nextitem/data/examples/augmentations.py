"""Other views of histories: a part of each, with items hidden, or with a stretch in another order.

Xie et al., Contrastive Learning for Sequential Recommendation, arXiv 2010.14395, section 3.3. All rows at once; `share`
is one number a row [B], of the row's length n; what is drawn comes from the generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged, ranges


def crop(histories: Jagged, share: Tensor, generator: torch.Generator) -> Jagged:
    """A contiguous part of floor(share * n) values, at least one where there is one, beginning anywhere."""
    lengths = histories.lengths
    kept = torch.maximum((share * lengths).long(), lengths.clamp(max=1))
    starts = histories.offsets[:-1] + _below(lengths - kept + 1, generator)
    return Jagged.from_lengths(histories.values[ranges(starts, kept)], kept)


def mask(histories: Jagged, share: Tensor, generator: torch.Generator, *, symbol: int = 0) -> Jagged:
    """floor(share * n) values, drawn without replacement, are replaced by `symbol`; lengths stay."""
    rows = histories.row_ids()
    order = (rows + _uniform(rows, generator)).argsort()  # a permutation of each row's values
    rank = torch.arange(len(rows), device=rows.device) - histories.offsets[rows]
    hidden = order[rank < (share * histories.lengths).long()[rows]]
    return histories.with_values(histories.values.index_fill(0, hidden, symbol))


def reorder(histories: Jagged, share: Tensor, generator: torch.Generator) -> Jagged:
    """floor(share * n) successive values, from anywhere in the row, are permuted; all others stay in place."""
    rows, lengths = histories.row_ids(), histories.lengths
    moved = (share * lengths).long()
    starts = histories.offsets[:-1] + _below(lengths - moved + 1, generator)
    place = torch.arange(len(rows), device=rows.device)
    step = place - starts[rows]
    inside = (step >= 0) & (step < moved[rows])
    drawn = starts[rows] + _uniform(rows, generator) * moved[rows]  # within the stretch, and so between its neighbours
    order = torch.where(inside, drawn, place.double()).argsort(stable=True)
    return histories.with_values(histories.values[order])


def augmented(
    histories: Jagged, *, cropped: float, masked: float, reordered: float, generator: torch.Generator
) -> Jagged:
    """Each row cropped, masked or reordered, with equal chances, by the given share; 0 hides an item."""
    shares = [[cropped, 0.0, 0.0], [1.0, masked, 0.0], [1.0, 0.0, reordered]]
    way = torch.randint(3, (histories.num_rows,), generator=generator)
    crops, masks, reorders = torch.tensor(shares, dtype=torch.float64)[way].to(histories.offsets.device).unbind(1)
    views = mask(crop(histories, crops, generator), masks, generator)
    return reorder(views, reorders, generator)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """[0, 1) in float64: a row number added to it keeps its digits."""
    return torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _below(bounds: Tensor, generator: torch.Generator) -> Tensor:
    """An integer from 0 to bound - 1 for each bound."""
    return (_uniform(bounds, generator) * bounds).long()
