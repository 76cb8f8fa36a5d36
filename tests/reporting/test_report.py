"""Tests of the HTML report: one safe, self-contained page with the figures of its rows."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.identifiers import IdentifierTable
from nextitem.evaluation.evaluate import Evaluation
from nextitem.evaluation.intervals import interval
from nextitem.reporting.report import CustomerExample, ListedItem, write_report
from nextitem.reporting.report_script import POLICY, SCRIPT
from nextitem.reporting.scoreboard import ReportRow
from nextitem.reporting.tree_map import groups, squarify, tree_map

EVIL = "<script>alert(1)</script>\"'&$x_1$"
VOID = {"meta", "br", "path", "use", "rect"}
BINS = [{"predicted": 0.1, "observed": 0.12, "count": 50.0}, {"predicted": 0.3, "observed": 0.28, "count": 50.0}]


def row(name: str, chance: float, *, size: int = 900) -> ReportRow:
    """Return a row whose recall@10 is about `chance`, on `size` requests."""
    shared = torch.rand(size, generator=torch.Generator().manual_seed(0))
    values = {f"{m}@{k}": (shared < chance * k / 10).double() for m in ("recall", "ndcg") for k in (5, 10, 20)}
    slices = {
        "warm": {"requests": size, "recall@10": chance, "ndcg@10": chance},
        "cold": {"requests": 9, "recall@10": 0.0},
    }
    evaluation = Evaluation(
        name,
        "time",
        False,
        size,
        size,
        {key: float(value.mean()) for key, value in values.items()} | {"coverage@10": chance, "coverage@20": chance},
        {key: interval(value) for key, value in values.items()},
        slices,
        values,
    )
    return ReportRow(evaluation, parameters=1_234_567, train_seconds=12.34, p50_ms=1.5, p99_ms=4.5, cpu_ms=1.8)


def identifiers(items: int = 300) -> IdentifierTable:
    generator = torch.Generator().manual_seed(1)
    codes = torch.stack([torch.randint(0, size, (items,), generator=generator) for size in (16, 8, 3)], 1)
    return IdentifierTable.from_item_codes(codes, codebook_sizes=(16, 8, 3), catalog_fingerprint="x", tokenizer=EVIL)


def page(folder: Path, **options: Any) -> str:
    """Write a report and return its text."""
    arguments = {"title": "shop", "rows": [row("a", 0.1), row("b", 0.3)], **options}
    write_report(folder / "report.html", **arguments)
    return (folder / "report.html").read_text(encoding="utf-8")


class TagParser(HTMLParser):
    """Parser that collects elements and attributes, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open_tags.pop() == tag


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    """Return elements and attributes of a page; fail if an element is not closed in order."""
    parser = TagParser()
    parser.feed(text)
    assert parser.open_tags == []
    return parser.tags


def full_page(folder: Path) -> str:
    """Return a report with data for nearly all sections, in which every name is hostile."""
    ranker = row(EVIL, 0.1)
    metrics = ranker.evaluation.metrics | {"calibration_error": 0.01, "normalised_entropy": 0.9}
    evaluation = replace(ranker.evaluation, calibration={EVIL: BINS}, metrics=metrics, protocol=EVIL)
    return page(
        folder,
        title=EVIL,
        rows=[replace(ranker, evaluation=evaluation), row("b", 0.3)],
        examples=[
            CustomerExample(
                EVIL,
                [EVIL, "mug"],
                ["lamp"],
                {EVIL: [ListedItem("lamp", True), ListedItem(EVIL, channel=EVIL)], "b": []},
            )
        ],
        identifiers=identifiers(),
        item_titles=pl.Series([EVIL] * 300),
        epoch_logs={EVIL: [{"epoch": 1.0, "loss": 2.0, "validation": 0.1}, {"epoch": 2.0, "validation": 0.2}]},
        notes=[EVIL],
    )


def test_hostile_names_add_no_script_and_no_address_to_the_page(tmp_path: Path) -> None:
    text = full_page(tmp_path)
    elements = tags(text)
    for tag, attributes in elements:
        assert tag not in {"iframe", "object", "embed", "link", "img", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"href", "src", "xlink:href"}:
                assert (value or "").startswith("#"), (tag, value)
    assert [attributes for tag, attributes in elements if tag == "script"] == [{}]
    assert "http" not in text.replace("http-equiv", "")
    assert "alert(1)" in text
    assert not re.search(r"url\((?!#)", text)


@pytest.mark.usefixtures("without_figures")
def test_the_policy_of_the_page_allows_its_own_script_alone(tmp_path: Path) -> None:
    text = full_page(tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policies = [attributes["content"] for tag, attributes in tags(text) if "http-equiv" in attributes]
    assert policies == [POLICY]
    assert "default-src 'none'" in POLICY
    assert re.findall(r"script-src [^;]*", POLICY) == [f"script-src 'sha256-{digest}'"]
    assert text.index("http-equiv") < text.index("<script")
    assert "eval" not in SCRIPT
    assert "innerHTML" not in SCRIPT


def test_the_page_contains_all_sections_and_is_small(tmp_path: Path) -> None:
    text = full_page(tmp_path)
    heads = [head.strip() for head in re.findall(r"<h2>([A-Z][\w\- ]+)", text)]
    assert heads == [
        "In short",
        "Scoreboard",
        "Accuracy against variety",
        "Metrics over k",
        "Where each model is good",
        "Calibration",
        "Training",
        "Customers",
        "Codebooks",
        "Map of the semantic IDs",
    ]
    anchors = [(attributes.get("href") or "")[1:] for tag, attributes in tags(text) if tag == "a"]
    assert [attributes.get("id") for tag, attributes in tags(text) if tag == "section"] == anchors
    assert len(anchors) == len(heads)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


@pytest.mark.usefixtures("without_figures")
def test_the_funnel_of_a_cascade_is_a_section(tmp_path: Path) -> None:
    first = {"name": "retrieval", "candidates": 900.0, "recall": 0.95, "kept": 0.95, "ndcg": 0.1, "p50_ms": 3.0}
    stage = {"name": EVIL, "candidates": 250.0, "recall": 0.75, "kept": 0.982, "ndcg": 0.16, "p50_ms": 6.1}
    cascade = row("cascade", 0.3)
    row_with_funnel = replace(cascade, evaluation=replace(cascade.evaluation, funnel=[first, stage]))
    text = page(tmp_path, rows=[row_with_funnel, row("a", 0.1)])
    assert "<h2>Stages" in text
    assert "98.2%" in text
    assert "</span>5.0</td>" in text
    assert "</span>20.0</td>" in text  # 0.95 - 0.75
    assert "&quot;&#x27;&amp;$x_1$</b>: 20.0 of 100 targets." in text
    assert "<h2>Stages" not in page(tmp_path)
    tags(text)


PART = {
    "name": EVIL,
    "weight": 0.65,
    "transform": "softmax",
    "temperature": 0.5,
    "metrics": {"recall@10": 0.1, "ndcg@10": 0.05},
    "gains": {"recall@10": [0.02, 0.01, 0.03], "ndcg@10": [-0.001, -0.002, 0.0]},
}


@pytest.mark.usefixtures("without_figures")
def test_the_parts_of_a_blend_are_a_section(tmp_path: Path) -> None:
    blend = row("blend", 0.3)
    row_with_parts = replace(blend, evaluation=replace(blend.evaluation, parts=[PART]))
    text = page(tmp_path, rows=[row_with_parts, row("a", 0.1)])
    assert "<h2>Parts" in text
    assert "<td>0.65</td><td>softmax, temperature 0.5</td><td>0.1000</td><td>0.0500</td>" in text
    assert "<td>+0.0200 (+0.0100 .. +0.0300)</td><td>-0.0010 (-0.0020 .. +0.0000)</td>" in text
    assert "<h2>Parts" not in page(tmp_path)
    tags(text)


@pytest.mark.usefixtures("without_figures")
def test_generation_quality_is_a_section_by_level(tmp_path: Path) -> None:
    level = {"teacher_forced": 0.5, "free_running": 0.25, "survival": 0.75}
    shares = {"recall@10": 0.05, "free_recall@10": 0.04, "repaired_recall@10": 0.045, "invalid@10": 0.123}
    generation = {"requests": 1_500, "beam_width": 20, "levels": [level, level], **shares}
    tiger = row(EVIL, 0.3)
    tiger = replace(tiger, evaluation=replace(tiger.evaluation, generation=generation))
    text = page(tmp_path, rows=[tiger, row("a", 0.1)])
    cells = "".join(f"<td>{share}</td><td>{share}</td>" for share in ("50.0%", "25.0%", "75.0%"))
    assert f"<td>alone</td><td>20</td>{cells}</tr>" in text
    assert "<td>12.3%</td><td>0.0400</td><td>0.0450</td><td>0.0500</td>" in text
    assert "<h2>Generation of codes" in text
    assert "<h2>Generation of codes" not in page(tmp_path)
    tags(text)


@pytest.mark.usefixtures("without_figures")
def test_generators_of_different_depth_stand_side_by_side(tmp_path: Path) -> None:
    level = {"teacher_forced": 0.5, "free_running": 0.25, "survival": 0.75}
    shares = {"recall@10": 0.05, "free_recall@10": 0.04, "repaired_recall@10": 0.045, "invalid@10": 0.123}
    rows = []
    for name, depth, is_guided in (("deep", 3, False), ("flat", 2, True)):
        generation = {"requests": 9, "beam_width": 20, "guided": is_guided, "levels": [level] * depth, **shares}
        plain = row(name, 0.3)
        rows.append(replace(plain, evaluation=replace(plain.evaluation, generation=generation)))
    text = page(tmp_path, rows=rows)
    section = text[text.index("<h2>Generation of codes") :]
    lines = re.findall("<tr>.*?</tr>", section)[:4]
    assert [line.count('colspan="3"') for line in lines] == [4, 0, 0, 0]
    assert lines[1].count(">level 3</th>") == 3
    assert lines[2].count("<td>") == lines[3].count("<td>") == 12
    assert lines[3].count("<td></td>") == 3
    assert "<td>guided</td>" in lines[3]
    tags(text)


def test_a_section_without_data_is_skipped(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "Training" not in text
    assert "Codebooks" not in text
    assert "Customers" not in text
    assert re.findall("<h2>[^<]*", page(tmp_path, rows=[])) == []
    tags(text)


@pytest.mark.usefixtures("without_figures")
def test_the_best_figures_and_those_within_noise_are_marked(tmp_path: Path) -> None:
    twin = row("twin", 0.303)
    text = page(tmp_path, rows=[row("weak", 0.1), row("strong", 0.3), twin])
    board = text[text.index("<h2>Scoreboard") :]
    lines = {line.split("</span>")[1].split("<")[0]: line for line in re.findall(r"<tr><td.*?</tr>", board)[:3]}
    assert "★" not in lines["weak"]
    assert "≈" not in lines["weak"]
    assert "0.3067&nbsp;≈" in lines["strong"]
    assert "★" in lines["twin"]
    assert "1,234,567" in lines["weak"]
    assert 'data-value="1234567"' in lines["weak"]
    assert '<td data-value="2e-05">0.000020</td>' in lines["weak"]  # 1.8 s of a core at 0.04 an hour


@pytest.mark.usefixtures("without_figures")
def test_hits_of_example_customers_are_marked_by_item_and_channels_are_named(tmp_path: Path) -> None:
    lists = {
        "a": [ListedItem("lamp", channel="item-cf"), ListedItem("lamp", is_hit=True)],
        "other": [ListedItem("cup")],
    }
    text = page(tmp_path, examples=[CustomerExample("ann", ["mug"], ["lamp"], lists)])
    assert '<li>lamp <small>item-cf</small></li><li><span class="hit">✓&nbsp;lamp</span></li>' in text
    assert '</span>a <span class="soft">1 hit</span></h4>' in text
    assert '<h4>other <span class="soft">no hit</span></h4>' in text
    tags(text)


@pytest.mark.usefixtures("without_figures")
def test_calibration_is_a_section_of_rankers(tmp_path: Path) -> None:
    ranker = row("din", 0.3)
    metrics = ranker.evaluation.metrics | {"calibration_error": 0.0123, "normalised_entropy": 0.9}
    figures = replace(ranker.evaluation, calibration={"click": BINS}, metrics=metrics)
    text = page(tmp_path, rows=[replace(ranker, evaluation=figures), row("a", 0.1)])
    assert "<h2>Calibration" in text
    assert '<td data-value="0.0123">0.0123</td><td data-value="0.9">0.9000</td></tr></tbody>' in text
    assert "a predicted probability is off by 1.2 percentage points on average." in text
    assert "<h2>Calibration" not in page(tmp_path)
    tags(text)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def rendered(file: Path) -> str:
    """Return the page as the browser has it after its scripts have run."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent / 'profile'}"]
    command = [BROWSER, *options, "--dump-dom", file.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


def model_order(text: str) -> list[str]:
    """Return the models of the scoreboard, from top to bottom."""
    board = text[text.index("<h2>Scoreboard") : text.index("<h2>", text.index("<h2>Scoreboard") + 4)]
    return re.findall(r'<tr><td data-value="(\w+)">', board)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.usefixtures("without_figures")
def test_a_browser_runs_the_script_under_the_policy_and_sorts_by_keyboard_and_click(tmp_path: Path) -> None:
    undefined = row("undefined", 0.2)
    evaluation = replace(undefined.evaluation, metrics=undefined.evaluation.metrics | {"recall@10": float("nan")})
    rows = [row("middle", 0.2), replace(undefined, evaluation=evaluation), row("best", 0.4), row("least", 0.1)]
    text = page(tmp_path, rows=rows)
    original = rendered(tmp_path / "report.html")
    assert "sort by this column" in original
    assert model_order(original) == ["middle", "undefined", "best", "least"]
    for presses, order, expected in (
        (1, "descending", ["best", "middle", "least", "undefined"]),
        (2, "ascending", ["least", "middle", "best", "undefined"]),
    ):
        press = (
            "const button = document.querySelectorAll('table.sortable th button')[1]; button.focus();"
            f"if (document.activeElement === button) for (let i = 0; i < {presses}; i++) button.click();"
        )
        changed = text.replace(POLICY, "").replace("</body>", f"<script>{press}</script></body>")
        (tmp_path / "pressed.html").write_text(changed, encoding="utf-8")
        pressed = rendered(tmp_path / "pressed.html")
        assert model_order(pressed) == expected
        assert len(re.findall('<th [^>]*aria-sort="', pressed)) == 1
        assert re.search(rf'<th [^>]*aria-sort="{order}"[^>]*><button[^>]*>recall@10', pressed)


def test_the_same_rows_give_the_same_page(tmp_path: Path) -> None:
    assert full_page(tmp_path) == full_page(tmp_path)


def test_undefined_figures_do_not_stop_the_report(tmp_path: Path) -> None:
    nan = torch.full((5,), torch.nan, dtype=torch.float64)
    evaluation = Evaluation(
        "none", "time", False, 5, 5, {"recall@10": float("nan")}, {"recall@10": interval(nan)}, {}, {"recall@10": nan}
    )
    tags(page(tmp_path, rows=[ReportRow(evaluation, 0, 0.0, 0.0, 0.0)]))
    text = page(tmp_path, rows=[ReportRow(evaluation, 0, 0.0, 0.0, 0.0), row("b", 0.3, size=5)])
    tags(text)
    assert "&nbsp;≈" not in text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=60))
def test_areas_of_a_treemap_are_proportional_and_do_not_overlap(sizes: list[int]) -> None:
    sizes_falling = [float(size) for size in sorted(sizes, reverse=True)]
    boxes = squarify(sizes_falling, (10, 20, 300, 200))
    scale = 300 * 200 / sum(sizes_falling)
    for size, (x, y, width, height) in zip(sizes_falling, boxes, strict=True):
        assert width * height == pytest.approx(size * scale, rel=1e-6)
        assert x >= 10 - 1e-6
        assert y >= 20 - 1e-6
        assert x + width <= 310 + 1e-6
        assert y + height <= 220 + 1e-6
    for index, (x, y, width, height) in enumerate(boxes):
        for a, b, c, d in boxes[index + 1 :]:
            overlap = min(x + width, a + c) - max(x, a), min(y + height, b + d) - max(y, b)
            assert min(overlap) < 1e-6


def test_groups_count_items_and_have_a_title_of_each_of_the_largest_cells() -> None:
    codes = torch.tensor([[1, 0], [1, 1], [1, 1], [0, 3]])
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=(2, 4), catalog_fingerprint="x")
    tree = groups(table, pl.Series(["a", "b", "c", "d"]))
    assert [(group.code, group.items, group.cells, group.titles) for group in tree] == [
        (1, 3, (2, 1), ("b", "a")),
        (0, 1, (1,), ("d",)),
    ]
    assert groups(table, None)[1].titles == ("item 4",)
    assert tree_map(tree).count("<title>") == 2


def test_codes_of_one_level_are_a_tree_of_one_level() -> None:
    table = IdentifierTable.from_item_codes(torch.tensor([[0], [1], [1]]), codebook_sizes=(2,), catalog_fingerprint="")
    assert [group.items for group in groups(table, None)] == [2, 1]
