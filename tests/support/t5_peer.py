"""TIGER's encoder-decoder in the transformers library, with copied weights: oracle of tests and peer of benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PrefixConstrainedLogitsProcessor, T5Config
from transformers import T5ForConditionalGeneration as T5

from nextitem.core.batch import SequenceBatch
from nextitem.models.tiger import Tiger
from nextitem.nn.attention.t5 import DecoderLayer, EncoderLayer, T5CrossAttention, T5SelfAttention


def as_transformers(model: Tiger) -> T5:
    """Return a T5 with the weights of `model` (one hidden feed-forward layer, no user tokens)."""
    settings = model.config
    assert settings.ff_layers == 1
    tokens = model.tokens.num_embeddings
    peer = T5(
        T5Config(
            vocab_size=tokens + 1,  # the last one is padding
            d_model=settings.width,
            d_kv=settings.head_width,
            d_ff=settings.ff_width,
            num_layers=settings.encoder_layers,
            num_decoder_layers=settings.decoder_layers,
            num_heads=settings.heads,
            dropout_rate=0.0,
            tie_word_embeddings=False,
            pad_token_id=tokens,
            eos_token_id=None,
            decoder_start_token_id=model.first_input,
        )
    ).eval()
    # Only codes are ever generated; the peer's output covers all tokens.
    peer.lm_head = nn.Linear(settings.width, tokens + 1, bias=False)
    with torch.no_grad():
        peer.lm_head.weight.zero_()
        peer.lm_head.weight[: model.first_input] = model.output.weight
        peer.shared.weight[:tokens] = model.tokens.weight
        for stack, bias, norm, layers in (
            (peer.encoder, model.encoder_bias, model.encoder_norm, model.encoder),
            (peer.decoder, model.decoder_bias, model.decoder_norm, model.decoder),
        ):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.copy_(bias.weight.weight)
            stack.final_layer_norm.weight.copy_(norm.weight)
            for block, layer in zip(stack.block, layers, strict=True):
                _copy_layer(block.layer, layer)
    return peer


def encoder_inputs(model: Tiger, batch: SequenceBatch) -> dict[str, Tensor]:
    """Return the peer's input_ids and attention_mask for a batch of requests."""
    items = batch.items.last(model.config.max_history_length).to_padded()
    starts = torch.tensor(model.code_offsets)
    ids = (model.codes[items] + starts).flatten(1)
    mask = (items > 0).repeat_interleave(len(model.sizes), dim=1)
    return {"input_ids": ids.masked_fill(~mask, model.tokens.num_embeddings), "attention_mask": mask.long()}


class LevelSoftmax(LogitsProcessor):  # type: ignore[misc]
    """A processor that turns log-softmax over all tokens into log-softmax over the codes of the next level."""

    def __init__(self, model: Tiger) -> None:
        self.starts, self.sizes = model.code_offsets, model.sizes

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        level = input_ids.shape[1] - 1
        level_scores = scores[:, self.starts[level] : self.starts[level] + self.sizes[level]]
        return scores - level_scores.logsumexp(1, keepdim=True)


class DictTrie:
    """The catalogue's code sequences as nested dicts of tokens, as users of `generate` write them."""

    def __init__(self, model: Tiger) -> None:
        self.root: dict[int, Any] = {}
        self.items: dict[tuple[int, ...], list[int]] = {}
        starts = torch.tensor(model.code_offsets)
        for item, tokens in enumerate((model.codes[1:] + starts).tolist(), start=1):
            node = self.root
            for token in tokens:
                node = node.setdefault(token, {})
            self.items.setdefault(tuple(tokens), []).append(item)

    def __call__(self, batch_id: int, sent: Tensor) -> list[int]:
        node = self.root
        for token in sent.tolist()[1:]:
            node = node.get(token, {})
        return list(node)


def generate(peer: T5, model: Tiger, trie: DictTrie, batch: SequenceBatch, width: int) -> tuple[Tensor, Tensor]:
    """Return token sequences [B, width, M] and scores [B, width] of the peer's constrained beam search."""
    output = peer.generate(
        **encoder_inputs(model, batch),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=len(model.sizes),
        do_sample=False,
        length_penalty=0.0,  # sums of log-probabilities, as ours
        logits_processor=LogitsProcessorList([LevelSoftmax(model), PrefixConstrainedLogitsProcessor(trie, width)]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    shape = (batch.num_requests, width)
    return output.sequences[:, 1:].view(*shape, -1), output.sequences_scores.view(shape)


def _copy_layer(theirs: nn.ModuleList, ours: nn.Module) -> None:
    assert isinstance(ours, EncoderLayer | DecoderLayer)
    attentions: list[tuple[str, T5SelfAttention | T5CrossAttention]] = [("0.SelfAttention", ours.attention)]
    norms = [ours.norm_attention]
    if isinstance(ours, DecoderLayer):
        attentions.append(("1.EncDecAttention", ours.cross))
        norms.append(ours.norm_cross)
    for path, source in attentions:
        if isinstance(source, T5SelfAttention):
            query, key, value = source.query_key_value.weight.chunk(3)
        else:
            query, (key, value) = source.query.weight, source.key_value.weight.chunk(2)
        for name, weight in (("q", query), ("k", key), ("v", value), ("o", source.output.weight)):
            theirs.get_parameter(f"{path}.{name}.weight").copy_(weight)
    feed_forward = theirs.get_submodule(f"{len(theirs) - 1}.DenseReluDense")
    for number, name in enumerate(("wi", "wo")):
        feed_forward.get_parameter(f"{name}.weight").copy_(ours.feed.get_parameter(f"layers.{number}.weight"))
    for layer, norm in zip(theirs, [*norms, ours.norm_feed], strict=True):
        layer.get_parameter("layer_norm.weight").copy_(norm.weight)
