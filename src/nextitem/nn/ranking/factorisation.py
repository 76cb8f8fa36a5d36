"""Second-order factorisation machine: the inner products of all pairs of fields.

Rendle 2010, lemma 3.1; Guo et al., DeepFM, arXiv 1703.04247, eq. 2.

Shapes: P candidates, F fields, D width.
"""

from __future__ import annotations

from torch import Tensor


def pairwise_interactions(fields_PFD: Tensor) -> Tensor:
    """Return the sum over all pairs of fields f < g of <v_f, v_g>, [P], in time linear in F."""
    # (sum of v)^2 contains every pair twice, and the square of each field.
    squares = fields_PFD.square().sum((1, 2))
    return (fields_PFD.sum(1).square().sum(1) - squares) / 2
