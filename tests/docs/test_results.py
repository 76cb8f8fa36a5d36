"""Every figure of docs/results has its command and commit, and every table is generated from results.jsonl."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.benchmark_options import options_of

from nextitem.core.registry import MODELS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
RECIPES = ROOT / "src" / "nextitem" / "recipes"


def load_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_tables", RESULTS / "tables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load_tables()
ROWS: list[dict[str, Any]] = tables.read_rows()
IDS = [row["id"] for row in ROWS]
PAGES = tables.pages()
NUMBER = (int, Decimal)
TEXT = (str, type(None))
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "topic": str,
    "group": str,
    "label": str,
    "data": TEXT,
    "protocol": TEXT,
    "model": TEXT,
    "recipe": TEXT,
    "metrics": dict,
    "intervals": dict,
    "seeds": (list, type(None)),
    "refit": (bool, type(None)),
    "paper": (dict, type(None)),
    "public": (dict, type(None)),
    "verdict": TEXT,
    "command": TEXT,
    "commit": TEXT,
    "machine": TEXT,
    "date": TEXT,
    "note": TEXT,
    "supersedes": list,
}
OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "ranges": dict,
    "by_seed": dict,
    "threads": int,
    "target": dict,
    "summary": bool,
}
PROTOCOLS = {"leave-one-out", "time", "user-split", "published", "impressions", None}
VERDICTS = {"reproduced", "within noise", "above", "below", "missed", None}


def test_ids_are_unique() -> None:
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_has_the_required_keys_and_types(row: dict[str, Any]) -> None:
    assert set(REQUIRED) <= set(row) <= set(REQUIRED | OPTIONAL)
    for key, value in row.items():
        assert isinstance(value, (REQUIRED | OPTIONAL)[key]), key
    assert row["protocol"] in PROTOCOLS
    assert row["verdict"] in VERDICTS
    published = {name: value for name, value in (row["public"] or {}).items() if name != "source"}
    assert not row["public"] or row["public"]["source"]
    for figures in (row["metrics"], row["paper"] or {}, published, row.get("target", {})):
        assert all(isinstance(value, NUMBER) for value in figures.values())
    for spans in (row["intervals"], row.get("ranges", {})):
        assert all(len(span) == 2 and span[0] <= span[1] for span in spans.values())
    assert all(len(figures) == len(row["seeds"]) for figures in row.get("by_seed", {}).values())
    if not any(row.get(part) for part in ("metrics", "intervals", "ranges", "by_seed")):
        assert (row["note"] or "").startswith("Not run")


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_has_its_origin_commit_and_command(row: dict[str, Any]) -> None:
    note = row["note"] or ""
    if row["commit"]:
        assert re.fullmatch(r"[0-9a-f]{7,40}", row["commit"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
    else:
        assert row["date"] is None
        assert re.search(r"commit was not recorded|no commit is recorded|commits before|Not run", note), note
    if not row["command"]:
        assert note, "a row without a command has a note with the reason"
    assert all(superseded in IDS for superseded in row["supersedes"])


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_refers_to_existing_models_recipes_and_scripts(row: dict[str, Any]) -> None:
    assert row["model"] is None or row["model"] in MODELS
    recipes = [row["recipe"]] if row["recipe"] else []
    command = row["command"] or ""
    recipes += re.findall(r"--recipe (?:\w+=)?([\w-]+/[\w-]+)", command)
    recipes += re.findall(r"benchmarks/seeds\.py (\S+)", command)
    for recipe in recipes:
        assert (RECIPES / f"{recipe}.toml").is_file(), recipe
    for model in re.findall(r"nextitem train (\S+)", command):
        assert model in MODELS
    for part in filter(None, command.split(" && ")):
        words = shlex.split(part)
        if words[0] == "python":
            script = ROOT / words[1]
            assert script.is_file(), words[1]
            options = {word for word in words if word.startswith("--")}
            assert options <= options_of(script.name), options - options_of(script.name)
        elif words[0] != "make":
            assert words[0] == "nextitem", part


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_verdict_follows_from_the_best_published_figure(row: dict[str, Any]) -> None:
    published = [row[part] for part in ("paper", "public") if row[part]]
    name = next((name for name in ("recall@10", "recall@20") if name in row["metrics"]), None)
    figures = [part[name] for part in published if name in part]
    if figures and row["verdict"] in ("reproduced", "above", "below"):
        ratio = row["metrics"][name] / max(figures)
        assert row["verdict"] == (
            "above" if ratio > Decimal("1.05") else "below" if ratio < Decimal("0.95") else "reproduced"
        )


def test_every_table_is_up_to_date() -> None:
    process = subprocess.run([sys.executable, RESULTS / "tables.py", "--check"], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


def test_a_stale_table_is_reported_with_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = (RESULTS / "sequence_models.md").read_text(encoding="utf-8").replace("0.0956", "0.0957")
    page = tmp_path / "docs" / "results" / "sequence_models.md"
    page.parent.mkdir(parents=True)
    page.write_text(stale, encoding="utf-8")
    monkeypatch.setattr(tables, "FOLDER", page.parent)
    monkeypatch.setattr(tables, "pages", lambda: [page])
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit):
        tables.main()
    assert "docs/results/sequence_models.md: a table is stale" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tables.py"])
    tables.main()
    assert page.read_text(encoding="utf-8") == (RESULTS / "sequence_models.md").read_text(encoding="utf-8")


def test_every_row_and_every_metric_is_in_a_table_of_its_page() -> None:
    tables_on_pages = set()
    for page in PAGES:
        for table in re.findall(r"<!-- table: (\S+) -->", page.read_text(encoding="utf-8")):
            tables_on_pages.add(table)
            assert table in tables.TABLES, f"{page.name}: {table}"
            assert table.split("/")[0] in (page.stem, "summary"), f"{page.name}: {table}"
    assert tables_on_pages == set(tables.TABLES)
    for row in ROWS:
        table = f"{row['topic']}/{row['group']}"
        assert table in tables_on_pages, row["id"]
        columns = " ".join(tables.TABLES[table].values())
        names = {*row["metrics"], *row["intervals"], *row.get("ranges", {}), *row.get("by_seed", {})}
        assert all(name in columns for name in names), (row["id"], names)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_links_and_pictures_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "lab_notes"], ids=lambda page: page.stem)
def test_a_page_is_at_most_three_screens(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 150


def test_figures_have_leading_zeros() -> None:
    for page in PAGES:
        figures = re.findall(r"(?:^|[\s(/|=])[-+]?\.\d+", page.read_text(encoding="utf-8"))
        assert not figures, f"{page.name}: {figures}"


def test_lab_notes_are_dated_newest_first() -> None:
    text = (ROOT / "docs" / "lab_notes.md").read_text(encoding="utf-8")
    dates = re.findall(r"^## (\d{4}-\d\d-\d\d): .*\(.+\)$", text, re.M)
    assert len(dates) == len(re.findall(r"^## ", text, re.M)) - 1  # except the table of superseded figures
    assert dates == sorted(dates, reverse=True)
