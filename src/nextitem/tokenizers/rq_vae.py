"""RQ-VAE: an auto-encoder whose latent vector is spelt by residual codes.

Paper: Lee et al., arXiv 2203.01941 (residual quantisation); TIGER, arXiv 2305.05065, section 3.1 (semantic IDs).
Idea: an encoder compresses content vectors to a latent space; there each level takes the code vector nearest to
what the levels before left over; the decoder rebuilds the content from the sum of the code vectors. Encoder,
codebooks and decoder learn together, so that the codes say what matters for the content.

Notable
- Published sizes: hidden 512, 256, 128, latent 32, 3 levels x 256 codes, Adagrad .4, batches of 1,024, 20,000
  epochs. The defaults here are for laptops; use AdamW 1e-3, with which some hundred epochs do.
- Content is standardised by dimension: raw unit-norm text vectors are known to collapse to one code.
- Codes that nothing used for `revive_every` batches restart at random residuals; the paper does not say how it
  keeps 80% of the codes in use.
- Residuals subtract sg(e), so the commitment term of every level reaches the encoder (see nn/quantizers.py).
- Losses are sums over dimensions and means over rows; codebooks learn by gradient, not by moving averages.

Shapes: B rows, D content width, E latent width, M levels, C codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.roles import LossTerms
from nextitem.data.examples.content_rows import ContentBatch, ContentRows
from nextitem.nn.quantizers import kmeans, nearest_code, residual_quantise, sum_of_codes
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of


class RQVAEConfig(configs.Config):
    """Sizes and weights of an RQ-VAE."""

    levels: int = Field(3, ge=1)  # codes an item
    codebook_size: int = Field(64, ge=2)  # codes a level
    hidden: tuple[int, ...] = (256, 128)  # widths of the encoder's hidden layers; the decoder mirrors them
    latent_dim: int = Field(32, ge=1)  # width of the latent space and of code vectors
    commitment: float = Field(0.25, ge=0)  # weight that draws latents to their codes (beta)
    standardise: bool = True  # give every content dimension the same weight
    revive_every: int = Field(50, ge=1)  # batches after which unused codes restart


class RQVAE(Tokenizer):
    """Trainable on the rows of the content matrix."""

    name = "rq-vae"
    Config = RQVAEConfig
    usage: Tensor
    steps: Tensor

    def __init__(self, config: configs.Config, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.settings = cast(RQVAEConfig, config)
        widths = (self.content_dim, *self.settings.hidden, self.settings.latent_dim)
        shape = (self.settings.levels, self.settings.codebook_size, self.settings.latent_dim)
        self.standardizer = Standardizer(self.content_dim)
        self.encoder = _relu_layers(widths)
        self.decoder = _relu_layers(widths[::-1])
        self.codebooks = nn.Parameter(torch.randn(shape))  # replaced by k-means on the first batch
        self.register_buffer("usage", torch.zeros(shape[:2], dtype=torch.int64))  # since codes were last revived
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # batches seen

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level: the same number."""
        return (self.settings.codebook_size,) * self.settings.levels

    def examples(self, train: Dataset) -> ContentRows:
        """The content vectors of the catalogue; measures them for standardisation."""
        content = content_of(train.catalog)
        if self.settings.standardise:
            self.standardizer.fit(content.to(self.standardizer.mean.device))
        return ContentRows(content)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """||x - x'||^2 + sum over levels of ||sg(r) - e||^2 + beta ||r - sg(e)||^2, mean over rows."""
        content_BD = self.standardizer(batch.content)
        latent_BE = self.encoder(content_BD)
        if self.training:
            self._renew_codes(latent_BE.detach())
        found = residual_quantise(latent_BE, tuple(self.codebooks))
        # Straight-through: the decoder sees the code vectors, the encoder its gradient.
        passed_BE = latent_BE + (found.quantised - latent_BE).detach()
        pairs = list(zip(found.residuals, found.chosen, strict=True))
        reconstruction = _mean_square(content_BD, self.decoder(passed_BE))
        codebook = torch.stack([_mean_square(residual.detach(), entry) for residual, entry in pairs]).sum()
        commitment = torch.stack([_mean_square(residual, entry.detach()) for residual, entry in pairs]).sum()
        if self.training:
            ones = torch.ones_like(found.codes.T)
            self.usage.scatter_add_(1, found.codes.T, ones)
            self.steps += 1
        return LossTerms(
            reconstruction + codebook + self.settings.commitment * commitment,
            {
                "reconstruction": reconstruction.detach(),
                "codebook": codebook.detach(),
                "codes_in_use": (self.usage > 0).float().mean(),
            },
        )

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Codes [n, M] of content vectors [n, D]."""
        return residual_quantise(self.encoder(self.standardizer(content)), tuple(self.codebooks)).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Content vectors [n, D] of codes [n, M]."""
        return self.standardizer.inverse(self.decoder(sum_of_codes(codes, tuple(self.codebooks))))

    @torch.no_grad()
    def _renew_codes(self, latent_BE: Tensor) -> None:
        """First batch: codes by k-means on its residuals. Later, now and then: unused codes restart."""
        step = int(self.steps)
        if step % self.settings.revive_every:
            return
        # A function of seed and step alone: a run that resumes goes on with the same numbers.
        generator = torch.Generator().manual_seed(int(self.seed) + step)
        residual = latent_BE
        for codebook, usage in zip(self.codebooks, self.usage, strict=True):
            unused = usage == 0
            if step == 0:
                centroids = kmeans(residual, len(codebook), seed=int(self.seed))
                codebook[: len(centroids)] = centroids
                unused = torch.arange(len(codebook), device=unused.device) >= len(centroids)
            rows = torch.randint(len(residual), (int(unused.sum()),), generator=generator)
            codebook[unused] = residual[rows.to(residual.device)]
            residual = residual - codebook[nearest_code(residual, codebook)]
        self.usage.zero_()


def _relu_layers(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _mean_square(left: Tensor, right: Tensor) -> Tensor:
    """Squared distance of rows, mean over rows."""
    return (left - right).square().sum(1).mean()
