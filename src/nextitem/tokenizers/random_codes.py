"""Random codes without meaning: the ablation baseline of semantic IDs.

Paper: TIGER, arXiv 2305.05065, section 4.2. Idea: every code is sampled uniformly, independently of the other codes and
of the item's content. So whatever a model still learns, it learns without shared meaning.

Notable
- Codes are a hash of the content vector's bits and the seed. Equal content has equal codes, as with every tokenizer,
  and the codes of a new item do not depend on the others. The slightest difference gives unrelated codes.
- Decoding returns the mean vector: codes contain no information about the content.

Shapes: n items, D content width, M levels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.tokenizers.tokenizer import Tokenizer, content_of

_ODD = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64: spreads neighbouring numbers over the whole range
_MIX = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as int64 (SplitMix64)


class RandomCodesConfig(configs.Config):
    """Settings of random codes."""

    levels: int = Field(3, ge=1)
    """Number of codes of an item (M)."""
    codebook_size: int = Field(64, ge=1)
    """Number of codes of each level (C)."""


class RandomCodes(Tokenizer):
    """Tokenizer with random codes (closed form). The same seed and content give the same codes."""

    name = "random"
    Config = RandomCodesConfig
    config: RandomCodesConfig
    coarse_to_fine: ClassVar[bool] = False
    mean: Tensor

    def __init__(self, config: RandomCodesConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.register_buffer("mean", torch.zeros(self.content_dim))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level: the same for all levels."""
        return (self.config.codebook_size,) * self.config.levels

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Compute the mean of the content of `train.catalog`."""
        self.mean.copy_(content_of(train.catalog).mean(0))

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D]."""
        bits = content.float().contiguous().view(torch.int32).long()
        bits = torch.where(content == 0, 0, bits)  # -0 and 0 are the same number
        state = torch.full((len(content),), int(self.seed), dtype=torch.int64, device=content.device)
        for column in bits.T:
            state = _mix(state + column)
        levels = [_mix(state + level) for level in range(1, self.config.levels + 1)]
        return torch.stack(levels, dim=1) % self.config.codebook_size

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the mean vector for each row of `codes [n, M]`, [n, D]."""
        return self.mean.expand(len(codes), -1)


def _mix(state: Tensor) -> Tensor:
    """Apply one round of a multiplicative hash; arithmetic modulo 2 ** 64."""
    state = state * _ODD
    state = (state ^ ((state >> 30) & (2**34 - 1))) * _MIX
    return state ^ ((state >> 27) & (2**37 - 1))
