"""A few plain training steps, whose losses show whether the training of a component has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nextitem.core.components import build_component, component_class
from nextitem.core.dataset import Dataset
from nextitem.core.recommender import Recommender
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.pipeline.tokenize import require_identifiers, with_content
from nextitem.recipes import read_recipe
from nextitem.testing.known_answers import DATASETS

NUM_STEPS = 3


def three_losses(learner: Any, train: Dataset) -> list[float]:
    """Return the losses of three steps of plain gradient descent on batches of eight, dropout included."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(learner.parameters(), 0.1)  # it takes sparse gradients too
    losses = []
    learner.train()
    for batch, _ in zip(learner.examples(train).batches(8, epoch=0, seed=0), range(NUM_STEPS), strict=False):
        loss = learner.training_loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def model_losses(name: str, **settings: Any) -> list[float]:
    """Return three losses of a model's debug recipe, with these settings instead of its own, on the cycle."""
    dataset = DATASETS["cycle"]()
    recipe = resolve_recipe([read_recipe(f"debug/{name}"), ("test", {"data": {"path": "-"}, "model": settings})])
    cls, config = component_class("model", recipe.model)
    needs = cls.needs | config.needs
    if "content" in needs:
        dataset = with_content(dataset, recipe, progress=False)
    if "identifiers" in needs:
        dataset = require_identifiers(dataset, recipe, FitOptions(Path(), progress=False, is_resumable=False))
    torch.manual_seed(0)
    model: Recommender = build_component("model", recipe.model, dataset.catalog)
    model.set_popularity_from(dataset)
    return three_losses(model, dataset)
