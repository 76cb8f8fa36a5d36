"""TIGER: generates the semantic ID of the next item, code by code.

Rajput et al., Recommender Systems with Generative Retrieval, arXiv 2305.05065. Items are short sequences of codes
computed from their content; a T5-style encoder reads the codes of the history, a decoder generates those of the next
item, and a beam search over the catalogue's prefix trie returns the likeliest items. Similar items share codes, so what
the model learns about one item it learns about its neighbours, unseen ones included.

Notable
- Each level is a softmax over its own codes; the paper's is over the whole vocabulary. A code of another level can
  never be right, so no probability is spent on it.
- The search only enters prefixes of items that may be returned; the paper's is unconstrained and drops invalid results.
- The paper's sizes result in 4.8 million parameters with plain T5, but it states about 13 million. `ff_layers = 2` (two
  hidden layers of 1,024) and `width = 384` are the two readings that reach that number.
- Input and output tables are separate, as in T5 1.1. Every prefix of a history is an example.
- The user token is a bucket of the user's stable key; visitors have bucket 0.
- `beam_aware` adds a loss of OTM's kind (decoding/visited_prefixes.py), `prefix_loss` one of APAO's (losses/
  prefix_loss.py), `target_weights` later events as targets of the same encoded history. None of them is in the paper.

Shapes: B requests, K targets, N = B K, L tokens, W beams, D width, H heads, E head width, M levels, C codes of a level.
"""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar, Self, cast

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
from nextitem.data.examples.next_target import NextTargets
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.guidance import GuidedConfig, GuidedRecommender
from nextitem.decoding.guide import Guide
from nextitem.decoding.new_items import search_with_new_items
from nextitem.decoding.scheduled_sampling import sampled_prefixes
from nextitem.decoding.trie import PrefixTrie
from nextitem.decoding.visited_prefixes import listwise_loss, prefix_log_probs, visited_prefixes
from nextitem.losses.prefix_loss import PrefixAwareConfig, prefix_loss_of
from nextitem.nn.attention.t5 import DecoderLayer, EncoderLayer, RelativePositionBias, initialise_as_t5


class TigerConfig(PrefixAwareConfig, GuidedConfig):
    """Settings of Tiger."""

    width: int = Field(64, ge=1)
    """Width of the vectors (D)."""
    heads: int = Field(4, ge=1)
    """Number of attention heads (H)."""
    head_width: int = Field(16, ge=1)
    """Width of queries, keys and values of one head (E)."""
    ff_width: int = Field(256, ge=1)
    """Hidden units of the feed-forward layers."""
    ff_layers: int = Field(1, ge=1)
    """Number of hidden layers of each feed-forward block; T5: 1, one reading of TIGER: 2."""
    encoder_layers: int = Field(2, ge=1)
    """Number of blocks of the encoder."""
    decoder_layers: int = Field(2, ge=1)
    """Number of blocks of the decoder."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate, applied in the same places as in T5."""
    max_history_length: int = Field(20, ge=1)
    """Maximum number of most recent events that the model reads."""
    user_buckets: int = Field(0, ge=0)
    """Number of hash buckets of the user token before the history; 0: no user token."""
    targets_per_epoch: int | None = Field(None, ge=1)
    """Number of training examples of an epoch, sampled again for each epoch; None: all."""
    target_weights: tuple[float, ...] = Field((1.0,), min_length=1)
    """Weights of the next event, the one after it, and so on, all generated from the same encoded history."""
    beam_width: int = Field(20, ge=1)
    """Number of beams that stay in the search; raised to k if k is larger."""
    scheduled_sampling: float = Field(0.0, ge=0, le=1)
    """Fraction of the codes of training prefixes that are sampled from the model."""
    beam_aware: float = Field(0.0, ge=0)
    """Weight of the loss among prefixes that a beam search visits (OTM, ICML 2020)."""
    training_beam: int = Field(8, ge=1)
    """Beam width of the search of the beam-aware loss."""
    new_items: float | None = Field(None, ge=0, le=1)
    """Maximum fraction of a list that has no training event; None: any."""
    new_items_reserved: bool = False
    """Whether the slots of `new_items` are reserved for items without training events, even if their scores are low."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return {
            **configs.idle_unless(self.beam_aware > 0, "beam_aware is 0", "training_beam"),
            **configs.idle_unless(self.new_items is not None, "new_items is none", "new_items_reserved"),
        }


class Tiger(GuidedRecommender):
    """A recommender that ranks items by the probability of generating their semantic ID."""

    Config = TigerConfig
    config: TigerConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    can_rank_unseen_items = True  # by codes computed from content
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers"})
    codes: Tensor
    trie: PrefixTrie

    def __init__(self, config: TigerConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        table = catalog.identifiers
        if table is None:
            raise ValueError("Tiger needs a catalogue with identifiers: create them with nextitem tokenize")
        self.sizes = table.codebook_sizes
        self.code_offsets = [sum(self.sizes[:level]) for level in range(len(self.sizes))]
        self.register_buffer("codes", table.codes.long().clamp(min=0), persistent=False)  # [N + 1, M]
        self.trie = PrefixTrie.from_table(table)
        # Tokens: the codes by level, then the first decoder input, then user buckets (0: unknown user).
        self.first_input = sum(self.sizes)
        self.tokens = nn.Embedding(self.first_input + 1 + config.user_buckets + bool(config.user_buckets), config.width)
        self.output = nn.Linear(config.width, sum(self.sizes), bias=False)
        self.encoder_bias = RelativePositionBias(config.heads, bidirectional=True)
        self.decoder_bias = RelativePositionBias(config.heads, bidirectional=False)
        sizes: dict[str, Any] = {"heads": config.heads, "head_width": config.head_width, "inner": config.ff_width}
        sizes |= {"hidden_layers": config.ff_layers, "dropout": config.dropout}
        self.encoder = nn.ModuleList(EncoderLayer(config.width, **sizes) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config.width, **sizes) for _ in range(config.decoder_layers))
        self.encoder_norm, self.decoder_norm = (nn.RMSNorm(config.width, eps=1e-6) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        self.prefix_loss = prefix_loss_of(config, num_levels=len(self.sizes))
        initialise_as_t5(self, width=config.width, heads=config.heads, head_width=config.head_width)
        self.add_guidance(config.guide)

    def examples(self, train: Dataset) -> NextTargets:
        """Return every target with the history before it, and the events after it if they have weights."""
        config = self.config
        keys = train.users.keys if config.user_buckets and not train.anonymous else None
        sizes: dict[str, Any] = {"num_targets": len(config.target_weights), "per_epoch": config.targets_per_epoch}
        return NextTargets(train.interactions, max_length=config.max_history_length, user_keys=keys, **sizes)

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the mean cross-entropy of the next event's codes (section 3.2), plus later events' by weight."""
        assert batch.targets is not None
        items_BK = batch.targets.to_padded()
        K, target_NM = items_BK.shape[1], self.codes[items_BK.flatten()]
        weight_N = ((items_BK > 0) * torch.tensor(self.config.target_weights[:K], device=items_BK.device)).flatten()
        shared, input_NM, mask_NM = self._shared(batch), target_NM, torch.ones_like(target_NM, dtype=torch.bool)
        if self.config.scheduled_sampling and self.training:
            with torch.no_grad():
                first = self._all_logits(self._decode(shared, target_NM[:, :-1]))
            input_NM, mask_NM = sampled_prefixes(first, target_NM, self.trie, share=self.config.scheduled_sampling)
        named = {}
        for level, logits in enumerate(self._all_logits(self._decode(shared, input_NM[:, :-1]))):
            losses = F.cross_entropy(logits, target_NM[:, level], reduction="none") * mask_NM[:, level] * weight_N
            named[f"level_{level + 1}"] = losses.sum() / mask_NM[::K, level].sum().clamp(min=1)
        total = torch.stack(list(named.values())).mean()
        if self.prefix_loss is not None:
            named["prefixes"] = self.prefix_loss(list(named.values()))
            total = total + named["prefixes"]
        if self.config.beam_aware and self.training:
            named["beam"] = self._beam_loss(batch, items_BK[:, 0], shared)
            total = total + self.config.beam_aware * named["beam"]
        return LossTerms(total, {name: value.detach() for name, value in named.items()})

    def _beam_loss(self, batch: SequenceBatch, items_B: Tensor, shared: dict[str, Tensor]) -> Tensor:
        """Return the loss of each next event's prefix among those in the model's beam, a mean over the levels."""
        self.eval()  # the search must not change what training measures
        visited = visited_prefixes(self, batch, self.trie, items_B, beam_width=self.config.training_beam)
        self.train()

        def log_probs(codes_BWS: Tensor) -> Tensor:
            return prefix_log_probs(self._all_logits(self._decode(shared, codes_BWS.flatten(0, 1)[:, :-1])), codes_BWS)

        return listwise_loss(visited, self.trie, self.codes, log_probs)

    def with_catalog(self, catalog: Catalog, *, live: Tensor | None = None) -> Self:
        """Return a model with the same weights over a later version of the catalogue; this one answers as before.

        Both models share their weights: neither may be trained or moved to another device. Items keep their numbers and
        codes, new items follow. `live`, bool [N + 1], are the items that may still be returned (None: all). Raises
        ValueError if the catalogue is no later version.
        """
        table, former, ids = catalog.identifiers, self.identifiers, catalog.ids.external.head(self.num_items)
        if table is None or former is None or not table.continues(former) or not ids.equals(self.catalog.ids.external):
            raise ValueError("the catalogue must begin with the model's items and their identifiers: append new items")
        later, device = copy(self), self.codes.device
        later._buffers, later._modules = dict(self._buffers), dict(self._modules)  # the tensors in them are shared
        later.catalog, later.codes = catalog, table.codes.long().clamp(min=0).to(device)
        if self.guidance is not None:
            later.guidance = self.guidance.with_more_items(catalog.num_items)
        later.popularity = F.pad(self.popularity, (0, catalog.num_items - self.num_items))
        later.trie = PrefixTrie.from_table(table, live=None if live is None else live.cpu()).to(device)
        return later

    def _returnable(self) -> Tensor | None:
        return None if self.trie.num_items == self.num_items else self.trie.positions >= 0

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state before the first code; keys and values of the history are computed once a request."""
        path = torch.empty((batch.num_requests, 1, 0), dtype=torch.int64, device=self.codes.device)
        return GeneratorState(self._shared(batch.last(self.config.max_history_length)), {"path": path})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Return the logits [B, W, C] of the next level's codes, and the state after `codes [B, W]`."""
        logits, state = self.steps(state, None if codes is None else codes[..., None])
        return logits[0], state

    def steps(self, state: GeneratorState, codes: Tensor | None) -> tuple[list[Tensor], GeneratorState]:
        """Return the logits after each of n codes [B, W, n] (None: the first input), n times [B, W, C], and the state.

        `path [B, W, t]` has the positions of each beam, in the order in which the request's beams reached them.
        """
        path_BWt, shared = state.beams["path"], dict(state.shared)
        level, (B, W, _) = path_BWt.shape[2] % len(self.sizes), path_BWt.shape
        if level == 0:  # after a complete item the next one begins as the first did
            path_BWt, first = path_BWt[:, :, :0], path_BWt.new_zeros((B, W, 1))
            codes = first if codes is None else torch.cat([first, codes[..., 1:]], dim=2)
        assert codes is not None
        n, offsets = codes.shape[2], torch.tensor([self.first_input, *self.code_offsets])
        tokens_BWn = codes + offsets[level : level + n].to(codes)
        num_cached = shared["own_0"].shape[2] if "own_0" in shared else 0
        new_positions = torch.arange(num_cached, num_cached + W * n, device=path_BWt.device).view(1, W, n)
        path_BWt = torch.cat([path_BWt, new_positions.expand(B, -1, -1)], dim=2)
        bias = self.decoder_bias.on_paths(path_BWt, num_queries=n, num_keys=num_cached + W * n)
        hidden_ND = self.tokens(tokens_BWn.flatten())
        for number, layer in enumerate(self.decoder):
            hidden_ND, shared[f"own_{number}"] = cast(DecoderLayer, layer).step(
                hidden_ND,
                (shared[f"key_{number}"], shared[f"value_{number}"]),
                shared.get(f"own_{number}"),
                bias=bias,
                cross_bias=shared.get("bias"),
            )
        hidden_BWnD = self.decoder_norm(hidden_ND).view(B, W, n, -1)
        logits = [hidden_BWnD[:, :, offset] @ self._codes_weight(level + offset).T for offset in range(n)]
        return logits, GeneratorState(shared, {"path": path_BWt})

    def _all_logits(self, hidden_BMD: Tensor) -> list[Tensor]:
        """Return the logits of each level's codes, [B, C] for each of the hidden states."""
        return [hidden_BMD[:, level] @ self._codes_weight(level).T for level in range(hidden_BMD.shape[1])]

    def _codes_weight(self, level: int) -> Tensor:
        """Return the output rows [C, D] of a level's codes."""
        return self.output.weight[self.code_offsets[level] : self.code_offsets[level] + self.sizes[level]]

    def search(self, batch: SequenceBatch, k: int, *, guide: Guide | None) -> Recommendations:
        """Return the k best items of each request under this guide."""
        options: dict[str, Any] = {"k": k, "beam_width": max(k, self.config.beam_width), **self.steering(guide)}
        if self.config.new_items is None:
            return beam_search(self, batch, self.trie, **options)
        options |= {"share": self.config.new_items, "reserved": self.config.new_items_reserved}
        return search_with_new_items(self, batch, self.trie, new=self.popularity == 0, **options)

    def _shared(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Return keys and values of the encoded histories for each decoder layer, and the bias that hides padding."""
        encoded_BLD, bias = self._encode(batch)
        shared = {} if bias is None else {"bias": bias}
        for number, layer in enumerate(self.decoder):
            cross = cast(DecoderLayer, layer).cross
            shared[f"key_{number}"], shared[f"value_{number}"] = cross.keys_values(encoded_BLD)
        return shared

    def _encode(self, batch: SequenceBatch) -> tuple[Tensor, Tensor | None]:
        """Return the encoder output [B, L, D] and the bias [B, 1, 1, L], -inf at padding; None if nothing is padded."""
        items_BT = batch.items.to_padded()
        B, T = items_BT.shape
        starts = torch.tensor(self.code_offsets, device=items_BT.device)
        tokens_BL = (self.codes[items_BT] + starts).view(B, T * len(self.sizes))
        is_real_BL = (items_BT > 0).repeat_interleave(len(self.sizes), dim=1)
        if self.config.user_buckets:
            tokens_BL = torch.cat([self._user_tokens(batch)[:, None], tokens_BL], dim=1)
            is_real_BL = F.pad(is_real_BL, (1, 0), value=True)
        places = torch.arange(tokens_BL.shape[1], device=items_BT.device)
        bias, padding = self.encoder_bias(places, places)[None], None
        if not bool(is_real_BL.all()):
            padding = torch.where(is_real_BL, 0.0, -torch.inf)[:, None, None]
            bias = bias + padding
        hidden_BLD = self.dropout(self.tokens(tokens_BL))
        for layer in self.encoder:
            hidden_BLD = layer(hidden_BLD, bias)
        return self.dropout(self.encoder_norm(hidden_BLD)), padding

    def _decode(self, shared: dict[str, Tensor], codes_NS: Tensor) -> Tensor:
        """Return the hidden states [N, S + 1, D] that predict the next codes, for N / B sequences a request."""
        starts = codes_NS.new_tensor(self.code_offsets[: codes_NS.shape[1]])
        tokens_NS = F.pad(codes_NS + starts, (1, 0), value=self.first_input)
        places = torch.arange(tokens_NS.shape[1], device=codes_NS.device)
        is_future = torch.ones(len(places), len(places), dtype=torch.bool, device=codes_NS.device).triu(1)
        bias = self.decoder_bias(places, places)[None].masked_fill(is_future, -torch.inf)
        hidden_NSD = self.dropout(self.tokens(tokens_NS))
        for number, layer in enumerate(self.decoder):
            cross = (shared[f"key_{number}"], shared[f"value_{number}"])
            hidden_NSD = layer(hidden_NSD, cross, bias=bias, cross_bias=shared.get("bias"))
        return self.dropout(self.decoder_norm(hidden_NSD))  # type: ignore[no-any-return]

    def _user_tokens(self, batch: SequenceBatch) -> Tensor:
        """Return the token of each user's bucket, [B]; an unknown user has bucket 0."""
        users = torch.zeros_like(batch.items.lengths) if batch.user_ids is None else batch.user_ids
        return self.first_input + 1 + torch.where(users > 0, users % self.config.user_buckets + 1, 0)
