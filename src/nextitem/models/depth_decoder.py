"""Depth decoder: a transformer reads one vector an item, and a small network generates the codes of the next item.

The idea of RQ-Transformer (Lee et al., arXiv 2203.01941), for recommendation by MARIUS (arXiv 2508.14910) and IntRR
(arXiv 2602.20704): a sequence of n items costs n tokens instead of n times M. All positions of a history are trained in
one pass. From the hidden state after an event, a depth network descends the trie of the codes:

    z_1 = h                                    h: hidden state after the last event
    p(node | parent) = softmax over the parent's children of z_l . vector(node)
    z_(l + 1) = norm(z_l + network(z_l, vector(node)))

Notable
- Every node of the trie has a vector of its own; a leaf's is the vector of its item, which the input reads, too. The
  papers share one vector among all nodes with the same code (`vectors = "codes"`): recall falls by almost a third.
- Only legal codes compete, in training as in the search: what is trained is what is served.
- The events after the next one are targets, too, with falling weights; the papers predict the next event alone.
- Items without a training event have no vector of their own, and do not compete in training. `content_shares` lists
  them by their content; `id_dropout` hides the vectors of random items, so that content at leaves stands in for them.
- Positions are counted from the first event, so that a new event of a user costs one step (roles.Incremental).
- `relearn_after` replaces the identifiers by clusters of the items' input vectors, as TDM relearns its tree.
- `dense_weight` adds a softmax over items by the same hidden state and item vectors, trained jointly.
- `prefix_loss` adds APAO's loss of prefixes, which is in none of these papers (losses/prefix_loss.py).

Shapes: B requests, T targets of a batch, L positions, W beams, D width, N items, M levels, C children of a beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.core.top_items import append_unseen
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.guidance import GuidedConfig, GuidedRecommender
from nextitem.decoding.guide import Guide
from nextitem.decoding.item_paths import ItemPaths
from nextitem.decoding.node_vectors import NodeVectors, Parts, Targets, child_ranges, path_losses
from nextitem.decoding.trie import PrefixTrie
from nextitem.losses.prefix_loss import PrefixAwareConfig, prefix_loss_of
from nextitem.losses.sampled_softmax import sampled_softmax
from nextitem.neighbours.content_shares import ContentShares, ContentSharesConfig
from nextitem.nn.attention.causal_encoder import CausalEncoder, CausalEncoderConfig
from nextitem.nn.attention.incremental import extend_history_state
from nextitem.nn.depth_network import DEPTH_NETWORKS
from nextitem.nn.fields.item_features import CONTENT
from nextitem.nn.initialisation import truncated_normal_
from nextitem.nn.quantisation.cluster_codes import relearned_codes
from nextitem.ops.trie_step import logits_by_code


class DepthDecoderConfig(CausalEncoderConfig, PrefixAwareConfig, GuidedConfig):
    """Settings of DepthDecoder."""

    reads: tuple[Literal["items", "nodes", "content"], ...] = ("items", "nodes")
    """Vectors that an event is the sum of: the item's own, those of the nodes above its leaf, its content."""
    vectors: Parts = "nodes"
    """Vectors of the nodes: one for each node, one for each code of a level, or the sum of both."""
    relearn_after: tuple[int, ...] = ()
    """Epochs after which the items get other identifiers: balanced clusters of the vectors as which they are read."""
    relearn_below: int = Field(0, ge=0)
    """Number of first codes that stay then: 1 if the first code is an attribute."""
    content_at_leaves: bool = False
    """Whether the vector of a leaf also contains the item's content; needed to generate items without events."""
    depth_network: Literal["mlp", "transformer"] = "mlp"
    """Network that goes one level deeper."""
    depth_width: int = Field(128, ge=1)
    """Number of hidden units of the depth network."""
    target_weights: tuple[float, ...] = Field((1.0, 0.4, 0.2, 0.1, 0.05), min_length=1)
    """Weights of the next event, the one after it, and so on, all of which are targets of the same hidden state."""
    id_dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of items whose own vectors are hidden in a training step."""
    dense_weight: float = Field(0.0, ge=0)
    """Weight of a softmax over items by the same vectors; 0: none."""
    dense_negatives: int = Field(256, ge=1)
    """Number of sampled items of that softmax."""
    content_shares: ContentSharesConfig | None = None
    """Settings by which items without a training event compete by their content; none: they are ranked last."""
    beam_width: int = Field(20, ge=1)
    """Number of beams that stay in the search; raised to k if k is larger."""

    @property
    def needs(self) -> frozenset[Requirement]:
        """What the catalogue must contain."""
        reads_content = self.content_at_leaves or "content" in self.reads or self.content_shares is not None
        return super().needs | (frozenset({CONTENT}) if reads_content else frozenset())

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return {
            **configs.idle_unless(self.dense_weight > 0, "dense_weight is 0", "dense_negatives"),
            **configs.idle_unless(bool(self.relearn_after), "relearn_after names no epoch", "relearn_below"),
        }


class DepthDecoder(GuidedRecommender):
    """A recommender that ranks items by the probability of their path down a trie."""

    Config = DepthDecoderConfig
    config: DepthDecoderConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers"})
    content: Tensor | None

    def __init__(self, config: DepthDecoderConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        table = catalog.identifiers
        if table is None:
            raise ValueError("DepthDecoder needs a catalogue with identifiers: create them with nextitem tokenize")
        self.tree = ItemPaths(table, replaced_below=config.relearn_below if config.relearn_after else None)
        reads_content = config.content_at_leaves or "content" in config.reads
        self.register_buffer("content", catalog.content if reads_content else None, persistent=False)
        self.items = nn.Embedding(catalog.num_items + 1, config.width, padding_idx=0)  # input, and leaves
        self.nodes_read = nn.Embedding(self.tree.num_inner, config.width) if "nodes" in config.reads else None
        is_read, content_width = "content" in config.reads, 0 if self.content is None else self.content.shape[1]
        self.content_read = nn.Linear(content_width, config.width, bias=False) if is_read else None
        self.encoder = CausalEncoder(config)
        shares, content = config.content_shares, self.content if config.content_at_leaves else None
        self.shares = None if shares is None else ContentShares(shares, catalog.content)
        self.nodes = NodeVectors(self.tree, parts=config.vectors, content=content, width=config.width)
        levels, network = self.trie.num_levels, DEPTH_NETWORKS[config.depth_network]
        self.deeper = network(config.width, levels=levels, hidden=config.depth_width, dropout=config.dropout / 2)
        self.prefix_loss = prefix_loss_of(config, num_levels=levels)
        truncated_normal_(self)
        self.add_guidance(config.guide)
        self.register_load_state_dict_post_hook(DepthDecoder._set_unseen)  # type: ignore[no-untyped-call]

    @property
    def trie(self) -> PrefixTrie:
        """The trie of the current identifiers."""
        return self.tree.trie

    @property
    def codes(self) -> Tensor:
        """The codes of the current identifiers, [N + 1, M]."""
        return self.tree.codes

    @property
    def identifiers(self) -> IdentifierTable:
        """The current identifiers."""
        return self.tree.table

    @property
    def can_rank_unseen_items(self) -> bool:
        """Whether content is read at leaves or by shares; without it nothing is known of an item without events."""
        return self.config.content_at_leaves or self.config.content_shares is not None

    def examples(self, train: Dataset) -> NextItemSequences:
        """Return windows of the users' histories; every event but the first is a target."""
        return NextItemSequences(train.interactions, max_length=self.config.max_history_length)

    def training_loss(self, batch: NextItemBatch) -> LossTerms:
        """Return the cross-entropy of the targets' nodes among their siblings, summed over levels, at all positions."""
        items = self._visible_items(generator := torch.Generator().manual_seed(batch.seed))
        hidden_TD = self.encoder(batch.items, lambda ids: self._embed(ids, items))
        lags = batch.weighted_targets(self.config.target_weights)
        return self._loss(hidden_TD, lags, items, generator, num_next=batch.loss_count)

    def _visible_items(self, generator: torch.Generator) -> Tensor:
        """Return the items' own vectors, [N + 1, D]; in training, those of random items are 0 (`id_dropout`)."""
        items = self.items.weight
        if not self.training or not self.config.id_dropout:
            return items
        is_hidden = torch.rand(len(items), generator=generator) < self.config.id_dropout
        return items * ~is_hidden.to(items.device)[:, None]

    def _loss(
        self, hidden_RD: Tensor, targets: Targets, items: Tensor, generator: torch.Generator, *, num_next: int
    ) -> LossTerms:
        """Return the loss of targets, the first `num_next` of which are the next items of hidden states [R, D]."""
        vectors: dict[str, Any] = {"nodes": self.nodes, "tree": self.tree, "items": items, "content": self.content}
        losses = path_losses(hidden_RD, targets, deeper=self.deeper, **vectors)
        named = {f"level_{level}": loss for level, loss in enumerate(losses, start=1)}
        total = torch.stack(losses).sum()
        if self.prefix_loss is not None:
            named["prefixes"] = self.trie.num_levels * self.prefix_loss(losses)  # the levels are summed
            total = total + named["prefixes"]
        if self.config.dense_weight:
            sampled = torch.randint(1, self.num_items + 1, (self.config.dense_negatives,), generator=generator)
            rows, next_items = targets[0][:num_next], targets[1][:num_next]
            named["dense"] = sampled_softmax(hidden_RD[rows], items, next_items, negatives=sampled.to(items.device))
            total = total + self.config.dense_weight * named["dense"]
        return LossTerms(total, {name: value.detach() for name, value in named.items()})

    def after_epoch(self, epoch: int) -> Sequence[nn.Parameter]:
        """Cluster the items by their input vectors after the configured epochs, and carry over the vectors of nodes.

        Own vectors alone would not do: they are what the vectors of the former nodes leave to explain.
        """
        if epoch not in self.config.relearn_after:
            return ()
        items = torch.arange(1, self.num_items + 1, device=self.items.weight.device)
        vectors, counts = self._embed(items[None], self.items.weight)[0], self.popularity[1:]
        codes = relearned_codes(vectors, counts, self.tree.table, num_kept=self.config.relearn_below, seed=epoch)
        by_node = [table for table in (self.nodes_read, self.nodes.inner) if table is not None]
        return self.tree.replace_codes(codes, by_node=by_node, by_code=self.nodes.code_tables, weights=self.popularity)

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state at the root, from the history or from its cached state."""
        if batch.state is not None:
            hidden_BD = self.encode_history(batch, batch.state).user_vectors
        else:
            hidden_BD = self.encoder.last(batch.items, self._embed)
        states_BtD, root = self.deeper.start(hidden_BD), batch.items.lengths.new_zeros((len(hidden_BD), 1))
        return GeneratorState({"root": states_BtD}, {"hidden": states_BtD[:, None], "node": root})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Return the logits [B, W, C] of the next codes, -inf without a node, and the state after `codes [B, W]`."""
        node_BW = state.beams["node"] if codes is None else self.trie.advance(state.beams["node"], codes)
        node_BW = node_BW.where(node_BW < self.trie.level_starts[-2], self.trie.root)  # a complete item: the next one
        depth = self.trie.depth_of(node_BW)
        children = self.trie.expand(node_BW, depth=depth)
        logits, state = self.score_children(state, codes, children.nodes)
        return logits_by_code(logits, children, self.trie.codebook_sizes[depth]), state

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        """Return the logits of the children `nodes [B, W, D]`, and the state after `codes [B, W]`."""
        level = self.trie.depth_of(nodes) - 1
        node_BW = self.trie.parents(nodes.amax(2), depth=level)
        hidden_BWtD = state.beams["hidden"]
        if level:
            vectors = self.nodes(node_BW.flatten(), level=level - 1, tree=self.tree)
            deeper = self.deeper(hidden_BWtD.flatten(0, 1), vectors, level=level)
            hidden_BWtD = deeper.view(*node_BW.shape, *deeper.shape[1:])
        elif codes is not None:  # of the next item of a list
            hidden_BWtD = state.shared["root"][:, None].expand(-1, nodes.shape[1], -1, -1)
        ranges, current = child_ranges(self.trie, node_BW.flatten()), hidden_BWtD[:, :, -1].flatten(0, 1)
        logits = self.nodes.logits(
            current, ranges, level=level, tree=self.tree, items=self.items.weight, content=self.content
        ).view(*node_BW.shape, -1)
        places = nodes - ranges.starts.view(node_BW.shape)[..., None]
        logits = logits.gather(2, places.clamp(0, logits.shape[2] - 1))
        if not self.config.content_at_leaves:
            logits = self.tree.mask_without_seen(logits, nodes, is_leaf=level + 1 == self.trie.num_levels)
        return logits, GeneratorState(state.shared, {**state.beams, "hidden": hidden_BWtD, "node": node_BW})

    @torch.no_grad()
    def encode_history(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Return the state after all events (roles.Incremental): keys and values of each block."""
        return extend_history_state(
            batch,
            state,
            lambda part, former: self.encoder.read(part, former, self._embed),
            window=self.encoder.window,
            version=self.weights_fingerprint(),
            empty=self.items.weight.new_zeros(self.config.width),
            is_extensible=self.encoder.counts_from_first,
        )

    def set_popularity_from(self, train: Dataset) -> None:
        """Store how often each item occurs in training and, for the content shares, what follows it."""
        if self.shares is not None:
            self.shares.count_transitions(train)
        super().set_popularity_from(train)

    def set_popularity(self, counts: Tensor) -> None:
        """Store how often each item occurs in training; items without an event get no vector of their own."""
        super().set_popularity(counts)
        self._set_unseen()

    def _set_unseen(self, *_: object) -> None:
        self.tree.set_unseen(self._items_without_events())
        if self.shares is not None:
            self.shares.set_popularity(self.popularity, self._items_without_events())

    def _embed(self, items_BL: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return the input vectors of items, [B, L, D]; `vectors [N + 1, D]` are the items' own."""
        own = (self.items.weight if vectors is None else vectors) if "items" in self.config.reads else None
        unseen = None if self.training else self._items_without_events()
        parts = self.tree.vectors_of(items_BL, items=own, nodes=self.nodes_read, unseen=unseen)
        if self.content_read is not None and self.content is not None:
            parts.append(self.content_read(self.content[items_BL]))
        return torch.stack(parts).sum(0).mul(self.config.width**0.5)

    def search(self, batch: SequenceBatch, k: int, *, guide: Guide | None) -> Recommendations:
        """Return the k best items of each request under this guide."""
        width = max(k, self.config.beam_width)
        trie = self.trie if self.config.content_at_leaves else self.tree.seen_trie
        answer = beam_search(self, batch, trie, k=k, beam_width=width, **self.steering(guide))
        if self.shares is not None:
            return self.shares.merge(answer, batch)
        return append_unseen(answer, batch, self.unseen_items())
