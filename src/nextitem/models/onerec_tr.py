"""OneRec-TR: encodes a user along four pathways, and generates the codes of one next item.

OneRec technical report, arXiv 2506.13695. A user is a static vector, the latest events, the latest positive events, and
a summary of a lifelong history; one encoder reads these vectors together (nn/attention/pathways.py). A decoder then
generates the semantic ID of one item, [BOS, s1, s2, s3], by causal self-attention and attention to the encoder.

Notable
- The loss is the sum over the codes, as in the report. Events after the next one are targets of the same encoding, with
  falling weights (`target_weights`); in the report only the next one is.
- Code vectors belong to nodes of the trie, and a leaf has the vector of its item (`vectors`; decoding/node_vectors.py).
  With the report's vectors of codes ("codes") recall is much lower (decision 89).
- Only legal codes compete, in training as in the search: what is trained is what is served.
- The first input of the decoder, [BOS], contains the encoded last event (`begins_with_last`), which usually decides the
  next one. So the decoder does not have to learn first where to find it.
- The report's encoder reads vectors of item ids; here an event also is the vectors of the nodes above its leaf.
- Lifelong events are clustered by content vectors, and without content by the nodes that items share.
- Items without a training event have no vector of their own, do not compete, and are ranked last.
- `prefix_loss` adds APAO's loss of prefixes, which is not in the report (losses/prefix_loss.py).

Shapes: B requests, K targets of a request, L vectors of a user, W beams, D width, N items, M levels, C children.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.history_state import HistoryState
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.core.top_items import append_unseen
from nextitem.data.examples.event_requests import EventRequests
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.guidance import GuidedConfig, GuidedRecommender
from nextitem.decoding.guide import Guide
from nextitem.decoding.item_paths import ItemPaths
from nextitem.decoding.node_vectors import NodeVectors, Parts, child_ranges
from nextitem.decoding.trie import PrefixTrie
from nextitem.losses.prefix_loss import PrefixAwareConfig, prefix_loss_of
from nextitem.nn.attention.incremental import extend_history_state
from nextitem.nn.attention.path_decoder import PathDecoder
from nextitem.nn.attention.pathways import Pathways, PathwaysConfig
from nextitem.nn.experts import ExpertsConfig, take_balance_losses
from nextitem.nn.fields.item_features import CONTENT
from nextitem.nn.initialisation import truncated_normal_
from nextitem.ops.trie_step import logits_by_code

FITTED_ON = 20_000  # requests from which quantiles and vocabularies of user features are computed
_SIMILARITY_WIDTH = 32  # width of the vectors by which lifelong events are clustered


class OneRecTRConfig(PathwaysConfig, PrefixAwareConfig, GuidedConfig):
    """Settings of OneRecTR."""

    reads: tuple[Literal["items", "nodes", "content"], ...] = ("items", "nodes")
    """Vectors that an event is the sum of: the item's own, those of the nodes above its leaf, its content."""
    vectors: Parts = "nodes"
    """Vectors of the nodes: one for each node, one for each code of a level, or the sum of both."""
    decoder_layers: int = Field(1, ge=1)
    """Number of blocks of the decoder."""
    experts: ExpertsConfig | None = None
    """Mixture of experts in place of the decoder's feed-forward layers; none: dense layers."""
    begins_with_last: bool = True
    """Whether the decoder's first input also is the encoded last event; otherwise it is a learned constant."""
    target_weights: tuple[float, ...] = Field((1.0, 0.4, 0.2, 0.1, 0.05), min_length=1)
    """Weights of the next event, the one after it, and so on, all generated from the same encoded user."""
    beam_width: int = Field(20, ge=1)
    """Number of beams that stay in the search; raised to k if k is larger."""

    @property
    def needs(self) -> frozenset[Requirement]:
        """What the catalogue must contain."""
        return super().needs | (frozenset({CONTENT}) if "content" in self.reads else frozenset())

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return PathwaysConfig.idle_fields(self)


class OneRecTR(GuidedRecommender):
    """A recommender that ranks items by the probability of generating their semantic ID."""

    Config = OneRecTRConfig
    config: OneRecTRConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    can_rank_unseen_items = False
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers"})
    content: Tensor | None

    def __init__(self, config: OneRecTRConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if catalog.identifiers is None:
            raise ValueError("OneRecTR needs a catalogue with identifiers: create them with nextitem tokenize")
        self.tree, width = ItemPaths(catalog.identifiers), config.width
        self.register_buffer("content", catalog.content if "content" in config.reads else None, persistent=False)
        self.items = nn.Embedding(catalog.num_items + 1, width, padding_idx=0)  # input, and leaves
        self.nodes_read = nn.Embedding(self.tree.num_inner, width) if "nodes" in config.reads else None
        content_width = 0 if self.content is None else self.content.shape[1]
        self.content_read = nn.Linear(content_width, width, bias=False) if content_width else None
        self.pathways = Pathways(config, catalog, similarity_vectors(catalog.content, self.tree))
        self.nodes = NodeVectors(self.tree, parts=config.vectors, content=None, width=width)
        sizes = {"layers": config.decoder_layers, "heads": config.heads, "inner": config.ff_width}
        sizes |= {"levels": self.trie.num_levels}
        self.decoder = PathDecoder(width, **sizes, dropout=config.dropout, experts=config.experts)
        self.prefix_loss = prefix_loss_of(config, num_levels=self.trie.num_levels)
        truncated_normal_(self)
        self.add_guidance(config.guide)
        self.register_load_state_dict_post_hook(lambda model, _: model._set_unseen())  # type: ignore[no-untyped-call]

    @property
    def trie(self) -> PrefixTrie:
        """The trie of the identifiers."""
        return self.tree.trie

    @property
    def codes(self) -> Tensor:
        """The codes of the identifiers, [N + 1, M]."""
        return self.tree.codes

    def examples(self, train: Dataset) -> EventRequests:
        """Return every target with what is known of its user before it, and the events after it if they have weights.

        Quantiles and vocabularies of user features are computed from the training requests.
        """
        config = self.config
        num_targets = len(config.target_weights)
        requests = EventRequests(train, max_history_length=config.max_history_length, num_targets=num_targets)
        if len(requests.places):
            self.pathways.static.fit(requests.sample(FITTED_ON), train.interactions)
        return requests

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the cross-entropy of the targets' nodes among their siblings, summed over the levels.

        The targets of a request are its beams: the decoder steps down their paths as a search would.
        """
        assert batch.targets is not None
        items_BK = batch.targets.to_padded()
        weights = torch.tensor(self.config.target_weights, device=items_BK.device)[: items_BK.shape[1]]
        rows, lags = (items_BK > 0).nonzero(as_tuple=True)
        shares = weights[lags] / batch.num_requests
        # Beams of absent targets follow the first target: they are tokens of a mixture of experts, too.
        paths_BKM = self.tree.nodes[torch.where(items_BK > 0, items_BK, items_BK[:, :1])]
        state, named = self.start(batch), {}
        for level in range(self.trie.num_levels):
            parents_BW, beams = state.beams["node"], rows
            if level:
                parents_BW, beams = paths_BKM[:, :, level], rows * items_BK.shape[1] + lags
                if level == 1:
                    state = state.reorder(torch.zeros_like(parents_BW))
            hidden_BWD, state = self._descend(state, parents_BW, level=level)
            log_probs = self.nodes.log_probs(
                hidden_BWD.flatten(0, 1),
                paths_BKM[rows, lags, level + 1],
                parents_BW.flatten(),
                level=level,
                tree=self.tree,
                items=self.items.weight,
                content=None,
                rows=beams,
            )
            named[f"level_{level + 1}"] = -(shares * log_probs).sum()
        total = torch.stack(list(named.values())).sum()
        if self.prefix_loss is not None:
            named["prefixes"] = self.trie.num_levels * self.prefix_loss(list(named.values()))  # the levels are summed
            total = total + named["prefixes"]
        balance = take_balance_losses(self)
        if balance is not None:
            named["balance"], total = balance, total + balance
        return LossTerms(total, {name: value.detach() for name, value in named.items()})

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state before the first code; keys and values of the user are computed once for all beams."""
        lifelong = None if batch.state is None else self.encode_history(batch, batch.state).cache.get("lifelong")
        encoded_BLD, bias = self.pathways(batch, self._embed, lifelong=lifelong)
        root = torch.zeros((batch.num_requests, 1), dtype=torch.int64, device=encoded_BLD.device)
        shared = {**self.decoder.shared(encoded_BLD), "bias": bias}
        if self.config.begins_with_last:  # the short events follow the static vector
            last = self.pathways.window.lengths(batch.items.lengths)
            shared["first"] = encoded_BLD[torch.arange(len(last), device=last.device), last][:, None]
        return GeneratorState(shared, {"node": root})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Return the logits [B, W, C] of the next codes, -inf without a node, and the state after `codes [B, W]`.

        The codes that complete an item lead back to the root.
        """
        node_BW = state.beams["node"] if codes is None else self.trie.advance(state.beams["node"], codes)
        depth = self.trie.depth_of(node_BW) % self.trie.num_levels
        node_BW = node_BW if depth else torch.where(node_BW < 0, -1, 0)
        children = self.trie.expand(node_BW, depth=depth)
        logits, state = self.score_children(state, codes, children.nodes)
        return logits_by_code(logits, children, self.trie.codebook_sizes[depth]), state

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        """Return the logits of the children `nodes [B, W, D]`, and the state after `codes [B, W]`."""
        level = self.trie.depth_of(nodes) - 1
        node_BW = self.trie.parents(nodes.amax(2), depth=level)
        hidden_BWD, state = self._descend(state, node_BW, level=level)
        ranges = child_ranges(self.trie, node_BW.flatten())
        items: dict[str, Any] = {"items": self.items.weight, "content": None}
        logits = self.nodes.logits(hidden_BWD.flatten(0, 1), ranges, level=level, tree=self.tree, **items)
        places = nodes - ranges.starts.view(node_BW.shape)[..., None]
        logits = logits.view(*node_BW.shape, -1).gather(2, places.clamp(0, logits.shape[1] - 1))
        return self.tree.mask_without_seen(logits, nodes, is_leaf=level + 1 == self.trie.num_levels), state

    def _descend(self, state: GeneratorState, nodes_BW: Tensor, *, level: int) -> tuple[Tensor, GeneratorState]:
        """Return the hidden states [B, W, D] at nodes of depth `level`, and the state after them.

        At the root a path begins anew, whatever the beams have generated before: an item does not depend on others.
        """
        if level:
            inputs_BWD, paths = self.nodes(nodes_BW, level=level - 1, tree=self.tree), state.beams
        else:
            shape = (*nodes_BW.shape, self.config.width)
            first = state.shared.get("first")
            inputs_BWD, paths = self.items.weight.new_zeros(shape) if first is None else first.expand(shape), {}
        hidden_BWD, own = self.decoder.step(inputs_BWD, state.shared, paths, level=level, bias=state.shared["bias"])
        return hidden_BWD, GeneratorState(state.shared, {**own, "node": nodes_BW})

    @torch.no_grad()
    def encode_history(self, batch: SequenceBatch, state: HistoryState | None = None) -> HistoryState:
        """Return the summaries of lifelong events (roles.Incremental), [B, Q, D]; they stay while the window does.

        The vectors of the state are the means of the summaries.
        """
        empty = self.items.weight.new_zeros(self.config.width)

        def read(part: SequenceBatch, former: HistoryState | None) -> HistoryState:
            if former is not None:  # further events are in the short pathway
                return HistoryState(part.items.lengths, former.vectors, former.cache)
            if "lifelong" not in self.pathways.events:
                return HistoryState(part.items.lengths, empty.expand(part.num_requests, -1))
            summaries = self.pathways.summaries(part, self._embed)
            return HistoryState(part.items.lengths, summaries.mean(1), {"lifelong": summaries})

        own: dict[str, Any] = {"window": self.pathways.window, "version": self.weights_fingerprint(), "empty": empty}
        return extend_history_state(batch, state, read, **own)

    def set_popularity(self, counts: Tensor) -> None:
        """Store how often each item occurs in training; items without an event get no vector of their own."""
        super().set_popularity(counts)
        self._set_unseen()

    def _set_unseen(self) -> None:
        self.tree.set_unseen(self._items_without_events())

    def _embed(self, items: Tensor) -> Tensor:
        """Return the input vectors of items, [..., D]."""
        own = self.items.weight if "items" in self.config.reads else None
        unseen = None if self.training else self._items_without_events()
        parts = self.tree.vectors_of(items, items=own, nodes=self.nodes_read, unseen=unseen)
        if self.content_read is not None and self.content is not None:
            parts.append(self.content_read(self.content[items]))
        return torch.stack(parts).sum(0).mul(self.config.width**0.5)

    def search(self, batch: SequenceBatch, k: int, *, guide: Guide | None) -> Recommendations:
        """Return the k best items of each request under this guide."""
        width = max(k, self.config.beam_width)
        answer = beam_search(self, batch, self.tree.seen_trie, k=k, beam_width=width, **self.steering(guide))
        return append_unseen(answer, batch, self.unseen_items())


def similarity_vectors(content: Tensor | None, tree: ItemPaths) -> Tensor:
    """Return the vectors by which lifelong events are clustered, [N + 1, any width].

    They are the unit content vectors, if these are wide projected at random, which keeps distances. Without content,
    items are the nearer, the more first codes they share.
    """
    random = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    if content is not None:
        if content.shape[1] > _SIMILARITY_WIDTH:
            content = content @ random(content.shape[1], _SIMILARITY_WIDTH).to(content)
        return F.normalize(content, dim=1)
    levels = range(1, tree.trie.num_levels + 1)
    by_node = random(tree.trie.level_starts[-1], 16).to(tree.nodes.device)
    return torch.stack([by_node[tree.nodes[:, level]] * 0.5**level for level in levels]).sum(0)
