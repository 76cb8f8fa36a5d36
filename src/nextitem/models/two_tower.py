"""Two towers: the inner product of a vector of the request and a vector of each item (DSSM).

Huang et al., Learning Deep Structured Semantic Models, CIKM 2013; trained as in Yi et al., Sampling-Bias-Corrected
Neural Modeling for Large Corpus Item Recommendations, RecSys 2019. The user tower reads the request's fields and latest
items, the item tower the item's fields in the catalogue; the softmax over the items of a batch is corrected for the
frequency of each item in batches. As item vectors do not depend on the request, an index can store them.

Notable
- Columns of a batch are its distinct targets and `mixed_negatives` items, sampled uniformly without replacement (Yang
  et al., Mixed Negative Sampling, WWW 2020). A column's log_q is the log of the probability that its item is in the
  batch in either way: p + u - p u, with p by nn/streaming_frequency.py and u = sampled items / items. So the sampled
  sum is an unbiased estimate of the full softmax's, and equals it if a batch covers the catalogue. Only items with
  training events are sampled: nobody has had the chance to ignore a later item.
- `hard_negatives`: for each request the items that it scores highest, by item vectors of at most `refresh_steps` steps
  ago. They are certain to be present, so their log_q is 0, and the sum stays unbiased.
- Items that training has not seen have no id (code 0) and are scored by their other fields; with `id_dropout` the tower
  learns to score without ids. A tower that reads ids alone ranks them below all others.
- The history is read as item vectors of its own, weighted by item, number of events since, and time since.
- Requests with labelled candidates are used as lists instead. The targets are the shares that the label "teacher" (a
  ranker's scores) has within a request, and those of the first other label. So the model becomes a pre-ranking stage.
- If several processes share a batch, each has the columns of its own part.

Shapes: B requests, P candidates of all, K of one, D width, N items, M columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import Examples, LossTerms
from nextitem.core.top_items import top_candidates
from nextitem.core.vector_model import VectorModel
from nextitem.data.examples.event_requests import EventRequests
from nextitem.data.examples.labelled_candidates import (
    TARGET,
    LabelledRequests,
    impression_examples,
    require_both_labels,
)
from nextitem.data.negatives import hardest_items, sample_trained_items
from nextitem.data.settings import TEACHER
from nextitem.losses.in_batch_softmax import in_batch_softmax
from nextitem.losses.label_shares import distilled_label_shares
from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig, ExactIndex
from nextitem.nn.fields.item_features import CONTENT
from nextitem.nn.fields.towers import ItemTower, TowerSizes, UserTower
from nextitem.nn.streaming_frequency import StreamingFrequency
from nextitem.nn.tables.kinds import DenseRows, GrowingRows, HashedRows

BLOCK = 65_536  # items whose vectors are computed at a time
FITTED_ON = 20_000  # requests from which quantiles and vocabularies are computed


class TwoTowerConfig(configs.Config):
    """Settings of TwoTower."""

    width: int = Field(64, ge=1)
    """Width of the output vectors of both towers (D)."""
    field_width: int = Field(32, ge=1)
    """Width of the vector of each field."""
    table: DenseRows | GrowingRows | HashedRows = Field(DenseRows(), discriminator="kind")
    """Kind of the table of the fields' vectors."""
    hidden: tuple[int, ...] = (128,)
    """Number of units of each hidden layer of both towers."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate of hidden layers and of the summary vector of a history."""
    user_fields: tuple[str, ...] = ()
    """Fields of requests (nn/fields) that the user tower reads in addition to the history; none named: all fields."""
    item_fields: tuple[str, ...] = ()
    """Fields of items, and "content", that the item tower reads; none named: all columns."""
    heads: int = Field(2, ge=1)
    """Number of weighted sums of the history, each with weights of its own."""
    max_history_length: int = Field(50, ge=1)
    """Maximum number of most recent events that the model reads."""
    buckets: int = Field(32, ge=2)
    """Number of quantile buckets of a numeric field."""
    temperature: float = Field(0.07, gt=0)
    """Tau, which divides the cosine of the two vectors."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of items whose id is hidden in a training step."""
    mixed_negatives: int = Field(256, ge=0)
    """Number of uniformly sampled items, in addition to the targets of a batch."""
    hard_negatives: int = Field(0, ge=0)
    """Number of highest-scored items of each request that serve as negatives."""
    refresh_steps: int = Field(50, ge=1)
    """Number of steps between refreshes of the item vectors that are used to mine hard negatives."""
    frequency_rate: float = Field(0.01, gt=0, le=1)
    """Alpha: update rate of the estimate of item frequencies."""
    learn_from: Literal["events", "impressions"] = "events"
    """Source of training examples: events (next items, for retrieval) or impressions (for ranking)."""
    index: AnnIndexConfig = Field(ExactIndex(), discriminator="kind")
    """Index that searches for the nearest items."""
    teacher_weight: float = Field(0.5, ge=0, le=1)
    """Weight of a ranker's scores against the labels, if candidates have such scores."""

    @property
    def needs(self) -> frozenset[Requirement]:
        """What the catalogue must contain."""
        return frozenset({CONTENT}) if CONTENT in self.item_fields else frozenset()

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        has_lists, source = self.learn_from == "impressions", f"learn_from is {self.learn_from}"
        return {
            **configs.idle_unless(self.hard_negatives > 0, "hard_negatives is 0", "refresh_steps"),
            **configs.idle_unless(has_lists, f"{source}: no list has a ranker's scores", "teacher_weight"),
            **configs.idle_unless(not has_lists, source, "mixed_negatives", "hard_negatives", "frequency_rate"),
            **configs.idle_unless(not has_lists, source, "refresh_steps"),
        }


class TwoTower(VectorModel):
    """A recommender that ranks items by the inner product of the vectors of two towers."""

    Config = TwoTowerConfig
    config: TwoTowerConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "checkerboard", "planted-clusters")
    item_cache: Tensor
    history_cache: Tensor
    snapshot: Tensor

    def __init__(self, config: TwoTowerConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        sizes = TowerSizes(config.width, config.field_width, config.hidden, config.dropout, config.table)
        self.items = ItemTower(catalog, config.item_fields, sizes, buckets=config.buckets, id_dropout=config.id_dropout)
        self.users = UserTower(
            catalog,
            config.user_fields,
            sizes,
            buckets=config.buckets,
            heads=config.heads,
            max_history_length=config.max_history_length,
        )
        self.frequency = StreamingFrequency(catalog.num_items, rate=config.frequency_rate)
        rows = catalog.num_items + 1 if config.hard_negatives else 0
        self.register_buffer("snapshot", torch.zeros(rows, config.width))  # to mine hard negatives
        # Cached vectors of all items, as candidates and as parts of a history; empty until somebody requests them.
        self.register_buffer("item_cache", torch.zeros(0, config.width), persistent=False)
        self.register_buffer("history_cache", torch.zeros(0, config.width), persistent=False)
        self.index = AnnIndex(config.index)
        self.register_load_state_dict_post_hook(lambda model, keys: model.forget())  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Self:
        """Set the mode as any module does, and drop the cached vectors of items when training begins."""
        if mode:
            self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Drop the cached vectors of items; the next use recomputes them."""
        self.item_cache = self.history_cache = self.item_cache.new_zeros(0, self.config.width)

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether the item tower reads more than ids."""
        return self.items.content is not None or self.items.fields.has_content

    def unseen_items(self) -> Tensor | None:
        """Return the items without training events if the item tower reads ids alone, else None."""
        return None if self.can_rank_unseen_items else self.items.fields.unseen_items(super().unseen_items())

    def examples(self, train: Dataset) -> Examples[SequenceBatch]:
        """Return every event as a request, or the impressions; they determine vocabularies and quantiles."""
        if self.config.learn_from == "impressions":
            return self.examples_of(impression_examples(train), train.interactions)
        requests = EventRequests(train, max_history_length=self.config.max_history_length)
        self._fit_fields(requests.sample(FITTED_ON), train.interactions)
        return requests

    def examples_of(self, requests: SequenceBatch, log: Interactions) -> Examples[SequenceBatch]:
        """Return examples of requests with labelled candidates: impressions, or items retrieved by a cascade."""
        for label in [name for name in requests.candidate_labels if name != TEACHER][:1]:
            require_both_labels(requests, label)
        self._fit_fields(requests, log)
        return LabelledRequests(requests)

    @property
    def prefers_impressions(self) -> bool:
        """Whether the model is trained on impressions, also as a stage of a cascade."""
        return self.config.learn_from == "impressions"

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the loss of lists for requests with labelled candidates, else the corrected in-batch softmax."""
        batch = batch.last(self.config.max_history_length)
        if batch.candidates is not None and batch.candidate_labels:
            return self._loss_of_lists(batch, batch.candidates)
        assert batch.targets is not None
        targets = batch.targets.values
        distinct = torch.unique(targets)
        if self.training:
            self.frequency.update(distinct)
        sampled, sampled_fraction = sample_trained_items(self.popularity, self.config.mixed_negatives)
        columns = torch.unique(torch.cat([distinct, sampled]))
        user_BD, item_MD = self._towers(batch, columns)
        p = self.frequency.probability(columns)
        u = sampled_fraction * (self.popularity[columns] > 0)
        log_q = (p + u - p * u).clamp(min=1e-12).log()
        logits = user_BD @ item_MD.T - log_q
        if self.config.hard_negatives:
            logits = self._append_hard_negatives(logits, user_BD, columns, targets)
        return LossTerms(in_batch_softmax(logits, positives=torch.searchsorted(columns, targets)))

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """Return the user vectors [B, D], of length 1 / tau; the inner product with an item's vector is its score."""
        return self._towers(batch.last(self.config.max_history_length), batch.items.values[:0])[0]

    def item_vectors(self) -> Tensor:
        """Return the item vectors [N + 1, D], of length 1 (row 0: padding), cached until weights change."""
        return self._cached_items()[0]

    def build_index(self, requests: SequenceBatch) -> None:
        """Index the item vectors; recall is measured with the vectors of these requests."""
        self.index.build(self.item_vectors(), self.user_vectors(requests))

    def score(self, batch: SequenceBatch) -> Mapping[str, Tensor]:
        """Return the inner products with the candidates [B, K], aligned with the padded candidates; -inf at padding."""
        assert batch.candidates is not None, "there are no candidates to score"
        return {TARGET: batch.candidates.with_values(self._candidate_scores(batch)).to_padded(fill=-torch.inf)}

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        if batch.candidates is None:
            return super()._recommend(batch, k)
        scores, unseen = self._candidate_scores(batch), self.unseen_items()
        return top_candidates(batch.candidates, scores, batch, k, num_items=self.num_items, unseen=unseen)

    def _nearest(self, vectors: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
        return self.index.nearest(self, vectors, batch, k)

    def _candidate_scores(self, batch: SequenceBatch) -> Tensor:
        """Return the scores of the candidates, [P]."""
        assert batch.candidates is not None
        user_BD, item_PD = self._towers(batch.last(self.config.max_history_length), batch.candidates.values)
        return (user_BD[batch.candidates.row_ids()] * item_PD).sum(1)

    def _towers(self, batch: SequenceBatch, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors of requests [B, D], of length 1 / tau, and of items [n, D]; each item is computed once."""
        if self.training:
            distinct, places = torch.unique(item_ids, return_inverse=True)
            distinct_past, past_places = torch.unique(batch.items.values, return_inverse=True)
            item_vectors, history_vectors = self.items(distinct)[places], self.items.read(distinct_past)[past_places]
        else:
            vectors, vectors_to_read = self._cached_items()
            item_vectors, history_vectors = vectors[item_ids], vectors_to_read[batch.items.values]
        return self.users(batch, history_vectors) / self.config.temperature, item_vectors

    def _cached_items(self) -> tuple[Tensor, Tensor]:
        """Return both vectors of all items, as candidates and as parts of a history, [N + 1, D] each."""
        if not len(self.item_cache):
            vectors = self._compute_items()
            if self.training:
                return vectors
            self.item_cache, self.history_cache = vectors
        return self.item_cache, self.history_cache

    @torch.inference_mode(False)  # a later step with gradients may read the cache
    @torch.no_grad()
    def _compute_items(self) -> tuple[Tensor, Tensor]:
        was_training = self.items.training
        self.items.eval()
        all_items = torch.arange(self.num_items + 1, device=self.popularity.device)
        item_vectors = torch.cat([self.items(part) for part in torch.split(all_items, BLOCK)])
        history_vectors = torch.cat([self.items.read(part) for part in torch.split(all_items, BLOCK)])
        self.items.train(was_training)
        item_vectors[0], history_vectors[0] = 0, 0
        return item_vectors, history_vectors

    def _append_hard_negatives(self, logits: Tensor, user_BD: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        """Append each request's highest-scored items to its logits, [B, M + hard], and mask them in the columns."""
        if (int(self.frequency.step) - 1) % self.config.refresh_steps == 0:
            self.snapshot.copy_(self._compute_items()[0])
        count = self.config.hard_negatives
        hard, is_real, is_hard = hardest_items(user_BD, self.snapshot, self.popularity, targets, count=count)
        distinct, places = torch.unique(hard, return_inverse=True)
        hard_logits = (user_BD @ self.items(distinct).T).gather(1, places).masked_fill(~is_real, -torch.inf)
        return torch.cat([logits.masked_fill(is_hard[:, columns], -torch.inf), hard_logits], dim=1)

    def _loss_of_lists(self, batch: SequenceBatch, candidates: Jagged) -> LossTerms:
        """Return the cross-entropy of label shares: those of the first label, of a teacher's scores, or of both."""
        logits, labels = self._candidate_scores(batch), batch.candidate_labels
        first = {name: labels[name].values for name in [each for each in labels if each != TEACHER][:1]}
        teacher = {TEACHER: labels[TEACHER].values} if TEACHER in labels else {}
        losses, total = distilled_label_shares(logits, first, teacher, candidates, weight=self.config.teacher_weight)
        return LossTerms(total, {name: loss.detach() for name, loss in losses.items() if teacher})

    def _fit_fields(self, requests: SequenceBatch, log: Interactions) -> None:
        for fields in (self.users.fields, self.items.fields):
            fields.fit(requests, log)
