"""Validation that cannot judge: training goes on to its end, and says so."""

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


def test_validation_labels_of_one_kind_end_nothing_and_are_noted(tmp_path: Path) -> None:
    made = generate_shop(3, num_items=150, num_users=300)
    data = dataset_from_frames({name: getattr(made, name) for name in TABLES}, made.settings, name="small shop")
    times = make_split(data, "impressions").validation.request_times
    shown = data.impressions
    assert times is not None
    assert shown is not None
    assert shown.timestamps is not None
    judged = (shown.timestamps >= int(times.min())) & (shown.timestamps <= int(times.max()))
    clicks = shown.columns["click"].to_numpy()
    columns = shown.columns.with_columns(pl.Series("click", np.where(judged, 0, clicks)))
    data = replace(data, impressions=replace(shown, columns=columns))
    said: list[str] = []
    run = train(
        "lr",
        data,
        out=tmp_path / "run",
        protocol="impressions",
        overrides=["model.calibration=platt", "training.max_epochs=3", "training.batch_size=64", "training.patience=1"],
        progress=False,
        log=said.append,
    )
    assert run.metrics["stopped"] == "finished"
    assert run.metrics["best_epoch"] == 3
    assert any(line.startswith("note: validation returned no figure after 3 of 3 epochs") for line in said)
    assert any(line.startswith("note: model.calibration: the probabilities of 'click' stay") for line in said)
