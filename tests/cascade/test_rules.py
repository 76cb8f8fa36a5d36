"""Rules: each kind by known answers; what always holds; met where an exhaustive search says that they can be."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_catalog import build, candidates, lists, requests, shelf

from nextitem.cascade.rules import Filter, RulesConfig
from nextitem.core.catalog import Catalog
from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.core.recommendations import Recommendations, Relaxation

BRANDS = ["a", "a", "a", "b", "b", "c", "c", None, None, "d"]
TAGS = [["x"], ["x", "y"], [], ["y"], ["x"], ["z"], ["y"], ["x"], [], ["z", "y"]]
AGES = [50, 40, 30, 20, 10, 5, 4, 3, 2, 1]
SHOP = shelf(BRANDS, tags=TAGS, ages=AGES)
ALL = list(range(1, 11))


def cap(most: int, window: int | None = None, column: str = "brand") -> dict[str, Any]:
    return {"kind": "cap", "column": column, "most": most} | ({"window": window} if window else {})


def gap(between: int) -> dict[str, Any]:
    return {"kind": "gap", "column": "brand", "between": between}


def pin(item: str, slot: int) -> dict[str, Any]:
    return {"kind": "pin", "item": item, "slot": slot}


def quota(value: str, least: int, column: str = "brand") -> dict[str, Any]:
    return {"kind": "quota", "column": column, "value": value, "least": least}


def ruled(rules: Sequence[dict[str, Any]], items: list[int], k: int, catalog: Catalog = SHOP) -> Recommendations:
    return build("rules", catalog, rules=list(rules)).rerank(candidates([items]), requests([[1]]), k)


def shown(rules: Sequence[dict[str, Any]], items: list[int], k: int, catalog: Catalog = SHOP) -> list[int]:
    return lists(ruled(rules, items, k, catalog))[0]


def broken(rules: Sequence[dict[str, Any]], items: list[int], k: int, catalog: Catalog = SHOP) -> list[Any]:
    return [(one.rule, one.slot) for one in ruled(rules, items, k, catalog).relaxations]


def holds(rule: dict[str, Any], row: Sequence[int], catalog: Catalog, k: int) -> bool:
    """By reading the list alone."""
    brand = [catalog.table["brand"][item - 1] for item in row]
    if rule["kind"] == "pin":
        return rule["slot"] > k or row[rule["slot"] - 1 : rule["slot"]] == [int(rule["item"][1:])]
    if rule["kind"] == "quota":
        values = [catalog.table[rule["column"]][item - 1] for item in row]
        return sum(rule["value"] in (v if rule["column"] == "tags" else [v]) for v in values) >= int(rule["least"])
    most = rule.get("most", 1)
    window = rule.get("window") or (rule["between"] + 1 if rule["kind"] == "gap" else len(row))
    spans = [[v for v in brand[start : start + window] if v is not None] for start in range(len(row))]
    return all(span.count(value) <= most for span in spans for value in span)


def test_without_rules_the_order_stays() -> None:
    assert shown([], [4, 2, 9], 2) == [4, 2]


def test_filters_hold_always_and_shorten_lists() -> None:
    assert shown([{"kind": "drop", "column": "brand", "values": ["a", "d"]}], ALL, 10) == [4, 5, 6, 7, 8, 9]
    assert shown([{"kind": "keep", "column": "tags", "values": ["x"]}], ALL, 10) == [1, 2, 5, 8]
    both = [
        {"kind": "keep", "column": "tags", "values": ["x", "y"]},
        {"kind": "drop", "column": "brand", "values": ["a"]},
    ]
    assert shown(both, ALL, 10) == [4, 5, 7, 8, 10]
    assert shown([{"kind": "keep", "column": "brand", "values": ["nobody"]}], ALL, 10) == []


def test_caps_on_the_list_and_within_windows() -> None:
    assert shown([cap(1)], ALL, 6) == [1, 4, 6, 8, 9, 10]  # 8 and 9 have no brand: alike to none
    assert shown([cap(2, 3)], ALL, 5) == [1, 2, 4, 3, 5]
    assert shown([cap(2)], [1, 2, 3, 4, 5, 6, 7], 5) == [1, 2, 4, 5, 6]


def test_gaps() -> None:
    assert shown([gap(1)], ALL, 6) == [1, 4, 2, 5, 3, 6]
    assert shown([gap(2)], ALL, 6) == [1, 4, 6, 2, 5, 7]


def test_pins_stand_and_gaps_go_around_them() -> None:
    assert shown([pin("i10", 2)], ALL, 4) == [1, 10, 2, 3]
    assert shown([pin("i3", 2), gap(1)], [1, 2, 3, 4, 5, 6], 4) == [4, 3, 5, 1]
    assert shown([pin("i9", 7)], ALL, 3) == [1, 2, 3]  # beyond the list: asks nothing
    assert broken([pin("i9", 7)], ALL, 3) == []


def test_quotas_wait_as_long_as_they_can() -> None:
    assert shown([quota("c", 2)], ALL, 5) == [1, 2, 3, 6, 7]
    assert shown([quota("y", 2, "tags")], [1, 3, 5, 6, 4, 10], 4) == [1, 3, 4, 10]
    assert shown([{"kind": "fresh", "days": 2, "least": 2}], ALL, 4) == [1, 2, 9, 10]


def test_an_item_may_count_for_several_quotas() -> None:
    rules = [quota("z", 2, "tags"), quota("y", 2, "tags"), quota("d", 1)]
    assert shown(rules, ALL, 3) == [2, 6, 10]  # 10 is of all three


def test_a_cap_is_not_used_up_by_others_where_a_quota_needs_it() -> None:
    """Two of brand a at most, and two of tag y, which brand a alone has: item 1, the best, has to stay out."""
    catalog = shelf(["a", "a", "a", "b", "b"], tags=[["x"], ["y"], ["y"], [], []])
    for rules in ([cap(2), quota("y", 2, "tags")], [quota("y", 2, "tags"), cap(2)]):
        assert shown(rules, [1, 2, 3, 4, 5], 4, catalog) == [2, 3, 4, 5]
        assert broken(rules, [1, 2, 3, 4, 5], 4, catalog) == []


def test_a_gap_looks_ahead_to_what_is_left() -> None:
    """Of a, a, a, b, b the only order is a b a b a, though b stands first."""
    for rules in ([gap(1)], [cap(1, 2)]):
        assert shown(rules, [4, 5, 1, 2, 3], 5) == [1, 4, 2, 5, 3]


def test_a_quota_begins_early_where_a_gap_spreads_it() -> None:
    """Three of a in seven places with two between them: the first, the fourth, the seventh."""
    rules = [quota("a", 3), gap(2)]
    found = shown(rules, [8, 9, 4, 6, 10, 1, 2, 3], 7)
    assert [BRANDS[item - 1] for item in found][::3] == ["a", "a", "a"]
    assert broken(rules, [8, 9, 4, 6, 10, 1, 2, 3], 7) == []


def test_the_last_rule_gives_way_first_and_it_is_said() -> None:
    two = [quota("a", 3), cap(2)]
    assert shown(two, ALL, 5) == [1, 2, 4, 5, 3]  # the cap holds as long as it can
    assert broken(two, ALL, 5) == [("2. cap of 2 per brand", 5)]
    assert shown(two[::-1], ALL, 5) == [1, 2, 4, 5, 6]
    assert broken(two[::-1], ALL, 5) == [("2. quota of 3 with brand = a", None)]


def test_pins_give_way_to_what_stands_before_them() -> None:
    rules = [pin("i1", 1), pin("i2", 2)]
    assert shown([*rules, gap(1)], ALL, 3) == [1, 2, 4]
    assert broken([*rules, gap(1)], ALL, 3) == [("3. gap of 1 per brand", 2)]
    assert shown([gap(1), *rules], ALL, 3) == [1, 4, 2]
    assert broken([gap(1), *rules], ALL, 3) == [("3. pin i2 at 2", 2)]
    assert broken([pin("i1", 1), pin("i2", 1)], ALL, 3) == [("2. pin i2 at 1", 1)]
    assert broken([pin("i1", 2)], [4, 5], 3) == [("1. pin i1 at 2", 2)]


def test_what_cannot_hold_at_all_degrades_and_is_said() -> None:
    rules = [cap(1), quota("c", 4), {"kind": "fresh", "days": 1, "least": 5}]
    found = ruled(rules, [1, 2, 3, 4, 5], 5)
    assert lists(found) == [[1, 4, 2, 3, 5]]
    assert found.relaxations == [
        *(Relaxation(0, "1. cap of 1 per brand", slot) for slot in (3, 4, 5)),
        Relaxation(0, "2. quota of 4 with brand = c"),
        Relaxation(0, "3. quota of 5 released within 1 days"),
    ]
    nothing = ruled(rules, [], 3)
    assert lists(nothing) == [[]]
    assert [one.slot for one in nothing.relaxations] == [None, None]


def test_relaxations_name_their_request() -> None:
    reranker = build("rules", SHOP, rules=[cap(1)])
    found = reranker.rerank(candidates([[1, 4], [1, 2], [4, 5, 6]]), requests([[1]] * 3), 3)
    assert [(one.request, one.slot) for one in found.relaxations] == [(1, 2), (2, 3)]
    again = Recommendations.concat([found, found])
    assert [one.request for one in again.relaxations] == [1, 2, 4, 5]


def test_freshness_is_judged_at_the_time_of_the_request() -> None:
    rules = [{"kind": "fresh", "days": 4, "least": 1}]
    reranker = build("rules", SHOP, rules=rules)
    batch = requests([[1], [1]])
    assert batch.request_times is not None
    batch.request_times[1] -= 10 * 86_400_000  # ten days ago: 5 was just released, 6 to 10 not yet
    found = reranker.rerank(candidates([[1, 2, 5, 7], [1, 2, 5, 7]]), batch, 2)
    assert lists(found) == [[1, 7], [1, 5]]
    undated = reranker.rerank(candidates([[1, 7]]), requests([[1]], timed=False), 2)
    assert [one.rule for one in undated.relaxations] == ["1. quota of 1 released within 4 days"]


RULE = st.one_of(
    st.builds(cap, st.integers(1, 3)),
    st.builds(cap, st.integers(1, 2), st.integers(2, 4)),
    st.builds(gap, st.integers(1, 3)),
    st.builds(pin, st.sampled_from(["i1", "i4", "i8", "i10"]), st.integers(1, 7)),
    st.builds(quota, st.sampled_from(["a", "b", "c"]), st.integers(1, 3)),
    st.builds(quota, st.sampled_from(["x", "y", "z"]), st.integers(1, 3), st.just("tags")),
)


@given(rules=st.lists(RULE, max_size=4), items=st.permutations(ALL), count=st.integers(0, 10), k=st.integers(1, 8))
@settings(max_examples=300, deadline=None)
def test_what_is_not_said_to_be_broken_holds(rules: list[dict[str, Any]], items: list[int], count: int, k: int) -> None:
    found = ruled(rules, items[:count], k)
    row = lists(found)[0]
    assert len(row) == min(k, count)
    said = {int(one.rule.split(".")[0]) - 1 for one in found.relaxations}
    for place, rule in enumerate(rules):
        assert holds(rule, row, SHOP, k) == (place not in said), rule


FAMILIES = {
    "caps on the list": [[cap(1)], [cap(2)], [cap(3)]],
    "a gap": [[gap(1)], [gap(2)]],
    "quotas of a column": [[quota("a", 2), quota("b", 1)], [quota("c", 2), quota("d", 1), quota("b", 2)]],
    "quota and cap of other columns": [[quota("y", 2, "tags"), cap(1)], [cap(2), quota("x", 3, "tags")]],
    "quota and gap of a column": [[quota("a", 2), gap(1)], [gap(2), quota("a", 2)]],
    "pins and a gap": [[pin("i4", 2), gap(1)], [pin("i2", 3), pin("i5", 1), gap(1)]],
    "pins and quotas": [[pin("i1", 1), quota("c", 2)], [quota("y", 2, "tags"), pin("i6", 2)]],
}


@pytest.mark.parametrize("family", FAMILIES)
@given(items=st.permutations(ALL), which=st.integers(0, 2), count=st.integers(1, 7), k=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_rules_hold_wherever_they_can(family: str, items: list[int], which: int, count: int, k: int) -> None:
    rules = FAMILIES[family][which % len(FAMILIES[family])]
    row = shown(rules, items[:count], k)
    if all(holds(rule, row, SHOP, k) for rule in rules):
        return
    for other in permutations(items[:count], min(k, count)):
        assert not all(holds(rule, list(other), SHOP, k) for rule in rules), (row, other)


@pytest.mark.slow
def test_nearly_all_sets_of_rules_that_can_hold_do() -> None:
    """Of every kind together: the look-ahead counts, so a few may be lost."""
    draw = random.Random(1)
    kinds = [
        lambda: cap(draw.randint(1, 3)),
        lambda: cap(draw.randint(1, 2), draw.randint(2, 4)),
        lambda: gap(draw.randint(1, 3)),
        lambda: pin(draw.choice(["i1", "i4", "i8", "i10"]), draw.randint(1, 5)),
        lambda: quota(draw.choice("abc"), draw.randint(1, 3)),
        lambda: quota(draw.choice("xyz"), draw.randint(1, 3), "tags"),
    ]
    can, kept = 0, 0
    while can < 100:
        rules = [draw.choice(kinds)() for _ in range(draw.randint(2, 4))]
        items, k = draw.sample(ALL, draw.randint(4, 7)), draw.randint(3, 4)
        if any(all(holds(rule, list(row), SHOP, k) for rule in rules) for row in permutations(items, k)):
            can += 1
            kept += all(holds(rule, shown(rules, items, k), SHOP, k) for rule in rules)
    assert kept >= 97


def test_users_mistakes_are_one_line() -> None:
    for rules, message in [
        ([cap(1, column="colour")], "'colour' is no feature of the items"),
        ([cap(1, column="tags")], "'tags' is of type categorical-list; choose a categorical one"),
        ([pin("i99", 1)], "there is no item 'i99' in the catalogue"),
        ([{"kind": "drop", "column": "price", "values": ["1"]}], "'price' is of type numeric"),
        ([{"kind": "shuffle"}], "rules.0"),
        ([{"kind": "cap", "column": "brand"}], "most' is missing"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            build("rules", SHOP, rules=rules)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="release times of items are not known"):
        build("rules", shelf(["a"]), rules=[{"kind": "fresh", "days": 2, "least": 1}])


def test_integers_are_ids_and_values_too() -> None:
    config = parse(RulesConfig, {"rules": [{"kind": "keep", "column": "size", "values": [3]}, pin("7", 1)]}, where="t")
    rule = config.rules[0]
    assert isinstance(rule, Filter)
    assert rule.values == (3,)


def test_the_batch_stays_on_its_own() -> None:
    """Requests with and without a pinned candidate, of different lengths."""
    rules = [pin("i2", 2), gap(1), quota("c", 1)]
    rows = [[1, 2, 3, 4, 6], [4, 5], [], [2], [10, 9, 8, 2, 7]]
    together = build("rules", SHOP, rules=rules).rerank(candidates(rows), requests([[1]] * 5), 4)
    for row, items in enumerate(rows):
        assert lists(together)[row] == shown(rules, items, 4)
    assert torch.equal(together.item_ids[:, 1] == 2, torch.tensor([True, False, False, False, True]))
