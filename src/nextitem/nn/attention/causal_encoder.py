"""Causal encoder: a transformer over the events of a history, in which each position reads itself and earlier ones.

If positions are counted from the first event, the keys and values of a history stay valid when events follow, so a
state is extended at the cost of the new events alone. If they are counted from the last event, an item's position does
not depend on the length of the history, but a new event shifts all of them.

Shapes: B histories, L positions, T real events of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.history_state import HistoryState
from nextitem.core.jagged import Jagged
from nextitem.nn.attention.incremental import Window
from nextitem.nn.attention.key_value_cache import KeyValueCache, NewPositions
from nextitem.nn.attention.transformer import BLOCKS

Positions = Literal["from-last", "from-first"]
BlockName = Literal["published", "pre-norm", "ligr"]
Embed = Callable[[Tensor], Tensor]  # item ids [B, L] -> vectors [B, L, D]


class CausalEncoderConfig(configs.Config):
    """Settings that models with a causal encoder share."""

    width: int = Field(64, ge=1)
    """Width of the vectors (D)."""
    layers: int = Field(1, ge=1)
    """Number of blocks of the transformer over items."""
    heads: int = Field(1, ge=1)
    """Number of attention heads; must divide width."""
    block: BlockName = "published"
    """Kind of the transformer block (nn/attention/transformer.py)."""
    dropout: float = Field(0.4, ge=0, lt=1)
    """Dropout rate of inputs, attention and feed-forward layers."""
    max_history_length: int = Field(50, ge=1)
    """Maximum number of most recent events that the model reads."""
    window_step: int = Field(1, ge=1)
    """Number of events by which a full window advances at once; above 1, states stay valid in between."""
    positions: Positions = "from-first"
    """End of the window from which positions are counted; from-first: a state is extended at the cost of new events."""


class CausalEncoder(nn.Module):
    """Positions, blocks of causal attention and a final norm."""

    def __init__(self, config: CausalEncoderConfig) -> None:
        super().__init__()
        width, heads, dropout = config.width, config.heads, config.dropout
        if width % heads:
            raise ValueError(f"heads = {heads} must divide width = {width}")
        self.window = Window(config.max_history_length, config.window_step)
        self.counts_from_first = config.positions == "from-first"
        self.positions = nn.Embedding(self.window.length, width)  # row 0: the last event, or the first
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            BLOCKS[config.block](width, heads=heads, dropout=dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-8)

    def forward(self, items: Jagged, embed: Embed) -> Tensor:
        """Return the normalised hidden states at the events of histories within the window, [T, D]."""
        hidden_BLD = self._padded(items, embed)
        column = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device)
        return self.norm(hidden_BLD[column < items.lengths[:, None]])  # type: ignore[no-any-return]

    def last(self, items: Jagged, embed: Embed) -> Tensor:
        """Return the hidden state after the last event of each history, [B, D]; only events in the window are read."""
        recent = self.window.recent_events(items)
        hidden_TD = self(recent, embed)
        return hidden_TD[recent.offsets[1:] - 1]  # type: ignore[no-any-return]

    def read(
        self, batch: SequenceBatch, state: HistoryState | None, embed: Embed, *, stores_outputs: bool = False
    ) -> HistoryState:
        """Return the state after histories, read from the start or after `state`; each row has events to read.

        It stores keys and values [B, P, 2, H, D / H] of each block, if positions are counted from the first event. With
        `stores_outputs` it stores the normalised hidden states of all events, [B, P, 1, 1, D], as "outputs".
        """
        if state is None:
            items, num_cached, outputs = self.window.recent_events(batch.items), None, KeyValueCache()
            caches = [KeyValueCache() for _ in self.blocks if self.counts_from_first]
        else:
            items, num_cached = batch.items.last(batch.items.lengths - state.lengths), state.lengths - state.starts
            further = NewPositions(num_cached, items.lengths)
            caches = [KeyValueCache(state.cache[f"block{n}"], further) for n in range(len(self.blocks))]
            outputs = KeyValueCache(state.cache.get("outputs"), further)
        hidden_BLD = self._padded(items, embed, caches, num_cached=num_cached)
        last_BD = hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), items.lengths - 1]
        cache = {f"block{n}": layer.keys_values for n, layer in enumerate(caches) if layer.keys_values is not None}
        if stores_outputs:
            cache["outputs"] = outputs.append(self.norm(hidden_BLD)[:, :, None, None])
        return HistoryState(batch.items.lengths, self.norm(last_BD), cache)

    def _padded(
        self, items: Jagged, embed: Embed, caches: Sequence[KeyValueCache] = (), *, num_cached: Tensor | None = None
    ) -> Tensor:
        """Return the output of the blocks for right-padded histories, [B, L, D].

        Args:
            items: histories, or their new items.
            embed: returns the vectors of items.
            caches: keys and values of each block for the cached items; empty: no cache.
            num_cached: number of cached items before `items` in each history, [B]; None: no item is cached.

        """
        padded_BL = items.to_padded()
        column = torch.arange(padded_BL.shape[1], device=padded_BL.device)
        if not self.counts_from_first:
            position = items.lengths[:, None] - 1 - column
        else:
            position = column if num_cached is None else num_cached[:, None] + column
        position = position.clamp(0, self.window.length - 1).expand(padded_BL.shape)  # of padding, too
        hidden_BLD = self.dropout(embed(padded_BL) + self.positions(position))
        for block, cache in zip_longest(self.blocks, caches):
            hidden_BLD = block(hidden_BLD, cache)
        return hidden_BLD  # type: ignore[no-any-return]
