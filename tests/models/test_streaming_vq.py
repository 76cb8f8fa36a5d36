"""Tests of streaming VQ: equations by hand, balance, drift, and an index usable and restorable at any step."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_target import NextTargets
from nextitem.models.streaming_vq import StreamingVQ, StreamingVQConfig
from nextitem.nn.quantisation.learnt_codebooks import LearntCodebooks


def model_of(items: int = 40, **settings: object) -> StreamingVQ:
    ids = pl.Series("item_id", range(items))
    torch.manual_seed(0)
    small = {"width": 8, "hidden": 16, "clusters": 5, "dropout": 0.0, "candidates": 10}
    return StreamingVQ(
        StreamingVQConfig.model_validate(small | settings), Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    )


def batch_of(model: StreamingVQ, size: int = 16, *, seed: int = 0, weights: Tensor | None = None) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(model.num_items) if weights is None else weights
    targets = torch.multinomial(weights, size, replacement=True, generator=generator) + 1
    histories = torch.randint(1, model.num_items + 1, (size, 3), generator=generator)
    return SequenceBatch(
        Jagged.from_padded(histories, torch.full((size,), 3)), targets=Jagged(targets, torch.arange(size + 1))
    )


def test_clusters_move_by_the_equations_of_the_paper() -> None:
    model = model_of(decay=0.9, rarity_power=0.5).train()
    for seed in range(3):
        model.training_loss(batch_of(model, seed=seed))
    former, weights, before = model.vectors.clone(), model.weights.clone(), deepcopy(model)
    batch = batch_of(model, seed=9)
    assert batch.targets is not None
    model.training_loss(batch)
    targets = batch.targets.values
    vectors = before._item(targets).detach()
    scale = (5.0 * weights / weights.mean()).clamp(max=1)
    nearest = [int((scale * (former - vector).square().sum(1)).argmin()) for vector in vectors]
    for cluster in range(5):
        rows = [row for row, nearest_cluster in enumerate(nearest) if nearest_cluster == cluster]
        item_weights = model.interval[targets[rows]] ** 0.5
        count = 0.9 * weights[cluster] + 0.1 * item_weights.sum()
        total = 0.9 * weights[cluster] * former[cluster] + 0.1 * (item_weights[:, None] * vectors[rows]).sum(0)
        torch.testing.assert_close(model.weights[cluster], count)
        torch.testing.assert_close(model.vectors[cluster], total / count)


def test_intervals_are_the_mean_steps_between_occurrences() -> None:
    model = model_of()
    for step in range(1, 401):
        frequent_items = [*([2] if step % 4 == 0 else []), *([3, 3] if step % 2 == 0 else [])]
        model._count(
            torch.tensor([1, *frequent_items, *([4] if step % 100 == 0 else []), *([5] if step in (10, 30) else [])])
        )
    expected = {1: 1.0, 2: 4.0, 3: 1.0, 4: 100.0, 5: 15.0}  # the last one's intervals: 10 and 20
    for item, interval in expected.items():
        assert float(model.interval[item]) == pytest.approx(interval, rel=1e-5)
    assert model.seen[1:6].tolist() == [400, 100, 400, 4, 2]
    for step in range(401, 1001):  # item 2 occurred every 4 steps, now every 20
        model._count(torch.tensor([1, 2] if step % 20 == 0 else [1]))
    assert float(model.interval[2]) == pytest.approx(20, rel=0.05)


def test_without_rarity_and_balance_it_is_vq_vae_s_moving_average() -> None:
    model = model_of(rarity_power=0.0, balance=None, decay=0.8).train()
    model.training_loss(batch_of(model))
    books = LearntCodebooks((1, 5, 8), split="residual", update="ema", decay=0.8, revive_every=10**6).train()
    books.tables[0], books.counts[0] = model.vectors.clone(), model.weights.clone()
    books.steps += 1  # skip its initialisation by k-means
    batch = batch_of(model, seed=1)
    assert batch.targets is not None
    vectors = model._item(batch.targets.values).detach()
    codes = books(vectors).codes[:, 0]
    assert torch.equal(model.cluster_of(vectors), codes)
    model.training_loss(batch)
    torch.testing.assert_close(model.vectors, books.tables[0])
    torch.testing.assert_close(model.weights, books.counts[0])


def _shares(balance: float | None) -> Tensor:
    """Return the weights of clusters after a stream of items by Zipf's law, whose vectors do not change."""
    model = model_of(200, clusters=16, balance=balance, rarity_power=0.0, decay=0.95).train()
    zipf = 1 / torch.arange(1, 201).float() ** 1.2
    with torch.no_grad():
        for seed in range(150):
            model.training_loss(batch_of(model, 64, seed=seed, weights=zipf))
    return model.weights / model.weights.sum()


def test_balancing_spreads_a_skewed_stream() -> None:
    def gini(shares: Tensor) -> float:
        ranks = torch.arange(1, len(shares) + 1)
        return float(((2 * ranks - len(shares) - 1) * shares.sort().values).sum() / len(shares))

    plain, balanced = _shares(None), _shares(1.0)
    assert float(balanced.max()) < float(plain.max())
    assert gini(balanced) < gini(plain)


def _steps_to_follow(commitment: float) -> int:
    """Return the number of steps until item 1 is in the cluster of its new taste.

    There are two tastes; item 1 first belongs to one of them, then to the other. The commitment begins with the drift:
    from the start it would shrink all vectors, and with them the distance to cover.
    """
    model = model_of(20, clusters=2, balance=None, rarity_power=0.0, decay=0.9).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(seed: int, *, taste_of_first_item: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        taste = torch.randint(2, (32,), generator=generator)
        histories = (
            2 + taste[:, None] + 2 * torch.randint(9, (32, 3), generator=generator)
        )  # even or odd items from 2 on
        targets = 2 + taste + 2 * torch.randint(9, (32,), generator=generator)
        targets[(taste == taste_of_first_item) & (torch.rand(32, generator=generator) < 0.3)] = 1
        batch = SequenceBatch(
            Jagged.from_padded(histories, torch.full((32,), 3)), targets=Jagged(targets, torch.arange(33))
        )
        optimizer.zero_grad()
        model.training_loss(batch).total.backward()
        optimizer.step()

    def taste_of_cluster() -> int:
        even, odd = float(model.assigned[2::2].float().mean()), float(model.assigned[3::2].float().mean())
        assert abs(even - odd) > 0.8, "tastes have clusters of their own"
        return 0 if abs(float(model.assigned[1]) - even) < 0.5 else 1

    for seed in range(250):
        step(seed, taste_of_first_item=0)
    assert taste_of_cluster() == 0
    model.config = model.config.model_copy(update={"commitment": commitment, "decay": 0.999})
    for num_steps in range(400):
        step(1000 + num_steps, taste_of_first_item=1)
        if taste_of_cluster() == 1:
            return num_steps + 1
    return 400


@pytest.mark.slow
def test_an_item_s_cluster_follows_its_drift_and_commitment_delays_it() -> None:
    free, delayed = _steps_to_follow(0.0), _steps_to_follow(0.3)
    assert free < 150
    assert delayed > 2 * free


def test_the_index_is_usable_at_any_step_and_restorable() -> None:
    model = model_of(40).train()
    for seed in range(4):
        model.training_loss(batch_of(model, seed=seed))
        answer = model.recommend(SequenceBatch(Jagged.from_rows([[1, 2], [3]])), 40)
        assert bool((answer.item_ids.sort(dim=1).values == torch.arange(1, 41)).all())
        assert bool((model.assigned[1:] < 5).all())
    again = model_of(40)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.assigned, model.assigned)
    later = batch_of(model, seed=77)
    model.training_loss(later), again.train().training_loss(later)
    assert torch.equal(again.assigned, model.assigned)
    assert torch.equal(again.vectors, model.vectors)


def test_the_index_is_built_once_while_the_model_does_not_change() -> None:
    model = model_of(40).train()
    model.training_loss(batch_of(model))
    assert model.eval().lists() is model.lists()
    former = model.lists()
    model.train().training_loss(batch_of(model, seed=1))
    with torch.no_grad():
        model.bias.weight.normal_()
    assert not torch.equal(model.eval().lists().items, former.items)
    other = model_of(40)
    assert other.lists() is other.lists()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.lists().items, model.lists().items)


def test_every_item_is_reassigned_within_as_many_events_as_items() -> None:
    model = model_of(100, clusters=4).train()
    model.training_loss(batch_of(model, 16))
    with torch.no_grad():
        model.items.weight.normal_(std=3)  # all items drift at once
    only_one = torch.eye(100)[0]
    stale = model.assigned.clone()
    for seed, size in enumerate((16, 16, 3, 16, 16, 3, 16, 14)):  # short batches, as at the end of epochs, skip no item
        model.training_loss(batch_of(model, size, seed=seed, weights=only_one))
        stale[model.assigned != stale] = -1
    model.config = model.config.model_copy(update={"balance": None})
    now = model.cluster_of(model._item(torch.arange(1, 101)))
    assert float((now == model.assigned[1:]).float().mean()) > 0.9  # clusters have moved a little since then
    assert int((stale[1:] == -1).sum()) > 30


def test_with_as_many_candidates_as_items_the_towers_alone_rank() -> None:
    model = model_of(30, candidates=30).eval()
    torch.nn.init.normal_(model.bias.weight)
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [3]]), excluded=Jagged.from_rows([[4, 5], []]))
    answer = model.recommend(batch, 30)
    scores = model._user(batch) @ model._item(torch.arange(1, 31)).T + model.bias.weight[1:, 0]
    scores[0, [3, 4]] = -torch.inf
    best = scores.argsort(dim=1, descending=True) + 1
    assert answer.item_ids[0, :28].tolist() == best[0, :28].tolist()
    assert answer.item_ids[1].tolist() == best[1].tolist()


@pytest.mark.parametrize("dated", [False, True])
def test_the_stream_is_in_order_of_time_or_position(dated: bool) -> None:
    users = np.array([1, 1, 1, 2, 2, 3, 3, 3, 3], np.int32)
    items = np.arange(1, 10, dtype=np.int32)
    times = np.array([1, 8, 9, 2, 3, 4, 5, 6, 7]) if dated else None
    log = Interactions(users, items, 3, 9, timestamps=times)
    examples = NextTargets(log, max_length=2, in_order=True)
    targets = [
        item
        for batch in examples.batches(4, epoch=3, seed=1)
        if batch.targets is not None
        for item in batch.targets.values.tolist()
    ]
    assert targets == ([5, 7, 8, 9, 2, 3] if dated else [2, 5, 7, 3, 8, 9])
    rest = [batch.targets for batch in examples.batches(4, epoch=0, seed=9, start=1)]
    assert [item for part in rest if part is not None for item in part.values.tolist()] == targets[4:]
