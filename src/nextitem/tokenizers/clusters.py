"""Clusters: balanced clusters of items by their content and by the items that follow them, down to single items.

Papers: UniRec, arXiv 2604.12234 (capacity by exposure); Zhu et al., TDM, arXiv 1801.02294, section 3.5 (equal sizes,
relearned from the item vectors of a model); Levy & Goldberg 2014 (transition vectors). Idea: an item is described by
what it is, its content, and by which items users take before and after it. Both vectors stand side by side. Their
balanced clusters are the first codes, clusters within them the next, and the last code numbers the items of a cluster.
So a generator decides by a few small softmaxes, and items that users take in succession are in the same one.

Notable
- An attribute of the items, such as their category, can precede these codes (UniRec's chain of attributes).
- The number of levels and codes follows from the number of items, if it is not set. 12,101 items: 111 clusters with 109
  or 110 items each, and a code or two in each are free for new items.
- Each of the two vectors has unit length, times its weight. An item without transitions is assigned by its content, one
  without content by its transitions, and one without both takes a place that the others leave.
- UniRec repairs plain k-means until no cluster has more than 1.05 times the mean exposure ("exposure-capped"). With
  "exposure" a cluster takes no further item once it has its share of the training events, in every round of k-means.
- A new item has no transitions: it goes to the clusters whose content is nearest, and gets the next free code of the
  last one. If there is none, it shares the code of the nearest item.
- The codes depend on training events. A model that uses them must be judged by the split that they were made under.

Shapes: N items, n rows, D content width, W width of a part, M levels, V inner nodes of the tree of codes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import polars as pl
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
    larger clusters, (512, 32) more and smaller ones. With an attribute these are the levels below its own.
    """
    attribute: str | None = None
    """Item feature whose value is the first code, so that clusters are made among items with the same value; None: no
    such level. Items without a value share a code. Of a list of values, the one that most items have counts.
    """
    balance: Balance = "size"
    """What limits clusters: equal numbers of items ("size") or training events ("exposure"), at most `exposure_cap`
    times the mean number of impressions ("exposure-capped", plain k-means with a greedy repair; of training events if
    no impressions are logged), or nothing ("plain", plain k-means). Unless it is "size", the last level gets more codes
    if the largest cluster has more items.
    """
    exposure_cap: float = Field(1.05, ge=1)
    """Largest exposure of a cluster, as a multiple of the mean of its siblings; an item with more stays alone."""
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
        is_capped = self.balance == "exposure-capped"
        return {
            **configs.idle_unless(self.transition_weight > 0, "transition_weight is 0", "lag_weights"),
            **configs.idle_unless(is_capped, "balance is not exposure-capped", "exposure_cap"),
        }


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
        if self.config.attribute is not None:
            attribute_codes(catalog, self.config.attribute, catalog.num_items)  # raises an error if there is no column
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
        self._exposure: Tensor | None = None

    @classmethod
    def learns_from_events(cls, config: configs.Config) -> bool:
        """Return whether codes depend on events: on transitions, or on the exposure of items."""
        assert isinstance(config, ClustersConfig)
        return config.transition_weight > 0 or config.balance in ("exposure", "exposure-capped")

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
        num_values: tuple[int, ...] = ()
        prefixes, largest = None, train.catalog.num_items
        if config.attribute is not None:
            prefixes = attribute_codes(train.catalog, config.attribute, train.catalog.num_items)[:, None]
            counts = torch.bincount(prefixes[:, 0])
            num_values, largest = (len(counts),), int(counts.max())
        sizes = config.codebook_sizes or equal_codebook_sizes(largest)
        if self.learns_from_events(config):
            self._exposure = exposure_of(train, from_impressions=config.balance == "exposure-capped")
            self._pairs = ItemPairs(train.interactions)
        try:
            codes = cluster_codes(
                self._inputs,
                sizes,
                seed=seed,
                balance=config.balance,
                weights=self._exposure,
                cap=config.exposure_cap,
                iterations=config.iterations,
                prefixes=prefixes,
            )
        except ValueError as error:
            raise UserError(f"[tokenizer] clusters: {error}, or omit the setting") from None
        self.sizes = torch.tensor([*num_values, *sizes[:-1], max(sizes[-1], int(codes[:, -1].max()) + 1)])
        self._store_tree(codes, coordinates)
        self._codes = codes

    def encode_catalog(self, catalog: Catalog) -> Tensor:
        """Return codes [N, M] of the items to which the tokenizer was fitted."""
        assert self._codes is not None
        assert len(self._codes) == catalog.num_items
        return self._codes

    def encode_new(self, catalog: Catalog, num_old: int) -> tuple[Tensor, Tensor]:
        """Return the codes of new items, and which of them content or attribute have placed; see `Tokenizer`."""
        content = self.item_content(catalog)[num_old:]
        is_placed = (content != 0).any(1)
        if self.config.attribute is None:
            return self.encode(content), is_placed
        values = attribute_codes(catalog, self.config.attribute, len(self.leaves))[num_old:]
        return self._nearest(content, values), is_placed | (values >= 0)

    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D]: those of the nearest item in the nearest clusters."""
        return self._nearest(content, torch.full((len(content),), -1))

    @torch.no_grad()
    def _nearest(self, content: Tensor, first: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D] below the first codes `first [n]`; -1: the nearest one."""
        unit = torch.nn.functional.normalize(content @ self.axes, dim=1)
        leaves = torch.nn.functional.normalize(self.leaves, dim=1)
        leaves = torch.where((self.leaves == 0).all(1, keepdim=True), _FAR, leaves)
        table = torch.cat([self.centres, leaves])
        start, end = int(self.first_child[0]), int(self.first_child[1])
        levels = [torch.where(first < 0, nearest_code(unit, table[start:end]), first)]
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
        """Return figures for the quality report, by level but the last: exposure of clusters, and transitions within.

        Transitions: how often successive items of training share the first code, the first two, ... Exposure: that of
        the largest cluster, as a multiple of the mean of the level.
        """
        figures: dict[str, Any] = {} if self.config.attribute is None else {"attribute_levels": 1}
        if self._exposure is not None:
            figures["largest_exposure"] = [
                largest_share(codes[:, : level + 1], self._exposure) for level in range(codes.shape[1] - 1)
            ]
        if self._pairs is not None and len(self._pairs.left):
            shared = (codes[self._pairs.left - 1] == codes[self._pairs.right - 1]).cumprod(1)
            figures["transitions_sharing_prefix"] = shared.double().mean(0).tolist()
        return figures

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


def exposure_of(train: Dataset, *, from_impressions: bool) -> Tensor:
    """Return the exposure of each item, [N] int64: impressions if asked for and logged, else training events.

    An item without exposure counts as one that was shown once.
    """
    if from_impressions and train.impressions is not None:
        counts = torch.bincount(
            torch.from_numpy(train.impressions.item_ids).long(), minlength=train.catalog.num_items + 1
        )
    else:
        counts = torch.from_numpy(train.interactions.item_counts())
    return counts[1:].clamp(min=1)


def largest_share(prefixes: Tensor, exposure: Tensor) -> float:
    """Return the exposure of the items with the most exposed prefix, as a multiple of the mean over used prefixes.

    Args:
        prefixes: first codes of the items, [N, P].
        exposure: exposure of the items, [N].

    """
    cluster = prefixes.unique(dim=0, return_inverse=True)[1]
    sums = torch.bincount(cluster, exposure.double())
    return float(sums.max() / sums.mean())


def attribute_codes(catalog: Catalog, attribute: str, num_items: int) -> Tensor:
    """Return a code for the value of an item feature of each item of the catalogue, [N] int64.

    The first `num_items` items determine the codes: their values are numbered from 0 in alphabetical order, and a
    missing value has the next number if one of these items lacks a value. Another value has the code -1, as a missing
    one if none of these items lacks it. Of a list of values the one that most of these items have counts, of equally
    frequent ones the first in alphabetical order.

    Raises:
        UserError: the items have no such column.

    """
    if attribute not in catalog.table.columns:
        names = [name for name in catalog.table.columns if name != "item_id"]
        raise UserError(
            f'[tokenizer] clusters: attribute = "{attribute}" is not a column of the items; '
            + (f"there are {', '.join(names)}" if names else "they have no columns, so omit the setting")
        )
    column = catalog.table[attribute]
    if column.dtype == pl.List:
        rows = pl.DataFrame({"row": pl.int_range(len(column), eager=True), "value": column.cast(pl.List(pl.String))})
        members = rows.explode("value").drop_nulls("value")
        counts = members.filter(pl.col("row") < num_items).unique().group_by("value").len()
        best = members.join(counts, on="value", how="left").sort(
            ["len", "value"], descending=[True, False], nulls_last=True
        )
        best = best.group_by("row", maintain_order=True).agg(pl.col("value").first())
        column = rows.select("row").join(best, on="row", how="left", maintain_order="left")["value"]
    column = column.cast(pl.String)
    first = column.head(num_items)
    values = first.drop_nulls().unique().sort()
    missing = len(values) if first.null_count() else -1
    numbers = pl.Series(range(len(values)), dtype=pl.Int64)
    codes = column.replace_strict(values, numbers, default=-1, return_dtype=pl.Int64)
    return torch.tensor(codes.zip_with(column.is_not_null(), pl.repeat(missing, len(codes), eager=True)).to_numpy())
