"""Mixture of experts: a feed-forward block of which each token passes only the few parts that a gate selects.

Shazeer et al., arXiv 1701.06538; Switch, arXiv 2101.03961; DeepSeekMoE, arXiv 2401.06066. With scores s of the gate:

    s = softmax(W x) or sigmoid(W x)                             scores of n experts
    S = the k experts with the highest s_i + bias_i              bias is 0 unless `balance` is "bias"
    y = sum_(i in S) s_i / (sum_(j in S) s_j) * expert_i(x) + sum of shared_j(x)

The gate would send most tokens to few experts, which then learn most. Two remedies:

    "loss"  adds n * sum_i f_i P_i to the loss; f_i: share of the selections that fall on expert i, P_i: mean of its
            normalised scores (Switch, equation 4). Its gradient also changes what the gate says of a token.
    "bias"  bias_i <- bias_i + rate * sign(mean load - load_i) after each batch (arXiv 2408.15664). The bias selects,
            but does not weigh, so the loss is not disturbed.

Notable
- Tokens are sorted by expert, and each expert reads its own in one product. A token costs nothing in other experts.
- With k = 1 of several experts the score itself is the weight, as in Switch: divided by itself, it would have no
  gradient. A single expert has the weight 1, so the block equals the dense one bit for bit.
- Several processes move the bias by the load of the whole batch. Of "loss", each sees its own part of the batch.
- The residual connection is outside, as for a dense block.

Shapes: T tokens, D width, n routed experts, k experts that a token selects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.nn.byte_dropout import ByteDropout
from nextitem.ops.topk import stable_topk

Activation = Literal["gelu", "relu", "swiglu"]


class ExpertsConfig(configs.Config):
    """Settings of a mixture of experts."""

    num_experts: int = Field(8, ge=1)
    """Number of routed experts (n)."""
    top_k: int = Field(2, ge=1)
    """Number of routed experts that a token passes (k)."""
    num_shared: int = Field(0, ge=0)
    """Number of further experts that every token passes."""
    hidden: int | None = Field(None, ge=1)
    """Number of hidden units of an expert; none: those of the dense block."""
    gate: Literal["softmax", "sigmoid"] = "softmax"
    """Function that turns the gate's logits into scores."""
    balance: Literal["bias", "loss"] | None = "bias"
    """What keeps the experts equally loaded: a bias of the selection, or an auxiliary loss; none: nothing."""
    balance_rate: float = Field(0.001, gt=0)
    """Step of the bias after each batch, in units of a score (gamma)."""
    balance_weight: float = Field(0.01, gt=0)
    """Weight of the auxiliary loss."""

    @pydantic.model_validator(mode="after")
    def _check_top_k(self) -> ExpertsConfig:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k = {self.top_k} is more than num_experts = {self.num_experts}; lower top_k")
        return self

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return {
            **configs.idle_unless(self.balance == "bias", "balance is not bias", "balance_rate"),
            **configs.idle_unless(self.balance == "loss", "balance is not loss", "balance_weight"),
        }


class FeedForward(nn.Module):
    """Dense feed-forward block of one hidden layer, without the residual connection."""

    def __init__(self, width: int, *, hidden: int, activation: Activation = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, 2 * hidden if activation == "swiglu" else hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = ByteDropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the transformed vectors, [..., D] like the input."""
        inner = self.up(vectors)
        if self.activation == "swiglu":
            gate, linear = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * linear
        else:
            inner = F.gelu(inner) if self.activation == "gelu" else F.relu(inner)
        out: Tensor = self.down(self.dropout(inner))
        return out


@dataclass(frozen=True, eq=False)
class Routing:
    """Experts that each token passes.

    Attributes:
        experts: [T, k] int64, numbers of the routed experts, best first.
        weights: [T, k] float32, factors of their outputs.
        scores: [T, n] float32, scores of all routed experts, without the bias.

    """

    experts: Tensor
    weights: Tensor
    scores: Tensor


class Experts(nn.Module):
    """Mixture of experts in place of a feed-forward block (roles.HasBatchHook, roles.Synchronised).

    Args:
        config: settings.
        width: width of the vectors (D).
        hidden: number of hidden units of the dense block.
        activation: activation of the experts.
        dropout: dropout rate of their hidden units.

    """

    bias: Tensor
    load: Tensor

    def __init__(
        self, config: ExpertsConfig, width: int, *, hidden: int, activation: Activation = "gelu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden or hidden
        self.gate = nn.Linear(width, config.num_experts, bias=False)
        self.routed, self.shared = (
            nn.ModuleList(
                FeedForward(width, hidden=hidden, activation=activation, dropout=dropout) for _ in range(count)
            )
            for count in (config.num_experts, config.num_shared)
        )
        self.register_buffer("bias", torch.zeros(config.num_experts))
        # Selections of each expert in this training batch.
        self.register_buffer("load", torch.zeros(config.num_experts, dtype=torch.int64), persistent=False)
        self._balance_loss: Tensor | None = None

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the transformed vectors, [..., D] like the input; the leading dimensions are tokens, none padding."""
        tokens_TD = vectors.reshape(-1, vectors.shape[-1])
        routing = self.route(tokens_TD)
        selected = routing.experts.flatten()
        order = selected.argsort(stable=True)  # selections by expert
        counts = selected.bincount(minlength=self.config.num_experts)
        self._observe(routing, counts)
        inputs = tokens_TD.repeat_interleave(self.config.top_k, dim=0).index_select(0, order)
        # An expert without tokens reads an empty part, so that its gradients are 0 in every process.
        parts = zip(self.routed, inputs.split(counts.tolist()), strict=True)
        outputs = torch.cat([expert(part) for expert, part in parts])
        # Back in the order of the tokens, instead of adding to them: the sum does not depend on threads.
        outputs = outputs.index_select(0, order.argsort()).view(*routing.experts.shape, tokens_TD.shape[1])
        mixed = (outputs * routing.weights.to(outputs.dtype)[..., None]).sum(1)
        for expert in self.shared:
            mixed = mixed + expert(tokens_TD)
        return mixed.view(vectors.shape)

    def route(self, tokens_TD: Tensor) -> Routing:
        """Return which experts the tokens pass, and with what weights."""
        logits = self.gate(tokens_TD).float()
        scores = logits.softmax(1) if self.config.gate == "softmax" else logits.sigmoid()
        _, experts = stable_topk((scores + self.bias).detach(), self.config.top_k)
        weights = scores.gather(1, experts)
        if self.config.top_k > 1 or self.config.num_experts == 1:
            weights = weights / weights.sum(1, keepdim=True)
        return Routing(experts, weights, scores)

    @property
    def synchronised(self) -> Mapping[str, Literal["sum", "mean"]]:
        """The load of a batch is the sum over the processes (roles.Synchronised)."""
        return {"load": "sum"}

    @torch.no_grad()
    def after_batch(self, weight: float) -> None:
        """Move the bias by the load of the batch (roles.HasBatchHook)."""
        if self.config.balance == "bias":
            load = self.load.double()
            self.bias += self.config.balance_rate * (load.mean() - load).sign().to(self.bias)
        self.load = torch.zeros_like(self.load)

    def take_balance_loss(self) -> Tensor | None:
        """Return the weighted auxiliary loss of the training passes since the last call; None if there are none."""
        loss, self._balance_loss = self._balance_loss, None
        return loss

    @property
    def num_idle_parameters(self) -> int:
        """Number of parameters that one token does not pass."""
        share = self.config.num_experts - self.config.top_k
        return share * sum(parameter.numel() for parameter in self.routed[0].parameters())

    def _observe(self, routing: Routing, counts: Tensor) -> None:
        """Store the load of a training batch, and its auxiliary loss."""
        if not self.training:
            return
        self.load = self.load + counts
        if self.config.balance == "loss" and len(routing.scores):
            scores = routing.scores / routing.scores.sum(1, keepdim=True)
            shares = counts / counts.sum()
            loss = self.config.balance_weight * len(counts) * (shares * scores.mean(0)).sum()
            self._balance_loss = loss if self._balance_loss is None else self._balance_loss + loss


def feed_forward(
    width: int, *, hidden: int, experts: ExpertsConfig | None, activation: Activation = "gelu", dropout: float = 0.0
) -> FeedForward | Experts:
    """Return a mixture of experts, or a dense block without settings for one."""
    if experts is None:
        return FeedForward(width, hidden=hidden, activation=activation, dropout=dropout)
    return Experts(experts, width, hidden=hidden, activation=activation, dropout=dropout)


def take_balance_losses(model: nn.Module) -> Tensor | None:
    """Return the auxiliary losses of all mixtures of a model since the last call, summed; None if there are none."""
    parts = [part.take_balance_loss() for part in model.modules() if isinstance(part, Experts)]
    losses = [loss for loss in parts if loss is not None]
    return torch.stack(losses).sum() if losses else None


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters: all of them, and those that one token passes."""

    total: int
    active: int


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Return the numbers of parameters of a model, tables of items included in both."""
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = sum(part.num_idle_parameters for part in model.modules() if isinstance(part, Experts))
    return ParameterCounts(total, total - idle)
