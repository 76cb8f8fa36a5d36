"""Exact search for the items with the largest inner products: eight bits find where to look, 32 bits decide.

A scan of all vectors in float32 waits for memory. Here vectors are also kept as int8, a quarter of the bytes, with
the length of what rounding took away. The integer products bound the true ones from both sides (Cauchy-Schwarz):

    |q v - q' v'| <= |q| |v - v'| + |q - q'| |v'|             q', v': rounded

The k-th largest lower bound is beaten by k items at least, so only items whose upper bound reaches it are looked at
in full. Nothing is missed: how tight the bounds are decides the time, never the answer.

GROUP items in a row share a bound: the best of them stands for all. The codes of TILE items lie the other way round
(the first of each group, the second of each, ...), so that maxima of whole groups are taken in vector registers.

Shapes: B queries, N items, D width, G groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nextitem.ops.topk import stable_topk

GROUP = 16  # items that share a bound
TILE = 1024  # items of neighbouring groups
BLOCK_PRODUCTS = 2**18  # products made at a time: 1 MiB of integers stays in the cache
QUERIES = 256  # at a time
SMALL = 2**16  # items up to which the plain way is as fast
PLAIN_PRODUCTS = 2**22  # products made at a time on the plain way
LEVELS = 127
ROUNDING = 1e-5  # of |q| |v|: more than float32 sums of some thousand terms lose
NEVER = torch.iinfo(torch.int32).min

Rows = tuple[Tensor, Tensor]  # rows of different lengths: values [T] and offsets [B + 1]


class VectorTable:
    """The vectors of items 1..N, made ready for exact search.

    `vectors [N + 1, D]` float32, row 0 is padding; it is kept, not copied.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.num_items = vectors.shape[0] - 1
        self.scanned = vectors.device.type == "cpu" and self.num_items > SMALL
        if self.scanned:
            self._round()

    def search(
        self, queries: Tensor, k: int, *, allowed: Tensor | None = None, excluded: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k items with the largest inner product for each of `queries [B, D]`, and these.

        `allowed` is bool [1, N + 1] or [B, N + 1]: only these items; `excluded`: the items that each query leaves
        out, values and offsets. Returns items [B, k] int64, 0 where there are no more, and scores
        [B, k], -inf there. Ties go to the smaller item number.
        """
        if not len(queries):
            return queries.new_zeros((0, k), dtype=torch.int64), queries.new_zeros((0, k))
        size = QUERIES if self.scanned else max(1, PLAIN_PRODUCTS // (self.num_items + 1))
        parts = []
        for start in range(0, len(queries), size):
            rows = torch.arange(start, min(start + size, len(queries)), device=queries.device)
            legal = allowed if allowed is None or len(allowed) == 1 else allowed[rows]
            out = None if excluded is None else _slice(excluded, start, start + len(rows))
            if self.scanned:
                parts.append(self._search(queries[rows], k, legal, out))
            else:
                parts.append(search_vectors_reference(self.vectors, queries[rows], k, allowed=legal, excluded=out))
        return torch.cat([items for items, _ in parts]), torch.cat([scores for _, scores in parts])

    @property
    def _padding(self) -> int:
        return -self.vectors.shape[1] % 4

    def _as_bytes(self, codes: Tensor) -> Tensor:
        """int8, in a width of whole words: torch 2.13 errs in integer products of width 1."""
        return torch.nn.functional.pad(codes.to(torch.int8), (0, self._padding))

    def _round(self) -> None:
        """Codes by tile, and for each group the step of its codes, the longest error, and the longest code vector."""
        tiles = math.ceil(self.num_items / TILE)
        self.num_groups = tiles * TILE // GROUP
        self.codes = torch.empty((tiles * TILE, self.vectors.shape[1] + self._padding), dtype=torch.int8)
        self.steps = torch.empty(self.num_groups)
        self.lengths = torch.empty((2, self.num_groups))
        for tile in range(tiles):
            first = 1 + tile * TILE
            rows = self.vectors[first : first + TILE].detach().float()
            # The last item fills the last group, whose maximum it does not change; groups beyond are never looked at.
            rows = torch.cat([rows, rows[-1:].expand(TILE - len(rows), -1)])
            grouped = rows.view(TILE // GROUP, GROUP, -1).transpose(0, 1)
            step = (grouped.abs().amax((0, 2)) / LEVELS).clamp(min=1e-30)
            codes = (grouped / step[:, None]).round()
            rounded = codes * step[:, None]
            self.codes[tile * TILE : (tile + 1) * TILE] = self._as_bytes(codes.reshape(TILE, -1))
            groups = slice(tile * TILE // GROUP, (tile + 1) * TILE // GROUP)
            longest = rounded.norm(dim=2).amax(0)
            self.steps[groups] = step
            self.lengths[0, groups] = (grouped - rounded).norm(dim=2).amax(0) + ROUNDING * longest
            self.lengths[1, groups] = longest

    def _search(self, queries: Tensor, k: int, allowed: Tensor | None, excluded: Rows | None) -> tuple[Tensor, Tensor]:
        """The same for a few queries, on the way described above."""
        queries = queries.float()
        step = (queries.abs().amax(1, keepdim=True) / LEVELS).clamp(min=1e-30)
        rounded = (queries / step).round()
        codes = self._as_bytes(rounded)
        # In units of the query's step: how far a product may be off for each unit of `lengths`.
        spread = torch.cat(
            [queries.norm(dim=1, keepdim=True) / step, (queries / step - rounded).norm(dim=1)[:, None]], 1
        )
        upper = self._upper_bounds(codes, spread, allowed)
        left_out = torch.zeros(len(queries), dtype=torch.int64) if excluded is None else excluded[1].diff()
        least = self._least(upper, spread, k + left_out)
        items, scores = torch.zeros((len(queries), k), dtype=torch.int64), torch.full((len(queries), k), -torch.inf)
        for row in range(len(queries)):
            groups = (upper[row] >= least[row]).nonzero()[:, 0]
            legal = self._legal(
                groups,
                None if allowed is None else allowed[row if len(allowed) > 1 else 0],
                None if excluded is None else excluded[0][excluded[1][row] : excluded[1][row + 1]],
            )
            found = self._within_reach(groups, legal, codes[row], spread[row], k)
            values = self.vectors.index_select(0, found).float() @ queries[row]
            best, places = stable_topk(values[None], min(k, len(found)))
            items[row, : best.shape[1]], scores[row, : best.shape[1]] = found[places[0]], best[0]
        return items, scores

    def _within_reach(self, groups: Tensor, legal: Tensor, codes: Tensor, spread: Tensor, k: int) -> Tensor:
        """The items of the groups [n] whose own upper bound reaches the k-th largest lower bound of any, rising.

        `legal [n, GROUP]` says which items count.
        """
        across = TILE // GROUP
        rows = (groups // across * TILE + groups % across)[:, None] + torch.arange(0, TILE, across)
        products = torch._int_mm(codes[None], self.codes.index_select(0, rows.flatten()).T)
        middle = products.view(-1, GROUP) * self.steps[groups][:, None]
        middle.masked_fill_(~legal, -torch.inf)
        margin = (spread @ self.lengths[:, groups])[:, None]
        reaching = legal
        if legal.numel() > k:
            least = torch.topk((middle - margin).flatten(), k, sorted=False).values.min()
            reaching = legal & (middle + margin >= least)
        return (GROUP * groups[:, None] + torch.arange(1, GROUP + 1))[reaching]

    def _legal(self, groups: Tensor, allowed: Tensor | None, excluded: Tensor | None) -> Tensor:
        """Which items of the groups may be returned, bool [n, GROUP]."""
        items = GROUP * groups[:, None] + torch.arange(1, GROUP + 1)
        legal = items <= self.num_items
        if allowed is not None:
            legal &= allowed[items.clamp(max=self.num_items)]
        if excluded is not None and len(groups):
            group = (excluded - 1) // GROUP
            places = torch.searchsorted(groups, group).clamp(max=len(groups) - 1)
            there = groups[places] == group
            legal[places[there], (excluded - 1)[there] % GROUP] = False
        return legal

    def _upper_bounds(self, codes: Tensor, spread: Tensor, allowed: Tensor | None) -> Tensor:
        """What no item of a group exceeds, [B, G], in units of the query's step; -inf where nothing is allowed."""
        count = len(codes)
        upper = torch.empty((count, self.num_groups))
        size = max(1, BLOCK_PRODUCTS // (count * TILE)) * TILE
        for low in range(0, len(self.codes), size):
            products = torch._int_mm(codes, self.codes[low : low + size].T)
            if allowed is not None:
                products.masked_fill_(~self._in_order_of_codes(allowed, low, products.shape[1]), NEVER)
            best = products.view(count, -1, GROUP, TILE // GROUP).amax(2).view(count, -1)
            groups = slice(low // GROUP, low // GROUP + best.shape[1])
            part = upper[:, groups]
            torch.mul(best, self.steps[groups], out=part)
            part.addmm_(spread, self.lengths[:, groups])
            if allowed is not None:
                part.masked_fill_(best == NEVER, -torch.inf)
        upper[:, math.ceil(self.num_items / GROUP) :] = -torch.inf
        return upper

    def _least(self, upper: Tensor, spread: Tensor, counts: Tensor) -> Tensor:
        """A bound that `counts[b]` items of query b reach at least, [B]; the smallest number where fewer may be."""
        bounds, lengths = upper, self.lengths
        if int(counts.max()) <= self.num_groups // GROUP // 4:  # the best of GROUP groups stand for them
            bounds = bounds.view(len(bounds), GROUP, -1).amax(1)
            lengths = lengths.view(2, GROUP, -1).amax(1)
        lower = torch.addmm(bounds, spread, lengths, alpha=-2)
        most = min(int(counts.max()), lower.shape[1])
        best = torch.topk(lower, most, dim=1).values
        least = best.gather(1, (counts - 1).clamp(max=most - 1)[:, None])[:, 0]
        smallest = torch.finfo(least.dtype).min  # and not -inf: groups without an allowed item stay out
        return least.masked_fill(counts > most, smallest).clamp(min=smallest)

    def _in_order_of_codes(self, allowed: Tensor, low: int, count: int) -> Tensor:
        """The entries of `allowed` for the codes `low`, ..., [., count]."""
        legal = allowed[:, low + 1 : low + 1 + count]
        legal = torch.nn.functional.pad(legal, (0, count - legal.shape[1]))
        return legal.reshape(len(legal), -1, TILE // GROUP, GROUP).transpose(2, 3).reshape(len(legal), -1)


def search_vectors_reference(
    vectors: Tensor, queries: Tensor, k: int, *, allowed: Tensor | None = None, excluded: Rows | None = None
) -> tuple[Tensor, Tensor]:
    """The same by all products, and a cut."""
    scores = queries.float() @ vectors.float().T
    scores[:, 0] = -torch.inf
    if allowed is not None:
        scores.masked_fill_(~allowed, -torch.inf)
    if excluded is not None:
        values, offsets = excluded
        rows = torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())
        scores[rows, values] = -torch.inf
    values, items = stable_topk(scores, min(k, scores.shape[1]))
    missing = (0, k - values.shape[1])
    values = torch.nn.functional.pad(values, missing, value=-torch.inf)
    return torch.nn.functional.pad(items, missing).masked_fill(values == -torch.inf, 0), values


def _slice(rows: Rows, first: int, end: int) -> Rows:
    """Rows `first` to `end` - 1."""
    values, offsets = rows
    low, high = int(offsets[first]), int(offsets[end])
    return values[low:high], offsets[first : end + 1] - low
