"""Scheduled sampling: training goes on from codes that the model would have drawn, not only from the true ones.

Bengio et al., arXiv 1506.03099, in two passes as for transformers (Mihaylova, Martins, arXiv 1906.07651). Only legal
siblings are drawn, so every prefix is one of the catalogue's. The share that is drawn is constant; the papers let it
grow with the steps. Below a wrong prefix the true item does not lie: what
remains of its codes is kept as the target as far as some item there has it, and left out beyond.

Shapes: B targets, M levels, C codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nextitem.decoding.trie import PrefixTrie


@torch.no_grad()
def sampled_prefixes(
    logits: Sequence[Tensor], codes_BM: Tensor, trie: PrefixTrie, *, share: float
) -> tuple[Tensor, Tensor]:
    """What the decoder is fed in place of the true codes, and which of its targets still mean something.

    logits    for each level, [B, C], after the true codes
    codes_BM  the true codes
    share     how likely a level's code is drawn from the model, among the legal codes after what is fed so far

    Returns the codes [B, M], those of the last level being the true ones, as nothing follows them; and bool [B, M]:
    where the true code is legal after what was fed before it. Random numbers come from torch's generator.
    """
    fed, real = codes_BM.clone(), torch.ones_like(codes_BM, dtype=torch.bool)
    nodes = torch.zeros(len(codes_BM), dtype=torch.int64, device=codes_BM.device)
    for level, scores in enumerate(logits):
        allowed = trie.allowed(nodes[:, None], depth=level)[:, 0]
        real[:, level] = allowed.gather(1, codes_BM[:, level : level + 1])[:, 0]
        if level == len(logits) - 1:
            break
        drawn = torch.multinomial(scores.masked_fill(~allowed, -torch.inf).softmax(1), 1)[:, 0]
        # Where the true code is not legal any more, the way goes on by the model's.
        own = (torch.rand(len(drawn), device=drawn.device) < share) | ~real[:, level]
        fed[:, level] = torch.where(own, drawn, codes_BM[:, level])
        nodes = trie.advance(nodes, fed[:, level])
    return fed, real.cumprod(1).bool()
