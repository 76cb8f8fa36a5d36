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
from nextitem.core.dataset import Dataset, Users
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.pipeline.bundle import load_weights, save_weights
from nextitem.tokenizers.clusters import Clusters, ClustersConfig
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
