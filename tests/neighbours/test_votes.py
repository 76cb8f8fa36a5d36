"""Recommendations from votes: equal those of dense rows, with memory in proportion to the number of votes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from support.memory import peak_bytes

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.top_items import top_items
from nextitem.neighbours import votes as votes_module
from nextitem.neighbours.votes import BACKFILL, top_voted

N = 60


def random_votes(rng: np.random.Generator, rows: int, items: int, max_share: float) -> sp.csr_matrix:
    """Return votes with few distinct values; the fraction of items with votes rises by row, 0 to `max_share`."""
    shares = np.linspace(0, max_share, rows)[:, None]
    values = rng.integers(1, 4, (rows, items + 1)) * (rng.random((rows, items + 1)) < shares)
    values[:, 0] = 0
    return sp.csr_matrix((values / 2).astype(np.float32))


def random_batch(rng: np.random.Generator, rows: int, items: int, allowed: str) -> SequenceBatch:
    excluded = [rng.integers(1, items + 1, rng.integers(0, 30)).tolist() for _ in range(rows)]
    mask = torch.from_numpy(rng.random((1 if allowed == "shared" else rows, items + 1)) < 0.5)
    return SequenceBatch(
        Jagged.from_rows([[1]] * rows),
        excluded=Jagged.from_rows(excluded),
        allowed=None if allowed == "all" else mask,
    )


@pytest.mark.parametrize("allowed", ["all", "shared", "own"])
@pytest.mark.parametrize("entries", [1, 90, 2**22])
@pytest.mark.parametrize("dense_from", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("k", [1, 7, 70])
def test_top_voted_equals_top_items_of_dense_rows(
    k: int, dense_from: float, entries: int, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(votes_module, "DENSE_FROM", dense_from)
    monkeypatch.setattr(votes_module, "BLOCK_ENTRIES", entries)
    rng = np.random.default_rng(k)
    votes, batch = random_votes(rng, 25, N, 0.9), random_batch(rng, 25, N, allowed)
    popularity = torch.from_numpy(rng.integers(0, 5, N + 1)).float()
    popularity[0] = 0
    backfill = BACKFILL * popularity / popularity.max()
    expected = top_items(torch.from_numpy(votes.toarray()) + backfill, batch, k)
    rows = np.random.default_rng(0).permutation(25)  # not in order of the number of votes
    lists = top_voted(votes[rows], popularity, batch.select(torch.from_numpy(rows)), k)
    assert torch.equal(lists.item_ids, expected.item_ids[torch.from_numpy(rows)])
    assert torch.equal(lists.scores, expected.scores[torch.from_numpy(rows)])


@pytest.mark.parametrize("max_share", [0.02, 0.9])
def test_memory_depends_on_the_number_of_votes(max_share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 rows of 5,000 items would take 8 MB as an array, and more for intermediate results."""
    monkeypatch.setattr(votes_module, "BLOCK_ENTRIES", 2**15)
    rng = np.random.default_rng(0)
    votes, batch = random_votes(rng, 400, 5000, max_share), random_batch(rng, 400, 5000, "all")
    popularity = torch.arange(5001).float()
    top_voted(votes[:2], popularity, batch.select(torch.arange(2)), 10)
    assert peak_bytes(lambda: top_voted(votes, popularity, batch, 10)) < 2e6
