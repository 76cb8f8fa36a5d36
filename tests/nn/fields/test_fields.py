"""Fields: their codes worked out by hand, what is missing, and that no example sees its future."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog, ColumnEncoding
from nextitem.core.dataset import Dataset, Users
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.examples.labelled_candidates import SampledCandidates
from nextitem.nn.fields.fields import Fields, FieldVectors
from nextitem.nn.fields.kinds import DAY_MS, HOUR_MS, logarithmic, quantiles

MONDAY = 4 * DAY_MS  # 1970-01-05


def catalog() -> Catalog:
    ids = pl.Series("item_id", ["a", "b", "c", "d"])
    table = pl.DataFrame(
        {
            "item_id": ids,
            "colour": ["red", "blue", "red", None],
            "price": [1.0, 2.0, None, 4.0],
            "tags": [["x", "y"], ["y"], [], None],
        }
    )
    return Catalog(
        IdMap(ids),
        table,
        features={"colour": "categorical", "price": "numeric", "tags": "categorical-list"},
        released_ms=np.array([MONDAY, 0, MONDAY + HOUR_MS, MONDAY]),
        requests={
            "user.country": ColumnEncoding("categorical", pl.Series(["FR", "NL", "US"])),
            "user.age": ColumnEncoding("numeric"),
            "user.hobbies": ColumnEncoding("categorical-list", pl.Series(["chess", "golf"])),
            "user.since": ColumnEncoding("timestamp"),
        },
    )


def batch() -> SequenceBatch:
    return SequenceBatch(
        Jagged.from_rows([[1, 2, 1], [4]]),
        request_times=torch.tensor([MONDAY + 3 * HOUR_MS, MONDAY + DAY_MS]),
        context={
            "user.country": torch.tensor([2, 3]),
            "user.age": torch.tensor([20.0, float("nan")]),
            "user.hobbies": Jagged.from_rows([[1, 2], []]),
            "user.since": torch.tensor([MONDAY + HOUR_MS, float("nan")], dtype=torch.float64),
        },
        candidates=Jagged.from_rows([[1, 3], [2]]),
        candidate_features={"rank": Jagged.from_rows([[1, 0], [4]]).with_values(torch.tensor([1.0, 0.0, 4.0]))},
    )


def log() -> Interactions:
    times = np.array([MONDAY - 20 * DAY_MS, MONDAY - DAY_MS, MONDAY + 2 * DAY_MS, MONDAY, MONDAY])
    return Interactions(np.array([1, 1, 1, 2, 2], np.int32), np.array([1, 1, 1, 2, 3], np.int32), 2, 4, times)


def codes_of(*names: str) -> dict[str, list[Any]]:
    fields = Fields(catalog(), names, brought=("rank", "slot"))
    fields.fit(replace(batch(), context={**batch().context, "user.country": torch.tensor([2, 2])}), log())
    fields.eval()
    found = fields(batch())
    columns = [*found.request.T, *found.request_bags, *found.candidate.T, *found.candidate_bags]
    starts = dict(zip(fields.names, fields.starts.tolist(), strict=False))
    order = list(fields.names)
    singles = [c - starts[n] for n, c in zip(order, columns, strict=True) if isinstance(c, torch.Tensor)]
    assert all(bool((c >= 0).all()) for c in singles)
    return {
        name: (column - starts[name]).tolist()
        if isinstance(column, torch.Tensor)
        else [[v - starts[name] for v in row] for row in column.to_lists()]
        for name, column in zip(order, columns, strict=True)
    }


def test_what_the_catalogue_says_of_candidates() -> None:
    found = codes_of("item.id", "item.colour", "item.tags", "item.price", "item.age")
    assert found["item.id"] == [1, 3, 2]
    assert found["item.colour"] == [2, 2, 1]
    assert found["item.tags"] == [[1, 2], [0], [2]]
    assert found["item.price"][1] == 0
    assert 0 < found["item.price"][0] < found["item.price"][2]
    # 3 hours + 1 is 4, 2 hours + 1 is 3, and item b has no release.
    assert found["item.age"] == [5, 4, 0]


def test_an_item_that_training_has_not_seen_has_code_0() -> None:
    fields = Fields(catalog(), ("item.id",))
    fields.fit(replace(batch(), candidates=None), log())
    asked = replace(batch(), candidates=Jagged.from_rows([[4], [3]]), candidate_features={})
    assert fields(asked).candidate[:, 0].tolist() == [0, 3]


def test_counts_stop_at_the_time_of_each_request() -> None:
    found = codes_of("item.popularity", "item.trend")
    one, two = (int(logarithmic(torch.tensor(float(n)))) for n in (1, 2))
    assert found["item.popularity"] == [two, one, one]  # the third event of item a lies in the future
    assert found["item.trend"] == [one, one, one]


def undated_examples() -> tuple[Interactions, list[SequenceBatch]]:
    rows = [
        (user, item) for user, items in enumerate([[1, 2, 3], [2, 1, 2], [3, 2], [1, 4]], start=1) for item in items
    ]
    users, items = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    events = Interactions(users, items, 4, 4)
    people = Users(IdMap(pl.Series("user_id", [1, 2, 3, 4])))
    examples = SampledCandidates(
        Dataset("d", events, catalog(), people), num_negatives=4, power=0.5, max_history_length=5
    )
    return events, list(examples.batches(1, epoch=0, seed=0))


def test_counts_of_an_undated_log_leave_out_the_example_itself() -> None:
    events, batches = undated_examples()
    fields = Fields(catalog(), ("item.popularity", "item.trend"))
    fields.fit(batches[0], events)
    counts = np.bincount(events.item_ids, minlength=5)
    assert len(batches) == 6
    for example in batches:
        assert example.candidates is not None
        assert example.targets is not None
        others = counts - (np.arange(5) == int(example.targets.values[0]))
        # An item without another event has the code that it has as a negative, not one that only targets have.
        expected = logarithmic(torch.from_numpy(others).clamp(min=1).double())[example.candidates.values]
        for column, start in zip(fields(example).candidate.T, fields.starts.tolist(), strict=False):
            assert torch.equal(column - start, expected)


def test_an_item_without_an_event_has_code_0_in_an_undated_log() -> None:
    events, batches = undated_examples()
    fields = Fields(catalog(), ("item.popularity",))
    fields.fit(batches[0], events.select(events.item_ids != 4))
    asked = SequenceBatch(Jagged.from_rows([[1]]), candidates=Jagged.from_rows([[4, 3]]))
    assert fields(asked).candidate[:, 0].tolist() == [0, int(logarithmic(torch.tensor(2.0)))]


def test_what_is_known_of_requests() -> None:
    found = codes_of("user.country", "user.age", "user.hobbies", "user.since", "request.hour", "request.weekday")
    assert found["user.country"] == [2, 0]  # US was not seen in training
    assert found["user.age"][0] > 0
    assert found["user.age"][1] == 0
    assert found["user.hobbies"] == [[1, 2], []]
    assert found["user.since"] == [int(logarithmic(torch.tensor(3.0))), 0]
    assert found["request.hour"] == [4, 1]
    assert found["request.weekday"] == [1, 2]


def test_histories_and_what_candidates_share_with_them() -> None:
    found = codes_of("history.id", "history.length", "cross.id", "cross.id.since", "cross.colour", "cross.colour.last")
    assert found["history.id"] == [[1, 2, 1], [0]]  # item d has no training event
    assert found["history.length"] == [int(logarithmic(torch.tensor(3.0))), 1]
    assert found["cross.id"] == [int(logarithmic(torch.tensor(2.0))), 0, 0]
    assert found["cross.id.since"] == [1, 0, 0]
    assert found["cross.colour"] == [int(logarithmic(torch.tensor(2.0)))] * 2 + [0]
    red_red = 1 + 2 * 3 + 2
    assert found["cross.colour.last"] == [red_red, red_red, 0]


def test_what_came_with_the_candidates() -> None:
    found = codes_of("candidate.rank", "candidate.slot")
    assert found["candidate.rank"] == [1, 0, 5]
    assert found["candidate.slot"] == [1, 1, 1]  # none given: as if all stood first


def test_a_column_that_is_missing_is_counted_and_has_code_0() -> None:
    fields = Fields(catalog(), ("user.country", "user.age", "user.hobbies"))
    fields.fit(batch(), log())
    fields.eval()
    found = fields(replace(batch(), context={}))
    assert found.request.tolist() == [[0, fields.starts[1]]] * 2
    assert found.request_bags[0].to_lists() == [[], []]
    assert fields.missing == {"user.country": 2, "user.age": 2}


def test_an_unknown_field_is_named_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no field 'item.color'; this data has .*item.colour"):
        Fields(catalog(), ("item.color",))


def test_vectors_stand_in_the_order_of_names_and_bags_have_means() -> None:
    fields = Fields(catalog(), ("item.tags", "item.id", "user.country"))
    fields.fit(batch(), log())
    vectors = FieldVectors(fields, 5)
    found = vectors(fields(batch()))
    assert fields.names == ("user.country", "item.id", "item.tags")
    assert found.shape == (3, 3, 5)
    start = fields.starts.tolist()
    table = vectors.table.weight
    torch.testing.assert_close(found[0, 0], table[start[0] + 2])
    torch.testing.assert_close(found[2, 1], table[start[1] + 2])
    torch.testing.assert_close(found[0, 2], table[[start[2] + 1, start[2] + 2]].mean(0))
    of_items = vectors.of_items(torch.tensor([[1, 3], [2, 0]]))
    assert of_items.shape == (2, 2, vectors.item_width)
    torch.testing.assert_close(of_items[0, 0], found[0, 1:].flatten())


def test_quantiles_leave_out_what_is_missing() -> None:
    borders = quantiles(torch.tensor([float("nan"), *range(100)]), 4)
    assert borders.tolist() == [25.0, 50.0, 75.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_shuffling_the_future_changes_no_code(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 40
    users = np.sort(rng.integers(1, 6, count)).astype(np.int32)
    items, times = rng.integers(1, 5, count).astype(np.int32), rng.integers(0, 100, count) * DAY_MS
    now = 50 * DAY_MS
    future = times >= now
    shuffled = items.copy()
    shuffled[future] = rng.permutation(items[future])
    found = []
    for each in (items, shuffled):
        fields = Fields(catalog(), ("item.popularity", "item.trend"))
        asked = replace(batch(), request_times=torch.tensor([now, now - 3 * DAY_MS]))
        fields.fit(asked, Interactions(users, each, 5, 4, times))
        found.append(fields(asked).candidate)
    assert torch.equal(*found)


def test_ages_before_1970_are_ages_and_a_missing_date_is_none() -> None:
    base = catalog()
    day = pl.Series("born", [-DAY_MS, None, 0, MONDAY]).cast(pl.Datetime("ms"))
    dated = replace(
        base,
        table=base.table.with_columns(day),
        features={"born": "timestamp"},
        released_ms=np.array([-DAY_MS, 0, 1, MONDAY]),
    )
    requests = SequenceBatch(
        Jagged.from_rows([[1]]), request_times=torch.tensor([MONDAY]), candidates=Jagged.from_rows([[1, 2, 3, 4]])
    )
    for name in ("item.born", "item.age"):
        codes = Fields(dated, (name,))(requests).candidate[:, 0].tolist()
        expected = [logarithmic(torch.tensor([hours + 1.0])).item() for hours in (5 * 24, 4 * 24, 0)]
        assert codes == [expected[0], 0, expected[1], expected[2]]


def test_times_of_items_are_ages_and_histories_are_lists() -> None:
    day = pl.Series([MONDAY, None, MONDAY - DAY_MS, MONDAY]).cast(pl.Datetime("ms"))
    made = catalog()
    table = made.table.with_columns(day.alias("shipped"), pl.Series("seen_with", [["b"], ["a", "c"], [], None]))
    there = replace(made, table=table, features={"shipped": "timestamp", "seen_with": "history"})
    fields = Fields(there, ("item.shipped", "item.seen_with"))
    found = fields(batch())
    start = fields.starts.tolist()
    # 3 hours and a day and 3 hours before the first request; item b has no time.
    assert (found.candidate[:, 0] - start[0]).tolist() == [
        int(logarithmic(torch.tensor(4.0))),
        int(logarithmic(torch.tensor(28.0))),
        0,
    ]
    assert [[code - start[1] for code in row] for row in found.candidate_bags[0].to_lists()] == [[2], [0], [1, 3]]
