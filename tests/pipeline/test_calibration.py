"""A ranker with the setting model.calibration is calibrated on validation impressions, and the bundle stores this."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextitem.core.errors import UserError
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import generate_shop
from nextitem.models.rankers.gbdt import GBDT
from nextitem.pipeline.runs import load_run
from nextitem.pipeline.train import train

SETTINGS = ["model.trees=10", "model.leaf_examples=20", "model.objective=listwise", "model.calibration=isotonic"]


def test_curves_are_fitted_to_validation_and_saved(tmp_path: Path) -> None:
    generate_shop(3, num_items=150, num_users=400).write(tmp_path / "shop")
    data = load_dataset(tmp_path / "shop")
    run = train("gbdt", data, out=tmp_path / "run", protocol="impressions", overrides=SETTINGS, progress=False)
    split = make_split(data, "impressions")
    assert isinstance(run.model, GBDT)
    scores = run.model.score(split.validation)["target"]
    clicks = split.validation.candidate_labels["click"].values
    assert float(scores[scores > -torch.inf].mean()) == pytest.approx(float(clicks.mean()), abs=1e-3)
    loaded_model = load_run(tmp_path / "run").model
    assert isinstance(loaded_model, GBDT)
    assert torch.equal(loaded_model.score(split.validation)["target"], scores)
    with pytest.raises(UserError, match=r"refit leaves no requests to fit model\.calibration"):
        train("gbdt", data, out=tmp_path / "other", protocol="impressions", refit=True, overrides=SETTINGS)
    with pytest.raises(UserError, match=r"use --protocol impressions"):
        train("gbdt", data, out=tmp_path / "lists", protocol="time", overrides=SETTINGS, progress=False)
