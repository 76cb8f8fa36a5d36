"""Requests from external ids of items and users, and filters on the items."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from support.trained_models import rich_run

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.data.requests import RequestBuilder
from nextitem.pipeline.recommend import Filters, allowed_items, answer_table, history_requests, user_requests
from nextitem.testing.known_answers import planted_clusters


def catalog() -> Catalog:
    table = pl.DataFrame({"item_id": [5, 6, 7], "tags": [["a", "b"], [], ["b"]], "size": [1, None, 2]})
    return Catalog(IdMap(table["item_id"]), table)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(only=("tags=b",)), [1, 3]),
        (Filters(only=("size=2",)), [3]),
        (Filters(only=("tags=b", "size=1")), [1]),
        (Filters(exclude_items=("6", "99")), [1, 3]),
    ],
)
def test_filters_allow_the_matching_items(filters: Filters, expected: list[int]) -> None:
    mask = allowed_items(catalog(), filters)
    assert mask is not None
    assert mask[0].nonzero()[:, 0].tolist() == expected


def test_without_filters_there_is_no_mask() -> None:
    assert allowed_items(catalog(), Filters()) is None


def test_histories_accept_ids_of_any_type_and_return_unknown_ones() -> None:
    requests, skipped = history_requests(["6", 5], catalog())
    assert (requests.items.to_lists(), skipped) == ([[2, 1]], ())
    requests, skipped = history_requests(["x", "6", "9", 7], catalog())
    assert (requests.items.to_lists(), skipped) == ([[2, 3]], ("x", "9"))
    with pytest.raises(UserError, match="no item is called x, 9; item ids look like 5, 6, 7"):
        history_requests(["x", "9"], catalog())
    assert history_requests([], catalog())[0].items.to_lists() == [[]]


def test_requests_of_users_contain_their_whole_history() -> None:
    dataset = planted_clusters()
    all_users = user_requests(dataset, None)
    assert all_users.num_requests == 80
    one_user = user_requests(dataset, ["u3"])
    assert one_user.items.to_lists() == [all_users.items.to_lists()[2]]
    assert one_user.user_ids is not None
    assert one_user.user_ids.tolist() == [dataset.users.keys[3]]
    assert one_user.timestamps is not None
    assert one_user.timestamps.values.shape == one_user.items.values.shape


def test_a_table_of_lists_is_made_from_a_data_set_or_a_builder() -> None:
    run = rich_run("item-cf")
    options: dict[str, Any] = {"k": 3, "exclude_seen": True, "filters": Filters()}
    by_data = answer_table(run.model, run.dataset, None, **options)
    assert by_data.equals(answer_table(run.model, RequestBuilder(run.dataset), None, **options))
    assert by_data.height > 0
