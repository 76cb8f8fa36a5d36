"""CollaborativeContent: pairs of neighbouring items, and how content vectors move, those of new items too."""

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
    """Return a log in which user n has the n-th sequence of items."""
    users = np.array([user for user, row in enumerate(sequences, 1) for _ in row], np.int32)
    flat = np.array([item for row in sequences for item in row], np.int32)
    is_positive = None if positive is None else np.array(positive)
    return Interactions(users, flat, len(sequences), items, positive=is_positive)


def test_pairs_are_different_neighbouring_items_of_a_history() -> None:
    pairs = ItemPairs(log_of([[1, 2, 2, 3], [4], [5, 1]], 5))
    batch_pairs = [
        (int(a), int(b))
        for batch in pairs.batches(2, epoch=0, seed=0)
        for a, b in zip(batch.left, batch.right, strict=True)
    ]
    assert sorted(batch_pairs) == [(1, 2), (2, 3), (5, 1)]
    assert pairs.num_batches(2) == 2
    positive_pairs = ItemPairs(log_of([[1, 2, 3]], 3, [True, False, True]))
    assert list(zip(positive_pairs.left.tolist(), positive_pairs.right.tolist(), strict=True)) == [(1, 3)]


def _cosines(vectors: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def test_co_purchased_items_move_closer_and_new_items_follow_similar_ones() -> None:
    """Four kinds of content; users take kind 0 with 1, and 2 with 3. Items 37 - 40, one of each kind, have no event."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(40) % 4
    content = torch.eye(4)[kind].repeat(1, 3) + 0.2 * torch.randn(40, 12, generator=generator)
    rng = np.random.default_rng(0)
    sequences = [
        (1 + (2 * (user % 2) + rng.integers(2, size=6)) + 4 * rng.integers(9, size=6)).tolist() for user in range(300)
    ]
    catalog = catalog_of(content)
    torch.manual_seed(0)
    model = CollaborativeContent(catalog)
    train = Dataset("planted", log_of(sequences, 40), catalog, Users(IdMap(pl.Series(["u"]))))
    before = _cosines(model(content).detach())
    fit(model, model.examples(train), TrainingConfig(max_epochs=15, batch_size=64), progress=False)
    assert catalog.content is not None
    vectors = model.eval().vectors(catalog.content)
    assert not bool(vectors[0].any())
    after = _cosines(vectors[1:])
    together = (kind[:, None] // 2 == kind // 2) & (kind[:, None] != kind)
    separate = kind[:, None] // 2 != kind // 2
    for rows in (slice(0, 36), slice(36, 40)):
        assert float(after[rows][together[rows]].mean()) > 0.6 > float(before[rows][together[rows]].mean())
        assert float(after[rows][separate[rows]].mean()) < 0


def test_without_training_content_is_only_standardised() -> None:
    content = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    model = CollaborativeContent(catalog_of(content))
    model.standardizer.fit(content)
    torch.testing.assert_close(model(content), (content - content.mean(0)) / content.std(0, correction=0))
