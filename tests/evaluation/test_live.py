"""Figures of served models: known answers on a small log, and what readers are warned of."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from nextitem.core.errors import UserError
from nextitem.evaluation.attribution import EVENT_SCHEMA
from nextitem.evaluation.live import live_report, policy_parts

VERSIONS = {"a": "a" * 16, "b": "b" * 16}
COLUMNS = ("impression_id", "user_id", "item_id", "timestamp", "slot", "propensity", "policy")


def logs(
    chances: dict[str, float], *, num_users: int = 200, lists: int = 3, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return lists of three items for users of each model, who click the first with this probability."""
    rng = np.random.default_rng(seed)
    rows, clicks = [], []
    for model, chance in chances.items():
        for user in range(num_users):
            own = rng.beta(4 * chance, 4 * (1 - chance))
            for number in range(lists):
                request = f"{model}-{user}-{number}"
                for slot, item in enumerate(rng.choice(9, 3, replace=False), 1):
                    rows.append(
                        (request, f"{model}{user}", f"i{item}", number, slot, 1.0, f"{model} {VERSIONS[model]}")
                    )
                if rng.random() < own:
                    clicks.append((f"{model}{user}", rows[-3][2], "click", number, request))
    return pl.DataFrame(rows, schema=COLUMNS, orient="row"), pl.DataFrame(clicks, schema=EVENT_SCHEMA, orient="row")


def test_policies_are_read_from_the_log() -> None:
    names = ["sasrec 0a1b2c3d4e", "my run 0a1b2c3d4e fallback: no history", "segment", "x fallback: error", None]
    names += ["a 0a1b2c3d4e explore: 0.5 fallback: deadline", "b 0a1b2c3d4e temperature 0.5"]
    parts = pl.DataFrame({"policy": names}).select(policy_parts())
    assert parts.rows() == [
        ("sasrec", "0a1b2c3d4e", None),
        ("my run", "0a1b2c3d4e", "no history"),
        ("segment", "", None),
        ("x", "", "error"),
        ("unknown", "", None),
        ("a", "0a1b2c3d4e", "deadline"),
        ("b", "0a1b2c3d4e", None),
    ]


def test_versions_of_a_model_are_pooled_if_asked() -> None:
    impressions, events = logs({"a": 0.3, "b": 0.6})
    is_old = pl.col("impression_id").str.ends_with("-0")
    updated = impressions.with_columns(
        pl.when(is_old).then("policy").otherwise(pl.col("policy").str.replace("b{16}", "c" * 16)).alias("policy")
    )
    apart, _ = live_report(updated, events)
    assert sorted(policy.name for policy in apart.policies) == ["a", "b bbbbbbbb", "b cccccccc"]
    pooled, _ = live_report(updated, events, pools_versions=True)
    plain, _ = live_report(impressions, events)
    assert [(policy.name, policy.version) for policy in pooled.policies] == [("a", ""), ("b", "")]
    assert [policy.list_rates for policy in pooled.policies] == [policy.list_rates for policy in plain.policies]
    assert pooled.differences == plain.differences


def test_figures_of_a_small_log_worked_out_by_hand() -> None:
    policy = "a aaaaaaaa"
    rows = [
        ("r1", "u1", "x", 10, 1, 0.5, policy),
        ("r1", "u1", "y", 10, 2, 1.0, policy),
        ("r2", "u1", "x", 20, 1, 1.0, policy),
        ("r2", "u1", "z", 20, 2, 1.0, policy),
        ("r3", None, "x", 30, 1, 1.0, f"{policy} fallback: no history"),
        ("r4", None, "x", 40, 1, 1.0, policy),
    ]
    events = [
        ("u1", "x", "click", 11, "r1"),
        ("u1", "y", "purchase", 12, "r1"),
        ("u2", "x", "click", 50, "r4"),
        ("u3", "w", "click", 9, None),
    ]
    report, _ = live_report(
        pl.DataFrame(rows, schema=COLUMNS, orient="row"), pl.DataFrame(events, schema=EVENT_SCHEMA, orient="row")
    )
    (figures,) = report.policies
    assert (figures.name, figures.lists, figures.users, figures.impressions) == ("a", 4, 3, 6)
    assert (figures.fallbacks, figures.explored) == ({"no history": 1}, 1)
    assert report.outcomes == ["click", "purchase"]  # "any" equals "click"
    assert (figures.list_rates["click"].value, figures.list_rates["purchase"].value) == (2 / 4, 1 / 4)
    assert (figures.impression_rates["click"].value, figures.impression_rates["purchase"].value) == (3 / 6, 1 / 6)
    assert [(entry.slot, entry.rate.successes, entry.rate.units) for entry in figures.slot_rates] == [
        (1, 2, 4),
        (2, 1, 2),
    ]
    assert report.events == {"by_request": 3, "by_item": 0, "unattributed": 1}
    assert (figures.distinct_items, figures.coverage) == (3, 3 / 4)  # x, y, z of w, x, y, z
    # One event is added to each: x 3, y 2, w 2, z 1 of 8.
    bits = {"x": -np.log2(3 / 8), "y": 2.0, "z": 3.0}
    means = [(bits["x"] + bits["y"]) / 2, (bits["x"] + bits["z"]) / 2, bits["x"], bits["x"]]
    assert figures.novelty == pytest.approx(np.mean(means))
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["policies"][0]["lists"] == 4


def test_a_real_difference_is_found_and_noise_is_not() -> None:
    report, _ = live_report(*logs({"a": 0.3, "b": 0.45}))
    (entry,) = report.differences
    assert (entry.first, entry.second, entry.outcome) == ("b", "a", "click")
    assert entry.is_real
    assert entry.difference.low < 0.15 < entry.difference.high
    assert entry.difference.lift_low < 0.5 < entry.difference.lift_high
    same, _ = live_report(*logs({"a": 0.3, "b": 0.3}))
    assert not same.differences[0].is_real


def test_versions_of_a_model_are_apart_and_pairs_are_judged_together() -> None:
    impressions, events = logs({"a": 0.3, "b": 0.4})
    older = impressions.with_columns(
        policy=pl.lit("a cccccccc"),
        impression_id="old" + pl.col("impression_id"),
        timestamp=pl.col("timestamp") - 10**9,
    )
    report, _ = live_report(pl.concat([impressions, older]), events)
    assert {policy.name for policy in report.policies} == {"a aaaaaaaa", "b", "a cccccccc"}
    assert len([entry for entry in report.differences if entry.outcome == "click"]) == 3
    assert all(entry.adjusted_p_value >= entry.difference.p_value for entry in report.differences)
    assert any("different times" in note for note in report.notes)
    assert any("saw lists of several models" in note for note in report.notes)


def test_intervals_of_the_report_contain_the_truth() -> None:
    covering = 0
    for seed in range(20):
        report, _ = live_report(*logs({"a": 0.3, "b": 0.4}, num_users=60, seed=seed))
        covering += report.differences[0].difference.low <= 0.1 <= report.differences[0].difference.high
    assert covering >= 17


def test_logs_without_lists_answers_or_slots_are_handled() -> None:
    impressions, events = logs({"a": 0.3}, num_users=5)
    with pytest.raises(UserError, match="contains no list"):
        live_report(impressions.clear(), events)
    report, _ = live_report(
        impressions.drop("slot", "propensity", "policy").with_columns(policy=pl.lit("p")), events.clear()
    )
    assert report.policies[0].list_rates["click"].value == 0
    assert len(report.policies[0].slot_rates) == 3
    assert any("counts as click" in note for note in report.notes)
