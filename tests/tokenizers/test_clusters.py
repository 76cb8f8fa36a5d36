"""Clusters: what determines them, items without content or transitions, balance, new items, quality figures."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from support.planted_content import catalog_of, purity
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.components import build_component
from nextitem.core.config import parse
from nextitem.core.dataset import Dataset, Impressions, Users
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.pipeline.bundle import load_weights, save_weights
from nextitem.tokenizers.clusters import Clusters, ClustersConfig, attribute_codes
from nextitem.tokenizers.collisions import append_items, build_table
from nextitem.tokenizers.quality import QualityConfig, collapse_warning

ITEMS = 64
KIND = torch.arange(ITEMS) % 4  # content tells four kinds apart
SHELF = torch.arange(ITEMS) // 16  # users take items of one of four shelves, 16 items each


def content_of_kinds(noise: float = 0.05, *, count: int = ITEMS) -> Tensor:
    return torch.eye(8)[torch.arange(count) % 4] + noise * torch.randn(
        count, 8, generator=torch.Generator().manual_seed(3)
    )


def shelf_histories(*, users: int = 400, seed: int = 0) -> list[list[int]]:
    """Return the items 1..64 of users, each of whom takes six items of one shelf."""
    rng = np.random.default_rng(seed)
    return [(1 + 16 * (user % 4) + rng.permutation(16)[:6]).tolist() for user in range(users)]


def dataset_of(histories: list[list[int]], content: Tensor | None, *, items: int = ITEMS) -> Dataset:
    users = np.repeat(np.arange(1, len(histories) + 1), [len(row) for row in histories]).astype(np.int32)
    log = Interactions(
        users, np.array([item for row in histories for item in row], np.int32), max(1, len(histories)), items
    )
    catalog = catalog_of(torch.zeros(items, 1) if content is None else content)
    if content is None:
        catalog = replace(catalog, content=None)
    return Dataset("planted", log, catalog, Users(IdMap(pl.Series(["u"]))))


def fitted(train: Dataset, **settings: Any) -> Clusters:
    torch.manual_seed(0)
    model = Clusters(parse(ClustersConfig, settings, where="test"), train.catalog)
    model.fit(train)
    model.eval()
    return model


def codes_of(train: Dataset, **settings: Any) -> Tensor:
    return fitted(train, **settings).encode_catalog(train.catalog)


def test_content_transitions_or_both_determine_the_clusters() -> None:
    train = dataset_of(shelf_histories(), content_of_kinds())
    content_alone = codes_of(train, codebook_sizes=(4, 16), transition_weight=0)
    transitions_alone = codes_of(train, codebook_sizes=(4, 16), content_weight=0)
    assert purity(content_alone[:, :1], KIND) == 1
    assert purity(transitions_alone[:, :1], SHELF) == 1
    both = codes_of(train, codebook_sizes=(16, 4))
    assert purity(both[:, :1], KIND * 4 + SHELF) == 1
    assert purity(content_alone[:, :1], SHELF) < 0.5
    # The weights decide which of the two a coarse level follows.
    assert purity(codes_of(train, codebook_sizes=(4, 16), transition_weight=3)[:, :1], SHELF) == 1
    assert purity(codes_of(train, codebook_sizes=(4, 16), content_weight=3)[:, :1], KIND) == 1


def test_items_without_content_in_the_data_set_are_clustered_by_transitions() -> None:
    train = dataset_of(shelf_histories(), None)
    model = fitted(train, codebook_sizes=(4, 17))
    assert purity(model.encode_catalog(train.catalog)[:, :1], SHELF) == 1
    table = build_table(model, train.catalog)
    assert table.is_unique
    report = table.report or {}
    assert "reconstruction_error" not in report
    assert collapse_warning(report, QualityConfig()) is None
    assert model.decode(model.encode(torch.zeros(3, 0))).shape == (3, 0)
    with pytest.raises(UserError, match="made from content vectors"):
        fitted(train, transition_weight=0)


def test_an_item_that_lacks_one_part_is_placed_by_the_other() -> None:
    """Items 1 to 8 have no event, items 9 to 16 no content, item 17 neither; kinds and shelves are the same groups."""
    content, group = torch.eye(4)[SHELF] + 0.05 * torch.randn(ITEMS, 4), SHELF
    content[8:17] = 0
    histories = [[item for item in row if item > 8 and item != 17] for row in shelf_histories(users=800)]
    train = dataset_of(histories, content)
    codes = codes_of(train, codebook_sizes=(4, 16))
    is_placed = torch.arange(ITEMS) != 16
    assert purity(codes[is_placed, :1], group[is_placed]) == 1
    assert torch.bincount(codes[:, 0]).tolist() == [16] * 4  # item 17 takes the place that is left
    assert torch.equal(codes, codes_of(train, codebook_sizes=(4, 16)))


@pytest.mark.parametrize(("sizes", "largest"), [((4, 17), 16), ((3, 40), 22), ((16, 4), 4), ((4, 4, 4), 4)])
def test_sizes_of_levels_may_differ_and_clusters_have_equal_sizes(sizes: tuple[int, ...], largest: int) -> None:
    model = fitted(dataset_of(shelf_histories(), content_of_kinds()), codebook_sizes=sizes)
    assert model.codebook_sizes == sizes
    codes = model.encode_catalog(catalog_of(content_of_kinds()))
    counts = torch.unique(codes[:, :-1], dim=0, return_counts=True)[1]
    assert int(counts.max()) == largest
    assert int(counts.max() - counts.min()) <= 1
    assert len(torch.unique(codes, dim=0)) == ITEMS


def test_sizes_follow_from_the_number_of_items() -> None:
    assert fitted(dataset_of(shelf_histories(), content_of_kinds())).codebook_sizes == (8, 8)


def test_wrong_settings_are_explained() -> None:
    train = dataset_of([], content_of_kinds())
    with pytest.raises(UserError, match=r"has 63 codes for 64 items; use larger sizes, such as \(8, 8\), or omit"):
        fitted(train, codebook_sizes=(7, 9))
    for settings, message in (
        ({"content_weight": 0, "transition_weight": 0}, "leave nothing to cluster"),
        ({"codebook_sizes": [64]}, "two levels or more"),
        ({"codebook_sizes": [64, 0]}, "at least one code"),
    ):
        with pytest.raises(UserError, match=message):
            build_component("tokenizer", {"name": "clusters", **settings}, train.catalog)


def skewed_histories() -> list[list[int]]:
    """Return histories in which item n has about 100 / n events."""
    rng = np.random.default_rng(1)
    popularity = 1 / np.arange(1, ITEMS + 1)
    return [(1 + rng.choice(ITEMS, 8, replace=False, p=popularity / popularity.sum())).tolist() for _ in range(200)]


def test_clusters_of_equal_exposure_have_about_equal_numbers_of_events() -> None:
    train = dataset_of(skewed_histories(), content_of_kinds())
    counts = torch.from_numpy(train.interactions.item_counts()[1:]).double().clamp(min=1)
    exposures = {}
    for balance in ("size", "exposure", "plain"):
        model = fitted(train, codebook_sizes=(8, 8), balance=balance)
        codes = model.encode_catalog(train.catalog)
        exposures[balance] = torch.zeros(8, dtype=torch.float64).index_add_(0, codes[:, 0], counts)
        assert model.codebook_sizes == (8, max(8, int(torch.bincount(codes[:, 0]).max())))
        assert len(torch.unique(codes, dim=0)) == ITEMS
    share = float(counts.sum()) / 8
    assert float(exposures["exposure"].max()) <= share + float(counts.max()) / 2
    assert float(exposures["exposure"].std()) < 0.4 * float(exposures["size"].std())
    assert fitted(train, codebook_sizes=(8, 8), balance="exposure").codebook_sizes[1] > 8


def test_no_cluster_has_more_than_the_cap_of_the_mean_exposure() -> None:
    train = dataset_of(skewed_histories(), content_of_kinds())
    counts = torch.from_numpy(train.interactions.item_counts()[1:]).double().clamp(min=1)
    model = fitted(train, codebook_sizes=(6, 11), balance="exposure-capped")
    codes = model.encode_catalog(train.catalog)
    exposure = torch.bincount(codes[:, 0], counts)
    assert float(exposure.max() / exposure.mean()) <= 1.05
    assert model.figures(codes)["largest_exposure"] == [pytest.approx(float(exposure.max() / exposure.mean()))]
    plain = fitted(train, codebook_sizes=(6, 11), balance="plain")
    assert plain.figures(plain.encode_catalog(train.catalog))["largest_exposure"][0] > 1.3
    assert len(torch.unique(codes, dim=0)) == ITEMS


def test_logged_impressions_are_the_exposure() -> None:
    """Only items of the first kind are shown, so the cluster of that kind has to share them with the others."""
    train = dataset_of(shelf_histories(), content_of_kinds())
    settings = {"codebook_sizes": (4, 16), "transition_weight": 0, "balance": "exposure-capped", "exposure_cap": 1.1}
    by_events = codes_of(train, **settings)
    assert purity(by_events[:, :1], KIND) == 1
    items = np.repeat(np.arange(1, ITEMS + 1, 4, dtype=np.int32), 100)
    impressions = Impressions(np.arange(len(items)), items, np.zeros(len(items), np.int32), None, pl.DataFrame())
    by_impressions = codes_of(replace(train, impressions=impressions), **settings)
    assert torch.bincount(by_impressions[KIND == 0, 0], minlength=4).tolist() == [4, 4, 4, 4]


def test_items_of_a_cluster_are_numbered_by_their_events() -> None:
    train = dataset_of(skewed_histories(), content_of_kinds())
    counts = train.interactions.item_counts()[1:]
    codes = codes_of(train, codebook_sizes=(8, 8))
    for cluster in range(8):
        members = (codes[:, 0] == cluster).nonzero()[:, 0]
        numbers = counts[members[codes[members, 1].argsort()].numpy()]
        assert (np.diff(numbers) <= 0).all()


@pytest.mark.parametrize(
    ("settings", "is_from_events"),
    [
        ({}, True),
        ({"content_weight": 0}, True),
        ({"transition_weight": 0}, False),
        ({"transition_weight": 0, "balance": "exposure"}, True),
    ],
)
def test_it_says_whether_it_learns_from_events(settings: dict[str, Any], is_from_events: bool) -> None:
    assert Clusters.learns_from_events(parse(ClustersConfig, settings, where="test")) is is_from_events
    content = content_of_kinds()
    same = torch.equal(
        codes_of(dataset_of(shelf_histories(), content), **settings),
        codes_of(dataset_of(skewed_histories(), content), **settings),
    )
    assert same is not is_from_events


def test_an_item_decodes_to_its_content_and_a_free_code_to_that_of_its_cluster() -> None:
    content = torch.nn.functional.normalize(content_of_kinds(), dim=1)
    train = dataset_of(shelf_histories(), content)
    model = fitted(train, codebook_sizes=(4, 20), content_weight=3)
    codes = model.encode_catalog(train.catalog)
    torch.testing.assert_close(model.decode(codes), content)
    free = model.decode(torch.tensor([[cluster, 19] for cluster in range(4)]))
    means = torch.stack([content[codes[:, 0] == cluster].mean(0) for cluster in range(4)])
    torch.testing.assert_close(free, means)


def test_new_items_get_free_codes_of_the_clusters_with_the_nearest_content(tmp_path: Path) -> None:
    content = content_of_kinds()
    train = dataset_of(shelf_histories(), content)
    model = fitted(train, codebook_sizes=(4, 18), content_weight=3)
    table = build_table(model, train.catalog)
    save_weights(tmp_path / "tokenizer.safetensors", model)
    loaded = Clusters(model.config, train.catalog)
    load_weights(tmp_path / "tokenizer.safetensors", loaded)
    longer = append_items(loaded, table, catalog_of(torch.cat([content, content_of_kinds(0.2, count=8)])))
    assert torch.equal(longer.codes[: ITEMS + 1], table.codes)
    first_codes = longer.codes[1:, :1]
    assert purity(first_codes, torch.arange(ITEMS + 8) % 4) == 1
    assert longer.codes[-8:, 1].tolist() == [16] * 4 + [17] * 4
    assert longer.is_unique
    # No code is free any more: a new item shares that of the item with the nearest content.
    near = content[[5, 30]] * 2
    full = append_items(loaded, longer, catalog_of(torch.cat([content, content_of_kinds(0.2, count=8), near])))
    assert torch.equal(full.codes[-2:], table.codes[[6, 31]])


def test_new_items_without_content_go_where_codes_are_free() -> None:
    train = dataset_of(shelf_histories(), None)
    model = fitted(train, codebook_sizes=(4, 18))
    table = build_table(model, train.catalog)

    def append(count: int) -> Tensor:
        ids = pl.Series("item_id", [f"i{n}" for n in range(ITEMS + count)])
        return append_items(model, table, Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))).codes[ITEMS + 1 :]

    assert append(8).tolist() == [[cluster, number] for number in (16, 17) for cluster in range(4)]
    shared = append(8 + 128)
    assert torch.equal(shared[8:72], table.codes[1:])
    assert torch.equal(shared[72:], table.codes[1:])
    with_content = torch.cat([content_of_kinds(), torch.zeros(3, 8)])
    model = fitted(dataset_of(shelf_histories(), with_content[:ITEMS]), codebook_sizes=(4, 17))
    table = build_table(model, catalog_of(with_content[:ITEMS]))
    assert append_items(model, table, catalog_of(with_content)).codes[-3:].tolist() == [[0, 16], [1, 16], [2, 16]]


def test_the_report_counts_transitions_within_clusters() -> None:
    histories = [*shelf_histories(users=100), [1, 1, 20, 20, 5]]
    train = dataset_of(histories, content_of_kinds())
    model = fitted(train, codebook_sizes=(4, 16))
    codes = model.encode_catalog(train.catalog)
    pairs = [
        (earlier - 1, later - 1) for history in histories for earlier, later in pairwise(history) if earlier != later
    ]
    expected = sum(int(codes[a, 0] == codes[b, 0]) for a, b in pairs) / len(pairs)
    report = build_table(model, train.catalog).report or {}
    assert report["transitions_sharing_prefix"] == [pytest.approx(expected), 0]
    assert report["collision_rate"] == 0
    assert report["reconstruction_error"] < 1e-6
    assert "transitions_sharing_prefix" not in (
        build_table(fitted(train, transition_weight=0), train.catalog).report or {}
    )


def test_equal_content_is_no_collapse_if_transitions_tell_items_apart() -> None:
    content = torch.ones(ITEMS, 4)
    catalog = catalog_of(content)
    with_events = build_table(fitted(dataset_of(shelf_histories(), content)), catalog)
    assert collapse_warning(with_events.report or {}, QualityConfig()) is None
    without = build_table(fitted(dataset_of([], content)), catalog)
    assert collapse_warning(without.report or {}, QualityConfig()) is not None


def with_attribute(train: Dataset, values: list[Any], *, name: str = "kind") -> Dataset:
    table = train.catalog.table.with_columns(pl.Series(name, values))
    return train.with_catalog(replace(train.catalog, table=table))


def test_an_attribute_is_the_first_code_and_clusters_are_made_within_its_values() -> None:
    """Values are numbered in alphabetical order, items without one have the last number."""
    kinds = ["paint", None, "glue", "paper"]
    train = with_attribute(dataset_of(shelf_histories(), content_of_kinds()), [kinds[n % 4] for n in range(ITEMS)])
    model = fitted(train, attribute="kind")
    assert model.codebook_sizes == (4, 4, 4)
    codes = model.encode_catalog(train.catalog)
    assert codes[:4, 0].tolist() == [1, 3, 0, 2]
    assert torch.equal(codes[:, 0], codes[:4, 0][KIND])
    assert purity(codes[:, :2], KIND * 4 + SHELF) == 1  # transitions separate the shelves within a kind
    assert torch.equal(torch.unique(codes, dim=0, return_counts=True)[1], torch.ones(ITEMS, dtype=torch.int64))
    table = build_table(model, train.catalog)
    assert table.is_unique
    assert (table.report or {})["attribute_levels"] == 1
    torch.testing.assert_close(model.decode(codes), content_of_kinds(), atol=1e-5, rtol=1e-5)


def test_unequal_values_have_codes_for_the_largest() -> None:
    values = ["common"] * 50 + ["rare"] * 13 + ["single"]
    train = with_attribute(dataset_of(shelf_histories(), content_of_kinds()), values)
    model = fitted(train, attribute="kind")
    assert model.codebook_sizes == (3, 8, 8)
    codes = model.encode_catalog(train.catalog)
    for value, sizes in enumerate(([6, 6, 6, 6, 6, 6, 7, 7], [1, 1, 1, 2, 2, 2, 2, 2], [1])):
        members = codes[codes[:, 0] == value, 1]
        assert sorted(torch.bincount(members)[members.unique()].tolist()) == sizes
    assert fitted(train, attribute="kind", codebook_sizes=[2, 25]).codebook_sizes == (3, 2, 25)
    with pytest.raises(UserError, match="has 48 codes for 50 items with equal first codes"):
        fitted(train, attribute="kind", codebook_sizes=[2, 24])


@pytest.mark.parametrize("values", [["same"] * ITEMS, [None] * ITEMS], ids=["one value", "none"])
def test_an_attribute_with_one_value_changes_no_cluster_and_is_no_collapse(values: list[Any]) -> None:
    train = with_attribute(dataset_of(shelf_histories(), content_of_kinds()), values)
    model = fitted(train, attribute="kind")
    codes = model.encode_catalog(train.catalog)
    assert not codes[:, 0].any()
    assert torch.equal(codes[:, 1:], codes_of(train))
    report = build_table(model, train.catalog).report or {}
    assert collapse_warning(report, QualityConfig()) is None
    report["levels"][1] |= {"entropy_share": 0.1}
    assert "has collapsed" in (collapse_warning(report, QualityConfig()) or "")


def test_of_a_list_the_value_that_most_items_have_counts() -> None:
    lists: list[Any] = [["a", "z"], ["z", "b"], ["c", "z", "c"], ["b", "a"], [], None, ["q", None]]
    rows = lists + [["a"]] * 2 + [["new"], ["z", "new"]]
    catalog = catalog_of(torch.ones(len(rows), 1))
    catalog = replace(catalog, table=catalog.table.with_columns(pl.Series("tags", rows, dtype=pl.List(pl.String))))
    # Of the first nine items four have a, three z, two b, one c, one q; two have no value.
    assert attribute_codes(catalog, "tags", 9).tolist() == [0, 2, 2, 0, 3, 3, 1, 0, 0, -1, 2]


def test_a_column_that_the_items_lack_is_named() -> None:
    train = with_attribute(dataset_of([], content_of_kinds()), ["a"] * ITEMS)
    with pytest.raises(UserError, match=r'attribute = "colour" is not a column of the items; there are .*kind'):
        build_component("tokenizer", {"name": "clusters", "attribute": "colour"}, train.catalog)


def test_numbers_and_truth_values_are_attributes_too() -> None:
    train = dataset_of(shelf_histories(), content_of_kinds())
    for values in ([n % 2 for n in range(ITEMS)], [n % 2 == 1 for n in range(ITEMS)]):
        codes = codes_of(with_attribute(train, values), attribute="kind")
        assert torch.equal(codes[:, 0], torch.arange(ITEMS) % 2)


def test_new_items_go_below_their_own_value(tmp_path: Path) -> None:
    """Content tells one kind, the attribute another: the attribute decides, if one of the old items has its value."""
    content, names = content_of_kinds(), ["paint", "glue", "paper", "wood"]
    train = with_attribute(dataset_of(shelf_histories(), content), [names[n % 4] for n in range(ITEMS)])
    model = fitted(train, attribute="kind", codebook_sizes=(4, 8))
    save_weights(tmp_path / "tokenizer.safetensors", model)
    loaded = Clusters(model.config, train.catalog)
    load_weights(tmp_path / "tokenizer.safetensors", loaded)
    table = build_table(model, train.catalog)
    new = [names[(n + 1) % 4] for n in range(4)] + ["cloth", None, "paint"]
    later = catalog_of(torch.cat([content, content_of_kinds(count=6), torch.zeros(1, 8)]))
    values = [names[n % 4] for n in range(ITEMS)] + new
    later = replace(later, table=later.table.with_columns(pl.Series("kind", values)))
    longer = append_items(loaded, table, later)
    assert torch.equal(longer.codes[: ITEMS + 1], table.codes)
    first = dict(zip(["glue", "paint", "paper", "wood"], range(4), strict=True))
    expected = [first[names[(n + 1) % 4]] for n in range(4)] + [first["paint"], first["glue"], first["paint"]]
    assert longer.codes[ITEMS + 1 :, 0].tolist() == expected  # an unknown or missing value: by content
    assert longer.is_unique
