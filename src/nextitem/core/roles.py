"""What a model can do beside recommending: small protocols, each known by the layer that uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.interactions import Interactions
from nextitem.core.recommendations import Recommendations


@dataclass(frozen=True)
class LossTerms:
    """`total` (scalar, differentiable) is what is minimised; `named` are detached parts to be shown."""

    total: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)


class TrainingBatch(Protocol):
    """What training asks of a batch: to move to a device, and to be shared among processes."""

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""

    def share(self, rank: int, count: int) -> Self:
        """The part of process `rank` of `count`; all parts together are the batch, and one may be empty."""

    @property
    def loss_count(self) -> int:
        """How many things the loss of this batch (or of this part of one) is a mean over."""


BatchT = TypeVar("BatchT", bound=TrainingBatch)
BatchT_co = TypeVar("BatchT_co", bound=TrainingBatch, covariant=True)


class Examples(Protocol[BatchT_co]):
    """A source of training batches: a pure function of (seed, epoch), so that a run can resume anywhere."""

    def num_batches(self, batch_size: int) -> int:
        """Batches in one epoch."""

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[BatchT_co]:
        """Batches `start`, `start + 1`, ... of the given epoch; the same ones for the same arguments."""


@runtime_checkable
class Trainable(Protocol[BatchT]):
    """Learns by gradient."""

    def examples(self, train: Dataset) -> Examples[BatchT]:
        """The examples that it learns from."""

    def training_loss(self, batch: BatchT) -> LossTerms:
        """The loss of one batch of its examples."""


class HasStepState(Protocol):
    """A Trainable that carries something from one step to the next that is no weight: a row a lane of its batches.

    A resume point holds it, a bundle does not. Where processes share the lanes, lane b is process b % world's.
    """

    step_state: Tensor


def has_step_state(model: object) -> TypeGuard[HasStepState]:
    """Whether it is a HasStepState: isinstance does not find a module's buffers from Python 3.12 on."""
    return isinstance(getattr(model, "step_state", None), Tensor)


@runtime_checkable
class HasEpochHook(Protocol):
    """A Trainable that changes something else between epochs (a tree), and then learns on with that."""

    def after_epoch(self, epoch: int) -> Sequence[nn.Parameter]:
        """Called after epoch `epoch` (from 1), not after the last: the parameters that begin anew, with their moments.

        It is a function of the weights, the examples and the epoch; what it changes sits in the state_dict.
        """


@runtime_checkable
class ClosedForm(Protocol):
    """Learns in one pass, without gradients."""

    def fit(self, train: Dataset) -> None:
        """Learns from the training events."""


@runtime_checkable
class LearnsFromRequests(Protocol):
    """Learns from requests with labelled candidates: what was shown, or what the channels of a cascade retrieved."""

    def examples_of(self, requests: SequenceBatch, log: Interactions) -> Examples[SequenceBatch]:
        """The examples of these requests; vocabularies and quantiles are taken from them and the log."""

    @property
    def prefers_impressions(self) -> bool:
        """Whether the settings say to learn from what was shown, even if there are other requests."""


@runtime_checkable
class FitsExamples(Protocol):
    """Learns from all examples at once, without gradients (boosted trees)."""

    def fit_to(self, examples: Examples[SequenceBatch]) -> None:
        """Learn from one epoch of the examples."""


@dataclass(frozen=True)
class GeneratorState:
    """What a generator remembers between steps.

    shared  what the beams of a request have in common (encoder keys and values): never copied per beam
    beams   per beam, leading dimensions [B, W] (decoder caches): gathered when beams are reordered
    """

    shared: Mapping[str, Tensor]
    beams: Mapping[str, Tensor]

    def reorder(self, parents: Tensor) -> GeneratorState:
        """Beam w of request b becomes the former beam `parents[b, w]` (int64 [B, W'])."""
        rows = torch.arange(parents.shape[0], device=parents.device)[:, None]
        return GeneratorState(self.shared, {name: value[rows, parents] for name, value in self.beams.items()})


@runtime_checkable
class Generator(Protocol):
    """Spells items code by code."""

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """The state before the first code; its beams have W = 1."""

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Feeds the last codes [B, W] (None before the first) and returns logits [B, W, C] and the new state.

        C is the codebook size of the level that comes next.
        """


@runtime_checkable
class ParallelGenerator(Generator, Protocol):
    """Can also take several codes of a beam at once, where a search knows them before it has their scores."""

    def steps(self, state: GeneratorState, codes: Tensor) -> tuple[Sequence[Tensor], GeneratorState]:
        """Feeds n codes of each beam [B, W, n]: the logits after each of them, n times [B, W, C], and the new state."""


@runtime_checkable
class ItemScorer(Protocol):
    """Scores every item of the catalogue."""

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Return the score of every item for each request, [B, N + 1], higher is better.

        Every score is finite; column 0 is padding and means nothing. Exclusions, allow-lists and candidates are not
        looked at: `recommend` lists the best of these items that a request allows, ties by the smaller item number.
        Every history has at least one event, and the model is in evaluation mode. The caller may overwrite the tensor.
        """


@runtime_checkable
class KnowsSimilarItems(Protocol):
    """Knows how alike items are, other than by the inner product of two vectors."""

    def similarity_to(self, item: int) -> Tensor:
        """How alike every item is to an item, [N + 1]; -inf: not at all, and never for row 0."""


@runtime_checkable
class Indexed(Protocol):
    """Finds items by an index over its vectors, which is built when it has learnt."""

    def build_index(self, requests: SequenceBatch) -> None:
        """Builds the index; `requests` are like those that will be asked."""


@runtime_checkable
class Incremental(Protocol):
    """Keeps what it has read of a history, so that a further event costs one step instead of the whole history."""

    def read(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Reads the events that `state` has not read yet (None: all), and returns the state after all of them.

        `batch` holds the histories in full; row b of `state` has read the first `state.lengths[b]` events of row b.
        Its vectors are those of reading everything at once; where the window of the model slides, or nothing of a
        row has been kept, the row is read anew. A batch with a `state` is answered through it. Raises StaleStateError
        if the state is of another model or of other weights.
        """


@runtime_checkable
class Staged(Protocol):
    """Answers by stages, each of which keeps a part of what the one before it kept."""

    def stages(self, batch: SequenceBatch, k: int) -> Iterator[tuple[str, Recommendations]]:
        """Each stage's name and what is left after it, best first; the last one is the answer, [B, k]."""


@runtime_checkable
class ProbabilityCalibrated(Protocol):
    """Can calibrate its scores on requests that it has not learnt from."""

    def calibrate(self, requests: SequenceBatch) -> tuple[str, ...]:
        """Fit what turns scores into probabilities, if the settings ask for it; return what the user should know."""


@runtime_checkable
class Ranker(Protocol):
    """Scores given candidates."""

    def score(self, batch: SequenceBatch) -> Mapping[str, Tensor]:
        """Task -> [B, K], aligned with the padded candidates."""
