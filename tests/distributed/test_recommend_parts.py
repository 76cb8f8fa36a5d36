"""Lists in parts, by Ray Data: those of one process, written once each, and refused if something has changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import nextitem as ni
from nextitem.cli.main import app
from nextitem.core.errors import UserError
from nextitem.pipeline import recommend_parts as parts
from nextitem.pipeline.options import Log
from nextitem.pipeline.recommend_parts import PLAN, SUCCESS, PartsPlan, PartWriter, recommend_parts
from nextitem.pipeline.runs import Run

NUM_USERS = 1_100  # five parts of 256 users
COLUMNS = ["user_id", "item_id", "rank", "score"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of many users, each of whom takes items in a row."""
    folder = tmp_path_factory.mktemp("data")
    rows = [(user, (user + step) % 40, 1_700_000_000 + step) for user in range(NUM_USERS) for step in range(4)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_parquet(folder / "interactions.parquet")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ni.train("item-graph", str(data), out=tmp_path_factory.mktemp("runs") / "graph", progress=False)


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let this process write the parts instead of Ray, and return the list of the parts that it wrote."""
    written: list[int] = []

    def write(plan: PartsPlan, folder: Path, missing: Sequence[int], workers: int | None, log: Log) -> None:
        writer = PartWriter(plan, str(folder))
        for part in missing:
            writer.write(part)
            written.append(part)

    monkeypatch.setattr(parts, "_write_parts", write)
    monkeypatch.setattr(parts, "check_ray", lambda: None)
    return written


def lists_in(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "part-*.parquet")


def test_parts_are_the_lists_of_one_call(run: Run, tmp_path: Path, in_order: list[int]) -> None:
    plan = recommend_parts(run, tmp_path / "lists", k=5, part_users=256)
    assert (plan.num_parts, in_order) == (5, [0, 1, 2, 3, 4])
    assert (tmp_path / "lists" / SUCCESS).is_file()
    assert lists_in(tmp_path / "lists").equals(run.recommend_many(k=5).select(COLUMNS))
    one_part = pl.read_parquet(tmp_path / "lists" / "part-000004.parquet")
    assert one_part["user_id"].n_unique() == NUM_USERS - 4 * 256


def test_users_and_filters_are_those_of_the_call(run: Run, tmp_path: Path, in_order: list[int]) -> None:
    users = [7, 3, 1_099]
    arguments = {"k": 3, "exclude_seen": False, "exclude_items": [9, 10]}
    plan = recommend_parts(run, tmp_path / "lists", users, **arguments)  # type: ignore[arg-type]
    assert plan.num_parts == 1
    expected = run.recommend_many(users, **arguments).select(COLUMNS)  # type: ignore[arg-type]
    assert lists_in(tmp_path / "lists").equals(expected)


def test_only_missing_parts_are_written_again(run: Run, tmp_path: Path, in_order: list[int]) -> None:
    out = tmp_path / "lists"
    recommend_parts(run, out, part_users=256)
    whole = lists_in(out)
    (out / "part-000001.parquet").unlink()
    (out / "part-000003.parquet").unlink()
    (out / ".part-000003.parquet.77").write_bytes(b"half a part")
    in_order.clear()
    recommend_parts(run, out, part_users=256, resume=True)
    assert in_order == [1, 3]
    assert lists_in(out).equals(whole)
    assert not list(out.glob(".*"))
    in_order.clear()
    recommend_parts(run, out, part_users=256, resume=True)
    assert in_order == []
    recommend_parts(run, out, k=2, part_users=256, overwrite=True)
    assert lists_in(out)["rank"].max() == 2


def test_other_parts_are_refused(run: Run, data: Path, tmp_path: Path, in_order: list[int]) -> None:
    out = tmp_path / "lists"
    recommend_parts(run, out, [3, 4])
    with pytest.raises(UserError, match="is not empty; choose another --out, or add --resume"):
        recommend_parts(run, out, [3, 4])
    with pytest.raises(UserError, match="was begun with another k;"):
        recommend_parts(run, out, [3, 4], k=7, resume=True)
    with pytest.raises(UserError, match="was begun with another users;"):
        recommend_parts(run, out, [3, 5], resume=True)
    with pytest.raises(UserError, match="no user is called 12345"):
        recommend_parts(run, tmp_path / "none", [12345])
    with pytest.raises(UserError, match="items have no column 'colour'"):
        recommend_parts(run, tmp_path / "none", only=["colour=red"])
    assert not (tmp_path / "none").exists()
    (out / PLAN).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"_plan\.json is damaged"):
        recommend_parts(run, out, [3, 4], resume=True)
    with pytest.raises(UserError, match="contains something else than parts"):
        recommend_parts(run, data, overwrite=True)
    with pytest.raises(ValueError, match="multiple of 256"):
        recommend_parts(run, tmp_path / "none", part_users=100)


def test_a_run_that_changed_since_the_plan_is_refused(run: Run, tmp_path: Path, in_order: list[int]) -> None:
    out = tmp_path / "lists"
    recommend_parts(run, out, [3])
    fields = json.loads((out / PLAN).read_text(encoding="utf-8"))
    plan = PartsPlan(**{**fields, "only": (), "exclude_items": (), "weights": "of another model"})
    with pytest.raises(UserError, match="has changed since"):
        PartWriter(plan, str(out))


def test_without_ray_the_extra_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextitem.distributed.ray_cluster.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package ray is missing: pip install 'nextitem\[ray\]'"):
        recommend_parts(run, tmp_path / "lists")


@pytest.mark.slow
def test_a_killed_command_continues_with_the_same_lists(run: Run, data: Path, tmp_path: Path) -> None:
    """Kill the command by SIGKILL as soon as a part is written; Ray's processes end, and no part is written twice."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    code = (
        "import sys, nextitem.pipeline.recommend_parts as parts, nextitem as ni\n"
        "run = ni.load_run(sys.argv[1])\n"
        "lines = lambda line: print(line, file=sys.stderr, flush=True)\n"
        "options = dict(k=5, part_users=256, workers=2, data=sys.argv[3], resume=True, log=lines)\n"
        "parts.recommend_parts(run, sys.argv[2], **options)\n"
    )
    out = tmp_path / "lists"
    command = [sys.executable, "-c", code, str(run.folder), str(out), str(data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("part-*.parquet")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)  # until Ray's processes have ended; one of them may be about to finish a part
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*.parquet")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*.parquet")}
    assert len(after) == 5
    assert all(after[name] == moment for name, moment in before.items())
    if len(before) < 5:
        assert f"{5 - len(before)} of 5 parts are missing" in done.stderr
        assert "users/s" in done.stderr
    assert lists_in(out).equals(run.recommend_many(k=5).select(COLUMNS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--users", "all", "--out", "x", "--engine", "spark"], "choose ray"),
        (["--users", "all", "--out", "x", "--resume"], "belong to --engine ray"),
        (["--users", "all", "--out", "x", "--workers", "2"], "belong to --engine ray"),
        (["--user", "7", "--engine", "ray"], "--engine belongs to --users"),
    ],
)
def test_options_of_the_command_that_do_not_belong_together_are_refused(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["recommend", "nowhere", *options])
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)


def test_the_command_writes_parts(run: Run, data: Path, tmp_path: Path, in_order: list[int]) -> None:
    words = [
        "recommend",
        str(run.folder),
        "--users",
        "all",
        "--engine",
        "ray",
        "--out",
        str(tmp_path / "lists"),
        "-k",
        "5",
    ]
    result = CliRunner().invoke(app, [*words, "--data", str(data)])
    assert result.exit_code == 0
    assert f"lists of {NUM_USERS:,} users in 1 parts" in result.stdout
    assert lists_in(tmp_path / "lists").equals(run.recommend_many(k=5).select(COLUMNS))
