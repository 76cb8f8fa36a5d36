"""Semantic IDs of LETTER, MiniOneRec and GRID: import, refused files, export, and import of the export."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.optional import not_none

import nextitem as ni
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.data.readers import dataset_from_frames
from nextitem.data.semantic_id_files import GRID_FILE, write_codes
from nextitem.pipeline.bundle import load_catalog, save_catalog
from nextitem.pipeline.foreign_ids import export_identifiers, import_identifiers
from nextitem.pipeline.tokenize import read_identifiers
from nextitem.testing.known_answers import planted_clusters


def shop(ids: list[str] | None = None) -> Dataset:
    """Return a data set of four items and two users."""
    items = pl.DataFrame({"item_id": ids or ["B00A", "B00B", "B00C", "B00D"], "title": ["red", "blue", "red", "green"]})
    log = pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": items["item_id"], "timestamp": [10, 20, 30, 40]})
    return dataset_from_frames({"interactions": log, "items": items})


INDEX = {
    "0": ["<a_183>", "<b_70>", "<c_6>"],
    "1": ["<a_183>", "<b_122>", "<c_5>"],
    "2": ["<a_183>", "<b_70>", "<c_6>"],
    "3": ["<a_9>", "<b_0>", "<c_255>"],
    "4": ["<a_1>", "<b_1>", "<c_1>"],
}
NUMBERS = "B00A\t0\nB00B\t1\nB00C\t2\nB00D\t3\nB00X\t4\n"


def test_an_index_with_item_numbers_is_read(tmp_path: Path) -> None:
    (tmp_path / "Beauty.index.json").write_text(json.dumps(INDEX))
    (tmp_path / "Beauty.item2id").write_text(NUMBERS)
    lines: list[str] = []
    file = tmp_path / "Beauty.index.json"
    table = import_identifiers(file, shop(), tmp_path / "ids", form="letter", log=lines.append)
    assert table.codes[1:].tolist() == [[183, 70, 6], [183, 122, 5], [183, 70, 6], [9, 0, 255]]
    assert table.codebook_sizes == (184, 123, 256)
    assert not table.is_unique
    assert any("item numbers are read from" in line for line in lines)
    assert any("left out 1 items" in line for line in lines)
    report = table.report or {}
    assert report["collision_rate"] == 0.5
    assert report["avoidable_collision_rate"] == 0, "both red items have the same content"
    assert "neighbours_sharing_prefix" in report
    assert "reconstruction_error" not in report
    loaded = read_identifiers(tmp_path / "ids", shop().catalog)
    assert torch.equal(loaded.codes, table.codes)
    with pytest.raises(UserError, match="is not empty"):
        import_identifiers(file, shop(), tmp_path / "ids", form="letter")
    import_identifiers(file, shop(), tmp_path / "ids", form="letter", overwrite=True)


def test_an_index_with_item_ids_as_keys_is_read(tmp_path: Path) -> None:
    data = shop(["0", "1", "2", "3"])
    (tmp_path / "x.index.epoch10.json").write_text(json.dumps(INDEX))
    table = import_identifiers(tmp_path, data, tmp_path / "ids", form="minionerec")
    assert table.codes[4].tolist() == [9, 0, 255]
    assert table.tokenizer == "minionerec"


def test_a_level_of_only_some_items_is_padded_and_noted(tmp_path: Path) -> None:
    index = {**INDEX, "0": [*INDEX["0"], "<d_1>"], "2": [*INDEX["2"], "<d_2>"]}
    (tmp_path / "x.index.json").write_text(json.dumps(index))
    lines: list[str] = []
    data = shop(["0", "1", "2", "3"])
    table = import_identifiers(tmp_path / "x.index.json", data, tmp_path / "ids", form="minionerec", log=lines.append)
    assert table.codes[1:, 3].tolist() == [1, 0, 2, 0]
    assert table.is_unique
    assert any("3 items have fewer than 4 codes" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": ["<a_1>", "<b_2>"', "is no JSON of semantic IDs, or is truncated"),
        ('{"0": ["<a_1>"], "0": ["<a_2>"]}', "the key '0' occurs twice"),
        ("[]", "is no table of semantic IDs"),
        ("{}", "is no table of semantic IDs"),
        ('{"0": "<a_1>"}', "item '0': '<a_1>' is no list of codes"),
        ('{"0": []}', "is no list of codes"),
        ('{"0": ["<b_1>"]}', "'<b_1>' is no code of level 1, such as <a_12>"),
        ('{"0": ["<a_1>", "<a_2>"]}', "'<a_2>' is no code of level 2, such as <b_12>"),
        ('{"0": ["<a_99999999999>"]}', "is no code of level 1"),
        ('{"0": ["<a_999999999>"]}', "is no code of level 1"),
        ('{"0": ["<a_-1>"]}', "is no code of level 1"),
        ('{"0": ["<a_1>"]}', "4 of 4 items of the data have no codes, for example 'B00A'; its keys are 0"),
    ],
)
def test_json_of_another_format_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.index.json").write_text(content)
    with pytest.raises(UserError, match=message):
        import_identifiers(tmp_path / "x.index.json", shop(), tmp_path / "ids", form="letter")
    assert not (tmp_path / "ids").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("B00A 0\n", "line 1 is not item id, tab, number: 'B00A 0'"),
        ("B00A\t0\nB00B\tone\n", "line 2 is not item id, tab, number"),
        ("B00A\t0\nB00B\t0\n", "line 2: number 0 is already that of 'B00A'"),
    ],
)
def test_malformed_tables_of_item_numbers_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.index.json").write_text(json.dumps(INDEX))
    (tmp_path / "numbers.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        import_identifiers(
            tmp_path / "x.index.json",
            shop(),
            tmp_path / "ids",
            form="letter",
            item_ids=tmp_path / "numbers.txt",
        )


CODES = torch.tensor([[5, 1, 0], [5, 1, 1], [2, 7, 0], [0, 0, 0]])


@pytest.mark.parametrize("tensor", [CODES.T.contiguous(), CODES.T, CODES.T.float(), CODES, CODES.to(torch.int32).T])
def test_a_tensor_of_grid_is_read(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save(tensor, tmp_path / GRID_FILE)
    (tmp_path / "numbers").write_text(NUMBERS.replace("B00X\t4\n", ""))
    table = import_identifiers(tmp_path, shop(), tmp_path / "ids", form="grid", item_ids=tmp_path / "numbers")
    assert table.codes[1:].tolist() == CODES.tolist()
    assert table.codebook_sizes == (6, 8, 2)


class Malicious:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    torch.save({"codes": CODES, "more": Malicious(tmp_path / "evil")}, tmp_path / "a.pt")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Malicious(tmp_path / "evil")))
    for file in ("a.pt", "b.pkl"):
        with pytest.raises(UserError, match="reading it could run code, so it is not read"):
            import_identifiers(tmp_path / file, shop(), tmp_path / "ids", form="grid")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.rand(4, 8), "contains real numbers: these are GRID's embeddings"),
        (torch.zeros(3), r"contains a tensor \(3,\)"),
        ({"codes": CODES}, "contains dict; semantic IDs of GRID are a tensor"),
        (-CODES, "contains codes below 0"),
        (torch.full((3, 4), float("nan")), "contains real numbers"),
    ],
)
def test_tensors_without_codes_are_refused(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        import_identifiers(tmp_path / "x.pt", shop(["0", "1", "2", "3"]), tmp_path / "ids", form="grid")


@pytest.mark.parametrize("content", [b"", b"no tensor", b"PK\x03\x04" + bytes(50)])
def test_a_file_without_a_tensor_raises_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt: (is no tensor of torch|contains more than a tensor)"):
        import_identifiers(tmp_path / "x.pt", shop(), tmp_path / "ids", form="grid")
    torch.save(torch.arange(10_000).reshape(2, -1), tmp_path / "whole.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:4000])
    with pytest.raises(UserError, match="is no tensor of torch, or is truncated"):
        import_identifiers(tmp_path / "x.pt", shop(), tmp_path / "ids", form="grid")


@pytest.mark.parametrize("form", ["letter", "minionerec", "grid"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_exported_identifiers_can_be_imported_again(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    num_items, num_levels = data.draw(st.integers(2, 30)), data.draw(st.integers(1, 5))
    rows = data.draw(
        st.lists(
            st.lists(st.integers(0, 300), min_size=num_levels, max_size=num_levels),
            min_size=num_items,
            max_size=num_items,
        )
    )
    names = sorted(f"item {number} \u30cf,'" for number in range(num_items))
    ids = pl.Series("item_id", names)
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids, "title": ids}))
    table = IdentifierTable.from_item_codes(
        torch.tensor(rows), codebook_sizes=(301,) * num_levels, catalog_fingerprint=catalog.fingerprint
    )
    save_catalog(folder, catalog.with_identifiers(table))
    target = export_identifiers(folder, form=form, out=folder / "out" / "Shop")
    log = pl.DataFrame({"user_id": [1, 2] * num_items, "item_id": names * 2, "timestamp": range(2 * num_items)})
    dataset = dataset_from_frames({"interactions": log, "items": catalog.table})
    imported = import_identifiers(target, dataset, folder / "back", form=form, item_ids=target / "Shop.item2id")
    assert torch.equal(imported.codes, table.codes)
    assert torch.equal(not_none(load_catalog(folder / "back").identifiers).codes, table.codes)


def test_exported_files_have_the_formats_of_the_other_projects(tmp_path: Path) -> None:
    dataset = shop()
    codes = torch.tensor([[1, 0], [1, 1], [0, 2], [3, 0]])
    table = IdentifierTable.from_item_codes(
        codes, codebook_sizes=(4, 3), catalog_fingerprint=dataset.catalog.fingerprint
    )
    for form in ("minionerec", "grid"):
        (tmp_path / form / "Office").mkdir(parents=True)
        write_codes(table, dataset.catalog, tmp_path / form / "Office", form=form)
    folder = tmp_path / "minionerec" / "Office"
    assert json.loads((folder / "Office.index.json").read_text()) == {
        "0": ["<a_1>", "<b_0>"],
        "1": ["<a_1>", "<b_1>"],
        "2": ["<a_0>", "<b_2>"],
        "3": ["<a_3>", "<b_0>"],
    }
    assert json.loads((folder / "Office.item.json").read_text())["1"] == {"title": "blue", "description": "blue"}
    assert (folder / "Office.item2id").read_text() == "B00A\t0\nB00B\t1\nB00C\t2\nB00D\t3\n"
    saved = torch.load(tmp_path / "grid" / "Office" / GRID_FILE, weights_only=True)
    assert (saved.dtype, saved.tolist()) == (torch.int64, [[1, 1, 0, 3], [0, 1, 2, 0]])


def test_identifiers_that_cannot_be_exported_raise_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no semantic IDs; create them with: nextitem tokenize"):
        export_identifiers(tmp_path, form="letter", out=tmp_path / "out")
    with pytest.raises(UserError, match="--format 'onerec': choose one of letter, minionerec, grid"):
        export_identifiers(tmp_path, form="onerec", out=tmp_path / "out")
    dataset = shop()
    table = IdentifierTable.from_item_codes(
        torch.zeros(4, 27), codebook_sizes=(1,) * 27, catalog_fingerprint=dataset.catalog.fingerprint
    )
    with pytest.raises(UserError, match="has letters for 26 levels, and there are 27"):
        write_codes(table, dataset.catalog, tmp_path, form="letter")


def test_a_model_trains_on_imported_identifiers(tmp_path: Path) -> None:
    dataset = planted_clusters()
    items = dataset.catalog.ids.external.cast(pl.String).to_list()
    index = {item: [f"<a_{number // 6}>", f"<b_{number % 6}>"] for number, item in enumerate(items)}
    (tmp_path / "x.index.json").write_text(json.dumps(index))
    import_identifiers(tmp_path / "x.index.json", dataset, tmp_path / "ids", form="letter")
    run = ni.train(
        "tiger",
        dataset,
        out=tmp_path / "run",
        recipe="debug/tiger",
        ids=tmp_path / "ids",
        settings={"training.max_epochs": 1},
    )
    assert run.model.identifiers is not None
    assert run.model.identifiers.codes[1:].tolist() == [[number // 6, number % 6] for number in range(len(items))]
    export_identifiers(tmp_path / "run", form="grid", out=tmp_path / "exported")
    assert (tmp_path / "exported" / GRID_FILE).is_file()
