"""Encoders of histories over padded tensors, with the weights of the package's models, for ONNX.

The models read jagged histories, whose shapes depend on the data. These modules compute the same vectors from histories
that are padded on the right. Everything here is causal or masked, so that padding reaches no real event.

Shapes: B requests, L events of a history, P of them that are read, D width, H heads, T tokens of a history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.vector_model import VectorModel
from nextitem.models.gru4rec import GRU4Rec
from nextitem.models.hstu import HSTU
from nextitem.models.nextitnet import NextItNet
from nextitem.models.sasrec import SASRec
from nextitem.models.sr_gnn import SRGNN
from nextitem.nn.attention.causal_encoder import CausalEncoder
from nextitem.nn.attention.hstu import HSTULayer
from nextitem.nn.attention.incremental import Window
from nextitem.nn.recurrent import GRULayer, OneHotGRULayer
from nextitem.ops.hstu_attention import TIME_BUCKETS, time_buckets
from nextitem.pipeline.exporting.onnx_files import Input

ITEMS = "item numbers of the history, oldest first; 0 after the last event. All zeros: no history"
TIMES = "times of the events in milliseconds since 1970; 0 after the last event, and if times are unknown"
REQUEST_TIMES = "times of the requests in milliseconds since 1970; 0: no times are known, of events neither"
ACTIONS = "codes of the events' actions (events.json), from 1; 0: unknown"


def items_input(num_items: int) -> Input:
    """Return the input that every encoder has: the histories."""
    return Input("items", "int64", ("batch", "length"), ITEMS, high=num_items + 1)


def timestamps_input() -> Input:
    """Return the input of the times of events."""
    return Input("timestamps", "int64", ("batch", "length"), TIMES, high=10**12)


def request_times_input() -> Input:
    """Return the input of the times of requests."""
    return Input("request_times", "int64", ("batch",), REQUEST_TIMES, high=2 * 10**12)


class HistoryModule(nn.Module):
    """An encoder of padded histories: `forward` returns the vectors of the requests, [B, D].

    Attributes:
        inputs: what `forward` takes, in order; the first are the histories.

    """

    inputs: tuple[Input, ...]

    def __init__(self, model: VectorModel) -> None:
        super().__init__()
        self.inputs = (items_input(model.num_items),)


def latest_events(window: Window, items_BL: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Return the numbers of events that are read [B], and these events of the histories and columns, [B, P] each.

    They are padded with 0 on the right. P is the smaller one of L and the length of the window.
    """
    lengths = (items_BL > 0).sum(1)
    starts = window.starts(lengths)
    places = torch.arange(torch.sym_min(items_BL.shape[1], window.length), device=items_BL.device)
    is_read = places < (lengths - starts)[:, None]
    indices = (starts[:, None] + places).masked_fill(~is_read, 0)
    return lengths - starts, *(column.gather(1, indices) * is_read for column in (items_BL, *columns))


def last_of(hidden_BPD: Tensor, lengths: Tensor) -> Tensor:
    """Return the state after the last event of each history, [B, D]; the first state of an empty history."""
    places = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, hidden_BPD.shape[2])
    return hidden_BPD.gather(1, places)[:, 0]


class CausalHistory(nn.Module):
    """The causal encoder over vectors of events: the state after the last event, [B, D].

    Args:
        encoder: the encoder of a model.
        vectors: [N + 1, D], the vectors as which the items are read, without position.
        factor: factor of these vectors.

    """

    def __init__(self, encoder: CausalEncoder, vectors: Tensor, factor: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.factor = encoder, factor
        self.vectors = nn.Parameter(vectors.detach(), requires_grad=False)

    def forward(self, items_BL: Tensor) -> Tensor:
        """Return the normalised state after the last event that is read."""
        encoder = self.encoder
        lengths, items_BP = latest_events(encoder.window, items_BL)
        places = torch.arange(items_BP.shape[1], device=items_BP.device)
        positions = places.expand(items_BP.shape) if encoder.counts_from_first else lengths[:, None] - 1 - places
        hidden_BPD = F.embedding(items_BP, self.vectors) * self.factor + encoder.positions(positions.clamp(min=0))
        for block in encoder.blocks:
            hidden_BPD = block(hidden_BPD)
        return encoder.norm(last_of(hidden_BPD, lengths))  # type: ignore[no-any-return]


class SASRecHistory(HistoryModule):
    """The request vector of SASRec; features of items are part of the table of input vectors."""

    def __init__(self, model: SASRec) -> None:
        super().__init__(model)
        self.scale = (model.scale_users,)  # in a tuple, so that the model is no submodule
        if model.features is None:
            self.history = CausalHistory(model.encoder, model.items.weight, model.config.width**0.5)
        else:
            self.history = CausalHistory(model.encoder, vectors_read(model, model._embed))

    def forward(self, *values: Tensor) -> Tensor:
        """Return the vectors of the requests, [B, D]."""
        return self.scale[0](self.history(values[0]))


class GRU4RecHistory(HistoryModule):
    """The request vector of GRU4Rec, by the GRU of ONNX, which stops at the last event of each history."""

    def __init__(self, model: GRU4Rec) -> None:
        super().__init__(model)
        self.window, self.widths = model.window, model.config.layers
        first = model.layers[0]
        if isinstance(first, OneHotGRULayer):
            table = first.inputs.weight
        else:
            table = (model.items if model.inputs is None else model.inputs).weight
        self.vectors = nn.Parameter(table.detach(), requires_grad=False)
        self.resets_first = [isinstance(layer, OneHotGRULayer) for layer in model.layers]
        for number, layer in enumerate(model.layers):
            for name, weight in _onnx_gru(cast("GRULayer | OneHotGRULayer", layer)).items():
                self.register_buffer(f"{name}_{number}", weight)

    def forward(self, *values: Tensor) -> Tensor:
        """Return the vectors of the requests, [B, D]."""
        lengths, items_BP = latest_events(self.window, values[0])
        sequence_BPE, last_BD = F.embedding(items_BP, self.vectors), None
        for number, width in enumerate(self.widths):
            length, batch = items_BP.shape[1], items_BP.shape[0]
            weights = [getattr(self, f"{name}_{number}") for name in ("inputs", "states", "biases")]
            states, last = torch.onnx.ops.symbolic_multi_out(
                "GRU",
                (sequence_BPE.transpose(0, 1), *weights, lengths.clamp(min=1).to(torch.int32)),
                {"hidden_size": width, "linear_before_reset": int(not self.resets_first[number])},
                dtypes=(torch.float32, torch.float32),
                shapes=((length, 1, batch, width), (1, batch, width)),
                version=14,
            )
            sequence_BPE, last_BD = states[:, 0].transpose(0, 1), last[0]
        assert last_BD is not None
        return last_BD


class NextItNetHistory(HistoryModule):
    """The request vector of NextItNet: the last state of the convolutions, and a one."""

    def __init__(self, model: NextItNet) -> None:
        super().__init__(model)
        self.window = Window(min(model.config.max_history_length, model.receptive_field))
        self.items, self.blocks = model.items, model.blocks

    def forward(self, *values: Tensor) -> Tensor:
        """Return the vectors of the requests, [B, D + 1]."""
        lengths, items_BP = latest_events(self.window, values[0])
        return F.pad(last_of(self.blocks(self.items(items_BP)), lengths), (0, 1), value=1.0)


class SRGNNHistory(HistoryModule):
    """The request vector of SR-GNN, with the graph of each session as a dense matrix.

    The node of an event is the place at which its item occurs first; other places are nodes without an edge.
    """

    def __init__(self, model: SRGNN) -> None:
        super().__init__(model)
        self.window, self.steps = Window(model.config.max_history_length), model.config.steps
        self.items, self.step = model.items, model.graph_step
        self.attend_last, self.attend_node = model.attend_last, model.attend_node
        self.attention, self.join = model.attention, model.join

    def forward(self, *values: Tensor) -> Tensor:
        """Return the vectors of the requests, [B, D]."""
        lengths, items_BP = latest_events(self.window, values[0])
        places = torch.arange(items_BP.shape[1], device=items_BP.device)
        is_real_BP = places < lengths[:, None]
        # Argmax returns the first of equal entries, which is the node of the event.
        node_BP = (items_BP[:, :, None] == items_BP[:, None, :]).float().argmax(2)
        of_event = (node_BP[:, :, None] == places).float() * is_real_BP[..., None]  # [B, events, nodes]
        edges = F.pad(of_event, (0, 0, 0, 1))[:, 1:].transpose(1, 2) @ of_event  # [B, ends, starts]
        state_BPD = self.items(items_BP)
        for _ in range(self.steps):
            received = _mean(edges, self.step.incoming(state_BPD))
            sent = _mean(edges.transpose(1, 2), self.step.outgoing(state_BPD))
            state_BPD = _gru_cell(self.step.cell, torch.cat([received, sent], dim=2), state_BPD)
        events_BPD = of_event @ state_BPD
        last_BD = last_of(events_BPD, lengths)
        gates = torch.sigmoid(self.attend_last(last_BD)[:, None] + self.attend_node(events_BPD))
        overall_BD = (self.attention(gates) * events_BPD * is_real_BP[..., None]).sum(1)
        return self.join(torch.cat([last_BD, overall_BD], dim=1))  # type: ignore[no-any-return]


class HSTUHistory(HistoryModule):
    """The request vector of HSTU, by attention over padded histories.

    A request without times has no time bias.
    """

    borders: Tensor

    def __init__(self, model: HSTU) -> None:
        super().__init__(model)
        self.scale, self.window, self.tokens_per_event = (model.scale_users,), model.window, model.tokens_per_event
        self.items, self.actions, self.positions, self.layers = (
            model.items,
            model.actions,
            model.positions,
            model.layers,
        )
        self.factor, self.num_actions = model.config.width**0.5, model.config.num_actions
        self.register_buffer("borders", bucket_borders(time_buckets, TIME_BUCKETS))
        self.inputs += (timestamps_input(), request_times_input())
        if self.actions is not None:
            self.inputs += (Input("actions", "int64", ("batch", "length"), ACTIONS, high=self.num_actions + 1),)

    def forward(self, *values: Tensor) -> Tensor:
        """Return the vectors of the requests, [B, D]."""
        items_BL, times_BL, request_times, *actions = values
        lengths, items_BP, key_times, *read_actions = latest_events(self.window, items_BL, times_BL, *actions)
        places = torch.arange(items_BP.shape[1], device=items_BP.device)
        # An event's query time is the time of the next event; the last one's is that of the request.
        query_times = torch.where(
            places == (lengths - 1)[:, None], request_times[:, None], F.pad(key_times, (0, 1))[:, 1:]
        )
        hidden_BTD = self.items(items_BP) * self.factor
        if self.actions is not None:
            actions_BPD = self.actions(read_actions[0].clamp(max=self.num_actions)) * self.factor
            hidden_BTD = torch.stack([hidden_BTD, actions_BPD], 2).flatten(1, 2)
            query_times = torch.stack([key_times, query_times], 2).flatten(1, 2)
            key_times = key_times.repeat_interleave(2, dim=1)
        places = torch.arange(hidden_BTD.shape[1], device=items_BP.device)
        hidden_BTD = hidden_BTD + self.positions(places)
        distances = places[:, None] - places
        buckets = self._buckets(query_times[:, :, None] - key_times[:, None, :])
        has_times = (request_times > 0)[:, None, None].float()
        for part in self.layers:
            layer = cast(HSTULayer, part)
            by_distance = layer.position_weights[layer.max_length - 1 - distances.clamp(min=0)]
            bias = by_distance + layer.time_weights[buckets] * has_times
            hidden_BTD = _hstu_layer(layer, hidden_BTD, bias, (distances >= 0).float())
        return self.scale[0](last_of(hidden_BTD, lengths * self.tokens_per_event))

    def _buckets(self, elapsed: Tensor) -> Tensor:
        """Return `time_buckets`; a logarithm that is rounded otherwise is corrected by the exact borders."""
        seconds = (elapsed.float() / 1000).clamp(min=1)
        bucket = (seconds.log() / 0.301).long().clamp(0, TIME_BUCKETS - 1)
        return bucket - (elapsed < self.borders[bucket]).long() + (elapsed >= self.borders[bucket + 1]).long()


def bucket_borders(bucket_of: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Return the smallest number of each bucket 0 .. count - 1, and a last one above all, [count + 1] int64.

    `bucket_of` is a function of int64 numbers [n] that never falls; numbers below 0 are in the first bucket.
    """
    low, high = torch.zeros(count, dtype=torch.int64), torch.full((count,), 2**61)
    buckets = torch.arange(count)
    for _ in range(62):
        middle = (low + high) // 2
        is_reached = bucket_of(middle) >= buckets
        low, high = torch.where(is_reached, low, middle + 1), torch.where(is_reached, middle, high)
    high[0] = -(2**61)
    return F.pad(high, (0, 1), value=2**62)


def _hstu_layer(layer: HSTULayer, hidden_BTD: Tensor, bias_BTT: Tensor, mask_TT: Tensor) -> Tensor:
    """Return the output of an HSTU layer for padded tokens, [B, T, D]."""
    B, T, _ = hidden_BTD.shape
    normed = F.layer_norm(hidden_BTD, hidden_BTD.shape[-1:], eps=1e-6)
    gate, *parts = F.silu(layer.project(normed)).chunk(4, dim=2)
    value, query, key = (part.view(B, T, layer.heads, layer.head_width).transpose(1, 2) for part in parts)
    weights = F.silu(query @ key.transpose(2, 3) + bias_BTT[:, None]) * mask_TT / float(layer.max_length)
    mixed = (weights @ value).transpose(1, 2).reshape(B, T, layer.heads * layer.head_width)
    gated = gate * F.layer_norm(mixed, mixed.shape[-1:], eps=1e-6)
    out: Tensor = (normed if layer.normed_residual else hidden_BTD) + layer.output(gated)
    return out


def _mean(weights: Tensor, messages: Tensor) -> Tensor:
    """Return the mean of the messages [B, P, D] to each node by the weights [B, P, P]; 0 without an edge."""
    return weights @ messages / weights.sum(2, keepdim=True).clamp(min=1)


def _gru_cell(cell: nn.GRUCell, inputs: Tensor, state: Tensor) -> Tensor:
    """Return the next states of a GRU cell, of the shape of `state`."""
    of_inputs = F.linear(inputs, cell.weight_ih, cell.bias_ih).chunk(3, dim=-1)
    of_state = F.linear(state, cell.weight_hh, cell.bias_hh).chunk(3, dim=-1)
    reset, update = (torch.sigmoid(of_inputs[gate] + of_state[gate]) for gate in (0, 1))
    new = torch.tanh(of_inputs[2] + reset * of_state[2])
    return (1 - update) * new + update * state


def _onnx_gru(layer: GRULayer | OneHotGRULayer) -> dict[str, Tensor]:
    """Return the weights of a layer as the GRU of ONNX has them: gates in the order update, reset, new."""
    if isinstance(layer, GRULayer):
        order = torch.tensor([1, 0, 2])  # torch: reset, update, new
        parts = [parameter.detach().unflatten(0, (3, -1))[order].flatten(0, 1) for parameter in layer.gru.parameters()]
        return {"inputs": parts[0][None], "states": parts[1][None], "biases": torch.cat(parts[2:])[None]}
    # The update gate of this layer is one minus that of ONNX, so its weights change their sign.
    width = layer.candidate.shape[0]
    new, reset, update = torch.eye(3 * width).chunk(3)
    bias_new, bias_reset, bias_update = layer.bias.detach().chunk(3)
    reset_states, update_states = layer.gates.detach().chunk(2)
    biases = torch.cat([-bias_update, bias_reset, bias_new, torch.zeros(3 * width)])
    return {
        "inputs": torch.cat([-update, reset, new])[None],
        "states": torch.cat([-update_states, reset_states, layer.candidate.detach()])[None],
        "biases": biases[None],
    }


@torch.no_grad()
def vectors_read(model: Any, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the vectors as which all items are read, [N + 1, D]."""
    parts = torch.arange(model.num_items + 1, device=model.popularity.device).split(2**16)
    return torch.cat([embed(part[None])[0] for part in parts])
