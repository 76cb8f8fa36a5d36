"""Rewards of lists against their definitions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.simulated_shop import small_shop
from torch import Tensor

from nextitem.alignment.rewards.duration import duration_advantages, duration_buckets, play_quantiles
from nextitem.alignment.rewards.exposure import UnderExposure
from nextitem.alignment.rewards.reward import Reward, RewardSum, checked
from nextitem.alignment.rewards.rules import RuleReward
from nextitem.alignment.shop_judge import ShopJudge
from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.data.readers import dataset_from_frames
from nextitem.data.shop.list_truth import NO_EFFECTS
from nextitem.data.shop.truth import EXAMINATION

LISTS = torch.tensor([[[1, 2], [3, 0], [0, 0]], [[4, 4], [2, 1], [3, 1]]])


def batch(count: int = 2) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows([[1]] * count))


class Fixed(Reward):
    """Reward with these values."""

    name = "fixed"

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        return self.values


def test_rules_and_under_exposure_are_shares_of_the_list() -> None:
    rule = RuleReward(torch.tensor([[True, True, False, False, True]]), condition="category=Tents")
    assert rule.score(batch(), LISTS).tolist() == [[0.5, 0.0, 0.0], [1.0, 0.5, 0.5]]
    exposure = UnderExposure(torch.tensor([0.0, 1.0, 2.0, 7.0, 90.0]), share=0.05)  # items 1 and 2 have 3%
    assert exposure.is_under.tolist() == [False, True, True, False, False]
    assert exposure.score(batch(), LISTS).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]]
    both = RewardSum([(rule, 2.0), (exposure, -1.0)])
    assert both.score(batch(), LISTS).tolist() == [[0.0, 0.0, 0.0], [2.0, 0.0, 0.5]]
    assert both.name == "rule category=Tents + under-exposure"


def test_a_reward_that_is_not_finite_is_an_error_unless_the_list_is_empty() -> None:
    values = torch.tensor([[1.0, 2.0, float("nan")], [1.0, 2.0, 3.0]])
    assert checked(Fixed(values), batch(), LISTS).tolist() == [[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]]
    values[1, 2] = float("inf")
    with pytest.raises(UserError, match="fixed is inf for 1 of 5 lists"):
        checked(Fixed(values), batch(), LISTS)


def test_the_value_in_the_shop_is_the_truth_of_its_clicks() -> None:
    shop = small_shop()
    frames = {name: getattr(shop, name) for name in ("interactions", "items", "users", "impressions")}
    dataset = dataset_from_frames(frames, shop.settings, name="shop")
    users = dataset.users
    requests = SequenceBatch(
        Jagged.from_rows([[3, 5], [7]]),
        user_ids=torch.from_numpy(users.keys[[4, 9]]),
        request_times=torch.tensor([1_720_000_000_000, 1_725_000_000_000]),
    )
    lists = torch.tensor([[1, 8, 2], [6, 0, 0]])
    clicks = ShopJudge(shop.truth, dataset, {"click": 1.0}, effects=NO_EFFECTS).value(requests, lists)
    purchases = ShopJudge(shop.truth, dataset, {"purchase": 2.0}, effects=NO_EFFECTS).value(requests, lists)
    ids = shop.items["item_id"].to_list()
    row_of = {item: row for row, item in enumerate(ids)}
    for request, (user, history, time) in enumerate([(4, 5, 1_720_000_000), (9, 7, 1_725_000_000)]):
        rows = [row_of[dataset.catalog.ids.external[int(item) - 1]] for item in lists[request] if item > 0]
        last = row_of[dataset.catalog.ids.external[history - 1]]
        user_row = shop.users["user_id"].to_list().index(users.ids.external[user - 1])
        expected = [
            float(shop.truth.click_probability(user_row, row, time, slots=slot, last_items=last))
            for slot, row in enumerate(rows, start=1)
        ]
        assert np.isclose(float(clicks[request]), sum(expected))
        bought = [
            p * float(shop.truth.purchase_probability(user_row, r, time)) for p, r in zip(expected, rows, strict=True)
        ]
        assert np.isclose(float(purchases[request]), 2 * sum(bought))
    assert float(clicks[1]) <= EXAMINATION[0]
    with_effects = ShopJudge(shop.truth, dataset, {"click": 1.0}).value(requests, lists)
    assert float(with_effects[1]) == pytest.approx(float(clicks[1]))  # one item
    assert float(with_effects[0]) != pytest.approx(float(clicks[0]))


def test_duration_buckets_are_logarithmic() -> None:
    durations = torch.tensor([0.0, 1.0, 2.5, 7.9, 8.1, 100.0])
    assert duration_buckets(durations, base=2.0).tolist()[1:] == [0, 1, 2, 3, 6]
    with pytest.raises(ValueError, match="at least 0"):
        duration_buckets(torch.tensor([-1.0]), base=2.0)


def test_quantiles_are_of_the_users_own_plays_or_of_all() -> None:
    users = torch.tensor([1, 1, 1, 1, 2, 2])
    plays = torch.tensor([1.0, 2.0, 2.0, 9.0, 1.5, 3.0])
    buckets = torch.zeros(6, dtype=torch.int64)
    own = play_quantiles(users, buckets, plays, min_plays=2)
    assert own.tolist() == [0.25, 0.75, 0.75, 1.0, 0.5, 1.0]
    mixed = play_quantiles(users, buckets, plays, min_plays=3)
    torch.testing.assert_close(mixed, torch.tensor([0.25, 0.75, 0.75, 1.0, 2 / 6, 5 / 6]).double())


def test_advantages_are_one_for_the_best_quarter_and_minus_one_for_dislikes() -> None:
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(8).repeat_interleave(50)
    durations = torch.rand(400, generator=generator) * 300 + 1
    plays = durations * torch.rand(400, generator=generator)
    disliked = torch.zeros(400, dtype=torch.bool)
    disliked[:40] = True
    values = duration_advantages(users, durations, plays, disliked)
    assert bool((values[:40] == -1).all())
    assert set(values[40:].tolist()) == {0.0, 1.0}
    assert 0.1 < float((values[40:] == 1).double().mean()) <= 0.25
    # A long video is not better for being long: positive plays are about as long as all others.
    is_good = values == 1
    correlation = torch.corrcoef(torch.stack([durations[40:], is_good[40:].float()]))[0, 1]
    assert abs(float(correlation)) < 0.12
    raw = torch.corrcoef(torch.stack([durations, plays]))[0, 1]
    assert float(raw) > 0.4
    assert duration_advantages(users[:0], durations[:0], plays[:0], disliked[:0]).shape == (0,)
