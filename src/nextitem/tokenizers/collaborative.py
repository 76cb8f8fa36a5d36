"""CollaborativeContent: content vectors, moved so that items that users take together lie near each other.

OneRec technical report, arXiv 2506.13695, section 2.1 (item-to-item contrast), as QARM (2411.11739). Text says what an
item is, not with which other items it is used. A small network on the content vector is trained on pairs of items that
users took one after the other; it has to tell them from the other pairs of the batch. The network reads content alone,
so an item without a single event moves as similar items do.

Notable
- The network's output is added to the standardised content and is 0 at the start. Without pairs content stays as it is.
- The papers train the multimodal encoder itself, with a captioning loss besides; here the encoder is not trained.

Shapes: n rows, N items, D content width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.roles import LossTerms
from nextitem.data.examples.item_pairs import ItemPairBatch, ItemPairs
from nextitem.losses.contrastive import contrastive
from nextitem.tokenizers.tokenizer import Standardizer, content_of

_HIDDEN = 256  # units of the hidden layer
_TEMPERATURE = 0.1  # divisor of the cosines in the contrastive loss


class CollaborativeContent(nn.Module):
    """A network that is trained on pairs of items (Trainable); `forward` keeps the width of the content."""

    content: Tensor

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        content = content_of(catalog)
        self.standardizer = Standardizer(content.shape[1])
        self.register_buffer("content", content, persistent=False)
        last = nn.Linear(_HIDDEN, content.shape[1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(content.shape[1], _HIDDEN), nn.GELU(), last)

    def examples(self, train: Dataset) -> ItemPairs:
        """Return pairs of items that followed each other in training; also fits the standardisation to the content."""
        self.standardizer.fit(self.content)
        return ItemPairs(train.interactions)

    def forward(self, content: Tensor) -> Tensor:
        """Return the moved vectors [n, D] of content [n, D]."""
        standard = self.standardizer(content)
        moved: Tensor = standard + self.network(standard)
        return moved

    def training_loss(self, batch: ItemPairBatch) -> LossTerms:
        """Return the InfoNCE loss between the two items of each pair, by cosines."""
        left, right = (
            nn.functional.normalize(self(self.content[items - 1]), dim=1) for items in (batch.left, batch.right)
        )
        return LossTerms(contrastive(left, right, temperature=_TEMPERATURE))

    @torch.no_grad()
    def vectors(self, content: Tensor) -> Tensor:
        """Return the moved vectors of a catalogue's `content [N + 1, D]`; row 0 is zero."""
        return torch.cat([content[:1] * 0, self(content[1:])])
