"""LearntCodebooks: code tables that learn together with an encoder.

Shapes: B rows, E latent width, M levels, C codes of a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nextitem.nn.quantisation.quantizers import (
    Quantised,
    balanced_plan,
    kmeans,
    nearest_code,
    product_quantise,
    residual_quantise,
)


@dataclass(frozen=True)
class QuantisedLatent:
    """Outcome of quantising within a network.

    codes       [B, M] int64
    latent      [B, E], the code vectors' sum; its gradient goes straight through to the encoder
    codebook    what draws the code vectors to the latents, mean over rows; 0 where they are moving averages
    commitment  what draws the latents to their code vectors
    """

    codes: Tensor
    latent: Tensor
    codebook: Tensor
    commitment: Tensor


class LearntCodebooks(nn.Module):
    """M tables of C code vectors; M quantise one after another what is left ("residual"), or a slice each ("product").

    update        "gradient": the tables are parameters, with a loss of their own. "ema": moving averages of the latents
                  that chose them (van den Oord et al. 2017, appendix A.1), with weight `decay` on the past
    sinkhorn      temperature at which a training batch is spread evenly over the codes of a level (optimal transport
                  with equal shares, Zheng et al. 2024, LC-Rec); None: each row takes its nearest code
    revive_every  batches after which codes that nothing chose restart at random latents of the batch

    The first batch starts the tables by k-means. Evaluation changes nothing, and always takes the nearest code.
    """

    seed: Tensor
    usage: Tensor
    steps: Tensor
    counts: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        split: Literal["residual", "product"],
        update: Literal["gradient", "ema"] = "gradient",
        decay: float = 0.99,
        sinkhorn: float | None = None,
        revive_every: int = 50,
    ) -> None:
        super().__init__()
        levels, size, width = shape
        if split == "product" and width % levels:
            raise ValueError(f"levels = {levels} must divide latent_dim = {width}: each level codes a slice of it")
        self.split, self.update, self.decay = split, update, decay
        self.sinkhorn, self.revive_every = sinkhorn, revive_every
        narrow = width // levels if split == "product" else width
        tables = torch.randn(levels, size, narrow)
        if update == "gradient":
            self.tables = nn.Parameter(tables)
        else:
            self.register_buffer("tables", tables)
            self.register_buffer("counts", torch.ones(levels, size))  # of rows that chose a code, moving average
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.register_buffer("usage", torch.zeros((levels, size), dtype=torch.int64))  # since codes were last revived
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # training batches seen

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level: the same number."""
        return (self.tables.shape[1],) * len(self.tables)

    def forward(self, latent: Tensor) -> QuantisedLatent:
        """Quantises `latent [B, E]`; in training the tables start, revive and move."""
        if self.training:
            self._renew(latent.detach())
        found = self._quantise(latent, balance=self.sinkhorn if self.training else None)
        pairs = list(zip(found.asked, found.chosen, strict=True))
        codebook = torch.stack([mean_square(asked.detach(), entry) for asked, entry in pairs]).sum()
        commitment = torch.stack([mean_square(asked, entry.detach()) for asked, entry in pairs]).sum()
        if self.training:
            self.usage.scatter_add_(1, found.codes.T, torch.ones_like(found.codes.T))
            self.steps += 1
            if self.update == "ema":
                self._move([asked.detach() for asked in found.asked], found.codes)
        if self.update == "ema":
            codebook = codebook.detach() * 0
        # Straight-through: the decoder sees the code vectors, the encoder its gradient.
        return QuantisedLatent(found.codes, latent + (found.quantised - latent).detach(), codebook, commitment)

    def encode(self, latent: Tensor) -> Tensor:
        """Nearest codes [B, M]."""
        return self._quantise(latent).codes

    def decode(self, codes: Tensor) -> Tensor:
        """The latent vectors [B, E] that `codes [B, M]` stand for."""
        entries = [table[codes[:, level]] for level, table in enumerate(self.tables)]
        return torch.cat(entries, dim=1) if self.split == "product" else torch.stack(entries).sum(0)

    def _quantise(self, latent: Tensor, *, balance: float | None = None) -> Quantised:
        quantise = product_quantise if self.split == "product" else residual_quantise
        choose = nearest_code if balance is None else lambda rows, table: balanced_plan(rows, table, balance).argmax(1)
        return quantise(latent, tuple(self.tables), choose=choose)

    @torch.no_grad()
    def _renew(self, latent: Tensor) -> None:
        """First batch: codes by k-means on what its level is asked. Later, now and then: unused codes restart."""
        step = int(self.steps)
        if step % self.revive_every:
            return
        # A function of seed and step alone: a run that resumes goes on with the same numbers.
        generator = torch.Generator().manual_seed(int(self.seed) + step)
        for level, table in enumerate(self.tables):
            # What this level is asked depends on the tables before it alone, which have been renewed by now.
            asked = self._quantise(latent).asked[level]
            unused = self.usage[level] == 0
            if step == 0:
                centroids = kmeans(asked, len(table), seed=int(self.seed))
                table[: len(centroids)] = centroids
                unused = torch.arange(len(table), device=unused.device) >= len(centroids)
            rows = torch.randint(len(asked), (int(unused.sum()),), generator=generator)
            table[unused] = asked[rows.to(asked.device)]
            if self.update == "ema":
                self.counts[level, unused] = 1.0
        self.usage.zero_()

    @torch.no_grad()
    def _move(self, asked: list[Tensor], codes: Tensor) -> None:
        for level, rows in enumerate(asked):
            size = self.tables.shape[1]
            chosen = torch.bincount(codes[:, level], minlength=size).to(rows.dtype)
            sums = torch.zeros_like(self.tables[level]).index_add_(0, codes[:, level], rows)
            past = self.decay * self.counts[level]
            counts = past + (1 - self.decay) * chosen
            # (decay * counts * table + (1 - decay) * sums) / new counts: a code that nothing chose stays where it is.
            self.tables[level] = (past[:, None] * self.tables[level] + (1 - self.decay) * sums) / counts[:, None]
            self.counts[level] = counts


def mean_square(left: Tensor, right: Tensor) -> Tensor:
    """Squared distance of rows, mean over rows."""
    return (left - right).square().sum(1).mean()
