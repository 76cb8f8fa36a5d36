"""Fields: hand-computed codes, missing values, and no dependence of examples on future events."""

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
    """Return the codes of fields for `batch`, by name, each counted from the first code of the field."""
    fields = Fields(catalog(), names, candidate_features=("rank", "slot"))
    fields.fit(replace(batch(), context={**batch().context, "user.country": torch.tensor([2, 2])}), log())
    fields.eval()
    codes = fields(batch())
    columns = [*codes.request.T, *codes.request_bags, *codes.candidate.T, *codes.candidate_bags]
    starts = dict(zip(fields.names, fields.starts.tolist(), strict=False))
    named = list(zip(fields.names, columns, strict=True))
    single_codes = [column - starts[name] for name, column in named if isinstance(column, torch.Tensor)]
    assert all(bool((column >= 0).all()) for column in single_codes)
    return {
        name: (column - starts[name]).tolist()
        if isinstance(column, torch.Tensor)
        else [[code - starts[name] for code in row] for row in column.to_lists()]
        for name, column in named
    }


def test_item_fields_encode_the_columns_of_the_catalogue() -> None:
    codes = codes_of("item.id", "item.colour", "item.tags", "item.price", "item.age")
    assert codes["item.id"] == [1, 3, 2]
    assert codes["item.colour"] == [2, 2, 1]
    assert codes["item.tags"] == [[1, 2], [0], [2]]
    assert codes["item.price"][1] == 0
    assert 0 < codes["item.price"][0] < codes["item.price"][2]
    # Codes are those of 3 + 1 hours and 2 + 1 hours; item b has no release time.
    assert codes["item.age"] == [5, 4, 0]


def test_item_unseen_in_training_has_code_0() -> None:
    fields = Fields(catalog(), ("item.id",))
    fields.fit(replace(batch(), candidates=None), log())
    requests = replace(batch(), candidates=Jagged.from_rows([[4], [3]]), candidate_features={})
    assert fields(requests).candidate[:, 0].tolist() == [0, 3]


def test_popularity_counts_only_events_before_the_request() -> None:
    codes = codes_of("item.popularity", "item.trend")
    one, two = (int(logarithmic(torch.tensor(float(n)))) for n in (1, 2))
    assert codes["item.popularity"] == [two, one, one]  # the third event of item a is in the future
    assert codes["item.trend"] == [one, one, one]


def examples_without_times() -> tuple[Interactions, list[SequenceBatch]]:
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


def test_popularity_without_times_does_not_count_the_example_itself() -> None:
    events, batches = examples_without_times()
    fields = Fields(catalog(), ("item.popularity", "item.trend"))
    fields.fit(batches[0], events)
    counts = np.bincount(events.item_ids, minlength=5)
    assert len(batches) == 6
    for example in batches:
        assert example.candidates is not None
        assert example.targets is not None
        others = counts - (np.arange(5) == int(example.targets.values[0]))
        # A target without another event has the code that it has as a negative, so the code does not reveal the label.
        expected = logarithmic(torch.from_numpy(others).clamp(min=1).double())[example.candidates.values]
        for column, start in zip(fields(example).candidate.T, fields.starts.tolist(), strict=False):
            assert torch.equal(column - start, expected)


def test_popularity_without_times_is_code_0_for_an_item_without_events() -> None:
    events, batches = examples_without_times()
    fields = Fields(catalog(), ("item.popularity",))
    fields.fit(batches[0], events.select(events.item_ids != 4))
    requests = SequenceBatch(Jagged.from_rows([[1]]), candidates=Jagged.from_rows([[4, 3]]))
    assert fields(requests).candidate[:, 0].tolist() == [0, int(logarithmic(torch.tensor(2.0)))]


def test_request_fields_encode_context_and_time() -> None:
    codes = codes_of("user.country", "user.age", "user.hobbies", "user.since", "request.hour", "request.weekday")
    assert codes["user.country"] == [2, 0]  # training has not seen US
    assert codes["user.age"][0] > 0
    assert codes["user.age"][1] == 0
    assert codes["user.hobbies"] == [[1, 2], []]
    assert codes["user.since"] == [int(logarithmic(torch.tensor(3.0))), 0]
    assert codes["request.hour"] == [4, 1]
    assert codes["request.weekday"] == [1, 2]


def test_history_and_cross_fields() -> None:
    codes = codes_of("history.id", "history.length", "cross.id", "cross.id.since", "cross.colour", "cross.colour.last")
    assert codes["history.id"] == [[1, 2, 1], [0]]  # item d has no training event
    assert codes["history.length"] == [int(logarithmic(torch.tensor(3.0))), 1]
    assert codes["cross.id"] == [int(logarithmic(torch.tensor(2.0))), 0, 0]
    assert codes["cross.id.since"] == [1, 0, 0]
    assert codes["cross.colour"] == [int(logarithmic(torch.tensor(2.0)))] * 2 + [0]
    pair_red_red = 1 + 2 * 3 + 2
    assert codes["cross.colour.last"] == [pair_red_red, pair_red_red, 0]


def test_candidate_features_and_their_defaults() -> None:
    codes = codes_of("candidate.rank", "candidate.slot")
    assert codes["candidate.rank"] == [1, 0, 5]
    assert codes["candidate.slot"] == [1, 1, 1]  # without slots, as if all were in the first one


def test_missing_column_has_code_0_and_is_counted() -> None:
    fields = Fields(catalog(), ("user.country", "user.age", "user.hobbies"))
    fields.fit(batch(), log())
    fields.eval()
    codes = fields(replace(batch(), context={}))
    assert codes.request.tolist() == [[0, fields.starts[1]]] * 2
    assert codes.request_bags[0].to_lists() == [[], []]
    assert fields.missing == {"user.country": 2, "user.age": 2}


def test_error_for_an_unknown_field_names_it_and_the_available_ones() -> None:
    with pytest.raises(UserError, match=r"no field 'item.color'; this data has .*item.colour"):
        Fields(catalog(), ("item.color",))


def test_vectors_are_in_the_order_of_names_and_bags_are_means() -> None:
    fields = Fields(catalog(), ("item.tags", "item.id", "user.country"))
    fields.fit(batch(), log())
    vectors = FieldVectors(fields, 5)
    field_vectors = vectors(fields(batch()))
    assert fields.names == ("user.country", "item.id", "item.tags")
    assert field_vectors.shape == (3, 3, 5)
    start = fields.starts.tolist()
    table = vectors.table.weight
    torch.testing.assert_close(field_vectors[0, 0], table[start[0] + 2])
    torch.testing.assert_close(field_vectors[2, 1], table[start[1] + 2])
    torch.testing.assert_close(field_vectors[0, 2], table[[start[2] + 1, start[2] + 2]].mean(0))
    of_items = vectors.of_items(torch.tensor([[1, 3], [2, 0]]))
    assert of_items.shape == (2, 2, vectors.item_width)
    torch.testing.assert_close(of_items[0, 0], field_vectors[0, 1:].flatten())


def test_quantiles_ignore_missing_values() -> None:
    borders = quantiles(torch.tensor([float("nan"), *range(100)]), 4)
    assert borders.tolist() == [25.0, 50.0, 75.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_codes_do_not_depend_on_future_events(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 40
    users = np.sort(rng.integers(1, 6, count)).astype(np.int32)
    items, times = rng.integers(1, 5, count).astype(np.int32), rng.integers(0, 100, count) * DAY_MS
    now = 50 * DAY_MS
    future = times >= now
    shuffled = items.copy()
    shuffled[future] = rng.permutation(items[future])
    codes = []
    for log_items in (items, shuffled):
        fields = Fields(catalog(), ("item.popularity", "item.trend"))
        requests = replace(batch(), request_times=torch.tensor([now, now - 3 * DAY_MS]))
        fields.fit(requests, Interactions(users, log_items, 5, 4, times))
        codes.append(fields(requests).candidate)
    assert torch.equal(*codes)


def test_item_ages_before_1970_are_valid_and_missing_dates_have_code_0() -> None:
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


def test_timestamp_columns_are_ages_and_history_columns_are_lists() -> None:
    day = pl.Series([MONDAY, None, MONDAY - DAY_MS, MONDAY]).cast(pl.Datetime("ms"))
    base = catalog()
    table = base.table.with_columns(day.alias("shipped"), pl.Series("seen_with", [["b"], ["a", "c"], [], None]))
    extended = replace(base, table=table, features={"shipped": "timestamp", "seen_with": "history"})
    fields = Fields(extended, ("item.shipped", "item.seen_with"))
    codes = fields(batch())
    start = fields.starts.tolist()
    # Items a and c were shipped 3 hours, and a day and 3 hours before the first request; item b has no time.
    assert (codes.candidate[:, 0] - start[0]).tolist() == [
        int(logarithmic(torch.tensor(4.0))),
        int(logarithmic(torch.tensor(28.0))),
        0,
    ]
    assert [[code - start[1] for code in row] for row in codes.candidate_bags[0].to_lists()] == [[2], [0], [1, 3]]
