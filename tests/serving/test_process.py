"""The command `nextitem serve` as a process: it answers, stops cleanly, and keeps acknowledged events after kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.trained_models import rich_run

from nextitem.core.config import write_toml
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
def server(data: Path, folder: Path, *, tokens: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server of item-cf in `folder` and yield its process and address."""
    command = [sys.executable, "-m", "nextitem", "serve", str(rich_run("item-cf").folder), "--port", "0"]
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


def test_mistakes_end_before_anything_is_loaded(tmp_path: Path) -> None:
    run = str(rich_run("item-cf").folder)
    for arguments, words in (
        ([str(tmp_path / "nothing")], "no such run"),
        ([run, run], "two runs are called"),
        ([run, "--store", "mysql://host"], "unknown kind of store"),
        ([run, "--data", str(tmp_path / "nothing")], "nothing"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "nextitem", "serve", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 2, arguments
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
