"""Tests of the generation report, against counts by hand for a generator of known logits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.core.jagged import Jagged
from nextitem.data.protocols import make_split
from nextitem.decoding.guidance import GuideUse
from nextitem.decoding.trie import PrefixTrie
from nextitem.evaluation.generation import LEVEL_FIGURES, generation_report, prefix_survival
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import cycle

ROWS = [[0, 0], [0, 1], [1, 0], [2, 1]]
TABLE = identifier_table(ROWS, (3, 2))


class FakeCodeGenerator(FakeGenerator):
    """FakeGenerator with the codes of a catalogue."""

    trie = PrefixTrie.from_table(TABLE)
    codes = TABLE.codes.long().clamp(min=0)


# One user. First codes, likeliest first: 1, 0, 2. After 0: 1, 0. After 1: 1 (of no item), 0. After 2: 1, 0.
GENERATOR = FakeCodeGenerator([torch.tensor([[[2.0, 3.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])])


def report(target: int, *, excluded: list[int] | None = None, **options: int) -> dict[str, Any]:
    """Return the report on one request with one target."""
    batch = requests(1, excluded=None if excluded is None else [excluded])
    options = {"beam_width": 20} | options
    return generation_report(GENERATOR, replace(batch, targets=Jagged.from_rows([[target]])), **options)


@pytest.mark.parametrize(
    ("target", "teacher_forced", "free_running", "survival"),
    [
        (1, [0, 0], [0, 1], [0, 0]),  # 0 0: the greedy path is 1 0, whose second code is the same
        (2, [0, 1], [0, 0], [0, 0]),  # 0 1
        (3, [1, 1], [1, 1], [1, 1]),  # 1 0: after 1 the likeliest code is of no item, so the likeliest legal one is 0
        (4, [0, 1], [0, 0], [0, 0]),  # 2 1
    ],
)
def test_figures_of_levels_by_hand(
    target: int, teacher_forced: list[int], free_running: list[int], survival: list[int]
) -> None:
    levels = report(target, beam_width=1, k=1)["levels"]
    assert [level["teacher_forced"] for level in levels] == teacher_forced
    assert [level["free_running"] for level in levels] == free_running
    assert [level["survival"] for level in levels] == survival


def test_codes_of_excluded_items_only_are_not_legal() -> None:
    levels = report(1, excluded=[2, 3], beam_width=1, k=1)["levels"]
    assert [level["teacher_forced"] for level in levels] == [1, 1]  # without 3 the likeliest first code is 0
    assert [level["free_running"] for level in levels] == [1, 1]


def test_if_all_items_are_excluded_no_code_is_correct() -> None:
    levels = report(3, excluded=[1, 2, 3, 4], beam_width=1, k=1)["levels"]
    assert [[level[name] for name in LEVEL_FIGURES] for level in levels] == [[0, 0, 0]] * 2


def test_the_beam_width_is_at_least_k() -> None:
    assert report(3, beam_width=1, k=2) == report(3, beam_width=2, k=2)


def test_more_beams_let_the_true_codes_survive() -> None:
    levels = report(2, beam_width=2, k=1)["levels"]
    assert [level["survival"] for level in levels] == [1, 1]
    assert [level["free_running"] for level in levels] == [0, 0]


def test_unconstrained_generation_by_hand() -> None:
    # Sequences, likeliest first: 1 1 (of no item, 0.515), 1 0 (item 3, 0.1896), 0 1 (item 2, 0.1895), ...
    figures = report(3, beam_width=2, k=1)
    assert figures["invalid@1"] == 1
    assert figures["invalid@2"] == 0.5
    assert figures["free_recall@1"] == 1
    assert report(2, beam_width=2, k=1)["free_recall@1"] == 0
    assert figures["repaired_recall@1"] == 1  # 1 1 is replaced by item 3, the only item below 1


def test_excluded_items_are_dropped_from_unconstrained_lists() -> None:
    assert report(3, beam_width=3, k=2, excluded=[3])["repaired_recall@2"] == 0
    assert report(2, beam_width=3, k=1, excluded=[3])["repaired_recall@1"] == 1


def guided_generator(tmp_path: Path, weight: float) -> Any:
    """Return a depth-decoder that has learned little from the cycle, with a guide that knows every answer."""
    guide = {"model": {"name": "support.planted_scorers:Planted", "right_after": 12}, "weight": weight}
    settings = {"model": {"guide": guide}, "training": {"max_epochs": 1}}
    options: dict[str, Any] = {"recipe": "debug/depth-decoder", "protocol": "leave-one-out", "progress": False}
    return train("depth-decoder", cycle(), out=tmp_path / "run", settings=settings, **options).model


def test_a_guide_steers_what_is_measured(tmp_path: Path) -> None:
    model, test = guided_generator(tmp_path, 0.95), make_split(cycle(), "leave-one-out").test
    guided = generation_report(model, test, beam_width=10)
    assert guided["guided"]
    assert guided["levels"] == [dict.fromkeys(LEVEL_FIGURES, 1.0)] * model.trie.num_levels
    alone = generation_report(model.without_guide(), test, beam_width=10)
    assert not alone["guided"]
    assert alone["levels"][-1]["free_running"] < 1
    assert alone["free_recall@10"] == guided["free_recall@10"]  # unconstrained generation has no guide
    assert model.is_guided  # the copy without a guide leaves the model as it was
    model.guidance.use(GuideUse(0.0))
    assert generation_report(model, test, beam_width=10) == alone


@pytest.mark.parametrize("weight", [0.0, 0.4, 0.8])
def test_after_true_greedy_codes_the_next_code_is_the_greedy_one(weight: float, tmp_path: Path) -> None:
    model, test = guided_generator(tmp_path, weight), make_split(cycle(), "leave-one-out").test
    num_checked = 0
    for row in range(test.num_requests):
        figures = prefix_survival(model, test.select(torch.tensor([row])), beam_widths=[1])
        forced, free = figures["teacher_forced"], figures["free_running"]
        assert figures["survival"][1] == [float(all(free[: level + 1])) for level in range(len(free))]
        depth = next((level for level, share in enumerate(free) if not share), len(free) - 1)
        assert forced[: depth + 1] == free[: depth + 1]
        num_checked += depth
    assert num_checked > 0


def test_survival_rises_with_the_beams_and_ends_at_1(tmp_path: Path) -> None:
    model, test = guided_generator(tmp_path, 0.0), make_split(cycle(), "leave-one-out").test
    figures = prefix_survival(model, test, beam_widths=[1, 3, 12])
    by_width = [figures["survival"][width] for width in (1, 3, 12)]
    for narrow, wide in pairwise(by_width):
        assert all(less <= more for less, more in zip(narrow, wide, strict=True))
    assert by_width[0][-1] < by_width[2][-1] == 1
    report = generation_report(model, test, beam_width=3, k=1)
    assert [level["survival"] for level in report["levels"]] == by_width[1]
