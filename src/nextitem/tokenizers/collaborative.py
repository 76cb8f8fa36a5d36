"""CollaborativeContent: content vectors moved so that items that users take together lie near each other.

OneRec technical report, arXiv 2506.13695, section 2.1 (item-to-item contrast), as QARM (2411.11739). Text says what an
item is, not what it is wanted with. A small network on the content vector is trained with pairs that users took one
after the other, told from the other pairs of the batch; it reads content alone, so an item without a single event is
moved as its likes are.

Notable
- What is learnt is added to the standardised content, and begins at nothing: with no pairs content stays as it is.
- The papers train the multimodal encoder itself, and caption beside it; here the encoder is as it comes.
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

_HIDDEN = 256  # units of the network
_TEMPERATURE = 0.1  # divides cosines of the contrast


class CollaborativeContent(nn.Module):
    """A Trainable on pairs of items; `forward` gives vectors of the width of the content."""

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
        """Items that followed each other in training; measures the content for standardisation."""
        self.standardizer.fit(self.content)
        return ItemPairs(train.interactions)

    def forward(self, content: Tensor) -> Tensor:
        """Vectors [n, D] of content [n, D]."""
        standard = self.standardizer(content)
        moved: Tensor = standard + self.network(standard)
        return moved

    def training_loss(self, batch: ItemPairBatch) -> LossTerms:
        """InfoNCE between the two items of each pair, by cosines."""
        left, right = (
            nn.functional.normalize(self(self.content[items - 1]), dim=1) for items in (batch.left, batch.right)
        )
        return LossTerms(contrastive(left, right, temperature=_TEMPERATURE))

    @torch.no_grad()
    def vectors(self, content: Tensor) -> Tensor:
        """For a catalogue's `content [N + 1, D]`: the moved vectors, row 0 zero."""
        return torch.cat([content[:1] * 0, self(content[1:])])
