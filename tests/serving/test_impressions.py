"""The log of shown lists: nothing that was synced is lost, files have the public layout, a user can be removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from nextitem.core.errors import UserError
from nextitem.serving.impressions import SCHEMA, ImpressionLog, ShownList


def shown_list(number: int, *, user: str | None = "ada", items: tuple[str, ...] = ("x", "y")) -> ShownList:
    return ShownList(f"r{number}", user, items, 1_700_000_000_000 + number, [1.0] * len(items), "sasrec abc")


def test_lists_are_rows_of_impressions_across_files_and_starts(tmp_path: Path) -> None:
    log = ImpressionLog(tmp_path / "log", lists_per_file=3)
    for number in range(4):
        log.append([shown_list(number), shown_list(100 + number, user=None)])
    expected = [f"r{n}" for number in range(4) for n in (number, 100 + number) for _ in range(2)]
    for _ in range(2):
        table = log.table()
        assert dict(table.schema) == SCHEMA
        assert table["impression_id"].to_list() == expected
        assert table["slot"].to_list() == [1, 2] * 8
        log.close()
        log = ImpressionLog(tmp_path / "log", lists_per_file=3)
    assert sorted(file.suffix for file in (tmp_path / "log").iterdir()) == [".jsonl", ".parquet", ".parquet"]
    assert table["user_id"].null_count() == 8


def test_a_user_leaves_no_byte(tmp_path: Path) -> None:
    log = ImpressionLog(tmp_path, lists_per_file=4)
    for number in range(6):
        log.append([shown_list(number, user=f"someone-{number % 2}")])
    assert log.delete_user("someone-1") == 6
    assert set(log.table()["user_id"]) == {"someone-0"}
    assert not any(b"someone-1" in file.read_bytes() for file in tmp_path.iterdir())
    log.append([shown_list(7)])
    assert log.table().height == 8


def test_a_cut_line_and_a_finished_file_are_recovered(tmp_path: Path) -> None:
    log = ImpressionLog(tmp_path)
    log.append([shown_list(1), shown_list(2)])
    text = next(tmp_path.glob("*.jsonl"))
    content = text.read_bytes()
    text.write_bytes(content[:-5])
    recovered = ImpressionLog(tmp_path)
    assert recovered.table()["impression_id"].unique().to_list() == ["r1"]
    (tmp_path / "impressions-000001.jsonl").write_bytes(content)  # as if the process ended before it was removed
    assert ImpressionLog(tmp_path).table()["impression_id"].unique().to_list() == ["r1"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="cannot be written"):
        ImpressionLog(file)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "impressions-000001.jsonl").write_text("no json\n")
    with pytest.raises(UserError, match="damaged"):
        ImpressionLog(tmp_path / "log")


WRITER = """
import sys
from nextitem.serving.impressions import ImpressionLog, ShownList
log = ImpressionLog(sys.argv[1], lists_per_file=7, is_synced=True)
number = 0
while True:
    number += 1
    log.append([ShownList(f"r{number}", "ada", ["x", "y"], number, [1.0, 1.0], "p")])
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_acknowledged_list(tmp_path: Path) -> None:
    acknowledged = 0
    for stop_after in (9, 25):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(stop_after):
            acknowledged_now = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        acknowledged_now = max([acknowledged_now, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        acknowledged += acknowledged_now
        log = ImpressionLog(tmp_path)
        counts = log.table().group_by("impression_id").len()
        log.close()
        assert counts.select(pl.col("len").sum()).item() >= 2 * acknowledged
