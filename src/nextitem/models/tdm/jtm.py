"""JTM: learns the network and the tree with one objective, in turns.

Zhu et al., Joint Optimization of Tree-based Index and Deep Model, arXiv 1902.07565. As TDM, but the tree is changed to
raise the likelihood of the training data under the present network: every item goes where its users' scores along the
path are highest, within what a node can hold. And nodes of a level see the history at that level: its items' ancestors.

Notable
- The assignment works down the tree in segments of `segment` levels (algorithm 2). Within a segment the items of a node
  are shared out among its descendants: exactly (Hungarian method) where there are at most `exact_items` of them, else
  greedily, the most decided items first. What never falls in an assignment step is the likelihood with histories read
  by the present tree. Nodes read histories by their ancestors, so the new tree changes every input, and the likelihood
  under it can fall (on an overfitted toy it did in 11 of 11 steps).
- The likelihood of an item at a node is summed over its training targets, at most `targets_per_item` of them, drawn by
  epoch; the paper's is over all.
- The tree keeps its shape and its nodes their vectors: only which item is where changes, so that what an assignment
  gains is kept. It gains early: a network that has learnt a tree by heart finds no better one.
- The rest as in TDM.

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
from nextitem.core.recommender import Recommender
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.core.top_items import search_unseen_last
from nextitem.data.examples.next_target import NextTargets
from nextitem.decoding.beam_search import beam_search
from nextitem.models.tdm.network import TreeConfig, TreeNetwork

_BATCH = 64  # targets whose nodes are scored together in an assignment


class JTMConfig(TreeConfig):
    """Settings of JTM."""

    segment: int = Field(7, ge=1)
    """Levels that are assigned together."""
    exact_items: int = Field(256, ge=0)
    """Items of a node up to which their assignment is exact."""
    targets_per_item: int = Field(20, ge=1)
    """Training targets of an item that an assignment looks at."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        assignment = ("segment", "exact_items", "targets_per_item")
        return {
            **super().idle_fields(),
            **configs.idle_unless(bool(self.relearn_after), "relearn_after names no epoch", *assignment),
        }


class JTM(Recommender):
    """Ranks items by the score of their leaf."""

    Config = JTMConfig
    config: JTMConfig
    known_answers: ClassVar[tuple[str, ...]] = ("cycle", "planted-clusters")
    can_rank_unseen_items = False  # as tdm
    needs: ClassVar[frozenset[Requirement]] = frozenset({"identifiers"})

    def __init__(self, config: JTMConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if catalog.identifiers is None:
            raise ValueError("JTM needs a tree: make one with nextitem tokenize tree")
        self.network = TreeNetwork(config, catalog.identifiers, by_level=True)
        self._examples: NextTargets | None = None

    @property
    def identifiers(self) -> IdentifierTable:
        """The tree as it is by now."""
        return self.network.table

    def examples(self, train: Dataset) -> NextTargets:
        """Every target with the history before it."""
        self._examples = NextTargets(
            train.interactions,
            max_length=self.network.max_history_length,
            per_epoch=self.config.targets_per_epoch,
        )
        return self._examples

    def training_loss(self, batch: SequenceBatch) -> LossTerms:
        """Binary cross-entropy of the nodes of all levels (eq. 2)."""
        return self.network.loss(batch)

    def after_epoch(self, epoch: int) -> Sequence[nn.Parameter]:
        """A new assignment of items to leaves after the chosen epochs (algorithm 1, line 4)."""
        if epoch not in self.config.relearn_after:
            return ()
        assert self._examples is not None
        batches = list(self._examples.item_capped_batches(self.config.targets_per_item, batch_size=_BATCH, seed=epoch))
        training = self.training
        self.eval()
        codes = self.assigned_codes(batches)
        self.train(training)
        if codes is not None:
            self.network.replant(codes)
        return ()

    @torch.no_grad()
    def assigned_codes(self, batches: Sequence[SequenceBatch]) -> Tensor | None:
        """Codes [N, M] that raise the likelihood of the targets of `batches`; None where none better are found."""
        trie = self.network.trie
        places = torch.zeros(self.num_items + 1, dtype=torch.int64)  # the node of each item so far: the root
        found = 0.0
        for start in range(0, trie.num_levels, self.config.segment):
            end = min(start + self.config.segment, trie.num_levels)
            likelihood, below = self._likelihood(batches, places, start, end)
            for node in torch.unique(places[1:]).tolist():
                members = (places[1:] == node).nonzero()[:, 0] + 1
                descendants = below[members[0]]
                real = descendants >= 0
                room = torch.tensor(
                    [int(each) for each in torch.stack(trie.item_ranges(descendants[real])).diff(dim=0)[0]]
                )
                weights = likelihood[members][:, real].double().numpy()
                chosen = shared_out(weights, room.numpy(), exact=len(members) <= self.config.exact_items)
                found += float(weights[np.arange(len(members)), chosen].sum())
                places[members] = descendants[real][torch.from_numpy(chosen)]
        if found <= self.likelihood(batches):
            return None
        return self.network.codes.cpu()[self.network.item_of_node.cpu()[places[1:]]]

    @torch.no_grad()
    def likelihood(self, batches: Sequence[SequenceBatch]) -> float:
        """Sum over targets and levels of the log-probability of the node on the way (eq. 4), leaves left out: a leaf
        has its item's vector, so its probability is the same wherever it is.
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
        """For each item [N + 1, X]: its targets' log-probability from below its place at depth `start` down to each of
        the place's descendants at depth `end`, and those nodes, -1 where there are fewer than X.
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
            nodes, so_far = places[items].to(device)[:, None], torch.zeros((len(items), 1), device=device)
            for depth, owner in zip(range(start, end), parents, strict=True):
                children = trie.expand(nodes, depth=depth).nodes.flatten(1)
                nodes = F.pad(children, (0, len(owner) - children.shape[1]), value=-1)
                so_far = so_far[:, owner]
                if depth + 1 < trie.num_levels:  # a leaf has the vector of the item that comes there
                    so_far = so_far + F.logsigmoid(
                        self.network.logits(batch.items, nodes, [depth + 1] * nodes.shape[1])
                    )
            total.index_add_(0, items.cpu(), so_far.cpu())
        return total, below

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Before the first step down."""
        return self.network.start(batch)

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """The scores of the children, [B, W, C]."""
        return self.network.step(state, codes)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        width, trie = max(k, self.config.beam_width), self.network.trie
        return search_unseen_last(
            lambda part: beam_search(self, part, trie, k=k, beam_width=width, accumulate="last"),
            batch,
            self.unseen_items(),
        )


def shared_out(weights: np.ndarray, room: np.ndarray, *, exact: bool) -> np.ndarray:
    """For each of n items the slot that it gets, [n], by `weights [n, X]`, slot x taking `room[x]`; rooms add up to n.

    exact: the largest sum of weights (Hungarian method). Else items choose one after another, those first that lose
    most by their second choice; equal ones in their order.
    """
    if exact:
        from scipy.optimize import linear_sum_assignment

        slots = np.repeat(np.arange(len(room)), room)
        rows, columns = linear_sum_assignment(weights[:, slots], maximize=True)
        chosen = np.empty(len(weights), np.int64)
        chosen[rows] = slots[columns]
        return chosen
    chosen, left = np.empty(len(weights), np.int64), room.copy()
    best = np.sort(weights, axis=1)[:, ::-1]
    margin = best[:, 0] - best[:, min(1, best.shape[1] - 1)]
    for item in np.argsort(-margin, kind="stable"):
        chosen[item] = np.where(left > 0, weights[item], -np.inf).argmax()
        left[chosen[item]] -= 1
    return chosen
