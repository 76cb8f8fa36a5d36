"""Floating-point operations of training, counted from the sizes of a model and the real lengths of the histories.

A product of [m, k] and [k, n] has 2 m k n operations. Counted are the products of matrices, forward and backward. Not
counted are padding, what a kernel computes a second time in the backward pass, and what is no product: norms,
activations, look-ups, and the optimizer. So a count belongs to the model and its data, not to a machine or a kernel.
The backward pass of a product has two products of the same size, one if an input needs no gradient. Attention counts
all n ** 2 pairs of a history of n tokens, causal or not, as torch's own counter does.

Tests compare each counter with `torch.utils.flop_counter.FlopCounterMode`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.examples.session_lanes import LaneBatch
from nextitem.data.examples.stochastic_length import stochastic_length
from nextitem.losses.objectives import FullSoftmax
from nextitem.models.gru4rec import GRU4Rec
from nextitem.models.hstu import HSTU
from nextitem.models.rankers.hstu_ranking import HSTURanking
from nextitem.models.sasrec import SASRec
from nextitem.models.tiger import Tiger
from nextitem.nn.attention.stu import STULayer
from nextitem.nn.attention.t5 import DecoderLayer


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a training batch, or of several.

    Attributes:
        forward: operations of the forward pass.
        backward: operations of the backward pass.
        targets: number of targets that the loss is a mean over.

    """

    forward: float = 0.0
    backward: float = 0.0
    targets: int = 0

    @property
    def total(self) -> float:
        """Operations of both passes."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward, self.targets + other.targets)


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters: those of look-up tables (items, positions, codes), and all others."""

    embedding: int
    other: int


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Return the numbers of parameters of a model."""
    tables = {
        id(table.weight): table.weight.numel()
        for table in model.modules()
        if isinstance(table, nn.Embedding | nn.EmbeddingBag)
    }
    embedding = sum(tables.values())
    return ParameterCounts(embedding, sum(each.numel() for each in model.parameters()) - embedding)


def count_epoch(model: Recommender, batches: Iterable[Any], counter: str) -> Flops:
    """Return the operations of the training batches of an epoch.

    Args:
        model: the model, whose sizes are read; its weights do not matter.
        batches: the batches of an epoch.
        counter: name of the function of this module that counts those of a batch.

    """
    count = globals()[counter]
    return sum((count(model, batch) for batch in batches), Flops())


def sasrec(model: SASRec, batch: NextItemBatch) -> Flops:
    """Return the operations of a batch of SASRec: blocks, attention, and the objective."""
    config, lengths = model.config, batch.items.lengths
    num_tokens, num_targets = int(lengths.sum()), batch.loss_count
    forward = _linear(model.encoder, num_tokens)
    forward += _attention(_pairs(lengths), width=config.width, layers=config.layers)
    forward += _scores(num_targets, _num_competitors(config.objective, model), width=config.width)
    return Flops(forward, 2 * forward, num_targets)


def hstu(model: HSTU, batch: NextItemBatch) -> Flops:
    """Return the operations of a batch of HSTU: layers, pointwise attention, and the objective."""
    config = model.config
    if config.stochastic_length is not None:  # the same sample as in training
        generator = torch.Generator().manual_seed(batch.seed)
        batch = stochastic_length(
            batch, max_length=config.max_history_length, alpha=config.stochastic_length, generator=generator
        )
    lengths, num_targets = batch.items.lengths * model.tokens_per_event, batch.loss_count
    forward = _linear(model.layers, int(lengths.sum()))
    forward += _attention(_pairs(lengths), width=config.heads * config.head_width, layers=config.layers)
    forward += _scores(num_targets, _num_competitors(config.objective, model), width=config.width)
    return Flops(forward, 2 * forward, num_targets)


def hstu_ranking(model: HSTURanking, batch: SequenceBatch) -> Flops:
    """Return the operations of a batch of hstu-ranking: shared histories, candidates that attend to them, the head.

    Tokens of a history attend in all layers but the last, of which candidates read keys and values alone. A candidate
    counts all tokens of its stream, as a token of a history does, or as many as the window of a layer has.
    """
    assert batch.candidates is not None
    config, streams = model.config, model.reader.read(batch)
    lengths, num_candidates = streams.items.lengths, len(batch.candidates.values)
    num_tokens, width = int(lengths.sum()), config.heads * config.head_width
    owners = streams.streams[batch.candidates.row_ids()]
    forward = _linear(model, num_candidates) + _linear(model.item_tokens, num_tokens)
    forward += _linear(model.layers[:-1], num_tokens) + _linear(cast(STULayer, model.layers[-1]).projection, num_tokens)
    if config.actions == "summed":
        forward += _linear(model.action_tokens, num_tokens) - _linear(model.action_tokens, num_candidates)
    for number, layer in enumerate(model.layers, start=1):
        visible = lengths if layer.window is None else lengths.clamp(max=cast(int, layer.window))
        num_pairs = int(visible[owners].sum()) + (int((lengths * visible).sum()) if number < config.layers else 0)
        forward += _attention(num_pairs, width=width, layers=1)
    return Flops(forward, 2 * forward, batch.num_requests)


def gru4rec(model: GRU4Rec, batch: LaneBatch) -> Flops:
    """Return the operations of one step of GRU4Rec's lanes.

    No gradient goes back to the former state, so the backward pass of a product with it has one product. A sampled item
    counts as often as it is sampled, although the cross-entropy scores equal items once.
    """
    config, num_lanes = model.config, len(batch.items)
    num_targets = int((batch.targets > 0).sum())
    forward = backward = 0.0
    if config.embedding == "one-hot":
        raise UserError("model.embedding = one-hot: its operations are not counted; use shared or separate")
    width = config.layers[-1] if model.inputs is None else config.embedding_width
    for units in config.layers:
        of_input, of_state = (2.0 * num_lanes * inputs * 3 * units for inputs in (width, units))
        forward += of_input + of_state
        backward += 2 * of_input + of_state
        width = units
    if num_targets:
        scores = _scores(num_targets, num_targets + config.num_negatives, width=width)
        forward, backward = forward + scores, backward + 2 * scores
    return Flops(forward, backward, num_targets)


def tiger(model: Tiger, batch: SequenceBatch) -> Flops:
    """Return the operations of a batch of TIGER: encoder, decoder with attention to the encoder, and logits of codes.

    The targets of a request share its encoded history, and its keys and values.
    """
    assert batch.targets is not None
    config, num_levels, num_requests = model.config, len(model.sizes), batch.num_requests
    sources = batch.items.lengths * num_levels + bool(config.user_buckets)
    num_source = int(sources.sum())
    targets = torch.bincount(batch.targets.row_ids()[batch.targets.values > 0], minlength=num_requests)
    num_targets = int(targets.sum())
    num_positions = num_targets * num_levels
    inner = config.heads * config.head_width
    forward = _attention(_pairs(sources), width=inner, layers=config.encoder_layers)
    forward += sum(_linear(layer, num_source) for layer in model.encoder)
    for layer in model.decoder:
        key_value = _linear(cast(DecoderLayer, layer).cross.key_value, 1)
        forward += key_value * num_source + (_linear(layer, 1) - key_value) * num_positions
    pairs = num_targets * num_levels**2 + int((sources * targets).sum()) * num_levels
    forward += _attention(pairs, width=inner, layers=config.decoder_layers)
    forward += _scores(num_targets, sum(model.sizes), width=config.width)
    return Flops(forward, 2 * forward, num_targets)


def _linear(module: nn.Module, num_tokens: int) -> float:
    """Return the forward operations of all linear layers of a module, each applied once to every token."""
    weights = [layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear)]
    return 2.0 * num_tokens * sum(weights)


def _attention(num_pairs: int, *, width: int, layers: int) -> float:
    """Return the forward operations of queries times keys, and of weights times values, in all layers.

    `width` is that of all heads together.
    """
    return 4.0 * num_pairs * width * layers


def _scores(num_targets: int, num_items: int, *, width: int) -> float:
    """Return the forward operations of the inner products of each target's hidden state with `num_items` vectors."""
    return 2.0 * num_targets * num_items * width


def _pairs(lengths: Tensor) -> int:
    """Return the number of pairs of tokens of the same sequence, each history with its real length."""
    return int((lengths.long() ** 2).sum())


def _num_competitors(objective: Any, model: Recommender) -> int:
    """Return the number of items that a target is scored against: the catalogue, or the sampled negatives.

    The score of the target itself is computed without a product of matrices.
    """
    return model.num_items if isinstance(objective, FullSoftmax) else int(objective.num_negatives)
