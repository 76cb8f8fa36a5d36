"""COBRA: generates the next item's codes, then selects the item with a dense vector.

Yang et al., Sparse Meets Dense: Unified Generative Recommendations with Cascaded Sparse-Dense Representations, arXiv
2503.02453. A history alternates between an item's codes and a vector computed from its content; a causal decoder
predicts the next item's codes one by one, and from the last of them its vector. At request time each likely code
sequence names a bucket of items, and the vector that was predicted for it ranks them.

Notable
- The text encoder is a small network on the catalogue's content vectors, trained with the rest; the paper trains a
  transformer on the attributes' words.
- Codes need not be unique. The level that a table adds to make them unique is dropped; items with equal codes share a
  bucket.
- `dense = false` is the paper's ablation without vectors: items are codes alone, with the level that makes them unique.
  It is a plain decoder, and can be exported as one (pipeline/export.py).
- Each level is a softmax over its own codes. Every position of a history is trained to predict its successor.
- The dense loss is over the distinct targets of a batch; `temperature` divides cosines, 1 being the paper's formula.
  Targets occur in proportion to popularity. So a vector learns how much likelier an item is than its popularity alone
  suggests, and the paper ranks by that. `log_q` corrects it in one of two places. "ranking" adds log popularity back to
  the logits; "loss" subtracts it from the logits of the loss, so that the vectors have to encode it. Figures:
  docs/results/generation.md.
- The paper does not define the set of BeamFusion's second softmax. `fusion` selects it: the items of a "bucket", as
  P(item) is P(codes) P(item | codes), which measures better, or the "pool" of a request's candidates.
- `prefix_loss` adds APAO's loss of prefixes, which is not in the paper (losses/prefix_loss.py).

Shapes: B sequences, L items, S tokens, W beams, D width, H heads, M levels, C codes, T targets, N items.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.bucket_search import bucket_search
from nextitem.decoding.guidance import GuidedConfig, GuidedRecommender
from nextitem.decoding.guide import Guide
from nextitem.decoding.trie import PrefixTrie
from nextitem.losses.in_batch_softmax import in_batch_log_q
from nextitem.losses.prefix_loss import PrefixAwareConfig, prefix_loss_of
from nextitem.nn.attention.transformer import PreNormBlock
from nextitem.nn.fields.item_features import CONTENT
from nextitem.nn.initialisation import truncated_normal_


class CobraConfig(PrefixAwareConfig, GuidedConfig):
    """Settings of Cobra."""

    width: int = Field(64, ge=1)
    """Width of the vectors (D)."""
    heads: int = Field(2, ge=1)
    """Number of attention heads (H); must divide width."""
    layers: int = Field(2, ge=1)
    """Number of blocks of the decoder."""
    content_hidden: int = Field(128, ge=1)
    """Hidden units of the network that encodes content vectors."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate of tokens, attention and feed-forward layers."""
    max_history_length: int = Field(20, ge=1)
    """Maximum number of most recent events that the model reads."""
    dense: bool = True
    """Whether items have a vector after their codes; False: codes alone, the paper's ablation."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of the dense loss, which divides cosines."""
    dense_weight: float = Field(1.0, ge=0)
    """Weight of the dense loss relative to the loss of the codes."""
    log_q: Literal["ranking", "loss"] | None = "ranking"
    """Place of the popularity correction, the ranking or the dense loss; None: no correction, as in the paper."""
    beam_width: int = Field(20, ge=1)
    """Number of code sequences, and so of buckets, that the search keeps; raised to k if k is larger."""
    sparse_sharpness: float = Field(0.9, ge=0)
    """Tau of BeamFusion, which multiplies log-probabilities of code sequences."""
    dense_sharpness: float = Field(16.0, ge=0)
    """Psi of BeamFusion, which multiplies cosines."""
    fusion: Literal["bucket", "pool"] = "bucket"
    """Set of items of BeamFusion's second softmax: those of a bucket, or all candidates of a request."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        fusion = ("sparse_sharpness", "dense_sharpness", "fusion")
        vectors = ("content_hidden", "temperature", "dense_weight", "log_q")
        return configs.idle_unless(self.dense, "dense is false", *vectors, *fusion)


class Cobra(GuidedRecommender):
    """A recommender that ranks items by BeamFusion of the probability of their codes and the cosine of their vector."""

    Config = CobraConfig
    config: CobraConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    can_rank_unseen_items = True  # by content, and by codes computed from it
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers", CONTENT})
    codes: Tensor
    content: Tensor
    encoded: Tensor
    code_offsets: Tensor
    trie: PrefixTrie

    def __init__(self, config: CobraConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if catalog.identifiers is None or catalog.content is None:
            raise ValueError("Cobra needs a catalogue with content vectors and identifiers: pass both to the Catalog")
        if config.width % config.heads:
            raise ValueError(f"heads = {config.heads} must divide width = {config.width}")
        table = catalog.identifiers.without_extra_level() if config.dense else catalog.identifiers
        self.sizes = table.codebook_sizes
        self.trie = PrefixTrie.from_table(table)
        self.register_buffer("codes", table.codes.long().clamp(min=0), persistent=False)  # [N + 1, M]
        self.register_buffer("content", catalog.content, persistent=False)  # [N + 1, content width]
        starts = torch.tensor([sum(self.sizes[:level]) for level in range(len(self.sizes))])
        self.register_buffer("code_offsets", starts, persistent=False)
        self.tokens = nn.Embedding(sum(self.sizes), config.width)
        self.positions = nn.Embedding(config.max_history_length + 1, config.width)  # of items; last row: the next item
        self.head_shape = config.heads, config.width // config.heads
        self.per_item = len(self.sizes) + config.dense  # number of tokens of an item
        self.kinds = nn.Embedding(self.per_item, config.width)  # kinds of tokens: the code of each level, the vector
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PreNormBlock(config.width, heads=config.heads, dropout=config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.sparse = nn.Linear(config.width, sum(self.sizes), bias=False)
        if config.dense:
            self.encoder = nn.Sequential(
                nn.Linear(catalog.content.shape[1], config.content_hidden),
                nn.GELU(),
                nn.Linear(config.content_hidden, config.width),
            )
            self.dense = nn.Linear(config.width, config.width)
        self.prefix_loss = prefix_loss_of(config, num_levels=len(self.sizes))
        truncated_normal_(self)
        self.register_buffer("encoded", torch.zeros(0, config.width), persistent=False)  # cached vectors of all items
        self.register_load_state_dict_post_hook(lambda model, keys: model.forget())  # type: ignore[no-untyped-call]
        self.add_guidance(config.guide)

    def examples(self, train: Dataset) -> NextItemSequences:
        """Return windows of the users' histories; every event but the first is a target."""
        return NextItemSequences(train.interactions, max_length=self.config.max_history_length)

    def training_loss(self, batch: NextItemBatch) -> LossTerms:
        """Return the cross-entropy of the targets' codes plus the in-batch contrast of their vectors (eq. 6 - 8)."""
        is_target_BL = batch.targets.to_padded() > 0
        lengths = batch.items.lengths
        B, L = is_target_BL.shape
        # The last target's codes follow the history's last vector: [B, L + 1] items, the last one's vector is not read.
        items = F.pad(batch.items.to_padded(), (0, 1))
        last = batch.targets.values[batch.targets.offsets[1:] - 1]
        items[torch.arange(B, device=items.device), lengths] = last
        hidden_BLMD = self._hidden(items).view(B, L + 1, self.per_item, -1)
        targets = batch.targets.to_padded()[is_target_BL]
        # The last token of item t predicts the first code of t + 1; each code of t + 1 its next code, or its vector.
        inputs_TXD = torch.cat([hidden_BLMD[:, :-1, -1:], hidden_BLMD[:, 1:, :-1]], dim=2)[is_target_BL]  # X: per_item
        named = {}
        for level in range(len(self.sizes)):
            logits = self._level_logits(inputs_TXD[:, level], level)
            named[f"level_{level + 1}"] = F.cross_entropy(logits, self.codes[targets, level])
        total = torch.stack(list(named.values())).sum()
        if self.prefix_loss is not None:
            named["prefixes"] = len(self.sizes) * self.prefix_loss(list(named.values()))  # the levels are summed
            total = total + named["prefixes"]
        if self.config.dense:
            named["dense"] = self._dense_loss(inputs_TXD[:, -1], targets)
            total = total + self.config.dense_weight * named["dense"]
        return LossTerms(total, {name: value.detach() for name, value in named.items()})

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state before the first code: the histories' keys and values, shared by all beams of a request."""
        recent = batch.items.last(self.config.max_history_length)
        hidden = self._embedded(recent.to_padded())
        shared = {"items": recent.lengths}
        for number, block in enumerate(self.blocks):
            shared[f"history_{number}"] = self._keys_values(block, hidden)  # [B, S, 2, H, d]
            hidden = block(hidden)
        last = recent.lengths * self.per_item - 1
        shared["last"] = hidden[torch.arange(len(last), device=last.device), last]
        beam_cache = hidden.new_zeros((len(last), 1, 0, len(self.blocks), 2, *self.head_shape))
        return GeneratorState(shared, {"beam_cache": beam_cache})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Return the logits [B, W, C] of the next level's codes, and the state after `codes [B, W]`."""
        if codes is not None and state.beams["beam_cache"].shape[2] + 1 == len(self.sizes):  # begin the next item
            codes, state = None, GeneratorState(state.shared, {"beam_cache": state.beams["beam_cache"][:, :, :0]})
        hidden_BWD, state = self._advance(state, codes)
        return self._level_logits(self.norm(hidden_BWD), state.beams["beam_cache"].shape[2]), state

    def vectors_of(self, state: GeneratorState, codes: Tensor) -> Tensor:
        """Return the unit vectors [B, W, D] predicted after complete code sequences that end with `codes [B, W]`."""
        hidden_BWD, _ = self._advance(state, codes)
        return F.normalize(self.dense(self.norm(hidden_BWD)), dim=2)

    def item_vectors(self) -> Tensor:
        """Return the unit vectors of all items, [N + 1, D]; they are cached until weights are loaded or trained."""
        if self.training:
            return self._item_vectors(torch.arange(self.num_items + 1, device=self.codes.device))
        if not len(self.encoded):
            self.encoded = self._item_vectors(torch.arange(self.num_items + 1, device=self.codes.device)).detach()
        return self.encoded

    def train(self, mode: bool = True) -> Cobra:
        """Set the mode as any module does, and drop the cached vectors of items, as weights may change from now on."""
        self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Drop the cached vectors of items; the next use recomputes them."""
        self.encoded = self.encoded.new_zeros(0, self.config.width)

    def search(self, batch: SequenceBatch, k: int, *, guide: Guide | None) -> Recommendations:
        """Return the k best items of each request under this guide."""
        config, prior = self.config, self._prior() if self.config.log_q == "ranking" else None
        options: dict[str, Any] = {"k": k, "beam_width": max(k, config.beam_width), **self.steering(guide)}
        if not config.dense:
            return beam_search(self, batch, self.trie, **options)
        options |= {"sparse_sharpness": config.sparse_sharpness, "dense_sharpness": config.dense_sharpness}
        return bucket_search(self, batch, self.trie, prior=prior, pooled=config.fusion == "pool", **options)

    def _dense_loss(self, hidden_TD: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each target's vector among those of the batch's distinct targets (eq. 8)."""
        distinct_targets, target_columns = torch.unique(targets, return_inverse=True)
        cosines = F.normalize(self.dense(hidden_TD), dim=1) @ self._item_vectors(distinct_targets).T
        logits = cosines / self.config.temperature
        if self.config.log_q == "loss":
            logits = logits - in_batch_log_q(self.popularity, distinct_targets, num_targets=len(targets))
        return F.cross_entropy(logits, target_columns)

    def _prior(self) -> Tensor:
        """Return the term that popularity adds to cosines, [N + 1]; logits of the loss are cosines / temperature."""
        return self.config.temperature * ((self.popularity + 1) / (self.popularity + 1).sum()).log()

    def _item_vectors(self, items: Tensor) -> Tensor:
        return F.normalize(self.encoder(self.content[items]), dim=-1)

    def _level_logits(self, hidden: Tensor, level: int) -> Tensor:
        start = int(self.code_offsets[level])
        return F.linear(hidden, self.sparse.weight[start : start + self.sizes[level]])

    def _embedded(self, items_BL: Tensor) -> Tensor:
        """Return the tokens of items, their codes and then their vector, [B, L * tokens per item, D]."""
        tokens = self.tokens(self.codes[items_BL] + self.code_offsets)
        if self.config.dense:
            tokens = torch.cat([tokens, self._item_vectors(items_BL)[:, :, None]], dim=2)
        position = self.positions(torch.arange(items_BL.shape[1], device=items_BL.device))
        tokens = tokens * self.config.width**0.5 + self.kinds.weight + position[:, None]
        return cast(Tensor, self.dropout(tokens.flatten(1, 2)))

    def _hidden(self, items_BL: Tensor) -> Tensor:
        """Return the normalised hidden states of all tokens, [B, S, D]; each depends on the tokens up to itself."""
        hidden_BSD = self._embedded(items_BL)
        for block in self.blocks:
            hidden_BSD = block(hidden_BSD)
        return cast(Tensor, self.norm(hidden_BSD))

    def _keys_values(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Return keys and values of one block's attention, [..., 2, H, d]."""
        attention = cast(PreNormBlock, block).attention
        projected = attention.query_key_value(cast(PreNormBlock, block).norm_attention(hidden))
        return cast(Tensor, projected.view(*hidden.shape[:-1], 3, *self.head_shape)[..., 1:, :, :])

    def _advance(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Return the hidden states [B, W, D] after one more code of each beam (None: after the history)."""
        beam_cache = state.beams["beam_cache"]  # [B, W, t, layers, 2, H, d]: keys and values of the beam's codes
        if codes is None:
            return state.shared["last"][:, None].expand(-1, beam_cache.shape[1], -1), state
        level = beam_cache.shape[2]
        hidden = self.tokens(codes + self.code_offsets[level]) * self.config.width**0.5
        hidden = hidden + self.kinds.weight[level] + self.positions(state.shared["items"])[:, None]
        new_keys_values = []
        for number, block in enumerate(self.blocks):
            block = cast(PreNormBlock, block)
            new_keys_values.append(self._keys_values(block, hidden))
            path_keys_values = torch.cat([beam_cache[:, :, :, number], new_keys_values[-1][:, :, None]], dim=2)
            query = block.attention.query_key_value(block.norm_attention(hidden))[..., : self.config.width]
            mixed = self._attend(query.view(*hidden.shape[:2], *self.head_shape), state, number, path_keys_values)
            hidden = hidden + block.attention.output(mixed)
            hidden = hidden + block.feed(block.norm_feed(hidden))
        beam_cache = torch.cat([beam_cache, torch.stack(new_keys_values, dim=2)[:, :, None]], dim=2)
        return hidden, GeneratorState(state.shared, {"beam_cache": beam_cache})

    def _attend(self, query_BWHd: Tensor, state: GeneratorState, number: int, path_keys_values: Tensor) -> Tensor:
        """Return the attention to the history's tokens and to the beam's own, `path_keys_values [B, W, t, 2, H, d]`."""
        keys, values = state.shared[f"history_{number}"].unbind(2)
        is_real = torch.arange(keys.shape[1], device=keys.device) < state.shared["items"][:, None] * self.per_item
        past_scores = torch.einsum("bwhd,bshd->bwhs", query_BWHd, keys).masked_fill(~is_real[:, None, None], -torch.inf)
        path_scores = torch.einsum("bwhd,bwthd->bwht", query_BWHd, path_keys_values[..., 0, :, :])
        weight = torch.softmax(torch.cat([past_scores, path_scores], dim=3) / query_BWHd.shape[3] ** 0.5, dim=3)
        past_weight, path_weight = weight.split([past_scores.shape[3], path_scores.shape[3]], dim=3)
        mixed = torch.einsum("bwhs,bshd->bwhd", past_weight, values)
        return (mixed + torch.einsum("bwht,bwthd->bwhd", path_weight, path_keys_values[..., 1, :, :])).flatten(2)
