"""Roles: small protocols for the optional abilities of a model, each used by one layer of the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.interactions import Interactions
from nextitem.core.recommendations import Recommendations
from nextitem.core.sparse_scores import SparseScores


@dataclass(frozen=True)
class LossTerms:
    """Loss of a batch: `total` (scalar, differentiable) is minimised; `named` contains detached parts for the log."""

    total: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)


class TrainingBatch(Protocol):
    """A batch that training can move to a device and divide among processes."""

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on another device."""

    def share(self, rank: int, count: int) -> Self:
        """Return the part of process `rank` of `count`; all parts together are the batch, and a part may be empty."""

    @property
    def loss_count(self) -> int:
        """Number of terms that the loss of this batch (or of this part of a batch) is a mean over."""


BatchT = TypeVar("BatchT", bound=TrainingBatch)
BatchT_co = TypeVar("BatchT_co", bound=TrainingBatch, covariant=True)


class Examples(Protocol[BatchT_co]):
    """A source of training batches that is a pure function of (seed, epoch), so that a run can resume anywhere."""

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[BatchT_co]:
        """Yield the batches `start`, `start + 1`, ... of an epoch; equal arguments yield equal batches."""


@runtime_checkable
class Trainable(Protocol[BatchT]):
    """A model that is trained by gradient descent."""

    def examples(self, train: Dataset) -> Examples[BatchT]:
        """Return the training examples of the data set `train`."""

    def training_loss(self, batch: BatchT) -> LossTerms:
        """Return the loss of one batch of training examples."""


class HasStepState(Protocol):
    """A Trainable with non-weight state that persists between training steps, one row per batch lane.

    A checkpoint for resuming contains the state, a bundle does not. If several processes share the lanes, lane b
    belongs to process b % (number of processes).
    """

    step_state: Tensor


def has_step_state(model: object) -> TypeGuard[HasStepState]:
    """Return whether a model is a HasStepState.

    From Python 3.12 on, isinstance does not see the buffers of a module.
    """
    return isinstance(getattr(model, "step_state", None), Tensor)


@runtime_checkable
class HasEpochHook(Protocol):
    """A Trainable that updates another structure (such as a tree) between epochs and then continues training."""

    def after_epoch(self, epoch: int) -> Sequence[nn.Parameter]:
        """Update the structure after epoch `epoch` (from 1) and return the parameters that were reset.

        It is not called after the last epoch. The optimizer state (moments) of the returned parameters is cleared.
        The update is a function of the weights, the examples and the epoch; what it changes is part of the state_dict.
        """


@runtime_checkable
class HasBatchHook(Protocol):
    """A module, part of a Trainable or the whole, that updates its buffers after the backward pass of a training batch.

    The buffers are part of the state_dict, and are the same in all processes.
    """

    def after_batch(self, weight: float) -> None:
        """Update the buffers; all processes call it for each training batch, and may communicate.

        `weight` is the factor of this process's loss, such that the mean over processes is the loss of the whole batch:
        1 if there is one process, 0 if this process has no part of the batch and has not called `training_loss`.
        """


@runtime_checkable
class Synchronised(Protocol):
    """A module, part of a Trainable or the whole, with buffers that each process changes by its own part of a batch.

    If several processes train, the buffers become equal after each backward pass, before any `after_batch`.
    """

    @property
    def synchronised(self) -> Mapping[str, Literal["sum", "mean"]]:
        """Names of the buffers, dotted if they belong to a submodule, and how they are joined.

        sum: the former value plus the changes of all processes (counts, sums of one batch). mean: the mean of the
        values of all processes, weighted by their parts of the batch (moving averages of means over a batch).
        """


@runtime_checkable
class TakesOver(Protocol):
    """A part of a model whose state for a later catalogue is not the former state with rows for new items.

    Examples are a table that knows ids by their keys, and an index that is built again after training.
    """

    def take_over(self, former: Any) -> None:
        """Take over the state of the same part of the model of a former catalogue, whose items come first in this."""


@runtime_checkable
class Extendable(Protocol):
    """A model that can get new items without training; `Recommender` is one."""

    def with_catalog(self, catalog: Catalog) -> Self:
        """Return the model for a later catalogue, which begins with the items of this one; this model is unchanged."""


@runtime_checkable
class ClosedForm(Protocol):
    """A model that is fitted in one pass, without gradients."""

    def fit(self, train: Dataset) -> None:
        """Fit the model to the training events."""


@runtime_checkable
class LearnsFromRequests(Protocol):
    """A model that is trained on requests with labelled candidates: impressions, or items retrieved by a cascade."""

    def examples_of(self, requests: SequenceBatch, log: Interactions) -> Examples[SequenceBatch]:
        """Return the training examples of these requests; they and the log determine vocabularies and quantiles."""

    @property
    def prefers_impressions(self) -> bool:
        """Whether the settings require training on impressions, even if there are other requests."""


@runtime_checkable
class FitsExamples(Protocol):
    """A model that is fitted to all examples at once, without gradients (boosted trees)."""

    def fit_to(self, examples: Examples[SequenceBatch]) -> None:
        """Fit the model to one epoch of the examples."""


@dataclass(frozen=True)
class GeneratorState:
    """State of a generator between steps.

    Attributes:
        shared: tensors that all beams of a request share (encoder keys and values); they are never copied per beam.
        beams: tensors per beam, with leading dimensions [B, W] (decoder caches); gathered when beams are reordered.

    """

    shared: Mapping[str, Tensor]
    beams: Mapping[str, Tensor]

    def reorder(self, parents: Tensor) -> GeneratorState:
        """Return the state in which beam w of request b is the former beam `parents[b, w]` (int64 [B, W'])."""
        rows = torch.arange(parents.shape[0], device=parents.device)[:, None]
        return GeneratorState(self.shared, {name: value[rows, parents] for name, value in self.beams.items()})


@runtime_checkable
class Generator(Protocol):
    """A model that generates the semantic ID of an item code by code, and so a policy of lists of items.

    A step after a complete item begins the next item of the list: a model of lists continues, and one of single items
    begins as at first. Steps are differentiable where gradients are enabled.
    """

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state before the first code; it has one beam for each request (W = 1)."""

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Append the last codes [B, W] (None before the first code) and return the next logits and the new state.

        The logits are [B, W, C]; C is the codebook size of the next level.
        """


@runtime_checkable
class ParallelGenerator(Generator, Protocol):
    """A Generator that can process several codes of a beam at once, if a search knows them before their scores."""

    def steps(self, state: GeneratorState, codes: Tensor) -> tuple[Sequence[Tensor], GeneratorState]:
        """Append n codes of each beam [B, W, n] and return the logits after each of them and the new state.

        The logits are n tensors [B, W, C].
        """


@runtime_checkable
class ChildScorer(Generator, Protocol):
    """A Generator that scores the children of its beams' nodes, so that nothing is computed for codes without a node.

    A search calls `score_children` instead of `step`.
    """

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        """Append the last codes [B, W] (None before the first code), and score the children of the new nodes.

        `nodes` [B, W, D] are the children of each beam's node; -1 is padding. Returns their logits [B, W, D], of any
        value in padding, and the new state.
        """


@runtime_checkable
class SparseItemScorer(Protocol):
    """An ItemScorer whose scores are 0 for all but a few items, or nearly so."""

    def sparse_scores(self, batch: SequenceBatch) -> SparseScores:
        """Return the scores of the items that each request reaches, at least 0.

        They are the entries of `scores`, except that the others, which only order what the model does not reach, are
        left out. The model is in evaluation mode, and every history has at least one event.
        """


@runtime_checkable
class ItemScorer(Protocol):
    """A model that scores every item of the catalogue."""

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Return the score of every item for each request, [B, N + 1]; higher is better.

        Every score is finite; column 0, padding, has no meaning. Exclusions, allow-lists and candidates are ignored:
        `recommend` lists the best of these items that a request allows, with ties going to the smaller item number.
        Every history has at least one event, and the model is in evaluation mode. The caller may overwrite the tensor.
        """


@runtime_checkable
class KnowsSimilarItems(Protocol):
    """A model with a similarity of items that is not the inner product of two vectors."""

    def similarity_to(self, item: int) -> Tensor:
        """Return the similarity of every item to `item`, [N + 1]; -inf for dissimilar items and for padding, row 0."""


@runtime_checkable
class Indexed(Protocol):
    """A model that searches items with an index over its item vectors, which is built after training."""

    def build_index(self, requests: SequenceBatch) -> None:
        """Build the index; `requests` are similar to the requests that it will serve."""


@runtime_checkable
class Incremental(Protocol):
    """A model that caches the encoding of a history, so that a new event costs one step, not the whole history.

    A batch with a `state` is answered from that state.
    """

    def encode_history(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Encode the unread events of each history and return the state after all events.

        The vectors of the result equal those of encoding each history at once. A row is encoded from scratch if the
        window of the model moves, or if the state contains nothing of it.

        Args:
            batch: the histories in full.
            state: state of the earlier events: row b covers the first `state.lengths[b]` events of row b of `batch`.
                None: every event is unread.

        Raises:
            StaleStateError: the state belongs to another model or to other weights.

        """


@runtime_checkable
class Staged(Protocol):
    """A model that answers in stages, each of which selects from the items that the previous stage selected."""

    def stages(self, batch: SequenceBatch, k: int) -> Iterator[tuple[str, Recommendations]]:
        """Yield the name of each stage and its selected items, best first; the last stage yields the answer, [B, k]."""


@runtime_checkable
class ProbabilityCalibrated(Protocol):
    """A model that can calibrate its scores on held-out requests."""

    def calibrate(self, requests: SequenceBatch) -> tuple[str, ...]:
        """Fit the mapping from scores to probabilities, if the settings require it; return notes for the user."""


@runtime_checkable
class Ranker(Protocol):
    """A model that scores the candidates of a request."""

    def score(self, batch: SequenceBatch) -> Mapping[str, Tensor]:
        """Return the scores of the candidates, task -> [B, K], in the order of the padded candidates."""
