"""JTM: optimises the network and the tree with one objective, in turns.

Zhu et al., Joint Optimization of Tree-based Index and Deep Model, arXiv 1902.07565. As TDM, but the tree is changed to
raise the likelihood of the training data under the current network: every item moves to the leaf where its users'
scores along the path are highest, within the capacity of the nodes. And nodes of a level read the history at that
level: its items' ancestors.

Notable
- The assignment works down the tree in segments of `segment` levels (algorithm 2). Within a segment the items of a node
  are assigned to its descendants: exactly (Hungarian method) if there are at most `exact_items` of them, else greedily,
  those with the largest margin first.
- An assignment step never lowers the likelihood with histories read by the current tree. But nodes read histories by
  their ancestors, so the new tree changes every input, and the likelihood under it can fall (on an overfitted toy
  example it fell in 11 of 11 steps).
- The likelihood of an item at a node is summed over its training targets, at most `targets_per_item` of them, sampled
  by epoch; the paper's is over all.
- The tree keeps its shape and its nodes keep their vectors: only the items' places change, so that the gain of an
  assignment is preserved. The gain is early: a network that has memorised a tree finds no better one.
- The rest is as in TDM.

Shapes: B requests, K nodes, N items, M depth of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
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
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.core.top_items import search_unseen_last
from nextitem.data.examples.next_target import NextTargets
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.decoding.guide import Guide
from nextitem.models.tdm.network import TreeConfig, TreeNetwork

_BATCH_SIZE = 64  # number of targets whose nodes are scored together in an assignment


class JTMConfig(TreeConfig):
    """Settings of JTM."""

    segment: int = Field(7, ge=1)
    """Number of levels of the tree that are assigned together."""
    exact_items: int = Field(256, ge=0)
    """Number of items of a node up to which their assignment is exact; above, it is greedy."""
    targets_per_item: int = Field(20, ge=1)
    """Maximum number of training targets of an item that an assignment reads."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        assignment = ("segment", "exact_items", "targets_per_item")
        return {
            **super().idle_fields(),
            **configs.idle_unless(bool(self.relearn_after), "relearn_after names no epoch", *assignment),
        }


class JTM(GuidedRecommender):
    """A recommender that ranks items by the score of their leaf."""

    Config = JTMConfig
    config: JTMConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    can_rank_unseen_items = False  # as in tdm
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers"})

    def __init__(self, config: JTMConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if catalog.identifiers is None:
            raise ValueError("JTM needs a tree: create one with nextitem tokenize tree")
        self.network = TreeNetwork(config, catalog.identifiers, by_level=True)
        self.add_guidance(config.guide)
        self._examples: NextTargets | None = None

    @property
    def identifiers(self) -> IdentifierTable:
        """The current tree as a table of identifiers."""
        return self.network.table

    def examples(self, train: Dataset) -> NextTargets:
        """Return every target with the history before it."""
        self._examples = NextTargets(
            train.interactions,
            max_length=self.network.max_history_length,
            per_epoch=self.config.targets_per_epoch,
        )
        return self._examples

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the binary cross-entropy of the nodes of all levels (eq. 2)."""
        return self.network.loss(batch)

    def after_epoch(self, epoch: int) -> Sequence[nn.Parameter]:
        """Assign the items to new leaves after the configured epochs (algorithm 1, line 4)."""
        if epoch not in self.config.relearn_after:
            return ()
        assert self._examples is not None
        count = self.config.targets_per_item
        batches = list(self._examples.item_capped_batches(count, batch_size=_BATCH_SIZE, seed=epoch))
        was_training = self.training
        self.eval()
        codes = self.assigned_codes(batches)
        self.train(was_training)
        if codes is not None:
            self.network.replace_tree(codes)
        return ()

    @torch.no_grad()
    def assigned_codes(self, batches: Sequence[SequenceBatch]) -> Tensor | None:
        """Return codes [N, M] that raise the likelihood of the targets of `batches`, or None if there are none."""
        trie = self.network.trie
        places = torch.zeros(self.num_items + 1, dtype=torch.int64)  # the current node of each item; at first the root
        new_likelihood = 0.0
        for start in range(0, trie.num_levels, self.config.segment):
            end = min(start + self.config.segment, trie.num_levels)
            item_likelihoods, below = self._likelihood(batches, places, start, end)
            for node in torch.unique(places[1:]).tolist():
                members = (places[1:] == node).nonzero()[:, 0] + 1
                descendants = below[members[0]]
                is_real = descendants >= 0
                capacity = torch.tensor(
                    [int(size) for size in torch.stack(trie.item_ranges(descendants[is_real])).diff(dim=0)[0]]
                )
                weights = item_likelihoods[members][:, is_real].double().numpy()
                columns = assign_items(weights, capacity.numpy(), exact=len(members) <= self.config.exact_items)
                new_likelihood += float(weights[np.arange(len(members)), columns].sum())
                places[members] = descendants[is_real][torch.from_numpy(columns)]
        if new_likelihood <= self.likelihood(batches):
            return None
        return self.network.codes.cpu()[self.network.item_of_node.cpu()[places[1:]]]

    @torch.no_grad()
    def likelihood(self, batches: Sequence[SequenceBatch]) -> float:
        """Return the sum over targets and levels of the log-probability of the node on the path (eq. 4).

        Leaves are skipped: a leaf has its item's vector, so its probability is the same wherever it is.
        """
        total = 0.0
        for batch in batches:
            assert batch.targets is not None
            paths = self.network.paths[batch.targets.values, :-1]
            logits = self.network.logits(batch.items, paths, range(1, paths.shape[1] + 1))
            total += float(F.logsigmoid(logits).double().sum())
        return total

    def _likelihood(
        self, batches: Sequence[SequenceBatch], places: Tensor, start: int, end: int
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of paths within a segment, and their end nodes, for each item [N + 1, X].

        Args:
            batches: the targets with their histories.
            places: current node of each item [N + 1], at depth `start`.
            start: depth of the top of the segment.
            end: depth of its bottom.

        Returns:
            The summed log-probabilities of the item's targets, from below its node down to each of the node's
            descendants at depth `end`, [N + 1, X]; and those descendants [N + 1, X], -1 if there are fewer than X.

        """
        trie, device = self.network.trie, self.network.codes.device
        below, parents = places[:, None], []
        for depth in range(start, end):
            children = trie.expand(below.to(device)[None], depth=depth).nodes[0].cpu()
            parents.append(torch.arange(children.shape[1]).repeat_interleave(children.shape[2]))
            below = children.flatten(1)
        total = torch.zeros(below.shape)
        for batch in batches:
            assert batch.targets is not None
            items = batch.targets.values
            nodes, path_log_probs = places[items].to(device)[:, None], torch.zeros((len(items), 1), device=device)
            for depth, parent_columns in zip(range(start, end), parents, strict=True):
                children = trie.expand(nodes, depth=depth).nodes.flatten(1)
                nodes = F.pad(children, (0, len(parent_columns) - children.shape[1]), value=-1)
                path_log_probs = path_log_probs[:, parent_columns]
                if depth + 1 < trie.num_levels:  # a leaf has the vector of the item that is assigned to it
                    path_log_probs = path_log_probs + F.logsigmoid(
                        self.network.logits(batch.items, nodes, [depth + 1] * nodes.shape[1])
                    )
            total.index_add_(0, items.cpu(), path_log_probs.cpu())
        return total, below

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


def assign_items(weights: np.ndarray, capacity: np.ndarray, *, exact: bool) -> np.ndarray:
    """Return the slot that each of n items is assigned to, [n].

    Args:
        weights: weight [n, X] of each item in each slot.
        capacity: number of items that each slot accepts, [X]; the sum is n.
        exact: maximise the sum of weights (Hungarian method). Otherwise items get their best free slot one after
            another, in descending order of the loss by their second choice; ties keep their order.

    """
    if exact:
        from scipy.optimize import linear_sum_assignment

        slots = np.repeat(np.arange(len(capacity)), capacity)
        rows, columns = linear_sum_assignment(weights[:, slots], maximize=True)
        slot_of_item = np.empty(len(weights), np.int64)
        slot_of_item[rows] = slots[columns]
        return slot_of_item
    slot_of_item, remaining = np.empty(len(weights), np.int64), capacity.copy()
    best = np.sort(weights, axis=1)[:, ::-1]
    margin = best[:, 0] - best[:, min(1, best.shape[1] - 1)]
    for item in np.argsort(-margin, kind="stable"):
        slot_of_item[item] = np.where(remaining > 0, weights[item], -np.inf).argmax()
        remaining[slot_of_item[item]] -= 1
    return slot_of_item
