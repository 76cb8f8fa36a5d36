"""A prepared log: sorted by users in parts, read as the same data set, and mistakes named by file and row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from nextitem.core.config import write_toml
from nextitem.core.errors import UserError
from nextitem.data import prepare_log as preparing
from nextitem.data.prepare_log import Piece, PieceReader, Summary, prepare_log
from nextitem.data.readers import load_dataset
from nextitem.testing.rich_log import SETTINGS, rich_frames


def write_log(folder: Path, *, rename: bool = False) -> pl.DataFrame:
    """Write the rich log in any order, as three files with several row groups, and return its events."""
    folder.mkdir()
    frames = rich_frames(num_users=40)
    settings = SETTINGS
    log = frames["interactions"]
    log = log.with_columns(pl.col("timestamp") // 7200 * 7200, session_id=pl.col("timestamp") // 90_000)  # with ties
    log = log[np.random.default_rng(0).permutation(log.height)]
    if rename:
        log = log.rename({"user_id": "CustomerID"})
        settings = {**SETTINGS, "interactions": {**SETTINGS["interactions"], "rename": {"user_id": "CustomerID"}}}
    (folder / "interactions.parquet").mkdir()
    third = -(-log.height // 3)
    for number in range(3):
        part = log[number * third : (number + 1) * third]
        part.write_parquet(folder / "interactions.parquet" / f"p{number}.parquet", row_group_size=40)
    for name in ("items", "users"):
        frames[name].write_parquet(folder / f"{name}.parquet")
    write_toml(folder / "dataset.toml", settings)
    return log


class InOrder:
    """Stand-in of Ray that does the same work in this process, one piece after another."""

    @staticmethod
    def summaries(reader: PieceReader, pieces: Sequence[Piece]) -> list[Summary]:
        return [reader.summary(piece) for piece in pieces]

    @staticmethod
    def write(reader: PieceReader, pieces: Sequence[Piece], folder: Path) -> int:
        events = pl.concat([reader.assigned(piece) for piece in pieces])
        return len([preparing.write_part(part, folder) for part in events.partition_by(preparing.PART)])


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RuntimeError))
    monkeypatch.setattr(preparing, "check_ray", lambda: None)
    monkeypatch.setattr(preparing, "ray_cluster", lambda num_cpus: nullcontext(ray))
    monkeypatch.setattr(preparing, "_summaries", InOrder.summaries)
    monkeypatch.setattr(preparing, "_write", InOrder.write)


def assert_prepared(source: Path, out: Path, num_parts: int) -> None:
    """Check that the data sets are equal, and that parts are ranges of users in order."""
    original, prepared = load_dataset(source), load_dataset(out)
    assert prepared.fingerprint == original.fingerprint
    for name in ("user_ids", "item_ids", "timestamps"):
        np.testing.assert_array_equal(getattr(prepared.interactions, name), getattr(original.interactions, name))
    assert prepared.interactions.columns.drop("session_id").equals(original.interactions.columns.drop("session_id"))
    files = sorted((out / "interactions.parquet").iterdir())
    assert len(files) == num_parts
    user = "CustomerID" if "CustomerID" in pl.read_parquet_schema(files[0]) else "user_id"
    owners = [pl.read_parquet(file)[user] for file in files]
    assert all(column.is_sorted() for column in owners)
    assert all(first[-1] < second[0] for first, second in pairwise(owners))
    assert max(map(len, owners)) < 2 * min(map(len, owners))


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("rename", [False, True])
def test_a_prepared_log_reads_as_the_original(tmp_path: Path, rename: bool) -> None:
    write_log(tmp_path / "log", rename=rename)
    assert prepare_log(tmp_path / "log", tmp_path / "out", part_rows=60) == 5
    assert_prepared(tmp_path / "log", tmp_path / "out", 5)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("in_order")
def test_mistakes_are_named_by_file_and_row(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    second = tmp_path / "log" / "interactions.parquet" / "p1.parquet"

    def refused(change: pl.Expr, words: str) -> None:
        part = pl.read_parquet(second)
        part.with_columns(change).write_parquet(second, row_group_size=40)
        with pytest.raises(UserError, match=words):
            prepare_log(tmp_path / "log", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        part.write_parquet(second, row_group_size=40)

    at_50 = pl.int_range(pl.len()) == 50
    refused(
        pl.when(~at_50).then("user_id").alias("user_id"), r"p1\.parquet: column 'user_id', row 51: the id is missing"
    )
    refused(pl.when(at_50).then(-5).otherwise("timestamp").alias("timestamp"), "row 51: -5 is no time after 1970")
    refused((pl.col("timestamp") * 1000).alias("timestamp"), "looks like seconds while others, up to")
    other_item = pl.when(pl.col("item_id").is_not_null()).then(pl.lit("i99")).alias("item_id")
    refused(other_item, "column 'item_id': 'i99' is not in the items table; add the items")
    refused(pl.col("timestamp").cast(pl.String).alias("timestamp"), "times are text; write them as numbers")
    assert log.height == sum(piece.rows for piece in preparing.pieces_of(tmp_path / "log" / "interactions.parquet"))
    write_toml(tmp_path / "log" / "dataset.toml", {"interactions": {"positive_actions": ["rent"]}})
    with pytest.raises(UserError, match="never contains 'rent', which positive_actions names"):
        prepare_log(tmp_path / "log", tmp_path / "out")


@pytest.mark.usefixtures("in_order")
def test_what_cannot_be_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        prepare_log(tmp_path / "none", tmp_path / "out")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "interactions.csv").write_text("user_id,item_id\n", encoding="utf-8")
    with pytest.raises(UserError, match="only Parquet can be prepared"):
        prepare_log(tmp_path / "log", tmp_path / "out")
    with pytest.raises(UserError, match="exists; choose another --out"):
        prepare_log(tmp_path / "log", tmp_path / "log")


@pytest.mark.slow
def test_ray_prepares_the_same_log(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    write_log(tmp_path / "log")
    assert prepare_log(tmp_path / "log", tmp_path / "out", part_rows=60, workers=2) == 5
    assert_prepared(tmp_path / "log", tmp_path / "out", 5)
    broken = tmp_path / "log" / "interactions.parquet" / "p2.parquet"
    pl.read_parquet(broken).with_columns(pl.lit(None, pl.String).alias("user_id")).write_parquet(broken)
    with pytest.raises(UserError, match=r"p2\.parquet: column 'user_id', row 1: the id is missing"):
        prepare_log(tmp_path / "log", tmp_path / "again", workers=2)
