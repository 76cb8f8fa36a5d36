"""VQ-VAE: an auto-encoder whose latent vector is cut into slices, each spelt by one code.

Paper: van den Oord et al., Neural Discrete Representation Learning, arXiv 1711.00937; as an ablation of semantic IDs in
TIGER, arXiv 2305.05065, section 4.2. Idea: as an RQ-VAE, but each level codes a slice of the latent vector of its own,
so that no code depends on another, and codes do not go from coarse to fine.

Notable
- TIGER does not say how its VQ-VAE makes several codes; slices of the latent vector are the usual way.
- Start, restart and movement of code vectors as in rq-vae (nn/quantisation/learnt_codebooks.py).

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
    """Sizes and weights of a VQ-VAE."""

    levels: int = Field(3, ge=1)
    """Codes an item."""
    codebook_size: int = Field(64, ge=2)
    """Codes a level."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    latent_dim: int = Field(48, ge=1)
    """Width of the latent space; levels must divide it."""
    commitment: float = Field(0.25, ge=0)
    """Weight that draws latents to their codes (beta)."""
    codebook_update: Literal["gradient", "ema"] = "gradient"
    """How code vectors learn; ema: moving averages."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Weight of the past in the moving averages."""
    sinkhorn: float | None = Field(None, gt=0)
    """Temperature of even spreading in training; None: nearest codes."""
    standardise: bool = True
    """Give every content dimension the same weight."""
    revive_every: int = Field(50, ge=1)
    """Batches after which unused codes restart."""


class VQVAE(AutoEncoding):
    """Its loss: ||x - x'||^2 + sum over slices of ||sg(z) - e||^2 + beta ||z - sg(e)||^2."""

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
        """The code tables, and how often each code was used of late."""
        return cast(LearntCodebooks, self.network.quantizer)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level: the same number."""
        return self.codebooks.codebook_sizes

    def shown(self, passed: QuantisedLatent) -> dict[str, Tensor]:
        """The codebooks' loss, and the share of codes that are in use."""
        return {"codebook": passed.codebook.detach(), "codes_in_use": (self.codebooks.usage > 0).float().mean()}
