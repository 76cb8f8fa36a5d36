"""TIGER: generates the semantic ID of the next item, code by code.

Rajput et al., Recommender Systems with Generative Retrieval, arXiv 2305.05065. Items are spelt as short sequences of
codes made from their content; a T5-style encoder reads the codes of the history, a decoder spells the next item, and a
beam search over the catalogue's prefix trie returns the likeliest items. Similar items share codes, so what is learnt
of one is learnt of its neighbours, unseen ones included.

Notable
- Each level is a softmax over its own codes, where the paper's is over the whole vocabulary: a code of another level
  can never be right, so no probability is spent on it.
- The search only enters prefixes of items that the request may be answered with; the paper's is unconstrained, and
  drops invalid results.
- The paper's sizes give 4.8 million parameters by plain T5, and it states about 13. `ff_layers = 2` (two hidden layers
  of 1,024) and `width = 384` are the two readings that reach it.
- Input and output tables are separate, as in T5 1.1. Every prefix of a history is an example.
- The user token is a bucket of the user's stable key; visitors have bucket 0.
- `beam_aware` adds a loss of OTM's kind (decoding/visited_prefixes.py), which the paper has not.

Shapes: B requests, L tokens, W beams, D width, H heads, E head width, M levels, C codes of a level.
"""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar, cast

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
from nextitem.core.recommender import Recommender
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.data.examples.next_target import NextTargets
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.new_items import search_with_new_items
from nextitem.decoding.scheduled_sampling import sampled_prefixes
from nextitem.decoding.trie import PrefixTrie
from nextitem.decoding.visited_prefixes import listwise_loss, visited_prefixes
from nextitem.nn.attention.t5 import DecoderLayer, EncoderLayer, RelativePositionBias, initialise_as_t5


class TigerConfig(configs.Config):
    """Settings of Tiger."""

    width: int = Field(64, ge=1)
    """D."""
    heads: int = Field(4, ge=1)
    """H."""
    head_width: int = Field(16, ge=1)
    """E."""
    ff_width: int = Field(256, ge=1)
    """Hidden units of the feed-forward layers."""
    ff_layers: int = Field(1, ge=1)
    """Hidden layers of each feed-forward block; T5: 1, one reading of TIGER: 2."""
    encoder_layers: int = Field(2, ge=1)
    """Blocks."""
    decoder_layers: int = Field(2, ge=1)
    """Blocks."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Everywhere that T5 has it."""
    max_history_length: int = Field(20, ge=1)
    """Most recent events that are read."""
    user_buckets: int = Field(0, ge=0)
    """Hashed user tokens before the history; 0: none."""
    targets_per_epoch: int | None = Field(None, ge=1)
    """Examples of an epoch, drawn anew each time; None: all."""
    beam_width: int = Field(20, ge=1)
    """Beams kept; at least k are."""
    scheduled_sampling: float = Field(0.0, ge=0, le=1)
    """Share of training prefixes' codes that are the model's own."""
    beam_aware: float = Field(0.0, ge=0)
    """Weight of the loss among prefixes that a beam visits (OTM, ICML 2020)."""
    training_beam: int = Field(8, ge=1)
    """Beams of that search."""
    new_items: float | None = Field(None, ge=0, le=1)
    """At most this share of a list has no training event; None: any."""
    new_items_reserved: bool = False
    """So many places are theirs, whatever the scores."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        return {
            **configs.idle_unless(self.beam_aware > 0, "beam_aware is 0", "training_beam"),
            **configs.idle_unless(self.new_items is not None, "new_items is none", "new_items_reserved"),
        }


class Tiger(Recommender):
    """Ranks items by the probability of spelling their semantic ID."""

    Config = TigerConfig
    config: TigerConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    can_rank_unseen_items = True  # by codes made from content
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers"})
    codes: Tensor
    trie: PrefixTrie

    def __init__(self, config: TigerConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        table = catalog.identifiers
        if table is None:
            raise ValueError("Tiger needs a catalogue with identifiers: make them with nextitem tokenize")
        self.sizes = table.codebook_sizes
        self.code_offsets = [sum(self.sizes[:level]) for level in range(len(self.sizes))]
        self.register_buffer("codes", table.codes.long().clamp(min=0), persistent=False)  # [N + 1, M]
        self.trie = PrefixTrie.from_table(table)
        # Codes by level, then the first decoder input, then user buckets (0: unknown).
        self.first_input = sum(self.sizes)
        self.tokens = nn.Embedding(self.first_input + 1 + config.user_buckets + bool(config.user_buckets), config.width)
        self.output = nn.Linear(config.width, sum(self.sizes), bias=False)
        self.encoder_bias = RelativePositionBias(config.heads, bidirectional=True)
        self.decoder_bias = RelativePositionBias(config.heads, bidirectional=False)
        sizes: dict[str, Any] = {"heads": config.heads, "head_width": config.head_width, "inner": config.ff_width}
        sizes |= {"hidden_layers": config.ff_layers, "dropout": config.dropout}
        self.encoder = nn.ModuleList(EncoderLayer(config.width, **sizes) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config.width, **sizes) for _ in range(config.decoder_layers))
        self.encoder_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.decoder_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        initialise_as_t5(self, width=config.width, heads=config.heads, head_width=config.head_width)

    def examples(self, train: Dataset) -> NextTargets:
        """Every target with the history before it."""
        keys = train.users.keys if self.config.user_buckets and not train.anonymous else None
        log, length, count = train.interactions, self.config.max_history_length, self.config.targets_per_epoch
        return NextTargets(log, max_length=length, per_epoch=count, user_keys=keys)

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Mean cross-entropy of the target's codes, given the codes before (equation of section 3.2)."""
        assert batch.targets is not None
        wanted_BM = self.codes[batch.targets.values]
        shared, fed_BM, real_BM = self._shared(batch), wanted_BM, torch.ones_like(wanted_BM, dtype=torch.bool)
        if self.config.scheduled_sampling and self.training:
            with torch.no_grad():
                first = self._all_logits(self._decode(shared, wanted_BM[:, :-1]))
            fed_BM, real_BM = sampled_prefixes(first, wanted_BM, self.trie, share=self.config.scheduled_sampling)
        named = {}
        for level, logits in enumerate(self._all_logits(self._decode(shared, fed_BM[:, :-1]))):
            losses = F.cross_entropy(logits, wanted_BM[:, level], reduction="none") * real_BM[:, level]
            named[f"level_{level + 1}"] = losses.sum() / real_BM[:, level].sum().clamp(min=1)
        total = torch.stack(list(named.values())).mean()
        if self.config.beam_aware and self.training:
            named["beam"] = self._beam_loss(batch, shared)
            total = total + self.config.beam_aware * named["beam"]
        return LossTerms(total, {name: value.detach() for name, value in named.items()})

    def _beam_loss(self, batch: SequenceBatch, shared: dict[str, Tensor]) -> Tensor:
        """Each prefix of a target among those that the present model's beam keeps, mean over the levels."""
        assert batch.targets is not None
        self.eval()  # the search must not move what training measures
        visited = visited_prefixes(self, batch, self.trie, batch.targets.values, beam_width=self.config.training_beam)
        self.train()

        def log_probs(codes_BWS: Tensor) -> Tensor:
            repeated = {name: value.repeat_interleave(codes_BWS.shape[1], 0) for name, value in shared.items()}
            logits = self._all_logits(self._decode(repeated, codes_BWS.flatten(0, 1)[:, :-1]))
            pairs = zip(logits, codes_BWS.unbind(2), strict=True)
            parts = [F.cross_entropy(each, codes.flatten(), reduction="none") for each, codes in pairs]
            return -torch.stack(parts).sum(0).view(codes_BWS.shape[:2])

        return listwise_loss(visited, self.trie, self.codes, log_probs)

    def with_catalog(self, catalog: Catalog, *, live: Tensor | None = None) -> Tiger:
        """A model with the same weights over a later version of the catalogue; this one answers as before.

        So a service changes the catalogue by putting one model in another's place. The weights are shared: neither may
        be trained or moved. Items keep their numbers and codes, new ones follow; `live`, bool [N + 1]: those that may
        still be returned (None: all). ValueError where the catalogue is no later version.
        """
        table, own, ids = catalog.identifiers, self.identifiers, catalog.ids.external.head(self.num_items)
        if table is None or own is None or not table.continues(own) or not ids.equals(self.catalog.ids.external):
            raise ValueError("the catalogue must begin with the items that the model has, and their identifiers")
        later, device = copy(self), self.codes.device
        later._buffers, later._modules = dict(self._buffers), dict(self._modules)  # the tensors in them are shared
        later.catalog = catalog
        later.codes = table.codes.long().clamp(min=0).to(device)
        later.popularity = F.pad(self.popularity, (0, catalog.num_items - self.num_items))
        later.trie = PrefixTrie.from_table(table, live=None if live is None else live.cpu()).to(device)
        return later

    def _returnable(self) -> Tensor | None:
        return None if self.trie.num_items == self.num_items else self.trie.positions >= 0

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Encodes the histories; keys and values for the decoder are made once a request."""
        path = torch.empty((batch.num_requests, 1, 0), dtype=torch.int64, device=self.codes.device)
        return GeneratorState(self._shared(batch.last(self.config.max_history_length)), {"path": path})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Logits [B, W, C] of the next level's codes."""
        logits, state = self.steps(state, None if codes is None else codes[..., None])
        return logits[0], state

    def steps(self, state: GeneratorState, codes: Tensor | None) -> tuple[list[Tensor], GeneratorState]:
        """Logits after each of n codes [B, W, n] (None: the first input), n times [B, W, C].

        A request's positions are numbered in the order in which its beams came to them; `path [B, W, t]` are those
        of each beam.
        """
        path_BWt, shared = state.beams["path"], dict(state.shared)
        level = path_BWt.shape[2]
        if codes is None:
            tokens_BWn = torch.full((len(path_BWt), 1, 1), self.first_input, device=path_BWt.device)
        else:
            starts = torch.tensor(self.code_offsets[level - 1 :][: codes.shape[2]], device=codes.device)
            tokens_BWn = codes + starts
        B, W, n = tokens_BWn.shape
        known = shared["own_0"].shape[2] if level else 0
        fresh = torch.arange(known, known + W * n, device=path_BWt.device).view(1, W, n)
        path_BWt = torch.cat([path_BWt, fresh.expand(B, -1, -1)], dim=2)
        bias = self._path_bias(path_BWt, n, known + W * n)
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
        logits = [hidden_BWnD[:, :, place] @ self._codes_weight(level + place).T for place in range(n)]
        return logits, GeneratorState(shared, {"path": path_BWt})

    def _all_logits(self, hidden_BMD: Tensor) -> list[Tensor]:
        """Logits of each level's codes, [B, C] for each of the hidden states."""
        return [hidden_BMD[:, level] @ self._codes_weight(level).T for level in range(hidden_BMD.shape[1])]

    def _codes_weight(self, level: int) -> Tensor:
        """Output rows [C, D] of a level's codes."""
        return self.output.weight[self.code_offsets[level] : self.code_offsets[level] + self.sizes[level]]

    def _path_bias(self, path_BWt: Tensor, n: int, positions: int) -> Tensor:
        """[B H, W n, positions]: the relative bias from a beam's last n positions along its path, -inf elsewhere."""
        B, W, t = path_BWt.shape
        places = torch.arange(t, device=path_BWt.device)
        bias = torch.full((B, self.config.heads, W, n, positions), -torch.inf, device=path_BWt.device)
        for last in range(n):
            reach = t - n + last + 1
            along = self.decoder_bias(places[reach - 1 : reach], places[:reach]).expand(B, -1, W, -1)
            bias[:, :, :, last].scatter_(3, path_BWt[:, None, :, :reach].expand_as(along), along.to(bias.dtype))
        return bias.view(-1, W * n, positions)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        chosen, width = self.config, max(k, self.config.beam_width)
        if chosen.new_items is None:
            return beam_search(self, batch, self.trie, k=k, beam_width=width)
        places: dict[str, Any] = {"share": chosen.new_items, "reserved": chosen.new_items_reserved}
        new = self.popularity == 0
        return search_with_new_items(self, batch, self.trie, new=new, k=k, beam_width=width, **places)

    def _shared(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Keys and values of the encoded histories for each decoder layer, and the bias that hides padding."""
        encoded_BLD, bias = self._encode(batch)
        shared = {} if bias is None else {"bias": bias}
        for number, layer in enumerate(self.decoder):
            shared[f"key_{number}"], shared[f"value_{number}"] = cast(DecoderLayer, layer).cross.keys_values(
                encoded_BLD
            )
        return shared

    def _encode(self, batch: SequenceBatch) -> tuple[Tensor, Tensor | None]:
        """Encoder output [B, L, D] and the bias [B, 1, 1, L] that is -inf at padding; None where there is none."""
        items_BT = batch.items.to_padded()
        B, T = items_BT.shape
        starts = torch.tensor(self.code_offsets, device=items_BT.device)
        tokens_BL = (self.codes[items_BT] + starts).view(B, T * len(self.sizes))
        real_BL = (items_BT > 0).repeat_interleave(len(self.sizes), dim=1)
        if self.config.user_buckets:
            tokens_BL = torch.cat([self._user_tokens(batch)[:, None], tokens_BL], dim=1)
            real_BL = F.pad(real_BL, (1, 0), value=True)
        places = torch.arange(tokens_BL.shape[1], device=items_BT.device)
        bias, padding = self.encoder_bias(places, places)[None], None
        if not bool(real_BL.all()):
            padding = torch.zeros(real_BL.shape, device=items_BT.device).masked_fill(~real_BL, -torch.inf)[
                :, None, None
            ]
            bias = bias + padding
        hidden_BLD = self.dropout(self.tokens(tokens_BL))
        for layer in self.encoder:
            hidden_BLD = layer(hidden_BLD, bias)
        return self.dropout(self.encoder_norm(hidden_BLD)), padding

    def _decode(self, shared: dict[str, Tensor], codes_BS: Tensor) -> Tensor:
        """Hidden states [B, S + 1, D] that predict each next code, all positions at once (training)."""
        starts = codes_BS.new_tensor(self.code_offsets[: codes_BS.shape[1]])
        tokens_BS = F.pad(codes_BS + starts, (1, 0), value=self.first_input)
        places = torch.arange(tokens_BS.shape[1], device=codes_BS.device)
        future = torch.ones(len(places), len(places), dtype=torch.bool, device=codes_BS.device).triu(1)
        bias = self.decoder_bias(places, places)[None].masked_fill(future, -torch.inf)
        hidden_BSD = self.dropout(self.tokens(tokens_BS))
        for number, layer in enumerate(self.decoder):
            cross = (shared[f"key_{number}"], shared[f"value_{number}"])
            hidden_BSD = layer(hidden_BSD, cross, bias=bias, cross_bias=shared.get("bias"))
        return self.dropout(self.decoder_norm(hidden_BSD))  # type: ignore[no-any-return]

    def _user_tokens(self, batch: SequenceBatch) -> Tensor:
        """Token of each user's bucket, [B]; an unknown user has bucket 0."""
        users = batch.user_ids if batch.user_ids is not None else torch.zeros_like(batch.items.lengths)
        return self.first_input + 1 + torch.where(users > 0, users % self.config.user_buckets + 1, 0)
