"""Beam trace: how a search walked down the trie, as prefixes that stay, that are pruned, and that a constraint cut.

A trace is the `watch` of a search. It reads what the search computes anyway, so the search and its answer stay the
same. What a constraint cut is found by a second search without constraints: of the prefixes that stay there, those
below which the request may have no item.

Shapes: B requests, W beams, D children of a beam, X prefixes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nextitem.decoding.beam_search import Level
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.trie import PrefixTrie

State = Literal["kept", "pruned", "cut"]
MAX_KEPT = 100  # prefixes of a level that stay, and that are cut, that are listed
MAX_PRUNED = 20  # pruned prefixes of a level that are listed


@dataclass(frozen=True)
class TracedPrefix:
    """One prefix of a level.

    Attributes:
        codes: the codes that lead to it.
        score: the value by which it was selected or not.
        state: kept: it stays in the search. pruned: others were better. cut: it would have stayed if the request had no
            constraints, but no item below it is allowed.
        model: its value by the generator alone, a log-probability unless the search takes logits as they are; None:
            the same as `score`, as there is no guide.
        guide: log of the largest probability that the guide has for an item below it; None: no guide, or probability 0.
        items: numbers of the most popular items below it.

    """

    codes: tuple[int, ...]
    score: float
    state: State
    model: float | None = None
    guide: float | None = None
    items: tuple[int, ...] = ()


@dataclass(frozen=True)
class TracedLevel:
    """The prefixes of one level, from 1 on: those that stay, then the best pruned ones, then those that were cut.

    `num_cut` counts all that were cut, listed or not.
    """

    level: int
    prefixes: tuple[TracedPrefix, ...]
    num_cut: int


@dataclass(frozen=True, eq=False)
class _Prefixes:
    """Prefixes of one level: nodes [B, X] int64 (-1: none), their values, and the guide's log-probabilities."""

    nodes: Tensor
    scores: Tensor
    model: Tensor
    guide: Tensor | None

    def where(self, stays: Tensor) -> _Prefixes:
        """Return the prefixes at which `stays`, bool, is true."""
        return replace(self, nodes=self.nodes.masked_fill(~stays, -1))

    def select(self, columns: Tensor) -> _Prefixes:
        """Return the prefixes at `columns [B, X']`."""
        guide = None if self.guide is None else self.guide.gather(1, columns)
        return _Prefixes(
            self.nodes.gather(1, columns), self.scores.gather(1, columns), self.model.gather(1, columns), guide
        )


class BeamTrace:
    """What a search did at each level; pass it as `watch`. If there are several walks, the first is recorded."""

    def __init__(self) -> None:
        self._selected: dict[int, _Prefixes] = {}
        self._pruned: dict[int, _Prefixes] = {}
        self._trie: PrefixTrie | None = None
        self._constraints: Constraints | None = None

    def __call__(self, level: Level) -> None:
        """Record a level."""
        if level.depth in self._selected:
            return
        self._trie, self._constraints = level.search.trie, level.search.constraints
        all_rows = torch.arange(len(level.keys), device=level.keys.device)
        keys = level.keys.clone()
        self._constraints.mask_disallowed(keys, all_rows, level.parents.nodes, level.children, depth=level.depth - 1)
        nodes, guide = level.children.nodes, None
        if level.search.guide is not None:
            guide = level.search.guide.largest(nodes, depth=level.depth).log().flatten(1)
        nodes, keys = nodes.flatten(1), keys.flatten(1)
        live = _Prefixes(nodes.masked_fill(keys == -torch.inf, -1), keys, level.scores.flatten(1), guide)
        order = keys.argsort(dim=1, descending=True, stable=True)
        width = level.selected.nodes.shape[1]
        num_kept = (level.selected.nodes >= 0).sum(1, keepdim=True)
        best = live.select(order[:, : width + MAX_PRUNED])
        is_kept = torch.arange(best.nodes.shape[1], device=nodes.device) < num_kept
        self._selected[level.depth] = best.where(is_kept)
        self._pruned[level.depth] = best.where(~is_kept)

    def levels(self, row: int, popularity: Tensor, *, free: BeamTrace | None = None) -> tuple[TracedLevel, ...]:
        """Return the levels of one request.

        Args:
            row: number of the request in the search.
            popularity: [N + 1], by which the items of a prefix are selected.
            free: trace of the same requests without constraints; None: nothing is cut.

        """
        return tuple(self._level(depth, row, popularity, free) for depth in sorted(self._selected))

    def _level(self, depth: int, row: int, popularity: Tensor, free: BeamTrace | None) -> TracedLevel:
        prefixes = [
            *self._listed(self._selected[depth], depth, row, "kept", popularity, MAX_KEPT),
            *self._listed(self._pruned[depth], depth, row, "pruned", popularity, MAX_PRUNED),
        ]
        num_cut = 0
        if free is not None and depth in free._selected:
            assert self._constraints is not None
            others = free._selected[depth]
            nodes = others.nodes[row]
            is_cut = nodes >= 0
            is_cut &= ~self._constraints.live(torch.full_like(nodes, row), nodes.clamp(min=0))
            num_cut = int(is_cut.sum())
            cut = others.where(is_cut)
            prefixes += self._listed(cut, depth, row, "cut", popularity, MAX_KEPT)
        return TracedLevel(depth, tuple(prefixes), num_cut)

    def _listed(
        self, prefixes: _Prefixes, depth: int, row: int, state: State, popularity: Tensor, limit: int
    ) -> list[TracedPrefix]:
        """Return the first prefixes of a request, at most `limit`."""
        assert self._trie is not None
        columns = (prefixes.nodes[row] >= 0).nonzero()[:limit, 0]
        nodes = prefixes.nodes[row, columns]
        scores, model = prefixes.scores[row, columns].tolist(), prefixes.model[row, columns].tolist()
        guide = [None] * len(columns) if prefixes.guide is None else prefixes.guide[row, columns].tolist()
        return [
            TracedPrefix(
                codes,
                score,
                state,
                model=None if prefixes.guide is None else own,
                guide=None if largest is None or largest == -torch.inf else largest,
                items=self._popular_items(node, popularity),
            )
            for codes, score, own, largest, node in zip(
                _codes(self._trie, nodes, depth), scores, model, guide, nodes.tolist(), strict=True
            )
        ]

    def _popular_items(self, node: int, popularity: Tensor) -> tuple[int, ...]:
        """Return the numbers of the three most popular items below a node."""
        assert self._trie is not None
        items = self._trie.items_under(node)
        best = popularity[items].argsort(descending=True, stable=True)[:3]
        return tuple(items[best].tolist())


def _codes(trie: PrefixTrie, nodes: Tensor, depth: int) -> Sequence[tuple[int, ...]]:
    """Return the codes that lead to `nodes [X]` of the given depth."""
    columns = []
    for above in range(depth - 1, -1, -1):
        columns.append(trie.codes[nodes].tolist())
        nodes = trie.parents(nodes, depth=above)
    return list(zip(*reversed(columns), strict=True))
