"""RQ-VAE: an auto-encoder whose latent vector is quantised into residual codes.

Paper: Lee et al., arXiv 2203.01941 (residual quantisation); TIGER, arXiv 2305.05065, section 3.1 (semantic IDs). Idea:
an encoder compresses content vectors to a latent space. There each level takes the code vector nearest to the residual
of the levels before. The decoder rebuilds the content from the sum of the code vectors. Encoder, codebooks and decoder
learn together, so that the codes describe what matters for the content.

Notable
- Published sizes: hidden 512, 256, 128, latent 32, 3 levels x 256 codes, Adagrad 0.4, batches of 1,024, 20,000 epochs.
  The defaults here are for laptops; use AdamW 1e-3, with which some hundred epochs suffice.
- Content is standardised by dimension: raw unit-norm text vectors are known to collapse to one code.
- Codes that nothing used for `revive_every` batches restart at random residuals; the paper does not say how it keeps
  80% of the codes in use. `sinkhorn` spreads each training batch evenly over the codes (LC-Rec, 2311.09049).
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
    """Settings of an RQ-VAE: sizes, and weights of the loss."""

    levels: int = Field(3, ge=1)
    """Number of codes of an item (M)."""
    codebook_size: int = Field(64, ge=2)
    """Number of codes of each level (C)."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    latent_dim: int = Field(32, ge=1)
    """Width of the latent space and of code vectors (E)."""
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


class RQVAE(AutoEncoding):
    """RQ-VAE tokenizer. Loss: ||x - x'||^2 + sum over levels of ||sg(r) - e||^2 + beta ||r - sg(e)||^2."""

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
        """Return the tables of code vectors, with the recent usage of each code."""
        return cast(LearntCodebooks, self.network.quantizer)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level: the same for all levels."""
        return self.codebooks.codebook_sizes

    def log_terms(self, quantised: QuantisedLatent) -> dict[str, Tensor]:
        """Return the codebooks' loss, and the share of codes in use, for the progress display."""
        return {"codebook": quantised.codebook.detach(), "codes_in_use": (self.codebooks.usage > 0).float().mean()}
