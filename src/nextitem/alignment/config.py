"""Settings of alignment: method, rollouts, rewards beside the main one, and training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nextitem.alignment.dpo import Dpo
from nextitem.alignment.ecpo import Ecpo
from nextitem.alignment.gbpo import Gbpo
from nextitem.alignment.grpo import Grpo
from nextitem.alignment.ipa import Ipa
from nextitem.alignment.rsft import Rsft
from nextitem.alignment.s_dpo import SDpo
from nextitem.alignment.tpma import Tpma
from nextitem.core.config import Config, idle_unless

METHODS = ("rsft", "dpo", "s-dpo", "ipa", "grpo", "ecpo", "gbpo", "tpma")


class AlignmentConfig(Config):
    """Settings of alignment."""

    method: Rsft | Dpo | SDpo | Ipa | Grpo | Ecpo | Gbpo | Tpma = Field(Ecpo(), discriminator="kind")
    """Way to learn from lists with rewards."""
    lists: int = Field(16, ge=2)
    """Number of lists that are generated for each request: the size of a group (G)."""
    items_per_list: int | None = Field(None, ge=1)
    """Number of items of a generated list (m); none: 1, or the length of the logged lists if a list is judged whole."""
    rollouts: Literal["beam", "sampling"] = "beam"
    """How lists are generated: the likeliest ones by beam search, or sampled without replacement."""
    temperature: float = Field(1.0, gt=0)
    """Divisor of the logits if lists are sampled: above 1 they are more diverse."""
    refresh_every: int = Field(1, ge=1)
    """Number of steps after which the policy that generates the lists becomes the current one; 1: always on-policy."""
    sft_weight: float = Field(3.0, ge=0)
    """Weight of the policy's own training loss on logged events, which holds its accuracy."""
    sft_batch_size: int = Field(64, ge=1)
    """Number of examples of a step for the policy's own loss."""
    epochs: int = Field(4, ge=1)
    """Number of epochs, after each of which the policy is judged."""
    steps_per_epoch: int = Field(30, ge=1)
    """Number of steps of an epoch."""
    batch_size: int = Field(32, ge=1)
    """Number of requests of a step, each with a group of lists."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate, constant after ten steps of warm-up."""
    gradient_clip: float = Field(1.0, gt=0)
    """Maximum norm of the gradient."""
    history_length: int = Field(100, ge=1)
    """Number of most recent events of a request's history, from which policy and rewards read as many as they do."""
    under_exposure: float = 0.0
    """Weight of the share of a list that are under-exposed items."""
    under_exposure_share: float = Field(0.2, gt=0, lt=1)
    """The least frequent items, which together have this share of all training events, are under-exposed."""
    rules: dict[str, float] = {}
    """Business rules: a condition "column=value" on the items table -> weight of the share of a list that meets it."""
    format_weight: float = Field(0.0, ge=0)
    """Weight of the loss that raises unconstrained samples that are legal (OneRec's format reward)."""
    format_samples: int = Field(5, ge=1)
    """Number of unconstrained samples of each request for it."""
    max_recall_loss: float = Field(0.05, ge=0, le=1)
    """Share of recall@10 on validation requests that an epoch may lose; the best epoch is one that loses less."""
    judged_requests: int = Field(500, ge=1)
    """Number of validation requests on which each epoch is judged."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return {
            **idle_unless(self.rollouts == "sampling", "rollouts are found by beam search", "temperature"),
            **idle_unless(self.sft_weight > 0, "sft_weight is 0", "sft_batch_size"),
            **idle_unless(self.under_exposure != 0, "under_exposure is 0", "under_exposure_share"),
            **idle_unless(self.format_weight > 0, "format_weight is 0", "format_samples"),
        }
