"""The report on served models: plain verdicts, a page that is self-contained and escaped, and the same bytes again."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from nextitem.evaluation.attribution import EVENT_SCHEMA
from nextitem.evaluation.live import LiveReport, live_report
from nextitem.evaluation.off_policy import Estimate
from nextitem.evaluation.off_policy_report import OffPolicyReport
from nextitem.evaluation.rates import Ratio
from nextitem.reporting.live_report import print_live_report, verdicts, write_live_report

HOSTILE = "<script>alert(1)</script>"


def report(chances: dict[str, float], *, num_users: int = 200, off_policy: OffPolicyReport | None = None) -> LiveReport:
    """Return the report on models whose users saw two lists of one item each, and clicked with these probabilities."""
    rng, rows, clicks = np.random.default_rng(0), [], []
    for model, chance in chances.items():
        for number in range(2 * num_users):
            request, user = f"{model}-{number}", f"{model}-{number // 2}"
            policy = f"{model} {'ab' * 8}" + (" fallback: no history" if number % 9 == 0 else "")
            rows.append((request, user, f"i{number % 7}", 1_700_000_000_000 + number, 1, 1.0, policy))
            if rng.random() < chance:
                clicks.append((user, f"i{number % 7}", "click", 1_700_000_000_500, request))
    columns = ["impression_id", "user_id", "item_id", "timestamp", "slot", "propensity", "policy"]
    events = pl.DataFrame(clicks, schema=EVENT_SCHEMA, orient="row")
    result, _ = live_report(pl.DataFrame(rows, schema=columns, orient="row"), events)
    return replace(result, off_policy=off_policy)


def printed(figures: LiveReport) -> str:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        print_live_report(figures, console=console)
    return capture.get()


def test_verdicts_say_which_differences_are_real() -> None:
    (sentence,) = verdicts(report({"a": 0.3, "b": 0.5}))
    assert re.fullmatch(
        r"b has [\d.]+ lists with a click among 100, a [\d.]+: \d+% more, which is more than chance \(95% interval "
        r"\+[\d.]+ to \+[\d.]+ per 100 lists\)\.",
        sentence,
    )
    (mirrored,) = verdicts(report({"b": 0.5, "a": 0.3}))
    assert mirrored.startswith("b has")
    assert "% more, which is more than chance" in mirrored
    (sentence,) = verdicts(report({"a": 0.3, "b": 0.3}))
    assert "no more than chance (95% interval -" in sentence
    (sentence,) = verdicts(report({"a": 0.3, "b": 0.5}, num_users=1))
    assert "Too few users" in sentence


def test_the_terminal_shows_rates_with_intervals() -> None:
    text = printed(report({"a": 0.3, "b": 0.5}))
    assert re.search(r"a +400 +200 +\d\d\.\d\d% \(\d\d\.\d\d% \.\. \d\d\.\d\d%\)", text)
    assert "more than chance" in text
    assert "fallbacks, which say nothing of the model" in text


def test_the_page_is_self_contained_escaped_and_the_same_again(tmp_path: Path) -> None:
    estimate = Estimate(
        "dr", Ratio(0.5, 0.4, 0.6), Ratio(0.1, -0.1, 0.3), 1234.0, 9.5, None, ["One list has 20% of all weight."]
    )
    off_policy = OffPolicyReport(
        "click", 99, Ratio(0.4, 0.3, 0.5), [estimate], "dr", "Rely on dr.", [f"left out {HOSTILE}"]
    )
    figures = report({"a": 0.3, HOSTILE: 0.5, 'x" onload="y': 0.4}, off_policy=off_policy)
    for name in ("first.html", "second.html"):
        write_live_report(tmp_path / name, figures, title=f"Report {HOSTILE}")
    page = (tmp_path / "first.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "second.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|https?://|<link|<img|@import|url\(", page.replace("http-equiv", ""))
    assert page.count("&lt;script&gt;") >= 8
    assert 'x" onload' not in page
    for text in (
        "Which differences are real",
        "Lists with a click",
        "By slot",
        "What was shown",
        "1,234",
        "20% of all weight",
    ):
        assert text in page
    assert len(re.findall("<circle", page)) == 3


def test_a_single_model_has_no_verdict_and_a_page(tmp_path: Path) -> None:
    figures = report({"alone": 0.2})
    assert verdicts(figures) == []
    write_live_report(tmp_path / "page.html", figures)
    assert "Which differences are real" not in (tmp_path / "page.html").read_text(encoding="utf-8")
