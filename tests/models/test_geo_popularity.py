"""Tests of geo popularity against counts computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ColumnEncoding
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.models import geo_popularity
from nextitem.models.geo_popularity import GeoPopularity, GeoPopularityConfig
from nextitem.testing.known_answers import build

# Users 1 to 4; Lyon and Nice are in FR, Rome is in IT; user 4 has neither city nor country.
EVENTS = [[1, 2, 2], [3, 3, 2], [4, 4, 4, 4], [5, 5, 5, 5, 5, 1]]
CITY, COUNTRY = ["Lyon", "Nice", "Rome", None], ["FR", "FR", "IT", None]
ALL = np.array([0, 2, 3, 2, 4, 5]) / 16


def dataset() -> Dataset:
    plain = build(EVENTS, ["a", "b", "c", "d", "e"], name="geo")
    requests = {
        "user.city": ColumnEncoding("categorical", pl.Series(["Lyon", "Nice", "Oslo", "Rome"])),
        "user.country": ColumnEncoding("categorical", pl.Series(["FR", "IT"])),
        "user.age": ColumnEncoding("numeric"),
    }
    table = pl.DataFrame({"user_id": ["u1", "u2", "u3", "u4"], "city": CITY, "country": COUNTRY, "age": [1.0] * 4})
    features = {"city": "categorical", "country": "categorical", "age": "numeric"}
    users = replace(plain.users, table=table, features=features)
    return replace(plain, users=users, catalog=replace(plain.catalog, requests=requests))


def fitted(**settings: object) -> GeoPopularity:
    train = dataset()
    config = {"half_life_days": None, "strength": 2.0, **settings}
    model = GeoPopularity(GeoPopularityConfig(**config), train.catalog)
    model.set_popularity(torch.from_numpy(train.interactions.item_counts()).float())
    model.fit(train)
    return model


def request_from(city: int, country: int, history: list[int] | None = None, **fields: object) -> SequenceBatch:
    context = {"user.city": torch.tensor([city]), "user.country": torch.tensor([country])}
    return SequenceBatch(Jagged.from_rows([[1] if history is None else history]), context=context, **fields)  # type: ignore[arg-type]


def test_rates_back_off_from_city_to_country_to_all() -> None:
    model = fitted()
    france = (np.array([0, 1, 3, 2, 0, 0]) + 2 * ALL) / (6 + 2)
    nice = (np.array([0, 0, 1, 2, 0, 0]) + 2 * france) / (3 + 2)
    for city, country, expected in ((2, 1, nice), (3, 1, france), (0, 1, france), (0, 0, ALL), (3, 0, ALL)):
        rates = model.rates(torch.tensor([[city, country]]))
        assert rates[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
        answer = model.recommend(request_from(city, country), 5)
        order = np.argsort(-expected[1:], kind="stable") + 1
        assert answer.item_ids[0].tolist() == order.tolist()
        assert answer.scores[0].tolist() == pytest.approx(expected[order].tolist(), abs=1e-6)


def test_one_date_in_the_future_does_not_change_the_order() -> None:
    train = dataset()
    log = train.interactions
    assert log.timestamps is not None
    times = log.timestamps.copy()
    times[0] += 36_500 * 86_400_000  # an event of item 1, which users 1 and 4 have once each
    model = GeoPopularity(GeoPopularityConfig(half_life_days=30.0, strength=2.0), train.catalog)
    model.fit(train.with_interactions(replace(log, timestamps=times)))
    assert model.rates(torch.tensor([[0, 0]]))[0].tolist() == pytest.approx(ALL.tolist(), abs=1e-3)


def test_blocks_of_regions_have_the_same_lists_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted()
    regions = [(city, country) for city in range(5) for country in range(3)] * 2
    batch = SequenceBatch(
        Jagged.from_rows([[1]] * len(regions)),
        context={
            "user.city": torch.tensor([city for city, _ in regions]),
            "user.country": torch.tensor([country for _, country in regions]),
        },
        excluded=Jagged.from_rows([[row % 5 + 1] for row in range(len(regions))]),
    )
    whole = model.recommend(batch, 4)
    monkeypatch.setattr(geo_popularity, "BLOCK_RATES", 15)
    parts = model.recommend(batch, 4)
    assert torch.equal(parts.item_ids, whole.item_ids)
    assert torch.equal(parts.scores, whole.scores)


def test_a_strong_prior_is_the_wider_region_and_a_weak_one_the_region_alone() -> None:
    region = torch.tensor([[2, 1]])
    assert fitted(strength=1e9).rates(region)[0].tolist() == pytest.approx(ALL.tolist(), abs=1e-6)
    assert fitted(strength=0.0).rates(region)[0].tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 0, 0], abs=1e-6)
    assert fitted(strength=0.0).rates(torch.tensor([[3, 1]]))[0, 3] == pytest.approx(2 / 6)


def test_the_columns_of_regions_are_a_setting() -> None:
    model = fitted(columns=("user.country",))
    france = (np.array([0, 1, 3, 2, 0, 0]) + 2 * ALL) / (6 + 2)
    assert model.rates(torch.tensor([[1]]))[0].tolist() == pytest.approx(france.tolist(), abs=1e-6)
    with pytest.raises(ValueError, match=r"user\.age.*user\.city, user\.country"):
        fitted(columns=("user.age",))


def test_recent_events_count_more() -> None:
    model = fitted(half_life_days=1 / 24)  # the events of a user are an hour apart
    nice = model.rates(torch.tensor([[2, 1]]))[0]
    assert nice[2] > nice[3] - 0.2
    plain = fitted().rates(torch.tensor([[2, 1]]))[0]
    assert nice[2] / nice[3] > plain[2] / plain[3]


def test_requests_of_several_regions_and_exclusions_in_one_batch() -> None:
    model = fitted()
    rows = [(2, 1, [3]), (4, 2, []), (2, 1, [1, 2]), (0, 0, [5, 4, 3, 2, 1])]
    batch = SequenceBatch(
        Jagged.from_rows([[1]] * 4),
        context={
            "user.city": torch.tensor([row[0] for row in rows]),
            "user.country": torch.tensor([row[1] for row in rows]),
        },
        excluded=Jagged.from_rows([row[2] for row in rows]),
    )
    together = model.recommend(batch, 4)
    for row, (city, country, excluded) in enumerate(rows):
        alone = model.recommend(request_from(city, country, excluded=Jagged.from_rows([excluded])), 4)
        assert torch.equal(alone.item_ids[0], together.item_ids[row])
        dense = model.recommend(
            request_from(
                city, country, excluded=Jagged.from_rows([excluded]), allowed=torch.ones(1, 6, dtype=torch.bool)
            ),
            4,
        )
        assert torch.equal(alone.item_ids, dense.item_ids)
        assert torch.equal(alone.scores, dense.scores)


def test_an_empty_history_is_answered_by_its_region() -> None:
    answer = fitted().recommend(request_from(2, 1, history=[]), 2)
    assert answer.item_ids.tolist() == [[3, 2]]
    assert answer.fallback is not None
    assert answer.fallback.tolist() == [True]
    assert fitted().recommend(request_from(0, 0, history=[]), 2).item_ids.tolist() == [[5, 4]]
