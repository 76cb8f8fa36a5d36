"""The plan of docs/scaling.md: its arithmetic by hand, and tables that follow from the constants."""

from __future__ import annotations

import copy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import scaling_plan as plan

ROOT = Path(__file__).parents[2]


@pytest.fixture
def constants() -> dict[str, Any]:
    """Return constants with which everything can be computed in the head."""
    table = tomllib.loads((ROOT / "benchmarks" / "scaling.toml").read_text(encoding="utf-8"))
    table["plan"] |= {
        "users": 1_000, "items": 1_000_000, "requests_per_second": 1_000, "peak_over_mean": 2, "events_per_request": 1,
        "events_kept_per_user": 10, "list_length": 5, "lists_per_user_and_day": 36, "utilisation": 0.5,
        "item_shards": 1, "width": 10, "levels": 2, "beam_width": 3, "training_passes": 2,
    }  # fmt: skip
    table["machine"] = {"cores": 10, "memory_gb": 1, "usable": 0.5}
    table["prices"] = {"core_hour": 0.1, "storage_gb_month": 2, "object_gb_month": 1}
    table["measured"]["bytes"] = {
        "vector_value": 4, "search_code": 1, "trie": 20, "id": 30, "id_index": 10, "title": 50, "popularity": 10,
        "event_postgresql": 100, "shown_slot": 10, "request_and_answer": 1_000,
    }  # fmt: skip
    table["measured"]["core_ms"] |= {"exact_search_per_million": 3, "event_loop": 2}
    table["measured"]["per_second"] = {"events_stored": 100, "events_trained": 1_000}
    return table


def test_the_page_has_the_tables_of_the_constants() -> None:
    text = plan.PAGE.read_text(encoding="utf-8")
    own = tomllib.loads(plan.CONSTANTS.read_text(encoding="utf-8"))
    assert plan.page_with(text, own) == text, "run: python benchmarks/scaling_plan.py"
    assert {match[1] for match in plan.MARKED.findall(text)} == set(plan.tables(own))


def test_serving_is_what_the_hand_computes(constants: dict[str, Any]) -> None:
    assert sum(plan.bytes_per_item(constants, "vectors").values()) == 40 + 10 + 30 + 10 + 50 + 10
    cost = plan.request_cost(constants, "vectors")
    assert cost == {"core_ms": 3.0, "bytes": 1e7, "flops": 2e7}
    fleet = plan.fleet(constants, "vectors")
    assert fleet["cores"] == 1_000 * 0.005 / 0.5  # 5 ms a request, half used: 10 cores
    assert fleet["copy_gb"] == 0.15
    assert fleet["processes"] == 3  # of 0.15 GB in 0.5 GB
    assert fleet["machines"] == 2  # ten cores are one machine, but 4 seconds of event loops need 4 processes, and 3 fit
    assert fleet["dollars_an_hour"] == pytest.approx(2.0)
    assert fleet["dollars_per_thousand"] == pytest.approx(2.0 / (500 * 3600) * 1000)
    constants["plan"]["item_shards"] = 5  # each request passes five event loops, and copies are smaller
    assert plan.fleet(constants, "vectors")["cores"] == pytest.approx(1_000 * 0.013 / 0.5)
    assert plan.fleet(constants, "vectors")["processes"] == 10


def test_the_decoder_has_the_times_that_were_measured(constants: dict[str, Any]) -> None:
    a, b, c = plan.decoder_constants(constants)
    times = constants["measured"]["core_ms"]
    for levels, codes, name in ((3, 100, "100x100x100"), (2, 1000, "1000x1000"), (2, 3163, "3163x3163")):
        assert a + b * levels + c * levels * codes == pytest.approx(times[f"decoder_{name}"])
    cost = plan.request_cost(constants, "decoder")
    assert cost["core_ms"] == pytest.approx(times["decoder_1000x1000"])
    assert cost["bytes"] == 1000 * (1 + 3) * 10 * 4
    assert cost["flops"] == cost["bytes"] / 2


def test_data_is_what_the_hand_computes(constants: dict[str, Any]) -> None:
    store = plan.events(constants)
    assert (store["events_per_second"], store["writers"]) == (1_000, 20)
    assert store["stored_gb"] == 1_000 * 10 * 100 / 1e9
    assert store["shown_gb_a_day"] == pytest.approx(500 * 86_400 * 5 * 10 / 1e9)
    assert store["shown_dollars_a_month"] == pytest.approx(30 * store["shown_gb_a_day"])
    work = plan.daily_work(constants)
    assert work["list_core_hours"] == pytest.approx(36_000 * 9.26e-3 / 3600)
    assert work["train_core_hours"] == pytest.approx(500 * 86_400 * 2 / 1_000 / 3600)
    dearer = copy.deepcopy(constants)
    dearer["prices"]["core_hour"] *= 3
    assert plan.daily_work(dearer)["train_dollars"] == pytest.approx(3 * work["train_dollars"])


def test_a_catalogue_that_no_machine_can_load_is_refused(constants: dict[str, Any]) -> None:
    constants["machine"]["memory_gb"] = 0.1
    with pytest.raises(SystemExit, match="raise item_shards"):
        plan.fleet(constants, "vectors")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.00759, "0.00759"), (135, "135"), (7.326, "7.33"), (12_846.0, "12,800")]
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert plan.number(value) == text
