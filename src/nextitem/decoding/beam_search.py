"""Beam search over the items of a catalogue, for every model that generates items code by code.

A step computes the log-softmax over all codes of the level, applies the constraint, and then selects. Only live nodes
are entered (constraints.py), so W >= k beams return k items whenever k items are allowed. Either a step keeps all live
children, so that no live item is lost. Or it keeps W of them, and below each lies at least one live item that lies
below no other. After the last code a leaf is expanded to its items, so all items that share a code sequence are
reachable.

Shapes: B requests, W beams, C codes of a level, D children of a beam, J items generated so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import offsets_of
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import ChildScorer, Generator, GeneratorState, ParallelGenerator
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.guide import Guide, NodeGuide
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.sets_on_demand import SetsOnDemand
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.topk import stable_topk
from nextitem.ops.trie_step import Children, children_logits

# If W beams have at most W + W / 4 children (by then most nodes have one child), two steps become one. That saves a
# pass over the weights, which is the cost of a step while a batch has few beams. It adds some rows of work.
_LOOKAHEAD_DIVISOR = 4
_MAX_LOOKAHEAD_ROWS = 128
Watch = Callable[["Level"], None]  # what is called after each level of a search
# An allow-list is first checked for this many times W of the likeliest children, and for all of them if too few of
# those are allowed.
_CHECK_FACTOR = 4


@dataclass(frozen=True, eq=False)
class Beams:
    """B x W hypotheses, best first. Rows with fewer than W are filled with dead beams at their end.

    Attributes:
        nodes: [B, W] int64, the node of the trie; -1 for a dead beam.
        scores: [B, W] float32; -inf for a dead beam.
        sort_keys: [B, W], the values by which the beams are sorted: the scores, or what sampling computes from them;
            -inf for a dead beam.
        codes: [B, W] int64, the code that leads to the node; 0 for a dead beam; None before the first code.
        parents: [B, W] int64, the generator's beam that each one continues.
        item_positions: [B, W, J] int64, positions (in the trie) of the items generated so far.
        item_scores: [B, W, J] float32, the score at the time when each of these items was complete.

    """

    nodes: Tensor
    scores: Tensor
    sort_keys: Tensor
    codes: Tensor | None
    parents: Tensor
    item_positions: Tensor
    item_scores: Tensor

    @classmethod
    def at_root(cls, num_requests: int, device: torch.device) -> Beams:
        """Return one beam for each request, at the root of the trie."""
        zeros = torch.zeros((num_requests, 1), dtype=torch.int64, device=device)
        no_items = torch.empty((num_requests, 1, 0), device=device)
        return cls(zeros, zeros.float(), zeros.double(), None, zeros, no_items.long(), no_items)

    def completed(self) -> Tensor:
        """Return the scores at the last complete item of each beam, [B, W]; 0 if no item is complete yet."""
        return self.item_scores[..., -1] if self.item_scores.shape[2] else torch.zeros_like(self.scores)


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
    guide: Guide | None = None,
    watch: Watch | None = None,
) -> Recommendations:
    """Return the items that the generator finds likeliest, among those that each request allows.

    Args:
        generator: the model that generates codes.
        batch: the requests, with their allow-lists and exclusions.
        trie: the code sequences of the catalogue.
        k: number of items to return.
        beam_width: number of beams. It is raised to k if it is smaller and `items_per_list` is 1.
        accumulate: "sum": the score of an item is the sum of its codes' log-probabilities. "last": it is the logit
            of its last code alone, without softmax (a tree whose nodes are scored, TDM).
        renormalise: compute the log-softmax over the live codes only ("sum" only).
        items_per_list: 1: the k best items by score. m > 1: one list of m distinct items, generated one after
            another, each from the trie's root. The likeliest list is returned, with `ordered_by` "generation". The
            score of an item is its own share of the list's score. m <= k.
        sampling: sample k items (or one list) without replacement instead of taking the likeliest ("sum" only). The
            items are returned in the order in which they were sampled, with `ordered_by` "generation". Their score is
            the log-probability of being sampled first. Items that share a leaf are equally likely.
        allowed: the items that may be returned, as sets of the trie's positions: one set for all requests or one for
            each. It replaces the batch's allow-lists, so a filter that is stored as bits is not read again.
        guide: item probabilities of another model that steer the search; the score of an item is the log of the
            mixture (decoding/guide.py). With `accumulate` "last", the generator's probability is the sigmoid of the
            logit. It cannot be combined with `sampling`.
        watch: callback that is called after each level with what was selected there, and from what.

    Returns:
        Lists [B, k]. A list has fewer items, and then padding, if the request allows fewer or if the generator gives
        -inf to the others. Equal scores: the better parent first, then the smaller code; among complete items the
        smaller item number.

    Raises:
        ValueError: an option is out of range, options exclude each other, the guide does not fit the requests or the
            catalogue, or a logit is NaN or +inf.

    """
    _check_options(k, beam_width, items_per_list)
    if accumulate == "last" and renormalise:
        raise ValueError('renormalise needs accumulate="sum": "last" takes logits as they are')
    if accumulate == "last" and sampling is not None:
        raise ValueError('sampling needs accumulate="sum": the scores of "last" are no probabilities')
    if guide is not None and sampling is not None:
        raise ValueError("a guided search takes the best items; sampling needs guide=None")
    device, is_single_item = batch.items.offsets.device, items_per_list == 1
    item_ids = torch.zeros((batch.num_requests, k), dtype=torch.int64, device=device)
    scores = torch.full((batch.num_requests, k), -torch.inf, device=device)
    ordered_by: Literal["score", "generation"] = "score" if is_single_item and sampling is None else "generation"
    if batch.num_requests == 0 or trie.num_items == 0:
        return Recommendations(item_ids, scores, ordered_by=ordered_by)
    width = max(beam_width, k) if is_single_item else beam_width
    constraints = Constraints(trie, batch, allowed)
    node_guide = None if guide is None else NodeGuide(guide, trie, constraints)
    search = Search(trie, constraints, width, accumulate, renormalise, sampling, watch, node_guide)
    beams, state = Beams.at_root(batch.num_requests, device), generator.start(batch)
    for count in range(1, items_per_list + 1):
        beams, state = search.generate_item(generator, state, beams, max_beams=k if is_single_item else width)
        num_beams = beams.scores.shape[1]
        if num_beams == 0:
            break
        alive = beams.scores > -torch.inf
        if is_single_item:
            items = trie.items[beams.item_positions[..., 0].clamp(min=0)].long()
            item_ids[:, :num_beams], scores[:, :num_beams] = items.masked_fill(~alive, 0), beams.scores
        else:
            # The first beam is the best. A request without further items keeps the list that it has.
            row = alive[:, 0]
            item_ids[row, :count] = trie.items[beams.item_positions[row, 0]].long()
            scores[row, :count] = beams.item_scores[row, 0].diff(prepend=torch.zeros_like(scores[row, :1]))
    is_guided = None if node_guide is None else node_guide.is_guided
    return Recommendations(item_ids, scores, ordered_by=ordered_by, guided=is_guided)


@dataclass(frozen=True, eq=False)
class Search:
    """Steps of a beam search: move one level deeper, complete items at the leaves, or append a whole item.

    The fields are the arguments of `beam_search` of the same names; `width` is the number of beams (W).
    """

    trie: PrefixTrie
    constraints: Constraints
    width: int
    accumulate: Literal["sum", "last"]
    renormalise: bool
    sampling: Sampling | None = None
    watch: Watch | None = None
    guide: NodeGuide | None = None

    def generate_item(
        self, generator: Generator, state: GeneratorState, beams: Beams, *, max_beams: int
    ) -> tuple[Beams, GeneratorState]:
        """Append one item to each beam: walk from the root to the leaves, and return to the root.

        Returns the best `max_beams` continuations and the generator's state. There are no beams (W = 0) if no item is
        left.
        """
        parallel = cast(ParallelGenerator, generator) if _has_role(type(generator), ParallelGenerator) else None
        levels, depth = self.trie.num_levels, 0
        while depth < levels:
            children = self.trie.expand(beams.nodes, depth=depth)
            can_look_ahead = parallel is not None and beams.codes is not None and depth + 1 < levels
            lookahead = (
                _few_children(children, limit=self.width + self.width // _LOOKAHEAD_DIVISOR) if can_look_ahead else None
            )
            if parallel is not None and lookahead is not None:
                beams, state = self.enter_two_levels(parallel, state, beams, children, lookahead, depth)
                depth += 2
            else:
                if beams.codes is not None:
                    state = state.reorder(beams.parents)
                beams, state = self.enter_level(generator, state, beams, children, depth)
                depth += 1
            if beams.scores.shape[1] == 0:
                return beams, state
        return self.complete_items(beams, max_beams), state

    def enter_level(
        self, generator: Generator, state: GeneratorState, beams: Beams, children: Children, depth: int
    ) -> tuple[Beams, GeneratorState]:
        """Return the best live children of the beams, and the generator's state, which has read `beams.codes`."""
        if _has_role(type(generator), ChildScorer):
            logits, state = cast(ChildScorer, generator).score_children(state, beams.codes, children.nodes)
            return self.enter_children(beams, children, logits, depth, by_child=True), state
        logits, state = generator.step(state, beams.codes)
        return self.enter_children(beams, children, logits, depth), state

    def enter_two_levels(
        self,
        generator: ParallelGenerator,
        state: GeneratorState,
        beams: Beams,
        children: Children,
        lookahead: _Lookahead,
        depth: int,
    ) -> tuple[Beams, GeneratorState]:
        """Move two levels deeper by one call of the generator, which reads all children before any is selected.

        Args:
            generator: a generator that can read several codes at once.
            state: its state, before the codes of `beams`.
            beams: beams of the given depth.
            children: their children.
            lookahead: the same children side by side, without gaps.
            depth: depth of `beams` in the trie.

        Returns:
            The beams two levels deeper, and the generator's state.

        """
        assert beams.codes is not None
        state = state.reorder(beams.parents.gather(1, lookahead.parents))
        codes = torch.stack([beams.codes.gather(1, lookahead.parents), lookahead.codes], dim=2)
        (logits, next_logits), state = generator.steps(state, codes)
        entered = self.enter_children(beams, children, _rows(logits, lookahead.starts), depth)
        # Beams of one node differ in the items that they contain, so node and parent together identify a child.
        same = entered.nodes[..., None] == lookahead.nodes[:, None, :]
        same &= entered.parents[..., None] == lookahead.parents[:, None, :]
        columns = same.int().argmax(2) if same.numel() else entered.parents
        if entered.scores.shape[1] == 0:
            return entered, state
        next_children = self.trie.expand(entered.nodes, depth=depth + 1)
        deeper = self.enter_children(entered, next_children, _rows(next_logits, columns), depth + 1)
        return replace(deeper, parents=columns.gather(1, deeper.parents)), state

    def enter_children(
        self,
        beams: Beams,
        children: Children,
        logits: Tensor,
        depth: int,
        *,
        by_child: bool = False,
        discount: Tensor | None = None,
    ) -> Beams:
        """Return the best live children of the beams, one level deeper.

        Args:
            beams: beams of the given depth.
            children: their children.
            logits: [B, W, C], of the next code; with `by_child` [B, W, D], of the children.
            depth: depth of `beams` in the trie.
            by_child: whether the logits belong to the children instead of all codes of the level.
            discount: [B, W, D], subtracted from the children's scores for the selection only, not in the scores.

        """
        num_logits = children.nodes.shape[2] if by_child else self.trie.codebook_sizes[depth]
        assert logits.shape == (*beams.nodes.shape, num_logits), f"logits {logits.shape}"
        logits = logits.float()
        if by_child:
            logits = logits.masked_fill(children.nodes < 0, -torch.inf)
        scores = logits.clone() if by_child else children_logits(logits, children)
        self.constraints.mask_excluded(scores, beams.nodes, children, depth=depth, item_positions=beams.item_positions)
        if self._needs_all_children:
            all_rows = torch.arange(len(scores), device=scores.device)
            self.constraints.mask_disallowed(scores, all_rows, beams.nodes, children, depth=depth)
        if self.sampling is not None:
            scores = self.sampling.log_probs(scores, level=depth)
            shift = beams.scores
        elif self.accumulate == "sum":
            # log-softmax and the beam's score in one addition per child. A beam whose codes are all -inf dies:
            # without the first masked_fill it would score -inf + inf.
            total = (scores if self.renormalise else logits).logsumexp(-1)
            shift = beams.scores - total.masked_fill(total == -torch.inf, 0)
        else:
            scores = scores if self.guide is None else F.logsigmoid(scores)
            shift = beams.completed()
        # Whatever the generator returns for dead beams, even NaN, must not reach the selection.
        scores += shift.masked_fill(beams.nodes < 0, 0)[..., None]
        keys = scores if discount is None else scores - discount
        if self.guide is not None:
            former = beams.completed().masked_fill(beams.nodes < 0, 0)[..., None]
            keys = former + self.guide.mix(keys - former, children.nodes, depth=depth + 1)
        if self.sampling is not None:
            keys = self.sampling.keys(scores, beams.sort_keys)
        num_children = scores.shape[2]
        best, picks = _without_dead_columns(*self._best(keys, beams.nodes, children, depth))
        alive = best > -torch.inf
        parents = picks // max(num_children, 1)
        codes = picks % max(num_children, 1) if children.codes is None else children.codes.flatten(1).gather(1, picks)
        nodes = children.nodes.flatten(1).gather(1, picks).masked_fill(~alive, -1)
        entered = Beams(
            nodes=nodes,
            scores=best if keys is scores else scores.flatten(1).gather(1, picks).masked_fill(~alive, -torch.inf),
            sort_keys=best,
            codes=codes.masked_fill(~alive, 0),
            parents=parents,
            item_positions=_rows(beams.item_positions, parents),
            item_scores=_rows(beams.item_scores, parents),
        )
        if self.watch is not None:
            self.watch(Level(self, depth + 1, beams, children, keys, scores, entered))
        return entered

    def _best(self, keys: Tensor, parents: Tensor, children: Children, depth: int) -> tuple[Tensor, Tensor]:
        """Select the W highest `keys [B, W, D]` of live children.

        Returns the keys and their flat indices into W x D, [B, W]. Rows with fewer live children end in -inf.
        """
        flat = keys.flatten(1)
        width = min(self.width, flat.shape[1])
        if not self.constraints.has_allow_lists or self._needs_all_children or not width:
            return stable_topk(flat, width)
        best, picks = stable_topk(flat, min(_CHECK_FACTOR * width, flat.shape[1]))
        has_more = best[:, -1] > -torch.inf
        nodes = children.nodes.flatten(1).gather(1, picks).masked_fill(best == -torch.inf, -1)
        rows = torch.arange(len(nodes), device=nodes.device)
        best = best.masked_fill(~self.constraints.allows(rows[:, None].expand_as(nodes), nodes), -torch.inf)
        short_rows = (has_more & ((best > -torch.inf).sum(1) < width)).nonzero()[:, 0]
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, picks = best[:, :width], picks.gather(1, order)[:, :width]
        if len(short_rows):
            all_keys = keys[short_rows]
            self.constraints.mask_disallowed(all_keys, short_rows, parents[short_rows], children, depth=depth)
            best[short_rows], picks[short_rows] = stable_topk(all_keys.flatten(1), width)
        return best, picks

    @property
    def _needs_all_children(self) -> bool:
        """Whether the scores depend on all live children, so that allow-lists must be checked for every one."""
        return self.sampling is not None or self.renormalise

    def complete_items(self, beams: Beams, max_beams: int) -> Beams:
        """Return the best `max_beams` items below the leaves that the beams have reached, as beams at the root."""
        assert beams.codes is not None
        rows, width = beams.nodes.shape
        limit = max_beams if self.sampling is None and self.guide is None else self.trie.num_items
        owners, positions = self.constraints.items_of_leaves(
            beams.nodes, limit=limit, item_positions=beams.item_positions
        )
        values = keys = beams.scores.flatten()[owners]
        if self.sampling is not None:
            values = values - torch.bincount(owners)[owners].log()  # the items of a leaf are equally likely
            keys = self.sampling.keys_of_groups(values, owners, beams.sort_keys.flatten()[owners])
        if self.guide is not None:
            former = beams.completed().flatten()[owners]
            values = keys = former + self.guide.mix_items(values - former, owners // width, positions)
        # Lexicographic by request, descending key, item number: stable sorts from the last to the first.
        order = self.trie.items[positions].argsort(stable=True)
        order = order[keys[order].argsort(descending=True, stable=True)]
        order = order[(owners[order] // width).argsort(stable=True)]
        owners, positions, values, keys = owners[order], positions[order], values[order], keys[order]
        row = owners // width
        counts = torch.bincount(row, minlength=rows)
        column = torch.arange(len(row), device=row.device) - offsets_of(counts)[row]
        is_selected = column < max_beams
        row, column, owners = row[is_selected], column[is_selected], owners[is_selected]

        shape = (rows, int(counts.clamp(max=max_beams).max()))
        parents = torch.zeros(shape, dtype=torch.int64, device=row.device)
        scores = torch.full(shape, -torch.inf, device=row.device)
        sort_keys = torch.full(shape, -torch.inf, dtype=keys.dtype, device=row.device)
        new_positions = torch.full(shape, -1, dtype=torch.int64, device=row.device)
        parents[row, column] = owners % width
        scores[row, column] = values[is_selected]
        sort_keys[row, column] = keys[is_selected]
        new_positions[row, column] = positions[is_selected]
        return Beams(
            nodes=torch.where(new_positions >= 0, self.trie.root, -1),
            scores=scores,
            sort_keys=sort_keys,
            codes=beams.codes.gather(1, parents),
            parents=beams.parents.gather(1, parents),
            item_positions=torch.cat([_rows(beams.item_positions, parents), new_positions[..., None]], dim=2),
            item_scores=torch.cat([_rows(beams.item_scores, parents), scores[..., None]], dim=2),
        )


@dataclass(frozen=True, eq=False)
class Level:
    """What a search selected at one level, and from what; the tensors must not be changed.

    Attributes:
        search: the search, with its trie, constraints and guide.
        depth: depth of the children in the trie, from 1 on.
        parents: the beams one level higher.
        children: their children.
        keys: [B, W, D], values of the children by which they were selected; -inf for children whose items are all
            excluded. Those without an allowed item may have any value.
        scores: [B, W, D], values of the children by the generator alone.
        selected: the children that stay in the search.

    """

    search: Search
    depth: int
    parents: Beams
    children: Children
    keys: Tensor
    scores: Tensor
    selected: Beams


@dataclass(frozen=True, eq=False)
class _Lookahead:
    """All children (X) of the beams of B requests, side by side. Shorter rows end in dead children.

    Attributes:
        nodes: [B, X] int64; -1 for a dead child.
        codes: [B, X] int64; 0 for a dead child.
        parents: [B, X] int64, the beam that each is a child of.
        starts: [B, W] int64, the column of the first child of each beam; 0 if it has none.

    """

    nodes: Tensor
    codes: Tensor
    parents: Tensor
    starts: Tensor


def _few_children(children: Children, *, limit: int) -> _Lookahead | None:
    """Return the children of all beams, in order, or None if there are too many to read them all ahead.

    Returns None if a request has more than `limit` children, if all requests together would need more than
    `_MAX_LOOKAHEAD_ROWS` rows, or if there is no child.
    """
    limit = min(limit, _MAX_LOOKAHEAD_ROWS // len(children.nodes))
    if children.nodes.shape[1] > limit:  # at least one request has a child for each beam
        return None
    alive = children.nodes.flatten(1) >= 0
    counts = alive.sum(1)
    max_count = int(counts.max())
    if not 0 < max_count <= limit:
        return None
    slots = alive.int().argsort(dim=1, descending=True, stable=True)[:, :max_count]
    is_child = torch.arange(max_count, device=slots.device) < counts[:, None]
    width = children.nodes.shape[2]
    codes = slots % width if children.codes is None else children.codes.flatten(1).gather(1, slots)
    degrees = alive.view(children.nodes.shape).sum(2)
    starts = degrees.cumsum(1) - degrees
    return _Lookahead(
        nodes=children.nodes.flatten(1).gather(1, slots).masked_fill(~is_child, -1),
        codes=codes.masked_fill(~is_child, 0),
        parents=slots // width,
        starts=starts.masked_fill(degrees == 0, 0),
    )


@cache
def _has_role(kind: type, role: type) -> bool:
    """Return whether a class has the methods of a role; a check of a protocol takes as long as a step of a search."""
    return issubclass(kind, role)


def _rows(values: Tensor, parents: Tensor) -> Tensor:
    """Return the rows of `values [B, W, J]` of the beams `parents [B, W']`, [B, W', J]."""
    return values.gather(1, parents[..., None].expand(-1, -1, values.shape[2]))


def _without_dead_columns(values: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the columns in which every beam is dead; ValueError for values that are NaN."""
    if bool(values.isnan().any()):
        raise ValueError("the generator returned logits that are NaN or +inf")
    max_count = int((values > -torch.inf).sum(1).max())
    return values[:, :max_count], picks[:, :max_count]


def _check_options(k: int, beam_width: int, items_per_list: int) -> None:
    for name, value in (("k", k), ("beam_width", beam_width), ("items_per_list", items_per_list)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if items_per_list > k:
        raise ValueError(f"items_per_list ({items_per_list}) must be at most k ({k}): the rest would be dropped")
