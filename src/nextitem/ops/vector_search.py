"""Exact search for the items with the largest inner products: int8 vectors select candidates, float32 ranks them.

A scan of all vectors in float32 is limited by memory bandwidth. So vectors are also stored as int8, a quarter of the
bytes, with the lengths of their rounding errors. The integer products bound the true ones from both sides
(Cauchy-Schwarz):

    |q v - q' v'| <= |q| |v - v'| + |q - q'| |v'|             q', v': rounded

At least k items reach the k-th largest lower bound, so only items whose upper bound reaches it are scored in float32.
No item is missed: the tightness of the bounds affects the time, never the result.

GROUP consecutive items share a bound, that of the best of them. The codes of TILE items are stored in transposed order
(the first of each group, the second of each, ...), so that maxima of whole groups are computed in vector registers.

Shapes: B queries, N items, D width, G groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nextitem.ops.topk import stable_topk

GROUP = 16  # items that share a bound
TILE = 1024  # consecutive items, in groups, whose codes are stored in transposed order
BLOCK_PRODUCTS = 2**18  # integer products computed at a time: 1 MiB of integers stays in the cache
QUERIES = 256  # queries searched at a time
SMALL = 2**16  # number of items up to which a plain scan is as fast
PLAIN_PRODUCTS = 2**22  # products computed at a time in a plain scan
LEVELS = 127  # largest code of a rounded component
ROUNDING = 1e-5  # error of float32 sums relative to |q| |v|; more than sums of some thousand terms lose
NEVER = torch.iinfo(torch.int32).min  # product of a code that must not be selected

Rows = tuple[Tensor, Tensor]  # rows of different lengths: values [T] and offsets [B + 1]


class VectorTable:
    """Vectors of items 1..N, prepared for exact search by inner product.

    `vectors [N + 1, D]` float32; row 0 is padding. The tensor is stored, not copied. On the CPU, if there are more than
    `SMALL` items, they are also stored as int8 codes.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.num_items = vectors.shape[0] - 1
        self.has_codes = vectors.device.type == "cpu" and self.num_items > SMALL
        if self.has_codes:
            self._round()

    def search(
        self, queries: Tensor, k: int, *, allowed: Tensor | None = None, excluded: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the k items with the largest inner product for each query, and their inner products.

        Args:
            queries: query vectors [B, D].
            k: number of items to return for each query.
            allowed: items that may be returned, bool [1, N + 1] or [B, N + 1]; None: all.
            excluded: items that each query excludes, as values and offsets; None: no items.

        Returns:
            Items [B, k] int64 and scores [B, k], best first; ties go to the smaller item number. A query with fewer
            than k allowed items has items 0 and scores -inf at the end.

        """
        if not len(queries):
            return queries.new_zeros((0, k), dtype=torch.int64), queries.new_zeros((0, k))
        size = QUERIES if self.has_codes else max(1, PLAIN_PRODUCTS // (self.num_items + 1))
        parts = []
        for start in range(0, len(queries), size):
            rows = torch.arange(start, min(start + size, len(queries)), device=queries.device)
            part_allowed = allowed if allowed is None or len(allowed) == 1 else allowed[rows]
            part_excluded = None if excluded is None else _slice(excluded, start, start + len(rows))
            if self.has_codes:
                parts.append(self._search(queries[rows], k, part_allowed, part_excluded))
            else:
                part = search_vectors_reference(
                    self.vectors, queries[rows], k, allowed=part_allowed, excluded=part_excluded
                )
                parts.append(part)
        return torch.cat([items for items, _ in parts]), torch.cat([scores for _, scores in parts])

    @property
    def _padding(self) -> int:
        return -self.vectors.shape[1] % 4

    def _as_bytes(self, codes: Tensor) -> Tensor:
        """Return codes as int8, padded to a multiple of 4 columns: torch 2.13 errs in integer products of width 1."""
        return torch.nn.functional.pad(codes.to(torch.int8), (0, self._padding))

    def _round(self) -> None:
        """Round the vectors to codes, tile by tile, in the order of the module's documentation.

        It also stores for each group the step of its codes (`steps`), and the lengths of its largest rounding error and
        its longest rounded vector (`lengths`).
        """
        tiles = math.ceil(self.num_items / TILE)
        self.num_groups = tiles * TILE // GROUP
        self.codes = torch.empty((tiles * TILE, self.vectors.shape[1] + self._padding), dtype=torch.int8)
        self.steps = torch.empty(self.num_groups)
        self.lengths = torch.empty((2, self.num_groups))
        for tile in range(tiles):
            first = 1 + tile * TILE
            rows = self.vectors[first : first + TILE].detach().float()
            # The last item pads the last group, whose maximum it does not change; groups beyond it are never read.
            rows = torch.cat([rows, rows[-1:].expand(TILE - len(rows), -1)])
            grouped = rows.view(TILE // GROUP, GROUP, -1).transpose(0, 1)
            step = (grouped.abs().amax((0, 2)) / LEVELS).clamp(min=1e-30)
            codes = (grouped / step[:, None]).round()
            rounded = codes * step[:, None]
            self.codes[tile * TILE : (tile + 1) * TILE] = self._as_bytes(codes.reshape(TILE, -1))
            groups = slice(tile * TILE // GROUP, (tile + 1) * TILE // GROUP)
            max_norm = rounded.norm(dim=2).amax(0)
            self.steps[groups] = step
            self.lengths[0, groups] = (grouped - rounded).norm(dim=2).amax(0) + ROUNDING * max_norm
            self.lengths[1, groups] = max_norm

    def _search(self, queries: Tensor, k: int, allowed: Tensor | None, excluded: Rows | None) -> tuple[Tensor, Tensor]:
        """Return what `search` returns for a few queries, using the bounds of the codes."""
        queries = queries.float()
        step = (queries.abs().amax(1, keepdim=True) / LEVELS).clamp(min=1e-30)
        rounded = (queries / step).round()
        codes = self._as_bytes(rounded)
        # In units of the query's step: the error of a product for each unit of `lengths`.
        spread = torch.cat(
            [queries.norm(dim=1, keepdim=True) / step, (queries / step - rounded).norm(dim=1)[:, None]], 1
        )
        upper = self._upper_bounds(codes, spread, allowed)
        num_excluded = torch.zeros(len(queries), dtype=torch.int64) if excluded is None else excluded[1].diff()
        lower = self._lower_bounds(upper, spread, k + num_excluded)
        items, scores = torch.zeros((len(queries), k), dtype=torch.int64), torch.full((len(queries), k), -torch.inf)
        for row in range(len(queries)):
            groups = (upper[row] >= lower[row]).nonzero()[:, 0]
            legal = self._legal(
                groups,
                None if allowed is None else allowed[row if len(allowed) > 1 else 0],
                None if excluded is None else excluded[0][excluded[1][row] : excluded[1][row + 1]],
            )
            candidates = self._candidates(groups, legal, codes[row], spread[row], k)
            values = self.vectors.index_select(0, candidates).float() @ queries[row]
            best, positions = stable_topk(values[None], min(k, len(candidates)))
            items[row, : best.shape[1]], scores[row, : best.shape[1]] = candidates[positions[0]], best[0]
        return items, scores

    def _candidates(self, groups: Tensor, legal: Tensor, codes: Tensor, spread: Tensor, k: int) -> Tensor:
        """Return the items of the groups [n] whose own upper bound reaches the k-th largest lower bound, ascending.

        The lower bounds are those of the items of these groups. `legal [n, GROUP]`: which items may be returned.
        """
        across = TILE // GROUP
        rows = (groups // across * TILE + groups % across)[:, None] + torch.arange(0, TILE, across)
        products = torch._int_mm(codes[None], self.codes.index_select(0, rows.flatten()).T)
        middle = products.view(-1, GROUP) * self.steps[groups][:, None]
        middle.masked_fill_(~legal, -torch.inf)
        margin = (spread @ self.lengths[:, groups])[:, None]
        is_candidate = legal
        if legal.numel() > k:
            lower = torch.topk((middle - margin).flatten(), k, sorted=False).values.min()
            is_candidate = legal & (middle + margin >= lower)
        return (GROUP * groups[:, None] + torch.arange(1, GROUP + 1))[is_candidate]

    def _legal(self, groups: Tensor, allowed: Tensor | None, excluded: Tensor | None) -> Tensor:
        """Return which items of the groups [n] may be returned, bool [n, GROUP]."""
        items = GROUP * groups[:, None] + torch.arange(1, GROUP + 1)
        legal = items <= self.num_items
        if allowed is not None:
            legal &= allowed[items.clamp(max=self.num_items)]
        if excluded is not None and len(groups):
            excluded_groups = (excluded - 1) // GROUP
            positions = torch.searchsorted(groups, excluded_groups).clamp(max=len(groups) - 1)
            is_present = groups[positions] == excluded_groups
            legal[positions[is_present], (excluded - 1)[is_present] % GROUP] = False
        return legal

    def _upper_bounds(self, codes: Tensor, spread: Tensor, allowed: Tensor | None) -> Tensor:
        """Return an upper bound of the products of each group, [B, G]; -inf for a group without allowed items.

        Bounds are in units of the query's step.
        """
        count = len(codes)
        upper = torch.empty((count, self.num_groups))
        size = max(1, BLOCK_PRODUCTS // (count * TILE)) * TILE
        for start in range(0, len(self.codes), size):
            products = torch._int_mm(codes, self.codes[start : start + size].T)
            if allowed is not None:
                products.masked_fill_(~self._in_order_of_codes(allowed, start, products.shape[1]), NEVER)
            best = products.view(count, -1, GROUP, TILE // GROUP).amax(2).view(count, -1)
            groups = slice(start // GROUP, start // GROUP + best.shape[1])
            part = upper[:, groups]
            torch.mul(best, self.steps[groups], out=part)
            part.addmm_(spread, self.lengths[:, groups])
            if allowed is not None:
                part.masked_fill_(best == NEVER, -torch.inf)
        upper[:, math.ceil(self.num_items / GROUP) :] = -torch.inf
        return upper

    def _lower_bounds(self, upper: Tensor, spread: Tensor, counts: Tensor) -> Tensor:
        """Return a bound that at least `counts[b]` items of query b reach, [B].

        If there may be fewer such items, it is the smallest finite number.
        """
        bounds, lengths = upper, self.lengths
        if int(counts.max()) <= self.num_groups // GROUP // 4:  # use one bound for GROUP groups, that of the best
            bounds = bounds.view(len(bounds), GROUP, -1).amax(1)
            lengths = lengths.view(2, GROUP, -1).amax(1)
        lower = torch.addmm(bounds, spread, lengths, alpha=-2)
        max_count = min(int(counts.max()), lower.shape[1])
        best = torch.topk(lower, max_count, dim=1).values
        reached = best.gather(1, (counts - 1).clamp(max=max_count - 1)[:, None])[:, 0]
        smallest = torch.finfo(reached.dtype).min  # not -inf, so that groups without an allowed item are not selected
        return reached.masked_fill(counts > max_count, smallest).clamp(min=smallest)

    def _in_order_of_codes(self, allowed: Tensor, start: int, count: int) -> Tensor:
        """Return the entries of `allowed` for the rows `start` .. `start + count` - 1 of the codes, [1 or B, count]."""
        legal = allowed[:, start + 1 : start + 1 + count]
        legal = torch.nn.functional.pad(legal, (0, count - legal.shape[1]))
        return legal.reshape(len(legal), -1, TILE // GROUP, GROUP).transpose(2, 3).reshape(len(legal), -1)


def search_vectors_reference(
    vectors: Tensor, queries: Tensor, k: int, *, allowed: Tensor | None = None, excluded: Rows | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `VectorTable.search` returns, computed from all inner products of `vectors [N + 1, D]`."""
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
    """Return the rows `first` to `end` - 1, as values and offsets."""
    values, offsets = rows
    start, stop = int(offsets[first]), int(offsets[end])
    return values[start:stop], offsets[first : end + 1] - start
