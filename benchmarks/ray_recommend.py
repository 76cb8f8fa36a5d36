"""How many users a second get their lists by Ray Data, in how much memory, and does a killed command continue?

    python benchmarks/ray_recommend.py [--users 1000000] [--items 50000] [--workers 2] [--model sasrec] [--kill]

Generates a log of users with 4 to 12 events each, trains the model for one epoch on 20,000 of them, and recommends ten
items to each user by `nextitem recommend --users all --engine ray`. With `--kill`, the command is killed by SIGKILL
when a third of the parts are written, and continued with `--resume`. Then checks that no part was written twice, that
there is one list for each user, and that the lists of three parts are those of `run.recommend_many` in this process.
Prints seconds, users a second (loading included) and the peak memory of all processes of the command: the sum of their
proportional shares (PSS), in which shared pages count once.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from measure import Results, Stopwatch, parser

import nextitem as ni
from nextitem.pipeline.recommend_parts import PART_USERS, part_name

SAMPLE_USERS = 20_000
SEED = 0


def write_data(folder: Path, users: int, items: int) -> None:
    """Write a log in order of users: a power law of items, and each next item near the one before."""
    draw = np.random.default_rng(SEED)
    folder.mkdir()
    pl.DataFrame({"item_id": np.arange(items)}).write_parquet(folder / "items.parquet")
    lengths = draw.integers(4, 13, users)
    owners = np.repeat(np.arange(users), lengths)
    steps = draw.integers(0, 20, len(owners))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    steps[starts] = (draw.random(users) ** 3 * items).astype(np.int64)
    total = np.cumsum(steps)
    items_of = (total - np.repeat(total[starts] - steps[starts], lengths)) % items
    place = np.arange(len(owners)) - np.repeat(starts, lengths)
    log = pl.DataFrame(
        {"user_id": owners, "item_id": items_of, "timestamp": 1_700_000_000 + place * 3600 + owners % 3600}
    )
    log.write_parquet(folder / "interactions.parquet")


class Memory:
    """Context manager that samples the memory of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        self.peak_gib, self._pid = 0.0, pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(1.0):
            self.peak_gib = max(self.peak_gib, sum(map(proportional_share, descendants(self._pid))) / 2**30)


def descendants(pid: int) -> list[int]:
    """Return the process and all processes below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    below = [pid]
    for each in below:  # the list grows while it is read
        below.extend(child for child, parent in parents.items() if parent == each)
    return below


def proportional_share(pid: int) -> int:
    """Return the bytes of a process, in which a page that n processes share counts 1/n; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def recommend(arguments: argparse.Namespace, run: Path, data: Path, out: Path, *extra: str) -> tuple[float, float, int]:
    """Run the command, kill it after a third of the parts if asked, and return seconds, peak GiB and exit status."""
    command = [sys.executable, "-m", "nextitem", "recommend", str(run), "--users", "all", "--engine", "ray"]
    command += ["--data", str(data), "--out", str(out), "--workers", str(arguments.workers), *extra]
    num_parts = -(-arguments.users // PART_USERS)
    with Stopwatch() as watch, subprocess.Popen(command) as process, Memory(process.pid) as memory:
        while process.poll() is None:
            time.sleep(0.2)
            if arguments.kill and not extra and len(written(out)) >= num_parts / 3:
                process.send_signal(signal.SIGKILL)
    return watch.seconds, memory.peak_gib, process.returncode


def written(out: Path) -> dict[str, int]:
    """Return the parts in the folder with the times at which they were written."""
    return {file.name: file.stat().st_mtime_ns for file in out.glob("part-*.parquet")}


def main() -> None:
    options = parser(__doc__, users=1_000_000, items=50_000, workers=2)
    options.add_argument("--model", default="sasrec")
    options.add_argument("--kill", action="store_true", help="kill the command once, and continue it")
    options.add_argument("--folder", type=Path, help="where to write everything; default: a temporary folder")
    arguments = options.parse_args()
    results = Results(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        data, sample, run, out = (folder / name for name in ("data", "sample", "run", "lists"))
        write_data(data, arguments.users, arguments.items)
        write_data(sample, SAMPLE_USERS, arguments.items)
        settings = ["training.max_epochs=1"] if arguments.model == "sasrec" else []
        ni.train(arguments.model, sample, out=run, overrides=settings)
        seconds, peak, status = recommend(arguments, run, data, out)
        before = written(out)
        if arguments.kill:
            assert status == -signal.SIGKILL
            results.add_printed("killed", {"seconds": round(seconds, 1), "parts": len(before)})
            more, second_peak, status = recommend(arguments, run, data, out, "--resume")
            seconds, peak = seconds + more, max(peak, second_peak)
        assert status == 0
        after = written(out)
        assert all(after[name] == moment for name, moment in before.items()), "a part was written twice"
        lists = pl.scan_parquet(out / "part-*.parquet")
        distinct = int(lists.select(pl.col("user_id").n_unique()).collect().item())
        assert distinct == arguments.users, f"{distinct} users have lists"
        opened = ni.load_run(run).use_data(data)
        users = opened.dataset.users.ids.external
        num_parts = -(-arguments.users // PART_USERS)
        for part in sorted({0, num_parts // 2, num_parts - 1}):
            expected = opened.recommend_many(users[part * PART_USERS : (part + 1) * PART_USERS].to_list())
            found_part = pl.read_parquet(out / part_name(part))
            assert found_part.equals(expected.select("user_id", "item_id", "rank", "score")), f"part {part} differs"
        results.add_printed(
            "lists",
            {
                "model": arguments.model,
                "users": arguments.users,
                "items": arguments.items,
                "workers": arguments.workers,
                "seconds": round(seconds, 1),
                "users_per_second": round(arguments.users / seconds),
                "peak_gib": round(peak, 2),
                "parts_before_the_kill": len(before),
                "parts": len(after),
                "load": os.getloadavg()[0],
            },
        )


if __name__ == "__main__":
    main()
