"""Explanations: shares known by hand, searches with guides and filters, stages of a cascade."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support.small_models import identified, small_model

from nextitem.cascade.cascade import Cascade, CascadeConfig
from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.decoding.guidance import GuidedRecommender, GuideUse
from nextitem.models.item_cf import ItemCF, ItemCFConfig
from nextitem.models.item_graph import ItemGraph, ItemGraphConfig
from nextitem.models.popularity import Popularity
from nextitem.pipeline.explanations import Explanation, recommend_explained, without_items
from nextitem.testing.known_answers import build, cycle

Shares = dict[str, dict[str, float]]


def explanations(model: Recommender, batch: SequenceBatch, k: int) -> list[Explanation]:
    """Return the explanations, after a check that the lists are those without them."""
    lists, result = recommend_explained(model, batch, k, model.catalog.titles())
    plain = model.recommend(batch, k)
    assert lists.item_ids.equal(plain.item_ids)
    assert lists.scores.equal(plain.scores)
    for row, explanation in zip(plain.item_ids, result, strict=True):
        ids = model.catalog.ids.decode(row[row > 0].numpy()).to_list()
        assert [item.item_id for item in explanation.items] == ids
    return result


def shares(model: Recommender, history: list[int], k: int = 3) -> Shares:
    (explanation,) = explanations(model, SequenceBatch(Jagged.from_rows([history])), k)
    return {
        item.item_id: {neighbour.item_id: neighbour.share for neighbour in item.neighbours}
        for item in explanation.items
    }


def fitted(model: ItemCF | ItemGraph, data: Dataset) -> ItemCF | ItemGraph:
    model.set_popularity_from(data)
    model.fit(data)
    return model.eval()


def item_cf() -> ItemCF | ItemGraph:
    """Return a model in which items 1 and 2 vote for item 4 with 3 / sqrt(12) and 1 / 2, and item 3 votes for 5."""
    sequences = [[1, 4], [1, 4], [1, 4], [2, 4], [3, 5]]
    config = ItemCFConfig(window=None, activity_penalty=False, normalise_rows=False, recency_decay=1.0)
    data = build(sequences, [f"word{n}" for n in range(1, 6)], name="votes")
    return fitted(ItemCF(config, data.catalog), data)


def test_the_shares_of_item_cf_are_those_of_its_votes() -> None:
    first, second = 3 / 12**0.5, 0.5
    result = shares(item_cf(), [1, 2, 3], k=5)
    assert result["i5"] == {"i3": 1.0}
    assert result["i4"] == {
        "i1": pytest.approx(first / (first + second), abs=1e-4),
        "i2": pytest.approx(second / (first + second), abs=1e-4),
    }
    assert list(result["i4"]) == ["i1", "i2"]  # the largest first


def test_all_events_of_an_item_are_left_out_together() -> None:
    result = shares(item_cf(), [1, 2, 1, 2, 2], k=5)
    first, second = 3 / 12**0.5, 0.5
    assert result["i4"]["i1"] == pytest.approx(first / (first + second), abs=1e-4)  # its votes count once


def test_the_shares_of_item_graph_are_known_by_hand() -> None:
    """The score of an item is P[last, item] + P[previous, item] / 2, where P[1, 3] = 3/4, P[1, 4] = 1/4, P[2, 3] = 1.

    For the history 2, 1, item 3 has 3/4 + 1/2 = 5/4. Without 1 it has P[2, 3] = 1, without 2 it has P[1, 3] = 3/4.
    """
    sequences = [[1, 3], [1, 3], [1, 3], [1, 4], [2, 3]]
    walk = {"kind": "published", "lag_weights": (1.0,), "backward": 0.0, "previous_weight": 0.5, "second_step": 0.0}
    data = build(sequences, [f"word{n}" for n in range(1, 5)], name="walk")
    model = fitted(ItemGraph(ItemGraphConfig(walk=walk, use_content=False), data.catalog), data)
    assert shares(model, [2, 1], k=2) == {
        "i3": {"i2": pytest.approx(2 / 3, abs=1e-3), "i1": pytest.approx(1 / 3, abs=1e-3)},
        "i4": {"i1": 1.0},
    }


def test_a_single_item_carries_everything_and_a_list_of_popular_items_is_carried_by_nothing() -> None:
    assert shares(item_cf(), [1, 1], k=2)["i4"] == {"i1": 1.0}
    assert set(map(str, shares(item_cf(), [], k=2).values())) == {"{}"}
    popularity = small_model("popularity", cycle())
    assert isinstance(popularity, Popularity)
    popularity.fit(cycle())
    assert set(map(str, shares(popularity, [1, 2, 3]).values())) == {"{}"}


def test_only_the_latest_items_are_left_out() -> None:
    result = shares(small_model("sasrec", cycle()), list(range(1, 13)), k=12)
    assert set().union(*result.values()) <= {f"i{n}" for n in range(3, 13)}
    assert all(sum(part.values()) == pytest.approx(1, abs=1e-3) for part in result.values() if part)


def test_columns_of_left_out_events_are_left_out_too() -> None:
    items = Jagged.from_rows([[1, 2, 1, 3], [2], [5, 2]])
    numbers = items.with_values(torch.arange(7))
    batch = SequenceBatch(items, actions=numbers, timestamps=numbers, features={"price": numbers})
    left = without_items(batch, torch.tensor([1, 0, 2]))
    assert left.items.to_lists() == [[2, 3], [2], [5]]
    for column in (left.actions, left.timestamps, left.features["price"]):
        assert column is not None
        assert column.to_lists() == [[1, 3], [4], [5]]


def guided(weight: float) -> GuidedRecommender:
    """Return a generator that is guided by a scorer that knows what follows each item of the cycle."""
    data = identified(cycle())
    scorer = {"name": "support.planted_scorers:Planted", "rows": tuple(tuple(row) for row in _next_item())}
    model = small_model("depth-decoder", data, guide={"model": scorer, "weight": weight}, beam_width=4)
    assert isinstance(model, GuidedRecommender)
    assert model.guidance is not None
    model.guidance.use(GuideUse(weight))
    return model


def _next_item() -> list[list[float]]:
    return [[float(column == (row + 1) % 12) for column in range(12)] for row in range(12)]


def test_a_guide_that_knows_the_last_item_alone_makes_it_carry_the_list() -> None:
    (explanation,) = explanations(guided(0.999), SequenceBatch(Jagged.from_rows([[7, 3, 8]])), 3)
    first = explanation.items[0]
    assert first.item_id == "i9"
    assert first.neighbours[0].item_id == "i8"
    assert first.neighbours[0].share > 0.6


def test_rows_with_and_without_guide_are_compared_at_one_weight() -> None:
    """Without item 8 no listed item has a guide's probability; the generator's part must count the same as with it."""
    model, generator = guided(0.5), guided(0.5).without_guide()
    batch = SequenceBatch(Jagged.from_rows([[7, 3, 8]]), allowed=torch.arange(13)[None] == 9)

    def own(history: list[int]) -> float:
        return float(generator.recommend(replace(batch, items=Jagged.from_rows([history])), 1).scores[0, 0].exp())

    whole = torch.tensor(0.5 * own([7, 3, 8]) + 0.5).log()
    falls = {
        item: float(whole - torch.tensor(0.5 * own(history) + 0.5 * (history[-1] == 8)).log())
        for item, history in (("i7", [3, 8]), ("i3", [7, 8]), ("i8", [7, 3]))
    }
    falls = {item: fall for item, fall in falls.items() if fall > 0}
    (explanation,) = explanations(model, batch, 1)
    result = {one.item_id: one.share for one in explanation.items[0].neighbours}
    assert result == {item: pytest.approx(fall / sum(falls.values()), abs=2e-3) for item, fall in falls.items()}


def test_the_levels_of_a_search_end_in_the_list_and_show_what_was_cut() -> None:
    model = guided(0.3)
    history = Jagged.from_rows([[7, 3, 8], [], [2]])
    allowed = torch.ones(1, 13, dtype=torch.bool)
    allowed[0, 9:] = False  # the items of the last code of level 1, with what the guide prefers
    first, empty, last = explanations(model, SequenceBatch(history, allowed=allowed, excluded=history), 4)
    assert empty.levels == ()
    codes = model.identifiers.codes if model.identifiers is not None else torch.empty(0)
    for explanation in (first, last):
        listed = {tuple(codes[int(item.item_id[1:])].tolist()) for item in explanation.items}
        assert listed == {prefix.codes for prefix in explanation.levels[-1].prefixes if prefix.state == "kept"}
        json.dumps(explanation.to_json(), allow_nan=False)
    cut = {prefix.codes for level in first.levels for prefix in level.prefixes if prefix.state == "cut"}
    assert (2,) in cut  # the items 9 to 12
    assert (2, 0) in cut  # item 9
    assert sum(level.cut_by_constraint for level in first.levels) == len(cut)
    titles = [prefix.titles for prefix in first.levels[0].prefixes if prefix.codes == (2,)]
    assert set(titles[0]) < set(model.catalog.titles().to_list())


def test_a_cascade_says_channel_and_place_after_each_stage() -> None:
    data = cycle()
    config = CascadeConfig(
        candidates=12,
        channels={
            "graph": {"model": {"name": "support.planted_scorers:Planted", "right_after": 12}, "quota": 4},
            "popular": {"model": {"name": "popularity"}, "quota": 8},
        },
    )
    model = Cascade(config, data.catalog)
    model.set_popularity_from(data)
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [], [5]]))
    result = explanations(model.eval(), batch, 3)
    answer = model.recommend(batch, 3)
    assert answer.channel is not None
    for row in (0, 2):
        for place, item in enumerate(result[row].items):
            assert item.channel == answer.channels[int(answer.channel[row, place])]
            positions = {stage.stage: stage.position for stage in item.stages}
            assert positions["list"] == place + 1
            assert set(positions) == {"retrieval", "list"}
    assert {item.channel for item in result[1].items} == {None}
    assert result[1].items[0].stages == ()


def test_json_leaves_out_what_is_missing() -> None:
    (explanation,) = explanations(item_cf(), SequenceBatch(Jagged.from_rows([[1]])), 1)
    neighbour = {"item_id": "i1", "title": "word1", "share": 1.0}
    assert explanation.to_json() == {"items": [{"item_id": "i4", "neighbours": [neighbour]}], "levels": []}
