"""The folder appears only when it is complete, an existing one is replaced only with --overwrite, checksums."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from support.layouts import Files, Layouts

from nextitem.core.errors import UserError
from nextitem.data.importers.importing import import_dataset
from nextitem.data.importers.names import DATASETS, IDENTIFIERS, find_importer
from nextitem.data.readers import load_dataset

CSV: Files = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484000\n2,2,1,1112480000\n",
    "movies.csv": "movieId,title,genres\n2,Jumanji (1995),Adventure\n29,City,Drama\n",
}


def test_a_failed_import_leaves_no_files(layouts: Layouts, tmp_path: Path) -> None:
    broken: Files = {**CSV, "movies.csv": "movieId,name\n1,2\n"}
    with pytest.raises(UserError, match="has no column 'title'"):
        import_dataset("ml-latest", [layouts.folder(broken)], tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download"]


def test_files_of_an_interrupted_import_are_removed(layouts: Layouts, tmp_path: Path) -> None:
    (tmp_path / ".data.importing" / ".scratch").mkdir(parents=True)
    (tmp_path / ".data.importing" / "interactions.parquet").write_text("half")
    import_dataset("ml-latest", [layouts.folder(CSV)], tmp_path / "data")
    assert len(load_dataset(tmp_path / "data").interactions) == 3
    assert not (tmp_path / ".data.importing").exists()


def test_an_existing_folder_is_replaced_only_with_overwrite(layouts: Layouts, tmp_path: Path) -> None:
    source, out = layouts.folder(CSV), tmp_path / "data"
    import_dataset("ml-latest", [source], out)
    before = (out / "interactions.parquet").stat().st_mtime_ns
    with pytest.raises(UserError, match="is not empty; choose another --out, or add --overwrite"):
        import_dataset("ml-latest", [source], out)
    messages: list[str] = []
    import_dataset("ml-latest", [source], out, resume=True, log=messages.append)
    assert (out / "interactions.parquet").stat().st_mtime_ns == before
    assert messages == [f"{out} is complete already"]
    import_dataset("ml-latest", [source], out, overwrite=True)
    assert (out / "interactions.parquet").stat().st_mtime_ns != before
    with pytest.raises(UserError, match="exclude each other"):
        import_dataset("ml-latest", [source], out, overwrite=True, resume=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.doc").write_text("x")
    with pytest.raises(UserError, match="contains something else than a data set"):
        import_dataset("ml-latest", [source], tmp_path / "thesis", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        import_dataset("ml-latest", [source], source / "ratings.csv")


def test_the_source_is_never_replaced(layouts: Layouts) -> None:
    source = layouts.folder({**CSV, "dataset.toml": ""})
    with pytest.raises(UserError, match="lies in --out"):
        import_dataset("ml-latest", [source], source, overwrite=True)
    with pytest.raises(UserError, match="lies in --out"):
        import_dataset("ml-latest", [source / "ratings.csv"], source, overwrite=True)
    assert (source / "ratings.csv").is_file()


def test_the_checksum_beside_an_archive_is_compared(layouts: Layouts, tmp_path: Path) -> None:
    archive = layouts.zip(CSV, "ml-latest.zip")
    beside = archive.with_name("ml-latest.zip.md5")
    beside.write_text(f"MD5 (ml-latest.zip) = {hashlib.md5(archive.read_bytes()).hexdigest()}\n")
    import_dataset("ml-latest", [archive], tmp_path / "data")
    beside.write_text(f"{'0' * 32}  ml-latest.zip\n")
    with pytest.raises(UserError, match=r"its MD5 is [0-9a-f]{32}, ml-latest\.zip\.md5 lists 0{32}"):
        import_dataset("ml-latest", [archive], tmp_path / "again")


def test_unknown_names_and_missing_files_are_refused_with_a_hint(layouts: Layouts, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no importer 'ml_1m'; did you mean ml-1m\? there are: ml-100k"):
        import_dataset("ml_1m", [tmp_path], tmp_path / "data")
    with pytest.raises(UserError, match="give the file or folder: steam_reviews"):
        import_dataset("steam", [], tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"contains no steam_reviews\.json; steam expects .* it contains no file"):
        import_dataset("steam", [tmp_path / "empty"], tmp_path / "data")
    boxed = layouts.folder({"ml-latest.zip": layouts.zip(CSV).read_bytes()}, "boxed")
    with pytest.raises(UserError, match=r"give the archive itself: .*boxed/ml-latest\.zip"):
        import_dataset("ml-latest", [boxed], tmp_path / "data")
    with pytest.raises(UserError, match="it looks like recbole: nextitem import recbole"):
        import_dataset("ml-1m", [layouts.folder({"a.inter": "x"}, "atomic")], tmp_path / "data")
    with pytest.raises(
        UserError, match=r"contains no events\.csv.*looks like ml-20m, ml-25m, .*: nextitem import ml-20m"
    ):
        import_dataset("retailrocket", [layouts.zip(CSV)], tmp_path / "data")


def test_every_importer_can_be_loaded_and_is_documented() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    for name, entry in DATASETS.items():
        assert callable(find_importer(name).load())
        assert entry.files, name
    for name in (*DATASETS, *IDENTIFIERS):
        assert f"`{name}`" in docs, f"docs/data.md does not list {name}"


def test_the_list_of_names_loads_nothing_else() -> None:
    heavy = ["polars", "torch", "pyarrow"]
    code = f"import sys, nextitem.cli.import_data; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
