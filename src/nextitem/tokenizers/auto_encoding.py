"""AutoEncoding: what rq-vae, vq-vae and fsq share; they differ in the quantizer between encoder and decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.roles import LossTerms
from nextitem.data.examples.content_rows import ContentBatch, ContentRows
from nextitem.nn.quantisation.learnt_codebooks import QuantisedLatent
from nextitem.nn.quantisation.quantised_autoencoder import QuantisedAutoEncoder
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of


class AutoEncoding(Tokenizer):
    """Trainable on the rows of the content matrix; content is standardised, then goes through the network."""

    def __init__(
        self,
        config: configs.Config,
        catalog: Catalog,
        *,
        widths: tuple[int, ...],
        quantizer: nn.Module,
        standardise: bool,
        commitment: float = 0.0,
    ) -> None:
        """`widths`: of the encoder's hidden layers and of the latent space; `commitment` draws latents to codes."""
        super().__init__(config, catalog)
        self.standardise, self.commitment = standardise, commitment
        self.standardizer = Standardizer(self.content_dim)
        self.network = QuantisedAutoEncoder((self.content_dim, *widths), quantizer)

    def examples(self, train: Dataset) -> ContentRows:
        """The content vectors of the catalogue; measures them for standardisation."""
        content = content_of(train.catalog)
        if self.standardise:
            self.standardizer.fit(content.to(self.standardizer.mean.device))
        return ContentRows(content)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """||x - x'||^2, what draws code vectors to latents, and `commitment` times its reverse; means over rows."""
        reconstruction, passed = self.network(self.standardizer(batch.content))
        total = reconstruction + passed.codebook + self.commitment * passed.commitment
        return LossTerms(total, {"reconstruction": reconstruction.detach(), **self.shown(passed)})

    def shown(self, passed: QuantisedLatent) -> dict[str, Tensor]:
        """Further parts of the loss that progress shows."""
        return {}

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Codes [n, M] of content vectors [n, D]."""
        return self.network.encode(self.standardizer(content))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Content vectors [n, D] of codes [n, M]."""
        return self.standardizer.inverse(self.network.decode(codes))
