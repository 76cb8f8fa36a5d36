"""Diverse beam search: groups of beams, each of which avoids the nodes that earlier groups have selected.

Vijayakumar et al., Diverse Beam Search, arXiv 1610.02424. At each level the groups select one after another. A child
pays a penalty for each earlier group that has selected it (Hamming diversity). Here a child is a node of the trie: the
same code below another prefix means something else, and is no repetition.

Shapes: B requests, W beams of a group, D children of a beam.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import Generator
from nextitem.decoding.beam_search import Beams, Search, beam_search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.sets_on_demand import SetsOnDemand
from nextitem.decoding.trie import PrefixTrie


@torch.no_grad()
def diverse_beam_search(
    generator: Generator,
    batch: SequenceBatch,
    trie: PrefixTrie,
    *,
    k: int,
    beam_width: int,
    groups: int,
    penalty: float,
    allowed: SetsOnDemand | None = None,
) -> Recommendations:
    """Return the k best items that the groups find together, by log-probability.

    If several groups find the same items, so that there are fewer than k, an ordinary beam search adds the rest.

    Args:
        generator: the model that generates codes.
        batch: the requests, with their allow-lists and exclusions.
        trie: the code sequences of the catalogue.
        k: number of items to return.
        beam_width: number of beams of all groups together.
        groups: number of groups.
        penalty: subtracted from a child's log-probability for each earlier group that has selected it. It counts in
            the selection only; no score contains it.
        allowed: the items that may be returned, as in beam_search.

    Returns:
        Lists [B, k], best first.

    Raises:
        ValueError: there are more groups than beams, or the penalty is below 0.

    """
    if not 1 <= groups <= beam_width or penalty < 0:
        raise ValueError(
            "diverse beams need 1 <= groups <= beam_width and penalty >= 0, "
            f"got groups = {groups}, beam_width = {beam_width}, penalty = {penalty}"
        )
    if batch.num_requests == 0 or trie.num_items == 0:
        return beam_search(generator, batch, trie, k=k, beam_width=beam_width, allowed=allowed)
    search = Search(trie, Constraints(trie, batch, allowed), -(-beam_width // groups), "sum", False)
    state = generator.start(batch)
    parts = [Beams.at_root(batch.num_requests, batch.items.offsets.device) for _ in range(groups)]
    widths = [1]  # numbers of the generator's beams, group by group; at the root all groups share one
    for depth in range(trie.num_levels):
        if depth:
            starts = [sum(widths[:number]) if depth > 1 else 0 for number in range(groups)]
            parents = torch.cat([part.parents + start for part, start in zip(parts, starts, strict=True)], dim=1)
            state = state.reorder(parents)
            widths = [part.nodes.shape[1] for part in parts]
        codes = None if depth == 0 else torch.cat([_codes(part) for part in parts], dim=1)
        logits, state = generator.step(state, codes)
        group_logits = [logits] * groups if depth == 0 else list(torch.split(logits, widths, dim=1))
        selected_nodes: list[Tensor] = []
        for number, part in enumerate(parts):
            children = trie.expand(part.nodes, depth=depth)
            discount = penalty * _num_selections(children.nodes, selected_nodes)
            parts[number] = search.enter_children(part, children, group_logits[number], depth, discount=discount)
            selected_nodes.append(parts[number].nodes)
        if all(part.nodes.shape[1] == 0 for part in parts):
            break
    completed = [search.complete_items(part, k) for part in parts if part.nodes.shape[1]]
    items = [
        torch.where(part.item_positions[..., 0] >= 0, trie.items[part.item_positions[..., 0].clamp(min=0)].long(), 0)
        for part in completed
    ]
    no_items = torch.zeros((batch.num_requests, 0), dtype=torch.int64, device=batch.items.offsets.device)
    merged = _best(
        torch.cat([no_items, *items], 1), torch.cat([no_items.float(), *(part.scores for part in completed)], 1), k
    )
    if bool((merged.item_ids > 0).all()):
        return merged
    rest = beam_search(generator, _without(batch, merged.item_ids), trie, k=k, beam_width=beam_width, allowed=allowed)
    return _best(torch.cat([merged.item_ids, rest.item_ids], 1), torch.cat([merged.scores, rest.scores], 1), k)


def _codes(part: Beams) -> Tensor:
    assert part.codes is not None
    return part.codes


def _num_selections(nodes: Tensor, selected_nodes: list[Tensor]) -> Tensor:
    """Return how many of the earlier groups have selected each child, [B, W, D]."""
    counts = torch.zeros(nodes.shape, device=nodes.device)
    for others in selected_nodes:
        counts += ((nodes[..., None] == others[:, None, None]) & (nodes >= 0)[..., None]).any(-1)
    return counts


def _best(items: Tensor, scores: Tensor, k: int) -> Recommendations:
    """Return the k best different items of each row, [B, k]; 0 is padding."""
    order = items.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    items, scores = items.gather(1, order), scores.gather(1, order)
    earlier = torch.ones(items.shape[1], items.shape[1], dtype=torch.bool, device=items.device).tril(-1)
    is_repeated = ((items[:, :, None] == items[:, None, :]) & earlier).any(2)
    scores = scores.masked_fill(is_repeated | (items == 0), -torch.inf)
    items = items.masked_fill(scores == -torch.inf, 0)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    num_missing = k - order.shape[1]
    return Recommendations(
        torch.nn.functional.pad(items.gather(1, order), (0, num_missing)),
        torch.nn.functional.pad(scores.gather(1, order), (0, num_missing), value=-torch.inf),
    )


def _without(batch: SequenceBatch, items: Tensor) -> SequenceBatch:
    """Return the batch with `items [B, k]` (0 is padding) among the exclusions."""
    listed = Jagged.from_padded(items, (items > 0).sum(1))
    if batch.excluded is None:
        return replace(batch, excluded=listed)
    rows = torch.cat([batch.excluded.row_ids(), listed.row_ids()])
    values = torch.cat([batch.excluded.values, listed.values])
    order = rows.argsort(stable=True)
    return replace(batch, excluded=Jagged.from_lengths(values[order], batch.excluded.lengths + listed.lengths))
