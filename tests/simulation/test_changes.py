"""What changes during a simulation: items arrive, tastes and popularity drift, customers find items without a list."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.fake_server import FakeServer, client, played
from support.simulated_shop import small_shop

from nextitem.data.shop.catalog import FIRST_ITEM
from nextitem.data.shop.truth import START, YEAR
from nextitem.simulation.play import Playthrough, play
from nextitem.simulation.world import DAY, World, WorldConfig

END = START + YEAR
NUM_ITEMS = small_shop().items.height


def world(**settings: Any) -> World:
    return World(small_shop(), WorldConfig(**{"customers": 100, "days": 20, **settings}))


def test_arriving_items_continue_the_shop() -> None:
    simulated = world(new_items=40)
    items, truth = simulated.shop.items, simulated.truth
    assert items.head(NUM_ITEMS).equals(small_shop().items)
    new = items.tail(40)
    assert new["item_id"].to_list() == list(range(FIRST_ITEM + NUM_ITEMS, FIRST_ITEM + NUM_ITEMS + 40))
    assert new["released"].is_sorted()
    assert END <= new["released"][0] < new["released"][-1] < END + 20 * DAY
    former = set(zip(*(small_shop().items[name] for name in ("category", "brand")), strict=True))
    assert set(zip(new["category"], new["brand"], strict=True)) <= former
    assert NUM_ITEMS not in {len(value) for value in vars(truth).values()}
    assert np.array_equal(truth.released[-40:], new["released"].to_numpy())
    assert world(new_items=40).shop.items.equals(items)
    assert not world(new_items=40, seed=1).shop.items.equals(items)


def test_an_item_is_clicked_only_after_it_has_arrived() -> None:
    simulated = world(new_items=10)
    released, item = int(simulated.truth.released[NUM_ITEMS]), str(FIRST_ITEM + NUM_ITEMS)
    buyers = np.flatnonzero(simulated.truth.sold_in[NUM_ITEMS, simulated.truth.country])
    customer = next(each for each in simulated.customers if each.row in buyers)
    before, after = (simulated.tastes(customer, released + second, [item])[0][0] for second in (-1, 0))
    assert before == 0 < after


def test_without_drift_the_truth_is_that_of_the_shop() -> None:
    simulated = world()
    assert simulated.truth_at(simulated.end) is small_shop().truth


def test_drift_changes_interests_tastes_and_popularity_by_its_share() -> None:
    users = np.arange(len(small_shop().truth.country))

    def correlations(share: float) -> list[float]:
        """Return how much interests, affinities within a category, and popularity at the end resemble the begin."""
        simulated = world(drift=share)
        first, last = (simulated.truth_at(when) for when in (simulated.start, simulated.end))
        items = np.flatnonzero(first.category == 0)
        return [
            float(np.corrcoef(begin.ravel(), end.ravel())[0, 1])
            for begin, end in (
                (first.interests(users, END), last.interests(users, END + 40 * DAY)),
                (first.affinity(users[:, None], items, END), last.affinity(users[:, None], items, END + 40 * DAY)),
                (first.popularity[items], last.popularity[items]),
            )
        ]

    small, large = correlations(0.2), correlations(0.9)
    assert all(low < high for low, high in zip(large, small, strict=True))
    assert all(value > 0.8 for value in small)
    assert large[0] < 0.4
    # At the begin, nobody has changed yet but those whose change begins.
    shop, simulated = small_shop().truth, world(drift=0.9)
    assert np.corrcoef(shop.interests(users, END).ravel(), simulated.truth.interests(users, END).ravel())[0, 1] > 0.9
    assert sorted(simulated._later_popularity) != sorted(shop.popularity)
    assert world(drift=0.9)._later_popularity.tolist() == simulated._later_popularity.tolist()


def test_popularity_moves_evenly_from_day_to_day() -> None:
    simulated = world(drift=1, days=10)
    first, middle, last = (simulated.truth_at(simulated.start + day * DAY).popularity for day in (0, 5, 10))
    assert middle == pytest.approx((first + last) / 2)
    assert sorted(first) == pytest.approx(sorted(last))  # items of a category have exchanged it
    assert simulated.truth_at(simulated.start).popularity == pytest.approx(first)


def test_customers_find_what_they_like_without_a_list() -> None:
    simulated, finds, chances = world(browsing=2.0, customers=200), [], []
    shop = small_shop()
    everything = np.arange(NUM_ITEMS)
    for visit in simulated.first_visits():
        customer = simulated.customers[visit.customer]
        last, owned = customer.last_item, set(customer.owned_items)
        found_items = simulated.browse(visit)
        finds += found_items
        for find in found_items[:1]:
            row = int(find.item_id) - FIRST_ITEM
            assert row not in owned
            assert shop.truth.sold_in[row, shop.truth.country[customer.row]]
            taste = shop.truth.click_probability(customer.row, everything, int(visit.time), last_items=last)
            chances.append((taste < taste[row]).mean())
    assert len(finds) == pytest.approx(400, abs=60)  # Poisson: 3 standard deviations
    assert np.mean(chances) > 0.75  # among the best quarter on average, which by chance is a half
    assert 0.05 < np.mean([find.is_purchase for find in finds]) < 0.6
    assert world().browse(simulated.first_visits()[0]) == []


def test_the_same_seed_has_the_same_finds_and_drift() -> None:
    settings = {"browsing": 1.0, "drift": 0.5, "new_items": 20, "customers": 30}
    results = [played(FakeServer(), connections=connections, **settings) for connections in (1, 8)]
    assert results[0].table().drop("request_id").equals(results[1].table().drop("request_id"))
    assert results[0].truth() == results[1].truth()
    assert results[0].num_finds > 20


def test_finds_are_events_without_a_list() -> None:
    server = FakeServer()
    result = played(server, browsing=1.0)
    free = [event for event in server.events if "request_id" not in event]
    assert len(free) == result.num_finds == result.truth()["finds"] > 20
    assert len(server.events) == result.num_events == result.num_finds + result.table()["click"].sum()
    assert len({event["event_id"] for event in server.events}) == len(server.events)


def test_the_items_so_far_are_written_each_day_and_the_days_take_their_time(tmp_path: Path) -> None:
    simulated, latest_releases = world(new_items=30, days=10), list[int]()

    def look(_: str) -> None:
        latest_releases.append(max(pl.read_parquet(tmp_path / "new" / "items.parquet")["released"].to_list()))

    async def run() -> Playthrough:
        async with client(FakeServer()) as session:
            return await play(simulated, session, minutes=0.02, items=tmp_path / "new", progress=look)

    started = time.monotonic()
    asyncio.run(run())
    assert 0.9 < time.monotonic() - started < 10  # of 1.2 seconds, the last visits come before the end
    assert latest_releases == sorted(latest_releases)
    for day, latest in enumerate(latest_releases, start=1):
        assert latest <= simulated.start + day * DAY
    columns = pl.read_parquet(tmp_path / "new" / "items.parquet")
    assert columns.columns == small_shop().items.columns
    assert columns.height > NUM_ITEMS + 20


def test_rates_by_model_pool_its_versions() -> None:
    table = played(FakeServer()).truth()
    assert [entry["model"] for entry in table["pooled"]] == ["first", "last"]
    for pooled, entry in zip(table["pooled"], table["models"], strict=True):
        assert pooled == {name: value for name, value in entry.items() if name != "version"}
