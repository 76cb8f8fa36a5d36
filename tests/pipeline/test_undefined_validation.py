"""Validation that returns no figure: training continues to its end, and a note is logged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from nextitem.data.protocols import make_split
from nextitem.data.readers import dataset_from_frames
from nextitem.data.settings import TABLES
from nextitem.data.shop.shop import generate_shop
from nextitem.pipeline.train import train


def test_validation_with_equal_labels_does_not_end_training_and_is_noted(tmp_path: Path) -> None:
    tables = generate_shop(3, num_items=150, num_users=300)
    data = dataset_from_frames({name: getattr(tables, name) for name in TABLES}, tables.settings, name="small shop")
    times = make_split(data, "impressions").validation.request_times
    impressions = data.impressions
    assert times is not None
    assert impressions is not None
    assert impressions.timestamps is not None
    is_validation = (impressions.timestamps >= int(times.min())) & (impressions.timestamps <= int(times.max()))
    clicks = impressions.columns["click"].to_numpy()
    columns = impressions.columns.with_columns(pl.Series("click", np.where(is_validation, 0, clicks)))
    data = replace(data, impressions=replace(impressions, columns=columns))
    lines: list[str] = []
    run = train(
        "lr",
        data,
        out=tmp_path / "run",
        protocol="impressions",
        overrides=["model.calibration=platt", "training.max_epochs=3", "training.batch_size=64", "training.patience=1"],
        progress=False,
        log=lines.append,
    )
    assert run.metrics["stopped"] == "finished"
    assert run.metrics["best_epoch"] == 3
    assert any(line.startswith("note: validation returned no figure after 3 of 3 epochs") for line in lines)
    assert any(line.startswith("note: model.calibration: the probabilities of 'click' stay") for line in lines)
