"""Rollouts: lists that a policy has generated, with the probabilities of their codes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rollouts:
    """G lists of at most m items for each of B requests, as a generator of M codes an item has generated them.

    Attributes:
        item_ids: [B, G, m] int64; 0 is padding, only at the tail of a list, or the place of codes that no item has.
        codes: [B, G, m, M] int64; -1 in padding.
        log_probs: [B, G, m, M] float32, of each code given all before it, after the constraint; 0 in padding.
        is_legal: [B, G] bool, whether a list has an item, and each of its items exists and is allowed.
        version: fingerprint of the weights of the policy, or another name of them.

    """

    item_ids: Tensor
    codes: Tensor
    log_probs: Tensor
    is_legal: Tensor
    version: str

    def __post_init__(self) -> None:
        if self.item_ids.dim() != 3 or self.codes.shape[:3] != self.item_ids.shape or self.codes.dim() != 4:
            raise ValueError(
                f"item_ids {tuple(self.item_ids.shape)} must be [B, G, m], and codes {tuple(self.codes.shape)} "
                "[B, G, m, M]"
            )
        if self.log_probs.shape != self.codes.shape or self.is_legal.shape != self.item_ids.shape[:2]:
            raise ValueError("log_probs must have the shape of the codes, and is_legal the first two dimensions")
        is_item = self.is_item
        if bool((is_item[..., 1:] & ~is_item[..., :-1]).any()):
            raise ValueError("padding may occur only at the tail of a list")
        if bool(((self.codes >= 0) != is_item[..., None]).any()):
            raise ValueError("an item has either all of its codes, or none (-1) if it is padding")
        if bool(((self.item_ids > 0) != is_item)[self.is_legal].any()) or bool(
            (self.is_legal & ~is_item[..., 0]).any()
        ):
            raise ValueError("a legal list has at least one item, and each of its code sequences belongs to an item")
        if bool((self.log_probs.masked_select(~is_item[..., None]) != 0).any()):
            raise ValueError("log_probs must be 0 in padding")

    @property
    def num_requests(self) -> int:
        """Number of requests (B)."""
        return self.item_ids.shape[0]

    @property
    def num_lists(self) -> int:
        """Number of lists of each request (G)."""
        return self.item_ids.shape[1]

    @property
    def is_item(self) -> Tensor:
        """Whether a place of a list is no padding, bool [B, G, m]."""
        return self.codes[..., 0] >= 0

    @property
    def lengths(self) -> Tensor:
        """Number of items of each list, [B, G] int64."""
        return self.is_item.sum(2)

    def select(self, lists: Tensor) -> Rollouts:
        """Return some lists of each request: those at the indices `lists [B, G']`, in their order."""
        rows = torch.arange(self.num_requests, device=lists.device)[:, None]
        parts = {name: getattr(self, name)[rows, lists] for name in ("item_ids", "codes", "log_probs", "is_legal")}
        return replace(self, **parts)

    def to(self, device: torch.device | str) -> Rollouts:
        """Return the rollouts on another device."""
        parts = {name: getattr(self, name).to(device) for name in ("item_ids", "codes", "log_probs", "is_legal")}
        return replace(self, **parts)
