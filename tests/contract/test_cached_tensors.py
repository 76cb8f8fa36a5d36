"""Tests of what models cache between requests: it follows new weights and moves to another device."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from support.trained_models import requests, trained_anywhere
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.config import Config
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.pipeline.runs import load_run

HISTORIES = [[1, 2, 3], [7], [4, 9, 1, 2]]


def opened(name: str) -> Recommender:
    """Return a freshly loaded model, which has not answered any request."""
    return load_run(trained_anywhere(name).folder).model.eval()


def answer(model: Recommender) -> Recommendations:
    return model.recommend(requests(HISTORIES), 6)


def other_weights(model: Recommender) -> dict[str, Tensor]:
    """Return weights of the same shapes: parameters with noise, other numbers larger, so that variances stay valid."""
    generator = torch.Generator().manual_seed(0)
    parameters = {name for name, _ in model.named_parameters()}

    def other(name: str, value: Tensor) -> Tensor:
        if name in parameters:
            return value + 0.3 * torch.randn(value.shape, generator=generator)
        if not value.is_floating_point():
            return value
        return value * (1 + torch.rand(value.shape, generator=generator) if value.dim() == 1 else 1.5)

    return {name: other(name, value) for name, value in model.state_dict().items()}


def tensors_elsewhere(value: Any, path: str, device: str) -> Iterator[str]:
    """Yield the paths of tensors that are not on the device, in modules and in objects of this package within them.

    The catalogue and the identifiers, from which models are built, are skipped: they do not move.
    """
    if isinstance(value, Tensor):
        if value.device.type != device and value.numel():
            yield path
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from tensors_elsewhere(part, f"{path}[{name}]", device)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from tensors_elsewhere(part, f"{path}[{place}]", device)
    elif type(value).__module__.startswith("nextitem.") and not isinstance(value, Catalog | IdentifierTable | Config):
        for name, part in vars(value).items():
            yield from tensors_elsewhere(part, f"{path}.{name}", device)


def same(left: Recommendations, right: Recommendations) -> bool:
    return torch.equal(left.item_ids, right.item_ids) and torch.equal(left.scores, right.scores)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_by_new_weights_at_once(name: str) -> None:
    model, fresh = opened(name), opened(name)
    before = answer(model)
    state = other_weights(model)
    fresh.load_state_dict(state)
    expected = answer(fresh)
    model.load_state_dict(state)
    assert not model.training
    assert same(answer(model), expected)
    if name != "gbdt":  # its trees are bytes, which noise would destroy: tests/models/rankers/test_gbdt.py
        assert not same(before, expected)


@pytest.mark.parametrize("name", MODELS)
def test_all_tensors_of_a_model_that_has_answered_move_to_a_new_device(name: str) -> None:
    model = opened(name)
    answer(model)
    model.to("meta")
    assert list(tensors_elsewhere(model, name, "meta")) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_answers_by_its_own_weights(name: str) -> None:
    model = opened(name)
    before = answer(model)
    copy = deepcopy(model)
    copy.load_state_dict(other_weights(model))
    answer(copy)
    assert same(answer(model), before)
