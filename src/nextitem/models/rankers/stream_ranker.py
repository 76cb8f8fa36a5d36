"""StreamRanker: base class of generative rankers, which read a history once and then any number of candidates.

A ranker of this kind turns the history of a user into keys and values, layer by layer (`read`), and lets each candidate
attend to them (`candidate_states`). In training, all requests of a user in a batch share one pass over the history. In
serving, all candidates of a request share it, and later requests of the user continue it (roles.Incremental).

Shapes: B requests, P candidates, S streams, T tokens of all streams, D width, H heads, K width of a head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION, Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.history_state import HistoryState
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import offsets_of
from nextitem.core.roles import Examples
from nextitem.data.examples.labelled_candidates import TARGET, require_both_labels, without_slots
from nextitem.data.examples.user_requests import UserRequests
from nextitem.models.rankers.candidate_blocks import candidate_blocks
from nextitem.models.rankers.deep import DeepConfig
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.models.rankers.stream_state import state_after, unread_tokens
from nextitem.nn.attention.incremental import Window
from nextitem.nn.attention.stream import PastTokens, StreamLayer, read_candidates
from nextitem.nn.fields.fields import FieldCodes
from nextitem.nn.ranking.user_streams import StreamReader, UserStreams
from nextitem.ops.hstu_attention import Layout

MINUTE_MS = 60_000


class StreamConfig(DeepConfig):
    """Settings that generative rankers share."""

    max_history_length: int = Field(256, ge=1)
    """Number of most recent tokens of a history that the ranker reads: events, and impressions if they are read."""
    window_step: int | None = Field(None, ge=1)
    """Number of tokens by which a full window advances at once; in between, what was read stays valid; none: half."""
    token_width: int = Field(64, ge=1)
    """Width of the tokens (D)."""
    layers: int = Field(2, ge=1)
    """Number of layers."""
    heads: int = Field(2, ge=1)
    """Number of attention heads."""
    head_width: int = Field(32, ge=1)
    """Width of queries, keys and values of one head."""
    stream_dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout rate of the tokens and of each layer's output."""
    reads_impressions: bool = True
    """Whether impressions before a request are tokens of its history, with their labels, skipped ones included."""
    label_delay_minutes: float = Field(60.0, gt=0)
    """Minutes after which an impression becomes a token of the history: its labels must have come by then."""
    order: Literal["shuffled", "time"] = "shuffled"
    """Order of training: users in random order, or requests by time, each once and after all earlier ones."""
    max_cached_tokens: int = Field(65_536, ge=1)
    """Largest number of tokens whose keys and values are in memory at once; more histories are read in parts."""
    max_candidates: int = Field(4096, ge=1)
    """Largest number of candidates that are scored at once; more are scored in parts."""


@dataclass(frozen=True, eq=False)
class History:
    """What was read of the histories of a batch.

    Attributes:
        streams: the token streams.
        cache: keys and values of their tokens, [tokens, 2 x layers, H, K].
        layers: the layers that read them, which must read the candidates, too.

    """

    streams: UserStreams
    cache: Tensor
    layers: Sequence[StreamLayer]


class StreamRanker(RankingModel):
    """Ranker whose candidates attend to the history of the user. Subclasses make tokens and layers."""

    config: StreamConfig
    tokens_per_event = 1
    period_ms: int | None = None  # requests of a user share a stream only within such a period; None: always
    is_learnt: Tensor

    def __init__(self, config: StreamConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.register_buffer("is_learnt", torch.ones(len(self.all_tasks), dtype=torch.bool))
        actions = catalog.events.get(ACTION)
        self.reader = StreamReader(
            Window(config.max_history_length, config.window_step or -(-config.max_history_length // 2)),
            num_actions=0 if actions is None else actions.num_codes - 1,
            labels=catalog.labels,
            label_delay_ms=round(config.label_delay_minutes * MINUTE_MS),
            reads_impressions=config.reads_impressions,
        )

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """Names of the tasks of the network: those of the settings, or all labels of impressions, or the next item."""
        labels = () if self.config.learn_from == "events" else self.catalog.labels
        return self.config.tasks or labels or (TARGET,)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks whose labels had both values in training; only these have logits and scores."""
        is_learnt = self._buffers.get("is_learnt")
        if is_learnt is None:
            return self.all_tasks
        return tuple(task for task, has_both in zip(self.all_tasks, is_learnt.tolist(), strict=True) if has_both)

    @abstractmethod
    def streams(self, batch: SequenceBatch, *, is_shared: bool = True) -> UserStreams:
        """Return the token streams of a batch; if not `is_shared`, each request has its own."""

    @abstractmethod
    def active_layers(self) -> list[StreamLayer]:
        """Return the layers that are used."""

    @abstractmethod
    def read_tokens(
        self,
        layers: Sequence[StreamLayer],
        streams: UserStreams,
        places: Tensor | None = None,
        past: PastTokens | None = None,
    ) -> Tensor:
        """Return keys and values of all tokens; those at `places` (None: all) are read, `past` has the others."""

    @abstractmethod
    def candidate_tokens(self, batch: SequenceBatch, fields: Tensor) -> Tensor:
        """Return the tokens [P, D] of the candidates of a batch; `fields [P, F, W]` are the vectors of their fields."""

    @abstractmethod
    def task_logits(self, states: Tensor, fields: Tensor) -> Tensor:
        """Return the logits [P, all tasks] from the last hidden states [P, D] and the vectors of the fields."""

    def read(self, batch: SequenceBatch) -> History:
        """Read the histories of a batch; if it has a state, only what follows it."""
        layers = self.active_layers()
        if batch.state is None:
            streams = self.streams(batch)
            return History(streams, self.read_tokens(layers, streams), layers)
        streams = self.streams(batch, is_shared=False)
        return History(streams, self._continue(batch, streams, batch.state), layers)

    @torch.no_grad()
    def encode_history(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Return the keys and values of all tokens of each history (roles.Incremental)."""
        streams = self.streams(batch, is_shared=False)
        cache, version = self._continue(batch, streams, state), self.weights_fingerprint()
        return state_after(streams, cache, batch.items.lengths, version, factor=self.tokens_per_event)

    def _continue(self, batch: SequenceBatch, streams: UserStreams, state: HistoryState | None) -> Tensor:
        """Return keys and values of all tokens of the requests' own streams; those in the state are not read again."""
        if state is not None:
            state.new_events(batch.items.lengths)  # raises an error if the state has read more events than there are
        places, past = unread_tokens(streams, state, self.weights_fingerprint(), factor=self.tokens_per_event)
        return self.read_tokens(self.active_layers(), streams, places, past)

    def num_tokens(self, batch: SequenceBatch) -> Tensor:
        """Return an upper bound of the number of tokens of each request's stream, [B]."""
        return self.reader.num_tokens(batch) * self.tokens_per_event

    def examples(self, train: Dataset) -> Examples[SequenceBatch]:
        """Return impressions, or events with negatives; the only task of events is whether an item came next."""
        if self.config.learn_from == "events" or train.impressions is None:
            self.is_learnt[1:] = False
        return super().examples(train)

    def examples_of(self, requests: SequenceBatch, log: Interactions) -> Examples[SequenceBatch]:
        """Return examples from precomputed requests; tasks whose labels are all equal, or unknown, are left out."""
        for number, label in enumerate(self._labels(requests)):
            try:
                require_both_labels(requests, label)
            except UserError:
                self.is_learnt[number] = False
        if not bool(self.is_learnt.any()):
            self.is_learnt[0] = True  # its message says what to do
        return super().examples_of(requests, log)

    def batches_of(self, requests: SequenceBatch) -> Examples[SequenceBatch]:
        """Return precomputed requests as a source of training batches, in which the requests of a user are together."""
        lengths = self.num_tokens(requests)
        return UserRequests(requests, order=self.config.order, lengths=lengths, period_ms=self.period_ms)

    def calibrate(self, requests: SequenceBatch) -> tuple[str, ...]:
        """Fit the calibration curves; return a sentence for each task that was not calibrated or not learnt."""
        dropped = [task for task in self.all_tasks if task not in self.tasks and task in requests.candidate_labels]
        notes = [
            f"label {task!r}: all candidates to learn from have the same value, so it is no task" for task in dropped
        ]
        return (*super().calibrate(requests), *notes)

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S] of the candidates of a batch."""
        return self._candidate_logits(batch, self.vectors(codes), self.read(batch))

    def _candidate_logits(self, batch: SequenceBatch, fields: Tensor, history: History) -> Tensor:
        layout, order = self.candidate_layout(batch, history.streams)
        tokens = self.candidate_tokens(batch, fields)
        groups = self.candidate_groups(tokens)
        states = read_candidates(history.layers, tokens[order], history.cache, layout, groups=groups)
        to_batch_order = torch.empty_like(order)
        to_batch_order[order] = torch.arange(len(order), device=order.device)
        return self.task_logits(states[to_batch_order], fields)[:, self.is_learnt]

    def candidate_groups(self, tokens: Tensor) -> Tensor | None:
        """Return the group of the candidates, for layers with weights by group [P]; None: there are no groups."""
        return None

    def candidate_layout(self, batch: SequenceBatch, streams: UserStreams) -> tuple[Layout, Tensor]:
        """Return which tokens the candidates see, and their order in the layout [P]: by stream."""
        assert batch.candidates is not None
        rows = batch.candidates.row_ids()
        owners = streams.streams[rows]
        order = owners.argsort(stable=True)
        factor = self.tokens_per_event
        num_queries = torch.bincount(owners, minlength=streams.items.num_rows)
        is_dated = streams.times is not None and batch.request_times is not None
        layout = Layout(
            streams.items.offsets * factor,
            offsets_of(num_queries),
            batch.request_times[rows][order] if is_dated and batch.request_times is not None else None,
            streams.times.repeat_interleave(factor) if is_dated and streams.times is not None else None,
            streams.visible[rows][order] * factor,
            "sqrt",
        )
        return layout, order

    def _all_logits(self, batch: SequenceBatch) -> Tensor:
        """Return the logits [P, S]: histories are read once, and candidates are scored in parts of bounded size."""
        assert batch.candidates is not None
        parts = []
        for part in self._bounded(without_slots(batch)):
            history = self.read(part)
            parts += [
                self._candidate_logits(block, self.vectors(self.fields(block)), history)
                for block in candidate_blocks(part, self.config.max_candidates)
            ]
        return torch.cat(parts)

    def _bounded(self, batch: SequenceBatch) -> Iterator[SequenceBatch]:
        """Yield the requests in order, in batches whose histories have at most `max_cached_tokens` tokens."""
        lengths = self.num_tokens(batch)
        number = (lengths.cumsum(0) - 1).clamp(min=0) // self.config.max_cached_tokens
        if int(number[-1]) == 0:
            yield batch
            return
        for value in torch.unique(number):
            yield batch.select((number == value).nonzero()[:, 0])

    def _labels(self, batch: SequenceBatch) -> list[str]:
        """Return the name of the label of each task; without such labels, the first one of the data."""
        labels = batch.candidate_labels
        return (
            super()._labels(batch)
            if self.config.tasks and len(self.tasks) == len(self.all_tasks)
            else [task if task in labels else next(iter(labels)) for task in self.tasks]
        )
