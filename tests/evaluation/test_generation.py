"""Tests of the generation report, against counts by hand for a generator of known logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.fake_generator import FakeGenerator, identifier_table, requests

from nextitem.core.jagged import Jagged
from nextitem.decoding.trie import PrefixTrie
from nextitem.evaluation.generation import LEVEL_FIGURES, generation_report

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
