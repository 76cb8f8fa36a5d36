"""Bundles: what is written comes back, whatever the buffers' sizes; damage is named."""

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


def test_tied_weights_and_buffers_of_any_size_come_back(tmp_path: Path) -> None:
    net = Net()
    net.neighbours = torch.arange(5)
    save_weights(tmp_path / "w.safetensors", net)
    other = Net()
    load_weights(tmp_path / "w.safetensors", other)
    assert torch.equal(other.out.weight, net.table.weight)
    assert other.out.weight is other.table.weight
    assert torch.equal(other.neighbours, net.neighbours)


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


def test_a_catalogue_comes_back_whole(tmp_path: Path) -> None:
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
    back = load_catalog(tmp_path)
    assert back.fingerprint == catalog.fingerprint
    assert back.table.equals(catalog.table)
    assert back.features == catalog.features
    assert back.text is not None
    assert back.text.to_list() == ["é", ""]
    assert back.content is not None
    assert back.content.tolist() == [[0, 0], [1, 2], [3, 4]]
    assert back.released_ms is not None
    assert back.released_ms.tolist() == [5, 6]
    assert back.identifiers is not None
    assert torch.equal(back.identifiers.codes, codes.codes)
    (tmp_path / "catalog.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"catalog.parquet is missing or damaged"):
        load_catalog(tmp_path)


def test_identifiers_of_another_catalogue_are_named(tmp_path: Path) -> None:
    for count in (3, 2):
        ids = pl.Series("item_id", range(count))
        catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
        codes = torch.arange(count)[:, None]
        table = IdentifierTable.from_item_codes(codes, codebook_sizes=(9,), catalog_fingerprint=catalog.fingerprint)
        save_catalog(tmp_path, catalog if count == 2 else catalog.with_identifiers(table))
    with pytest.raises(UserError, match="another catalogue"):
        load_catalog(tmp_path)
