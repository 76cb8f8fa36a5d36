"""RankingModel: base class of all rankers, with fields, training examples, loss, scores and lists.

A ranker turns the fields of a request and its candidates into one logit for each task (`logits`). It learns from
impressions and their labels. If a log has no impressions, it learns from each event against sampled negatives.

Shapes: B requests, P candidates of all requests, K candidates of one request, S tasks, N items.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Examples, LossTerms
from nextitem.core.top_items import search_unseen_last, top_candidates, top_items
from nextitem.data.examples.labelled_candidates import (
    LabelledRequests,
    SampledCandidates,
    examination,
    impression_examples,
    require_both_labels,
    without_slots,
)
from nextitem.losses.listwise_softmax import listwise_softmax
from nextitem.losses.mean_by_request import mean_by_request
from nextitem.models.rankers.config import RankingConfig
from nextitem.nn.fields.fields import FieldCodes, Fields, FieldVectors
from nextitem.nn.ranking.calibration import Curve, calibration
from nextitem.nn.ranking.mini_batch_aware import mini_batch_aware_l2

COUNT_BATCH = 1024  # requests in a batch of examples when codes are counted
BLOCK = 16_384  # number of candidates that are scored at a time
TIE_SLOPE = 1e-9  # slope of a log-probability in its logit: only decides between equal probabilities
NUM_FIT_REQUESTS = 20_000  # training requests for quantiles and vocabularies, if candidates are sampled


class RankingModel(Recommender):
    """Ranker of candidates, or of the whole catalogue without candidates. Subclasses compute the logits."""

    known_answers: ClassVar[tuple[str, ...]] = ("checkerboard",)
    config: RankingConfig
    vectors: FieldVectors  # created by subclasses
    counts: Tensor

    def __init__(self, config: RankingConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        candidate_features = (*config.candidate_features, *(("slot",) if config.position == "field" else ()))
        self.fields = Fields(
            catalog,
            config.fields,
            max_history_length=config.max_history_length,
            buckets=config.buckets,
            pair_buckets=config.pair_buckets,
            candidate_features=candidate_features,
            half_lives=config.half_lives,
            delay_hours=config.delay_hours,
        )
        counts = torch.zeros(self.fields.size if config.l2 else 0)  # of candidates by code; `examples` counts them
        self.register_buffer("counts", counts, persistent=False)
        self.curves = nn.ModuleList(calibration(config.calibration) for _ in self.tasks if config.calibration)
        self.register_buffer("examined", torch.ones(1))  # probability that a slot is looked at, for slot weights

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the logits."""
        return self.config.task_names

    @property
    def max_read_events(self) -> int:
        """Largest number of recent events of a history that the model reads."""
        return self.config.max_history_length

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether a field reads a column of the catalogue: ids and counts do not describe items without events."""
        return self.fields.has_content

    def unseen_items(self) -> Tensor | None:
        """Return the items in no event and no training request, bool [N + 1], if only ids and counts are read.

        None if there are none, or if candidates come with features: their sender then knows more about them.
        """
        if self.can_rank_unseen_items or self.config.candidate_features:
            return None
        return self.fields.unseen_items(super().unseen_items())

    @abstractmethod
    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S] for the candidates of a batch, whose fields have these codes."""

    def examples(self, train: Dataset) -> Examples[SequenceBatch]:
        """Return impressions, or events with negatives; fit quantiles, vocabularies and counts to them."""
        config = self.config
        if config.learn_from == "impressions" or (config.learn_from == "auto" and train.impressions is not None):
            return self.examples_of(impression_examples(train, delay_hours=config.delay_hours), train.interactions)
        if config.learn_from == "auto" and (config.delay_hours or config.position == "weight"):
            name = "delay_hours" if config.delay_hours else "position"
            raise UserError(f"{train.name}: model.{name} applies to impressions, and training has none; remove it")
        sampled = SampledCandidates(
            train,
            num_negatives=config.num_negatives,
            power=config.negatives_power,
            max_history_length=self.max_read_events,
        )
        self.fields.fit(sampled.events.sample(NUM_FIT_REQUESTS), train.interactions)
        return self._count_codes(sampled)

    def examples_of(self, requests: SequenceBatch, log: Interactions) -> Examples[SequenceBatch]:
        """Return examples from precomputed requests: impressions, or candidates of the channels of a cascade.

        Fields are fitted to the requests and the log. Raises UserError if a task has one label only, or if `position`
        is "weight" and candidates have no slots.
        """
        for label in self._labels(requests):
            require_both_labels(requests, label)
        if self.config.position == "weight":
            if "slot" not in requests.candidate_features:
                raise UserError('model.position = "weight" needs the column slot, and candidates have none; remove it')
            self.examined = examination(requests, self._labels(requests)[0])
        self.fields.fit(requests, log)
        return self._count_codes(self.batches_of(requests))

    def batches_of(self, requests: SequenceBatch) -> Examples[SequenceBatch]:
        """Return precomputed requests as a source of training batches: of histories of similar length."""
        return LabelledRequests(requests)

    @property
    def prefers_impressions(self) -> bool:
        """Whether the model learns from impressions even as a stage of a cascade."""
        return self.config.learn_from == "impressions"

    def _count_codes(self, examples: Examples[SequenceBatch]) -> Examples[SequenceBatch]:
        """Count the candidates of an epoch for which each code is read, if `l2` needs it; return the examples."""
        if self.config.l2:
            self.counts.zero_()
            for batch in examples.batches(COUNT_BATCH, epoch=0, seed=0):
                self.counts.index_add_(0, *self.fields(batch).code_occurrences())
        return examples

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the cross-entropy of all tasks, plus the penalty."""
        codes = self.fields(batch)
        terms = self.cross_entropy(batch, self.logits(batch, codes))
        return LossTerms(terms.total + self.penalty(batch, codes), terms.named)

    def cross_entropy(self, batch: SequenceBatch, logits: Tensor) -> LossTerms:
        """Return the loss of all tasks for logits [P, S]: requests have equal weights, unlabelled candidates none."""
        assert batch.candidates is not None
        rows = batch.candidates.row_ids()
        weights = self._weights(batch)
        losses = {}
        for column, label in enumerate(self._labels(batch)):
            labels = batch.candidate_labels[label].values
            # A positive in a slot that is rarely looked at also represents those that were not looked at there.
            values = torch.where(labels > 0, weights, 1) * (
                listwise_softmax(logits[:, column], labels, rows, num_requests=batch.num_requests)
                if self.config.objective == "listwise"
                else F.binary_cross_entropy_with_logits(logits[:, column], (labels > 0).float(), reduction="none")
            )
            losses[self.tasks[column]] = mean_by_request(
                values, rows, num_requests=batch.num_requests, is_known=~labels.isnan()
            )
        total = torch.stack(list(losses.values())).sum()
        named = {name: value.detach() for name, value in losses.items()} if len(losses) > 1 else {}
        return LossTerms(total, named)

    def penalty(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the term added to the loss: the mini-batch-aware L2 penalty of the field vectors."""
        if not self.config.l2:
            return self.popularity.new_zeros(())
        return self.config.l2 * mini_batch_aware_l2(self.vectors.table, codes.code_occurrences()[0], self.counts)

    @torch.no_grad()
    def calibrate(self, requests: SequenceBatch) -> tuple[str, ...]:
        """Fit the calibration curves to labelled requests that are not in the training data.

        If all labels of a task are equal, its probabilities stay uncalibrated: a curve through one label would give
        every candidate the same. Returns a sentence for each such task. Raises UserError without labels.
        """
        if not self.curves:
            return ()
        if not requests.candidate_labels or not requests.num_requests:
            raise UserError("model.calibration needs labelled validation requests: use --protocol impressions")
        logits, notes = self._all_logits(requests), []
        for column, label in enumerate(self._labels(requests)):
            labels = requests.candidate_labels[label].values
            has_label = ~labels.isnan()
            count, total = int((labels > 0).sum()), int(has_label.sum())
            if 0 < count < total:
                cast(Curve, self.curves[column]).fit(logits[has_label, column], labels[has_label])
            else:
                notes.append(
                    f"model.calibration: the probabilities of {label!r} stay uncalibrated, since "
                    f"{'none' if not count else 'each'} of the {total} validation candidates has that label, "
                    "and a curve needs both kinds"
                )
        return tuple(notes)

    def score(self, batch: SequenceBatch) -> Mapping[str, Tensor]:
        """Return by task the probabilities of the padded candidates [B, K], -inf at padding; slots are ignored."""
        candidates = batch.candidates
        assert candidates is not None, "there are no candidates to score"
        probabilities = self._probabilities(self._all_logits(batch))
        return {
            task: candidates.with_values(probabilities[:, column]).to_padded(fill=-torch.inf)
            for column, task in enumerate(self.tasks)
        }

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        unseen = self.unseen_items()
        if batch.candidates is None:
            return search_unseen_last(lambda part: self._from_catalogue(part, k), batch, unseen)
        scores = self._order(batch)
        return top_candidates(batch.candidates, scores, batch, k, num_items=self.num_items, unseen=unseen)

    def _from_catalogue(self, batch: SequenceBatch, k: int) -> Recommendations:
        """Rank all allowed items, for a block of requests at a time."""
        items = torch.arange(1, self.num_items + 1, device=batch.items.values.device)
        if batch.allowed is not None:
            items = batch.allowed.any(0).nonzero()[:, 0]
            items = items[items > 0]
        answers = []
        rows = torch.arange(batch.num_requests, device=items.device)
        for block in torch.split(rows, max(1, BLOCK // max(1, len(items)))):
            requests = batch.select(block)
            scores = torch.full((len(block), self.num_items + 1), -torch.inf, dtype=torch.float64, device=items.device)
            for part in torch.split(items, BLOCK):
                offsets = torch.arange(len(block) + 1, device=items.device) * len(part)
                candidates = Jagged(part.repeat(len(block)), offsets)
                scores[:, part] = self._order(replace(requests, candidates=candidates)).view(-1, len(part)).double()
            answers.append(top_items(scores, requests, k))
        return Recommendations(
            torch.cat([answer.item_ids for answer in answers]), torch.cat([answer.scores for answer in answers])
        )

    def _order(self, batch: SequenceBatch) -> Tensor:
        """Return the scores that order candidates [P]: the first task's logit, or the weighted sum of `order_by`.

        The sum is in float64. Each log-probability rises a little with its logit, so that candidates on one step of
        an isotonic curve, or with a probability that rounds to 1, keep the order of their logits.
        """
        logits = self._all_logits(batch)
        if not self.config.order_by:
            return logits[:, 0]
        order = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
        for task, weight in self.config.order_by.items():
            column = self.tasks.index(task)
            scores = logits[:, column].double()
            logs = cast(Curve, self.curves[column]).log_probabilities(scores) if self.curves else F.logsigmoid(scores)
            order += weight * (logs + TIE_SLOPE * scores)
        return order

    def _all_logits(self, batch: SequenceBatch) -> Tensor:
        """Return the logits [P, S], computed for about BLOCK candidates at a time; slots are ignored."""
        candidates = batch.candidates
        assert candidates is not None
        batch = without_slots(batch)
        if len(candidates.values) <= BLOCK:
            return self.logits(batch, self.fields(batch))
        block = candidates.offsets[1:] // BLOCK
        rows = torch.arange(batch.num_requests, device=block.device)
        parts = [batch.select(rows[block == number]) for number in torch.unique(block)]
        return torch.cat([self.logits(part, self.fields(part)) for part in parts])

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities [P, S], by the calibration curves if there are any."""
        if not self.curves:
            return logits.sigmoid()
        return torch.stack([curve(logits[:, column]) for column, curve in enumerate(self.curves)], 1)

    def _labels(self, batch: SequenceBatch) -> list[str]:
        """Return the name of the label of each task; if no tasks are named, the first label of the data."""
        labels = batch.candidate_labels
        names = self.config.tasks or tuple(labels)[:1]
        for name in names:
            if name not in labels:
                raise UserError(f"model.tasks: there is no label {name!r}; this data has {', '.join(labels)}")
        return list(names)

    def _weights(self, batch: SequenceBatch) -> Tensor | float:
        """Return the weight of each candidate if it is positive [P]: one over the examination of its slot."""
        if self.config.position != "weight" or "slot" not in batch.candidate_features:
            return 1.0
        slots = batch.candidate_features["slot"].values.long().clamp(max=len(self.examined) - 1)
        return 1 / self.examined[slots]
