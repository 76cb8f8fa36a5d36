"""FSQ: an auto-encoder whose latent dimensions are rounded to a few values each.

Paper: Mentzer et al., Finite Scalar Quantization, arXiv 2309.15505. Idea: no codebook is learned, so none can collapse.
Every dimension of a small latent vector takes one of a few values, and the values of some dimensions together are a
code. The rounding passes its gradient straight through.

Notable
- A level is a group of dimensions with `values`; (8, 8) gives 64 codes. The paper has one group.
- Codes do not go from coarse to fine: the levels are independent.

Shapes: B rows, D content width, E latent width, M levels.
"""

from __future__ import annotations

from typing import ClassVar, cast

from pydantic import Field

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.nn.quantisation.finite_scalars import FiniteScalars
from nextitem.tokenizers.auto_encoding import AutoEncoding


class FSQConfig(configs.Config):
    """Settings of an FSQ auto-encoder."""

    levels: int = Field(3, ge=1)
    """Number of codes of an item (M)."""
    values: tuple[int, ...] = Field((8, 8), min_length=1)
    """Number of values of each latent dimension of a level; their product is the number of codes of the level."""
    hidden: tuple[int, ...] = (256, 128)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    standardise: bool = True
    """Whether to scale every content dimension to the same variance, so that all have the same weight."""


class FSQ(AutoEncoding):
    """FSQ tokenizer. The loss is the reconstruction error alone: there is no codebook to learn."""

    name = "fsq"
    Config = FSQConfig
    config: FSQConfig
    coarse_to_fine: ClassVar[bool] = False

    def __init__(self, config: FSQConfig, catalog: Catalog) -> None:
        if min(config.values) < 2:
            raise ValueError(f"values = {config.values}: each dimension needs at least two values")
        super().__init__(
            config,
            catalog,
            widths=(*config.hidden, config.levels * len(config.values)),
            quantizer=FiniteScalars(config.levels, config.values),
            standardise=config.standardise,
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level: the same for all levels."""
        return cast(FiniteScalars, self.network.quantizer).codebook_sizes
