"""Rules: lists computed by hand for each kind; reports of broken rules; rules hold if an exhaustive search can."""

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

from nextitem.cascade.rule_kinds import Filter
from nextitem.cascade.rules import RulesConfig
from nextitem.core.catalog import Catalog
from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.core.recommendations import Recommendations, Relaxation

BRANDS = ["a", "a", "a", "b", "b", "c", "c", None, None, "d"]
TAGS = [["x"], ["x", "y"], [], ["y"], ["x"], ["z"], ["y"], ["x"], [], ["z", "y"]]
AGES = [50, 40, 30, 20, 10, 5, 4, 3, 2, 1]
SHOP = shelf(BRANDS, tags=TAGS, ages=AGES)
ALL = list(range(1, 11))


def cap(max_count: int, window: int | None = None, column: str = "brand") -> dict[str, Any]:
    return {"kind": "cap", "column": column, "most": max_count} | ({"window": window} if window else {})


def gap(between: int) -> dict[str, Any]:
    return {"kind": "gap", "column": "brand", "between": between}


def pin(item: str, slot: int) -> dict[str, Any]:
    return {"kind": "pin", "item": item, "slot": slot}


def quota(value: str, min_count: int, column: str = "brand") -> dict[str, Any]:
    return {"kind": "quota", "column": column, "value": value, "least": min_count}


def rerank(rules: Sequence[dict[str, Any]], items: list[int], k: int, catalog: Catalog = SHOP) -> Recommendations:
    """Return the answer of the rules to one request with these candidates."""
    return build("rules", catalog, rules=list(rules)).rerank(candidates([items]), requests([[1]]), k)


def items_of(rules: Sequence[dict[str, Any]], items: list[int], k: int, catalog: Catalog = SHOP) -> list[int]:
    """Return the item numbers of the list."""
    return lists(rerank(rules, items, k, catalog))[0]


def broken_rules(rules: Sequence[dict[str, Any]], items: list[int], k: int, catalog: Catalog = SHOP) -> list[Any]:
    """Return text and slot of every rule that is reported as broken."""
    return [(relaxation.rule, relaxation.slot) for relaxation in rerank(rules, items, k, catalog).relaxations]


def column_of(catalog: Catalog, name: str) -> list[Any]:
    """Return the values of a column, read once: an exhaustive search looks at them a million times."""
    if catalog is not SHOP:
        return catalog.table[name].to_list()
    columns: dict[str, list[Any]] = {"brand": BRANDS, "tags": TAGS}
    return columns[name]


def holds(rule: dict[str, Any], row: Sequence[int], catalog: Catalog, k: int) -> bool:
    """Return whether a rule holds in a list, computed from the list alone."""
    if rule["kind"] == "pin":
        return rule["slot"] > k or row[rule["slot"] - 1 : rule["slot"]] == [int(rule["item"][1:])]
    if rule["kind"] == "quota":
        values = [column_of(catalog, rule["column"])[item - 1] for item in row]
        count = sum(rule["value"] in (value if rule["column"] == "tags" else [value]) for value in values)
        return count >= int(rule["least"])
    brands = [column_of(catalog, "brand")[item - 1] for item in row]
    max_count = rule.get("most", 1)
    window = rule.get("window") or (rule["between"] + 1 if rule["kind"] == "gap" else len(row))
    spans = [[brand for brand in brands[start : start + window] if brand is not None] for start in range(len(row))]
    return all(span.count(value) <= max_count for span in spans for value in span)


def test_without_rules_the_order_is_unchanged() -> None:
    assert items_of([], [4, 2, 9], 2) == [4, 2]


def test_filters_always_hold_and_shorten_lists() -> None:
    assert items_of([{"kind": "drop", "column": "brand", "values": ["a", "d"]}], ALL, 10) == [4, 5, 6, 7, 8, 9]
    assert items_of([{"kind": "keep", "column": "tags", "values": ["x"]}], ALL, 10) == [1, 2, 5, 8]
    filters = [
        {"kind": "keep", "column": "tags", "values": ["x", "y"]},
        {"kind": "drop", "column": "brand", "values": ["a"]},
    ]
    assert items_of(filters, ALL, 10) == [4, 5, 7, 8, 10]
    assert items_of([{"kind": "keep", "column": "brand", "values": ["nobody"]}], ALL, 10) == []


def test_caps_hold_on_the_list_and_within_windows() -> None:
    assert items_of([cap(1)], ALL, 6) == [1, 4, 6, 8, 9, 10]  # 8 and 9 have no brand, so no cap counts them
    assert items_of([cap(2, 3)], ALL, 5) == [1, 2, 4, 3, 5]
    assert items_of([cap(2)], [1, 2, 3, 4, 5, 6, 7], 5) == [1, 2, 4, 5, 6]


def test_gaps_keep_items_of_a_brand_apart() -> None:
    assert items_of([gap(1)], ALL, 6) == [1, 4, 2, 5, 3, 6]
    assert items_of([gap(2)], ALL, 6) == [1, 4, 6, 2, 5, 7]


def test_pinned_items_are_in_their_slots_and_gaps_take_them_into_account() -> None:
    assert items_of([pin("i10", 2)], ALL, 4) == [1, 10, 2, 3]
    assert items_of([pin("i3", 2), gap(1)], [1, 2, 3, 4, 5, 6], 4) == [4, 3, 5, 1]
    assert items_of([pin("i9", 7)], ALL, 3) == [1, 2, 3]  # a pin beyond the list has no effect
    assert broken_rules([pin("i9", 7)], ALL, 3) == []


def test_quotas_are_filled_as_late_as_possible() -> None:
    assert items_of([quota("c", 2)], ALL, 5) == [1, 2, 3, 6, 7]
    assert items_of([quota("y", 2, "tags")], [1, 3, 5, 6, 4, 10], 4) == [1, 3, 4, 10]
    assert items_of([{"kind": "fresh", "days": 2, "least": 2}], ALL, 4) == [1, 2, 9, 10]


def test_an_item_can_count_for_several_quotas() -> None:
    rules = [quota("z", 2, "tags"), quota("y", 2, "tags"), quota("d", 1)]
    assert items_of(rules, ALL, 3) == [2, 6, 10]  # 10 counts for all three


def test_other_items_do_not_use_up_a_cap_that_a_quota_needs() -> None:
    """At most two of brand a, and two of tag y, which only brand a has: item 1, the best, cannot be on the list."""
    catalog = shelf(["a", "a", "a", "b", "b"], tags=[["x"], ["y"], ["y"], [], []])
    for rules in ([cap(2), quota("y", 2, "tags")], [quota("y", 2, "tags"), cap(2)]):
        assert items_of(rules, [1, 2, 3, 4, 5], 4, catalog) == [2, 3, 4, 5]
        assert broken_rules(rules, [1, 2, 3, 4, 5], 4, catalog) == []


def test_a_gap_looks_ahead_to_the_remaining_values() -> None:
    """The only order of a, a, a, b, b is a b a b a, although b is the best candidate."""
    for rules in ([gap(1)], [cap(1, 2)]):
        assert items_of(rules, [4, 5, 1, 2, 3], 5) == [1, 4, 2, 5, 3]


def test_a_quota_begins_early_if_a_gap_keeps_its_items_apart() -> None:
    """Three of brand a in seven slots with two others between them: the first, the fourth, the seventh."""
    rules = [quota("a", 3), gap(2)]
    items = items_of(rules, [8, 9, 4, 6, 10, 1, 2, 3], 7)
    assert [BRANDS[item - 1] for item in items][::3] == ["a", "a", "a"]
    assert broken_rules(rules, [8, 9, 4, 6, 10, 1, 2, 3], 7) == []


def test_the_last_rule_is_relaxed_first_and_is_reported() -> None:
    rules = [quota("a", 3), cap(2)]
    assert items_of(rules, ALL, 5) == [1, 2, 4, 5, 3]  # the cap holds as long as it can
    assert broken_rules(rules, ALL, 5) == [("2. cap of 2 per brand", 5)]
    assert items_of(rules[::-1], ALL, 5) == [1, 2, 4, 5, 6]
    assert broken_rules(rules[::-1], ALL, 5) == [("2. quota of 3 with brand = a", None)]


def test_pins_are_relaxed_for_the_rules_before_them() -> None:
    rules = [pin("i1", 1), pin("i2", 2)]
    assert items_of([*rules, gap(1)], ALL, 3) == [1, 2, 4]
    assert broken_rules([*rules, gap(1)], ALL, 3) == [("3. gap of 1 per brand", 2)]
    assert items_of([gap(1), *rules], ALL, 3) == [1, 4, 2]
    assert broken_rules([gap(1), *rules], ALL, 3) == [("3. pin i2 at 2", 2)]
    assert broken_rules([pin("i1", 1), pin("i2", 1)], ALL, 3) == [("2. pin i2 at 1", 1)]
    assert broken_rules([pin("i1", 2)], [4, 5], 3) == [("1. pin i1 at 2", 2)]


def test_rules_that_cannot_hold_are_relaxed_and_reported() -> None:
    rules = [cap(1), quota("c", 4), {"kind": "fresh", "days": 1, "least": 5}]
    answer = rerank(rules, [1, 2, 3, 4, 5], 5)
    assert lists(answer) == [[1, 4, 2, 3, 5]]
    assert answer.relaxations == [
        *(Relaxation(0, "1. cap of 1 per brand", slot) for slot in (3, 4, 5)),
        Relaxation(0, "2. quota of 4 with brand = c"),
        Relaxation(0, "3. quota of 5 released within 1 days"),
    ]
    empty = rerank(rules, [], 3)
    assert lists(empty) == [[]]
    assert [relaxation.slot for relaxation in empty.relaxations] == [None, None]


def test_relaxations_name_their_request() -> None:
    reranker = build("rules", SHOP, rules=[cap(1)])
    answer = reranker.rerank(candidates([[1, 4], [1, 2], [4, 5, 6]]), requests([[1]] * 3), 3)
    assert [(relaxation.request, relaxation.slot) for relaxation in answer.relaxations] == [(1, 2), (2, 3)]
    concatenated = Recommendations.concat([answer, answer])
    assert [relaxation.request for relaxation in concatenated.relaxations] == [1, 2, 4, 5]


def test_the_age_of_items_is_computed_at_the_time_of_the_request() -> None:
    rules = [{"kind": "fresh", "days": 4, "least": 1}]
    reranker = build("rules", SHOP, rules=rules)
    batch = requests([[1], [1]])
    assert batch.request_times is not None
    batch.request_times[1] -= 10 * 86_400_000  # ten days ago, when 5 had just been released, 6 to 10 not yet
    answer = reranker.rerank(candidates([[1, 2, 5, 7], [1, 2, 5, 7]]), batch, 2)
    assert lists(answer) == [[1, 7], [1, 5]]
    undated = reranker.rerank(candidates([[1, 7]]), requests([[1]], timed=False), 2)
    assert [relaxation.rule for relaxation in undated.relaxations] == ["1. quota of 1 released within 4 days"]


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
def test_a_rule_holds_unless_it_is_reported_as_broken(
    rules: list[dict[str, Any]], items: list[int], count: int, k: int
) -> None:
    answer = rerank(rules, items[:count], k)
    row = lists(answer)[0]
    assert len(row) == min(k, count)
    reported = {int(relaxation.rule.split(".")[0]) - 1 for relaxation in answer.relaxations}
    for rule_index, rule in enumerate(rules):
        assert holds(rule, row, SHOP, k) == (rule_index not in reported), rule


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
def test_rules_hold_whenever_some_list_satisfies_them(
    family: str, items: list[int], which: int, count: int, k: int
) -> None:
    rules = FAMILIES[family][which % len(FAMILIES[family])]
    row = items_of(rules, items[:count], k)
    if all(holds(rule, row, SHOP, k) for rule in rules):
        return
    for other in permutations(items[:count], min(k, count)):
        assert not all(holds(rule, list(other), SHOP, k) for rule in rules), (row, other)


@pytest.mark.slow
def test_nearly_all_sets_of_rules_that_can_hold_do_hold() -> None:
    """Sets mix all kinds of rules. The look-ahead counts and does not try arrangements, so it may miss a few."""
    generator = random.Random(1)
    kinds = [
        lambda: cap(generator.randint(1, 3)),
        lambda: cap(generator.randint(1, 2), generator.randint(2, 4)),
        lambda: gap(generator.randint(1, 3)),
        lambda: pin(generator.choice(["i1", "i4", "i8", "i10"]), generator.randint(1, 5)),
        lambda: quota(generator.choice("abc"), generator.randint(1, 3)),
        lambda: quota(generator.choice("xyz"), generator.randint(1, 3), "tags"),
    ]
    num_possible, num_satisfied = 0, 0
    while num_possible < 100:
        rules = [generator.choice(kinds)() for _ in range(generator.randint(2, 4))]
        items, k = generator.sample(ALL, generator.randint(4, 7)), generator.randint(3, 4)
        if any(all(holds(rule, list(row), SHOP, k) for rule in rules) for row in permutations(items, k)):
            num_possible += 1
            num_satisfied += all(holds(rule, items_of(rules, items, k), SHOP, k) for rule in rules)
    assert num_satisfied >= 97


def test_errors_of_users_have_one_line() -> None:
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


def test_ids_and_values_can_be_integers() -> None:
    config = parse(RulesConfig, {"rules": [{"kind": "keep", "column": "size", "values": [3]}, pin("7", 1)]}, where="t")
    rule = config.rules[0]
    assert isinstance(rule, Filter)
    assert rule.values == (3,)


def test_requests_of_a_batch_do_not_affect_each_other() -> None:
    """Requests with and without the pinned candidate, with different numbers of candidates."""
    rules = [pin("i2", 2), gap(1), quota("c", 1)]
    rows = [[1, 2, 3, 4, 6], [4, 5], [], [2], [10, 9, 8, 2, 7]]
    together = build("rules", SHOP, rules=rules).rerank(candidates(rows), requests([[1]] * 5), 4)
    for row, items in enumerate(rows):
        assert lists(together)[row] == items_of(rules, items, 4)
    assert torch.equal(together.item_ids[:, 1] == 2, torch.tensor([True, False, False, False, True]))
