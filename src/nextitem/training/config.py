"""TrainingConfig: everything that the one training path can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nextitem.core import config as configs


class OptimizerConfig(configs.Config):
    """How parameters follow their gradients."""

    optimizer: Literal["adamw", "adam", "adagrad", "sgd", "ftrl"] = "adamw"
    """Name of the optimizer."""
    learning_rate: float = Field(1e-3, gt=0)
    """At its highest point."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adam and adamw."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Of adagrad and sgd."""
    weight_decay: float = Field(0.0, ge=0)
    """On matrices only, never on biases and norms."""
    l1: float = Field(0.0, ge=0)
    """Of ftrl, on matrices only: weights whose gradients sum to less are exactly 0."""


class TrainingConfig(OptimizerConfig):
    """How a Trainable learns. One epoch is one pass over its examples."""

    groups: dict[str, OptimizerConfig] = {}
    """Optimizers of parameters whose names begin so, up to a dot."""
    max_epochs: int = Field(30, ge=1)
    """Passes over the examples, and the length of the cosine schedule."""
    batch_size: int = Field(128, ge=1)
    """Examples in a batch."""
    schedule: Literal["constant", "cosine", "inverse-sqrt"] = "constant"
    """After warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the rate rises from 0."""
    gradient_clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient; None: no limit."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients make one optimizer step."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """On CPUs without AMX 32-true is fastest."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations."""
    patience: int | None = Field(5, ge=1)
    """Validations without a better value before stopping; None: never."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after so long, whatever the epoch; None: no limit."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """Minutes between two resume points."""
