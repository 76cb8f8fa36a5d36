"""NextItNet: causal dilated convolutions over the history predict the next item at every position.

Yuan et al., A Simple Convolutional Generative Network for Next Item Recommendation, arXiv 1808.05163. Two
convolutions, each followed by layer norm and ReLU, and a residual connection make a block (figure 3b). Dilations that
double from layer to layer widen the receptive field exponentially with depth. The last state scores every item.

Notable
- Histories are padded on the right, and the convolution adds zeros on the left; so padding never affects a real
  position.
- Loss is computed at real targets only; no unused logit is computed.
- A training history longer than the limit is cut into windows, all of which are used; the paper cuts fixed lengths.
- As published, the output table is not the input table and contains a bias for each item (its last column).
- The authors' code puts one more ReLU before the softmax over all items, and none before the sampled one; here there is
  none before either.
- Negatives of the sampled softmax are uniform and sampled once a batch. The authors sample a fifth of the catalogue
  from a log-uniform distribution over item numbers, which suits only items numbered by popularity.
- Dropout of embeddings and last states is added; 0 is the paper's model.

Shapes: B sequences, L positions, D width, T real positions, N items, S negatives.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.core.roles import LossTerms
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.data.negatives import sample_negatives
from nextitem.losses.full_softmax import full_softmax
from nextitem.losses.objectives import FullSoftmax, SampledSoftmax
from nextitem.losses.sampled_softmax import sampled_softmax
from nextitem.nn.initialisation import truncated_normal_


class NextItNetConfig(configs.Config):
    """Settings of NextItNet."""

    width: int = Field(64, ge=1)
    """Width of the vectors (D)."""
    kernel_size: int = Field(3, ge=1)
    """Number of events that one output of a convolution reads."""
    dilations: tuple[int, ...] = Field((1, 2, 4, 8), min_length=2)
    """Distance in events between the inputs of a convolution, for each layer; two layers form a block."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of embeddings and last states."""
    max_history_length: int = Field(50, ge=1)
    """Maximum number of most recent events that the model reads."""
    objective: FullSoftmax | SampledSoftmax = Field(FullSoftmax(), discriminator="kind")
    """Loss of the next item."""


class CausalConvolution(nn.Module):
    """A dilated convolution that reads no later position, then layer norm and ReLU."""

    def __init__(self, width: int, *, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel_size, dilation=dilation)
        self.reach = (kernel_size - 1) * dilation  # number of positions before position t that it reads
        self.norm = nn.LayerNorm(width, eps=1e-8)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the normalised convolution of the inputs, [B, L, D]."""
        input_BDL = F.pad(hidden_BLD.transpose(1, 2), (self.reach, 0))
        out: Tensor = torch.relu(self.norm(self.convolution(input_BDL).transpose(1, 2)))
        return out


class ResidualBlock(nn.Module):
    """Residual block: the input plus the output of two successive convolutions (figure 3b)."""

    def __init__(self, width: int, *, kernel_size: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        first, second = dilations
        self.first = CausalConvolution(width, kernel_size=kernel_size, dilation=first)
        self.second = CausalConvolution(width, kernel_size=kernel_size, dilation=second)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the input plus the output of both convolutions, [B, L, D]."""
        out: Tensor = hidden_BLD + self.second(self.first(hidden_BLD))
        return out


class NextItNet(VectorModel):
    """A recommender that ranks items by the inner product with the last state of the convolutions."""

    Config = NextItNetConfig
    config: NextItNetConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle",)

    def __init__(self, config: NextItNetConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if len(config.dilations) % 2 or min(config.dilations) < 1:
            raise ValueError(f"dilations = {list(config.dilations)} must be positive, and two for each block")
        self.items = nn.Embedding(catalog.num_items + 1, config.width, padding_idx=0)
        self.output = nn.Embedding(catalog.num_items + 1, config.width + 1)  # the last column is the item's bias
        self.dropout = nn.Dropout(config.dropout)
        pairs = zip(config.dilations[::2], config.dilations[1::2], strict=True)
        self.blocks = nn.Sequential(
            *(ResidualBlock(config.width, kernel_size=config.kernel_size, dilations=pair) for pair in pairs)
        )
        truncated_normal_(self)
        nn.init.zeros_(self.output.weight[:, -1])

    @property
    def receptive_field(self) -> int:
        """Number of events that the last state depends on: the last event plus the reach of each layer."""
        return 1 + (self.config.kernel_size - 1) * sum(self.config.dilations)

    def examples(self, train: Dataset) -> NextItemSequences:
        """Return windows of the users' histories; every event but the first is a target."""
        return NextItemSequences(train.interactions, max_length=self.config.max_history_length)

    def training_loss(self, batch: NextItemBatch) -> LossTerms:
        """Return the cross-entropy of the next item at every real target, over all or over sampled items."""
        is_target = batch.targets.values > 0
        hidden_TD = _with_one(self.dropout(self._flat_hidden(batch.items)[is_target]))
        targets = batch.targets.values[is_target]
        objective = self.config.objective
        if isinstance(objective, FullSoftmax):
            weighted = batch.targets_by_lag(objective.target_weights)
            return LossTerms(full_softmax(hidden_TD, self.item_vectors(), *weighted))
        sampled = sample_negatives(
            batch,
            self.popularity,
            count=objective.num_negatives,
            shared_by=objective.shared_by,
            generator=torch.Generator().manual_seed(batch.seed),
            power=objective.power,
        )
        return LossTerms(sampled_softmax(hidden_TD, self.item_vectors(), targets, **vars(sampled)))

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """Return the last state of each history and a one, [B, D + 1]."""
        recent = batch.items.last(min(self.config.max_history_length, self.receptive_field))
        return _with_one(self._flat_hidden(recent)[recent.offsets[1:] - 1])

    def item_vectors(self) -> Tensor:
        """Return the output table, with the items' biases in its last column, [N + 1, D + 1]."""
        table: Tensor = self.output.weight
        return table

    def _flat_hidden(self, items: Jagged) -> Tensor:
        """Return the states at the real positions of the histories, [T, D]."""
        hidden_BLD = self.blocks(self.dropout(self.items(items.to_padded())))
        column = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)
        return hidden_BLD[column < items.lengths[:, None]]  # type: ignore[no-any-return]


def _with_one(hidden_TD: Tensor) -> Tensor:
    """Append a one, the factor of the items' biases, and return [T, D + 1]."""
    return F.pad(hidden_TD, (0, 1), value=1.0)
