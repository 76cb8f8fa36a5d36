"""Minutes that gru4rec's recipe trains on a million session events, and its recall and MRR after them.

    python benchmarks/million_events.py DATA/tmall-sessions [--copies 3] [--recipe tmall-sessions/gru4rec]
        [--minutes 50] [--threads 2] [--set training.max_epochs=6]

The log is several shops side by side: every copy of the data set's sessions, training and test, has session and item
ids of its own, so the copies share no items. Each copy of a test event is as hard as the original, but for the larger
catalogue. Training stops after --minutes. Prints one JSON line, with the validation figure of each epoch and the reason
of the end.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
import torch
from measure import Results, parser

import nextitem as ni
from nextitem.data.protocols import make_split


def write_copies(source: Path, folder: Path, copies: int) -> None:
    """Write the log of all copies."""
    events = pl.read_parquet(source / "interactions.parquet")
    spans = {name: int(events[name].to_numpy().max()) + 1 for name in ("session_id", "item_id")}
    ids = {name: pl.col(name).cast(pl.Int64) for name in spans}
    parts = [
        events.with_columns((ids[name] + copy * span).alias(name) for name, span in spans.items())
        for copy in range(copies)
    ]
    pl.concat(parts).write_parquet(folder / "interactions.parquet")
    (folder / "dataset.toml").write_text((source / "dataset.toml").read_text(encoding="utf-8"), encoding="utf-8")


def main() -> None:
    options = parser(__doc__, copies=3, threads=2)
    options.add_argument("folder", type=Path)
    options.add_argument("--recipe", default="tmall-sessions/gru4rec")
    options.add_argument("--minutes", type=float, default=50.0)
    options.add_argument(
        "--set", dest="overrides", nargs="+", default=[], help="settings that differ from the recipe's"
    )
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        data, out = Path(temporary) / "data", Path(temporary) / "run"
        data.mkdir()
        write_copies(arguments.folder, data, arguments.copies)
        run = ni.train(
            "gru4rec",
            data,
            out=out,
            recipe=arguments.recipe,
            minutes=arguments.minutes,
            overrides=arguments.overrides,
            progress=False,
        )
    metrics = run.metrics
    protocol, seed = run.recipe.data.protocol, run.recipe.seed
    train_data = make_split(run.dataset, protocol, seed=seed).train
    line = {
        "events_learnt_from": len(train_data.interactions),
        "items": run.model.num_items,
        "epochs": len(run.epoch_log),
        "best_epoch": metrics["best_epoch"],
        "stopped": metrics["stopped"],
        "minutes": round(metrics["train_seconds"] / 60, 1),
        "threads": arguments.threads,
        **{name: round(metrics["metrics"][name], 4) for name in ("recall@20", "mrr@20")},
    }
    validation = [round(entry["validation"], 4) for entry in run.epoch_log]
    results.add_printed(f"{arguments.copies} copies", {**line, "validation": validation})


if __name__ == "__main__":
    main()
