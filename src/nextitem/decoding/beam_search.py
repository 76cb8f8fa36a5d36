"""Beam search over the items of a catalogue, for anything that spells items code by code.

Each step: log-softmax over all codes of the level, then the constraint, then selection. Only live nodes are ever
entered (constraints.py), so with W >= k beams k items come back whenever k may: either a step keeps all live
children, then no live item is lost, or it keeps W of them, and below each lies at least one live item of its own.
After the last code a leaf is expanded to its items, so that items which share a code sequence are all reachable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import offsets_of
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import Generator, GeneratorState, ParallelGenerator
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.sets_on_demand import SetsOnDemand
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.topk import stable_topk
from nextitem.ops.trie_step import Children, children_logits

# Where W beams have at most W + W / 4 children, as most nodes have one child by then, two steps are one. That saves
# a pass over the weights, which is what a step costs as long as a batch has few beams, and some more rows of work.
_AHEAD_SHARE = 4
_AHEAD_ROWS = 128
# An allow-list is asked about so many times W of the likeliest children first; about all where they are too few.
_LOOK = 4


@dataclass(frozen=True, eq=False)
class Beams:
    """B x W hypotheses, best first; the tail of a row with fewer is dead.

    nodes    [B, W] int64, where in the trie; -1 dead
    scores   [B, W] float32; -inf dead
    keys     [B, W], what the order of the beams is by: the scores, or what sampling makes of them; -inf dead
    codes    [B, W] int64, the code that led here; 0 where dead; None before the first
    parents  [B, W] int64, which of the generator's beams each one continues
    held     [B, W, J] int64, positions of the items spelt so far
    marks    [B, W, J] float32, the score when each of them was complete
    """

    nodes: Tensor
    scores: Tensor
    keys: Tensor
    codes: Tensor | None
    parents: Tensor
    held: Tensor
    marks: Tensor

    @classmethod
    def at_root(cls, num_requests: int, device: torch.device) -> Beams:
        """One beam of each request, at the root of the trie."""
        zeros = torch.zeros((num_requests, 1), dtype=torch.int64, device=device)
        nothing = torch.empty((num_requests, 1, 0), device=device)
        return cls(zeros, zeros.float(), zeros.double(), None, zeros, nothing.long(), nothing)

    def completed(self) -> Tensor:
        """Scores of the complete items of each beam, [B, W]."""
        return self.marks[..., -1] if self.marks.shape[2] else torch.zeros_like(self.scores)


@torch.no_grad()
def beam_search(
    generator: Generator,
    batch: SequenceBatch,
    trie: PrefixTrie,
    *,
    k: int,
    beam_width: int,
    accumulate: Literal["sum", "last"] = "sum",
    renormalise: bool = False,
    items_per_list: int = 1,
    sampling: Sampling | None = None,
    allowed: SetsOnDemand | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Recommendations:
    """The items that the generator finds likeliest among those that each request may be answered with.

    accumulate      "sum": an item scores the sum of its codes' log-probabilities; "last": the logit of its last
                    code alone, without softmax (a tree whose nodes are scored, TDM)
    renormalise     the log-softmax runs over the live codes only ("sum" only)
    items_per_list  1: the k best items by score. m > 1: one list of m distinct items, spelt one after another,
                    each from the trie's root; the likeliest list is returned, `ordered_by` "generation", and an
                    item's score is its own share of the list's. m <= k.
    sampling        draws k items (or one list) without replacement instead of taking the likeliest ("sum" only); they
                    come in the order of drawing, `ordered_by` "generation", with the log-probability of being drawn
                    first; items that share a leaf are equally likely
    allowed         the items that may be returned, as sets of the trie's positions, one for all requests or one for
                    each, in place of the batch's allow-lists: where a filter is kept as bits it need not be read anew
    watch           is told each depth from 1 on, and the nodes [B, W] that are kept there, -1 for dead beams

    Returns [B, k]: fewer items where fewer may be returned or where the generator gives -inf to the others, then
    padding. `beam_width` is raised to k where it is smaller and m is 1. Equal scores: the better parent, then the
    smaller code; among complete items the smaller item number. ValueError for logits that are NaN or +inf.
    """
    _check_options(k, beam_width, items_per_list)
    if accumulate == "last" and renormalise:
        raise ValueError('renormalise needs accumulate="sum": "last" takes logits as they are')
    if accumulate == "last" and sampling is not None:
        raise ValueError('sampling needs accumulate="sum": the scores of "last" are no probabilities')
    device, alone = batch.items.offsets.device, items_per_list == 1
    item_ids = torch.zeros((batch.num_requests, k), dtype=torch.int64, device=device)
    scores = torch.full((batch.num_requests, k), -torch.inf, device=device)
    ordered_by: Literal["score", "generation"] = "score" if alone and sampling is None else "generation"
    if batch.num_requests == 0 or trie.num_items == 0:
        return Recommendations(item_ids, scores, ordered_by=ordered_by)
    width = max(beam_width, k) if alone else beam_width
    search = Search(trie, Constraints(trie, batch, allowed), width, accumulate, renormalise, sampling, watch)
    beams, state = Beams.at_root(batch.num_requests, device), generator.start(batch)
    for count in range(1, items_per_list + 1):
        beams, state = search.spell_item(generator, state, beams, keep=k if alone else width)
        found = beams.scores.shape[1]
        if found == 0:
            break
        alive = beams.scores > -torch.inf
        if alone:
            spelt = trie.items[beams.held[..., 0].clamp(min=0)].long()
            item_ids[:, :found], scores[:, :found] = spelt.masked_fill(~alive, 0), beams.scores
        else:
            # The first beam is the best. A request that has run out of items keeps the list that it has.
            row = alive[:, 0]
            item_ids[row, :count] = trie.items[beams.held[row, 0]].long()
            scores[row, :count] = beams.marks[row, 0].diff(prepend=torch.zeros_like(scores[row, :1]))
    return Recommendations(item_ids, scores, ordered_by=ordered_by)


@dataclass(frozen=True, eq=False)
class Search:
    """The moves of the search: one code deeper, from leaves to items, and both together: an item further."""

    trie: PrefixTrie
    constraints: Constraints
    width: int
    accumulate: Literal["sum", "last"]
    renormalise: bool
    sampling: Sampling | None = None
    watch: Callable[[int, Tensor], None] | None = None

    def spell_item(
        self, generator: Generator, state: GeneratorState, beams: Beams, *, keep: int
    ) -> tuple[Beams, GeneratorState]:
        """From the root to the root by way of the `keep` best next items; no beams (W = 0) where none is left."""
        looks_ahead = generator if isinstance(generator, ParallelGenerator) else None
        levels, depth = self.trie.num_levels, 0
        while depth < levels:
            children = self.trie.expand(beams.nodes, depth=depth)
            known = looks_ahead is not None and beams.codes is not None and depth + 1 < levels
            ahead = _few_children(children, limit=self.width + self.width // _AHEAD_SHARE) if known else None
            if looks_ahead is not None and ahead is not None:
                beams, state = self.two_deeper(looks_ahead, state, beams, children, ahead, depth)
                depth += 2
            else:
                if beams.codes is not None:
                    state = state.reorder(beams.parents)
                logits, state = generator.step(state, beams.codes)
                beams = self.enter_children(beams, children, logits, depth)
                depth += 1
            if beams.scores.shape[1] == 0:
                return beams, state
        return self.complete_items(beams, keep), state

    def two_deeper(
        self,
        generator: ParallelGenerator,
        state: GeneratorState,
        beams: Beams,
        children: Children,
        ahead: _Ahead,
        depth: int,
    ) -> tuple[Beams, GeneratorState]:
        """Two codes deeper by one call of the generator, which is given all children before one is chosen."""
        assert beams.codes is not None
        state = state.reorder(beams.parents.gather(1, ahead.parents))
        codes = torch.stack([beams.codes.gather(1, ahead.parents), ahead.codes], dim=2)
        (logits, next_logits), state = generator.steps(state, codes)
        chosen = self.enter_children(beams, children, _rows(logits, ahead.first), depth)
        # Beams of one node differ in what they hold, so a child is known by its node and its parent together.
        same = chosen.nodes[..., None] == ahead.nodes[:, None, :]
        same &= chosen.parents[..., None] == ahead.parents[:, None, :]
        places = same.int().argmax(2) if same.numel() else chosen.parents
        if chosen.scores.shape[1] == 0:
            return chosen, state
        next_children = self.trie.expand(chosen.nodes, depth=depth + 1)
        found = self.enter_children(chosen, next_children, _rows(next_logits, places), depth + 1)
        return replace(found, parents=places.gather(1, found.parents)), state

    def enter_children(
        self, beams: Beams, children: Children, logits: Tensor, depth: int, *, discount: Tensor | None = None
    ) -> Beams:
        """The best live `children` of beams of the given depth, by `logits [B, W, C]`.

        A `discount [B, W, D]` of children counts in the selection, and not in the scores.
        """
        assert logits.shape == (*beams.nodes.shape, self.trie.codebook_sizes[depth]), f"logits {logits.shape}"
        logits = logits.float()
        scores = children_logits(logits, children)
        self.constraints.strike(scores, beams.nodes, children, depth=depth, held=beams.held)
        if self._wants_all:
            every = torch.arange(len(scores), device=scores.device)
            self.constraints.forbid(scores, every, beams.nodes, children, depth=depth)
        if self.sampling is not None:
            scores = self.sampling.log_probs(scores, level=depth)
            shift = beams.scores
        elif self.accumulate == "sum":
            # log-softmax and the beam's score in one addition per child. A beam whose codes are all -inf dies:
            # without the first fill it would score -inf + inf.
            total = (scores if self.renormalise else logits).logsumexp(-1)
            shift = beams.scores - total.masked_fill(total == -torch.inf, 0)
        else:
            shift = beams.completed()
        # What the generator makes of dead beams, even NaN, must not reach the selection.
        scores += shift.masked_fill(beams.nodes < 0, 0)[..., None]
        keys = scores if discount is None else scores - discount
        if self.sampling is not None:
            keys = self.sampling.keys(scores, beams.keys)
        slots = scores.shape[2]
        best, picks = _trimmed(*self._best(keys, beams.nodes, children, depth))
        alive = best > -torch.inf
        parents = picks // max(slots, 1)
        codes = picks % max(slots, 1) if children.codes is None else children.codes.flatten(1).gather(1, picks)
        nodes = children.nodes.flatten(1).gather(1, picks).masked_fill(~alive, -1)
        if self.watch is not None:
            self.watch(depth + 1, nodes)
        return Beams(
            nodes=nodes,
            scores=best if keys is scores else scores.flatten(1).gather(1, picks).masked_fill(~alive, -torch.inf),
            keys=best,
            codes=codes.masked_fill(~alive, 0),
            parents=parents,
            held=_rows(beams.held, parents),
            marks=_rows(beams.marks, parents),
        )

    def _best(self, keys: Tensor, parents: Tensor, children: Children, depth: int) -> tuple[Tensor, Tensor]:
        """The W highest `keys [B, W, D]` of live children, and where they stand in a row; fewer, then -inf."""
        flat = keys.flatten(1)
        width = min(self.width, flat.shape[1])
        if not self.constraints.has_allow_lists or self._wants_all or not width:
            return stable_topk(flat, width)
        best, picks = stable_topk(flat, min(_LOOK * width, flat.shape[1]))
        more = best[:, -1] > -torch.inf
        nodes = children.nodes.flatten(1).gather(1, picks).masked_fill(best == -torch.inf, -1)
        rows = torch.arange(len(nodes), device=nodes.device)
        best = best.masked_fill(~self.constraints.allows(rows[:, None].expand_as(nodes), nodes), -torch.inf)
        short = (more & ((best > -torch.inf).sum(1) < width)).nonzero()[:, 0]
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, picks = best[:, :width], picks.gather(1, order)[:, :width]
        if len(short):
            rest = keys[short]
            self.constraints.forbid(rest, short, parents[short], children, depth=depth)
            best[short], picks[short] = stable_topk(rest.flatten(1), width)
        return best, picks

    @property
    def _wants_all(self) -> bool:
        """Whether what is made of scores depends on all live children, so that none may stay unasked."""
        return self.sampling is not None or self.renormalise

    def complete_items(self, beams: Beams, keep: int) -> Beams:
        """The `keep` best items under the leaves that the beams have reached; the beams return to the root."""
        assert beams.codes is not None
        rows, width = beams.nodes.shape
        limit = keep if self.sampling is None else self.trie.num_items
        owners, positions = self.constraints.items_of_leaves(beams.nodes, limit=limit, held=beams.held)
        values = keys = beams.scores.flatten()[owners]
        if self.sampling is not None:
            values = values - torch.bincount(owners)[owners].log()  # the items of a leaf are equally likely
            keys = self.sampling.keys_of_groups(values, owners, beams.keys.flatten()[owners])
        # Lexicographic by request, falling key, item number: stable sorts from the last to the first.
        order = self.trie.items[positions].argsort(stable=True)
        order = order[keys[order].argsort(descending=True, stable=True)]
        order = order[(owners[order] // width).argsort(stable=True)]
        owners, positions, values, keys = owners[order], positions[order], values[order], keys[order]
        row = owners // width
        counts = torch.bincount(row, minlength=rows)
        place = torch.arange(len(row), device=row.device) - offsets_of(counts)[row]
        kept = place < keep
        row, place, owners = row[kept], place[kept], owners[kept]

        shape = (rows, int(counts.clamp(max=keep).max()))
        parents = torch.zeros(shape, dtype=torch.int64, device=row.device)
        scores = torch.full(shape, -torch.inf, device=row.device)
        sorted_by = torch.full(shape, -torch.inf, dtype=keys.dtype, device=row.device)
        found = torch.full(shape, -1, dtype=torch.int64, device=row.device)
        parents[row, place] = owners % width
        scores[row, place] = values[kept]
        sorted_by[row, place] = keys[kept]
        found[row, place] = positions[kept]
        return Beams(
            nodes=torch.where(found >= 0, self.trie.root, -1),
            scores=scores,
            keys=sorted_by,
            codes=beams.codes.gather(1, parents),
            parents=beams.parents.gather(1, parents),
            held=torch.cat([_rows(beams.held, parents), found[..., None]], dim=2),
            marks=torch.cat([_rows(beams.marks, parents), scores[..., None]], dim=2),
        )


@dataclass(frozen=True, eq=False)
class _Ahead:
    """All children of the beams of B requests, side by side; the tail of a row with fewer is dead.

    nodes    [B, X] int64; -1 dead
    codes    [B, X] int64; 0 where dead
    parents  [B, X] int64, the beam that each is a child of
    first    [B, W] int64, where the children of each beam start; 0 where it has none
    """

    nodes: Tensor
    codes: Tensor
    parents: Tensor
    first: Tensor


def _few_children(children: Children, *, limit: int) -> _Ahead | None:
    """The children of all beams, in order; None where a request has more than `limit`, or all too many."""
    limit = min(limit, _AHEAD_ROWS // len(children.nodes))
    if children.nodes.shape[1] > limit:  # one request at least has a child for each beam
        return None
    alive = children.nodes.flatten(1) >= 0
    counts = alive.sum(1)
    most = int(counts.max())
    if not 0 < most <= limit:
        return None
    slots = alive.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    real = torch.arange(most, device=slots.device) < counts[:, None]
    width = children.nodes.shape[2]
    codes = slots % width if children.codes is None else children.codes.flatten(1).gather(1, slots)
    degrees = alive.view(children.nodes.shape).sum(2)
    first = degrees.cumsum(1) - degrees
    return _Ahead(
        nodes=children.nodes.flatten(1).gather(1, slots).masked_fill(~real, -1),
        codes=codes.masked_fill(~real, 0),
        parents=slots // width,
        first=first.masked_fill(degrees == 0, 0),
    )


def _rows(values: Tensor, parents: Tensor) -> Tensor:
    """`values [B, W, J]` of the beams that `parents [B, W']` name."""
    return values.gather(1, parents[..., None].expand(-1, -1, values.shape[2]))


def _trimmed(values: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns in which every beam is dead."""
    if bool(values.isnan().any()):
        raise ValueError("the generator returned logits that are NaN or +inf")
    widest = int((values > -torch.inf).sum(1).max())
    return values[:, :widest], picks[:, :widest]


def _check_options(k: int, beam_width: int, items_per_list: int) -> None:
    for name, value in (("k", k), ("beam_width", beam_width), ("items_per_list", items_per_list)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if items_per_list > k:
        raise ValueError(f"items_per_list ({items_per_list}) must be at most k ({k}): the rest would be dropped")
