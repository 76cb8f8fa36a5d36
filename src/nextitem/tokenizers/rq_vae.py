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
  keeps 80% of the codes in use. `sinkhorn` spreads each training batch evenly over the codes (LC-Rec, 2311.09049).
- Residuals subtract sg(e), so the commitment term of every level reaches the encoder (nn/quantisation/quantizers.py).
- Losses are sums over dimensions and means over rows; codebooks learn by gradient, or by moving averages.

Shapes: B rows, D content width, E latent width, M levels, C codes.
"""

from __future__ import annotations

from typing import Literal, cast

from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.nn.quantisation.learnt_codebooks import LearntCodebooks, QuantisedLatent
from nextitem.tokenizers.auto_encoding import AutoEncoding


class RQVAEConfig(configs.Config):
    """Sizes and weights of an RQ-VAE."""

    levels: int = Field(3, ge=1)
    """Codes an item."""
    codebook_size: int = Field(64, ge=2)
    """Codes a level."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    latent_dim: int = Field(32, ge=1)
    """Width of the latent space and of code vectors."""
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


class RQVAE(AutoEncoding):
    """Its loss: ||x - x'||^2 + sum over levels of ||sg(r) - e||^2 + beta ||r - sg(e)||^2."""

    name = "rq-vae"
    Config = RQVAEConfig
    config: RQVAEConfig

    def __init__(self, config: RQVAEConfig, catalog: Catalog) -> None:
        codebooks = LearntCodebooks(
            (config.levels, config.codebook_size, config.latent_dim),
            split="residual",
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
