"""ONNX parts of generators: the encoded history, and what a step of a search needs.

Shapes: B requests, R beams of all requests, T tokens of a history, S codes of a prefix, D width, H heads, E head width,
V nodes of a trie.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.models.depth_decoder import DepthDecoder
from nextitem.models.tiger import Tiger
from nextitem.nn.attention.incremental import Window
from nextitem.nn.attention.t5 import DecoderLayer
from nextitem.pipeline.exporting.history_modules import CausalHistory, items_input, latest_events, vectors_read
from nextitem.pipeline.exporting.onnx_files import Input


class DepthStart(nn.Module):
    """The states of a depth decoder at the root, [B, t, D]."""

    def __init__(self, model: DepthDecoder) -> None:
        super().__init__()
        self.inputs = (items_input(model.num_items),)
        self.history, self.deeper = CausalHistory(model.encoder, vectors_read(model, model._embed)), model.deeper

    def forward(self, *values: Tensor) -> Tensor:
        """Return the states at the root."""
        return self.deeper.start(self.history(values[0]))


class DepthLevel(nn.Module):
    """The states of a depth decoder one level deeper, at nodes of depth `level` (from 1)."""

    def __init__(self, model: DepthDecoder, level: int) -> None:
        super().__init__()
        self.deeper, self.level = model.deeper, level
        width = model.config.width
        num_states = 1 if model.config.depth_network == "mlp" else level + 1
        self.inputs = (
            Input("states", "float32", ("rows", num_states, width), "states of the beams, one level above"),
            Input("vectors", "float32", ("rows", width), "vectors of the beams' nodes"),
        )

    def forward(self, *values: Tensor) -> Tensor:
        """Return the states at the nodes."""
        states, vectors = values
        return self.deeper(states, vectors, level=self.level)  # type: ignore[no-any-return]


@torch.no_grad()
def node_vectors(model: DepthDecoder) -> Tensor:
    """Return the vectors of all nodes by which they are scored, [V, D]; zeros for the root and for sentinels."""
    starts, levels = model.trie.level_starts, model.trie.num_levels
    vectors = torch.zeros(starts[-1], model.config.width)
    for level in range(levels):
        nodes = torch.arange(starts[level + 1], starts[level + 2] - 1)
        items = model.items.weight if level + 1 == levels else None
        vectors[nodes] = model.nodes(nodes, level=level, tree=model.tree, items=items, content=model.content)
    return vectors


class TigerStart(nn.Module):
    """Keys and values of the encoded history for each decoder layer, and 0 or -inf for each token.

    Attributes:
        inputs: what `forward` takes: histories and, if the model has a user token, keys of users.
        outputs: names of what it returns.

    """

    def __init__(self, model: Tiger) -> None:
        super().__init__()
        self.window, self.first_input = Window(model.config.max_history_length), model.first_input
        self.user_buckets = model.config.user_buckets
        self.inputs: tuple[Input, ...] = (items_input(model.num_items),)
        if self.user_buckets:
            meaning = "keys of the users (core.ids.stable_keys); 0: a visitor"
            self.inputs += (Input("users", "int64", ("batch",), meaning, high=1000),)
        self.tokens, self.encoder_bias, self.norm = model.tokens, model.encoder_bias, model.encoder_norm
        self.encoder = model.encoder
        self.cross = nn.ModuleList(cast(DecoderLayer, layer).cross for layer in model.decoder)
        self.register_buffer("codes", model.codes + torch.tensor(model.code_offsets), persistent=False)
        names = [f"{name}_{number}" for number in range(len(self.cross)) for name in ("keys", "values")]
        self.outputs = ("padding", *names)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the padding [B, T], and keys and values [B, H, T, E] of each layer."""
        lengths, items_BP = latest_events(self.window, values[0])
        tokens_BT = cast(Tensor, self.codes)[items_BP].flatten(1)
        num_levels = cast(Tensor, self.codes).shape[1]
        is_real = torch.arange(tokens_BT.shape[1], device=lengths.device) < (lengths * num_levels)[:, None]
        if self.user_buckets:
            users = values[1]
            user_tokens = self.first_input + 1 + torch.where(users > 0, users % self.user_buckets + 1, 0)
            tokens_BT = torch.cat([user_tokens[:, None], tokens_BT], dim=1)
            is_real = F.pad(is_real.float(), (1, 0), value=1.0) > 0
        places = torch.arange(tokens_BT.shape[1], device=lengths.device)
        padding = torch.where(is_real, 0.0, -torch.inf)
        bias = self.encoder_bias(places, places)[None] + padding[:, None, None]
        hidden = self.tokens(tokens_BT)
        for layer in self.encoder:
            hidden = layer(hidden, bias)
        encoded = self.norm(hidden)
        parts = [part for cross in self.cross for part in cross.keys_values(encoded)]  # type: ignore[operator]
        return padding, *parts


class TigerDecode(nn.Module):
    """The logits of all codes of all levels after the prefixes of beams, [R, codes].

    A prefix is as short as a semantic ID, so each step reads it again.
    """

    def __init__(self, model: Tiger) -> None:
        super().__init__()
        self.tokens, self.bias, self.norm = model.tokens, model.decoder_bias, model.decoder_norm
        self.decoder, self.output = model.decoder, model.output
        heads, head_width = model.config.heads, model.config.head_width
        meaning = "the first input (number of all codes), then codes, each plus the number of codes of earlier levels"
        self.inputs = (
            Input("tokens", "int64", ("rows", "steps"), meaning, high=model.first_input + 1),
            Input("requests", "int64", ("rows",), "number of the request of each beam, from 0", high=3),
            Input("padding", "float32", ("batch", "tokens"), "output of encode.onnx"),
            *(
                Input(f"{name}_{number}", "float32", ("batch", heads, "tokens", head_width), "output of encode.onnx")
                for number in range(len(model.decoder))
                for name in ("keys", "values")
            ),
        )

    def forward(self, *values: Tensor) -> Tensor:
        """Return the logits after each prefix."""
        tokens, requests, padding, *cross = values
        places = torch.arange(tokens.shape[1], device=tokens.device)
        bias = self.bias(places, places)[None].masked_fill(places > places[:, None], -torch.inf)
        cross_bias = padding[requests][:, None, None]
        hidden = self.tokens(tokens)
        for number, part in enumerate(self.decoder):
            layer = cast(DecoderLayer, part)
            keys_values = cross[2 * number][requests], cross[2 * number + 1][requests]
            hidden = hidden + layer.attention(layer.norm_attention(hidden), bias)
            hidden = hidden + layer.cross(layer.norm_cross(hidden), keys_values, cross_bias)
            hidden = hidden + layer.feed(layer.norm_feed(hidden))
        return self.output(self.norm(hidden[:, -1]))  # type: ignore[no-any-return]
