"""Session decoder: generates a list item by item; each slot reads the slots before it and the encoded history.

OneRec, arXiv 2502.18965, section 3.2. The input of a slot is a vector of the slot (its BOS), plus the vector of the
item before it in the list, plus the state of the history. A layer is

    x + self-attention(norm x);    x + attention(norm x, history);    x + feed-forward(norm x)

in which attention to the slots is causal, and the feed-forward block may be a mixture of experts (nn/experts.py).

Notable
- One token for each item. The paper has one for the BOS and one for each code; here a depth network generates the codes
  of an item from the output at its slot.
- The state after the last event enters as a summand, too. So the first slot begins where a decoder without this network
  would be, and small data learn what the list adds to it.
- Lists of one history read the same keys and values, each the part before its own beginning.

Shapes: B histories, L events, P lists of a history, S slots, D width, H heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.nn.attention.transformer import SelfAttention
from nextitem.nn.byte_dropout import ByteDropout
from nextitem.nn.experts import ExpertsConfig, feed_forward


@dataclass(frozen=True, eq=False)
class EncodedHistory:
    """Histories as the decoder reads them.

    Attributes:
        keys_values: for each layer, [B, 2, H, L, E].
        lengths: [B, P] int64, number of events that each list follows, at least 1.
        states: [B, P, D], states after the last of these events.

    """

    keys_values: tuple[Tensor, ...]
    lengths: Tensor
    states: Tensor


class HistoryAttention(nn.Module):
    """Multi-head attention to the events of a history."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def keys_values(self, events_BLD: Tensor) -> Tensor:
        """Return the keys and values of the events, [B, 2, H, L, E]."""
        B, L, _ = events_BLD.shape
        return self.key_value(events_BLD).view(B, L, 2, self.heads, -1).permute(0, 2, 3, 1, 4)  # type: ignore[no-any-return]

    def forward(self, slots_BQD: Tensor, keys_values: Tensor, is_visible: Tensor) -> Tensor:
        """Return the attention output, [B, Q, D]; `is_visible [B, 1, Q, L]` are the events that each query reads."""
        B, Q, D = slots_BQD.shape
        query = self.query(slots_BQD).view(B, Q, self.heads, D // self.heads).transpose(1, 2)
        key, value = keys_values.unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=is_visible)
        return self.output(mixed.transpose(1, 2).reshape(B, Q, D))  # type: ignore[no-any-return]


class SessionLayer(nn.Module):
    """Pre-norm layer of the decoder."""

    def __init__(self, width: int, *, heads: int, hidden: int, experts: ExpertsConfig | None, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_history, self.norm_feed = (nn.LayerNorm(width) for _ in range(3))
        self.attention = SelfAttention(width, heads=heads, dropout=dropout)
        self.history = HistoryAttention(width, heads=heads)
        self.feed = feed_forward(width, hidden=hidden, experts=experts, dropout=dropout)
        self.dropout = ByteDropout(dropout)

    def forward(self, hidden_BPSD: Tensor, keys_values: Tensor, is_visible: Tensor, is_real: Tensor | None) -> Tensor:
        """Return the hidden states after the layer, [B, P, S, D]; those of slots that are not real have no meaning."""
        attended = self.attention(self.norm_attention(hidden_BPSD.flatten(0, 1))).view_as(hidden_BPSD)
        hidden_BPSD = hidden_BPSD + self.dropout(attended)
        read = self.history(self.norm_history(hidden_BPSD).flatten(1, 2), keys_values, is_visible)
        hidden_BPSD = hidden_BPSD + self.dropout(read.view_as(hidden_BPSD))
        if is_real is None:
            return hidden_BPSD + self.dropout(self.feed(self.norm_feed(hidden_BPSD)))  # type: ignore[no-any-return]
        # Slots without an item would count as load of the experts.
        tokens_TD = hidden_BPSD[is_real]
        fed = self.dropout(self.feed(self.norm_feed(tokens_TD)))
        return hidden_BPSD.index_put(is_real.nonzero(as_tuple=True), tokens_TD + fed)


class SessionDecoder(nn.Module):
    """Decoder of lists over encoded histories.

    Args:
        width: width of the vectors (D).
        slots: number of slots with a vector of their own; later ones have the last one's.
        layers: number of layers.
        heads: number of attention heads; must divide `width`.
        hidden: number of hidden units of the feed-forward block.
        experts: settings of a mixture of experts in its place; None: dense.
        dropout: dropout rate.
        decodes_first: whether the first slot passes the layers, too; otherwise its output is the state of the history.

    """

    def __init__(
        self,
        width: int,
        *,
        slots: int,
        layers: int,
        heads: int,
        hidden: int,
        experts: ExpertsConfig | None,
        dropout: float,
        decodes_first: bool = True,
    ) -> None:
        super().__init__()
        self.decodes_first = decodes_first
        self.begin = nn.Embedding(slots, width)
        self.layers = nn.ModuleList(
            SessionLayer(width, heads=heads, hidden=hidden, experts=experts, dropout=dropout) for _ in range(layers)
        )
        self.dropout = ByteDropout(dropout)
        self.norm = nn.LayerNorm(width)

    def read(self, events_BLD: Tensor, lengths_BP: Tensor) -> EncodedHistory:
        """Return the histories, from the encoder's outputs, for lists that follow their first `lengths_BP` events."""
        keys_values = tuple(cast(SessionLayer, layer).history.keys_values(events_BLD) for layer in self.layers)
        rows = torch.arange(len(events_BLD), device=events_BLD.device)[:, None]
        return EncodedHistory(keys_values, lengths_BP, events_BLD[rows, lengths_BP - 1])

    def forward(self, history: EncodedHistory, former_BPsD: Tensor, is_real: Tensor | None = None) -> Tensor:
        """Return the states from which the items of the slots are generated, [B, P, S, D].

        Args:
            history: the encoded histories.
            former_BPsD: vectors of the first S - 1 items of each list.
            is_real: [B, P, S] bool, the slots that count; those after them may have any state. None: all.

        """
        num_slots = former_BPsD.shape[2] + 1
        if num_slots == 1 and not self.decodes_first:
            return history.states[:, :, None]
        places = torch.arange(num_slots, device=former_BPsD.device).clamp(max=len(self.begin.weight) - 1)
        hidden_BPSD = F.pad(self.dropout(former_BPsD), (0, 0, 1, 0)) + self.begin(places)
        hidden_BPSD = hidden_BPSD + history.states[:, :, None]
        events = torch.arange(history.keys_values[0].shape[3], device=hidden_BPSD.device)
        is_visible = events < history.lengths.repeat_interleave(num_slots, dim=1)[:, None, :, None]
        for layer, keys_values in zip(self.layers, history.keys_values, strict=True):
            hidden_BPSD = layer(hidden_BPSD, keys_values, is_visible, is_real)
        decoded_BPSD: Tensor = self.norm(hidden_BPSD)
        if self.decodes_first:
            return decoded_BPSD
        return torch.cat([history.states[:, :, None], decoded_BPSD[:, :, 1:]], dim=2)
