"""Free decoding: what a generator spells when nothing keeps it to the catalogue. For evaluation alone.

TIGER (arXiv 2305.05065) searches so, drops what is no item, and proposes to repair it by its longest prefix that is.

Shapes: B requests, W beams, M levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.roles import Generator
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.topk import stable_topk


@dataclass(frozen=True, eq=False)
class Spelt:
    """The likeliest code sequences of each request, best first.

    codes      [B, W, M] int64
    log_probs  [B, W]
    nodes      [B, W] where the longest prefix that the catalogue has ends in the trie: a leaf where all of it has
    valid      bool [B, W]: some item has exactly these codes
    """

    codes: Tensor
    log_probs: Tensor
    nodes: Tensor
    valid: Tensor


@torch.no_grad()
def unconstrained_search(generator: Generator, batch: SequenceBatch, trie: PrefixTrie, *, beam_width: int) -> Spelt:
    """A beam search over all code sequences, real or not; `trie` only says how many codes there are, and which are
    real.
    """
    state = generator.start(batch)
    scores = torch.zeros((batch.num_requests, 1), device=batch.items.offsets.device)
    codes = torch.zeros((*scores.shape, 0), dtype=torch.int64, device=scores.device)
    for size in trie.codebook_sizes:
        logits, state = generator.step(state, codes[..., -1] if codes.shape[2] else None)
        totals = (scores[..., None] + logits.float().log_softmax(2)).flatten(1)
        scores, picks = stable_topk(totals, min(beam_width, totals.shape[1]))
        parents = picks // size
        state = state.reorder(parents)
        kept = codes.gather(1, parents[..., None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat([kept, (picks % size)[..., None]], dim=2)
    nodes, valid = torch.zeros_like(parents), torch.ones(parents.shape, dtype=torch.bool, device=scores.device)
    for level in range(codes.shape[2]):
        deeper = trie.advance(nodes, codes[..., level])
        valid &= deeper >= 0
        nodes = torch.where(valid, deeper, nodes)
    return Spelt(codes, scores, nodes, valid)


def items_of(spelt: Spelt, trie: PrefixTrie, *, k: int, repair: bool) -> Tensor:
    """The first k different items that the sequences stand for, [B, k], 0 where there are no more.

    Sequences of no item are dropped; with `repair` such a one stands for the items under its longest real prefix, in
    order of their codes.
    """
    found = torch.zeros((len(spelt.nodes), k), dtype=torch.int64)
    starts, ends = (part.tolist() for part in trie.item_ranges(spelt.nodes))
    valid = spelt.valid.tolist()
    for row in range(len(found)):
        listed: dict[int, None] = {}
        for beam, start in enumerate(starts[row]):
            if not valid[row][beam] and not repair:
                continue
            for item in trie.items[start : min(ends[row][beam], start + k)].tolist():
                listed.setdefault(item)
            if len(listed) >= k:
                break
        kept = list(listed)[:k]
        found[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return found.to(spelt.nodes.device)
