"""AutoEncoding: the common base of the auto-encoders rq-vae, vq-vae and fsq.

They differ in the quantizer between encoder and decoder.

Shapes: n rows, D content width, M levels.
"""

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
    """A tokenizer that is trained as an auto-encoder, on the rows of the content matrix.

    Content is standardised and then goes through the network.
    """

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
        """Build the network.

        Args:
            config: the tokenizer's settings.
            catalog: the items, with content vectors.
            widths: widths of the encoder's hidden layers and of the latent space.
            quantizer: the module between encoder and decoder, which turns latents into codes.
            standardise: whether to standardise content first.
            commitment: weight of the loss that moves latents towards their code vectors.

        """
        super().__init__(config, catalog)
        self.standardise, self.commitment = standardise, commitment
        self.standardizer = Standardizer(self.content_dim)
        self.network = QuantisedAutoEncoder((self.content_dim, *widths), quantizer)

    def examples(self, train: Dataset) -> ContentRows:
        """Return the content vectors of the catalogue as examples; also fits the standardisation to them."""
        content = content_of(train.catalog)
        if self.standardise:
            self.standardizer.fit(content.to(self.standardizer.mean.device))
        return ContentRows(content)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """Return the loss of a batch of content vectors, as means over rows.

        It is the sum of ||x - x'||^2, of the loss that moves code vectors towards latents, and of `commitment` times
        the loss that moves latents towards code vectors.
        """
        reconstruction, quantised = self.network(self.standardizer(batch.content))
        total = reconstruction + quantised.codebook + self.commitment * quantised.commitment
        return LossTerms(total, {"reconstruction": reconstruction.detach(), **self.log_terms(quantised)})

    def log_terms(self, quantised: QuantisedLatent) -> dict[str, Tensor]:
        """Return further figures, by name, that the progress display shows next to the reconstruction loss."""
        return {}

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D]."""
        return self.network.encode(self.standardizer(content))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return content vectors [n, D] of codes [n, M]."""
        return self.standardizer.inverse(self.network.decode(codes))
