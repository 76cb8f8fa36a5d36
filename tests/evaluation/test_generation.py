"""The report on spelling, against counting by hand with a generator of known logits."""

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


class FakeSpeller(FakeGenerator):
    """A FakeGenerator with a catalogue."""

    trie = PrefixTrie.from_table(TABLE)
    codes = TABLE.codes.long().clamp(min=0)


# One user: first codes in order 1, 0, 2; after 0: 1 before 0; after 1: 1 (nobody's) before 0; after 2: 1 before 0.
SPELLER = FakeSpeller([torch.tensor([[[2.0, 3.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])])


def report(target: int, *, excluded: list[int] | None = None, **options: int) -> dict[str, Any]:
    batch = requests(1, excluded=None if excluded is None else [excluded])
    options = {"beam_width": 20} | options
    return generation_report(SPELLER, replace(batch, targets=Jagged.from_rows([[target]])), **options)


@pytest.mark.parametrize(
    ("target", "forced", "greedy", "survives"),
    [
        (1, [0, 0], [0, 1], [0, 0]),  # 0 0: the greedy path is 1 0, whose second code is the same
        (2, [0, 1], [0, 0], [0, 0]),  # 0 1
        (3, [1, 1], [1, 1], [1, 1]),  # 1 0: after 1 the likeliest code is nobody's, so the likeliest legal one is 0
        (4, [0, 1], [0, 0], [0, 0]),  # 2 1
    ],
)
def test_levels_by_hand(target: int, forced: list[int], greedy: list[int], survives: list[int]) -> None:
    levels = report(target, beam_width=1, k=1)["levels"]
    assert [level["teacher_forced"] for level in levels] == forced
    assert [level["free_running"] for level in levels] == greedy
    assert [level["survival"] for level in levels] == survives


def test_what_is_excluded_is_no_legal_code() -> None:
    levels = report(1, excluded=[2, 3], beam_width=1, k=1)["levels"]
    assert [level["teacher_forced"] for level in levels] == [1, 1]  # without 3 the likeliest first code is 0
    assert [level["free_running"] for level in levels] == [1, 1]


def test_where_nothing_is_legal_nothing_is_right() -> None:
    levels = report(3, excluded=[1, 2, 3, 4], beam_width=1, k=1)["levels"]
    assert [[level[name] for name in LEVEL_FIGURES] for level in levels] == [[0, 0, 0]] * 2


def test_no_fewer_beams_than_items_are_told() -> None:
    assert report(3, beam_width=1, k=2) == report(3, beam_width=2, k=2)


def test_more_beams_let_the_true_codes_survive() -> None:
    levels = report(2, beam_width=2, k=1)["levels"]
    assert [level["survival"] for level in levels] == [1, 1]
    assert [level["free_running"] for level in levels] == [0, 0]


def test_free_spelling_by_hand() -> None:
    # Free sequences, likeliest first: 1 1 (nobody's, .515), 1 0 (item 3, .1896), 0 1 (item 2, .1895), ...
    found = report(3, beam_width=2, k=1)
    assert found["invalid@1"] == 1
    assert found["invalid@2"] == 0.5
    assert found["free_recall@1"] == 1
    assert report(2, beam_width=2, k=1)["free_recall@1"] == 0
    assert found["repaired_recall@1"] == 1  # 1 1 is put right to item 3, the only one below 1


def test_what_may_not_be_answered_is_left_out_of_free_lists_too() -> None:
    assert report(3, beam_width=3, k=2, excluded=[3])["repaired_recall@2"] == 0
    assert report(2, beam_width=3, k=1, excluded=[3])["repaired_recall@1"] == 1
