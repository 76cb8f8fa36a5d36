"""Content moved by what is taken together: pairs, likes follow, new items too."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from support.planted_content import catalog_of
from torch import Tensor

from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.data.examples.item_pairs import ItemPairs
from nextitem.tokenizers.collaborative import CollaborativeContent
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit


def log_of(sequences: list[list[int]], items: int, positive: list[bool] | None = None) -> Interactions:
    users = np.array([user for user, row in enumerate(sequences, 1) for _ in row], np.int32)
    flat = np.array([item for row in sequences for item in row], np.int32)
    may = None if positive is None else np.array(positive)
    return Interactions(users, flat, len(sequences), items, positive=may)


def test_pairs_are_neighbours_in_a_history_and_differ() -> None:
    pairs = ItemPairs(log_of([[1, 2, 2, 3], [4], [5, 1]], 5))
    found = [
        (int(a), int(b))
        for batch in pairs.batches(2, epoch=0, seed=0)
        for a, b in zip(batch.left, batch.right, strict=True)
    ]
    assert sorted(found) == [(1, 2), (2, 3), (5, 1)]
    assert pairs.num_batches(2) == 2
    only = ItemPairs(log_of([[1, 2, 3]], 3, [True, False, True]))
    assert list(zip(only.left.tolist(), only.right.tolist(), strict=True)) == [(1, 3)]


def _cosines(vectors: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def test_what_is_taken_together_moves_together_and_new_items_follow_their_likes() -> None:
    """Four kinds of content; users take kind 0 with 1, and 2 with 3. Items 37 - 40, one of each kind, have no event."""
    draw = torch.Generator().manual_seed(0)
    kind = torch.arange(40) % 4
    content = torch.eye(4)[kind].repeat(1, 3) + 0.2 * torch.randn(40, 12, generator=draw)
    rng = np.random.default_rng(0)
    sequences = [
        (1 + (2 * (user % 2) + rng.integers(2, size=6)) + 4 * rng.integers(9, size=6)).tolist() for user in range(300)
    ]
    catalog = catalog_of(content)
    torch.manual_seed(0)
    mover = CollaborativeContent(catalog)
    train = Dataset("planted", log_of(sequences, 40), catalog, Users(IdMap(pl.Series(["u"]))))
    before = _cosines(mover(content).detach())
    fit(mover, mover.examples(train), TrainingConfig(max_epochs=15, batch_size=64), progress=False)
    assert catalog.content is not None
    vectors = mover.eval().vectors(catalog.content)
    assert not bool(vectors[0].any())
    after = _cosines(vectors[1:])
    together = (kind[:, None] // 2 == kind // 2) & (kind[:, None] != kind)
    apart = kind[:, None] // 2 != kind // 2
    for rows in (slice(0, 36), slice(36, 40)):
        assert float(after[rows][together[rows]].mean()) > 0.6 > float(before[rows][together[rows]].mean())
        assert float(after[rows][apart[rows]].mean()) < 0


def test_without_training_content_is_only_standardised() -> None:
    content = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    mover = CollaborativeContent(catalog_of(content))
    mover.standardizer.fit(content)
    torch.testing.assert_close(mover(content), (content - content.mean(0)) / content.std(0, correction=0))
