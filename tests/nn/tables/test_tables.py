"""Tests of the layer of tables: dense, hashed, the sketch of counts, and the keys of items."""

from __future__ import annotations

import polars as pl
import pytest
import torch
from torch import nn

from nextitem.core.catalog import Catalog
from nextitem.core.ids import IdMap, stable_keys
from nextitem.nn.tables.count_sketch import CountSketch
from nextitem.nn.tables.growing import GrowingTable
from nextitem.nn.tables.hashed import HashedTable
from nextitem.nn.tables.kinds import DenseRows, GrowingRows, HashedRows
from nextitem.nn.tables.tables import DenseTable, item_keys, item_table


def catalog_of(ids: list[str]) -> Catalog:
    series = pl.Series("item_id", ids)
    return Catalog(IdMap(series), pl.DataFrame({"item_id": series}))


def test_a_dense_table_is_an_embedding() -> None:
    torch.manual_seed(0)
    table = item_table(DenseRows(), catalog_of(["a", "b"]), 4)
    torch.manual_seed(0)
    embedding = nn.Embedding(3, 4, padding_idx=0)
    assert isinstance(table, DenseTable)
    assert list(table.state_dict()) == ["weight"]
    assert torch.equal(table.weight, embedding.weight)
    assert table.all_vectors() is table.weight
    codes, offsets = torch.tensor([1, 2, 2]), torch.tensor([0, 2])
    torch.testing.assert_close(table.means(codes, offsets)[0], table.weight[1:].mean(0))


def test_the_key_of_an_item_depends_on_its_external_id_alone() -> None:
    keys = item_keys(pl.Series(["x", "y"]))
    assert keys.tolist() == [0, *stable_keys(["x", "y"]).tolist()]
    assert item_keys(pl.Series(["y", "z", "x"]))[[3, 1]].tolist() == keys[1:].tolist()


def test_an_item_has_the_same_vector_in_a_larger_catalogue() -> None:
    for config in (GrowingRows(), HashedRows(rows=50)):
        torch.manual_seed(0)
        table = item_table(config, catalog_of(["x", "y"]), 4)
        table.observe(torch.tensor([1]))
        if isinstance(table, GrowingTable):
            table.after_step()
        larger = item_table(config, catalog_of(["w", "x", "y", "z"]), 4)
        larger.load_state_dict(table.state_dict())
        assert torch.equal(larger(torch.tensor([0, 2, 3])), table(torch.tensor([0, 1, 2])))
        assert torch.equal(larger.all_vectors()[[0, 2, 3]], table.all_vectors())


def test_a_hashed_vector_is_the_sum_of_its_rows() -> None:
    torch.manual_seed(0)
    table = HashedTable(HashedRows(rows=7, hashes=3), 4)
    ids = torch.tensor([[5, -5], [0, 2**62]])
    rows = table.rows_of(ids)
    assert rows.shape == (2, 2, 3)
    assert int(rows.max()) <= 7
    assert rows[1, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(table(ids), table.weight[rows].sum(-2))
    assert table(ids)[1, 0].tolist() == [0, 0, 0, 0]


def test_hash_functions_make_collisions_rare_and_rows_even() -> None:
    table = HashedTable(HashedRows(rows=1000, hashes=2), 1)
    rows = table.rows_of(torch.arange(1, 20_001))
    counts = torch.bincount(rows.flatten(), minlength=1001)[1:].float()
    assert float((counts - 40).square().mean()) == pytest.approx(40, rel=0.2)
    # 20,000 ids are 2 * 10^8 pairs, which share both of their rows with the probability of 10^-6.
    num_distinct = len(torch.unique(rows, dim=0))
    assert 20_000 - num_distinct == pytest.approx(200, abs=60)


def test_a_hashed_gradient_reaches_the_rows_that_were_read_alone() -> None:
    table = HashedTable(HashedRows(rows=9, hashes=2), 2)
    ids = torch.tensor([3, 0])
    table(ids).sum().backward()
    assert table.weight.grad is not None
    gradient = table.weight.grad.to_dense()
    expected = torch.zeros(10, 2).index_add_(0, table.rows_of(ids)[0], torch.ones(2, 2))
    assert torch.equal(gradient, expected)


def test_the_sketch_is_exact_without_collisions_and_never_too_small() -> None:
    sketch, generator = CountSketch(64 * 64), torch.Generator().manual_seed(0)
    truth = torch.zeros(400, dtype=torch.int64)
    for _ in range(20):
        ids = torch.randperm(400, generator=generator)[:50]
        counts = torch.randint(1, 4, (50,), generator=generator)
        truth[ids] += counts
        assert bool((sketch.add(ids, counts) >= truth[ids]).all())
    assert torch.equal(sketch.estimate(torch.arange(400)), truth)
    crowded = CountSketch(64)  # one cell for each slice: ids of a slice are counted together
    crowded.add(torch.arange(400), truth)
    assert bool((crowded.estimate(torch.arange(400)) >= truth).all())
    assert int(crowded.estimate(torch.tensor([0]))) > int(truth[0])


def test_the_sketch_needs_whole_slices() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        CountSketch(100)
