"""SIM: attention to the events of a lifelong history that a search selects for the candidate.

Pi et al., Search-based Interest Model, arXiv 2006.05639. A general search unit selects at most K events from a history
of thousands. The hard search selects events that share the candidate's category; the soft search selects those with the
highest inner products. An exact search unit then attends to them with several heads and reads their time gaps. The
recent history is read as in DIN.

Notable
- The vectors of the soft search learn from an auxiliary task on the whole long history, as in the paper. The labels are
  predicted from the candidate and the mean (the paper: sum) of the history, weighted by the inner products. The search
  itself passes no gradient.
- That mean is linear in the candidate. So the events are summed once for each request, whatever the number of
  candidates.
- The recent part is target attention (DIN); the paper's production model has DIEN there.

Shapes: B requests, T events of all histories, P candidates, K selected events, F fields, D width, X width of an item's
fields, G width of the search, S tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.models.rankers.deep import DeepConfig, deep_part, field_gates, history_width
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.attention.target_attention import MultiHeadTargetAttention, TargetAttention
from nextitem.nn.fields.fields import FieldCodes, FieldVectors
from nextitem.nn.fields.kinds import HOUR_MS, NUM_LOG_CODES, ItemCategory, ItemField, ItemId, logarithmic
from nextitem.nn.ranking.behaviour_search import SearchResult, search_nearest, search_same
from nextitem.nn.ranking.mlp import Activation, mlp


class SIMConfig(DeepConfig):
    """Settings of SIM."""

    activation: Activation = "dice"
    unit: tuple[int, int] = (80, 40)
    """Widths of the hidden layers of the activation unit, which weighs items of the recent history."""
    long_history_length: int = Field(10_000, ge=1)
    """Number of most recent events of a history that are searched."""
    search: Literal["hard", "soft"] = "hard"
    """Search in the long history: by the candidate's category (hard) or by inner products (soft)."""
    category: str = ""
    """Categorical feature of items for the hard search; empty: the one with the most values."""
    max_search_results: int = Field(50, ge=1)
    """Largest number of events that the search selects for a candidate (K)."""
    heads: int = Field(2, ge=1)
    """Number of attention heads of the exact search unit."""
    time_width: int = Field(8, ge=1)
    """Width of the vector of a time gap, between an event and the request."""
    search_width: int = Field(16, ge=1)
    """Width of the vectors of the soft search (G)."""
    search_loss: float = Field(0.2, ge=0)
    """Weight of the loss of the soft search's auxiliary task (alpha)."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that are unused with the current values of the other fields: name -> reason."""
        search, is_hard = f"search is {self.search}", self.search == "hard"
        return {
            **super().idle_fields(),
            **configs.idle_unless(is_hard, search, "category"),
            **configs.idle_unless(not is_hard, search, "search_width", "search_loss"),
        }


class SIM(RankingModel):
    """Ranker that reads fields, the recent history, and the events that a search selects from the long history."""

    Config = SIMConfig
    config: SIMConfig

    def __init__(self, config: SIMConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        self.gates = field_gates(config, len(self.fields))
        width, tasks = history_width(self.vectors, heads=config.heads), len(self.tasks)
        self.recent = TargetAttention(width, hidden=config.unit)
        if config.search == "soft":
            self.of_event = nn.Linear(width, config.search_width, bias=False)
            self.of_candidate = nn.Linear(width, config.search_width, bias=False)
            self.auxiliary = mlp(2 * width, config.hidden, out=tasks)
        else:
            self.category = _category(catalog, config.category)
        self.gaps = nn.Embedding(NUM_LOG_CODES, config.time_width)
        self.exact = MultiHeadTargetAttention(width, key_width=width + config.time_width, heads=config.heads)
        self.deep = deep_part(config, len(self.fields) * config.width + 2 * width, tasks=tasks)

    @property
    def max_read_events(self) -> int:
        """Largest number of recent events of a history that the model reads: those of the long history."""
        return max(self.config.max_history_length, self.config.long_history_length)

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S] of the network over the fields, the recent history and the long history."""
        assert batch.candidates is not None
        queries_PX = self.vectors.of_items(batch.candidates.values)
        recent = batch.items.last(self.config.max_history_length)
        parts = [
            self.gates(self.vectors(codes)).flatten(1),
            self.recent(queries_PX, self.vectors.of_items(recent.to_padded()), recent.lengths, codes.rows),
            self.long_interest(batch, queries_PX),
        ]
        out: Tensor = self.deep(torch.cat(parts, 1))
        return out

    def long_interest(self, batch: SequenceBatch, queries_PX: Tensor) -> Tensor:
        """Return the attention of each candidate to the events that the search selects for it, [P, X]."""
        long = batch.last(self.config.long_history_length)
        result = self.search(long, queries_PX)
        events = nn.functional.pad(long.items.values, (0, 1))  # so that index 0 exists even without events
        keys_PKX = self.vectors.of_items(events[result.places])
        gaps_PK = nn.functional.pad(self._gaps(long), (0, 1))[result.places]
        out: Tensor = self.exact(queries_PX, torch.cat([keys_PKX, self.gaps(gaps_PK)], 2), result.real)
        return out

    @torch.no_grad()
    def search(self, long: SequenceBatch, queries_PX: Tensor) -> SearchResult:
        """Select at most K events of the request's history for each candidate; `queries_PX` are the candidates."""
        assert long.candidates is not None
        if self.config.search == "hard":
            event_codes, candidate_codes = (
                self._categories(ids) for ids in (long.items.values, long.candidates.values)
            )
            rows = long.candidates.row_ids()
            return search_same(
                long.items.with_values(event_codes), candidate_codes, rows, self.config.max_search_results
            )
        keys = self.of_event(self.vectors.of_items(long.items.values))
        queries = long.candidates.with_values(self.of_candidate(queries_PX))
        return search_nearest(long.items.with_values(keys), queries, self.config.max_search_results)

    def penalty(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the penalty of every ranker, plus alpha times the loss of the soft search's auxiliary task."""
        if self.config.search == "hard":
            return super().penalty(batch, codes)
        assert batch.candidates is not None
        queries_PX = self.vectors.of_items(batch.candidates.values)
        long = batch.items.last(self.config.long_history_length)
        events_BLX = self.vectors.of_items(long.to_padded()) * (long.to_padded() > 0)[..., None]
        # Mean over events of <W_a q, W_b e> e; the mean of (W_b e) e^T is computed first, once for each request.
        memory_BGX = self.of_event(events_BLX).transpose(1, 2) @ events_BLX / long.lengths.clamp(min=1)[:, None, None]
        sums_PX = (self.of_candidate(queries_PX)[:, None] @ memory_BGX[codes.rows])[:, 0]
        logits = self.auxiliary(torch.cat([sums_PX, queries_PX], 1))
        return super().penalty(batch, codes) + self.config.search_loss * self.cross_entropy(batch, logits).total

    def _categories(self, item_ids: Tensor) -> Tensor:
        codes = self.category.of_items(item_ids)
        assert isinstance(codes, Tensor)
        return codes

    def _gaps(self, long: SequenceBatch) -> Tensor:
        """Return the code of the time from each event to its request, [T]: logarithmic in hours; 0 without times."""
        if long.timestamps is None or long.request_times is None:
            return torch.zeros_like(long.items.values)
        gaps = long.request_times[long.items.row_ids()] - long.timestamps.values
        return logarithmic(gaps.clamp(min=0) / HOUR_MS + 1)


def _category(catalog: Catalog, column: str) -> ItemField:
    """Return the field by which the hard search matches items: a categorical feature, or the item ids without any.

    Raises UserError if `column` is no categorical feature of the catalogue.
    """
    categorical = [name for name, kind in catalog.features.items() if kind == "categorical"]
    if column and column not in categorical:
        raise UserError(
            f"model.category: there is no categorical feature {column!r}; this data has {', '.join(categorical)}"
        )
    if not categorical:
        return ItemId(catalog.ids.external)
    return ItemCategory(catalog.table[column or max(categorical, key=lambda name: catalog.table[name].n_unique())])
