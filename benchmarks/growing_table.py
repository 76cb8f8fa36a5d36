"""What a growing table costs, and what its bound costs in quality.

    python benchmarks/growing_table.py stream [--ids 10000000] [--rows 1000000] [--width 16] [--batch 16384]
    python benchmarks/growing_table.py quality [--model deepfm] [--customers 5000] [--seeds 1]

`stream` trains a table on ids that come without end: at any time the popularity of ids follows Zipf's law, and the
newest ids are the most popular. It prints the resident memory along the stream, and then how many ids a second are
looked up, admitted and trained, beside torch.nn.Embedding with as many rows. `quality` trains a ranker on the
impressions of the simulated shop with a table for all codes of its fields, with a growing one that may have a row for
each, and with bounds below that. Prints AUC with its 95% interval, and the number of ids with a row.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measure import Results, Stopwatch, interleaved, median_ms, parser
from torch import Tensor, nn

from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import generate_shop
from nextitem.nn.tables.growing import GrowingTable
from nextitem.nn.tables.id_hash import hash_ids
from nextitem.nn.tables.kinds import GrowingRows
from nextitem.pipeline.train import train
from nextitem.training.growing_tables import change_rows
from nextitem.training.row_adam import RowAdam

NEW_IDS = 0.3  # ids that appear with each step, as a share of the batch
WINDOW = 2  # an id can occur as long as fewer newer ones than this multiple of the rows have appeared


def drifting_ids(step: int, *, batch: int, window: int, generator: torch.Generator) -> Tensor:
    """Return the numbers of the ids of one step: rank r behind the newest has the probability 1 / (r ln window)."""
    newest = window + int(step * NEW_IDS * batch)
    ranks = torch.exp(torch.rand(batch, generator=generator, dtype=torch.float64) * math.log(window)).long()
    return newest - ranks


def resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


def train_step(table: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor) -> None:
    """Move the vectors of ids towards targets."""
    optimizer.zero_grad()
    (table(ids) - targets).square().mean().backward()
    optimizer.step()


def stream(arguments: argparse.Namespace, results: Results) -> None:
    """Stream ids through a table, and compare its speed with that of an embedding of the same rows."""
    torch.manual_seed(0)
    rows, batch, width = arguments.rows, arguments.batch, arguments.width
    window, generator = WINDOW * rows, torch.Generator().manual_seed(0)
    table = GrowingTable(GrowingRows(max_rows=rows, block_rows=min(65_536, rows), half_life=200.0), width, std=0.01)
    optimizer = RowAdam([table.weight], lr=1e-3)
    targets = torch.randn(batch, width)
    is_seen = torch.zeros(8 * arguments.ids + window, dtype=torch.bool)
    num_seen = step = 0
    with Stopwatch(time.process_time) as watch:
        while num_seen < arguments.ids:
            numbers = drifting_ids(step, batch=batch, window=window, generator=generator)
            is_seen[numbers] = True
            ids = hash_ids(numbers, 99)
            table.observe(ids)
            train_step(table, optimizer, ids, targets)
            change_rows([table], optimizer)
            if step % 200 == 0:
                num_seen = int(is_seen.sum())
                metrics = {"step": step, "ids_seen": num_seen, "ids_with_rows": table.num_ids}
                results.add_printed("stream", {**metrics, "resident_mib": round(resident_mib())})
            step += 1
    per_second = round(step * batch / watch.seconds)
    results.add_printed("whole stream", {"steps": step, "seconds": round(watch.seconds), "ids_per_second": per_second})

    embedding = nn.Embedding(len(table.weight), width, sparse=True)
    dense = nn.Embedding(len(table.weight), width)
    optimizers = {"sparse": RowAdam([embedding.weight], lr=1e-3), "dense": torch.optim.AdamW(dense.parameters())}
    numbers = drifting_ids(step, batch=batch, window=window, generator=generator)
    ids = hash_ids(numbers, 99)
    row_numbers = table.rows_of(ids)
    newcomers = [hash_ids(torch.arange(batch) + batch * number, 7) for number in range(arguments.repeats + 1)]

    def train_growing() -> None:
        table.observe(ids)
        train_step(table, optimizer, ids, targets)
        change_rows([table], optimizer)

    def admit() -> None:
        table.observe(newcomers.pop())
        change_rows([table], optimizer)

    with torch.no_grad():
        look_ups = interleaved(
            {"growing": lambda: table(ids), "embedding": lambda: embedding(row_numbers)},
            repeats=arguments.repeats,
            clock=time.process_time,
        )
    training = interleaved(
        {
            "growing": train_growing,
            "embedding, sparse": lambda: train_step(embedding, optimizers["sparse"], row_numbers, targets),
            "embedding, dense": lambda: train_step(dense, optimizers["dense"], row_numbers, targets),
        },
        repeats=arguments.repeats,
        clock=time.process_time,
    )
    admissions = interleaved({"growing": admit}, repeats=arguments.repeats, clock=time.process_time)
    for work, seconds in (("look-up", look_ups), ("training", training), ("admission and eviction", admissions)):
        for name, times in seconds.items():
            milliseconds = median_ms(times)
            per_second = round(batch / milliseconds * 1000)
            results.add_printed(work, {"table": name, "milliseconds": milliseconds, "ids_per_second": per_second})


def quality(arguments: argparse.Namespace, results: Results) -> None:
    """Train a ranker with tables of several sizes on the shop."""
    with TemporaryDirectory() as folder:
        generate_shop(0, num_users=arguments.customers).write(Path(folder) / "shop")
        data = load_dataset(Path(folder) / "shop")
        for seed in range(arguments.seeds):
            num_ids = 0
            for share in (None, 1.0, 0.5, 0.25):
                overrides = [f"training.max_epochs={arguments.epochs}"]
                if share is not None:
                    max_rows = 10**7 if share == 1 else max(1, int(share * num_ids))
                    overrides += ["model.table.kind=growing", f"model.table.max_rows={max_rows}"]
                out = Path(folder) / f"{share}-{seed}"
                with Stopwatch() as watch:
                    run = train(
                        arguments.model,
                        data,
                        out=out,
                        protocol="impressions",
                        seed=seed,
                        overrides=overrides,
                        progress=False,
                    )
                tables = [part for part in run.model.modules() if isinstance(part, GrowingTable)]
                num_rows = max((part.num_ids for part in tables), default=0)
                num_ids = num_rows if share == 1 else num_ids
                assert run.evaluation is not None
                metrics: dict[str, object] = {
                    "seed": seed,
                    "share": share,
                    "ids_with_rows": num_rows,
                    "auc": run.evaluation.metrics["auc"],
                }
                metrics["auc_interval"] = run.evaluation.intervals.get("auc")
                name = "dense" if share is None else "growing"
                results.add_printed(name, {**metrics, "seconds": round(watch.seconds)})


def main() -> None:
    options = parser(
        __doc__, ids=10_000_000, rows=1_000_000, width=16, batch=16_384, repeats=15, customers=5000, epochs=6, seeds=1
    )
    options.add_argument("part", choices=["stream", "quality"])
    options.add_argument("--model", default="deepfm")
    arguments = options.parse_args()
    results = Results(arguments)
    (stream if arguments.part == "stream" else quality)(arguments, results)


if __name__ == "__main__":
    main()
