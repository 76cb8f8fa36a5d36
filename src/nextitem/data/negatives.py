"""Negatives: items of the catalogue for next-item sequences, nodes of a tree for the paths to targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nextitem.data.examples.next_item import NextItemBatch

SharedBy = Literal["batch", "sequence", "position"]


@dataclass(frozen=True, eq=False)
class Negatives:
    """What `losses.sampled_softmax` asks for beside the positions and their targets, by its names.

    negatives  item ids: [S] of a batch, [B, S] of its sequences, or [T, S] of its real targets
    lengths    [B] real targets of each sequence, where each has its own negatives
    log_q      [N + 1] log of how often each item is expected among S draws; None: uniform, the same for all
    left_out   bool [B, S]: negatives that are items of their own sequence
    """

    negatives: Tensor
    lengths: Tensor | None = None
    log_q: Tensor | None = None
    left_out: Tensor | None = None


def draw_negatives(
    batch: NextItemBatch,
    popularity: Tensor,
    *,
    count: int,
    shared_by: SharedBy,
    generator: torch.Generator,
    power: float = 0.0,
) -> Negatives:
    """`count` items for the batch, for each sequence or for each real target, with replacement.

    By (`popularity [N + 1]` + 1) ** power; power 0 is uniform over 1..N. What is drawn for a sequence leaves the
    sequence's own items out.
    """
    kept = batch.targets.values > 0
    shape: tuple[int, ...] = (count,)
    lengths = None
    if shared_by == "sequence":
        lengths = torch.bincount(batch.targets.row_ids()[kept], minlength=batch.targets.num_rows)
        shape = (len(lengths), count)
    elif shared_by == "position":
        shape = (int(kept.sum()), count)
    device, log_q = kept.device, None
    if power == 0:
        drawn = torch.randint(1, len(popularity), shape, generator=generator).to(device)
    else:
        weights = (popularity.cpu() + 1) ** power
        weights[0] = 0
        total = int(torch.Size(shape).numel())
        drawn = torch.multinomial(weights, total, replacement=True, generator=generator).view(shape).to(device)
        log_q = torch.log(count * weights / weights.sum()).to(device)
    return Negatives(drawn, lengths, log_q, batch.holds(drawn) if shared_by == "sequence" else None)


def level_negatives(paths: Tensor, level_starts: Sequence[int], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Other nodes of the levels of a tree, drawn for each target evenly and without repetition (TDM, section 3.2).

    `paths [B, M]` are the target's nodes at depths 1..M; those of depth d are numbered level_starts[d] ..
    level_starts[d + 1] - 2, the layout of PrefixTrie. `counts` says how many are drawn at each of the M depths; a depth
    with no more than so many others gives them all. Returns nodes [B, S] int64, depth by depth, and the depth of each
    column, [S]. Random numbers come from torch's generator.
    """
    columns, depths = [], []
    for depth, count in enumerate(counts, start=1):
        others = level_starts[depth + 1] - level_starts[depth] - 2
        drawn = min(count, others)
        own = paths[:, depth - 1 : depth] - level_starts[depth]
        if drawn == others:
            rank = torch.arange(drawn, device=paths.device).expand(len(paths), -1)
        else:
            rank = _distinct(len(paths), drawn, others).to(paths.device)
        columns.append(level_starts[depth] + rank + (rank >= own))
        depths += [depth] * drawn
    return torch.cat(columns, dim=1), torch.tensor(depths, device=paths.device)


def _distinct(rows: int, count: int, among: int) -> Tensor:
    """`count` different numbers below `among` for each row, every set equally likely (Floyd's algorithm)."""
    chosen = torch.full((rows, count), -1, dtype=torch.int64)
    for place in range(count):
        top = among - count + place
        tried = torch.randint(top + 1, (rows,))
        taken = (chosen[:, :place] == tried[:, None]).any(1)
        chosen[:, place] = torch.where(taken, top, tried)
    return chosen
