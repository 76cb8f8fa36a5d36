"""FSQ: an auto-encoder whose latent dimensions are rounded to a few values each.

Paper: Mentzer et al., Finite Scalar Quantization, arXiv 2309.15505. Idea: no codebook is learnt, so none can collapse;
every dimension of a small latent vector takes one of a few values, and the values of some dimensions together are a
code. The rounding passes its gradient straight through.

Notable
- A level is a group of dimensions with `values`, (8, 8) giving 64 codes; the paper has one group.
- Codes do not go from coarse to fine: each level says something of its own.

Shapes: B rows, D content width, E latent width, M levels.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.roles import LossTerms
from nextitem.data.examples.content_rows import ContentBatch, ContentRows
from nextitem.nn.finite_scalars import FiniteScalars
from nextitem.nn.quantised_autoencoder import QuantisedAutoEncoder
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of


class FSQConfig(configs.Config):
    """Sizes of an FSQ auto-encoder."""

    levels: int = Field(3, ge=1)  # codes an item
    values: tuple[int, ...] = Field((8, 8), min_length=1)  # of each dimension of a level; their product is its codes
    hidden: tuple[int, ...] = (256, 128)  # widths of the encoder's hidden layers; the decoder mirrors them
    standardise: bool = True  # give every content dimension the same weight


class FSQ(Tokenizer):
    """Trainable on the rows of the content matrix."""

    name = "fsq"
    Config = FSQConfig
    coarse_to_fine: ClassVar[bool] = False

    def __init__(self, config: configs.Config, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.settings = chosen = cast(FSQConfig, config)
        if min(chosen.values) < 2:
            raise ValueError(f"values = {chosen.values}: a dimension needs at least two")
        self.standardizer = Standardizer(self.content_dim)
        scalars = FiniteScalars(chosen.levels, chosen.values)
        self.network = QuantisedAutoEncoder(
            (self.content_dim, *chosen.hidden, chosen.levels * len(chosen.values)), scalars
        )

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level: the same number."""
        return cast(FiniteScalars, self.network.quantizer).codebook_sizes

    def examples(self, train: Dataset) -> ContentRows:
        """The content vectors of the catalogue; measures them for standardisation."""
        content = content_of(train.catalog)
        if self.settings.standardise:
            self.standardizer.fit(content.to(self.standardizer.mean.device))
        return ContentRows(content)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """||x - x'||^2, mean over rows; there is nothing else to learn."""
        return LossTerms(self.network(self.standardizer(batch.content))[0])

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Codes [n, M] of content vectors [n, D]."""
        return self.network.encode(self.standardizer(content))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Content vectors [n, D] of codes [n, M]."""
        return self.standardizer.inverse(self.network.decode(codes))
