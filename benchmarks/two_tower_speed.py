"""Training speed of two towers on a CPU, ours and RecTools' DSSM, over the events of the simulated shop.

    python benchmarks/two_tower_speed.py --python-rectools RECTOOLS/bin/python [--repeats 3] [--threads 2]
        [--max-batches 40] [--items 3000] [--users 5000]

peer_processes.py describes the environment of RecTools. An event is an example that a trainer learns from: ours a
target with the history before it, against all targets of the batch; RecTools' a user with all items of the user, one of
these items and one other (an epoch has one for each user). Both have batches of 128, hidden layers and vectors of 128,
and the items' department, category, brand and price band, the users' country; ours has items' ids too, which RecTools
has as features of items under "-ids", and weighs the last 50 events of a history; RecTools has a sum over all of them.
Model building and data preparation are outside the clock, and so are five warm-up batches. Ours is timed over a whole
epoch, the peer over --max-batches of it ("extrapolated": true). Runs alternate; the last lines give medians, and ratios
(ours over the peer) of events a second with their range, and of peak memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import polars as pl
from measure import HERE, Results, parser
from peer_processes import SpeedRuns, write_log

import nextitem as ni
from nextitem.core.dataset import Split
from nextitem.data.protocols import make_split
from nextitem.data.shop.shop import generate_shop

OWN = "two-tower"
PEERS = ("rectools-dssm", "rectools-dssm-ids")
FEATURES = ("department", "category", "brand", "price_band")
FIELDS = json.dumps(["item.id", *(f"item.{name}" for name in FEATURES)])
SETTINGS = [
    *("model.width=128", "model.hidden=[128]", "training.batch_size=128", f"model.item_fields={FIELDS}"),
    *('model.user_fields=["user.country"]', "model.mixed_negatives=128", "model.hard_negatives=0"),
]


def ids(name: str, count: int) -> pl.Series:
    """Return our numbers of items or users: 1 to `count`."""
    return pl.Series(name, range(1, count + 1))


def write_features(split: Split, folder: Path) -> None:
    """Write what RecTools reads of items and users, by our numbers."""
    catalog, users = split.train.catalog, split.train.users
    items, people = catalog.table.select(FEATURES), users.table.select("country")
    items.insert_column(0, ids("item_id", items.height)).write_csv(folder / "items.csv")
    people.insert_column(0, ids("user_id", people.height)).write_csv(folder / "users.csv")


def main() -> None:
    options = parser(__doc__, repeats=3, threads=2, max_batches=40, items=3000, users=5000)
    options.add_argument("--python-rectools", type=Path, required=True)
    arguments = options.parse_args()
    results = Results(arguments)
    runs = SpeedRuns()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        generate_shop(num_items=arguments.items, num_users=arguments.users).write(folder / "shop")
        split = make_split(ni.load_dataset(folder / "shop"), "leave-one-out")
        write_log(split, folder / "log.csv")
        write_features(split, folder)
        shared = ["--threads", str(arguments.threads)]
        own = [sys.executable, str(HERE / "own_training.py"), "--what", OWN, "--model", OWN]
        lines = {OWN: [*own, "--folder", str(folder / "shop"), *shared, "--set", *SETTINGS]}
        for name in PEERS:
            peer = [str(arguments.python_rectools), str(HERE / "peers" / "rectools_dssm.py"), "--what", name]
            lines[name] = [*peer, "--csv", str(folder / "log.csv"), "--features", str(folder), *shared]
        runs.run(
            lines,
            results,
            repeats=arguments.repeats,
            threads=arguments.threads,
            max_batches=arguments.max_batches,
            whole_epoch={OWN},
        )
    for name in PEERS:
        if runs.has_both(OWN, name):
            rate, span, memory = runs.ratios(OWN, name)
            row = {
                "peer": name,
                "events_per_second": [runs.median(OWN), runs.median(name)],
                "ours_over_peer": rate,
                "range": span,
                "peak_memory": memory,
            }
            results.add_printed(f"ours over {name}", {**row, "threads": arguments.threads})


if __name__ == "__main__":
    main()
