"""SASRec: causal self-attention over the history predicts the next item.

Kang and McAuley, Self-Attentive Sequential Recommendation, arXiv 1808.09781; objectives and blocks after gSASRec
(arXiv 2308.07192) and eSASRec (arXiv 2508.06450). An item's embedding plus a position goes through blocks of causal
attention; the last hidden state scores every item by inner product with the same table; every position of a history
is trained to predict its successor.

Notable
- Block, objective and negatives are settings. `published` with `bce` and one negative is the paper's model; `ligr` with
  a softmax makes SASRec strong.
- Histories are padded on the right, and positions are counted from the last item backwards, so that an item's position
  does not depend on padding. The paper's left padding has the same effect at request time. With this count a new event
  shifts every position. If positions are counted from the first item, `read` extends a history at the cost of its new
  events alone.
- Loss is computed at real targets only; no unused logit is computed.
- All weights are initialised from a truncated normal of standard deviation 0.02, those of the published block too. The
  Glorot uniform of the authors' code (0.14 for its layers and positions at width 50) trains more slowly here
  (docs/lab_notes.md).
- A training history beyond the limit is cut into windows, all of which are used; the paper keeps its latest events.
- One item table serves input (times sqrt(width)) and output; gSASRec's own code has two. Features enrich the input
  alone; scores are computed with the table.
- Negatives of the softmax are sampled once a batch, once a sequence (SASRec+, arXiv 2309.07602) or for each position
  (the SASRec of HSTU's authors); those of bce and gbce for each position. They are uniform, or, in the softmax, in
  proportion to popularity ** objective.power, corrected by log_q.
- The paper samples again if a negative is in the user's history; here nothing is sampled again. The softmax skips the
  target itself and, among the negatives of one sequence, the items of that sequence (a window of the user's history);
  bce and gbce skip nothing.
- The contrastive term is CL4SRec's (arXiv 2010.14395). A masked item becomes the padding item at its position; the
  paper has a special symbol. The paper tunes the proportions; here they are those of public versions.
- An epoch passes once over all users; the paper's samples as many users with replacement.

Shapes: B sequences, L positions, D width, T real targets of a batch, N items, S negatives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.roles import LossTerms
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.augmentations import augment
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.data.negatives import sample_negatives
from nextitem.losses.bce import bce
from nextitem.losses.contrastive import contrastive
from nextitem.losses.full_softmax import full_softmax
from nextitem.losses.gbce import gbce
from nextitem.losses.objectives import BCE, GBCE, FullSoftmax, SampledSoftmax
from nextitem.losses.sampled_softmax import sampled_softmax
from nextitem.nn.attention.causal_encoder import BlockName, CausalEncoder, CausalEncoderConfig, Positions
from nextitem.nn.attention.incremental import extend_history_state
from nextitem.nn.fields.item_features import CONTENT, ItemFeatures
from nextitem.nn.initialisation import truncated_normal_
from nextitem.nn.tables.kinds import DenseRows, GrowingRows, HashedRows
from nextitem.nn.tables.tables import item_table


class ContrastiveConfig(configs.Config):
    """Settings of the contrastive term."""

    weight: float = Field(0.1, gt=0)
    """Weight of the term in the loss; 0.1 as in CL4SRec."""
    temperature: float = Field(1.0, gt=0)
    """Divides the inner products of the views."""
    crop: float = Field(0.6, gt=0, le=1)
    """Fraction of the history that a cropped view keeps."""
    mask: float = Field(0.3, ge=0, le=1)
    """Fraction of the history's items that a masked view hides."""
    reorder: float = Field(0.6, ge=0, le=1)
    """Fraction of the history that a reordered view permutes."""


class SASRecConfig(CausalEncoderConfig):
    """Settings of SASRec."""

    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout rate of inputs, attention and feed-forward layers."""
    positions: Positions = "from-last"
    """End of the window from which positions are counted; from-first: a state is extended at the cost of new events."""
    block: BlockName = "ligr"
    """Kind of the transformer block: as published, pre-norm, or LiGR (nn/attention/transformer.py)."""
    objective: FullSoftmax | SampledSoftmax | BCE | GBCE = Field(SampledSoftmax(), discriminator="kind")
    """Loss of the next item."""
    temperature: float | None = Field(None, gt=0)
    """Divides the cosine of user and item vectors; None: plain inner product of the vectors."""
    table: DenseRows | GrowingRows | HashedRows = Field(DenseRows(), discriminator="kind")
    """Kind of the table of item vectors: dense, growing with the ids that training meets, or hashed."""
    features: tuple[str, ...] = ()
    """Features of items that the input reads in addition to ids: columns of the catalogue, "content"."""
    features_merge: Literal["sum", "concat"] = "sum"
    """Merge of features with the item's own vector: sum, or concatenation and a projection."""
    contrastive: ContrastiveConfig | None = None
    """Settings of the contrastive term between two views of each history (CL4SRec); none: no such term."""

    @property
    def needs(self) -> frozenset[Requirement]:
        """What the catalogue must contain."""
        return frozenset({CONTENT}) if CONTENT in self.features else frozenset()

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(bool(self.features), "no features are read", "features_merge")


class SASRec(VectorModel):
    """A recommender that ranks items by the inner product with the last hidden state."""

    Config = SASRecConfig
    config: SASRecConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "checkerboard")

    def __init__(self, config: SASRecConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.temperature = config.temperature
        self.items = item_table(config.table, catalog, config.width)
        self.encoder = CausalEncoder(config)
        self.features: ItemFeatures | None = None
        if config.features:
            self.features = ItemFeatures(catalog, config.features, width=config.width, merge=config.features_merge)
        truncated_normal_(self)

    def examples(self, train: Dataset) -> NextItemSequences:
        """Return windows of the users' histories; every event but the first is a target."""
        return NextItemSequences(train.interactions, max_length=self.config.max_history_length)

    def training_loss(self, batch: NextItemBatch) -> LossTerms:
        """Return the configured objective at every real target, plus the contrastive term if there is one."""
        generator = torch.Generator().manual_seed(batch.seed)
        self.items.observe(batch.occurrences())
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
            views.append(self.encoder(view, self._embed)[view.offsets[1:] - 1])
        agreement = contrastive(*views, temperature=views_config.temperature)
        named = {"next_item": loss.detach(), "contrastive": agreement.detach()}
        return LossTerms(loss + views_config.weight * agreement, named)

    def _objective(self, batch: NextItemBatch, generator: torch.Generator) -> Tensor:
        objective, table = self.config.objective, self.item_vectors()
        is_target = batch.targets.values > 0
        hidden_TD = self.scale_users(self.encoder(batch.items, self._embed)[is_target])
        targets = batch.targets.values[is_target]
        if isinstance(objective, FullSoftmax):
            return full_softmax(hidden_TD, table, *batch.targets_by_lag(objective.target_weights))
        if isinstance(objective, SampledSoftmax):
            sampled = sample_negatives(
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
        """Return the last hidden state of each history, [B, D]."""
        if batch.state is not None:
            return self.encode_history(batch, batch.state).user_vectors
        return self.scale_users(self.encoder.last(batch.items, self._embed))

    @torch.no_grad()
    def encode_history(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Return the state after all events (roles.Incremental).

        It stores keys and values [B, P, 2, H, D / H] of each block. If positions are counted from the last item, it
        stores nothing, and all events are read again.
        """
        return extend_history_state(
            batch,
            state,
            self._read,
            window=self.encoder.window,
            version=self.weights_fingerprint(),
            empty=self.items.weight.new_zeros(self.config.width),
            is_extensible=self.encoder.counts_from_first,
        )

    def item_vectors(self) -> Tensor:
        """Return the output table, [N + 1, D]."""
        return self.scale_items(self.items.all_vectors())

    def _embed(self, items_BL: Tensor) -> Tensor:
        """Return the input vectors of items, [B, L, D]."""
        vectors = self.items(items_BL)
        if self.features is not None:
            vectors = self.features(vectors, items_BL)
        return vectors * self.config.width**0.5  # type: ignore[no-any-return]

    def _read(self, batch: SequenceBatch, state: HistoryState | None) -> HistoryState:
        """Return the state after histories, read from the start or after `state`; each row has events to read."""
        read_state = self.encoder.read(batch, state, self._embed)
        return replace(read_state, vectors=self.scale_users(read_state.user_vectors))
