"""Unconstrained search: generate codes without the constraint to the catalogue. For evaluation only.

TIGER (arXiv 2305.05065) searches in this way and drops sequences that no item has. It proposes to repair such a
sequence by its longest prefix that some item has.

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
class GeneratedCodes:
    """The likeliest code sequences of each request, best first, whether or not an item has them.

    Attributes:
        codes: [B, W, M] int64.
        log_probs: [B, W].
        nodes: [B, W], the trie node at the end of the longest prefix that some item has; a leaf if some item has the
            whole sequence.
        valid: bool [B, W], whether some item has exactly these codes.

    """

    codes: Tensor
    log_probs: Tensor
    nodes: Tensor
    valid: Tensor


@torch.no_grad()
def unconstrained_search(
    generator: Generator, batch: SequenceBatch, trie: PrefixTrie, *, beam_width: int
) -> GeneratedCodes:
    """Run a beam search over all code sequences, whether or not an item has them.

    `trie` only provides the codebook sizes, and which sequences items have. Returns the `beam_width` likeliest
    sequences of each request.
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
        prefixes = codes.gather(1, parents[..., None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat([prefixes, (picks % size)[..., None]], dim=2)
    nodes, valid = torch.zeros_like(parents), torch.ones(parents.shape, dtype=torch.bool, device=scores.device)
    for level in range(codes.shape[2]):
        deeper = trie.advance(nodes, codes[..., level])
        valid &= deeper >= 0
        nodes = torch.where(valid, deeper, nodes)
    return GeneratedCodes(codes, scores, nodes, valid)


def items_of(generated: GeneratedCodes, trie: PrefixTrie, *, k: int, repair: bool) -> Tensor:
    """Return the first k different items of the generated sequences, [B, k]; 0 if there are no more.

    Sequences that no item has are dropped. With `repair` such a sequence stands for the items under its longest prefix
    that some item has, in order of their codes.
    """
    items = torch.zeros((len(generated.nodes), k), dtype=torch.int64)
    starts, ends = (part.tolist() for part in trie.item_ranges(generated.nodes))
    valid = generated.valid.tolist()
    for row in range(len(items)):
        distinct: dict[int, None] = {}
        for beam, start in enumerate(starts[row]):
            if not valid[row][beam] and not repair:
                continue
            for item in trie.items[start : min(ends[row][beam], start + k)].tolist():
                distinct.setdefault(item)
            if len(distinct) >= k:
                break
        first_items = list(distinct)[:k]
        items[row, : len(first_items)] = torch.tensor(first_items, dtype=torch.int64)
    return items.to(generated.nodes.device)
