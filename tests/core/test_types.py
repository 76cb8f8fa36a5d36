"""Core data types: Interactions, Catalog, IdentifierTable, SequenceBatch, Recommendations, HistoryState."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.history_state import HistoryState, StaleStateError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations


def log(users: list[int], items: list[int], **fields: object) -> Interactions:
    return Interactions(np.array(users, np.int32), np.array(items, np.int32), 3, 4, **fields)  # type: ignore[arg-type]


def catalog(ids: list[str], **fields: object) -> Catalog:
    return Catalog(IdMap(pl.Series(ids)), pl.DataFrame({"item_id": ids}), **fields)  # type: ignore[arg-type]


def test_interactions_compute_offsets_of_users_and_counts_of_items() -> None:
    events = log([1, 1, 3], [4, 2, 2])
    assert events.offsets.tolist() == [0, 2, 2, 3]
    assert events.histories().to_lists() == [[4, 2], [], [2]]
    assert events.item_counts().tolist() == [0, 0, 2, 0, 1]


def test_events_without_item_or_not_positive_are_never_counted_as_targets() -> None:
    events = log([1, 1, 2], [4, 2, 0], positive=np.array([True, False, True]))
    assert events.item_counts().tolist() == [0, 0, 0, 0, 1]
    assert len(events.targets_only()) == 1


@pytest.mark.parametrize(("users", "items"), [([2, 1], [1, 1]), ([0, 1], [1, 1]), ([1, 4], [1, 1]), ([1, 2], [1, 5])])
def test_interactions_refuse_unsorted_users_and_numbers_out_of_range(users: list[int], items: list[int]) -> None:
    with pytest.raises(ValueError, match=r"sorted|lie in"):
        log(users, items)


def test_selecting_events_selects_the_rows_of_all_columns() -> None:
    events = log([1, 1, 2], [4, 2, 1], columns=pl.DataFrame({"price": [1.0, 2.0, 3.0]}), timestamps=np.array([1, 2, 3]))
    for rows in (np.array([False, True, True]), np.array([1, 2])):
        selected_events = events.select(rows)
        assert selected_events.columns["price"].to_list() == [2.0, 3.0]
        assert selected_events.timestamps is not None
        assert selected_events.timestamps.tolist() == [2, 3]


def test_columns_of_new_items_may_have_wider_numbers_but_no_other_type() -> None:
    ids = pl.Series("item_id", ["a", "b"])
    first = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids, "price": [9, 8]}), features={"price": "numeric"})
    longer = first.extend(pl.DataFrame({"item_id": ["c"], "price": [3.5], "brand": ["x"]}))
    assert longer.table["price"].to_list() == [9.0, 8.0, 3.5]
    assert longer.extend(pl.DataFrame({"item_id": ["d"], "price": [None]})).table["price"].to_list()[-1] is None
    numbers = pl.Series("item_id", [1, 2])
    with pytest.raises(UserError, match="whole numbers"):
        Catalog(IdMap(numbers), pl.DataFrame({"item_id": numbers})).extend(pl.DataFrame({"item_id": ["1A"]}))
    with pytest.raises(UserError, match="column 'price' of the new items is String"):
        first.extend(pl.DataFrame({"item_id": ["c"], "price": ["cheap"]}))
    # As for a CSV file whose new rows are not all integers: the column becomes text.
    sized = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids, "size": [9, 10]}), features={"size": "categorical"})
    wider = sized.extend(pl.DataFrame({"item_id": ["c"], "size": ["10.5"]}))
    assert wider.table["size"].to_list() == ["9", "10", "10.5"]
    assert wider.extend(pl.DataFrame({"item_id": ["d"], "size": [11]})).table["size"].to_list()[-1] == "11"


def test_extending_a_catalogue_does_not_renumber_items() -> None:
    longer = catalog(["b", "a"], text=pl.Series(["x", "y"])).extend(
        pl.DataFrame({"item_id": ["c"], "brand": ["new"]}), text=pl.Series(["z"])
    )
    assert longer.ids.external.to_list() == ["b", "a", "c"]
    assert longer.text is not None
    assert longer.text.to_list() == ["x", "y", "z"]
    with pytest.raises(ValueError, match="are there already"):
        longer.extend(pl.DataFrame({"item_id": ["a"]}), text=pl.Series(["?"]))


def test_catalogue_fingerprint_depends_on_ids_and_their_order_only() -> None:
    numbers = [
        Catalog(IdMap(pl.Series([1, 2], dtype=kind)), pl.DataFrame({"item_id": [1, 2]}))
        for kind in (pl.Int32, pl.Int64)
    ]
    assert numbers[0].fingerprint == numbers[1].fingerprint == catalog(["1", "2"]).fingerprint
    assert catalog(["2", "1"]).fingerprint != numbers[0].fingerprint


def test_identifier_tables_can_be_appended_to_saved_and_loaded(tmp_path: Path) -> None:
    table = IdentifierTable.from_item_codes(
        torch.tensor([[0, 1], [2, 1], [0, 1]]),
        codebook_sizes=(3, 2),
        catalog_fingerprint="f",
        report={"a": 1.5},
    )
    assert not table.is_unique
    longer = table.append(torch.tensor([[2, 0]]), catalog_fingerprint="g")
    longer.save(tmp_path)
    back = IdentifierTable.load(tmp_path)
    assert torch.equal(back.codes[:4], table.codes)
    assert (back.version, back.num_items, back.report, back.codebook_sizes) == (2, 4, {"a": 1.5}, (3, 2))
    (tmp_path / "identifiers.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"damaged.*tokenize"):
        IdentifierTable.load(tmp_path)
    with pytest.raises(UserError, match="nextitem tokenize"):
        IdentifierTable.load(tmp_path / "absent")


@pytest.mark.parametrize("codes", [[[3, 0]], [[0, 2]], [[-1, 0]]])
def test_codes_outside_their_codebook_are_refused(codes: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="codebook sizes"):
        IdentifierTable.from_item_codes(torch.tensor(codes), codebook_sizes=(3, 2), catalog_fingerprint="f")


def test_a_catalogue_refuses_identifiers_of_other_items() -> None:
    table = IdentifierTable.from_item_codes(torch.tensor([[0]]), codebook_sizes=(1,), catalog_fingerprint="other")
    with pytest.raises(ValueError, match="another catalogue"):
        catalog(["a"]).with_identifiers(table)


def test_selecting_requests_selects_the_rows_of_all_columns() -> None:
    batch = SequenceBatch(
        Jagged.from_rows([[1, 2], [], [3]]),
        user_ids=torch.tensor([7, 8, 9]),
        timestamps=Jagged.from_rows([[10, 20], [], [30]]),
        context={"hour": torch.tensor([1, 2, 3])},
        allowed=torch.tensor([[False, True, True, False]]),
        excluded=Jagged.from_rows([[1], [2], []]),
    )
    selected = batch.select(torch.tensor([2, 0]))
    assert selected.items.to_lists() == [[3], [1, 2]]
    assert selected.timestamps is not None
    assert selected.timestamps.to_lists() == [[30], [10, 20]]
    assert selected.context["hour"].tolist() == [3, 1]
    legal = selected.legal(3)
    assert legal is not None
    assert legal.tolist() == [[False, True, True, False], [False, False, True, False]]
    assert [part.num_requests for part in batch.split(2)] == [2, 1]
    assert batch.last(1).items.to_lists() == [[2], [], [3]]


def test_a_batch_refuses_columns_with_other_numbers_of_rows() -> None:
    with pytest.raises(ValueError, match="user_ids has 1 rows"):
        SequenceBatch(Jagged.from_rows([[1], [2]]), user_ids=torch.tensor([1]))
    with pytest.raises(ValueError, match="share the histories' offsets"):
        SequenceBatch(Jagged.from_rows([[1], [2]]), timestamps=Jagged.from_rows([[1, 2], [3]]))


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        ([[1, 0, 2]], [[3.0, 2.0, 1.0]], "tail"),
        ([[1, 2, 1]], [[3.0, 2.0, 1.0]], "repeated"),
        ([[1, 2, 3]], [[1.0, 2.0, 0.5]], "fall"),
        ([[1, 2, 3]], [[1.0, 0.5]], "must be"),
    ],
)
def test_recommendations_refuse_invalid_lists(ids: list[list[int]], scores: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recommendations(torch.tensor(ids), torch.tensor(scores))


def test_a_history_state_is_selected_and_moved_with_its_batch() -> None:
    state = HistoryState(torch.tensor([2, 1]), torch.tensor([[0.0], [1.0]]), {"hidden": torch.tensor([[5.0], [6.0]])})
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [3]]), state=state)
    moved = batch.select(torch.tensor([1, 0])).to("cpu").state
    assert moved is not None
    assert moved.lengths.tolist() == [1, 2]
    assert moved.cache["hidden"].tolist() == [[6.0], [5.0]]
    with pytest.raises(ValueError, match="state has 2 rows"):
        SequenceBatch(Jagged.from_rows([[1]]), state=state)
    with pytest.raises(ValueError, match="hidden has 1 rows"):
        HistoryState(torch.tensor([2, 1]), torch.zeros(2, 1), {"hidden": torch.zeros(1, 1)})


def test_concatenating_batches_concatenates_their_states() -> None:
    state = HistoryState(torch.tensor([2, 1]), torch.tensor([[5.0], [6.0]]), version="a")
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [3]]), state=state)
    fresh = SequenceBatch(Jagged.from_rows([[4]]))
    joined = SequenceBatch.concat([fresh, batch])
    assert joined.state is not None
    assert joined.state.lengths.tolist() == [0, 2, 1]
    assert joined.state.user_vectors.tolist() == [[0], [5], [6]]
    assert joined.state.version == "a"
    assert SequenceBatch.concat([fresh, fresh]).state is None
    later = replace(fresh, request_times=torch.tensor([7]), state=HistoryState.unread(1))
    filled = SequenceBatch.concat([batch, later], fill=True)
    assert filled.state is not None
    assert filled.state.lengths.tolist() == [2, 1, 0]


def test_history_states_can_be_concatenated_and_report_their_size() -> None:
    first = HistoryState(
        torch.tensor([2]), torch.ones(1, 3), {"keys": torch.ones(1, 2, 4)}, torch.tensor([1]), version="a"
    )
    second = HistoryState(torch.tensor([3]), torch.ones(1, 3), {"keys": torch.ones(1, 3, 4)}, version="a")
    joined = HistoryState.concat([first, HistoryState.unread(2), second])
    assert joined.lengths.tolist() == [2, 0, 0, 3]
    assert joined.starts.tolist() == [1, 0, 0, 0]
    assert joined.version == "a"
    assert joined.cache["keys"][:, :, 0].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert joined.user_vectors[:, 0].tolist() == [1, 0, 0, 1]
    assert first.num_bytes == 8 + 8 + 3 * 4 + 2 * 4 * 4
    assert HistoryState.unread(5).num_bytes == 80
    with pytest.raises(StaleStateError, match="cannot be joined"):
        HistoryState.concat([first, replace(second, version="b")])
    with pytest.raises(ValueError, match="no user vectors"):
        _ = HistoryState.unread(1).user_vectors
    with pytest.raises(StaleStateError, match="read the histories again"):
        first.check_version("b")
    HistoryState.unread(1).check_version("b")
    assert HistoryState.concat([HistoryState.unread(1), HistoryState.unread(2)]).vectors is None


def test_concatenating_batches_with_fill_adds_missing_columns() -> None:
    full = SequenceBatch(
        Jagged.from_rows([[1, 2], [3]]),
        user_ids=torch.tensor([7, 8]),
        actions=Jagged.from_rows([[1, 2], [1]]),
        timestamps=Jagged.from_rows([[10, 20], [30]]),
        request_times=torch.tensor([40, 50]),
        features={"price": Jagged.from_rows([[1, 2], [3]], dtype=torch.float32)},
        context={"user.age": torch.tensor([1.0, 2.0]), "user.hobbies": Jagged.from_rows([[1], [2, 3]])},
        excluded=Jagged.from_rows([[4], []]),
    )
    visitor = SequenceBatch(Jagged.from_rows([[5, 6]]), allowed=torch.ones(1, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="fill=True"):
        SequenceBatch.concat([full, visitor])
    both = SequenceBatch.concat([full, visitor], fill=True)
    assert both.items.to_lists() == [[1, 2], [3], [5, 6]]
    assert both.user_ids is not None
    assert both.user_ids.tolist() == [7, 8, 0]
    assert both.actions is not None
    assert both.actions.to_lists() == [[1, 2], [1], [0, 0]]
    assert both.timestamps is not None
    assert both.timestamps.to_lists() == [[10, 20], [30], [50, 50]]  # at the latest request of the others
    assert both.request_times is not None
    assert both.request_times.tolist() == [40, 50, 50]
    assert both.features["price"].values.isnan().tolist() == [False, False, False, True, True]
    assert both.context["user.age"].isnan().tolist() == [False, False, True]
    assert both.context["user.hobbies"].to_lists() == [[1], [2, 3], []]
    assert both.excluded is not None
    assert both.excluded.to_lists() == [[4], [], []]
    assert both.allowed is not None
    assert both.allowed.shape == (3, 9)
    assert bool(both.allowed.all())


@pytest.mark.parametrize("count", [1, 2, 3, 7, 99, 100, 101])
def test_a_sample_of_requests_is_evenly_spaced(count: int) -> None:
    batch = SequenceBatch(Jagged.from_rows([[number] for number in range(1, 101)]), user_ids=torch.arange(100))
    rows = batch.sample(count).user_ids
    assert rows is not None
    assert len(rows) == min(count, 100)
    steps = rows.diff()
    assert rows[0] == 0
    if count > 1:
        assert rows[-1] == 99
        assert steps.max() - steps.min() <= 1
    assert torch.equal(batch.sample(count).items.values, rows + 1)


def test_a_sample_of_more_than_2_to_the_24_requests_stays_in_range() -> None:
    count = 2**25 + 4  # torch.linspace(0, count - 1, 3) ends at count
    batch = SequenceBatch(
        Jagged(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64).expand(count + 1))
    )
    assert batch.num_requests == count
    assert batch.sample(3).num_requests == 3


def test_targets_are_positive_events_with_an_item() -> None:
    events = log([1, 1, 2], [3, 0, 1])
    assert events.is_target().tolist() == [True, False, True]
    assert events.with_items().item_ids.tolist() == [3, 1]
    marked = replace(events, positive=np.array([False, True, True]))
    assert marked.is_target().tolist() == [False, False, True]
    assert marked.targets_only().item_ids.tolist() == [1]
    assert marked.with_items().item_ids.tolist() == [3, 1]
    complete = events.with_items()
    assert complete.with_items() is complete
