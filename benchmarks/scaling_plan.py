"""What do a billion users, a hundred million items and 100,000 requests a second need?

    python benchmarks/scaling_plan.py [--constants benchmarks/scaling.toml] [--check] [--print]

Computes the tables of docs/scaling.md from the constants, which can be changed, and writes them between the marks of
that page. `--print` prints them and writes nothing; `--check` exits with 1 if the page has other tables.
"""

from __future__ import annotations

import math
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import Results, parser

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
CONSTANTS = Path(__file__).with_name("scaling.toml")
MARKED = re.compile(r"(<!-- plan: (\w+) -->\n).*?(<!-- end -->)", re.S)
GB = 1e9
HOURS_A_MONTH = 730
DAY = 86_400

Row = tuple[str, ...]
Constants = Mapping[str, Any]


def bytes_per_item(constants: Constants, kind: str) -> dict[str, float]:
    """Return the bytes that an item takes in each structure of a replica of this kind: `vectors` or `decoder`."""
    sizes, width = constants["measured"]["bytes"], constants["plan"]["width"]
    common = {"id": sizes["id"], "index of ids": sizes["id_index"], "title": sizes["title"]}
    common["popularity"] = sizes["popularity"]
    vector = {"vector": width * sizes["vector_value"]}
    if kind == "vectors":
        return {**vector, "codes for exact search": width * sizes["search_code"], **common}
    return {**vector, "trie": sizes["trie"], **common}


def decoder_constants(constants: Constants) -> tuple[float, float, float]:
    """Return a, b, c of the time of a request to the depth decoder: a + b * levels + c * levels * codes, in ms."""
    times = constants["measured"]["core_ms"]
    short, wide, long = (times[f"decoder_{size}"] for size in ("100x100x100", "1000x1000", "3163x3163"))
    c = (long - wide) / (2 * 3163 - 2 * 1000)
    # a + 3 b = short - 300 c and a + 2 b = wide - 2000 c
    b = (short - 300 * c) - (wide - 2000 * c)
    return (wide - 2000 * c) - 2 * b, b, c


def codes_of_level(constants: Constants) -> int:
    """Return the number of codes of each level with which every item has a code sequence of its own."""
    plan = constants["plan"]
    items, levels = float(plan["items"]), int(plan["levels"])
    root: float = items ** (1 / levels)
    return math.ceil(round(root, 6))  # a cube root of 1000 that is 10.000000000000002 is 10


def request_cost(constants: Constants, kind: str) -> dict[str, float]:
    """Return milliseconds of a core, bytes read and operations (FLOPs) of one request to the model."""
    plan, times = constants["plan"], constants["measured"]["core_ms"]
    if kind == "vectors":
        values = plan["items"] * plan["width"]
        ms = times["exact_search_per_million"] * plan["items"] / 1e6
        return {"core_ms": ms, "bytes": values * constants["measured"]["bytes"]["search_code"], "flops": 2.0 * values}
    a, b, c = decoder_constants(constants)
    levels, codes = plan["levels"], codes_of_level(constants)
    # The first level has one node, each further one the children of a beam.
    nodes = codes * (1 + (levels - 1) * plan["beam_width"])
    ms = a + b * levels + c * levels * codes
    values = nodes * plan["width"]
    return {"core_ms": ms, "bytes": values * constants["measured"]["bytes"]["vector_value"], "flops": 2.0 * values}


def fleet(constants: Constants, kind: str) -> dict[str, float]:
    """Return cores, processes, machines and dollars of serving with models of this kind.

    Each process has a copy of its own, or of its shard; a machine runs as many processes as its memory allows, at most
    one for each core. Machines are enough for the work of all cores and for the event loop of each process. A request
    to a sharded catalogue is answered by every shard, which searches its part.
    """
    plan, machine = constants["plan"], constants["machine"]
    rate, shards = plan["requests_per_second"], plan["item_shards"]
    model_ms = request_cost(constants, kind)["core_ms"]
    loop_ms = constants["measured"]["core_ms"]["event_loop"]
    cores = rate * (model_ms + shards * loop_ms) / 1000 / plan["utilisation"]
    copy = sum(bytes_per_item(constants, kind).values()) * plan["items"] / shards
    processes = min(machine["cores"], int(machine["memory_gb"] * machine["usable"] * GB // copy))
    if not processes:
        raise SystemExit(f"a copy of {copy / GB:,.1f} GB does not fit into a machine; raise item_shards")
    by_loops = rate * shards * loop_ms / 1000 / plan["utilisation"] / processes
    machines = math.ceil(max(cores / machine["cores"], by_loops))
    dollars_an_hour = machines * machine["cores"] * constants["prices"]["core_hour"]
    mean_rate = rate / plan["peak_over_mean"]
    return {
        "cores": cores,
        "copy_gb": copy / GB,
        "processes": processes,
        "machines": machines,
        "dollars_an_hour": dollars_an_hour,
        "dollars_per_thousand": dollars_an_hour / (mean_rate * 3600) * 1000,
        "requests_per_second_and_core": 1000 / (model_ms + shards * loop_ms),
    }


def events(constants: Constants) -> dict[str, float]:
    """Return rates, bytes and dollars of the store of events and of the log of shown lists."""
    plan, measured, prices = constants["plan"], constants["measured"], constants["prices"]
    peak = plan["requests_per_second"] * plan["events_per_request"]
    stored_gb = plan["users"] * plan["events_kept_per_user"] * measured["bytes"]["event_postgresql"] / GB
    slots_a_day = plan["requests_per_second"] / plan["peak_over_mean"] * DAY * plan["list_length"]
    shown_gb_a_day = slots_a_day * measured["bytes"]["shown_slot"] / GB
    return {
        "events_per_second": peak,
        "writers": math.ceil(peak / measured["per_second"]["events_stored"] / plan["utilisation"]),
        "stored_gb": stored_gb,
        "store_dollars_a_month": stored_gb * prices["storage_gb_month"],
        "shown_gb_a_day": shown_gb_a_day,
        "shown_dollars_a_month": shown_gb_a_day * 30 * prices["object_gb_month"],
    }


def daily_work(constants: Constants) -> dict[str, float]:
    """Return core-hours and dollars a day of lists for all users, and of training on the events of the day."""
    plan, measured = constants["plan"], constants["measured"]
    lists = plan["users"] * plan["lists_per_user_and_day"]
    list_hours = lists * request_cost(constants, "decoder")["core_ms"] / 1000 / 3600
    new_events = plan["requests_per_second"] / plan["peak_over_mean"] * DAY * plan["events_per_request"]
    train_hours = new_events * plan["training_passes"] / measured["per_second"]["events_trained"] / 3600
    price = constants["prices"]["core_hour"]
    return {
        "list_core_hours": list_hours,
        "list_dollars": list_hours * price,
        "events_a_day": new_events,
        "train_core_hours": train_hours,
        "train_dollars": train_hours * price,
    }


def number(value: float) -> str:
    """Return a figure with three significant digits, and commas."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.{digits}f}"


def tables(constants: Constants) -> dict[str, list[Row]]:
    """Return the tables of the page by name: a header and rows."""
    plan = constants["plan"]
    kinds = {"vectors": "exact search over all vectors", "decoder": "depth decoder over the trie"}
    memory: list[Row] = [("structure", "bytes an item", f"GB for {plan['items']:,} items")]
    parts = bytes_per_item(constants, "vectors") | bytes_per_item(constants, "decoder")
    memory += [(name, number(size), number(size * plan["items"] / GB)) for name, size in parts.items()]
    for kind, title in kinds.items():
        total = sum(bytes_per_item(constants, kind).values())
        memory.append((f"**all that {title} needs**", number(total), number(total * plan["items"] / GB)))
    request: list[Row] = [
        ("model", "FLOPs", "bytes read", "core-ms of the model", "requests/s of a core, HTTP included")
    ]
    need: list[Row] = [
        ("model", "cores", "GB of a copy", "copies a machine", "machines", "$ an hour", "$ for 1,000 requests")
    ]
    for kind, title in kinds.items():
        cost, needs = request_cost(constants, kind), fleet(constants, kind)
        figures = (cost["flops"], cost["bytes"], cost["core_ms"], needs["requests_per_second_and_core"])
        request.append((title, *map(number, figures)))
        whole = (number(needs["cores"]), number(needs["copy_gb"]), f"{needs['processes']}", f"{needs['machines']:,}")
        need.append((title, *whole, number(needs["dollars_an_hour"]), number(needs["dollars_per_thousand"])))
    store, work = events(constants), daily_work(constants)
    network = plan["requests_per_second"] * constants["measured"]["bytes"]["request_and_answer"]
    data: list[Row] = [
        ("what", "amount", "$ a month"),
        ("events a second at the peak", number(store["events_per_second"]), "-"),
        ("PostgreSQL namespaces, one writer each", f"{store['writers']:,}", "-"),
        ("events that are kept, GB", number(store["stored_gb"]), number(store["store_dollars_a_month"])),
        ("log of shown lists, GB a day", number(store["shown_gb_a_day"]), number(store["shown_dollars_a_month"])),
        ("requests and answers on the network, GB a second", number(network / GB), "-"),
        ("lists for all users, core-hours a day", number(work["list_core_hours"]), number(30 * work["list_dollars"])),
        ("new events a day", number(work["events_a_day"]), "-"),
        ("training on them, core-hours a day", number(work["train_core_hours"]), number(30 * work["train_dollars"])),
    ]  # fmt: skip
    return {"memory": memory, "request": request, "fleet": need, "data": data}


def markdown(rows: list[Row]) -> str:
    """Return a table of Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def page_with(text: str, constants: Constants) -> str:
    """Return the text of the page with the tables of these constants."""
    present = tables(constants)
    return MARKED.sub(lambda match: f"{match[1]}{markdown(present[match[2]])}{match[3]}", text)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--constants", type=Path, default=CONSTANTS)
    options.add_argument("--check", action="store_true")
    options.add_argument("--print", action="store_true", dest="is_printing")
    arguments = options.parse_args()
    constants, results = tomllib.loads(arguments.constants.read_text(encoding="utf-8")), Results(arguments)
    for kind in ("vectors", "decoder"):
        results.add(kind, {**request_cost(constants, kind), **fleet(constants, kind)})
    results.add("data", {**events(constants), **daily_work(constants)})
    if arguments.is_printing:
        print("\n".join(f"{name}\n{markdown(rows)}" for name, rows in tables(constants).items()))
        return
    text = PAGE.read_text(encoding="utf-8")
    new = page_with(text, constants)
    if arguments.check and new != text:
        sys.exit(f"{PAGE.name} has other tables; run: python benchmarks/scaling_plan.py")
    if new != text:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
