"""Tests of every registered re-ranker."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_catalog import build, candidates, lists, requests, shelf

from nextitem.cascade.reranker import Reranker
from nextitem.core.recommendations import Recommendations
from nextitem.core.registry import RERANKERS

N = 40
BRANDS = [None if n % 11 == 0 else "abcde"[n * n % 5] for n in range(N)]
TAGS = [["x", "y", "z", "x"][n % 4 : n % 4 + n % 3] for n in range(N)]
CONTENT = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
CONTENT[20:25] = CONTENT[10:15]  # equal items
CONTENT[30] = 0
WITH_CONTENT = shelf(BRANDS, tags=TAGS, ages=list(range(N)), content=CONTENT)
WITHOUT = shelf(BRANDS, tags=TAGS, ages=list(range(N)))
RULES = [
    {"kind": "drop", "column": "tags", "values": ["z"]},
    {"kind": "pin", "item": "i7", "slot": 3},
    {"kind": "gap", "column": "brand", "between": 1},
    {"kind": "fresh", "days": 12, "least": 2},
    {"kind": "cap", "column": "brand", "most": 3},
    {"kind": "quota", "column": "tags", "value": "y", "least": 3},
]
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "mmr": ("mmr", {"relevance_weight": 0.5}),
    "dpp": ("dpp", {"theta": 0.5}),
    "dpp, window": ("dpp", {"theta": 0.5, "window": 3}),
    "calibrated": ("calibrated", {"column": "brand"}),
    "calibrated, lists": ("calibrated", {"column": "tags"}),
    "rules": ("rules", {"rules": RULES}),
    "no rules": ("rules", {}),
    "exposure": ("exposure", {"column": "brand"}),
}


def both(case: str) -> list[Reranker]:
    name, fields = CASES[case]
    return [build(name, catalog, **fields) for catalog in (WITH_CONTENT, WITHOUT)]


def random_candidates(seed: int, rows: int = 6, width: int = 25) -> list[list[int]]:
    """Return random candidates, a different number for each request; the second has none, the third has one."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, width + 1, (rows,), generator=generator).tolist()
    lengths[1:3] = [0, 1]
    return [(torch.randperm(N, generator=generator)[:length] + 1).tolist() for length in lengths]


HISTORIES = [[1, 2, 3], [4], [5, 6], [], [1, 1, 9, 30], [40]]


def test_every_registered_re_ranker_has_a_case() -> None:
    assert {name for name, _ in CASES.values()} == set(RERANKERS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("score", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_raise(case: str, score: float) -> None:
    ranked = candidates([[1, 2, 3], [4, 5]])
    place = (0, 0) if score > 0 else (0, 2)  # where such a score may be in a descending list
    ranked.scores[place] = score
    for reranker in both(case):
        with pytest.raises(ValueError, match="must be finite"):
            reranker.rerank(ranked, requests([[1], [2]]), 2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_answer_is_candidates_without_repeats_padded_at_the_tail(case: str, k: int, seed: int) -> None:
    rows = random_candidates(seed)
    ranked = candidates(rows, channels=True)
    for reranker in both(case):
        answer = reranker.rerank(ranked, requests(HISTORIES), k)
        assert answer.item_ids.shape == answer.scores.shape == (6, k)
        assert answer.ordered_by == "reranking"
        for row, listed in zip(rows, lists(answer), strict=True):
            assert set(listed) <= set(row)
            assert len(set(listed)) == len(listed)
            permitted = [item for item in row if "z" not in TAGS[item - 1]] if case == "rules" else row
            assert len(listed) == min(k, len(permitted))
        is_real = answer.item_ids > 0
        assert not bool((is_real[:, 1:] & ~is_real[:, :-1]).any())
        assert bool((answer.scores[~is_real] == -torch.inf).all())


@pytest.mark.parametrize("case", CASES)
def test_items_keep_their_scores_and_channels(case: str) -> None:
    rows = random_candidates(2)
    ranked = candidates(rows, channels=True)
    for reranker in both(case):
        answer = reranker.rerank(ranked, requests(HISTORIES), 9)
        assert answer.channels == ("first", "second", "third")
        assert answer.channel is not None
        assert torch.equal(answer.channel, answer.item_ids % 3)
        for row, (listed, scores) in enumerate(zip(lists(answer), answer.scores.tolist(), strict=True)):
            assert scores[: len(listed)] == [float(len(rows[row]) - rows[row].index(item)) for item in listed]


@pytest.mark.parametrize("case", CASES)
def test_a_batch_has_the_answers_of_single_requests(case: str) -> None:
    rows, batch = random_candidates(3), requests(HISTORIES)
    for reranker in both(case):
        together = reranker.rerank(candidates(rows), batch, 12)
        for row in range(6):
            alone = reranker.rerank(candidates([rows[row]]), batch.select(torch.tensor([row])), 12)
            assert torch.equal(alone.item_ids[0], together.item_ids[row])
            assert [replace(relaxation, request=row) for relaxation in alone.relaxations] == [
                relaxation for relaxation in together.relaxations if relaxation.request == row
            ]


@pytest.mark.parametrize("case", CASES)
def test_the_same_request_has_the_same_answer(case: str) -> None:
    ranked = candidates(random_candidates(4))
    for reranker in both(case):
        first, second = (reranker.rerank(ranked, requests(HISTORIES), 10) for _ in range(2))
        assert torch.equal(first.item_ids, second.item_ids)
        assert first.relaxations == second.relaxations


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 10**6), levels=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_the_order_of_tied_candidates_does_not_matter(case: str, seed: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    items = torch.randperm(N, generator=generator)[:24] + 1
    score = torch.randint(0, levels, (24,), generator=generator).float()
    answers = []
    for _ in range(2):
        shuffled = torch.randperm(24, generator=generator)
        order = shuffled[score[shuffled].argsort(descending=True, stable=True)]
        ranked = Recommendations(items[order][None], score[order][None])
        answers.append([r.rerank(ranked, requests([[1, 2, 3]]), 10).item_ids.tolist() for r in both(case)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("case", CASES)
def test_requests_without_candidates_have_empty_lists(case: str) -> None:
    for reranker in both(case):
        assert reranker.rerank(candidates([[], []]), requests([[1], []]), 3).item_ids.tolist() == [[0] * 3] * 2
        assert reranker.rerank(candidates([]), requests([]), 3).item_ids.shape == (0, 3)


@pytest.mark.parametrize("case", CASES)
def test_candidates_that_scores_do_not_order_keep_their_order(case: str) -> None:
    """Their places count, so that an answer can be re-ranked once more."""
    rows = [[3, 9, 1, 8, 2, 12], [2, 1, 20, 3, 5, 6]]
    unordered = candidates(rows, scores=[[0.1, 0.9, 0.5, 0.7, 0.7, 0.3]] * 2)
    for reranker in both(case):
        answer = reranker.rerank(unordered, requests([[1], [2]]), 4)
        expected = reranker.rerank(candidates(rows), requests([[1], [2]]), 4)
        assert torch.equal(answer.item_ids, expected.item_ids)


@pytest.mark.parametrize("case", CASES)
def test_wrong_arguments_raise(case: str) -> None:
    reranker = both(case)[0]
    with pytest.raises(ValueError, match="k must be at least 1"):
        reranker.rerank(candidates([[1]]), requests([[1]]), 0)
    with pytest.raises(ValueError, match="1 lists of candidates for 2 requests"):
        reranker.rerank(candidates([[1]]), requests([[1], [2]]), 3)
