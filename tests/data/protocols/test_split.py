"""Splits of all protocols: defaults, errors, and common properties."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from support.protocol_logs import data, impression_log, logs, logs_with_impressions

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.protocols import PROTOCOLS, default_protocol, make_split
from nextitem.data.requests import event_values

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


def test_the_default_protocol_depends_on_the_columns() -> None:
    assert default_protocol(logs("abc", "abd"))[0] == "leave-one-out"
    assert default_protocol(data(user_id=[1, 2], item_id=[1, 2], timestamp=[1, 2]))[0] == "time"
    assert default_protocol(data(session_id=[1, 2], item_id=[1, 2], timestamp=[1, 2]))[0] == "session"
    dataset = impression_log()
    impressions_only = dataset.with_interactions(dataset.interactions.select(np.zeros(5, dtype=np.bool_)))
    assert default_protocol(impressions_only)[0] == "impressions"


@pytest.mark.parametrize(
    ("dataset", "protocol", "message"),
    [
        (logs("abc", "abd"), "random", "choose one of time, leave-one-out"),
        (logs("abc", "abd"), "time", "timestamp for every event"),
        (logs("abc", "abd"), "session", "session_id"),
        (logs("abc", "abd"), "published", "column split"),
        (logs("abc", "abd"), "impressions", "impressions"),
        (logs("ab", "ba"), "leave-one-out", "no validation requests"),
        (logs("abc", "abd"), "user-split", "no validation requests"),
        (data(user_id=[1, 2], item_id=[1, 2], timestamp=[5, 5]), "time", "one timestamp"),
        (data(session_id=[1, 2], item_id=[1, 2], position=[0, 0]), "session", "three sessions"),
        (logs_with_impressions(), "impressions", "labels"),
    ],
)
def test_a_protocol_that_the_data_do_not_allow_is_refused(dataset: Dataset, protocol: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_split(dataset, protocol)


def test_requests_contain_the_context_columns_of_their_histories() -> None:
    dataset = data(
        {"interactions": {"context": {"price": "numeric", "shop": "categorical"}}},
        user_id=[1, 1, 1, 2],
        item_id=[*"abcd"],
        position=[0, 1, 2, 0],
        price=[1.5, None, 3.0, 4.0],
        shop=["b", None, "a", "b"],
    )
    test = make_split(dataset, "leave-one-out").test
    assert test.features["price"].values.tolist()[0] == 1.5
    assert test.features["price"].values.isnan().tolist() == [False, True]
    assert test.features["shop"].to_lists() == [[2, 0]]
    values = event_values(dataset.interactions, dataset.catalog)
    assert values["shop"].tolist() == [2, 0, 1, 2]
    assert test.context == {}  # the target's own price would reveal the target


def test_the_names_of_protocols_and_the_default_are_available_without_torch() -> None:
    imports = "import sys; from nextitem.data.protocols import PROTOCOLS, default_protocol"
    code = f"{imports}; print('torch' in sys.modules, *PROTOCOLS)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", *PROTOCOLS]


def test_a_split_stores_the_seed_of_its_sample() -> None:
    dataset = logs(*["abcdefg"] * 20)
    assert make_split(dataset, "user-split", seed=3).seed == 3
    assert make_split(dataset, "leave-one-out", seed=3).seed is None
    assert make_split(impression_log(), "time", seed=3).seed is None


def test_only_the_protocol_impressions_evaluates_scores() -> None:
    assert make_split(impression_log(), "impressions").judges_scores
    assert not make_split(impression_log(), "time").judges_scores
    assert not make_split(logs("abcd", "dcba"), "leave-one-out").judges_scores
