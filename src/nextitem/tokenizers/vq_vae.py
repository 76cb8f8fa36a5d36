"""VQ-VAE: an auto-encoder whose latent vector is cut into slices, one code for each slice.

Paper: van den Oord et al., Neural Discrete Representation Learning, arXiv 1711.00937; as an ablation of semantic IDs in
TIGER, arXiv 2305.05065, section 4.2. Idea: like an RQ-VAE, but each level codes its own slice of the latent vector. So
no code depends on another, and codes do not go from coarse to fine.

Notable
- TIGER does not say how its VQ-VAE produces several codes; slices of the latent vector are the usual way.
- Start, restart and updates of code vectors as in rq-vae (nn/quantisation/learnt_codebooks.py).

Shapes: B rows, D content width, E latent width, M levels, C codes.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.nn.quantisation.learnt_codebooks import LearntCodebooks, QuantisedLatent
from nextitem.tokenizers.auto_encoding import AutoEncoding


class VQVAEConfig(configs.Config):
    """Settings of a VQ-VAE: sizes, and weights of the loss."""

    levels: int = Field(3, ge=1)
    """Number of codes of an item (M)."""
    codebook_size: int = Field(64, ge=2)
    """Number of codes of each level (C)."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    latent_dim: int = Field(48, ge=1)
    """Width of the latent space (E); it must be a multiple of `levels`."""
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss (beta), which moves latents towards their code vectors."""
    codebook_update: Literal["gradient", "ema"] = "gradient"
    """How code vectors are updated: by gradient, or as moving averages of their latents (ema)."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Weight of the past in the moving averages of code vectors (codebook_update = "ema" only)."""
    sinkhorn: float | None = Field(None, gt=0)
    """Temperature at which training batches are spread evenly over the codes; None: nearest codes."""
    standardise: bool = True
    """Whether to scale every content dimension to the same variance, so that all have the same weight."""
    revive_every: int = Field(50, ge=1)
    """Number of batches after which unused codes restart at random vectors of the batch."""


class VQVAE(AutoEncoding):
    """VQ-VAE tokenizer. Loss: ||x - x'||^2 + sum over slices of ||sg(z) - e||^2 + beta ||z - sg(e)||^2."""

    name = "vq-vae"
    coarse_to_fine: ClassVar[bool] = False
    Config = VQVAEConfig
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig, catalog: Catalog) -> None:
        codebooks = LearntCodebooks(
            (config.levels, config.codebook_size, config.latent_dim),
            split="product",
            update=config.codebook_update,
            decay=config.ema_decay,
            sinkhorn=config.sinkhorn,
            revive_every=config.revive_every,
        )
        super().__init__(
            config,
            catalog,
            widths=(*config.hidden, config.latent_dim),
            quantizer=codebooks,
            standardise=config.standardise,
            commitment=config.commitment,
        )

    @property
    def codebooks(self) -> LearntCodebooks:
        """Return the tables of code vectors, with the recent usage of each code."""
        return cast(LearntCodebooks, self.network.quantizer)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level: the same for all levels."""
        return self.codebooks.codebook_sizes

    def log_terms(self, quantised: QuantisedLatent) -> dict[str, Tensor]:
        """Return the codebooks' loss, and the share of codes in use, for the progress display."""
        return {"codebook": quantised.codebook.detach(), "codes_in_use": (self.codebooks.usage > 0).float().mean()}
