"""Sample negatives: items of the catalogue for next-item sequences, or nodes of a tree for the paths to targets."""

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
    """Sampled negatives: the arguments of `losses.sampled_softmax` other than positions and targets, by name.

    Attributes:
        negatives: item ids: [S] for the batch, [B, S] for its sequences, or [T, S] for its targets that are not 0.
        lengths: [B] number of such targets of each sequence, if each sequence has its own negatives.
        log_q: [N + 1] log of the expected number of each item among S samples; None: uniform, the same for all.
        is_excluded: bool [B, S]: negatives that are items of their own sequence, to be ignored.

    """

    negatives: Tensor
    lengths: Tensor | None = None
    log_q: Tensor | None = None
    is_excluded: Tensor | None = None


def sample_negatives(
    batch: NextItemBatch,
    popularity: Tensor,
    *,
    count: int,
    shared_by: SharedBy,
    generator: torch.Generator,
    power: float = 0.0,
) -> Negatives:
    """Sample items with replacement, for the whole batch, for each sequence, or for each target.

    Args:
        batch: next-item sequences; targets of 0 get no negatives.
        popularity: number of events of each item, [N + 1].
        count: number of negatives (S) of the batch, of each sequence or of each target.
        shared_by: the positions that share negatives: those of a batch, of a sequence, or none ("position"). If
            negatives are shared by a sequence, the result marks those that are items of the sequence.
        generator: source of random numbers, on the CPU.
        power: items are sampled in proportion to (popularity + 1) ** power; 0 is uniform over 1..N.

    Returns:
        The negatives, on the device of the batch.

    """
    is_real = batch.targets.values > 0
    shape: tuple[int, ...] = (count,)
    lengths = None
    if shared_by == "sequence":
        lengths = torch.bincount(batch.targets.row_ids()[is_real], minlength=batch.targets.num_rows)
        shape = (len(lengths), count)
    elif shared_by == "position":
        shape = (int(is_real.sum()), count)
    device, log_q = is_real.device, None
    if power == 0:
        samples = torch.randint(1, len(popularity), shape, generator=generator).to(device)
    else:
        weights = (popularity.cpu() + 1) ** power
        weights[0] = 0
        total = int(torch.Size(shape).numel())
        samples = torch.multinomial(weights, total, replacement=True, generator=generator).view(shape).to(device)
        log_q = torch.log(count * weights / weights.sum()).to(device)
    return Negatives(samples, lengths, log_q, batch.contains(samples) if shared_by == "sequence" else None)


def sample_trained_items(popularity: Tensor, count: int) -> tuple[Tensor, float]:
    """Return `count` items sampled uniformly among those with training events, and the sampled fraction of them.

    `popularity [N + 1]` counts training events; if fewer items have any, all of them are returned. Random numbers come
    from torch's global generator.
    """
    trained_items = popularity.nonzero()[:, 0]
    count = min(count, len(trained_items))
    sample = torch.randperm(len(trained_items))[:count].to(trained_items.device)
    return trained_items[sample], count / max(1, len(trained_items))


@torch.no_grad()
def hardest_items(
    user_vectors: Tensor, item_vectors: Tensor, popularity: Tensor, targets: Tensor, *, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the items with the highest scores for each request that are neither its target nor without events.

    Args:
        user_vectors: [B, D].
        item_vectors: [N + 1, D], row 0 is padding.
        popularity: training events of each item, [N + 1].
        targets: one item of each request, [B].
        count: number of items for each request (H); at most N.

    Returns:
        Items [B, H]; whether each of them is an item, bool [B, H]; the same items as a mask, bool [B, N + 1].

    """
    scores = user_vectors @ item_vectors.T
    scores[:, 0] = -torch.inf
    scores[:, popularity == 0] = -torch.inf
    scores.scatter_(1, targets[:, None], -torch.inf)
    best = scores.topk(min(count, scores.shape[1] - 1), dim=1)
    is_real = best.values > -torch.inf
    return best.indices, is_real, torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best.indices, is_real)


def level_negatives(paths: Tensor, level_starts: Sequence[int], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sample other nodes of each level of a tree for each target, uniformly, without repetition (TDM, section 3.2).

    Random numbers come from torch's default generator.

    Args:
        paths: the nodes on the path to each target at depths 1..M, [B, M].
        level_starts: nodes of depth d are numbered level_starts[d] .. level_starts[d + 1] - 2, as in PrefixTrie.
        counts: number of nodes to sample at each of the M depths. If a depth has no more other nodes than that, all of
            them are returned.

    Returns:
        Nodes [B, S] int64, depth by depth, and the depth of each column, [S].

    """
    columns, depths = [], []
    for depth, count in enumerate(counts, start=1):
        num_others = level_starts[depth + 1] - level_starts[depth] - 2
        num_sampled = min(count, num_others)
        target_rank = paths[:, depth - 1 : depth] - level_starts[depth]
        if num_sampled == num_others:
            rank = torch.arange(num_sampled, device=paths.device).expand(len(paths), -1)
        else:
            rank = _distinct(len(paths), num_sampled, num_others).to(paths.device)
        columns.append(level_starts[depth] + rank + (rank >= target_rank))
        depths += [depth] * num_sampled
    return torch.cat(columns, dim=1), torch.tensor(depths, device=paths.device)


def _distinct(rows: int, count: int, bound: int) -> Tensor:
    """Sample `count` different numbers below `bound` for each row, every set equally likely (Floyd's algorithm).

    Returns [rows, count] int64, on the CPU.
    """
    numbers = torch.full((rows, count), -1, dtype=torch.int64)
    for place in range(count):
        top = bound - count + place
        candidate = torch.randint(top + 1, (rows,))
        is_repeated = (numbers[:, :place] == candidate[:, None]).any(1)
        numbers[:, place] = torch.where(is_repeated, top, candidate)
    return numbers
