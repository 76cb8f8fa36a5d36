"""Tests of the summary in words: which differences it calls real, and what it says of leaders, costs and caveats."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest
import torch

from nextitem.evaluation.evaluate import Evaluation
from nextitem.evaluation.intervals import interval
from nextitem.reporting.comparisons import compare_pairs, pairs_table
from nextitem.reporting.fronts import front
from nextitem.reporting.scoreboard import ReportRow
from nextitem.reporting.summary import (
    accuracy_sentences,
    amount,
    caveats,
    cost_per_thousand,
    speed_sentences,
    summary,
    variety_sentences,
)


def row(
    name: str, hits: torch.Tensor, *, protocol: str = "time", p50_ms: float = 1.0, coverage: float | None = None
) -> ReportRow:
    """Return a row with these hits, one for each request, as its recall@10 (a ranker: as its gauc)."""
    metric = "gauc" if protocol == "impressions" else "recall@10"
    values = {metric: hits.double()}
    figures = {metric: float(hits.double().mean())} | ({} if coverage is None else {"coverage@10": coverage})
    evaluation = Evaluation(
        name, protocol, False, len(hits), None, figures, {metric: interval(values[metric])}, {}, values
    )
    return ReportRow(evaluation, parameters=0, train_seconds=1.0, p50_ms=p50_ms, p99_ms=2.0, cpu_ms=36.0)


def first_of(count: int, size: int = 1000) -> torch.Tensor:
    """Return hits of the first `count` of `size` requests."""
    return (torch.arange(size) < count).double()


def plain(sentences: list[str]) -> list[str]:
    """Return sentences without their markup."""
    return [unescape(re.sub("<[^>]*>", "", sentence)) for sentence in sentences]


ROWS = [row("weak", first_of(40)), row("lead", first_of(300)), row("near", first_of(296)), row("behind", first_of(250))]


def test_differences_beyond_chance_are_real_and_others_are_not() -> None:
    comparisons = compare_pairs(ROWS, "recall@10")
    assert comparisons is not None
    assert comparisons.order == [1, 2, 3, 0]
    assert comparisons.num_pairs == 6
    assert comparisons.tiers() == [[1, 2], [3], [0]]
    assert comparisons.difference(3, 1).mean == pytest.approx(-0.05)
    assert comparisons.difference(1, 3).low == pytest.approx(-comparisons.difference(3, 1).high)
    assert not comparisons.is_real(1, 2)  # four requests, all in favour: 1 in 8 by chance
    assert comparisons.is_real(3, 2)


def test_many_models_need_a_larger_difference() -> None:
    few = [row("lead", first_of(307)), row("near", first_of(300))]  # seven of seven: p = 1 / 64
    pair = compare_pairs(few, "recall@10")
    assert pair is not None
    assert pair.is_real(0, 1)
    many = compare_pairs([*few, *(row(f"twin {number}", first_of(300)) for number in range(6))], "recall@10")
    assert many is not None
    assert not many.is_real(0, 1)


def test_by_chance_alone_hardly_any_of_many_equal_models_is_called_better() -> None:
    num_wrong = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        rows = [row(str(number), torch.rand(400, generator=generator) < 0.2) for number in range(6)]
        comparisons = compare_pairs(rows, "recall@10")
        assert comparisons is not None
        num_wrong += any(p_value < 0.05 for p_value in comparisons.p_values.values())
    assert num_wrong <= 6  # 5% of 40 is 2; unadjusted, about 14 are


def test_the_summary_says_in_words_who_finds_more_and_whether_it_is_chance() -> None:
    comparisons = compare_pairs(ROWS, "recall@10")
    sentences = plain(accuracy_sentences(ROWS, "recall@10", comparisons))
    assert sentences[0] == (
        "Of 100 held-out items, lead finds 30.0 among its first ten recommendations: the most. "
        "No real difference to near (29.6)."
    )
    assert re.fullmatch(
        r"behind finds 25\.0: 5\.0 fewer than lead \(95% interval 3\.\d to 6\.\d\)\. This is more than chance\.",
        sentences[1],
    )
    assert len(sentences) == 3


def test_of_rankers_the_summary_counts_pairs_in_the_right_order() -> None:
    rows = [row(name, torch.full((500,), value), protocol="impressions") for name, value in (("a", 0.6), ("b", 0.7))]
    sentences = plain(accuracy_sentences(rows, "gauc", compare_pairs(rows, "gauc")))
    assert sentences[0].startswith("Of 100 pairs of a positive and a negative impression of one user, b orders 70.0")
    assert "a orders 60.0: 10.0 fewer than b" in sentences[1]
    assert "so favour it" in " ".join(caveats(rows, compare_pairs(rows, "gauc")))


def test_one_model_has_no_comparison_and_undefined_figures_have_no_leader() -> None:
    alone = [ROWS[0]]
    assert compare_pairs(alone, "recall@10") is None
    assert plain(accuracy_sentences(alone, "recall@10", None)) == [
        "Of 100 held-out items, weak finds 4.0 among its first ten recommendations."
    ]
    nothing = [row("none", torch.full((5,), torch.nan))] * 2
    assert compare_pairs(nothing, "recall@10") is None
    assert accuracy_sentences(nothing, "recall@10", None) == ["These requests judge no model."]
    assert summary([], price_per_core_hour=1) == ""
    assert "<h2>In short" in summary(nothing, price_per_core_hour=1)


def test_models_that_do_not_beat_the_untrained_graph_are_named() -> None:
    trained = [replace(row(name, first_of(hits)), parameters=9) for name, hits in (("better", 400), ("not", 303))]
    rows = [*trained, row("item-graph", first_of(300)), row("counts", first_of(10))]
    text = " ".join(plain(caveats(rows, compare_pairs(rows, "recall@10"))))
    assert "not is not really better than item-graph" in text
    assert "better is not" not in text
    assert "one seed" in text
    assert "one seed" not in " ".join(caveats(ROWS, compare_pairs(ROWS, "recall@10")))


def test_speed_and_cost_of_the_fastest_and_of_the_leader() -> None:
    rows = [
        row("quick", first_of(40), p50_ms=0.5),
        row("lead", first_of(300), p50_ms=60.0),
        row("near", first_of(299), p50_ms=6),
    ]
    sentences = plain(speed_sentences(rows, compare_pairs(rows, "recall@10"), 0.5))
    assert sentences[0] == "Fastest: quick, 0.5 ms for one request (median); a million requests cost 5.0."
    assert sentences[1].endswith("That is 120 times as long.")
    assert sentences[2].startswith("As accurate, as far as these requests show, and faster: near")
    assert cost_per_thousand(rows[0], 0.5) == pytest.approx(0.005)  # 36 s of a core: a hundredth of an hour
    assert cost_per_thousand(replace(rows[0], cpu_ms=float("nan")), 0.5) is None


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.0000068, "0.0000068"), (0.04, "0.040"), (1.26, "1.3"), (1234.5, "1,234")]
)
def test_amounts_have_two_significant_digits_and_no_exponent(value: float, text: str) -> None:
    assert amount(value) == text


def test_a_front_has_every_point_that_no_other_dominates() -> None:
    nan = float("nan")
    points = {0: (1.0, 5.0), 1: (3.0, 1.0), 2: (2.0, 3.0), 3: (2.0, 2.0), 4: (1.0, 5.0), 5: (9.0, nan)}
    assert front(points) == [1, 2, 0, 4]  # 3 is beaten by 2; 0 and 4 are equal; 5 is not defined
    assert front({}) == []
    generator = torch.Generator().manual_seed(0)
    many = {
        index: (float(x), float(y)) for index, (x, y) in enumerate(torch.rand(200, 2, generator=generator).tolist())
    }
    by_sweep, highest = [], -1.0
    for index in sorted(many, key=lambda index: (-many[index][0], -many[index][1])):
        if many[index][1] > highest:
            by_sweep.append(index)
            highest = many[index][1]
    assert front(many) == by_sweep


def test_variety_has_the_widest_lists_and_the_models_that_nothing_beats() -> None:
    rows = [
        row("narrow", first_of(300), coverage=0.2),
        row("wide", first_of(200), coverage=0.9),
        row("neither", first_of(100), coverage=0.1),
    ]
    sentences = plain(variety_sentences(rows))
    assert sentences[0] == "Largest part of the catalogue: wide, 90% of its items in any list."
    assert sentences[-1] == "No model beats these in accuracy and coverage at once: narrow and wide."


def test_the_table_of_pairs_marks_real_differences() -> None:
    comparisons = compare_pairs(ROWS, "recall@10")
    assert comparisons is not None
    text = pairs_table(ROWS, comparisons)
    assert text.count("<b>+") == text.count("<b>-") == 5
    assert "+0.4&nbsp;≈" in text
    assert "-0.4&nbsp;≈" in text
    assert "adjusted for 6 pairs" in text
