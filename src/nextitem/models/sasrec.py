"""SASRec: causal self-attention over the history predicts the next item.

Kang and McAuley, Self-Attentive Sequential Recommendation, arXiv 1808.09781; objectives and blocks after gSASRec
(arXiv 2308.07192) and eSASRec (arXiv 2508.06450). An item's embedding plus a position goes through blocks of causal
attention; the last hidden state scores every item by inner product with the same table; every position of a history
learns to predict its successor.

Notable
- Block, objective and negatives are settings: `published` with `bce` and one negative is the paper, `ligr` with a
  softmax is what makes SASRec strong.
- Histories are padded on the right, and positions are counted from the last item backwards, so that an item's position
  does not depend on padding. The paper's left padding has the same effect at request time. Counted so, a new event
  moves every position; counted from the first one, `read` continues a history at the cost of its new events alone.
- Loss is computed at real targets only; no logit is computed that nobody reads.
- All weights begin from a truncated normal of standard deviation .02, those of the published block too. The Glorot
  uniform of the authors' code (.14 for its layers and positions at width 50) learns more slowly here
  (docs/lab_notes.md).
- A training history beyond the limit is cut into windows and learnt from in full; the paper keeps its latest events.
- One item table serves input (times sqrt(width)) and output; gSASRec's own code has two. Features enrich the input
  alone: what is scored is the table.
- Negatives of the softmax are drawn once a batch, once a sequence (SASRec+, arXiv 2309.07602) or for each position (the
  SASRec of HSTU's authors); those of bce and gbce for each position. They are uniform, or, in the softmax, by
  popularity ** negatives_power, corrected by log_q. The paper draws again where a negative is in the user's history;
  here nothing is drawn again. The softmax leaves out the target itself and, of a sequence's own negatives, the items
  of that sequence (a window of the user's history); bce and gbce leave out nothing.
- The contrastive term is CL4SRec's (arXiv 2010.14395): a hidden item is the padding item at its position, where the
  paper has a symbol of its own; its proportions, which the paper tunes, are here those of public versions.
- An epoch passes once over all users; the paper's draws as many users with replacement.

Shapes: B sequences, L positions, D width, T real targets of a batch, N items, S negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged
from nextitem.core.roles import LossTerms
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.augmentations import augment
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.data.negatives import draw_negatives
from nextitem.losses.bce import bce
from nextitem.losses.contrastive import contrastive
from nextitem.losses.full_softmax import full_softmax
from nextitem.losses.gbce import gbce
from nextitem.losses.objectives import BCE, GBCE, FullSoftmax, SampledSoftmax
from nextitem.losses.sampled_softmax import sampled_softmax
from nextitem.nn.attention.incremental import Window, extend_history_state
from nextitem.nn.attention.key_value_cache import FurtherPositions, KeyValueCache
from nextitem.nn.attention.transformer import BLOCKS
from nextitem.nn.fields.item_features import CONTENT, ItemFeatures
from nextitem.nn.initialisation import truncated_normal_


class ContrastiveConfig(configs.Config):
    """Settings of the contrastive term."""

    weight: float = Field(0.1, gt=0)
    """Weight of the term in the loss; 0.1 as in CL4SRec."""
    temperature: float = Field(1.0, gt=0)
    """Divides the inner products of the views."""
    crop: float = Field(0.6, gt=0, le=1)
    """Share of the history that a cropped view keeps."""
    mask: float = Field(0.3, ge=0, le=1)
    """Share of the history's items that a masked view hides."""
    reorder: float = Field(0.6, ge=0, le=1)
    """Share of the history that a reordered view permutes."""


class SASRecConfig(configs.Config):
    """Settings of SASRec."""

    width: int = Field(64, ge=1)
    """D."""
    layers: int = Field(1, ge=1)
    """Blocks."""
    heads: int = Field(1, ge=1)
    """Attention heads; must divide width."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Of embeddings, attention and feed-forward."""
    max_history_length: int = Field(50, ge=1)
    """Most recent events that are read."""
    window_step: int = Field(1, ge=1)
    """Events that a full window moves on by; above 1 states stay valid in between."""
    positions: Literal["from-last", "from-first"] = "from-last"
    """Of that window; from-first: new events cost one step."""
    block: Literal["published", "pre-norm", "ligr"] = "ligr"
    """See nn/attention/transformer.py."""
    objective: FullSoftmax | SampledSoftmax | BCE | GBCE = Field(SampledSoftmax(), discriminator="kind")
    """Loss of the next item."""
    temperature: float | None = Field(None, gt=0)
    """L2-normalise both vectors, divide by this; None: inner product."""
    features: tuple[str, ...] = ()
    """Of the items, read beside their ids: columns of the catalogue, "content"."""
    features_merge: Literal["sum", "concat"] = "sum"
    """How they meet the item's own vector; concat: then projected."""
    contrastive: ContrastiveConfig | None = None
    """Term between two views of each history (CL4SRec); none: no such term."""

    @property
    def needs(self) -> frozenset[Requirement]:
        """What the catalogue must carry."""
        return frozenset({CONTENT}) if CONTENT in self.features else frozenset()

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        return configs.idle_unless(bool(self.features), "no features are read", "features_merge")


class SASRec(VectorModel):
    """Ranks items by the inner product with the last hidden state."""

    Config = SASRecConfig
    config: SASRecConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "checkerboard")

    def __init__(self, config: SASRecConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if config.width % config.heads:
            raise ValueError(f"heads = {config.heads} must divide width = {config.width}")
        self.temperature = config.temperature
        self.window = Window(config.max_history_length, config.window_step)
        self.items = nn.Embedding(catalog.num_items + 1, config.width, padding_idx=0)
        self.positions = nn.Embedding(config.max_history_length, config.width)  # 0: the last item, or the first
        self.features: ItemFeatures | None = None
        if config.features:
            self.features = ItemFeatures(catalog, config.features, width=config.width, merge=config.features_merge)
        self.dropout = nn.Dropout(config.dropout)
        block = BLOCKS[config.block]
        self.blocks = nn.ModuleList(
            block(config.width, heads=config.heads, dropout=config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-8)
        truncated_normal_(self)

    def examples(self, train: Dataset) -> NextItemSequences:
        """Windows of the users' histories; every event but the first is a target."""
        return NextItemSequences(train.interactions, max_length=self.config.max_history_length)

    def training_loss(self, batch: NextItemBatch) -> LossTerms:
        """The configured objective at every real target, and the contrastive term where it has a weight."""
        generator = torch.Generator().manual_seed(batch.seed)
        loss = self._objective(batch, generator)
        views_config = self.config.contrastive
        if views_config is None:
            return LossTerms(loss)
        views = []
        for _ in range(2):
            view = augment(
                batch.items,
                crop_share=views_config.crop,
                mask_share=views_config.mask,
                reorder_share=views_config.reorder,
                generator=generator,
            )
            views.append(self._flat_hidden(view)[view.offsets[1:] - 1])
        agreement = contrastive(*views, temperature=views_config.temperature)
        named = {"next_item": loss.detach(), "contrastive": agreement.detach()}
        return LossTerms(loss + views_config.weight * agreement, named)

    def _objective(self, batch: NextItemBatch, generator: torch.Generator) -> Tensor:
        objective, table = self.config.objective, self.item_vectors()
        is_target = batch.targets.values > 0
        hidden_TD = self.scale_users(self._flat_hidden(batch.items)[is_target])
        targets = batch.targets.values[is_target]
        if isinstance(objective, FullSoftmax):
            return full_softmax(hidden_TD, table, targets)
        if isinstance(objective, SampledSoftmax):
            sampled = draw_negatives(
                batch,
                self.popularity,
                count=objective.num_negatives,
                shared_by=objective.shared_by,
                generator=generator,
                power=objective.power,
            )
            return sampled_softmax(hidden_TD, table, targets, **vars(sampled))
        shape = (len(targets), objective.num_negatives)
        negatives = torch.randint(1, self.num_items + 1, shape, generator=generator).to(targets.device)
        if isinstance(objective, BCE):
            return bce(hidden_TD, table, targets, negatives=negatives)
        calibration = objective.calibration
        return gbce(hidden_TD, table, targets, negatives=negatives, calibration=calibration, num_items=self.num_items)

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """The last hidden state of each history, [B, D]."""
        if batch.state is not None:
            return self.read(batch, batch.state).user_vectors
        recent = self.window.of(batch.items)
        hidden = self._flat_hidden(recent)
        return self.scale_users(hidden[recent.offsets[1:] - 1])

    @torch.no_grad()
    def read(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """The state after all events, roles.Incremental; keys and values [B, P, 2, H, D / H] of each block are kept.

        Nothing is kept, and everything read again, where positions count from the last item.
        """
        return extend_history_state(
            batch,
            state,
            self._read,
            window=self.window,
            version=self.weights_fingerprint(),
            empty=self.norm.weight.new_zeros(self.config.width),
            is_extensible=self.config.positions == "from-first",
        )

    def item_vectors(self) -> Tensor:
        """The table that scores, [N + 1, D]."""
        return self.scale_items(self.items.weight)

    def _flat_hidden(self, items: Jagged) -> Tensor:
        """Normalised hidden states at the real positions of the histories, [T, D]."""
        hidden_BLD = self._padded_hidden(items)
        column = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)
        return self.norm(hidden_BLD[column < items.lengths[:, None]])  # type: ignore[no-any-return]

    def _padded_hidden(
        self, items: Jagged, caches: Sequence[KeyValueCache] = (), *, kept: Tensor | None = None
    ) -> Tensor:
        """What the blocks make of right-padded histories, or of what follows the first `kept [B]` items, [B, L, D]."""
        padded_BL = items.to_padded()
        column = torch.arange(padded_BL.shape[1], device=padded_BL.device)
        if self.config.positions == "from-last":
            position = items.lengths[:, None] - 1 - column
        else:
            position = column if kept is None else kept[:, None] + column
        position = position.clamp(0, self.config.max_history_length - 1).expand(padded_BL.shape)  # of padding too
        vectors = self.items(padded_BL)
        if self.features is not None:
            vectors = self.features(vectors, padded_BL)
        hidden_BLD = self.dropout(vectors * self.config.width**0.5 + self.positions(position))
        for block, cache in zip_longest(self.blocks, caches):
            hidden_BLD = block(hidden_BLD, cache)
        return hidden_BLD  # type: ignore[no-any-return]

    def _read(self, batch: SequenceBatch, state: HistoryState | None) -> HistoryState:
        """Reads histories anew, or what follows in them; each row has something to read."""
        if state is None:
            items, kept = self.window.of(batch.items), None
            caches = [KeyValueCache() for _ in self.blocks if self.config.positions == "from-first"]
        else:
            items, kept = batch.items.last(batch.items.lengths - state.lengths), state.lengths - state.starts
            further = FurtherPositions(kept, items.lengths)
            caches = [KeyValueCache(state.cache[f"block{n}"], further) for n in range(len(self.blocks))]
        hidden_BLD = self._padded_hidden(items, caches, kept=kept)
        last_BD = hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), items.lengths - 1]
        cache = {f"block{n}": layer.keys_values for n, layer in enumerate(caches) if layer.keys_values is not None}
        return HistoryState(batch.items.lengths, self.scale_users(self.norm(last_BD)), cache)
