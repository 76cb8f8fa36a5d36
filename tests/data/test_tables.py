"""Tables: paths with any name, folders of part files, and errors of the operating system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nextitem.core.errors import UserError
from nextitem.data import tables
from nextitem.data.readers import dataset_from_frames, load_dataset

LOG = pl.DataFrame(
    [(u, f"i{(u + k) % 5}", 1_700_000_000 + 60 * k + u) for u in range(6) for k in range(4)],
    schema=["user_id", "item_id", "timestamp"],
    orient="row",
)
ITEMS = pl.DataFrame({"item_id": [f"i{j}" for j in range(5)]})


def write_parts(folder: Path, parts: dict[str, pl.DataFrame]) -> Path:
    """Write a dataset folder whose log is a folder of part files, and return its path."""
    for name, part in parts.items():
        file = folder / "interactions.parquet" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(file)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a[b]", "a*", "a?", "{x}", "run=3", "100%25", "with space", "Ünï"])
def test_names_of_folders_are_not_patterns(tmp_path: Path, name: str) -> None:
    for ending, write in (("parquet", LOG.write_parquet), ("csv", LOG.write_csv)):
        folder = tmp_path / name / ending
        folder.mkdir(parents=True)
        write(folder / f"interactions.{ending}")
        ITEMS.write_csv(folder / "items.csv")
        (folder / "dataset.toml").write_text("repeats = false")
        dataset = load_dataset(folder)
        assert (len(dataset.interactions), dataset.catalog.num_items, dataset.repeats) == (24, 5, False)
        assert dataset.interactions.columns.columns == []
    folder = write_parts(tmp_path / name / "parts", {"part-0.parquet": LOG[:12], "part-1.parquet": LOG[12:]})
    (folder / "dataset.toml").write_text("repeats = false")
    assert load_dataset(folder).fingerprint == dataset.fingerprint


def test_part_files_of_spark_are_read(tmp_path: Path) -> None:
    folder = write_parts(tmp_path, {"part-00000-x.snappy.parquet": LOG[:12], "part-00001-x.snappy.parquet": LOG[12:]})
    table = folder / "interactions.parquet"
    (table / "_SUCCESS").touch()
    (table / ".part-00000-x.snappy.parquet.crc").write_bytes(b"crc")
    (table / "_temporary").mkdir()
    LOG.write_parquet(table / "_temporary" / "half.parquet")
    assert load_dataset(folder).fingerprint == dataset_from_frames({"interactions": LOG}).fingerprint


def test_partitions_are_columns_with_their_digits(tmp_path: Path) -> None:
    log = LOG.with_columns(pl.col("user_id").map_elements(lambda user: f"{user:03}", pl.String))
    parts = {
        f"user_id={user}/day=2024-05-31/part-0.parquet": log.filter(pl.col("user_id") == user).drop("user_id")
        for user in log["user_id"].unique()
    }
    folder = write_parts(tmp_path / "seed=3", parts)
    assert load_dataset(folder).fingerprint == dataset_from_frames({"interactions": log}).fingerprint
    (folder / "dataset.toml").write_text('[interactions]\ncontext = { day = "categorical" }')
    assert load_dataset(folder).interactions.columns["day"].unique().to_list() == ["2024-05-31"]


def test_partition_names_are_decoded_and_may_be_missing(tmp_path: Path) -> None:
    folder = write_parts(
        tmp_path,
        {
            "shop=New%20York/p.parquet": LOG[:8],
            "shop=__HIVE_DEFAULT_PARTITION__/p.parquet": LOG[8:16],
            "shop=7/p.parquet": LOG[16:],
        },
    )
    (folder / "dataset.toml").write_text('[interactions]\ncontext = { shop = "categorical" }')
    shops = load_dataset(folder).interactions.columns["shop"].cast(pl.String)
    assert set(shops.to_list()) == {"New York", None, "7"}


def test_folders_that_are_not_a_table_are_refused(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "delta", {"part-0.parquet": LOG})
    (folder / "interactions.parquet" / "_delta_log").mkdir()
    assert "Delta table" in refusal(folder)
    folder = write_parts(tmp_path / "other", {"part-0.parquet": LOG})
    (folder / "interactions.parquet" / "notes.txt").write_text("x")
    assert "notes.txt in it is no Parquet file" in refusal(folder)
    folder = write_parts(tmp_path / "keys", {"a=1/p.parquet": LOG, "p.parquet": LOG})
    assert "not all of the same keys" in refusal(folder)
    (tmp_path / "empty" / "interactions.parquet").mkdir(parents=True)
    assert "a folder without Parquet files" in refusal(tmp_path / "empty")
    (tmp_path / "csv" / "interactions.csv").mkdir(parents=True)
    assert "is a folder; write one CSV file" in refusal(tmp_path / "csv")


@pytest.mark.parametrize(
    "other", [LOG.with_columns(pl.col("user_id").cast(pl.String)), LOG.drop("timestamp"), LOG.with_columns(x=1)]
)
def test_parts_with_different_columns_are_not_reported_as_damaged(tmp_path: Path, other: pl.DataFrame) -> None:
    message = refusal(write_parts(tmp_path, {"part-0.parquet": LOG, "part-1.parquet": other}))
    assert "interactions.parquet" in message
    assert "do not have the same columns" in message
    assert "damaged" not in message


def test_errors_of_the_operating_system_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read (File name too long)" in refusal(Path("x" * 300))
    (tmp_path / "toml" / "dataset.toml").mkdir(parents=True)
    assert "dataset.toml: cannot be read (Is a directory)" in refusal(tmp_path / "toml")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "interactions.csv").symlink_to(tmp_path / "nowhere")
    assert "interactions.csv: is missing, or a link to a file that is missing" in refusal(tmp_path / "link")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "interactions.parquet").symlink_to("interactions.parquet")
    assert "interactions.parquet: cannot be read" in refusal(tmp_path / "loop")

    def forbidden(path: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("interactions.csv", "interactions.parquet"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).touch()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", forbidden)
            assert f"{name}: may not be read (Permission denied)" in refusal(folder)


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "Interactions.CSV.gz").touch()
    (tmp_path / "impressions.xlsx").touch()
    message = refusal(tmp_path)
    assert "neither interactions nor impressions" in message
    assert "Interactions.CSV.gz, impressions.xlsx: not read" in message
    LOG.write_csv(tmp_path / "interactions.csv")
    (tmp_path / "items.json").touch()
    (tmp_path / "items.md").touch()
    notes = load_dataset(tmp_path).notes
    assert [note for note in notes if "is not read" in note] == [
        f"{tmp_path / 'items.json'}: is not read; a table is a file .parquet or .csv",
        f"{tmp_path / 'impressions.xlsx'}: is not read; a table is a file .parquet or .csv",
    ]


def test_two_names_may_be_swapped_but_no_column_may_have_two_names(tmp_path: Path) -> None:
    frame = LOG.rename({"user_id": "item_id", "item_id": "user_id"})
    swap = {"interactions": {"rename": {"user_id": "item_id", "item_id": "user_id"}}}
    swapped = dataset_from_frames({"interactions": frame}, swap)
    assert swapped.fingerprint == dataset_from_frames({"interactions": LOG}).fingerprint
    LOG.write_csv(tmp_path / "interactions.csv")
    (tmp_path / "dataset.toml").write_text('[interactions]\nrename = { a = "user_id", b = "user_id" }')
    assert "'a', 'b' are all column 'user_id'" in refusal(tmp_path)


def test_the_error_of_an_unreadable_table_contains_the_way_out() -> None:
    assert "give your account the right" in str(tables.unreadable("f", PermissionError(13, "Permission denied")))
    assert "truncated or damaged" in str(tables.unreadable("f", pl.exceptions.ComputeError("parquet: broken")))
