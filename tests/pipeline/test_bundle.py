"""Bundles: saved weights and catalogues load as they were, for buffers of any size; damaged files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.pipeline.bundle import load_catalog, load_weights, save_catalog, save_weights


class Net(nn.Module):
    neighbours: Tensor

    def __init__(self, *, tied: bool = True, width: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(4, width)
        self.out = nn.Linear(width, 4, bias=False)
        if tied:
            self.out.weight = self.table.weight
        self.register_buffer("neighbours", torch.empty(0, dtype=torch.int64))


def test_tied_weights_and_buffers_of_any_size_are_restored(tmp_path: Path) -> None:
    saved_net = Net()
    saved_net.neighbours = torch.arange(5)
    save_weights(tmp_path / "w.safetensors", saved_net)
    loaded_net = Net()
    load_weights(tmp_path / "w.safetensors", loaded_net)
    assert torch.equal(loaded_net.out.weight, saved_net.table.weight)
    assert loaded_net.out.weight is loaded_net.table.weight
    assert torch.equal(loaded_net.neighbours, saved_net.neighbours)


@pytest.mark.parametrize("other", [Net(tied=False), Net(width=5), nn.Linear(2, 2)])
def test_weights_of_another_model_are_refused(tmp_path: Path, other: nn.Module) -> None:
    save_weights(tmp_path / "w.safetensors", Net())
    with pytest.raises(UserError, match=r"lacks|fit|version"):
        load_weights(tmp_path / "w.safetensors", other)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x10\x00")
    for name in ("w", "absent"):
        with pytest.raises(UserError, match=f"{name}.safetensors is missing or damaged"):
            load_weights(tmp_path / f"{name}.safetensors", Net())


def test_a_catalogue_is_restored_completely(tmp_path: Path) -> None:
    table = pl.DataFrame({"item_id": [9, 4], "title": ["é", None], "tags": [["a"], []]})
    catalog = Catalog(
        IdMap(table["item_id"]),
        table,
        features={"tags": "categorical-list"},
        text=pl.Series(["é", ""]),
        content=torch.tensor([[0.0, 0], [1, 2], [3, 4]]),
        released_ms=np.array([5, 6]),
    )
    codes = IdentifierTable.from_item_codes(
        torch.tensor([[0], [1]]), codebook_sizes=(2,), catalog_fingerprint=catalog.fingerprint
    )
    save_catalog(tmp_path, catalog.with_identifiers(codes))
    loaded = load_catalog(tmp_path)
    assert loaded.fingerprint == catalog.fingerprint
    assert loaded.table.equals(catalog.table)
    assert loaded.features == catalog.features
    assert loaded.text is not None
    assert loaded.text.to_list() == ["é", ""]
    assert loaded.content is not None
    assert loaded.content.tolist() == [[0, 0], [1, 2], [3, 4]]
    assert loaded.released_ms is not None
    assert loaded.released_ms.tolist() == [5, 6]
    assert loaded.identifiers is not None
    assert torch.equal(loaded.identifiers.codes, codes.codes)
    (tmp_path / "catalog.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"catalog.parquet is missing or damaged"):
        load_catalog(tmp_path)


def test_identifiers_of_another_catalogue_are_refused(tmp_path: Path) -> None:
    for num_items in (3, 2):
        ids = pl.Series("item_id", range(num_items))
        catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
        codes = torch.arange(num_items)[:, None]
        table = IdentifierTable.from_item_codes(codes, codebook_sizes=(9,), catalog_fingerprint=catalog.fingerprint)
        save_catalog(tmp_path, catalog if num_items == 2 else catalog.with_identifiers(table))
    with pytest.raises(UserError, match="another catalogue"):
        load_catalog(tmp_path)
