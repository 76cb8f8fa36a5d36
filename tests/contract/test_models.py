"""Tests of every registered model: the known answers that it declares, and the checks of nextitem.testing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.trained_models import rich_run, trained

from nextitem.core.registry import MODELS
from nextitem.data.protocols import make_split
from nextitem.pipeline.evaluate import generation_quality
from nextitem.pipeline.runs import Run
from nextitem.testing.known_answers import DATASETS
from nextitem.testing.recommenders import CHECKS, check_known_answers, check_same_weights

SOLVES = [(name, data) for name, entry in MODELS.items() for data in entry.load().known_answers]
SOLVES_NONE = {
    "popularity": "has one list for all requests, and all items of the sets are equally popular",
    "geo-popularity": "has one list for each region; its own tests have data with regions",
    "new-items": "lists the items released last, and the sets have no release times",
}


def test_a_model_without_known_answers_has_a_reason() -> None:
    assert {name for name, entry in MODELS.items() if not entry.load().known_answers} == set(SOLVES_NONE)


@pytest.mark.parametrize(("name", "data"), SOLVES)
def test_a_model_finds_its_known_answers(name: str, data: str) -> None:
    check_known_answers(trained(name, data), data)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_passes_the_check(name: str, check: Callable[[Run], None]) -> None:
    check(rich_run(name))


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    check_same_weights(rich_run(name), rich_run(name, again=1))


@pytest.mark.parametrize("name", ["tiger", "cobra", "depth-decoder", "sasrec"])
def test_quality_of_generation_is_reported_for_models_that_generate_codes(name: str) -> None:
    run = trained(name)
    quality = generation_quality(run, make_split(DATASETS["cycle"](), "leave-one-out"), 20)
    if name == "sasrec":
        assert quality is None
    else:
        assert quality is not None
        assert quality["levels"][0]["survival"] > 0
