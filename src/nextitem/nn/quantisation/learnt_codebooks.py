"""LearntCodebooks: a quantizer whose code tables are trained together with an encoder.

Shapes: B rows, E latent width, M levels, C codes of each level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nextitem.distributed import processes
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
    """Result of the quantisation step within a network.

    Attributes:
        codes: [B, M] int64.
        latent: [B, E] the quantised latent that the codes represent; its gradient goes straight through to the encoder.
        codebook: loss that pulls the code vectors to the latents, mean over rows; 0 if tables are moving averages.
        commitment: loss that pulls the latents to their code vectors, mean over rows.

    """

    codes: Tensor
    latent: Tensor
    codebook: Tensor
    commitment: Tensor


class LearntCodebooks(nn.Module):
    """Quantizer with M tables of C code vectors that are trained together with an encoder.

    The first training batch initialises the tables by k-means. Evaluation changes nothing, and always assigns the
    nearest code. If several processes share a batch, they move the tables by the latents of all of them. When codes are
    initialised or restarted, they take over the tables of the first process, and such a batch moves nothing.

    Args:
        shape: number of levels (M), number of codes of each level (C), width of a latent (E).
        split: "residual": each level quantises the residual of the level before. "product": each level quantises its
            own slice of the latent.
        update: "gradient": the tables are parameters with a loss of their own. "ema": the tables are moving averages of
            the latents assigned to their codes (van den Oord et al. 2017, appendix A.1).
        decay: weight of the past in these moving averages.
        sinkhorn: temperature at which a training batch is spread evenly over the codes of a level (optimal transport
            with equal shares, Zheng et al. 2024, LC-Rec). None: each row gets its nearest code.
        revive_every: number of batches after which unused codes restart at random latents of the batch.

    Raises:
        ValueError: `split` is "product" and M does not divide E.

    """

    synchronised: ClassVar[dict[str, Literal["sum", "mean"]]] = {"num_assigned": "sum", "latent_sums": "sum"}
    seed: Tensor
    usage: Tensor
    num_assigned: Tensor
    latent_sums: Tensor
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
            self.register_buffer("counts", torch.ones(levels, size))  # rows assigned to each code, moving average
        self.register_buffer("seed", torch.randint(2**31, ()))
        # Number of rows assigned to each code since unused codes were last revived.
        self.register_buffer("usage", torch.zeros((levels, size), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # number of training batches so far
        # Rows of the present batch that were assigned to each code, and the sums of their latents (ema).
        self.register_buffer("num_assigned", torch.zeros_like(self.usage), persistent=False)
        latent_sums = torch.zeros_like(tables if update == "ema" else tables[:, :0])
        self.register_buffer("latent_sums", latent_sums, persistent=False)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level, the same for all."""
        return (self.tables.shape[1],) * len(self.tables)

    def forward(self, latent: Tensor) -> QuantisedLatent:
        """Quantise `latent [B, E]`; in training, also initialise, revive and update the tables."""
        if self.training:
            self._initialise_or_revive(latent.detach())
        result = self._quantise(latent, temperature=self.sinkhorn if self.training else None)
        pairs = list(zip(result.inputs, result.code_vectors, strict=True))
        codebook = torch.stack([mean_square(rows.detach(), vectors) for rows, vectors in pairs]).sum()
        commitment = torch.stack([mean_square(rows, vectors.detach()) for rows, vectors in pairs]).sum()
        if self.training:
            self._count([rows.detach() for rows in result.inputs], result.codes)
            if processes.world_size() == 1:
                self._end_step()
        if self.update == "ema":
            codebook = codebook.detach() * 0
        # Straight-through: the decoder sees the code vectors, the encoder gets the gradient of the decoder's input.
        return QuantisedLatent(result.codes, latent + (result.quantised - latent).detach(), codebook, commitment)

    def encode(self, latent: Tensor) -> Tensor:
        """Return the nearest codes [B, M] of `latent [B, E]`."""
        return self._quantise(latent).codes

    def decode(self, codes: Tensor) -> Tensor:
        """Return the latent vectors [B, E] that `codes [B, M]` represent."""
        entries = [table[codes[:, level]] for level, table in enumerate(self.tables)]
        return torch.cat(entries, dim=1) if self.split == "product" else torch.stack(entries).sum(0)

    def _quantise(self, latent: Tensor, *, temperature: float | None = None) -> Quantised:
        """Quantise by nearest codes, or evenly over the codes of each level if there is a temperature."""
        quantise = product_quantise if self.split == "product" else residual_quantise
        assign = (
            nearest_code
            if temperature is None
            else lambda rows, table: balanced_plan(rows, table, temperature).argmax(1)
        )
        return quantise(latent, tuple(self.tables), choose=assign)

    @torch.no_grad()
    def _initialise_or_revive(self, latent: Tensor) -> None:
        """Initialise the tables in the first batch; later, restart unused codes every `revive_every` batches.

        Tables are initialised by k-means on the vectors that their level has to quantise.
        """
        step = int(self.steps)
        if step % self.revive_every:
            return
        # Seeded by seed and step alone, so that a resumed run continues with the same numbers.
        generator = torch.Generator().manual_seed(int(self.seed) + step)
        for level, table in enumerate(self.tables):
            # The inputs of this level depend only on the tables before it, which are up to date by now.
            inputs = self._quantise(latent).inputs[level]
            is_unused = self.usage[level] == 0
            if step == 0:
                centroids = kmeans(inputs, len(table), seed=int(self.seed))
                table[: len(centroids)] = centroids
                is_unused = torch.arange(len(table), device=is_unused.device) >= len(centroids)
            rows = torch.randint(len(inputs), (int(is_unused.sum()),), generator=generator)
            table[is_unused] = inputs[rows.to(inputs.device)]
            if self.update == "ema":
                self.counts[level, is_unused] = 1.0
        self.usage.zero_()

    @torch.no_grad()
    def after_batch(self, weight: float) -> None:
        """End the step of all processes (roles.HasBatchHook)."""
        if processes.world_size() == 1:
            return
        if int(self.steps) % self.revive_every:
            self._end_step()
            return
        for tensor in (self.tables, *((self.counts,) if self.update == "ema" else ())):
            tensor.copy_(processes.gather(tensor.detach().cpu())[0])
        for tensor in (self.usage, self.num_assigned, self.latent_sums):
            tensor.zero_()
        self.steps += 1

    @torch.no_grad()
    def _count(self, inputs: list[Tensor], codes: Tensor) -> None:
        """Count the rows that were assigned to each code in this batch, and add up their latents."""
        for level, rows in enumerate(inputs):
            self.num_assigned[level] = torch.bincount(codes[:, level], minlength=self.tables.shape[1])
            if self.update == "ema":
                self.latent_sums[level] = torch.zeros_like(self.tables[level]).index_add_(0, codes[:, level], rows)

    @torch.no_grad()
    def _end_step(self) -> None:
        """Move the tables to the moving averages of the latents that were assigned to their codes."""
        self.usage += self.num_assigned
        self.steps += 1
        if self.update == "ema":
            past = self.decay * self.counts
            counts = past + (1 - self.decay) * self.num_assigned
            # (decay * counts * table + (1 - decay) * sums) / new counts: the vector of an unused code does not change.
            sums = past[..., None] * self.tables + (1 - self.decay) * self.latent_sums
            self.tables.copy_(sums / counts[..., None])
            self.counts.copy_(counts)
        self.num_assigned.zero_()
        self.latent_sums.zero_()


def mean_square(left: Tensor, right: Tensor) -> Tensor:
    """Return the squared distance between the rows of `left` and `right`, mean over rows."""
    return (left - right).square().sum(1).mean()
