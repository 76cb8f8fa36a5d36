"""TDM: walks down a tree of items and keeps at each level the nodes with the highest scores for the user.

Zhu et al., Learning Tree-based Deep Model for Recommender Systems, arXiv 1801.02294. A node's score represents the best
item below it, so a beam search from the root reaches the best leaves after scoring some nodes of each level: any
network may score, and the cost grows with the logarithm of the catalogue. The tree is rebuilt from the items' trained
vectors, and training of the network continues with it.

Notable
- The first tree is a tokenizer's: `tree` in order of content, categories or at random; any semantic IDs will do.
- Nodes of a level are sampled without the target's own node (section 3.2); every prefix of a history is an example.
- The search starts at the root; the authors' code starts some levels below, which does not improve the result.
- If the tree is rebuilt, popularity is first removed from the vectors that are clustered. Items keep their vectors,
  inner nodes start as the mean of their items', and training continues. A node is split into equal halves by how much
  nearer an item is to one centre (the paper: 2-means, then balanced).
- The negatives of a level are equally likely.
- A score is one logit; the paper's code has two outputs and a softmax, which is the same function.
- `beam-aware` trains on the nodes that the search visits, OTM (Zhuo et al., ICML 2020), and on the siblings of those on
  the path to the target.

Shapes: N items, M depth of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.core.top_items import search_unseen_last
from nextitem.data.examples.next_target import NextTargets
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.decoding.guide import Guide
from nextitem.models.tdm.network import TreeConfig, TreeNetwork, bits_to_codes


class TDMConfig(TreeConfig):
    """Settings of TDM."""


class TDM(GuidedRecommender):
    """A recommender that ranks items by the score of their leaf."""

    Config = TDMConfig
    config: TDMConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    can_rank_unseen_items = False  # content determines the tree, but a leaf has a vector of its own
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers"})

    def __init__(self, config: TDMConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if catalog.identifiers is None:
            raise ValueError("TDM needs a tree: create one with nextitem tokenize tree")
        self.network = TreeNetwork(config, catalog.identifiers, by_level=False)
        self.add_guidance(config.guide)
        if config.relearn_after:  # raise an error now, not after some epochs, if the tree cannot be rebuilt
            bits_to_codes(torch.zeros((1, (self.num_items - 1).bit_length())), catalog.identifiers.codebook_sizes)

    @property
    def identifiers(self) -> IdentifierTable:
        """The current tree as a table of identifiers."""
        return self.network.table

    def examples(self, train: Dataset) -> NextTargets:
        """Return every target with the history before it."""
        return NextTargets(
            train.interactions,
            max_length=self.network.max_history_length,
            per_epoch=self.config.targets_per_epoch,
        )

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the binary cross-entropy of the nodes of all levels (eq. 5)."""
        return self.network.loss(batch)

    def after_epoch(self, epoch: int) -> Sequence[nn.Parameter]:
        """Rebuild the tree after the configured epochs: recursive 2-means of the items' vectors (section 3.5)."""
        if epoch not in self.config.relearn_after:
            return ()
        self.network.replace_tree(self.network.clustered_codes(self.popularity, seed=epoch))
        return self.network.average_inner_vectors()

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state at the root of the tree, before the first step."""
        return self.network.start(batch)

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Return the scores of the children, [B, W, C], and the state after `codes [B, W]`."""
        return self.network.step(state, codes)

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        """Return the scores of the children `nodes [B, W, D]`, and the state after `codes [B, W]`."""
        return self.network.score_children(state, codes, nodes)

    def search(self, batch: SequenceBatch, k: int, *, guide: Guide | None) -> Recommendations:
        """Return the k best items of each request under this guide."""
        width, trie, steering = max(k, self.config.beam_width), self.network.trie, self.steering(guide)
        return search_unseen_last(
            lambda part: beam_search(self, part, trie, k=k, beam_width=width, accumulate="last", **steering),
            batch,
            self.unseen_items(),
        )
