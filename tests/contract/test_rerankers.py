"""What every registered re-ranker must do."""

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
    name, chosen = CASES[case]
    return [build(name, catalog, **chosen) for catalog in (WITH_CONTENT, WITHOUT)]


def drawn(seed: int, rows: int = 6, width: int = 25) -> list[list[int]]:
    """Candidates of different numbers; the second request has none, the third one."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, width + 1, (rows,), generator=draw).tolist()
    lengths[1:3] = [0, 1]
    return [(torch.randperm(N, generator=draw)[:length] + 1).tolist() for length in lengths]


HISTORIES = [[1, 2, 3], [4], [5, 6], [], [1, 1, 9, 30], [40]]


def test_every_registered_one_has_a_case() -> None:
    assert {name for name, _ in CASES.values()} == set(RERANKERS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("score", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(case: str, score: float) -> None:
    given_ = candidates([[1, 2, 3], [4, 5]])
    place = (0, 0) if score > 0 else (0, 2)  # where a score of this kind may stand in a list that falls
    given_.scores[place] = score
    for reranker in both(case):
        with pytest.raises(ValueError, match="must be finite"):
            reranker.rerank(given_, requests([[1], [2]]), 2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_answer_is_candidates_without_repeats_padded_at_the_tail(case: str, k: int, seed: int) -> None:
    rows = drawn(seed)
    given_ = candidates(rows, channels=True)
    for reranker in both(case):
        answer = reranker.rerank(given_, requests(HISTORIES), k)
        assert answer.item_ids.shape == answer.scores.shape == (6, k)
        assert answer.ordered_by == "reranking"
        for row, shown in zip(rows, lists(answer), strict=True):
            assert set(shown) <= set(row)
            assert len(set(shown)) == len(shown)
            passed = [item for item in row if "z" not in TAGS[item - 1]] if case == "rules" else row
            assert len(shown) == min(k, len(passed))
        real = answer.item_ids > 0
        assert not bool((real[:, 1:] & ~real[:, :-1]).any())
        assert bool((answer.scores[~real] == -torch.inf).all())


@pytest.mark.parametrize("case", CASES)
def test_items_keep_their_scores_and_channels(case: str) -> None:
    rows = drawn(2)
    given_ = candidates(rows, channels=True)
    for reranker in both(case):
        answer = reranker.rerank(given_, requests(HISTORIES), 9)
        assert answer.channels == ("first", "second", "third")
        assert answer.channel is not None
        assert torch.equal(answer.channel, answer.item_ids % 3)
        for row, (shown, scores) in enumerate(zip(lists(answer), answer.scores.tolist(), strict=True)):
            assert scores[: len(shown)] == [float(len(rows[row]) - rows[row].index(item)) for item in shown]


@pytest.mark.parametrize("case", CASES)
def test_a_batch_answers_as_single_requests_do(case: str) -> None:
    rows, batch = drawn(3), requests(HISTORIES)
    for reranker in both(case):
        together = reranker.rerank(candidates(rows), batch, 12)
        for row in range(6):
            alone = reranker.rerank(candidates([rows[row]]), batch.select(torch.tensor([row])), 12)
            assert torch.equal(alone.item_ids[0], together.item_ids[row])
            assert [replace(one, request=row) for one in alone.relaxations] == [
                one for one in together.relaxations if one.request == row
            ]


@pytest.mark.parametrize("case", CASES)
def test_the_same_answer_twice(case: str) -> None:
    given_ = candidates(drawn(4))
    for reranker in both(case):
        first, second = (reranker.rerank(given_, requests(HISTORIES), 10) for _ in range(2))
        assert torch.equal(first.item_ids, second.item_ids)
        assert first.relaxations == second.relaxations


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 10**6), levels=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_the_order_of_tied_candidates_does_not_matter(case: str, seed: int, levels: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    items = torch.randperm(N, generator=draw)[:24] + 1
    score = torch.randint(0, levels, (24,), generator=draw).float()
    answers = []
    for _ in range(2):
        shuffled = torch.randperm(24, generator=draw)
        order = shuffled[score[shuffled].argsort(descending=True, stable=True)]
        given_ = Recommendations(items[order][None], score[order][None])
        answers.append([r.rerank(given_, requests([[1, 2, 3]]), 10).item_ids.tolist() for r in both(case)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("case", CASES)
def test_no_candidates_at_all(case: str) -> None:
    for reranker in both(case):
        assert reranker.rerank(candidates([[], []]), requests([[1], []]), 3).item_ids.tolist() == [[0] * 3] * 2
        assert reranker.rerank(candidates([]), requests([]), 3).item_ids.shape == (0, 3)


@pytest.mark.parametrize("case", CASES)
def test_what_scores_do_not_order_is_taken_as_it_stands(case: str) -> None:
    """Places count then, so an answer can be re-ranked once more."""
    rows = [[3, 9, 1, 8, 2, 12], [2, 1, 20, 3, 5, 6]]
    odd = candidates(rows, scores=[[0.1, 0.9, 0.5, 0.7, 0.7, 0.3]] * 2)
    for reranker in both(case):
        answer = reranker.rerank(odd, requests([[1], [2]]), 4)
        expected = reranker.rerank(candidates(rows), requests([[1], [2]]), 4)
        assert torch.equal(answer.item_ids, expected.item_ids)


@pytest.mark.parametrize("case", CASES)
def test_what_a_programmer_gets_wrong(case: str) -> None:
    reranker = both(case)[0]
    with pytest.raises(ValueError, match="k must be at least 1"):
        reranker.rerank(candidates([[1]]), requests([[1]]), 0)
    with pytest.raises(ValueError, match="1 lists of candidates for 2 requests"):
        reranker.rerank(candidates([[1]]), requests([[1], [2]]), 3)
