"""The simulated shop: its layout, its realism, and the agreement of its log with its ground truth."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.protocols import make_split
from nextitem.data.readers import dataset_from_frames, load_dataset
from nextitem.data.shop.catalog import FIRST_ITEM, FIRST_USER
from nextitem.data.shop.shop import Shop, generate_shop
from nextitem.data.shop.truth import EXPLORATION, NUM_SLOTS, START, YEAR
from nextitem.data.shop.words import BRANDS, CATEGORIES, STYLES
from nextitem.data.text import split_words
from nextitem.evaluation.evaluate import quick_score
from nextitem.evaluation.slices import slice_masks
from nextitem.models.item_cf import ItemCF
from nextitem.models.item_graph import ItemGraph
from nextitem.models.popularity import Popularity

TABLES = ("interactions", "items", "users", "impressions")


@pytest.fixture(scope="module")
def shop() -> Shop:
    return generate_shop(3, num_items=900, num_users=3000)


@pytest.fixture(scope="module")
def events(shop: Shop) -> pl.DataFrame:
    """Return clicks and purchases by customer and time, with row numbers of the frames."""
    return (
        shop.interactions.filter(pl.col("action") != "return")
        .with_columns(user=pl.col("user_id") - FIRST_USER, item=pl.col("item_id") - FIRST_ITEM)
        .sort("user", "timestamp", maintain_order=True)
    )


@pytest.fixture(scope="module")
def slates(shop: Shop, events: pl.DataFrame) -> pl.DataFrame:
    """Return impressions with row numbers of the frames and the customer's last item before the slate (-1: none)."""
    impressions = shop.impressions.with_columns(
        user=pl.col("user_id") - FIRST_USER, item=pl.col("item_id") - FIRST_ITEM
    )
    past = events.select("user", "timestamp", last="item").sort("timestamp", maintain_order=True)
    joined = impressions.sort("timestamp", maintain_order=True).join_asof(
        past, on="timestamp", by="user", allow_exact_matches=False, check_sortedness=False
    )
    return joined.with_columns(pl.col("last").fill_null(-1)).sort("impression_id", "slot")


def column(frame: pl.DataFrame, name: str) -> np.ndarray:
    return frame[name].to_numpy()


def test_the_same_seed_generates_the_same_shop_bit_for_bit() -> None:
    one, again, other = (generate_shop(seed, num_items=240, num_users=100) for seed in (1, 1, 2))
    for table in TABLES:
        assert getattr(one, table).equals(getattr(again, table))
        assert not getattr(one, table).equals(getattr(other, table))
    for entry in fields(one.truth):
        assert np.array_equal(getattr(one.truth, entry.name), getattr(again.truth, entry.name))


def test_the_written_folder_is_the_same_data_set(tmp_path: Path) -> None:
    shop = generate_shop(num_items=240, num_users=100)
    shop.write(tmp_path / "shop")
    written = load_dataset(tmp_path / "shop")
    direct = dataset_from_frames({name: getattr(shop, name) for name in TABLES}, shop.settings)
    assert written.fingerprint == direct.fingerprint
    assert written.catalog.num_items == 240
    assert written.impressions is not None
    assert written.impressions.labels == ("click", "purchase")
    assert written.catalog.text is not None
    assert shop.items["title"][7] in written.catalog.text.to_list()[7]
    with pytest.raises(UserError, match="not an empty folder"):
        shop.write(tmp_path / "shop")


@pytest.mark.parametrize(
    ("sizes", "message"), [({"num_items": 50}, "num_items = 50"), ({"num_users": 0}, "num_users = 0")]
)
def test_sizes_that_are_too_small_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate_shop(**sizes)


def test_events_are_in_the_year_and_respect_release_country_and_order(shop: Shop, events: pl.DataFrame) -> None:
    times, truth = column(shop.interactions, "timestamp"), shop.truth
    assert (np.diff(times) >= 0).all()
    assert times[0] >= START
    assert times[-1] < START + YEAR
    user, item = column(events, "user"), column(events, "item")
    assert (truth.released[item] <= column(events, "timestamp")).all()
    assert truth.sold_in[item, truth.country[user]].all()
    sessions = shop.interactions.group_by("session_id").agg(pl.col("user_id").n_unique().alias("users"))
    assert sessions["users"].max() == 1
    assert column(events.group_by("session_id").len(), "len").mean() > 3.5


def test_popularity_is_a_power_law_and_customers_differ_in_activity(shop: Shop, events: pl.DataFrame) -> None:
    counts = np.sort(np.bincount(column(events, "item"), minlength=900))[::-1]
    assert counts[:90].sum() > 0.3 * counts.sum()
    ranks = np.arange(10, 400)
    slope = np.polyfit(np.log(ranks), np.log(counts[ranks]), 1)[0]
    assert -1.4 < slope < -0.5
    activity = column(events.group_by("user").len(), "len")
    assert np.quantile(activity, 0.95) > 3 * np.median(activity)


def test_only_consumables_are_bought_again(shop: Shop, events: pl.DataFrame) -> None:
    bought = events.filter(pl.col("action") == "purchase").group_by("user", "item").len()
    again = column(bought.filter(pl.col("len") > 1), "item")
    assert shop.truth.consumable[again].all()
    consumed = bought.filter(pl.Series(shop.truth.consumable[column(bought, "item")]))
    assert (column(consumed, "len") > 1).mean() > 0.15


def test_returns_follow_their_purchase(shop: Shop) -> None:
    keys = ["user_id", "item_id"]
    bought = shop.interactions.filter(pl.col("action") == "purchase").group_by(keys).agg(first=pl.min("timestamp"))
    returned = shop.interactions.filter(pl.col("action") == "return").join(bought, on=keys, how="left")
    assert returned.height > 50
    assert (returned["timestamp"] > returned["first"]).all()


def test_titles_contain_brand_style_and_category(shop: Shop) -> None:
    truth, titles = shop.truth, shop.items["title"].to_list()
    style_words = list(STYLES.values())
    for row in range(0, 900, 7):
        words = " ".join(split_words(titles[row]))
        assert BRANDS[truth.brand[row]].lower() in words
        assert any(word.lower() in words for word in style_words[truth.style[row]][0])
        kinds = CATEGORIES[truth.category[row]].nouns
        assert any(" ".join(split_words(noun)) in words for noun in kinds)
    assert shop.items["title"].n_unique() > 0.97 * 900


def test_some_late_events_are_of_new_items(shop: Shop, events: pl.DataFrame) -> None:
    cut = events["timestamp"].quantile(0.8)
    assert cut is not None
    early_items = events.filter(pl.col("timestamp") <= cut)["item"].unique()
    later = events.filter(pl.col("timestamp") > cut)
    cold = (~later["item"].is_in(early_items.to_list())).to_numpy().mean()
    assert 0.02 < cold < 0.2


def check_calibration(probability: np.ndarray, outcome: np.ndarray, *, spread: float) -> None:
    order = np.argsort(probability)
    rates = []
    for part in np.array_split(order, 10):
        expected, rate = probability[part].mean(), outcome[part].mean()
        error = np.sqrt((probability[part] * (1 - probability[part])).sum()) / len(part)
        assert abs(rate - expected) < 4 * error
        rates.append(rate)
    assert rates[-1] > spread * rates[0]


def test_clicks_and_purchases_in_slates_have_their_true_probability(shop: Shop, slates: pl.DataFrame) -> None:
    user, item, time = (column(slates, name) for name in ("user", "item", "timestamp"))
    click = shop.truth.click_probability(
        user, item, time, slots=column(slates, "slot"), last_items=column(slates, "last")
    )
    check_calibration(click, column(slates, "click"), spread=5)
    clicked = column(slates, "click") == 1
    purchase = shop.truth.purchase_probability(user[clicked], item[clicked], time[clicked])
    check_calibration(purchase, column(slates, "purchase")[clicked], spread=1.5)
    assert not column(slates, "purchase")[~clicked].any()
    by_slot = slates.group_by("slot").agg(pl.col("click").mean()).sort("slot")["click"]
    assert by_slot[0] > 1.5 * by_slot[5]


def test_purchases_outside_slates_have_their_true_probability(
    shop: Shop, events: pl.DataFrame, slates: pl.DataFrame
) -> None:
    durable = events.filter(pl.Series(~shop.truth.consumable[column(events, "item")]))
    in_slates = slates.filter(pl.col("click") == 1).select("user", "item").unique()
    organic = durable.join(in_slates, on=["user", "item"], how="anti")
    user, item, time = (column(organic, name) for name in ("user", "item", "timestamp"))
    check_calibration(
        shop.truth.purchase_probability(user, item, time), column(organic, "action") == "purchase", spread=1.5
    )


def test_propensities_are_those_of_the_policies(shop: Shop, slates: pl.DataFrame) -> None:
    for policy in ("segment", "uniform"):
        some = slates.filter(pl.col("policy") == policy).head(200 * NUM_SLOTS)
        user, time = (column(some, name)[::NUM_SLOTS] for name in ("user", "timestamp"))
        item = column(some, "item").reshape(-1, NUM_SLOTS)
        chance = shop.truth.policy_probabilities(user, time, policy=policy)
        is_available = shop.truth.available(user, time)
        assert np.allclose(chance.sum(axis=1), 1)
        assert (chance[~is_available] == 0).all()
        # Exploration guarantees a minimal probability of each item, so importance weights stay bounded.
        assert (chance * is_available.sum(axis=1, keepdims=True))[is_available].min() >= EXPLORATION - 1e-9
        above = np.zeros(len(item))
        for slot in range(NUM_SLOTS):
            slot_chance = chance[np.arange(len(item)), item[:, slot]]
            logged = column(some, "propensity").reshape(-1, NUM_SLOTS)[:, slot]
            assert np.allclose(logged, slot_chance / (1 - above), rtol=1e-9)
            above += slot_chance
        assert (np.sort(item, axis=1)[:, 1:] != np.sort(item, axis=1)[:, :-1]).all()
    with pytest.raises(ValueError, match="policy 'best'"):
        shop.truth.policy_probabilities([0], [START], policy="best")


def test_inverse_propensities_recover_the_value_of_the_uniform_policy(shop: Shop, slates: pl.DataFrame) -> None:
    """Estimate the click rate in slot 1 of the uniform policy from slates of the segment policy."""
    top = slates.filter((pl.col("slot") == 1) & (pl.col("policy") == "segment"))
    user, time, last = (column(top, name) for name in ("user", "timestamp", "last"))
    is_available = shop.truth.available(user, time)
    weight = 1 / is_available.sum(axis=1) / column(top, "propensity")
    everything = np.arange(is_available.shape[1])
    true = np.zeros(len(user))
    for part in np.array_split(np.arange(len(user)), 10):
        click = shop.truth.click_probability(
            user[part, None], everything, time[part, None], slots=1, last_items=last[part, None]
        )
        true[part] = (click * is_available[part]).sum(axis=1) / is_available[part].sum(axis=1)
    terms = weight * column(top, "click")
    error = terms.std() / np.sqrt(len(terms))
    assert abs(terms.mean() - true.mean()) < 4 * error
    assert error < 0.15 * true.mean()
    # Without the weights the estimate is wrong: the logging policy shows better items than the uniform one.
    assert column(top, "click").mean() > true.mean() + 2 * error


def session_steps(shop: Shop, events: pl.DataFrame, lag: int) -> tuple[np.ndarray, ...]:
    """Return the categories of events and of the events 1, ..., `lag` later in the same session."""
    category, session = shop.truth.category[column(events, "item")], column(events, "session_id")
    same = session[lag:] == session[:-lag]
    return tuple(category[part : len(category) - lag + part][same] for part in range(lag + 1))


def test_the_log_contains_the_complements(shop: Shop, events: pl.DataFrame) -> None:
    earlier, later = session_steps(shop, events, 1)
    counts = np.zeros_like(shop.truth.complements)
    np.add.at(counts, (earlier, later), 1)
    np.fill_diagonal(counts, 0)
    rates = counts / counts.sum(axis=1, keepdims=True)
    linked = shop.truth.complements > 0
    others = ~linked & ~np.eye(len(rates), dtype=bool)
    assert rates[linked].mean() > 20 * rates[others].mean()
    assert np.corrcoef(rates[linked], shop.truth.complements[linked])[0, 1] > 0.5
    first, second = np.flatnonzero(shop.truth.category == 0)[0], np.flatnonzero(shop.truth.category == 1)[0]
    assert shop.truth.complementarity(first, second) == shop.truth.complements[0, 1] > 0


def test_the_next_category_depends_on_more_than_the_last_item(shop: Shop, events: pl.DataFrame) -> None:
    """Previous category and number of compared items predict the next category better than the last item alone."""
    category, session = shop.truth.category[column(events, "item")], column(events, "session_id")
    new_session = np.append(True, session[1:] != session[:-1])
    new_run = new_session | np.append(True, category[1:] != category[:-1])
    first = np.maximum.accumulate(
        np.where(new_run, np.arange(len(category)), 0)
    )  # first event of the run of one category
    before = np.where(new_session[first], len(CATEGORIES), category[first - 1])
    compared = np.minimum(np.arange(len(category)) - first, 1)
    rows = np.flatnonzero(~new_session[1:])
    train, test = np.array_split(rows, 2)

    def accuracy(state: np.ndarray) -> float:
        counts = np.zeros((state.max() + 1, len(CATEGORIES)))
        np.add.at(counts, (state[train], category[train + 1]), 1)
        return float((counts.argmax(axis=1)[state[test]] == category[test + 1]).mean())

    last = accuracy(category)
    assert accuracy(2 * category + compared) > last + 0.04
    assert accuracy(2 * (before * len(CATEGORIES) + category) + compared) > last + 0.06


def test_price_style_and_brand_matter(shop: Shop, events: pl.DataFrame) -> None:
    truth = shop.truth
    odd = pl.int_range(pl.len()).over("user") % 2 == 1
    levels = events.with_columns(level=pl.Series(truth.item_price_level)[column(events, "item")], odd=odd)
    halves = levels.group_by("user", "odd").agg(pl.col("level").mean(), pl.len()).filter(pl.col("len") >= 4)
    pairs = halves.pivot("odd", index="user", values="level").drop_nulls()
    assert np.corrcoef(pairs["true"], pairs["false"])[0, 1] > 0.4
    item, session = column(events, "item"), column(events, "session_id")
    same = session[1:] == session[:-1]
    matches = (truth.style[item[1:]] == truth.style[item[:-1]])[same].mean()
    shuffled = np.random.default_rng(0).permutation(item)
    assert matches > 1.8 * (truth.style[shuffled[1:]] == truth.style[shuffled[:-1]]).mean()


def test_interests_drift(shop: Shop, events: pl.DataFrame) -> None:
    """Check that late events agree with late interests better than with early ones."""
    late = events.filter(
        pl.Series(shop.truth.change_progress(column(events, "user"), column(events, "timestamp")) > 0.95)
    )
    user, time = column(late, "user"), column(late, "timestamp")
    rows, department = np.arange(len(user)), shop.truth.department[column(late, "item")]
    now = shop.truth.interests(user, time)[rows, department].mean()
    then = shop.truth.interests(user, np.full_like(time, START))[rows, department].mean()
    assert now > then + 0.1


def next_items(shop: Shop, events: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Return training events, and the last item and the target of steps within later sessions."""
    cut = events["timestamp"].quantile(0.8)
    assert cut is not None
    train, later = events.filter(pl.col("timestamp") <= cut), events.filter(pl.col("timestamp") > cut)
    item, session = column(later, "item"), column(later, "session_id")
    same = session[1:] == session[:-1]
    return train, item[:-1][same], item[1:][same]


def recall(scores: np.ndarray, targets: np.ndarray) -> float:
    top = np.argpartition(-scores, 10, axis=1)[:, :10]
    return float((top == targets[:, None]).any(axis=1).mean())


def test_simple_recommenders_differ_in_quality(shop: Shop, events: pl.DataFrame) -> None:
    """Check popularity < transitions of the last item < transitions with content; content alone finds cold items."""
    train, last, target = next_items(shop, events)
    num_items = shop.items.height
    item, session = column(train, "item"), column(train, "session_id")
    same = session[1:] == session[:-1]
    popular = np.bincount(item, minlength=num_items).astype(float)
    shape = (num_items, num_items)
    moves = sp.csr_matrix((np.ones(same.sum()), (item[:-1][same], item[1:][same])), shape=shape).toarray()
    truth = shop.truth
    # The inputs of a content model: brand, style (from the title) and price band.
    content = np.concatenate([np.eye(len(BRANDS))[truth.brand], np.eye(len(STYLES))[truth.style]], axis=1)
    look = content @ content.T
    alike = look - 0.5 * np.abs(truth.item_price_level[:, None] - truth.item_price_level)
    shelf = np.zeros((len(CATEGORIES), len(CATEGORIES)))
    np.add.at(shelf, (truth.category[item[:-1][same]], truth.category[item[1:][same]]), 1)
    way = np.log(shelf + 0.1)[truth.category][:, truth.category]
    by_popularity = recall(np.tile(popular, (len(last), 1)), target)
    by_moves = recall(moves[last] + 1e-6 * popular, target)
    by_content = recall((way + alike)[last], target)
    by_look = recall((way + look)[last], target)
    both = recall((way + alike + np.log(popular + 1) + 1.5 * np.log(moves + 0.5))[last], target)
    assert by_moves > 2.5 * by_popularity
    assert both > 1.08 * by_moves
    assert by_content > 1.02 * by_look  # price matters
    cold = popular[target] == 0
    assert recall((way + alike)[last[cold]], target[cold]) > 0.1
    assert recall(moves[last[cold]] + 1e-6 * popular, target[cold]) < 0.03


def fit_model(model: Popularity | ItemCF | ItemGraph, train: Dataset) -> Popularity | ItemCF | ItemGraph:
    model.set_popularity(torch.from_numpy(train.interactions.item_counts()).float())
    model.fit(train)
    return model


def test_models_differ_in_quality(shop: Shop) -> None:
    """Check popularity < item-cf < item-graph under protocol time, and that content helps the graph for rare items."""
    dataset = dataset_from_frames({name: getattr(shop, name) for name in TABLES}, shop.settings)
    split = make_split(dataset, "time")
    catalog = dataset.catalog
    graph = fit_model(ItemGraph(ItemGraph.Config(), catalog), split.train)
    blind = fit_model(ItemGraph(ItemGraph.Config(use_content=False), catalog), split.train)
    popular = fit_model(Popularity(Popularity.Config(), catalog), split.train)
    item_cf = fit_model(ItemCF(ItemCF.Config(), catalog), split.train)
    by_popularity, by_cf, by_graph = (
        quick_score(model, split.test, metric="recall@10") for model in (popular, item_cf, graph)
    )
    assert by_cf > 2 * by_popularity
    assert by_graph > 1.1 * by_cf
    rare = slice_masks(split.test, split.train, catalog)["rare"].nonzero()[:, 0]
    assert len(rare) > 100
    with_content, without = (
        quick_score(model, split.test.select(rare), metric="recall@10") for model in (graph, blind)
    )
    assert with_content > 1.05 * without


def test_the_items_of_the_history_are_bad_recommendations(shop: Shop) -> None:
    """Check that there are repeat purchases, but that the last ten items are a bad list of recommendations."""
    dataset = dataset_from_frames({name: getattr(shop, name) for name in TABLES}, shop.settings)
    test = make_split(dataset, "time").test
    assert test.targets is not None
    recent = [list(dict.fromkeys(reversed(history)))[:10] for history in test.items.to_lists()]
    hits = [target in items for items, (target,) in zip(recent, test.targets.to_lists(), strict=True)]
    assert 0 < np.mean(hits) < 0.1
