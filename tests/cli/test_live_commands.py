"""The commands report and simulate: files and figures of a small log, and mistakes in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from nextitem.cli.main import main
from nextitem.serving.impressions import ImpressionLog, ShownList
from nextitem.serving.stores import StoredEvent, open_store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with the log and events of two models: users of b click each list, of a every third."""
    monkeypatch.chdir(tmp_path)
    log, events = ImpressionLog("log", lists_per_file=100), []
    for number in range(120):
        for model in ("a", "b"):
            request, user = f"{model}{number}", f"{model}-user-{number}"
            time = 1_700_000_000_000 + number * 1000
            log.append([ShownList(request, user, ["x", "y"], time, [0.5, 1.0], f"{model} {'0' * 16}")])
            if model == "b" or number % 3 == 0:
                events.append(StoredEvent(f"e{request}", user, "x", "tap", time + 3_600_000, None))
    with open_store("sqlite:///nextitem-events.db") as store:
        store.append(events)
    return tmp_path


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["nextitem", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_report_writes_a_page_and_figures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slots = [(f"{model}{number}", slot, 0.5) for model in "ab" for number in range(120) for slot in (1, 2)]
    target = pl.DataFrame(slots, schema=["impression_id", "slot", "probability"], orient="row")
    target.write_parquet(folder / "target.parquet")
    arguments = [
        "report",
        "--live",
        "log",
        "--outcome",
        "click=tap,click",
        "--out",
        "new/page.html",
        "--json",
        "f.json",
    ]
    assert run(*arguments, "--target", "target.parquet", monkeypatch=monkeypatch) == 0
    output = capsys.readouterr().out
    assert "b has 100.00 lists with a click among 100, a 33.33: 200% more, which is more than chance" in output
    assert "A policy that was not served (240 explored lists, 0.6667 clicks per list)" in output
    assert re.search(r"Rely on dr: the weights count as 240 of 240 lists, and the largest is 1\.", output)
    figures = json.loads((folder / "f.json").read_text())
    assert figures["off_policy"]["trusted"] == "dr"
    assert [policy["list_rates"]["click"]["value"] for policy in figures["policies"]] == [1 / 3, 1.0]
    assert figures["differences"][0]["is_real"] is True
    assert figures["events"] == {"by_request": 0, "by_item": 160, "unattributed": 0}
    assert [entry["estimator"] for entry in figures["off_policy"]["estimates"]] == [
        "ips",
        "snips",
        "clipped-ips",
        "sg-ips",
        "rips",
        "iips",
        "dr",
        "sndr",
        "switch-dr",
        "dros",
        "sg-dr",
    ]
    assert "Which differences are real" in (folder / "new" / "page.html").read_text(encoding="utf-8")


def test_report_prints_json_and_respects_the_attribution_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["report", "--live", "log", "--pool-versions", "--outcome", "click=tap", "--json", "-"]
    assert run(*arguments, "--attribution", "59m", monkeypatch=monkeypatch) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["events"] == {"by_request": 0, "by_item": 0, "unattributed": 160}
    assert figures["off_policy"] is None
    assert run(*arguments, "--attribution", "0.1d", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["events"]["by_item"] == 160


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--live", "nowhere"], "nowhere: no such folder"),
        (["--live", "log", "--events", "sqlite:///nowhere.db"], "sqlite:///nowhere.db: no such file"),
        (["--live", "log", "--events", "nowhere"], "nowhere: no such folder"),
        (["--live", "log", "--attribution", "soon"], "'soon': write a number and a unit"),
        (["--live", "log", "--outcome", "click"], "--outcome 'click': write a name and its actions"),
        (["--live", "log", "--target", "nowhere"], "nowhere"),
        (["--live", "log", "--target", "nextitem-events.db"], "--target nextitem-events.db: "),
    ],
)
def test_mistakes_of_report_are_said_in_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("report", *arguments, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localhost:1"], "localhost:1: write the address of a server"),
        (["http://127.0.0.1:1", "--customers", "0"], "--customers"),
    ],
)
def test_mistakes_of_simulate_are_said_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("simulate", *arguments, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err
