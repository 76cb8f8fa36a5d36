"""The command `nextitem serve` as a process: it answers, stops cleanly, and keeps acknowledged events after kill -9."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.trained_models import rich_run
from typer.testing import CliRunner

from nextitem.cli.main import app
from nextitem.cli.serve import updates_of
from nextitem.core.config import write_toml
from nextitem.core.errors import UserError
from nextitem.pipeline.versions import use_version
from nextitem.testing.rich_log import SETTINGS, rich_frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the rich log."""
    folder = tmp_path_factory.mktemp("rich")
    for name, frame in rich_frames().items():
        frame.write_parquet(folder / f"{name}.parquet")
    write_toml(folder / "dataset.toml", SETTINGS)
    return folder


@contextmanager
def server(
    data: Path, folder: Path, *options: str, run: Path | None = None, tokens: str = ""
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server of item-cf, or of another run, in `folder` and yield its process and address."""
    run = run or rich_run("item-cf").folder
    command = [sys.executable, "-m", "nextitem", "serve", str(run), "--port", "0", *options]
    environment = {**os.environ, "NEXTITEM_TOKENS": tokens}
    process = subprocess.Popen(
        [*command, "--data", str(data), "--store", "sqlite:///events.db"],
        cwd=folder, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"http://\S+", line):
                assert f"(page: {match[0]}/, API: {match[0]}/openapi.json" in line
                break
        else:
            pytest.fail("".join(lines))
        yield process, match[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(address: str, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@pytest.mark.slow  # processes that import everything
def test_the_command_serves_keeps_events_and_stops_cleanly(data: Path, tmp_path: Path) -> None:
    event = {"event_id": "e1", "user_id": "stranger", "item_id": "i03", "action": "view"}
    with server(data, tmp_path, tokens="s3cret") as (process, address):
        token = {"Authorization": "Bearer s3cret"}
        assert ask(address, "/v1/events", {"events": [event]}, **token)["accepted"] == 1
        before = ask(address, "/v1/recommend", {"user_id": "stranger"}, **token)
        assert before["fallback"] is False
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(address, "/v1/recommend", {"user_id": "stranger"})
        process.send_signal(signal.SIGKILL)
    with server(data, tmp_path) as (process, address):
        assert ask(address, "/v1/recommend", {"user_id": "stranger"})["items"] == before["items"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)


@pytest.mark.slow  # processes that import everything
def test_a_running_server_takes_a_new_version_and_logs_json(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "shop"
    shutil.copytree(rich_run("popularity").folder, run)
    options = ["--shadow", str(rich_run("item-cf").folder), "--explore", "0.5", "--log-format", "json"]
    tokens = "plain,shop-b=other"
    with server(data, tmp_path, *options, run=run, tokens=tokens) as (process, address):
        token = {"Authorization": "Bearer plain"}
        body = {"user_id": "ada", "history": ["i03", "i04"], "k": 3}
        before = ask(address, "/v1/recommend", body, **token)
        assert all("propensity" in item for item in before["items"])
        ask(address, "/v1/recommend", {**body, "user_id": "bob"}, Authorization="Bearer other")
        shutil.copytree(rich_run("item-cf").folder, run / "versions" / "2")
        use_version(run, "2")
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while (after := ask(address, "/v1/recommend", body, **token))["version"] == before["version"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert after["version"] == rich_run("item-cf").model.weights_fingerprint()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["logger"] == "nextitem.requests"]
    assert {(line["route"], line["status"], line["model"]) for line in requests} == {("/v1/recommend", 200, "shop")}
    assert any("version 2" in line["message"] for line in lines)
    assert not any(text in json.dumps(lines) for text in ("ada", "bob", "i03"))
    logs = tmp_path / "nextitem-impressions"
    for folder, user in ((logs, "ada"), (logs / "shadow", "ada"), (logs / "tenants" / "shop_b", "bob")):
        users = {user for file in folder.glob("*.parquet") for user in pl.read_parquet(file)["user_id"]}
        assert users == {user}, folder


def test_a_mistake_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nextitem", "serve", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such run" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shadow", "RUN"], "a run and a shadow are called"),
        (["--weight", "tiger=0.5"], "no model is called 'tiger'"),
        (["--weight", "half"], "write NAME=0.9"),
        (["--weight", "RUNNAME=0.5", "--weight", "RUNNAME=0.5"], "once for a run"),
        (["--max-queue", "0"], "max_queue = 0"),
        (["--max-wait", "0"], "max_wait = 0"),
        (["--deadline", "-1"], "deadline_seconds = -1.0"),
        (["--explore", "-0.5"], "explore = -0.5"),
        (["--log-format", "xml"], "choose text or json"),
        (["nothing"], "no such run"),
        (["RUN"], "two runs are called"),
        (["--store", "mysql://host"], "unknown kind of store"),
        (["--update", "item-cf"], "need --update-every"),
        (["--update-every", "10m", "--update", "nobody"], "--update nobody: no run is called"),
        (["--update-every", "10m", "--update-items", "nowhere"], "--update-items nowhere: no such folder"),
        (["--update-every", "soon"], "period 'soon'"),
        (["--replicas", "2", "--port", "0"], "replicas need a fixed port"),
        (["--replicas", "2", "--log-format", "json"], "Ray adds a prefix"),
    ],
)
def test_options_out_of_their_bounds_are_named(options: list[str], words: str, tmp_path: Path) -> None:
    run = rich_run("item-cf").folder
    places = {"RUN": str(run), "RUNNAME=0.5": f"{run.name}=0.5"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(app, ["serve", str(run), *(places.get(option, option) for option in options)])
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)
    assert not list(tmp_path.iterdir())  # no store or log was opened


def test_runs_to_update_are_named_and_get_their_new_items(tmp_path: Path) -> None:
    folders = {"frozen": tmp_path / "frozen", "live": tmp_path / "live"}
    assert updates_of(folders, None, [], None) is None
    every = updates_of(folders, "2m", [], None)
    assert every is not None
    assert (every.runs, every.every_seconds, every.options) == (folders, 120, ())
    one = updates_of(folders, "2m", ["live"], str(tmp_path))
    assert one is not None
    assert one.runs == {"live": folders["live"]}
    assert one.options == ("--items", str(tmp_path.resolve()))
