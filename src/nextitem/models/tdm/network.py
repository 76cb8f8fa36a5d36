"""TreeNetwork: a tree of items, the scorer of its nodes, their training loss, and the walk down the tree.

Shapes: B requests, L history, K nodes of a request, W beams, C codes of a level, D width, M depth of the tree, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.jagged import Jagged
from nextitem.core.roles import GeneratorState, LossTerms
from nextitem.data.negatives import level_negatives
from nextitem.decoding.guidance import GuidedConfig
from nextitem.decoding.trie import PrefixTrie
from nextitem.nn.quantisation.balanced_tree import balanced_tree
from nextitem.nn.quantisation.cluster_codes import without_popularity
from nextitem.nn.ranking.node_scorer import NodeScorer
from nextitem.ops.trie_step import logits_by_code

# Standard deviation of initial embeddings. The authors' code has 0.001, with which the first epochs learn nothing here.
_STD = 0.01


class Levels(configs.Choice):
    """Sampled nodes of every level of the tree."""

    kind: Literal["levels"] = "levels"
    """Sampled nodes of every level of the tree."""
    negatives: int = Field(64, ge=1)
    """Number of other nodes for each target, over all levels; a level has a part in proportion to its depth."""
    negatives_per_level: tuple[int, ...] | None = None
    """Number of other nodes at each depth from 1 on, in place of `negatives`; none: by `negatives`."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(self.negatives_per_level is None, "negatives_per_level replaces it", "negatives")


class BeamAware(configs.Choice):
    """The nodes that the current model's beam search visits (OTM, Zhuo et al., ICML 2020)."""

    kind: Literal["beam-aware"] = "beam-aware"
    """The nodes that the current model's beam search visits."""
    training_beam: int = Field(16, ge=1)
    """Beam width of the search in training; a wider beam visits nodes that a serving beam never visits."""


class TreeConfig(GuidedConfig):
    """Settings that all tree-based models share."""

    width: int = Field(24, ge=1)
    """Width of the vectors of items and nodes (D)."""
    windows: tuple[int, ...] = (10, 5, 2, 1, 1, 1)
    """Number of history items in each window whose vectors are summed up, oldest window first."""
    hidden: tuple[int, ...] = (64, 32)
    """Number of units of each hidden layer of the network over windows and node."""
    objective: Levels | BeamAware = Field(Levels(), discriminator="kind")
    """Nodes that a training step scores."""
    targets_per_epoch: int | None = Field(None, ge=1)
    """Number of training examples of an epoch, sampled again for each epoch; None: all."""
    beam_width: int = Field(100, ge=1)
    """Number of beams that stay in the search; raised to k if k is larger."""
    relearn_after: tuple[int, ...] = ()
    """Epochs after which the tree is rebuilt."""


class TreeNetwork(nn.Module):
    """A network that scores the nodes of a tree of items for a history, with the tree itself.

    The tree is `codes [N + 1, M]`, which are part of the weights; everything else of the tree follows from them. An
    item's leaf has the item's own vector; inner nodes have vectors of their own. With `by_level` a history is read, for
    nodes of one depth, as the ancestors of its items at that depth (JTM, section 3.3).
    """

    codes: Tensor
    paths: Tensor
    item_of_node: Tensor
    trie: PrefixTrie

    def __init__(self, config: TreeConfig, table: IdentifierTable, *, by_level: bool) -> None:
        super().__init__()
        self.config, self.table, self.by_level = config, table, by_level
        self.max_history_length = sum(config.windows)  # of most recent events that the network reads
        self.register_buffer("codes", table.codes.clone())
        self.build_tree()
        if isinstance(config.objective, Levels):
            self._negative_counts(config.objective)  # raises an error if they do not fit the tree
        self.items = nn.Embedding(table.num_items + 1, config.width, padding_idx=0)
        self.inner = nn.Embedding(self.trie.level_starts[table.num_levels], config.width)
        self.scorer = NodeScorer(config.width, windows=config.windows, hidden=config.hidden)
        nn.init.normal_(self.items.weight[1:], std=_STD)
        nn.init.normal_(self.inner.weight, std=_STD)
        self.register_load_state_dict_post_hook(lambda network, _: network.build_tree())  # type: ignore[no-untyped-call]

    def build_tree(self) -> None:
        """Build the trie of the current codes, and the tables that follow from it."""
        device = self.codes.device
        self.table = replace(self.table, codes=self.codes.cpu())
        trie = PrefixTrie.from_table(self.table)
        places = trie.positions[1:].long()
        paths = torch.zeros((self.table.num_items + 1, trie.num_levels), dtype=torch.int64)
        for depth in range(1, trie.num_levels + 1):
            paths[1:, depth - 1] = trie.ancestors(places, depth=depth)
        leaves = torch.zeros(trie.level_starts[-1], dtype=torch.int64)
        # If items share a leaf, it belongs to the one with the smallest number.
        leaves[paths[1:, -1].flip(0)] = torch.arange(self.table.num_items, 0, -1)
        self.trie = trie.to(device)
        self.register_buffer("paths", paths.to(device), persistent=False)  # [N + 1, M] nodes from depth 1 to the leaf
        self.register_buffer("item_of_node", leaves.to(device), persistent=False)  # 0: an inner node

    def replace_tree(self, codes: Tensor) -> None:
        """Replace the tree by another one over the same items, `codes [N, M]`.

        Items keep their vectors, and nodes keep them by number.
        """
        self.codes[1:] = codes.to(self.codes)
        self.build_tree()

    @torch.no_grad()
    def average_inner_vectors(self) -> list[nn.Parameter]:
        """Set the vector of every inner node to the mean of the items below it, and return the changed parameters."""
        starts = self.trie.level_starts
        sums = self.items.weight.new_zeros((starts[-1], self.config.width))
        for depth in range(self.trie.num_levels - 1):
            sums.index_add_(0, self.paths[1:, depth], self.items.weight[1:])
        num_items = torch.bincount(self.paths[1:, :-1].flatten(), minlength=starts[-1]).clamp(min=1)
        self.inner.weight.copy_((sums / num_items[:, None])[: self.inner.num_embeddings])
        return list(self.inner.parameters())

    def clustered_codes(self, popularity: Tensor, *, seed: int) -> Tensor:
        """Return the codes [N, M] of a balanced tree over the items' trained vectors (TDM, section 3.5).

        First the part of the vectors is removed that `popularity [N + 1]` explains.
        """
        tastes = without_popularity(self.items.weight.detach()[1:].cpu(), popularity[1:].cpu())
        return bits_to_codes(balanced_tree(tastes, seed=seed).bits, self.table.codebook_sizes)

    def logits(self, items: Jagged, nodes_BK: Tensor, depths_K: Sequence[int]) -> Tensor:
        """Return the scores [B, K] of nodes for histories.

        Column k contains nodes of depth `depths_K[k]`, or -1 for no node, which scores 0.
        """
        recent = items.last(self.max_history_length)
        padded_BL, safe_BK = recent.to_padded(), nodes_BK.clamp(min=0)
        if not self.by_level:
            return self.scorer(self.items(padded_BL), recent.lengths, self._vectors(safe_BK), nodes_BK >= 0)  # type: ignore[no-any-return]
        scores_BK = self.items.weight.new_zeros(nodes_BK.shape)
        for depth in sorted(set(depths_K)):
            columns = torch.tensor([column for column, node_depth in enumerate(depths_K) if node_depth == depth])
            history = self._vectors(self.paths[padded_BL, depth - 1])
            vectors, is_real = self._vectors(safe_BK[:, columns]), nodes_BK[:, columns] >= 0
            scores_BK[:, columns] = self.scorer(history, recent.lengths, vectors, is_real)
        return scores_BK

    def loss(self, batch: SequenceBatch) -> LossTerms:
        """Return the binary cross-entropy of sampled or visited nodes: 1 on the path to the target, else 0."""
        assert batch.targets is not None
        paths_BM = self.paths[batch.targets.values]
        objective = self.config.objective
        if isinstance(objective, BeamAware):
            nodes_BK, depths, labels_BK = self._visited(batch, paths_BM, beam_width=objective.training_beam)
        else:
            others, other_depths = level_negatives(paths_BM, self.trie.level_starts, self._negative_counts(objective))
            nodes_BK = torch.cat([paths_BM, others], dim=1)
            depths = [*range(1, self.trie.num_levels + 1), *other_depths.tolist()]
            labels_BK = (torch.arange(nodes_BK.shape[1], device=nodes_BK.device) < paths_BM.shape[1]).float()
            labels_BK = labels_BK.expand(nodes_BK.shape)
        is_real = nodes_BK >= 0
        logits = self.logits(batch.items, nodes_BK, depths)
        loss = F.binary_cross_entropy_with_logits(logits[is_real], labels_BK[is_real])
        return LossTerms(loss)

    def start(self, batch: SequenceBatch) -> GeneratorState:
        """Return the state at the root, which contains the history."""
        recent = batch.items.last(self.max_history_length)
        root = torch.zeros((batch.num_requests, 1), dtype=torch.int64, device=self.codes.device)
        return GeneratorState({"items": recent.to_padded(), "lengths": recent.lengths}, {"node": root})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        """Return the children's logits [B, W, C], -inf at codes without a child, and the state after `codes [B, W]`."""
        node_BW = self._nodes_after(state, codes)
        depth = self.trie.depth_of(node_BW)
        children = self.trie.expand(node_BW, depth=depth)
        scores, state = self.score_children(state, codes, children.nodes)
        return logits_by_code(scores, children, self.trie.codebook_sizes[depth]), state

    def score_children(
        self, state: GeneratorState, codes: Tensor | None, nodes: Tensor
    ) -> tuple[Tensor, GeneratorState]:
        """Return the logits of the children `nodes [B, W, D]`, and the state after `codes [B, W]`."""
        node_BW, flat_nodes = self._nodes_after(state, codes), nodes.flatten(1)
        items = Jagged.from_padded(state.shared["items"], state.shared["lengths"])
        scores = self.logits(items, flat_nodes, [self.trie.depth_of(node_BW) + 1] * flat_nodes.shape[1])
        return scores.view(nodes.shape), GeneratorState(state.shared, {"node": node_BW})

    def _nodes_after(self, state: GeneratorState, codes: Tensor | None) -> Tensor:
        """Return the node [B, W] that each beam reaches by its next code; after a leaf the next item begins."""
        node_BW = state.beams["node"] if codes is None else self.trie.advance(state.beams["node"], codes)
        return node_BW.where(node_BW < self.trie.level_starts[-2], self.trie.root)

    def _vectors(self, nodes: Tensor) -> Tensor:
        """Return the vectors of inner nodes, or of the items of leaves, [..., D]."""
        item = self.item_of_node[nodes]
        inner_vectors = self.inner(nodes.clamp(max=self.inner.num_embeddings - 1))
        return torch.where((item > 0)[..., None], self.items(item), inner_vectors)

    def _negative_counts(self, objective: Levels) -> list[int]:
        counts, depth = objective.negatives_per_level, self.trie.num_levels
        if counts is not None:
            if len(counts) != depth:
                raise ValueError(f"negatives_per_level has {len(counts)} numbers, but the tree has {depth} levels")
            return list(counts)
        return [-(-2 * objective.negatives * level // (depth * (depth + 1))) for level in range(1, depth + 1)]

    @torch.no_grad()
    def _visited(self, batch: SequenceBatch, paths_BM: Tensor, *, beam_width: int) -> tuple[Tensor, list[int], Tensor]:
        """Return the nodes that the current model's beam search scores, with those around the path, and their labels.

        OTM (Zhuo et al., ICML 2020): the label of a node is 1 if the target is the item that the current model prefers
        below it. That holds for the target's leaf, and for a node above it if it holds for its best-scored child. The
        children of the nodes on the path to the target are added; otherwise a target that the beam has lost would have
        no effect.

        Returns:
            The nodes [B, K], -1 for none; the depth of each of the K columns; and the labels [B, K].

        """
        was_training = self.training
        self.eval()  # the search must not change what training measures
        columns, labels, depths = [], [], []
        beams = torch.zeros((batch.num_requests, 1), dtype=torch.int64, device=paths_BM.device)
        path_node_B1 = beams
        best_children = []
        for depth in range(self.trie.num_levels):
            children = self.trie.expand(beams, depth=depth).nodes
            is_on_path = (beams == path_node_B1)[..., None] & (children >= 0)
            visited = children.masked_fill(is_on_path, -1).flatten(1)
            siblings = self.trie.expand(path_node_B1, depth=depth).nodes[:, 0]
            nodes = torch.cat([siblings, visited], dim=1)
            scores = self.logits(batch.items, nodes, [depth + 1] * nodes.shape[1]).masked_fill(nodes < 0, -torch.inf)
            target = paths_BM[:, depth]
            best_children.append(siblings.gather(1, scores[:, : siblings.shape[1]].argmax(1, keepdim=True))[:, 0])
            columns.append(nodes)
            labels.append(nodes == target[:, None])
            depths += [depth + 1] * nodes.shape[1]
            # Select the beam among the nodes that the search itself visits; siblings on the path count only if the
            # beam contains their parent.
            has_path_node = (beams == path_node_B1).any(1)
            search_scores = scores.clone()
            search_scores[:, : siblings.shape[1]].masked_fill_(~has_path_node[:, None], -torch.inf)
            best_nodes = search_scores.topk(min(beam_width, search_scores.shape[1]), dim=1)
            beams = nodes.gather(1, best_nodes.indices).masked_fill(best_nodes.values == -torch.inf, -1)
            path_node_B1 = target[:, None]
        is_preferred = torch.ones(len(paths_BM), dtype=torch.bool, device=paths_BM.device)
        for depth in range(self.trie.num_levels - 1, -1, -1):
            labels[depth] = labels[depth] & is_preferred[:, None]
            is_preferred = is_preferred & (best_children[depth] == paths_BM[:, depth])
        self.train(was_training)
        return torch.cat(columns, dim=1), depths, torch.cat(labels, dim=1).float()


def bits_to_codes(bits: Tensor, codebook_sizes: Sequence[int]) -> Tensor:
    """Return paths of a binary tree, `bits [N, m]`, as codes [N, M]; a level of 2^b codes uses b bits.

    Raises:
        ValueError: a codebook size is no power of two, or the codes have fewer bits than the paths.

    """
    widths = [size.bit_length() - 1 for size in codebook_sizes]
    if any(size & (size - 1) for size in codebook_sizes):
        raise ValueError(f"codebook sizes {tuple(codebook_sizes)}: a tree can be rebuilt only if all are powers of 2")
    if sum(widths) < bits.shape[1]:
        raise ValueError(
            f"codebook sizes {tuple(codebook_sizes)} have too few codes for a tree of depth {bits.shape[1]}"
        )
    bits = F.pad(bits, (0, sum(widths) - bits.shape[1]))
    columns, start = [], 0
    for width in widths:
        places = 2 ** torch.arange(width - 1, -1, -1)
        columns.append((bits[:, start : start + width] * places).sum(1))
        start += width
    return torch.stack(columns, dim=1)
