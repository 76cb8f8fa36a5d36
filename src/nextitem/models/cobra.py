"""COBRA: spells the next item's codes, then points to it with a dense vector.

Yang et al., Sparse Meets Dense: Unified Generative Recommendations with Cascaded Sparse-Dense Representations, arXiv
2503.02453. A history alternates between an item's codes and a vector made of its content; a causal decoder predicts the
next item's codes one by one, and from the last of them its vector. At request time each likely code sequence names a
bucket of items, and the vector that was predicted for it ranks them.

Notable
- The text encoder is a small network on the catalogue's content vectors, trained with the rest; the paper trains a
  transformer on the attributes' words.
- Codes need not tell items apart: what a table adds to do so is left out, its items share a bucket.
- `dense = false` is the paper's ablation without vectors: items are codes alone, with the level that tells them apart.
  It is a plain decoder, and can be exported as one (pipeline/export.py).
- Each level is a softmax over its own codes. Every position of a history learns to predict its successor.
- The dense loss is over the different targets of a batch; `temperature` divides cosines, 1 being the paper's formula.
  These come by popularity, so what a vector learns is how much likelier than by popularity an item is, and the paper
  ranks by that. `log_q` mends it: in the "ranking", where log popularity is added back to the logits, or in the "loss",
  from whose logits it is taken, so that vectors have to hold it. Figures: docs/results/generation.md.
- The paper does not say what BeamFusion's second softmax is over: `fusion`, the items of a "bucket", as P(item) is
  P(codes) P(item | codes), which measures better, or the "pool" of a request's candidates.

Shapes: B sequences, L items, S tokens, W beams, D width, H heads, M levels, C codes, T targets, N items.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.bucket_search import bucket_search
from nextitem.decoding.trie import PrefixTrie
from nextitem.nn.attention.transformer import PreNormBlock
from nextitem.nn.fields.item_features import CONTENT
from nextitem.nn.initialisation import truncated_normal_


class CobraConfig(configs.Config):
    """Settings of Cobra."""

    width: int = Field(64, ge=1)
    """D."""
    heads: int = Field(2, ge=1)
    """H; must divide width."""
    layers: int = Field(2, ge=1)
    """Blocks of the decoder."""
    content_hidden: int = Field(128, ge=1)
    """Hidden units of the network that reads content."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of tokens, attention and feed-forward."""
    max_history_length: int = Field(20, ge=1)
    """Most recent events that are read."""
    dense: bool = True
    """Items have a vector after their codes; False: the paper's ablation, codes alone."""
    temperature: float = Field(1.0, gt=0)
    """Of the dense loss: divides cosines."""
    dense_weight: float = Field(1.0, ge=0)
    """Of the dense loss beside the codes'."""
    log_q: Literal["ranking", "loss"] | None = "ranking"
    """Where popularity is corrected for; None: nowhere, the paper."""
    beam_width: int = Field(20, ge=1)
    """Code sequences, and so buckets, that are looked into; at least k are."""
    sparse_sharpness: float = Field(0.9, ge=0)
    """Tau of BeamFusion: multiplies log-probabilities of code sequences."""
    dense_sharpness: float = Field(16.0, ge=0)
    """Psi of BeamFusion: multiplies cosines."""
    fusion: Literal["bucket", "pool"] = "bucket"
    """What its second softmax is over."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        fusion = ("sparse_sharpness", "dense_sharpness", "fusion")
        vectors = ("content_hidden", "temperature", "dense_weight", "log_q")
        return configs.idle_unless(self.dense, "dense is false", *vectors, *fusion)


class Cobra(Recommender):
    """Ranks items by BeamFusion of their codes' probability and their vector's closeness."""

    Config = CobraConfig
    config: CobraConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    can_rank_unseen_items = True  # by content and codes made from it
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers", CONTENT})
    codes: Tensor
    content: Tensor
    encoded: Tensor
    code_offsets: Tensor
    trie: PrefixTrie

    def __init__(self, config: CobraConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if catalog.identifiers is None or catalog.content is None:
            raise ValueError("Cobra needs a catalogue with content vectors and identifiers")
        if config.width % config.heads:
            raise ValueError(f"heads = {config.heads} must divide width = {config.width}")
        table = without_extra_level(catalog.identifiers) if config.dense else catalog.identifiers
        self.sizes = table.codebook_sizes
        self.trie = PrefixTrie.from_table(table)
        self.register_buffer("codes", table.codes.long().clamp(min=0), persistent=False)  # [N + 1, M]
        self.register_buffer("content", catalog.content, persistent=False)  # [N + 1, content width]
        starts = torch.tensor([sum(self.sizes[:level]) for level in range(len(self.sizes))])
        self.register_buffer("code_offsets", starts, persistent=False)
        self.tokens = nn.Embedding(sum(self.sizes), config.width)
        self.positions = nn.Embedding(config.max_history_length + 1, config.width)  # of items; the last: the next one
        self.per_item = len(self.sizes) + config.dense  # tokens
        self.kinds = nn.Embedding(self.per_item, config.width)  # each level's code, and the vector
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
        truncated_normal_(self)
        self.register_buffer("encoded", torch.zeros(0, config.width), persistent=False)  # vectors of all items, if made
        self.register_load_state_dict_post_hook(lambda model, keys: model.forget())  # type: ignore[no-untyped-call]

    def examples(self, train: Dataset) -> NextItemSequences:
        """Windows of the users' histories; every event but the first is a target."""
        return NextItemSequences(train.interactions, max_length=self.config.max_history_length)

    def training_loss(self, batch: NextItemBatch) -> LossTerms:
        """Cross-entropy of the targets' codes, and in-batch contrast of their vectors (eq. 6 - 8)."""
        kept_BL = batch.targets.to_padded() > 0
        lengths = batch.items.lengths
        B, L = kept_BL.shape
        # The next item's codes follow the history's last vector: [B, L + 1] items, the last one without its vector.
        items = F.pad(batch.items.to_padded(), (0, 1))
        last = batch.targets.values[batch.targets.offsets[1:] - 1]
        items[torch.arange(B, device=items.device), lengths] = last
        hidden_BLMD = self._hidden(items).view(B, L + 1, self.per_item, -1)
        targets = batch.targets.to_padded()[kept_BL]
        # At the last token of item t: the first code of t + 1. At its m-th code: the next one. At the last: its vector.
        before = torch.cat([hidden_BLMD[:, :-1, -1:], hidden_BLMD[:, 1:, :-1]], dim=2)[kept_BL]  # [T, per item, D]
        named = {}
        for level in range(len(self.sizes)):
            logits = self._level_logits(before[:, level], level)
            named[f"level_{level + 1}"] = F.cross_entropy(logits, self.codes[targets, level])
        total = torch.stack(list(named.values())).sum()
        if self.config.dense:
            named["dense"] = self._dense_loss(before[:, -1], targets)
            total = total + self.config.dense_weight * named["dense"]
        return LossTerms(total, {name: value.detach() for name, value in named.items()})

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Reads the histories; their keys and values are shared by all beams of a request."""
        recent = batch.items.last(self.config.max_history_length)
        hidden = self._embedded(recent.to_padded())
        shared = {"items": recent.lengths}
        for number, block in enumerate(self.blocks):
            shared[f"history_{number}"] = self._keys_values(block, hidden)  # [B, S, 2, H, d]
            hidden = block(hidden)
        last = recent.lengths * self.per_item - 1
        shared["last"] = hidden[torch.arange(len(last), device=last.device), last]
        own = hidden.new_zeros((len(last), 1, 0, len(self.blocks), 2, *self._head_shape()))
        return GeneratorState(shared, {"own": own})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Logits [B, W, C] of the next level's codes."""
        hidden_BWD, state = self._advance(state, codes)
        return self._level_logits(self.norm(hidden_BWD), state.beams["own"].shape[2]), state

    def vectors_of(self, state: GeneratorState, codes: Tensor) -> Tensor:
        """The unit vectors [B, W, D] that follow complete code sequences, whose last codes are `codes [B, W]`."""
        hidden_BWD, _ = self._advance(state, codes)
        return F.normalize(self.dense(self.norm(hidden_BWD)), dim=2)

    def item_vectors(self) -> Tensor:
        """Unit vectors of all items, [N + 1, D]; kept between requests until weights are loaded or trained."""
        if self.training:
            return self._item_vectors(torch.arange(self.num_items + 1, device=self.codes.device))
        if not len(self.encoded):
            self.encoded = self._item_vectors(torch.arange(self.num_items + 1, device=self.codes.device)).detach()
        return self.encoded

    def train(self, mode: bool = True) -> Cobra:
        """Set the mode as any module does; weights may change from now on, so vectors of items are dropped."""
        self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Drop the vectors of items: they are made anew when next asked for."""
        self.encoded = self.encoded.new_zeros(0, self.config.width)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        width = max(k, self.config.beam_width)
        if not self.config.dense:
            return beam_search(self, batch, self.trie, k=k, beam_width=width)
        return bucket_search(
            self,
            batch,
            self.trie,
            k=k,
            beam_width=width,
            sparse_sharpness=self.config.sparse_sharpness,
            dense_sharpness=self.config.dense_sharpness,
            prior=self._prior() if self.config.log_q == "ranking" else None,
            pooled=self.config.fusion == "pool",
        )

    def _dense_loss(self, hidden_TD: Tensor, targets: Tensor) -> Tensor:
        """Each target's vector among those of the batch's different targets (eq. 8)."""
        different, own = torch.unique(targets, return_inverse=True)
        cosines = F.normalize(self.dense(hidden_TD), dim=1) @ self._item_vectors(different).T
        logits = cosines / self.config.temperature
        if self.config.log_q == "loss":
            logits = logits - self._log_q(different, len(targets))
        return F.cross_entropy(logits, own)

    def _prior(self) -> Tensor:
        """What popularity adds to an item's cosine, [N + 1]: the loss's logits are cosines over the temperature."""
        counts = self.popularity.clamp(min=0) + 1
        return self.config.temperature * (counts / counts.sum()).log()

    def _log_q(self, items: Tensor, draws: int) -> Tensor:
        """Log-probability that each of `items [T]` is among so many targets drawn from training events."""
        share = (self.popularity / self.popularity.sum().clamp(min=1)).clamp(1e-9, 0.5)[items]
        return torch.log(-torch.expm1(draws * torch.log1p(-share)))

    def _item_vectors(self, items: Tensor) -> Tensor:
        return F.normalize(self.encoder(self.content[items]), dim=-1)

    def _level_logits(self, hidden: Tensor, level: int) -> Tensor:
        start, size = int(self.code_offsets[level]), self.sizes[level]
        return F.linear(hidden, self.sparse.weight[start : start + size])

    def _embedded(self, items_BL: Tensor) -> Tensor:
        """Tokens of items: their codes, then their vector, [B, L per item, D]."""
        tokens = self.tokens(self.codes[items_BL] + self.code_offsets)
        if self.config.dense:
            tokens = torch.cat([tokens, self._item_vectors(items_BL)[:, :, None]], dim=2)
        place = self.positions(torch.arange(items_BL.shape[1], device=items_BL.device))
        tokens = tokens * self.config.width**0.5 + self.kinds.weight + place[:, None]
        return cast(Tensor, self.dropout(tokens.flatten(1, 2)))

    def _hidden(self, items_BL: Tensor) -> Tensor:
        """Normalised hidden states of all tokens, each knowing those up to itself, [B, S, D]."""
        hidden_BSD = self._embedded(items_BL)
        for block in self.blocks:
            hidden_BSD = block(hidden_BSD)
        return cast(Tensor, self.norm(hidden_BSD))

    def _head_shape(self) -> tuple[int, int]:
        return self.config.heads, self.config.width // self.config.heads

    def _keys_values(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """[..., 2, H, d] of one block's attention."""
        attention = cast(PreNormBlock, block).attention
        projected = attention.query_key_value(cast(PreNormBlock, block).norm_attention(hidden))
        return cast(Tensor, projected.view(*hidden.shape[:-1], 3, *self._head_shape())[..., 1:, :, :])

    def _advance(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Hidden states [B, W, D] after one more code of each beam (None: after the history)."""
        own = state.beams["own"]  # [B, W, t, layers, 2, H, d]: keys and values of the beam's codes
        if codes is None:
            return state.shared["last"][:, None], state
        level = own.shape[2]
        hidden = self.tokens(codes + self.code_offsets[level]) * self.config.width**0.5
        hidden = hidden + self.kinds.weight[level] + self.positions(state.shared["items"])[:, None]
        fresh = []
        for number, block in enumerate(self.blocks):
            block = cast(PreNormBlock, block)
            fresh.append(self._keys_values(block, hidden))
            along = torch.cat([own[:, :, :, number], fresh[-1][:, :, None]], dim=2)
            query = block.attention.query_key_value(block.norm_attention(hidden))[..., : self.config.width]
            mixed = self._attend(query.view(*hidden.shape[:2], *self._head_shape()), state, number, along)
            hidden = hidden + block.attention.output(mixed)
            hidden = hidden + block.feed(block.norm_feed(hidden))
        own = torch.cat([own, torch.stack(fresh, dim=2)[:, :, None]], dim=2)
        return hidden, GeneratorState(state.shared, {"own": own})

    def _attend(self, query_BWHd: Tensor, state: GeneratorState, number: int, along: Tensor) -> Tensor:
        """Attention to the history's tokens and to those of the beam itself, `along [B, W, t, 2, H, d]`."""
        keys, values = state.shared[f"history_{number}"].unbind(2)
        real = torch.arange(keys.shape[1], device=keys.device) < state.shared["items"][:, None] * self.per_item
        history = torch.einsum("bwhd,bshd->bwhs", query_BWHd, keys).masked_fill(~real[:, None, None], -torch.inf)
        path = torch.einsum("bwhd,bwthd->bwht", query_BWHd, along[..., 0, :, :])
        weight = torch.softmax(torch.cat([history, path], dim=3) / query_BWHd.shape[3] ** 0.5, dim=3)
        seen, own = weight.split([history.shape[3], path.shape[3]], dim=3)
        mixed = torch.einsum("bwhs,bshd->bwhd", seen, values)
        return (mixed + torch.einsum("bwht,bwthd->bwhd", own, along[..., 1, :, :])).flatten(2)


def without_extra_level(table: IdentifierTable) -> IdentifierTable:
    """The levels that a tokenizer has learnt; the one that only tells equal codes apart is left out."""
    levels = len((table.report or {}).get("levels", table.codebook_sizes))
    return IdentifierTable(
        table.codes[:, :levels].contiguous(), table.codebook_sizes[:levels], table.catalog_fingerprint, table.tokenizer
    )
