"""Layer of MTGR: pointwise attention between normalisations whose weights depend on the group of a token.

Han et al., MTGR, arXiv 2505.18654. Shapes: T tokens, D width, H heads, K width of a head, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.nn.attention.stream import Projection
from nextitem.ops.hstu_attention import SQRT_TIME_BUCKETS

SMALL_EPS = 1e-10  # for sums that are divided by the largest number of tokens: variances far below the usual 1e-5


class GroupLayerNorm(nn.Module):
    """Layer normalisation of each token, with weights and biases of its group.

    With equal weights of all groups it is LayerNorm.

    Args:
        width: width of the tokens.
        groups: number of groups (G); 1: all tokens share the weights, whatever their groups.
        eps: added to the variance.

    """

    def __init__(self, width: int, *, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(groups, width))
        self.bias = nn.Parameter(torch.zeros(groups, width))

    def forward(self, tokens: Tensor, groups: Tensor | None) -> Tensor:
        """Return the normalised tokens [T, width], which are in these groups [T]."""
        if len(self.weight) == 1:
            return F.layer_norm(tokens, (self.width,), self.weight[0], self.bias[0], self.eps)
        assert groups is not None
        normalised = F.layer_norm(tokens, (self.width,), eps=self.eps)
        return normalised * F.embedding(groups, self.weight) + F.embedding(groups, self.bias)


class GroupedLayer(nn.Module):
    """Layer that computes X + MLP(GroupLN(A V * U)), with Q, K, V, U = SiLU(W GroupLN(X) + b), A = SiLU(Q K) / N.

    Args:
        width: width of the tokens (D).
        heads: number of heads.
        head_width: width of queries, keys, values and gates of a head.
        normaliser: N, the largest number of tokens of a stream: no score depends on other requests or candidates.
        groups: number of groups of tokens with weights of their own in both normalisations.
        dropout: dropout rate of the output.
        has_time_bias: whether the attention depends on the time between tokens.

    """

    scale = 1.0
    window = None
    position_weights = None

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_width: int,
        normaliser: float,
        groups: int,
        dropout: float,
        has_time_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.rate, self.normaliser = heads, head_width, dropout, normaliser
        self.input_norm = GroupLayerNorm(width, groups=groups)
        self.projection = nn.Linear(width, 4 * heads * head_width)
        self.mixture_norm = GroupLayerNorm(heads * head_width, groups=groups, eps=SMALL_EPS)
        self.output = nn.Sequential(nn.Linear(heads * head_width, width), nn.SiLU(), nn.Linear(width, width))
        self.time_weights = nn.Parameter(torch.empty(SQRT_TIME_BUCKETS)) if has_time_bias else None
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        if self.time_weights is not None:
            nn.init.normal_(self.time_weights, std=0.02)

    def project(self, hidden: Tensor, groups: Tensor | None = None) -> Projection:
        """Return gate, query, key and value of tokens with the hidden states [T, D], in these groups [T]."""
        gate, value, query, key = F.silu(self.projection(self.input_norm(hidden, groups))).chunk(4, dim=1)
        shape = (len(hidden), self.heads, self.head_width)
        return Projection(gate, query.reshape(shape), key.reshape(shape), value.reshape(shape))

    def combine(self, hidden: Tensor, gate: Tensor, mixed: Tensor, groups: Tensor | None = None) -> Tensor:
        """Return the new hidden states [T, D]."""
        out: Tensor = self.output(self.mixture_norm(gate * mixed, groups))
        return hidden + F.dropout(out, self.rate, self.training)
