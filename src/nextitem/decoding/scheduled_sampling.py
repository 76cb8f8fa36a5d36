"""Scheduled sampling: training continues from codes that the model would have generated, not only from true ones.

Bengio et al., arXiv 1506.03099, in two passes as for transformers (Mihaylova, Martins, arXiv 1906.07651). Only legal
siblings are sampled, so every prefix is one of the catalogue's. The sampled share is constant; the papers let it grow
with the steps. The true item does not lie below a wrong prefix. The remaining true codes stay the target as long as
some item below the prefix has them, and are ignored beyond that.

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
    """Replace a share of the true codes, which the decoder reads, by codes sampled from the model.

    Random numbers come from torch's generator.

    Args:
        logits: for each level [B, C], after the true codes.
        codes_BM: the true codes.
        trie: the code sequences of the catalogue.
        share: probability that the code of a level is sampled from the model, among the legal codes after the codes
            that have been fed so far.

    Returns:
        The codes to feed, [B, M] (at the last level the true ones, as nothing follows them), and bool [B, M]: the
        true code is still a meaningful target, as it is legal after the codes fed before it.

    """
    fed_codes, is_legal = codes_BM.clone(), torch.ones_like(codes_BM, dtype=torch.bool)
    nodes = torch.zeros(len(codes_BM), dtype=torch.int64, device=codes_BM.device)
    for level, scores in enumerate(logits):
        allowed = trie.allowed(nodes[:, None], depth=level)[:, 0]
        is_legal[:, level] = allowed.gather(1, codes_BM[:, level : level + 1])[:, 0]
        if level == len(logits) - 1:
            break
        sampled_codes = torch.multinomial(scores.masked_fill(~allowed, -torch.inf).softmax(1), 1)[:, 0]
        # If the true code is no longer legal, the prefix continues with the model's code.
        is_sampled = (torch.rand(len(sampled_codes), device=sampled_codes.device) < share) | ~is_legal[:, level]
        fed_codes[:, level] = torch.where(is_sampled, sampled_codes, codes_BM[:, level])
        nodes = trie.advance(nodes, fed_codes[:, level])
    return fed_codes, is_legal.cumprod(1).bool()
