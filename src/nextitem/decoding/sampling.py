"""Sampling: a beam search that samples instead of maximising, without replacement and with exact log-probabilities.

Kool, van Hoof, Welling, Stochastic Beams and Where to Find Them, arXiv 1903.06059. Add Gumbel noise to the
log-probabilities of all sequences and take the k highest: that samples k of them without replacement. Given the noise
of a prefix, the noise of its children can be sampled. So a beam search that keeps the W >= k highest prefixes returns
the same k sequences.

Shapes: B requests, W beams, D children of a beam, T items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sampling:
    """How sequences are sampled. All options apply to the live children of a beam, so no illegal one can be sampled.

    Attributes:
        generator: source of the noise.
        temperatures: divisor of the logits of each level; the last one is used for all further levels.
        top_k: sample only from this many likeliest children; None: from all.
        top_p: sample only from the smallest number of likeliest children whose probabilities sum to at least this; at
            least one child; None: from all.

    """

    generator: torch.Generator
    temperatures: tuple[float, ...] = (1.0,)
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperatures must be above 0, got {self.temperatures}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def log_probs(self, logits: Tensor, *, level: int) -> Tensor:
        """Return the log-probabilities with which live children are sampled, [B, W, D]; -inf for excluded children.

        `logits [B, W, D]` are those of the children at `level` (from 0).
        """
        logits = logits / self.temperatures[min(level, len(self.temperatures) - 1)]
        if self.top_k is not None and self.top_k < logits.shape[2]:
            lowest = logits.topk(self.top_k, dim=2).values[..., -1:]
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        if self.top_p is not None:
            values, order = logits.softmax(2).nan_to_num().sort(dim=2, descending=True, stable=True)
            before = values.cumsum(2) - values
            is_cut = torch.zeros_like(logits, dtype=torch.bool).scatter_(2, order, before >= self.top_p)
            logits = logits.masked_fill(is_cut, -torch.inf)
        total = logits.logsumexp(2, keepdim=True)
        return logits - total.masked_fill(total == -torch.inf, 0)

    def keys(self, scores: Tensor, parent_keys: Tensor) -> Tensor:
        """Return perturbed log-probabilities of the children of each beam, [B, W, D].

        `scores [B, W, D]` are their log-probabilities. The largest key of a beam's children is the beam's own,
        `parent_keys [B, W]`.
        """
        noisy = scores + self._gumbel(scores)
        highest = noisy.max(2, keepdim=True).values if scores.shape[2] else parent_keys[..., None]
        return _conditioned(noisy, highest, parent_keys[..., None])

    def keys_of_groups(self, scores: Tensor, groups: Tensor, parent_keys: Tensor) -> Tensor:
        """Return perturbed log-probabilities of children in one row, [T].

        Children with equal `groups [T]` have one parent, whose key is `parent_keys [T]`.
        """
        noisy = scores + self._gumbel(scores)
        count = int(groups.max()) + 1 if len(groups) else 0
        highest = noisy.new_full((count,), -torch.inf).scatter_reduce_(0, groups, noisy, "amax")
        return _conditioned(noisy, highest[groups], parent_keys)

    def _gumbel(self, like: Tensor) -> Tensor:
        """Return standard Gumbel noise, with shape, type and device of `like`."""
        uniform = torch.rand(like.shape, generator=self.generator, dtype=torch.float64)
        return -torch.log(-torch.log(uniform.clamp(min=1e-300, max=1 - 1e-16))).to(like.device, like.dtype)


def _conditioned(noisy: Tensor, highest: Tensor, target: Tensor) -> Tensor:
    """Turn Gumbel variables with the maximum `highest` into ones with the maximum `target` (appendix B.3)."""
    alive = noisy > -torch.inf
    noisy, highest = noisy.double(), highest.double()
    gap = (noisy - highest).masked_fill(~alive, -1.0).clamp(max=0)
    shift = target.double() - noisy.masked_fill(~alive, 0) + torch.log(-torch.expm1(gap))
    # -log1p(exp(-|v|)) - max(0, v) without overflow; the highest one has shift -inf and becomes `target`.
    keys = target.double() - shift.clamp(min=0) - torch.log1p(torch.exp(-shift.abs()))
    return keys.masked_fill(~alive, -torch.inf)
