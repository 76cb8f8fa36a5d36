"""OneRec-V2: a lazy decoder reads the history as keys and values, and generates the codes of the next item.

Zhou et al., OneRec-V2 Technical Report, arXiv 2508.20900. The history passes one projection, no encoder
(nn/attention/lazy_decoder.py), so nearly all work is spent on the codes of the target. Each target is trained once,
with the history before it, by the mean cross-entropy of its codes.

Notable
- A context token is an event: the sum of the vectors of its item and of the nodes above the item, and of its position
  counted from the last event. One more token is the user, if the catalogue has categorical features of users.
- `head = "nodes"`: a vector for each node of the trie, a leaf's is that of its item, and legal codes compete
  (decoding/node_vectors.py). `head = "linear"` is the paper's: a linear layer for each level, all codes compete.
- The first input token stands for the objective of the example (UniRec, arXiv 2604.12234): one model learns clicks and
  purchases, and a request says which of them orders its list (`objectives`).
- `target_weights` adds later events as targets of the same history; the paper has the newest alone. They share the
  first position, and keys and values of the history. With `codes_after_first = "sampled"` one of them, sampled by its
  weight, goes deeper: the expected loss is the same, at the cost of one target.
- Positions are counted from the end, so a new event changes the keys of all. Reading a history again costs one product
  of matrices, so there is no cached state (roles.Incremental).

Shapes: B requests, K targets, L context tokens, W beams, T targets of a batch, D width, N items, M levels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.core.top_items import append_unseen
from nextitem.data.examples.next_target import NextTargets
from nextitem.data.examples.objectives import OBJECTIVE, objective_masks
from nextitem.data.requests import user_context
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.code_outputs import CodeOutputs
from nextitem.decoding.context_tokens import ContextTokens, Reads
from nextitem.decoding.guidance import GuidedConfig, GuidedRecommender
from nextitem.decoding.guide import Guide
from nextitem.decoding.item_paths import ItemPaths
from nextitem.decoding.node_vectors import NodeVectors, child_ranges
from nextitem.decoding.trie import PrefixTrie
from nextitem.losses.prefix_loss import PrefixAwareConfig, prefix_loss_of
from nextitem.nn.attention.lazy_decoder import LazyDecoder, LazyDecoderConfig
from nextitem.nn.byte_dropout import ByteDropout
from nextitem.nn.experts import take_balance_losses
from nextitem.nn.fields.user_token import UserToken, user_columns
from nextitem.nn.initialisation import truncated_normal_
from nextitem.ops.trie_step import logits_by_code


class OneRecV2Config(LazyDecoderConfig, PrefixAwareConfig, GuidedConfig):
    """Settings of OneRecV2."""

    max_history_length: int = Field(50, ge=1)
    """Number of most recent events that the model reads."""
    reads: tuple[Reads, ...] = Field(("items", "nodes"), min_length=1)
    """Vectors that an event is the sum of: the item's own, those of the nodes above its leaf."""
    user_features: bool = True
    """Whether the categorical features of users, if the catalogue has any, are one more context token."""
    head: Literal["nodes", "linear"] = "nodes"
    """What generates a code: a vector for each node among its siblings, or a linear layer over all codes of a level."""
    objectives: tuple[str, ...] = ()
    """Actions or labels of events that are objectives of their own, such as click and purchase; none: every target."""
    objective: str | None = None
    """Objective that orders the lists of a request that names none; none: the first of `objectives`."""
    target_weights: tuple[float, ...] = Field((1.0,), min_length=1)
    """Weights of the next event, the one after it, and so on, all generated from the same history."""
    codes_after_first: Literal["all", "sampled"] = "all"
    """Targets of an example whose codes after the first are learned: all, or one that is sampled by its weight."""
    targets_per_epoch: int | None = Field(None, ge=1)
    """Number of training examples of an epoch, sampled again for each epoch; none: all."""
    order: Literal["shuffled", "time"] = "shuffled"
    """Order of training: random, or by time, as in a stream of impressions."""
    beam_width: int = Field(20, ge=1)
    """Number of beams that stay in the search; raised to k if k is larger."""

    @pydantic.model_validator(mode="after")
    def _check_objectives(self) -> OneRecV2Config:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives = {list(self.objectives)}: name each objective once")
        if self.objective is not None and self.objective not in self.objectives:
            raise ValueError(f"objective = {self.objective!r} is none of objectives = {list(self.objectives)}")
        return self

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        is_sampled = self.order == "shuffled"
        return {
            **super().idle_fields(),
            **configs.idle_unless(len(self.target_weights) > 1, "there is one target", "codes_after_first"),
            **configs.idle_unless(is_sampled or self.targets_per_epoch is None, "order is time", "targets_per_epoch"),
        }


class OneRecV2(GuidedRecommender):
    """A recommender that ranks items by the probability of generating their codes after the history."""

    Config = OneRecV2Config
    config: OneRecV2Config
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers"})

    def __init__(self, config: OneRecV2Config, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        table, width = catalog.identifiers, config.width
        if table is None:
            raise ValueError("OneRecV2 needs a catalogue with identifiers: create them with nextitem tokenize")
        self.tree = ItemPaths(table)
        sizes: dict[str, Any] = {"width": width, "length": config.max_history_length}
        user = UserToken(catalog, width) if config.user_features and user_columns(catalog) else None
        self.tokens = ContextTokens(self.tree, reads=config.reads, user=user, **sizes)  # its items are the leaves', too
        self.first = nn.Embedding(max(1, len(config.objectives)), width)
        self.decoder = LazyDecoder(config)
        codebooks = self.trie.codebook_sizes
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in codebooks)
        self.head: NodeVectors | CodeOutputs
        if config.head == "nodes":
            self.head = NodeVectors(self.tree, parts="nodes", content=None, width=width)
        else:
            self.head = CodeOutputs(codebooks, width=width)
        self.dropout = ByteDropout(config.dropout)
        self.prefix_loss = prefix_loss_of(config, num_levels=len(codebooks))
        truncated_normal_(self)
        self.decoder.start_as_mean()
        self.add_guidance(config.guide)
        self.register_load_state_dict_post_hook(OneRecV2._set_unseen)  # type: ignore[no-untyped-call]

    @property
    def trie(self) -> PrefixTrie:
        """The trie of the identifiers."""
        return self.tree.trie

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether codes alone name items; with a vector for each leaf nothing is known of an item without events."""
        return self.config.head == "linear"

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives that can order a list (roles.HasObjectives)."""
        return self.config.objectives

    def ordered_by(self, objective: str) -> Self:
        """Return the model with lists of another objective; both share their weights."""
        other = self._sharing_weights()
        other.config = OneRecV2Config.model_validate({**dict(self.config), "objective": objective})
        return other

    def examples(self, train: Dataset) -> NextTargets:
        """Return every target with the history before it, once for each of its objectives."""
        config = self.config
        return NextTargets(
            train.interactions,
            max_length=config.max_history_length,
            num_targets=len(config.target_weights),
            per_epoch=config.targets_per_epoch if config.order == "shuffled" else None,
            in_order=config.order == "time",
            user_context=None if self.tokens.user is None else user_context(train),
            objectives=objective_masks(train, self.objectives) if self.objectives else None,
        )

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the mean cross-entropy of the codes of the next event, plus that of later events by weight."""
        assert batch.targets is not None
        items_BK = batch.targets.to_padded()
        weights_BK = (items_BK > 0) * torch.tensor(self.config.target_weights, device=items_BK.device)[
            : items_BK.shape[1]
        ]
        deeper_BK, deeper_weights_BK = items_BK, weights_BK
        if self.training and self.config.codes_after_first == "sampled" and items_BK.shape[1] > 1:
            deeper_BK = items_BK.gather(1, torch.multinomial(weights_BK, 1))
            deeper_weights_BK = weights_BK.sum(1, keepdim=True)
        named = {}
        for level, states in enumerate(self._all_hidden(batch, deeper_BK)):
            targets, weights = (deeper_BK, deeper_weights_BK) if level else (items_BK, weights_BK)
            is_real = targets > 0
            paths, rows = self.tree.nodes[targets[is_real]], is_real.nonzero()[:, 0]
            log_probs = self.head.log_probs(
                self.norms[level](states),
                paths[:, level + 1],
                paths[:, level] if level else rows.new_zeros(len(states)),
                rows=torch.arange(len(rows), device=rows.device) if level else rows,
                **self._vectors_of(level),
            )
            named[f"level_{level + 1}"] = -(weights[is_real] * log_probs).sum() / len(items_BK)
        total = torch.stack(list(named.values())).mean()
        if self.prefix_loss is not None:
            named["prefixes"] = self.prefix_loss(list(named.values()))
            total = total + named["prefixes"]
        balance = take_balance_losses(self)
        if balance is not None:
            named["balance"] = balance
            total = total + balance
        return LossTerms(total, {name: value.detach() for name, value in named.items()})

    def _all_hidden(self, batch: SequenceBatch, items_BK: Tensor) -> list[Tensor]:
        """Return the hidden states at the root, [B, D], and at the further nodes of the items' paths, [T, D] each.

        The items of a request, 0 for none, share the first position.
        """
        context, mask = self._context(batch)
        objectives = batch.context.get(OBJECTIVE, torch.zeros_like(batch.items.lengths))
        inputs = self.dropout(self._scaled(self.first(objectives)))[:, None, None]
        first, past = self.decoder(inputs, context, mask=mask)
        levels, is_real = range(1, self.trie.num_levels), items_BK > 0
        if not levels:
            return [first[:, 0, 0]]
        inputs = torch.stack([self._input(self.tree.nodes[items_BK, level], level=level) for level in levels], 2)
        past = past.expand(-1, items_BK.shape[1], *[-1] * 5)
        further, _ = self.decoder(
            self.dropout(inputs), context, mask=mask, past=past, is_real=is_real if is_real.shape[1] > 1 else None
        )
        return [first[:, 0, 0], *further[is_real].unbind(1)]

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state before the first code; the history is read once, for all beams."""
        batch = batch.last(self.config.max_history_length)
        context, mask = self._context(batch)
        objective = self.config.objective
        number = 0 if objective is None else self.objectives.index(objective)
        inputs = self._scaled(self.first(torch.full_like(batch.items.lengths, number)))[:, None, None]
        first, past = self.decoder(inputs, context, mask=mask)
        shared = {"context": context, "first": first[:, :, 0], "past": past} | ({} if mask is None else {"mask": mask})
        return GeneratorState(shared, {"node": torch.zeros_like(batch.items.lengths)[:, None], "past": past})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Return the logits [B, W, C] of the next codes, -inf without a node, and the state after `codes [B, W]`.

        After the last code of an item the next one begins, at the root.
        """
        node_BW = state.beams["node"]
        if codes is not None:
            is_last = self.trie.depth_of(node_BW) + 1 == self.trie.num_levels
            node_BW = torch.zeros_like(codes) if is_last else self.trie.advance(node_BW, codes)
        depth = self.trie.depth_of(node_BW)
        children = self.trie.expand(node_BW, depth=depth)
        logits, state = self.score_children(state, codes, children.nodes)
        return logits_by_code(logits, children, self.trie.codebook_sizes[depth]), state

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        """Return the logits of the children `nodes [B, W, D]`, and the state after `codes [B, W]`."""
        shared, level = state.shared, self.trie.depth_of(nodes) - 1
        node_BW = self.trie.parents(nodes.amax(2), depth=level)
        W = node_BW.shape[1]
        if level == 0:
            hidden_BWD, past = shared["first"].expand(-1, W, -1), shared["past"].expand(-1, W, *[-1] * 5)
        else:
            inputs, past = self._input(node_BW, level=level)[:, :, None], state.beams["past"]
            hidden, past = self.decoder(inputs, shared["context"], mask=shared.get("mask"), past=past)
            hidden_BWD = hidden[:, :, 0]
        ranges, states = child_ranges(self.trie, node_BW.flatten()), self.norms[level](hidden_BWD).flatten(0, 1)
        logits = self.head.logits(states, ranges, **self._vectors_of(level)).view(*node_BW.shape, -1)
        places = nodes - ranges.starts.view(node_BW.shape)[..., None]
        logits = logits.gather(2, places.clamp(0, logits.shape[2] - 1))
        if not self.can_rank_unseen_items:
            logits = self.tree.mask_without_seen(logits, nodes, is_leaf=level + 1 == self.trie.num_levels)
        return logits, GeneratorState(shared, {"node": node_BW, "past": past})

    def search(self, batch: SequenceBatch, k: int, *, guide: Guide | None) -> Recommendations:
        """Return the k best items of each request under this guide."""
        trie = self.trie if self.can_rank_unseen_items else self.tree.seen_trie
        answer = beam_search(self, batch, trie, k=k, beam_width=max(k, self.config.beam_width), **self.steering(guide))
        return append_unseen(answer, batch, self.unseen_items())

    def set_popularity(self, counts: Tensor) -> None:
        """Store how often each item occurs in training; items without an event get no vector of their own."""
        super().set_popularity(counts)
        self._set_unseen()

    def _set_unseen(self, *_: object) -> None:
        self.tree.set_unseen(self._items_without_events())

    def _context(self, batch: SequenceBatch) -> tuple[Tensor, Tensor | None]:
        """Return keys and values of the context, and which tokens are real, bool [B, 1, 1, L]; None: all."""
        unseen = None if self.training else self._items_without_events()
        tokens_BLD, mask = self.tokens(batch, self.tree, unseen)
        return self.decoder.read(self.dropout(self._scaled(tokens_BLD))), mask

    def _input(self, nodes: Tensor, *, level: int) -> Tensor:
        """Return the input vectors of nodes of depth `level`, [..., D]."""
        return self._scaled(self.head(nodes, level=level - 1, tree=self.tree))

    def _scaled(self, vectors: Tensor) -> Tensor:
        """Return input vectors times the root of the width: they start as small as the vectors of the outputs."""
        return torch.mul(vectors, self.config.width**0.5)

    def _vectors_of(self, level: int) -> dict[str, Any]:
        """Return the arguments of the head for a level."""
        return {"level": level, "tree": self.tree, "items": self.tokens.items.weight, "content": None}
