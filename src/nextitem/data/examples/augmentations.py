"""Augmented views of histories for contrastive learning: cropped, masked or partly reordered.

Xie et al., Contrastive Learning for Sequential Recommendation, arXiv 2010.14395, section 3.3. All rows are augmented at
once. `share` is one number per row [B]: the share of the row's length n that changes. All random numbers come from the
generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged, ranges


def crop(histories: Jagged, share: Tensor, generator: torch.Generator) -> Jagged:
    """Return a contiguous part of each row, of floor(share * n) values, that begins at a random place.

    A row that is not empty keeps at least one value.
    """
    lengths = histories.lengths
    crop_lengths = torch.maximum((share * lengths).long(), lengths.clamp(max=1))
    starts = histories.offsets[:-1] + _random_below(lengths - crop_lengths + 1, generator)
    return Jagged.from_lengths(histories.values[ranges(starts, crop_lengths)], crop_lengths)


def mask(histories: Jagged, share: Tensor, generator: torch.Generator, *, symbol: int = 0) -> Jagged:
    """Replace floor(share * n) values of each row, sampled without replacement, by `symbol`; lengths stay."""
    rows = histories.row_ids()
    order = (rows + _uniform(rows, generator)).argsort()  # a permutation of each row's values
    rank = torch.arange(len(rows), device=rows.device) - histories.offsets[rows]
    masked_places = order[rank < (share * histories.lengths).long()[rows]]
    return histories.with_values(histories.values.index_fill(0, masked_places, symbol))


def reorder(histories: Jagged, share: Tensor, generator: torch.Generator) -> Jagged:
    """Permute floor(share * n) successive values from a random place in each row; all others stay in place."""
    rows, lengths = histories.row_ids(), histories.lengths
    part_lengths = (share * lengths).long()
    starts = histories.offsets[:-1] + _random_below(lengths - part_lengths + 1, generator)
    place = torch.arange(len(rows), device=rows.device)
    step = place - starts[rows]
    is_inside = (step >= 0) & (step < part_lengths[rows])
    # Values to be permuted get random places within their part, so that the part stays where it is.
    random_places = starts[rows] + _uniform(rows, generator) * part_lengths[rows]
    order = torch.where(is_inside, random_places, place.double()).argsort(stable=True)
    return histories.with_values(histories.values[order])


def augment(
    histories: Jagged, *, crop_share: float, mask_share: float, reorder_share: float, generator: torch.Generator
) -> Jagged:
    """Crop, mask or reorder each row, with equal probability, each by its own share; 0 replaces a masked item."""
    shares = [[crop_share, 0.0, 0.0], [1.0, mask_share, 0.0], [1.0, 0.0, reorder_share]]
    choice = torch.randint(3, (histories.num_rows,), generator=generator)
    crops, masks, reorders = torch.tensor(shares, dtype=torch.float64)[choice].to(histories.offsets.device).unbind(1)
    views = mask(crop(histories, crops, generator), masks, generator)
    return reorder(views, reorders, generator)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Sample numbers in [0, 1), one for each value of `like`; in float64, so that an added row number loses no digits.

    They are sampled on the CPU, where the generator is, and moved to the device of `like`.
    """
    return torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _random_below(bounds: Tensor, generator: torch.Generator) -> Tensor:
    """Sample an integer from 0 to bound - 1 for each bound."""
    return (_uniform(bounds, generator) * bounds).long()
