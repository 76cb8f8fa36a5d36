"""Propensities of sampled lists: the probability with which a generator that samples shows an item in a slot.

A beam search is deterministic: it has no propensities. A sampled search (sampling.py) has exact ones:

* k items are sampled without replacement. With p_i, the probability that item i is sampled first, the item of a slot
  has the probability p_i / (1 - the sum of p over the items above).
* A list that is generated item by item has, for each slot, the probability of the item's codes after the items above.

p_i is the product over the levels of the probabilities of its codes among the live children: after the constraint, the
temperature, top_k and top_p. Items that share a leaf are equally likely. If several code sequences lead to one item,
its probability is the sum over them: the item is in the list from the first of its sequences on, and later ones are
skipped.

Shapes: B requests, K slots, W beams, M levels, J items above.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import ChildScorer, Generator, GeneratorState
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.sampling import Sampling
from nextitem.decoding.sets_on_demand import SetsOnDemand
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.trie_step import children_logits

DETERMINISTIC = (
    "a beam search without sampling always returns the same list, so it has no propensities, and a log of it cannot "
    "tell how other lists would do; pass sampling=Sampling(...) to beam_search, or serve with exploration"
)


def sampled_propensities(answer: Recommendations, *, items_per_list: int = 1) -> Tensor:
    """Return the propensity of each slot of sampled lists: the probability of its item given the items above, [B, K].

    Padding has 1.

    Args:
        answer: the lists of a `beam_search` with sampling, whose codes lead to one item each.
        items_per_list: the argument of that search.

    Raises:
        ValueError: the lists are ordered by score, so they were not sampled.

    """
    if answer.ordered_by != "generation":
        raise ValueError(DETERMINISTIC)
    probabilities = answer.scores.double().exp()
    if items_per_list > 1:
        return probabilities.masked_fill(answer.item_ids == 0, 1.0)
    return given_above(probabilities.masked_fill(answer.item_ids == 0, 0.0)).masked_fill(answer.item_ids == 0, 1.0)


def given_above(probabilities: Tensor) -> Tensor:
    """Return the probability of each item to be sampled next, given the items above, [B, K] float64.

    `probabilities` [B, K] are those of being sampled first. The result is 0 for a probability of 0.
    """
    chances = probabilities.double()
    rest = (1 - (chances.cumsum(1) - chances)).clamp(min=1e-300)
    return torch.where(chances > 0, (chances / rest).clamp(max=1.0), 0.0)


@torch.no_grad()
def item_probabilities_of(
    generator: Generator,
    batch: SequenceBatch,
    trie: PrefixTrie,
    items: Tensor,
    *,
    sampling: Sampling | None,
    allowed: SetsOnDemand | None = None,
    item_of_row: Tensor | None = None,
) -> Tensor:
    """Return the probability of each item to be sampled first for its request, [B, K] float64.

    It is 0 for an item that the request does not allow, that the trie does not contain, or that top_k or top_p exclude.
    The items may be those of a list by another policy. `given_above` turns their probabilities into propensities.

    Args:
        generator: the model that generates codes.
        batch: the requests, with their allow-lists and exclusions.
        trie: the code sequences of the catalogue.
        items: item numbers, [B, K] int64; 0 is padding, with probability 0.
        sampling: how the generator samples; None: it does not, which is an error.
        allowed: as in `beam_search`.
        item_of_row: the item to which each row of the identifier table leads, [rows + 1] int64, if several rows may
            lead to one item; None: row i is item i.

    Raises:
        ValueError: there is no sampling.

    """
    if sampling is None:
        raise ValueError(DETERMINISTIC)
    if item_of_row is None:
        walk = _Walk(generator, trie, Constraints(trie, batch, allowed), sampling)
        return walk.row_probabilities(generator.start(batch), items)
    rows, columns = _rows_of(items, item_of_row)
    walk = _Walk(generator, trie, Constraints(trie, batch, allowed), sampling)
    probabilities = walk.row_probabilities(generator.start(batch), rows)
    return torch.zeros(items.shape, dtype=torch.float64, device=items.device).scatter_add_(1, columns, probabilities)


@torch.no_grad()
def list_probabilities_of(
    generator: Generator,
    batch: SequenceBatch,
    trie: PrefixTrie,
    items: Tensor,
    *,
    sampling: Sampling | None,
    allowed: SetsOnDemand | None = None,
) -> Tensor:
    """Return the probability of each item of a list that is generated item by item, given those above, [B, K] float64.

    It is that of a `beam_search` with sampling and `items_per_list=K`. After an impossible item all are 0. Padding at
    the end of a list has 1.

    Args:
        generator: a model that generates lists.
        batch: the requests, with their allow-lists and exclusions.
        trie: the code sequences of the catalogue.
        items: item numbers, [B, K] int64; 0 is padding, only at the end.
        sampling: how the generator samples; None: it does not, which is an error.
        allowed: as in `beam_search`.

    Raises:
        ValueError: there is no sampling.

    """
    if sampling is None:
        raise ValueError(DETERMINISTIC)
    walk = _Walk(generator, trie, Constraints(trie, batch, allowed), sampling)
    positions = trie.positions[items].long()
    state, codes, result = generator.start(batch), None, []
    for slot in range(items.shape[1]):
        log_probs, state, codes = walk.item(state, codes, positions[:, slot, None], positions[:, None, :slot])
        result.append(log_probs[:, 0].exp())
    probabilities = torch.stack(result, dim=1) if result else items.double()
    is_possible = ((probabilities > 0) | (items == 0)).cumprod(1).bool()
    return probabilities.masked_fill(~is_possible, 0.0).masked_fill(items == 0, 1.0)


class _Walk:
    """A walk of beams over known items, with the probabilities with which a sampled search would take it."""

    def __init__(self, generator: Generator, trie: PrefixTrie, constraints: Constraints, sampling: Sampling) -> None:
        self.generator = generator
        self.trie = trie
        self.constraints = constraints
        self.sampling = sampling
        # From Python 3.12 on, isinstance of a protocol is slow: it is checked once.
        self.scorer = generator if isinstance(generator, ChildScorer) else None

    def row_probabilities(self, state: GeneratorState, rows: Tensor) -> Tensor:
        """Return the probability of each row of the identifier table to be sampled first, [B, K]; 0 for padding."""
        positions = self.trie.positions[rows].long()
        log_probs, _, _ = self.item(state, None, positions, positions.new_empty((*positions.shape, 0)))
        return log_probs.exp().masked_fill(rows == 0, 0.0)

    def item(
        self, state: GeneratorState, codes: Tensor | None, positions: Tensor, above: Tensor
    ) -> tuple[Tensor, GeneratorState, Tensor]:
        """Return the log-probabilities of the items of the beams, the generator's state, and their last codes.

        Args:
            state: state of the generator, with one beam for each request or W.
            codes: the last codes, [B, beams of the state]; None before the first one.
            positions: position of each beam's item, [B, W]; -1: an item that the trie does not contain.
            above: positions of the items above it, [B, W, J]; -1: none.

        """
        shape, safe = positions.shape, positions.clamp(min=0)
        total = torch.zeros(shape, dtype=torch.float64, device=positions.device)
        parents = torch.zeros((shape[0], 1), dtype=torch.int64, device=positions.device)
        for depth in range(self.trie.num_levels):
            above_here = above if depth else above[:, : parents.shape[1]]
            log_probs, children, state = self._children(state, codes, parents, above_here, depth)
            nodes = self.trie.ancestors(safe, depth=depth + 1)
            same = children == nodes[..., None]
            total += log_probs.expand_as(same).masked_fill(~same, -torch.inf).amax(2) if same.shape[2] else -torch.inf
            if depth == 0:
                beams = torch.zeros_like(positions)
                state = state.reorder(beams)
            parents, codes = nodes, self.trie.codes[nodes].long()
        total += self._leaf_shares(parents, safe, above)
        assert codes is not None
        return total.masked_fill(positions < 0, -torch.inf), state, codes

    def _children(
        self, state: GeneratorState, codes: Tensor | None, parents: Tensor, above: Tensor, depth: int
    ) -> tuple[Tensor, Tensor, GeneratorState]:
        """Return the log-probabilities of the live children [B, W, D], their nodes, and the new state."""
        children = self.trie.expand(parents, depth=depth)
        if self.scorer is not None:
            logits, state = self.scorer.score_children(state, codes, children.nodes)
            scores = logits.float().masked_fill(children.nodes < 0, -torch.inf)
        else:
            logits, state = self.generator.step(state, codes)
            scores = children_logits(logits.float(), children)
        self.constraints.mask_excluded(scores, parents, children, depth=depth, item_positions=above)
        all_rows = torch.arange(len(scores), device=scores.device)
        self.constraints.mask_disallowed(scores, all_rows, parents, children, depth=depth)
        return self.sampling.log_probs(scores, level=depth).double(), children.nodes, state

    def _leaf_shares(self, leaves: Tensor, positions: Tensor, above: Tensor) -> Tensor:
        """Return the log of each item's share of its leaf, [B, W]; -inf for an item that may not be returned."""
        owners, live = self.constraints.items_of_leaves(leaves, limit=self.trie.num_items, item_positions=above)
        counts = torch.bincount(owners, minlength=leaves.numel()).view(leaves.shape)
        is_live = torch.zeros(leaves.numel(), dtype=torch.bool, device=leaves.device)
        is_live[owners[live == positions.flatten()[owners]]] = True
        shares = -counts.clamp(min=1).double().log()
        return shares.masked_fill(~is_live.view(leaves.shape), -torch.inf)


def _rows_of(items: Tensor, item_of_row: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of the identifier table that lead to the items [B, K], and the column of each, [B, R] both.

    Rows are padded by 0.
    """
    order = item_of_row[1:].argsort(stable=True) + 1
    owners = item_of_row[order]
    first, last = torch.searchsorted(owners, items), torch.searchsorted(owners, items, right=True)
    longest = int((last - first).max()) if items.numel() else 0
    numbers = torch.arange(longest, device=items.device)
    places = first[..., None] + numbers
    is_row = (places < last[..., None]) & (items[..., None] > 0)
    rows = torch.where(is_row, order[places.clamp(max=len(order) - 1)], 0)
    columns = torch.arange(items.shape[1], device=items.device)[None, :, None].expand_as(rows)
    return rows.flatten(1), columns.flatten(1)
