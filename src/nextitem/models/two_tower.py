"""Two towers: a vector of the request and a vector of each item meet in an inner product (DSSM).

Huang et al., Learning Deep Structured Semantic Models, CIKM 2013; trained as in Yi et al., Sampling-Bias-Corrected
Neural Modeling for Large Corpus Item Recommendations, RecSys 2019. The user tower reads what is known of the request
and its latest items, the item tower what the catalogue says of an item; the softmax over what a batch holds is
corrected for how often each item is in a batch. As item vectors do not depend on the request, an index can hold them.

Notable
- Columns of a batch are its distinct targets and `mixed_negatives` items drawn evenly without repetition (Yang et al.,
  Mixed Negative Sampling, WWW 2020). A column's log_q is the log of how likely its item was to be there, by either way:
  p + u - p u, with p by nn/streaming_frequency.py and u = drawn / items. So the sampled sum is an unbiased estimate of
  the full softmax's, and equals it where a batch covers the catalogue. Only items with training events are drawn: what
  came later has not been refused by anybody.
- `hard_negatives`: for each request the items that it scores highest, by item vectors of at most `refresh_steps` steps
  ago. They are there for certain, so their log_q is 0, and the sum stays unbiased.
- Items that training has not seen have no id (code 0) and are scored by their other fields; `id_dropout` lets the tower
  learn to do without. A tower that reads ids alone ranks them below all others.
- The history is read as item vectors of its own, each weighed by what it is, how many events and how long ago.
- Requests with labelled candidates are learnt from as lists instead: the shares that the label "teacher" (a ranker's
  scores) has within a request, and those of the first other label. That is how it becomes a pre-ranking stage.
- Processes that share a batch have each the columns of its own part.

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
from nextitem.data.examples.cascade_candidates import TEACHER
from nextitem.data.examples.event_requests import EventRequests
from nextitem.data.examples.labelled_candidates import TARGET, LabelledRequests, require_both_labels, shown_requests
from nextitem.losses.in_batch_softmax import in_batch_softmax
from nextitem.losses.label_shares import label_shares
from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig
from nextitem.nn.fields.item_features import CONTENT
from nextitem.nn.fields.towers import ItemTower, TowerSizes, UserTower
from nextitem.nn.streaming_frequency import StreamingFrequency

BLOCK = 65_536  # items whose vectors are made at a time
FITTED_ON = 20_000  # requests that quantiles and vocabularies are taken from


class TwoTowerConfig(configs.Config):
    """Settings of TwoTower."""

    width: int = Field(64, ge=1)
    """D, of the vectors that meet."""
    field_width: int = Field(32, ge=1)
    """Of each field's vector."""
    hidden: tuple[int, ...] = (128,)
    """Units of the hidden layers of both towers."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of hidden layers, and of what a history is summed up to."""
    user_fields: tuple[str, ...] = ()
    """Of requests (nn/fields), read beside the history; none named: all there are."""
    item_fields: tuple[str, ...] = ()
    """Of items alone, and "content"; none named: all columns."""
    heads: int = Field(2, ge=1)
    """Ways of weighing the history."""
    max_history_length: int = Field(50, ge=1)
    """Most recent events that are read."""
    buckets: int = Field(32, ge=2)
    """Quantiles of a numeric field."""
    temperature: float = Field(0.07, gt=0)
    """Tau: divides the cosine of the two vectors."""
    id_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of items whose id is hidden in a training step."""
    mixed_negatives: int = Field(256, ge=0)
    """Items drawn evenly, beside the targets of a batch."""
    hard_negatives: int = Field(0, ge=0)
    """Highest scored items of each request."""
    refresh_steps: int = Field(50, ge=1)
    """Steps that the vectors serve by which hard negatives are found."""
    frequency_rate: float = Field(0.01, gt=0, le=1)
    """Alpha of the frequency estimate."""
    learn_from: Literal["events", "impressions"] = "events"
    """Next items: retrieval; what was shown: ranking."""
    index: AnnIndexConfig = AnnIndexConfig()
    """How items are found."""
    teacher_weight: float = Field(0.5, ge=0, le=1)
    """Of a ranker's scores, where candidates carry them, over labels."""

    @property
    def needs(self) -> frozenset[Requirement]:
        """What the catalogue must carry."""
        return frozenset({CONTENT}) if CONTENT in self.item_fields else frozenset()

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        has_lists, source = self.learn_from == "impressions", f"learn_from is {self.learn_from}"
        return {
            **configs.idle_unless(self.hard_negatives > 0, "hard_negatives is 0", "refresh_steps"),
            **configs.idle_unless(has_lists, f"{source}: no list has a ranker's scores", "teacher_weight"),
            **configs.idle_unless(not has_lists, source, "mixed_negatives", "hard_negatives", "refresh_steps"),
            **configs.idle_unless(not has_lists, source, "frequency_rate"),
        }


class TwoTower(VectorModel):
    """Ranks items by the inner product of the two towers' vectors."""

    Config = TwoTowerConfig
    config: TwoTowerConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "checkerboard", "planted-clusters")
    made: Tensor
    made_to_read: Tensor
    snapshot: Tensor

    def __init__(self, config: TwoTowerConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        sizes = TowerSizes(config.width, config.field_width, config.hidden, config.dropout)
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
        self.register_buffer("snapshot", torch.zeros(rows, config.width))  # by which hard negatives are found
        # Vectors of all items, as candidates and as parts of a history; empty until they are asked for.
        self.register_buffer("made", torch.zeros(0, config.width), persistent=False)
        self.register_buffer("made_to_read", torch.zeros(0, config.width), persistent=False)
        self.index = AnnIndex(config.index)
        self.register_load_state_dict_post_hook(lambda model, keys: model.forget())  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Self:
        """As any module; vectors that were made for serving are forgotten when training begins."""
        if mode:
            self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Drop the vectors of items: they are made anew when next asked for."""
        self.made = self.made_to_read = self.made.new_zeros(0, self.config.width)

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether the item tower reads more than ids."""
        return self.items.content is not None or self.items.fields.has_content

    def unseen_items(self) -> Tensor | None:
        """Return the items that no training event holds, if the item tower reads ids alone."""
        return None if self.can_rank_unseen_items else self.items.fields.unseen_items(super().unseen_items())

    def examples(self, train: Dataset) -> Examples[SequenceBatch]:
        """Every event as a request, or what was shown; vocabularies and quantiles are taken from them."""
        if self.config.learn_from == "impressions":
            return self.examples_of(shown_requests(train), train.interactions)
        requests = EventRequests(train, max_history_length=self.config.max_history_length)
        self._fit_fields(requests.sample(FITTED_ON), train.interactions)
        return requests

    def examples_of(self, requests: SequenceBatch, log: Interactions) -> Examples[SequenceBatch]:
        """Training on requests that stand, with labelled candidates: what channels found, what was shown."""
        for label in [name for name in requests.candidate_labels if name != TEACHER][:1]:
            require_both_labels(requests, label)
        self._fit_fields(requests, log)
        return LabelledRequests(requests)

    @property
    def prefers_impressions(self) -> bool:
        """Whether it learns from what was shown, also as a stage of a cascade."""
        return self.config.learn_from == "impressions"

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Of requests with labelled candidates the loss of their lists, else the corrected in-batch softmax."""
        batch = batch.last(self.config.max_history_length)
        if batch.candidates is not None and batch.candidate_labels:
            return self._loss_of_lists(batch, batch.candidates)
        assert batch.targets is not None
        targets = batch.targets.values
        distinct = torch.unique(targets)
        if self.training:
            self.frequency.update(distinct)
        drawn, share = self._drawn()
        columns = torch.unique(torch.cat([distinct, drawn]))
        user_BD, item_MD = self._towers(batch, columns)
        p = self.frequency.probability(columns)
        u = share * (self.popularity[columns] > 0)
        log_q = (p + u - p * u).clamp(min=1e-12).log()
        logits = user_BD @ item_MD.T - log_q
        if self.config.hard_negatives:
            logits = self._with_hard(logits, user_BD, columns, targets)
        return LossTerms(in_batch_softmax(logits, positives=torch.searchsorted(columns, targets)))

    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """[B, D], of length 1 / tau: the inner product with an item's vector is its score."""
        return self._towers(batch.last(self.config.max_history_length), batch.items.values[:0])[0]

    def item_vectors(self) -> Tensor:
        """[N + 1, D] of length 1; row 0 is padding. Kept until weights are loaded or trained."""
        return self._made()[0]

    def build_index(self, requests: SequenceBatch) -> None:
        """Indexes the item vectors; recall is measured with the vectors of these requests."""
        self.index.build(self.item_vectors(), self.user_vectors(requests))

    def score(self, batch: SequenceBatch) -> Mapping[str, Tensor]:
        """The inner products with the candidates [B, K], aligned with them padded (-inf at padding)."""
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
        """Of the candidates [P]."""
        assert batch.candidates is not None
        user_BD, item_PD = self._towers(batch.last(self.config.max_history_length), batch.candidates.values)
        return (user_BD[batch.candidates.row_ids()] * item_PD).sum(1)

    def _towers(self, batch: SequenceBatch, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the requests, of length 1 / tau [B, D], and of items [n, D]; each item is made once."""
        if self.training:
            own, places = torch.unique(item_ids, return_inverse=True)
            held, read_places = torch.unique(batch.items.values, return_inverse=True)
            item_vectors, read = self.items(own)[places], self.items.read(held)[read_places]
        else:
            vectors, readings = self._made()
            item_vectors, read = vectors[item_ids], readings[batch.items.values]
        return self.users(batch, read) / self.config.temperature, item_vectors

    def _made(self) -> tuple[Tensor, Tensor]:
        """Both vectors of all items, [N + 1, D] each."""
        if not len(self.made):
            made = self._make()
            if self.training:
                return made
            self.made, self.made_to_read = made
        return self.made, self.made_to_read

    @torch.inference_mode(False)  # what is kept may be read by a later step that has gradients
    @torch.no_grad()
    def _make(self) -> tuple[Tensor, Tensor]:
        was_training = self.items.training
        self.items.eval()
        every = torch.arange(self.num_items + 1, device=self.popularity.device)
        made = torch.cat([self.items(part) for part in torch.split(every, BLOCK)])
        read = torch.cat([self.items.read(part) for part in torch.split(every, BLOCK)])
        self.items.train(was_training)
        made[0], read[0] = 0, 0
        return made, read

    def _drawn(self) -> tuple[Tensor, float]:
        """Items drawn evenly among those of training, and the share of these that is drawn."""
        known = self.popularity.nonzero()[:, 0]
        count = min(self.config.mixed_negatives, len(known))
        return known[torch.randperm(len(known))[:count].to(known.device)], count / max(1, len(known))

    def _with_hard(self, logits: Tensor, user_BD: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        """Each request's highest scored items beside the columns, from which they are taken out [B, M + hard]."""
        if (int(self.frequency.step) - 1) % self.config.refresh_steps == 0:
            self.snapshot.copy_(self._make()[0])
        with torch.no_grad():
            found = user_BD @ self.snapshot.T
            found[:, 0] = -torch.inf
            found[:, self.popularity == 0] = -torch.inf
            found.scatter_(1, targets[:, None], -torch.inf)
            best = found.topk(min(self.config.hard_negatives, self.num_items), dim=1)
            real, hard = best.values > -torch.inf, best.indices
            taken = torch.zeros_like(found, dtype=torch.bool).scatter_(1, hard, real)
        distinct, places = torch.unique(hard, return_inverse=True)
        hard_logits = (user_BD @ self.items(distinct).T).gather(1, places).masked_fill(~real, -torch.inf)
        return torch.cat([logits.masked_fill(taken[:, columns], -torch.inf), hard_logits], dim=1)

    def _loss_of_lists(self, batch: SequenceBatch, candidates: Jagged) -> LossTerms:
        """Cross-entropy of each request's shares of labels: a ranker's scores, and what became of the candidates."""
        logits, labels = self._candidate_scores(batch), batch.candidate_labels
        given = [name for name in labels if name != TEACHER][:1]
        losses = {name: label_shares(logits, labels[name].values, candidates) for name in given}
        if TEACHER not in labels:
            return LossTerms(losses[given[0]])
        losses[TEACHER] = label_shares(logits, labels[TEACHER].values, candidates)
        weight = self.config.teacher_weight if given else 1.0
        total = torch.stack([loss * (weight if name == TEACHER else 1 - weight) for name, loss in losses.items()]).sum()
        return LossTerms(total, {name: loss.detach() for name, loss in losses.items()})

    def _fit_fields(self, requests: SequenceBatch, log: Interactions) -> None:
        for fields in (self.users.fields, self.items.fields):
            fields.fit(requests, log)
