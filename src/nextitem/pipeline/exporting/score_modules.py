"""Scores of all items, and vectors for an index, from an encoder of requests.

Shapes: B requests, N items, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.vector_model import VectorModel
from nextitem.pipeline.exporting.history_modules import HistoryModule


class ItemScores(nn.Module):
    """Scores of all items as the model ranks by them: `forward` returns scores [B, N + 1] and vectors [B, D].

    Items without a training event come last if the model ranks them last, and a request without history gets the
    popularity of the items, as in the package. Column 0 is -inf.
    """

    items: Tensor
    biases: Tensor | None
    unseen: Tensor | None
    popularity: Tensor

    def __init__(self, model: VectorModel, encoder: HistoryModule) -> None:
        super().__init__()
        self.encoder = encoder
        biases, unseen = model.item_biases(), model.unseen_items()
        # A parameter that the encoder reads, too, is written once.
        self.items = nn.Parameter(model.item_vectors().detach(), requires_grad=False)
        self.register_buffer("biases", None if biases is None else biases.detach())
        self.register_buffer("unseen", unseen)
        self.register_buffer("popularity", model.popularity)

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of all items and the vectors of the requests."""
        vectors = self.encoder(*values)
        scores = vectors @ self.items.T
        if self.biases is not None:
            scores = scores + self.biases
        is_padding = torch.arange(scores.shape[1], device=scores.device) == 0
        if self.unseen is not None:
            lowest = scores.masked_fill(self.unseen | is_padding, torch.inf).amin(1, keepdim=True)
            scores = torch.where(self.unseen, lowest - 1, scores)
        is_empty = (values[0] > 0).sum(1, keepdim=True) == 0
        scores = torch.where(is_empty, self.popularity, scores).masked_fill(is_padding, -torch.inf)
        return scores, vectors * ~is_empty


class IndexedVectors(nn.Module):
    """Vectors of requests whose inner product with an indexed vector is the score, [B, D]; zeros without a history.

    If items have a bias, the vectors have one more number, which is 1, and those of the items end in their bias.
    """

    def __init__(self, encoder: HistoryModule, *, has_biases: bool) -> None:
        super().__init__()
        self.encoder, self.has_biases = encoder, has_biases

    def forward(self, *values: Tensor) -> Tensor:
        """Return the vectors of the requests."""
        vectors: Tensor = self.encoder(*values)
        if self.has_biases:
            vectors = F.pad(vectors, (0, 1), value=1.0)
        return vectors * ((values[0] > 0).sum(1, keepdim=True) > 0)
