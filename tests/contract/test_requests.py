"""Tests that served requests equal evaluated ones: the same columns, and the same answers from a longer log."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from support.trained_models import rich_run

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.core.registry import MODELS
from nextitem.data.protocols import make_split
from nextitem.pipeline.recommend import history_requests, user_requests
from nextitem.pipeline.runs import aligned, load_run
from nextitem.testing.rich_log import SETTINGS, longer_log, rich_log


def columns_of(batch: SequenceBatch) -> dict[str, Any]:
    """Return every column as plain values, with NaN as None, so that missing values compare equal."""

    def plain(column: Any) -> Any:
        if column is None:
            return None
        if isinstance(column, Jagged):
            return column.offsets.tolist(), plain(column.values)
        return [None if value != value else value for value in column.tolist()]

    columns: dict[str, Any] = {}
    for name in ("items", "user_ids", "actions", "timestamps", "request_times"):
        columns[name] = plain(getattr(batch, name))
    for group in ("features", "context"):
        columns |= {f"{group}.{name}": plain(column) for name, column in getattr(batch, group).items()}
    return columns


def before_last_event(dataset: Dataset) -> tuple[Dataset, SequenceBatch]:
    """Return the log without the targets of `leave-one-out` and later events, and the requests of that protocol."""
    log = dataset.interactions
    requests = make_split(dataset, "leave-one-out").test
    assert requests.user_ids is not None
    users = dataset.users.numbers_of(requests.user_ids.numpy())
    is_kept = np.zeros(len(log), np.bool_)
    item_rows = np.flatnonzero(log.item_ids > 0)
    for user, length in zip(users.tolist(), requests.items.lengths.tolist(), strict=True):
        user_rows = item_rows[log.user_ids[item_rows] == user]
        is_kept[user_rows[:length]] = True
    return dataset.with_interactions(log.select(is_kept)), requests


def without_targets(requests: SequenceBatch, times: torch.Tensor | None) -> SequenceBatch:
    """Return the requests as a server receives them at `times`: without targets and exclusions."""
    return replace(requests, targets=None, excluded=None, request_times=times)


def test_a_served_request_equals_the_evaluated_one_column_by_column() -> None:
    dataset = rich_log()
    earlier, evaluated = before_last_event(dataset)
    assert evaluated.user_ids is not None
    users = dataset.users.ids.decode(dataset.users.numbers_of(evaluated.user_ids.numpy())).to_list()
    served = user_requests(earlier, users)
    assert set(columns_of(served)) >= {"features.device", "features.price", "features.rating", "context.user.country"}
    assert columns_of(without_targets(served, evaluated.request_times)) == columns_of(
        without_targets(evaluated, evaluated.request_times)
    )


def test_a_history_from_outside_has_all_columns_of_its_events() -> None:
    dataset = rich_log()
    user = user_requests(dataset, ["u01"])
    log = dataset.interactions
    assert log.timestamps is not None
    rows = np.flatnonzero((log.user_ids == 2) & (log.item_ids > 0))
    frame = pl.DataFrame(
        {
            "item_id": dataset.catalog.ids.decode(log.item_ids[rows]),
            "timestamp": log.timestamps[rows],
            **{name: log.columns[name][rows] for name in ("action", "device", "price", "rating")},
        }
    )
    context = {"user.country": "NL", "user.age": 21.0, "user.hobbies": ["golf", "chess"]}
    visitor, skipped = history_requests(frame, dataset.catalog, context=context)
    assert skipped == ()
    visitor_columns, user_columns = columns_of(visitor), columns_of(user)
    for name in ("user_ids", "request_times"):  # a visitor has no key, and the request follows the history at once
        visitor_columns.pop(name), user_columns.pop(name)
    assert visitor_columns == user_columns


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_serves_the_evaluated_lists(name: str) -> None:
    run = rich_run(name)
    opened = load_run(run.folder)
    earlier, evaluated = before_last_event(aligned(longer_log(), opened.model))
    assert evaluated.user_ids is not None
    served = user_requests(
        earlier, earlier.users.ids.decode(earlier.users.numbers_of(evaluated.user_ids.numpy())).to_list()
    )
    first = run.model.recommend(without_targets(evaluated, evaluated.request_times), 5)
    second = opened.model.recommend(without_targets(served, evaluated.request_times), 5)
    assert torch.equal(first.item_ids, second.item_ids)
    assert torch.equal(first.scores, second.scores)


def test_another_process_has_the_same_answers() -> None:
    names = ["hstu", "tiger", "user-cf", "multi-behaviour", "cascade"]
    folders = {name: str(rich_run(name).folder) for name in names}
    users = ["u01", "u17", "u42"]
    answers = {}
    for name in names:
        requests = user_requests(aligned(longer_log(), rich_run(name).model), users)
        answers[name] = rich_run(name).model.recommend(requests, 5).item_ids.tolist()
    code = f"""
from nextitem.testing.rich_log import longer_log
from nextitem.pipeline.recommend import user_requests
from nextitem.pipeline.runs import aligned, load_run
models = {{name: load_run(folder).model for name, folder in {folders!r}.items()}}
print({{name: model.recommend(user_requests(aligned(longer_log(), model), {users!r}), 5).item_ids.tolist()
       for name, model in models.items()}})
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == str(answers)


def test_all_settings_of_the_rich_log_are_in_its_requests() -> None:
    dataset = rich_log()
    assert set(dataset.catalog.events) == {"action", *SETTINGS["interactions"]["context"], "rating"}
    assert set(dataset.catalog.requests) == {f"user.{name}" for name in SETTINGS["users"]["features"]}


def test_a_request_without_its_actions_has_other_answers() -> None:
    """The checks above can fail: without actions the models that read them have other answers."""
    for name in ("hstu", "multi-behaviour"):
        model = rich_run(name).model
        served = user_requests(aligned(rich_log(), model), None)
        whole, without_actions = model.recommend(served, 5), model.recommend(replace(served, actions=None), 5)
        assert not torch.equal(whole.scores, without_actions.scores)
