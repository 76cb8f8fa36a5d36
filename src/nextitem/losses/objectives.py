"""Objectives of next-item models as settings: which loss, and what only this loss needs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nextitem.core.config import Choice


class FullSoftmax(Choice):
    """Cross-entropy over all items."""

    kind: Literal["full-softmax"] = "full-softmax"
    """Cross-entropy over all items of the catalogue."""
    target_weights: tuple[float, ...] = Field((1.0,), min_length=1)
    """Weights of the next event, the one after it, and so on, all of which are targets of the same hidden state."""


class SampledSoftmax(Choice):
    """Cross-entropy over the target and sampled items."""

    kind: Literal["sampled-softmax"] = "sampled-softmax"
    """Cross-entropy over the target and sampled items."""
    num_negatives: int = Field(1024, ge=1)
    """Number of items that are sampled for each batch, sequence or position (`shared_by`)."""
    shared_by: Literal["batch", "sequence", "position"] = "batch"
    """Positions that share the same negatives: all of a batch, those of one sequence, or none."""
    power: float = Field(0.0, ge=0)
    """Negatives are sampled by popularity ** power, and corrected by log_q; 0: uniformly."""


class BCE(Choice):
    """Binary cross-entropy of the target and of sampled items (SASRec, arXiv 1808.09781)."""

    kind: Literal["bce"] = "bce"
    """Binary cross-entropy of the target and of sampled items."""
    num_negatives: int = Field(1, ge=1)
    """Number of items that are sampled for each position."""


class GBCE(Choice):
    """Generalised binary cross-entropy (gSASRec, arXiv 2308.07192)."""

    kind: Literal["gbce"] = "gbce"
    """Binary cross-entropy, calibrated for the share of items that are sampled."""
    num_negatives: int = Field(256, ge=1)
    """Number of items that are sampled for each position."""
    calibration: float = Field(0.75, ge=0, le=1)
    """Calibration t of the paper, from 0 (plain binary cross-entropy) to 1 (unbiased)."""
