"""Probabilities of a run for logged lists: those of its own lists, from the history that the user had then."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.trained_models import rich_run

from nextitem.core.errors import UserError
from nextitem.evaluation.attribution import EVENT_SCHEMA
from nextitem.evaluation.plackett_luce import plackett_luce
from nextitem.serving.engine import Engine
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.target_policy import list_probabilities, target_probabilities

NOW = 2_000_000_000_000
COLUMNS = ["impression_id", "user_id", "item_id", "timestamp", "slot", "propensity"]


def table(rows: list[tuple[Any, ...]], columns: Any = COLUMNS) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_probabilities_of_a_list_are_those_of_plackett_luce() -> None:
    lists = np.array(list(permutations(range(5), 3)))
    scores = np.repeat(-np.log(np.arange(1.0, 6.0))[None] / 0.7, len(lists), 0)
    expected, _ = plackett_luce(scores, lists)
    actual = [list_probabilities(places.tolist(), size=5, temperature=0.7) for places in lists]
    assert np.array(actual) == pytest.approx(expected)
    assert list_probabilities([1, -1, 0], size=2, temperature=1.0) == pytest.approx([1 / 3, 0.0, 1.0])
    assert list_probabilities([2, 0], size=3, temperature=1e-3) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(("time", "request_id"), [(NOW, None), (1_900_000_000_000, "early"), (NOW, "early")])
def test_lists_are_answered_from_the_history_of_then(time: int, request_id: str | None) -> None:
    """The user's event comes between the two lists: the first is answered without it, the second with it."""
    run = rich_run("item-cf")
    engine = Engine(run.model, run.dataset)
    new_events = {"u03": [HistoryEvent("i09", "view", time)]}
    before, after = (
        [str(item) for item in answer.item_ids]  # type: ignore[union-attr]
        for events in ({}, new_events)
        for answer in engine.recommend([ServedRequest(user_id="u03", k=100)], events)
    )
    assert before != after
    rows: list[tuple[Any, ...]] = [
        (name, "u03", item, list_time, slot, 0.5)
        for name, list_time in (("early", NOW - 1), ("late", NOW + 1))
        for slot, item in enumerate(before[:2], 1)
    ]
    rows += [("certain", "u03", before[0], NOW, 1, 1.0), ("visitor", None, before[0], NOW, 1, 0.5)]
    events = table([("u03", "i09", "view", time, request_id)], EVENT_SCHEMA)
    result = target_probabilities(run, table(rows), events, temperature=1.0)
    expected = [
        (name, slot, chance)
        for name, ranked in (("early", before), ("late", after))
        for slot, chance in enumerate(
            list_probabilities([ranked.index(item) for item in before[:2]], size=len(ranked), temperature=1.0), 1
        )
    ]
    assert result.rows() == [(name, slot, pytest.approx(chance)) for name, slot, chance in expected]
    assert result["probability"].to_list()[:2] != result["probability"].to_list()[2:]


def test_a_certain_policy_is_refused() -> None:
    with pytest.raises(UserError, match="temperature above 0"):
        target_probabilities(rich_run("item-cf"), table([]), table([], EVENT_SCHEMA), temperature=0.0)
