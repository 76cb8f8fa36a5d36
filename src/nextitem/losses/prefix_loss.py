"""Loss of the prefixes of a code sequence, whose weights move to the prefix that is worst (APAO, arXiv 2603.02730).

A beam search drops an item as soon as one of its prefixes falls out of the beam. With L_m the cross-entropy of level m,
the loss of the prefix of length l is the mean over its codes, and the model minimises

    plain loss + weight * sum_l w_l P_l,    P_l = (L_1 + ... + L_l) / l

    w <- w * exp(rate * P), normalised      after each batch: exponentiated gradient ascent

A prefix contains those before it, so the first level counts most, and nothing is computed twice.

Notable
- The mean over the codes of a prefix is that of the authors' code; a sum would always be worst for the whole sequence.
- The weights carry over from batch to batch, as in the paper's update. The authors' code starts each batch from weights
  in proportion to the losses, and its scripts leave its rate at 0; `rate = 0` is close to it: equal weights.
- The loss of a batch is weighted by what earlier batches have taught. So several processes can agree on the losses of a
  whole batch after it, and need nothing during it.
- Only the pointwise loss; the paper's pairwise one needs sampled sequences as negatives.

Shapes: M levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.distributed import processes


class PrefixLossConfig(configs.Config):
    """Settings of the loss of prefixes."""

    weight: float = Field(0.2, ge=0)
    """Weight of the loss of prefixes beside the plain loss (beta); 0.1 to 0.4 in the paper."""
    rate: float = Field(0.01, ge=0)
    """Rate at which the weights move to the worst prefix, per batch and unit of loss (eta); 0: equal weights."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(self.weight > 0, "weight is 0", "rate")


class PrefixAwareConfig(configs.Config):
    """Settings of generators that can be trained with the loss of prefixes."""

    prefix_loss: PrefixLossConfig | None = None
    """Settings of a loss of the prefixes of the codes, beside the plain loss (APAO); none: no such term."""


class PrefixLoss(nn.Module):
    """Weighted loss of all prefixes. The weights are a buffer, so that they are saved and resumed with the model."""

    log_weights: Tensor
    losses: Tensor

    def __init__(self, config: PrefixLossConfig, *, num_levels: int) -> None:
        super().__init__()
        self.config = config
        # Logarithms, as a weight that has become tiny must be able to grow again.
        self.register_buffer("log_weights", torch.full((num_levels,), 1 / num_levels).log())
        self.register_buffer("losses", torch.zeros(num_levels), persistent=False)  # P of this process's last batch

    @property
    def weights(self) -> Tensor:
        """The weights of the prefixes, [M]; they sum to 1."""
        return self.log_weights.exp()

    def forward(self, level_losses: Sequence[Tensor]) -> Tensor:
        """Return the term to add to a plain loss that is the mean over the levels, scalar.

        Args:
            level_losses: cross-entropy of each level, M scalars.

        """
        losses = prefix_losses(torch.stack(tuple(level_losses)))
        self.losses = losses.detach()
        return self.config.weight * (self.weights * losses).sum()

    def after_batch(self, weight: float) -> None:
        """Move the weights by the losses of the whole batch (roles.HasBatchHook)."""
        shares = processes.gather((weight * self.losses).float().cpu())
        losses = torch.stack(shares).mean(0).to(self.log_weights.device)
        self.log_weights = (self.log_weights + self.config.rate * losses).log_softmax(0)
        self.losses = torch.zeros_like(self.losses)  # a batch without a loss of prefixes moves nothing


def prefix_losses(level_losses: Tensor) -> Tensor:
    """Return the mean of the losses of each prefix of levels, [M], from the losses of the levels [M]."""
    lengths = torch.arange(1, len(level_losses) + 1, device=level_losses.device)
    return level_losses.cumsum(0) / lengths


def prefix_loss_of(config: PrefixAwareConfig, *, num_levels: int) -> PrefixLoss | None:
    """Return the loss of prefixes that a generator's settings ask for, or None."""
    return None if config.prefix_loss is None else PrefixLoss(config.prefix_loss, num_levels=num_levels)
