"""Target attention: a summary of a history, weighted by the relevance of its items to a candidate.

The activation unit: Zhou et al., Deep Interest Network, arXiv 1706.06978, section 4.3. The multi-head form: Pi et al.,
Search-based Interest Model, arXiv 2006.05639, section 3.3.

Shapes: B requests, L history (right-padded), P candidates of all requests, D width, E width of keys, K keys of each
candidate, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAIR_ENTRIES = 2**18  # hidden values of pairs that are computed at a time, so that they stay in the processor's cache


class ActivationUnit(nn.Module):
    """Small network on [q, k, q - k, q * k] that returns a logit: how much history item k matters to candidate q."""

    def __init__(self, width: int, *, hidden: tuple[int, int] = (80, 40)) -> None:
        super().__init__()
        self.first = nn.Linear(4 * width, hidden[0])
        self.second = nn.Linear(*hidden)
        self.last = nn.Linear(hidden[1], 1)

    def forward(self, queries_PD: Tensor, keys_BLD: Tensor, request_P: Tensor) -> Tensor:
        """Return the logits [P, L]; candidate p belongs to request `request_P[p]`."""
        D = queries_PD.shape[1]
        # The first layer is linear, so its parts on q, on k and on their difference are computed once for each
        # candidate and once for each history item; only q * k is computed for each pair.
        of_query, of_key, of_difference, of_product = self.first.weight.view(-1, 4, D).unbind(1)
        query = F.linear(queries_PD, of_query + of_difference, self.first.bias)
        key = F.linear(keys_BLD, of_key - of_difference)
        pairs_PLD = queries_PD[:, None] * keys_BLD[request_P]
        inner = F.linear(pairs_PLD, of_product) + key[request_P] + query[:, None]
        logits: Tensor = self.last(torch.sigmoid(self.second(torch.sigmoid(inner))))[..., 0]
        return logits

    def of_one_request(self, queries_PD: Tensor, keys_LD: Tensor) -> Tensor:
        """Return the logits [P, L] of the candidates of one request; keys have no padding.

        For a history item k the first layer is linear in q: (W_q + W_d + W_p diag(k)) q + (W_k - W_d) k + b. So all
        history items together are one layer on the candidates, which takes no copies of pairs.
        """
        of_query, of_key, of_difference, of_product = self.first.weight.view(-1, 4, queries_PD.shape[1]).unbind(1)
        weights_LHD = of_product * keys_LD[:, None] + (of_query + of_difference)
        bias_LH = F.linear(keys_LD, of_key - of_difference, self.first.bias)
        inner = F.linear(queries_PD, weights_LHD.flatten(0, 1), bias_LH.flatten()).sigmoid_()
        hidden = self.second(inner.view(-1, bias_LH.shape[1])).sigmoid_()
        logits: Tensor = self.last(hidden).view(len(queries_PD), len(keys_LD))
        return logits


class TargetAttention(nn.Module):
    """Target attention of DIN: the sum over the history of w(q, k) k, with weights w of an ActivationUnit.

    The paper does not normalise the weights, so that the sum shows the intensity of an interest. `normalise` uses a
    softmax of w / sqrt(D) instead, as the authors' code does.
    """

    def __init__(self, width: int, *, hidden: tuple[int, int] = (80, 40), normalise: bool = False) -> None:
        super().__init__()
        self.unit = ActivationUnit(width, hidden=hidden)
        self.normalise = normalise

    def forward(self, queries_PD: Tensor, keys_BLD: Tensor, lengths_B: Tensor, request_P: Tensor) -> Tensor:
        """Return the summary of the history for each candidate, [P, D]; zero for an empty history.

        Candidates must be in the order of their requests.
        """
        if torch.is_grad_enabled() or queries_PD.is_cuda:
            return self.by_pairs(queries_PD, keys_BLD, lengths_B, request_P)
        return self.by_requests(queries_PD, keys_BLD, lengths_B, request_P)

    def by_pairs(self, queries_PD: Tensor, keys_BLD: Tensor, lengths_B: Tensor, request_P: Tensor) -> Tensor:
        """Return the summaries, computed for all pairs of a candidate and a history position at once."""
        is_real_PL = real_positions(lengths_B, keys_BLD.shape[1])[request_P]
        weights = self.unit(queries_PD, keys_BLD, request_P)
        scaled = weights / queries_PD.shape[1] ** 0.5
        weights = masked_softmax(scaled, is_real_PL) if self.normalise else weights * is_real_PL
        out: Tensor = (weights[:, None] @ keys_BLD[request_P])[:, 0]
        return out

    def by_requests(self, queries_PD: Tensor, keys_BLD: Tensor, lengths_B: Tensor, request_P: Tensor) -> Tensor:
        """Return what `by_pairs` returns, up to rounding, without gradients: request by request, without padding.

        On a processor this takes an eighth to a third of the time: what it computes at a time stays in the cache.
        """
        counts = torch.bincount(request_P, minlength=len(keys_BLD)).tolist()
        out = torch.zeros_like(queries_PD)
        parts = zip(queries_PD.split(counts), out.split(counts), keys_BLD, lengths_B.tolist(), strict=True)
        for queries, summaries, padded_keys, length in parts:
            if not length:
                continue
            keys = padded_keys[:length]
            size = max(1, PAIR_ENTRIES // (length * self.unit.first.out_features))
            for block, summary in zip(queries.split(size), summaries.split(size), strict=True):
                weights = self.unit.of_one_request(block, keys)
                weights = (weights / queries.shape[1] ** 0.5).softmax(1) if self.normalise else weights
                torch.mm(weights, keys, out=summary)
        return out


class MultiHeadTargetAttention(nn.Module):
    """Scaled dot-product attention of each candidate to its own keys, with an output projection."""

    def __init__(self, width: int, *, key_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(key_width, 2 * width)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, queries_PD: Tensor, keys_PKE: Tensor, real_PK: Tensor) -> Tensor:
        """Return the attention output [P, D]; zero for a candidate without a real key.

        `real_PK` is False for padding among the keys.
        """
        P, K, _ = keys_PKE.shape
        D, H = queries_PD.shape[1], self.heads
        query = self.query(queries_PD).view(P, H, 1, D // H)
        key, value = self.key_value(keys_PKE).view(P, K, 2, H, D // H).permute(2, 0, 3, 1, 4)
        scores_PHK = (query @ key.transpose(2, 3))[:, :, 0] / (D // H) ** 0.5
        weights = masked_softmax(scores_PHK, real_PK[:, None])
        out: Tensor = self.output((weights[:, :, None] @ value).view(P, D))
        return out


def real_positions(lengths_B: Tensor, L: int) -> Tensor:
    """Return which positions of right-padded rows are not padding, bool [B, L]."""
    return torch.arange(L, device=lengths_B.device) < lengths_B[:, None]


def masked_softmax(scores: Tensor, real: Tensor) -> Tensor:
    """Return the softmax over the entries of the last dimension that are `real`.

    A row without a real entry gets all zeros, not NaN.
    """
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~real, lowest).softmax(-1) * real
