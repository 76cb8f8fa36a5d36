"""Lists of requests that share rows of scores, compared with lists from one row of scores per request."""

from __future__ import annotations

import pytest
import torch

from nextitem.core import top_items as module
from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.top_items import top_items, top_shared_items

N = 30


@pytest.mark.parametrize("allowed", ["all", "some of all requests", "some of each"])
@pytest.mark.parametrize("entries", [1, 100, 2**20])
@pytest.mark.parametrize("seed", range(3))
def test_shared_rows_give_the_same_lists_as_separate_rows(
    seed: int, entries: int, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARED_ENTRIES", entries)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (3, N + 1), generator=generator).double()  # many ties
    rows = torch.randint(0, 3, (20,), generator=generator)
    lengths = torch.randint(0, N + 1, (20,), generator=generator).tolist()
    excluded = [(torch.randperm(N, generator=generator)[:length] + 1).tolist() for length in lengths]
    mask = torch.rand((1 if allowed == "some of all requests" else 20, N + 1), generator=generator) < 0.6
    batch = SequenceBatch(
        Jagged.from_rows([[1]] * 20),
        excluded=Jagged.from_rows(excluded) if seed else None,
        allowed=None if allowed == "all" else mask,
    )
    original = scores.clone()
    for k in (1, 5, 40):
        expected, shared = top_items(scores[rows], batch, k), top_shared_items(scores, rows, batch, k)
        assert torch.equal(shared.item_ids, expected.item_ids)
        assert torch.equal(shared.scores, expected.scores)
    assert torch.equal(scores, original)


def test_scores_that_are_not_finite_raise_an_error() -> None:
    scores = torch.full((1, N + 1), torch.nan)
    with pytest.raises(ValueError, match="must be finite"):
        top_shared_items(scores, torch.zeros(2, dtype=torch.int64), SequenceBatch(Jagged.from_rows([[1], [2]])), 3)
