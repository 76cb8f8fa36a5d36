"""Import of Steam: literals of Python 2, days, and prices in words."""

from __future__ import annotations

from typing import Any

import pytest
from support.layouts import Imported, Layouts

from nextitem.core.errors import UserError

REVIEWS = (
    "{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', u'date': u'2017-12-17', "
    "u'text': u\"it's fun\", u'early_access': False, u'page': 1}\n"
    "{u'username': u'\\u30cf', u'product_id': u'328100', u'date': u'2017-08-02', u'text': u''}\n"
    "{u'username': u'Chaos Syren', u'hours': 3.5, u'product_id': u'328100', u'date': u'2017-12-18'}\n"
    "{u'username': u'Chaos Syren', u'hours': 9.5, u'product_id': u'328100', u'date': u'2017-12-19'}\n"
    "{u'username': u'nobody', u'product_id': u'328100', u'date': u'yesterday'}\n"
)
GAMES: list[dict[str, Any]] = [
    {
        "id": "725280",
        "app_name": "A",
        "developer": "D",
        "genres": ["Indie"],
        "tags": ["RPG", "2D"],
        "price": "Free To Play",
        "release_date": "2017-12-01",
    },
    {"id": "328100", "app_name": "B", "price": 4.99, "release_date": "Soon.."},
    {"id": "1", "app_name": "unreviewed"},
    {"app_name": "no id"},
]


def test_reviews_and_games(imported: Imported, layouts: Layouts) -> None:
    reviews = layouts.gz(REVIEWS, "steam_reviews.json.gz")
    dataset, messages = imported("steam", reviews, layouts.literals_gz(GAMES, "steam_games.json.gz"))
    assert (len(dataset.interactions), dataset.repeats) == (3, False)
    assert dataset.users.ids.external.to_list() == ["Chaos Syren", "ハ"]
    assert dataset.context == {"hours": "numeric"}
    assert dataset.interactions.columns["hours"].to_list() == [0.1, 3.5, None]
    items = dataset.catalog.table
    assert items["item_id"].to_list() == ["328100", "725280"]
    assert items["price"].to_list() == [4.99, 0.0]
    assert items["genres"].to_list() == [[], ["Indie"]]
    assert dataset.catalog.released_ms is not None
    assert dataset.catalog.released_ms.tolist() == [0, 1512086400000]
    assert "left out 1 reviews without username, product_id or date" in messages
    assert "left out 1 later reviews of a game by the same user" in messages
    assert "left out 2 games of steam_games.json.gz that nobody in the log has reviewed" in messages


def test_games_may_be_missing(imported: Imported, layouts: Layouts) -> None:
    dataset, messages = imported("steam", layouts.gz(REVIEWS, "steam_reviews.json.gz"))
    assert dataset.catalog.features == {}
    assert "games have no features" in messages


def test_another_log_is_refused(imported: Imported, layouts: Layouts) -> None:
    other = layouts.json_gz([{"user_id": "76561197970982479", "reviews": []}], "steam_reviews.json.gz")
    with pytest.raises(UserError, match="contains no review with username, product_id and date"):
        imported("steam", other)
