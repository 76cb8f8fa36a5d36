"""Clusters: balanced clusters of items by their content and by the items that follow them, down to single items.

Papers: UniRec, arXiv 2604.12234 (capacity by exposure); Zhu et al., TDM, arXiv 1801.02294, section 3.5 (equal sizes,
relearned from the item vectors of a model); Levy & Goldberg 2014 (transition vectors). Idea: an item is described by
what it is, its content, and by which items users take before and after it. Both vectors stand side by side. Their
balanced clusters are the first codes, clusters within them the next, and the last code numbers the items of a cluster.
So a generator decides by a few small softmaxes, and items that users take in succession are in the same one.

Notable
- The number of levels and codes follows from the number of items, if it is not set. 12,101 items: 111 clusters with 109
  or 110 items each, and a code or two in each are free for new items.
- Each of the two vectors has unit length, times its weight. An item without transitions is assigned by its content, one
  without content by its transitions, and one without both takes a place that the others leave.
- UniRec repairs k-means until no cluster has more than 1.05 times the mean exposure. Here a cluster takes no further
  item once it has its share of the training events, in every round of k-means.
- A new item has no transitions: it goes to the clusters whose content is nearest, and gets the next free code of the
  last one. If there is none, it shares the code of the nearest item.
- The codes depend on training events. A model that uses them must be judged by the split that they were made under.

Shapes: N items, n rows, D content width, W width of a part, M levels, V inner nodes of the tree of codes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.examples.item_pairs import ItemPairs
from nextitem.neighbours.transitions import transition_vectors
from nextitem.nn.quantisation.cluster_codes import Balance, cluster_codes, equal_codebook_sizes
from nextitem.nn.quantisation.quantizers import nearest_code, nearest_code_in_range
from nextitem.tokenizers.tokenizer import Tokenizer

_FAR = 10.0  # every entry of the content of a node without content: farther from all unit vectors than any of them


class ClustersConfig(configs.Config):
    """Settings of the tokenizer of clusters."""

    codebook_sizes: tuple[int, ...] | None = None
    """Number of codes of each level: clusters, clusters within each of them, ..., items of a last cluster. None: equal
    sizes that just suffice for the items, in two levels up to 200,000 items and in three above. (64, 256) has fewer,
    larger clusters, (512, 32) more and smaller ones.
    """
    balance: Balance = "size"
    """What clusters have in equal numbers: items ("size"), training events ("exposure"), or nothing ("plain", plain
    k-means). With the latter two the last level gets more codes if the largest cluster has more items.
    """
    content_weight: float = Field(1.0, ge=0)
    """Weight of the content in the distance of items; 0: transitions alone."""
    transition_weight: float = Field(1.0, ge=0)
    """Weight of the transitions in the distance of items; 0: content alone."""
    lag_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Weights of transitions between events that are 1, 2, 3, ... events apart."""
    width: int = Field(64, ge=1)
    """Width of each of the two vectors, of content and of transitions (W)."""
    iterations: int = Field(20, ge=1)
    """Maximum number of rounds of k-means at each split."""

    @property
    def needs(self) -> frozenset[Requirement]:
        """Require content if transitions are not used."""
        return frozenset() if self.transition_weight > 0 else frozenset({"content"})

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(self.transition_weight > 0, "transition_weight is 0", "lag_weights")


class Clusters(Tokenizer):
    """Tokenizer of balanced clusters (closed form). The same seed, content and events give the same codes."""

    name = "clusters"
    Config = ClustersConfig
    config: ClustersConfig
    needs: ClassVar[frozenset[Requirement]] = frozenset()
    has_unique_codes: ClassVar[bool] = True
    has_item_numbers: ClassVar[bool] = True
    axes: Tensor
    sizes: Tensor
    first_child: Tensor
    centres: Tensor
    leaves: Tensor

    def __init__(self, config: ClustersConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if not self.config.content_weight and not self.config.transition_weight:
            raise ValueError("content_weight = 0 and transition_weight = 0 leave nothing to cluster; set one of them")
        sizes = self.config.codebook_sizes
        if sizes is not None and (len(sizes) < 2 or min(sizes) < 1):
            raise ValueError(f"codebook_sizes = {sizes}: set two levels or more, and at least one code for each")
        width = min(self.config.width, self.content_dim)
        self.register_buffer("axes", torch.zeros(self.content_dim, width))
        # Filled by fit: the tree of codes, nodes breadth first. Children of node v: first_child[v], ... below
        # first_child[v + 1]; the last N nodes are the items.
        self.register_buffer("sizes", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("first_child", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("centres", torch.zeros(0, width))  # [V, W] mean unit content of inner nodes
        self.register_buffer("leaves", torch.zeros(0, width))  # [N, W] content of items
        self._codes: Tensor | None = None
        self._inputs: Tensor | None = None
        self._pairs: ItemPairs | None = None

    @classmethod
    def learns_from_events(cls, config: configs.Config) -> bool:
        """Return whether codes depend on events: on transitions, or on the exposure of items."""
        assert isinstance(config, ClustersConfig)
        return config.transition_weight > 0 or config.balance == "exposure"

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level."""
        return tuple(self.sizes.tolist())

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Cluster the items of `train.catalog` by their content and by the events of `train`."""
        config, seed = self.config, int(self.seed)
        content = self.item_content(train.catalog)
        # The principal axes of uncentred content are those of latent semantic analysis.
        self.axes.copy_(torch.linalg.eigh(content.T @ content)[1].flip(1)[:, : self.axes.shape[1]])
        coordinates = content @ self.axes
        parts = []
        if config.content_weight:
            unit = torch.nn.functional.normalize(coordinates, dim=1)
            parts.append(config.content_weight * unit.masked_fill((coordinates == 0).all(1, keepdim=True), torch.nan))
        if config.transition_weight:
            events = train.interactions.targets_only()
            transitions = transition_vectors(events, config.lag_weights, config.width, seed=seed)
            parts.append(config.transition_weight * transitions)
        self._inputs = torch.cat(parts, dim=1)
        sizes = config.codebook_sizes or equal_codebook_sizes(train.catalog.num_items)
        exposure = None
        if self.learns_from_events(config):  # an item without events counts as one with one event
            exposure = torch.from_numpy(train.interactions.item_counts()[1:]).clamp(min=1)
            self._pairs = ItemPairs(train.interactions)
        try:
            codes = cluster_codes(
                self._inputs,
                sizes,
                seed=seed,
                balance=config.balance,
                weights=exposure,
                iterations=config.iterations,
            )
        except ValueError as error:
            raise UserError(f"[tokenizer] clusters: {error}, or omit the setting") from None
        self.sizes = torch.tensor([*sizes[:-1], max(sizes[-1], int(codes[:, -1].max()) + 1)])
        self._store_tree(codes, coordinates)
        self._codes = codes

    def encode_catalog(self, catalog: Catalog) -> Tensor:
        """Return codes [N, M] of the items to which the tokenizer was fitted."""
        assert self._codes is not None
        assert len(self._codes) == catalog.num_items
        return self._codes

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D]: those of the nearest item in the nearest clusters."""
        unit = torch.nn.functional.normalize(content @ self.axes, dim=1)
        leaves = torch.nn.functional.normalize(self.leaves, dim=1)
        leaves = torch.where((self.leaves == 0).all(1, keepdim=True), _FAR, leaves)
        table = torch.cat([self.centres, leaves])
        start, end = int(self.first_child[0]), int(self.first_child[1])
        levels = [nearest_code(unit, table[start:end])]
        node = start + levels[0]
        for _ in range(1, len(self.sizes)):
            levels.append(nearest_code_in_range(unit, table, self.first_child[node], self.first_child[node + 1]))
            node = self.first_child[node] + levels[-1]
        return torch.stack(levels, dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return content vectors [n, D] of codes [n, M]: of the item, or of the cluster if no item has the codes."""
        node = torch.zeros(len(codes), dtype=torch.int64)
        for code in codes.T:
            parent, node = node, self.first_child[node] + code
        is_item = node < self.first_child[parent + 1]
        item = (node - len(self.centres)).clamp(max=len(self.leaves) - 1)
        cluster_content = self.centres[parent].where(self.centres[parent] != _FAR, 0.0)
        return torch.where(is_item[:, None], self.leaves[item], cluster_content) @ self.axes.T

    def inputs(self, catalog: Catalog) -> Tensor:
        """Return the vectors of content and transitions that were clustered, [N, up to 2 W]; missing entries are 0."""
        assert self._inputs is not None
        return self._inputs.nan_to_num()

    def figures(self, codes: Tensor) -> dict[str, Any]:
        """Return how often successive items of training share the first code, the first two, ... (quality report)."""
        if self._pairs is None or not len(self._pairs.left):
            return {}
        shared = (codes[self._pairs.left - 1] == codes[self._pairs.right - 1]).cumprod(1)
        return {"transitions_sharing_prefix": shared.double().mean(0).tolist()}

    def _store_tree(self, codes: Tensor, coordinates: Tensor) -> None:
        """Store the tree of `codes [N, M]`, with the content of its nodes, from that of the items [N, W]."""
        unit = torch.nn.functional.normalize(coordinates, dim=1)
        has_content = (coordinates != 0).any(1).to(unit.dtype)
        group, first_child, centres, num_nodes = torch.zeros(len(codes), dtype=torch.int64), [], [], 1
        for level, size in enumerate(self.codebook_sizes):
            sums = unit.new_zeros(int(group.max()) + 1, unit.shape[1]).index_add_(0, group, unit)
            counts = torch.bincount(group, has_content, minlength=len(sums)).to(unit.dtype)[:, None]
            centres.append(torch.where(counts > 0, sums / counts.clamp(min=1), _FAR))
            children, group = (group * size + codes[:, level]).unique(return_inverse=True)
            num_children = torch.bincount(children // size, minlength=len(sums))
            first_child.append(num_nodes + num_children.cumsum(0) - num_children)
            num_nodes += len(children)
        self.centres = torch.cat(centres)
        self.first_child = torch.cat([*first_child, torch.tensor([num_nodes])])
        self.leaves = torch.empty_like(coordinates)
        self.leaves[group] = coordinates
