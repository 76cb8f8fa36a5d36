"""Time and peak memory of reading and splitting a large generated log.

    python benchmarks/large_log.py                      50 million events with integer ids
    python benchmarks/large_log.py --ids text           the same with text ids
    python benchmarks/large_log.py --protocol leave-one-out

The log is in order of time (so that events have to be sorted by user), with two actions and a price. Peak
memory is that of the whole process, of which Python and its libraries take about 0.4 GiB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset

CHUNK = 1_000_000
LIMIT_GIB = 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--ids", choices=["integer", "text"], default="integer")
    parser.add_argument("--protocol", default=None, help="default: the data set's default (time)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        began = time.perf_counter()
        write_log(folder, options)
        size = (folder / "interactions.parquet").stat().st_size / 2**20
        print(f"generated {options.rows:,} events, {size:,.0f} MiB, {time.perf_counter() - began:.1f} s")
        before = peak_gib()
        began = time.perf_counter()
        dataset = load_dataset(folder)
        read = time.perf_counter() - began
        print(f"read and encoded in {read:.1f} s, peak {peak_gib():.2f} GiB (before: {before:.2f} GiB)")
        began = time.perf_counter()
        split = make_split(dataset, options.protocol)
        print(f"split by {split.protocol} in {time.perf_counter() - began:.1f} s, peak {peak_gib():.2f} GiB")
        print(
            f"{len(dataset.users.ids):,} users, {dataset.catalog.num_items:,} items, "
            f"{len(split.train.interactions):,} training events, "
            f"{split.validation.num_requests:,} validation and {split.test.num_requests:,} test requests"
        )
    if peak_gib() > LIMIT_GIB:
        sys.exit(f"more than {LIMIT_GIB} GiB")


def write_log(folder: Path, options: argparse.Namespace) -> None:
    """Events in order of time over a year, power-law items, uneven users; written a chunk at a time."""
    draw = np.random.default_rng(0)
    (folder / "dataset.toml").write_text(
        '[interactions]\npositive_actions = ["purchase"]\ncontext = { price = "numeric" }\n'
    )
    year_ms = 365 * 86_400_000
    writer = None
    for start in range(0, options.rows, CHUNK):
        count = min(CHUNK, options.rows - start)
        window = np.array([start, start + count]) * (year_ms / options.rows)
        frame = pl.DataFrame(
            {
                "user_id": identifiers(draw.random(count) ** 2 * options.users, "user", options.ids),
                "item_id": identifiers(draw.random(count) ** 3 * options.items, "item", options.ids),
                "timestamp": 1_700_000_000_000 + np.sort(draw.uniform(*window, count)).astype(np.int64),
                "action": pl.Series(["view", "purchase"]).gather(draw.integers(0, 2, count)),
                "price": draw.gamma(2.0, 10.0, count).astype(np.float32),
            }
        ).to_arrow()
        writer = writer or pq.ParquetWriter(folder / "interactions.parquet", frame.schema, compression="zstd")
        writer.write_table(frame)
    assert writer is not None
    writer.close()


def identifiers(numbers: np.ndarray, prefix: str, kind: str) -> pl.Series:
    whole = pl.Series(numbers.astype(np.int64) * 7)
    return whole if kind == "integer" else prefix + whole.cast(pl.String).str.zfill(9)


def peak_gib() -> float:
    """Highest resident memory of this process so far; the unit of ru_maxrss differs by system."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    main()
