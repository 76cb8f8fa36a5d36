"""Simulated customers: position bias as set, clicks and purchases by taste, better lists bring them back sooner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from support.simulated_shop import small_shop

from nextitem.data.shop.catalog import FIRST_ITEM
from nextitem.data.shop.truth import START, YEAR
from nextitem.simulation.world import DAY, HOUR, Answer, Visit, World, WorldConfig


def world(**settings: Any) -> World:
    return World(small_shop(), WorldConfig(**{"customers": 150, **settings}))


def items_by_taste(simulated: World, visit: Visit) -> list[str]:
    """Return all items, those that the customer is most likely to click first."""
    everything = [str(item) for item in small_shop().items["item_id"]]
    taste, _ = simulated.tastes(simulated.customers[visit.customer], visit.time, everything)
    return [everything[row] for row in np.argsort(-taste, kind="stable")]


def answers(simulated: World, *, num_visits: int, best: bool = True) -> list[Answer]:
    """Return the answers of all customers to several lists of their best, or worst, items."""
    result, visits = [], simulated.first_visits()
    for _ in range(num_visits):
        for place, visit in enumerate(visits):
            items = items_by_taste(simulated, visit)
            answer = simulated.answer(visit, items[:6] if best else items[-6:])
            result.append(answer)
            visits[place] = answer.next_visit
    return result


def test_clicks_and_purchases_have_the_true_probabilities() -> None:
    results = answers(world(), num_visits=2)
    for values, probabilities in (
        ([answer.clicks for answer in results], [answer.click_probabilities for answer in results]),
        ([answer.purchases for answer in results], [answer.purchase_probabilities for answer in results]),
    ):
        expected = np.array(probabilities)
        error = (expected * (1 - expected)).sum() ** 0.5
        assert abs(np.array(values).sum() - expected.sum()) < 3 * error
        assert expected.sum() > 50
    assert all((answer.purchases <= answer.clicks).all() for answer in results)


def test_position_bias_is_as_set() -> None:
    """The same item in every slot is clicked as often as its slot is looked at."""
    simulated = world(customers=1, examination=(1.0, 0.5, 0.1, 0.0))
    visit = simulated.first_visits()[0]
    item = items_by_taste(simulated, visit)[0]
    taste = simulated.answer(visit, [item]).click_probabilities[0]
    clicks = []
    for number in range(1000):
        simulated.customers[0].owned_items.clear()
        simulated.customers[0].last_item = -1
        answer = simulated.answer(Visit(visit.time, 0, number), [item] * 4)
        clicks.append(answer.clicks)
    assert answer.click_probabilities[1:] == pytest.approx(answer.click_probabilities[0] * np.array([0.5, 0.1, 0.0]))
    assert np.mean(clicks, axis=0)[3] == 0
    assert taste > 0.02
    shares = np.mean(clicks, axis=0)
    expected = answer.click_probabilities
    assert (abs(shares - expected) <= 3.5 * (expected * (1 - expected) / 1000) ** 0.5).all()


def test_a_better_list_brings_a_customer_back_sooner() -> None:
    """With the same chance, visit by visit; and so there are more visits."""
    first, second = world(), world()
    gaps = []
    for visit in first.first_visits():
        items = items_by_taste(first, visit)
        good, bad = first.answer(visit, items[:6]), second.answer(visit, items[-6:])
        gaps.append((good.next_visit.time - visit.time, bad.next_visit.time - visit.time))
    assert all(good < bad or good == bad == HOUR for good, bad in gaps)
    assert sum(good for good, _ in gaps) < 0.9 * sum(bad for _, bad in gaps)
    assert first.mean_gap(0) == pytest.approx(8)
    assert first.mean_gap(1) == pytest.approx(1)


def test_the_same_seed_and_answers_have_the_same_world() -> None:
    def numbers(seed: int) -> list[Any]:
        simulated = world(seed=seed, customers=50)
        return [
            (*answer.clicks.tolist(), *answer.purchases.tolist(), answer.next_visit)
            for answer in answers(simulated, num_visits=1)
        ]

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def test_what_a_customer_does_depends_on_no_other_customer() -> None:
    first, second = world(), world()
    visits = first.first_visits()
    lists = {visit.customer: items_by_taste(first, visit)[:6] for visit in visits}
    forwards = {visit.customer: first.answer(visit, lists[visit.customer]).next_visit for visit in visits}
    backwards = {visit.customer: second.answer(visit, lists[visit.customer]).next_visit for visit in reversed(visits)}
    assert forwards == backwards


def test_customers_are_those_of_the_log_and_new_ones() -> None:
    simulated = world(customers=260, new_share=0.3)
    old = [customer for customer in simulated.customers if not customer.is_new]
    users = {str(user): row for row, user in enumerate(small_shop().users["user_id"])}
    assert all(users[customer.user_id] == customer.row for customer in old)
    assert 110 < len(old) < 170
    assert len({customer.user_id for customer in simulated.customers}) == 260
    last = small_shop().interactions.filter(user_id=int(old[0].user_id)).filter(action="click")
    assert old[0].last_item >= 0 or not last.height
    first = simulated.first_visits()
    assert all(START + YEAR <= visit.time <= START + YEAR + 8 * DAY for visit in first)
    assert not {customer.user_id for customer in simulated.customers if customer.is_new} & set(users)


def test_durable_goods_are_bought_once_and_unknown_items_never() -> None:
    simulated = world(customers=1)
    visit = simulated.first_visits()[0]
    durable = next(
        item for item in items_by_taste(simulated, visit) if not simulated.truth.consumable[int(item) - FIRST_ITEM]
    )
    assert simulated.answer(visit, [durable]).click_probabilities[0] > 0
    simulated.customers[0].owned_items.add(int(durable) - FIRST_ITEM)
    assert simulated.answer(visit, [durable]).click_probabilities[0] == 0
    assert simulated.answer(visit, ["unknown", "77"]).click_probabilities.tolist() == [0, 0]
    assert simulated.answer(visit, []).next_visit.time > visit.time


@pytest.mark.parametrize("settings", [{"customers": 0}, {"days": 0}, {"examination": (1.0, 1.5)}, {"new_share": 2}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WorldConfig(**settings)
