"""Settings of training: optimizers, schedule, epochs, precision, early stopping, checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nextitem.core import config as configs


class MuonConfig(configs.Config):
    """Settings of Muon."""

    momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum of the gradients of matrices."""
    nesterov: bool = True
    """Whether the momentum looks one step ahead (Nesterov)."""
    iterations: int = Field(5, ge=1, lt=100)
    """Number of Newton-Schulz iterations that make an update orthogonal."""
    scale: Literal["as-adamw", "as-published"] = "as-adamw"
    """Factor of the learning rate of an m x n matrix: as-adamw is 0.2 sqrt(max(m, n)), with which learning rate and
    weight decay of adamw carry over (arXiv 2502.16982); as-published is sqrt(max(1, m / n))."""
    adamw_learning_rate: float | None = Field(None, gt=0)
    """Learning rate of embeddings, biases and norms, which adamw trains; none: learning_rate."""


class OptimizerConfig(configs.Config):
    """Settings of one optimizer."""

    optimizer: Literal["adamw", "adam", "adagrad", "sgd", "ftrl", "muon"] = "adamw"
    """Name of the optimizer. muon trains matrices; embeddings, biases and norms are trained by adamw beside it."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate at the highest point of the schedule."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment, for adam and adamw (that of muon included)."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum, for adagrad and sgd."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of matrices; biases and norms have none."""
    l1: float = Field(0.0, ge=0)
    """L1 penalty of matrices, for ftrl: weights whose accumulated gradients sum to less are exactly 0."""
    muon: MuonConfig = MuonConfig()
    """Settings that only muon has."""


class TrainingConfig(OptimizerConfig):
    """Settings of training. One epoch is one pass over the examples."""

    groups: dict[str, OptimizerConfig] = {}
    """Settings of optimizers for some parameters: the first parts of their names, up to a dot -> settings."""
    max_epochs: int = Field(30, ge=1)
    """Maximum number of epochs, and the length of the cosine schedule."""
    batch_size: int = Field(128, ge=1)
    """Number of examples in a batch."""
    schedule: Literal["constant", "cosine", "inverse-sqrt"] = "constant"
    """Schedule of the learning rate after warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Number of optimizer steps over which the learning rate rises from 0."""
    gradient_clip: float | None = Field(None, gt=0)
    """Maximum norm of the gradient; None: no limit."""
    accumulate: int = Field(1, ge=1)
    """Number of batches whose gradients are accumulated for one optimizer step."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Floating-point precision of training. On CPUs without AMX, 32-true is fastest."""
    validate_every: int = Field(1, ge=1)
    """Number of epochs from one validation to the next."""
    patience: int | None = Field(5, ge=1)
    """Number of validations without a better value after which training stops; None: never."""
    max_minutes: float | None = Field(None, gt=0)
    """Time budget in minutes, after which training stops, even within an epoch; None: no limit."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """Minutes between two checkpoints from which training can be resumed."""
