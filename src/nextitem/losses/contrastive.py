"""InfoNCE between two views of each sequence of a batch (arXiv 2010.14395, eq. 3; SimCLR, arXiv 2002.05709)."""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive(left: Tensor, right: Tensor, *, temperature: float, ids: Tensor | None = None) -> Tensor:
    """Return the InfoNCE loss, a mean over the 2 B views, scalar.

    It is -log softmax(view . others / temperature) at the other view of the same sequence.
    Row b of `left [B, D]` and row b of `right [B, D]` are two views of one sequence. The negatives of a view are the
    2 B - 2 views of the other rows; a view is never compared with itself.

    Args:
        left: first views [B, D].
        right: second views [B, D].
        temperature: divisor of the inner products.
        ids: [2 B], what the views show, `left` first: a view of the same, or of the same as the other view, is no
            negative. None: all views show different things.

    """
    views = torch.cat([left, right])
    logits = views @ views.T / temperature
    other = torch.arange(len(views), device=views.device).roll(len(left))
    if ids is None:
        return torch.nn.functional.cross_entropy(logits.fill_diagonal_(-torch.inf), other)
    is_same = (ids[:, None] == ids) | (ids[other][:, None] == ids)
    is_same[torch.arange(len(views), device=views.device), other] = False
    return torch.nn.functional.cross_entropy(logits.masked_fill(is_same, -torch.inf), other)
