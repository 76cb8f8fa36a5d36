"""Time and peak memory of reading and splitting a large generated log.

    python benchmarks/large_log.py [--rows 50000000] [--ids integer|text] [--protocol time]

The log is in order of time (so that events have to be sorted by user), with two actions and a price. Prints a line for
each step: seconds and the peak memory of the whole process, of which Python and its libraries take about 0.4 GiB. It
fails above 8 GiB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from measure import Results, Stopwatch, parser
from peers.meter import peak_mb

from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset

CHUNK = 1_000_000
LIMIT_GIB = 8.0


def main() -> None:
    options = parser(__doc__, rows=50_000_000, users=2_000_000, items=500_000)
    options.add_argument("--ids", choices=["integer", "text"], default="integer")
    options.add_argument("--protocol", default=None, help="default: the data set's default (time)")
    arguments = options.parse_args()
    results = Results(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with Stopwatch() as generating:
            write_log(folder, arguments)
        size = (folder / "interactions.parquet").stat().st_size / 2**20
        print(f"generated {arguments.rows:,} events, {size:,.0f} MiB, {generating.seconds:.1f} s")
        before = peak_gib()
        with Stopwatch() as reading:
            dataset = load_dataset(folder)
        print(f"read and encoded in {reading.seconds:.1f} s, peak {peak_gib():.2f} GiB (before: {before:.2f} GiB)")
        results.add("read", {"seconds": reading.seconds, "peak_gib": peak_gib(), "peak_before_gib": before})
        with Stopwatch() as splitting:
            split = make_split(dataset, arguments.protocol)
        print(f"split by {split.protocol} in {splitting.seconds:.1f} s, peak {peak_gib():.2f} GiB")
        results.add(f"split by {split.protocol}", {"seconds": splitting.seconds, "peak_gib": peak_gib()})
        sizes = {
            "users": len(dataset.users.ids),
            "items": dataset.catalog.num_items,
            "training_events": len(split.train.interactions),
            "validation_requests": split.validation.num_requests,
            "test_requests": split.test.num_requests,
        }
        print(
            f"{sizes['users']:,} users, {sizes['items']:,} items, {sizes['training_events']:,} training events, "
            f"{sizes['validation_requests']:,} validation and {sizes['test_requests']:,} test requests"
        )
        results.add("sizes", sizes)
    if peak_gib() > LIMIT_GIB:
        sys.exit(f"more than {LIMIT_GIB} GiB")


def write_log(folder: Path, arguments: argparse.Namespace) -> None:
    """Write events in order of time over a year, power-law items, uneven users; a chunk at a time."""
    draw = np.random.default_rng(0)
    (folder / "dataset.toml").write_text(
        '[interactions]\npositive_actions = ["purchase"]\ncontext = { price = "numeric" }\n'
    )
    year_ms = 365 * 86_400_000
    writer = None
    for start in range(0, arguments.rows, CHUNK):
        count = min(CHUNK, arguments.rows - start)
        first, last = (end * (year_ms / arguments.rows) for end in (start, start + count))
        frame = pl.DataFrame(
            {
                "user_id": identifiers(draw.random(count) ** 2 * arguments.users, "user", arguments.ids),
                "item_id": identifiers(draw.random(count) ** 3 * arguments.items, "item", arguments.ids),
                "timestamp": 1_700_000_000_000 + np.sort(draw.uniform(first, last, count)).astype(np.int64),
                "action": pl.Series(["view", "purchase"]).gather(draw.integers(0, 2, count)),
                "price": draw.gamma(2.0, 10.0, count).astype(np.float32),
            }
        ).to_arrow()
        writer = writer or pq.ParquetWriter(folder / "interactions.parquet", frame.schema, compression="zstd")
        writer.write_table(frame)
    assert writer is not None
    writer.close()


def identifiers(numbers: np.ndarray, prefix: str, kind: str) -> pl.Series:
    """Return ids of rows as integers, or as text after a prefix."""
    whole = pl.Series(numbers.astype(np.int64) * 7)
    return whole if kind == "integer" else prefix + whole.cast(pl.String).str.zfill(9)


def peak_gib() -> float:
    """Return the highest resident memory of this process so far in GiB."""
    return peak_mb() / 1024


if __name__ == "__main__":
    main()
