"""Bucket search: code sequences name buckets of items, and a vector for each bucket ranks the items in it.

COBRA's BeamFusion (arXiv 2503.02453, section 3.4). An item lies in one bucket, so none is returned twice.

Shapes: B requests, W beams, D width of the vectors, N items, T items below the beams.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import offsets_of
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import Generator, GeneratorState
from nextitem.decoding.beam_search import Beams, Search, Watch
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.guide import Guide, NodeGuide
from nextitem.decoding.sets_on_demand import SetsOnDemand
from nextitem.decoding.trie import PrefixTrie


class VectorGenerator(Generator, Protocol):
    """A generator that ends each code sequence with a vector."""

    def vectors_of(self, state: GeneratorState, codes: Tensor) -> Tensor:
        """Return unit vectors [B, W, D] after complete sequences, whose last codes are `codes [B, W]`."""

    def item_vectors(self) -> Tensor:
        """Return the unit vectors of all items, [N + 1, D]; row 0 is padding."""


@torch.no_grad()
def bucket_search(
    model: VectorGenerator,
    batch: SequenceBatch,
    trie: PrefixTrie,
    *,
    k: int,
    beam_width: int,
    sparse_sharpness: float,
    dense_sharpness: float,
    prior: Tensor | None = None,
    pooled: bool = False,
    allowed: SetsOnDemand | None = None,
    guide: Guide | None = None,
    watch: Watch | None = None,
) -> Recommendations:
    """Return the k best items in the buckets of the `beam_width` most probable code sequences.

    The score of an item under beam w is
    log softmax_w(sparse_sharpness log-probability) + log softmax(dense_sharpness cosine).

    Args:
        model: generates the codes and the vectors.
        batch: the requests, with their allow-lists and exclusions.
        trie: the code sequences of the catalogue; a leaf is a bucket.
        k: number of items to return.
        beam_width: number of code sequences. With beam_width >= k the search returns k items if k are allowed.
        sparse_sharpness: factor of the log-probabilities of code sequences.
        dense_sharpness: factor of the cosines.
        prior: [N + 1], added to the cosines of each item.
        pooled: compute the second softmax over all items under the beams of a request, not over the items of a bucket.
        allowed: the items that may be returned, as in beam_search.
        guide: item probabilities that steer the choice of buckets; the score of an item becomes the log of the mixture.
        watch: callback of each level, as in beam_search.

    Returns:
        Lists [B, k], best first. Equal scores: the smaller item number first.

    """
    rows, device = batch.num_requests, batch.items.offsets.device
    items = torch.zeros((rows, k), dtype=torch.int64, device=device)
    scores = torch.full((rows, k), -torch.inf, device=device)
    if rows == 0 or trie.num_items == 0:
        return Recommendations(items, scores)
    constraints = Constraints(trie, batch, allowed)
    node_guide = None if guide is None else NodeGuide(guide, trie, constraints)
    search = Search(trie, constraints, beam_width, "sum", False, watch=watch, guide=node_guide)
    beams, state = Beams.at_root(rows, device), model.start(batch)
    for depth in range(trie.num_levels):
        if beams.codes is not None:
            state = state.reorder(beams.parents)
        logits, state = model.step(state, beams.codes)
        beams = search.enter_children(beams, trie.expand(beams.nodes, depth=depth), logits, depth)
        if beams.scores.shape[1] == 0:
            return Recommendations(items, scores, guided=None if node_guide is None else node_guide.is_guided)
    assert beams.codes is not None
    vectors = model.vectors_of(state.reorder(beams.parents), beams.codes)
    owners, positions = constraints.items_of_leaves(
        beams.nodes, limit=trie.num_items, item_positions=beams.item_positions
    )
    candidates = trie.items[positions].long()
    cosines = (vectors.flatten(0, 1)[owners] * model.item_vectors()[candidates]).sum(1)
    if prior is not None:
        cosines = cosines + prior[candidates]
    row = owners // beams.nodes.shape[1]
    sparse = (sparse_sharpness * beams.scores).masked_fill(beams.nodes < 0, -torch.inf).log_softmax(1).flatten()[owners]
    group = row if pooled else owners
    fused = sparse + _log_softmax_by(dense_sharpness * cosines, group, rows if pooled else beams.nodes.numel())
    if node_guide is not None:
        fused = node_guide.mix_items(fused, row, positions)
    order = candidates.argsort(stable=True)
    order = order[fused[order].argsort(descending=True, stable=True)]
    order = order[row[order].argsort(stable=True)]
    slot = torch.arange(len(order), device=device) - offsets_of(torch.bincount(row, minlength=rows))[row[order]]
    is_listed = slot < k
    cells = row[order][is_listed], slot[is_listed]
    items[cells], scores[cells] = candidates[order][is_listed], fused[order][is_listed]
    return Recommendations(items, scores, guided=None if node_guide is None else node_guide.is_guided)


def _log_softmax_by(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Return the log-softmax of `values [T]` within each group; `groups [T]` are numbers below `num_groups`."""
    highest = values.new_full((num_groups,), -torch.inf).scatter_reduce_(0, groups, values, "amax")
    total = torch.zeros_like(highest).index_add_(0, groups, (values - highest[groups]).exp())
    return values - highest[groups] - total.log()[groups]
