"""Bucket search: code sequences name buckets of items, and a vector for each bucket ranks what lies in them.

COBRA's BeamFusion (arXiv 2503.02453, section 3.4). An item lies in one bucket, so none is found twice.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import offsets_of
from nextitem.core.recommendations import Recommendations
from nextitem.core.roles import Generator, GeneratorState
from nextitem.decoding.beam_search import Beams, Search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.sets_on_demand import SetsOnDemand
from nextitem.decoding.trie import PrefixTrie


class Pointing(Generator, Protocol):
    """A generator that ends each code sequence with a vector."""

    def vectors_of(self, state: GeneratorState, codes: Tensor) -> Tensor:
        """Unit vectors [B, W, D] after complete sequences, whose last codes are `codes [B, W]`."""

    def item_vectors(self) -> Tensor:
        """Unit vectors [N + 1, D]."""


@torch.no_grad()
def bucket_search(
    model: Pointing,
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
) -> Recommendations:
    """The k best items under the `beam_width` likeliest code sequences, [B, k]; beam_width >= k finds k where it may.

    An item under beam w scores log softmax_w(sparse_sharpness log-probability) + log softmax(dense_sharpness cosine),
    the second one over the items of its bucket, or `pooled`, over all items under the beams of its request. `prior
    [N + 1]` is added to an item's cosines; `allowed` as in beam_search. Equal scores: the smaller item number.
    """
    rows, device = batch.num_requests, batch.items.offsets.device
    items = torch.zeros((rows, k), dtype=torch.int64, device=device)
    scores = torch.full((rows, k), -torch.inf, device=device)
    if rows == 0 or trie.num_items == 0:
        return Recommendations(items, scores)
    constraints = Constraints(trie, batch, allowed)
    search = Search(trie, constraints, beam_width, "sum", False)
    beams, state = Beams.at_root(rows, device), model.start(batch)
    for depth in range(trie.num_levels):
        if beams.codes is not None:
            state = state.reorder(beams.parents)
        logits, state = model.step(state, beams.codes)
        beams = search.enter_children(beams, trie.expand(beams.nodes, depth=depth), logits, depth)
        if beams.scores.shape[1] == 0:
            return Recommendations(items, scores)
    assert beams.codes is not None
    vectors = model.vectors_of(state.reorder(beams.parents), beams.codes)
    owners, positions = constraints.items_of_leaves(beams.nodes, limit=trie.num_items, held=beams.held)
    found = trie.items[positions].long()
    cosines = (vectors.flatten(0, 1)[owners] * model.item_vectors()[found]).sum(1)
    if prior is not None:
        cosines = cosines + prior[found]
    row = owners // beams.nodes.shape[1]
    sparse = (sparse_sharpness * beams.scores).masked_fill(beams.nodes < 0, -torch.inf).log_softmax(1).flatten()[owners]
    group = row if pooled else owners
    fused = sparse + _log_softmax_by(dense_sharpness * cosines, group, rows if pooled else beams.nodes.numel())
    order = found.argsort(stable=True)
    order = order[fused[order].argsort(descending=True, stable=True)]
    order = order[row[order].argsort(stable=True)]
    place = torch.arange(len(order), device=device) - offsets_of(torch.bincount(row, minlength=rows))[row[order]]
    kept = place < k
    where = row[order][kept], place[kept]
    items[where], scores[where] = found[order][kept], fused[order][kept]
    return Recommendations(items, scores)


def _log_softmax_by(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """log softmax over the values of each of so many rows, [T]."""
    highest = values.new_full((rows,), -torch.inf).scatter_reduce_(0, row, values, "amax")
    total = torch.zeros_like(highest).index_add_(0, row, (values - highest[row]).exp())
    return values - highest[row] - total.log()[row]
