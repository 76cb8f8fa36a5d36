"""A million session events: how long gru4rec's recipe learns from them, and what it finds.

    python benchmarks/million_events.py DATA/tmall-sessions [--copies 3] [--recipe tmall-sessions/gru4rec]
        [--minutes 50] [--threads 2] [--set training.max_epochs=6]

The log is several shops side by side: every copy of the data set's sessions, training and test, has session and item
ids of its own, so nothing is learnt about one from another, and each copy of a test event is as hard as the original
but for the larger catalogue. Training is held to --minutes; what it did not reach is said.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import polars as pl
import torch

import nextitem as ni


def write_copies(source: Path, folder: Path, copies: int) -> None:
    """Writes the log of all copies."""
    events = pl.read_parquet(source / "interactions.parquet")
    spans = {name: int(events[name].max()) + 1 for name in ("session_id", "item_id")}  # type: ignore[arg-type]
    ids = {name: pl.col(name).cast(pl.Int64) for name in spans}
    parts = [
        events.with_columns((ids[name] + copy * span).alias(name) for name, span in spans.items())
        for copy in range(copies)
    ]
    pl.concat(parts).write_parquet(folder / "interactions.parquet")
    (folder / "dataset.toml").write_text((source / "dataset.toml").read_text(encoding="utf-8"), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--recipe", default="tmall-sessions/gru4rec")
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings that differ from the recipe's")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as temporary:
        data, out = Path(temporary) / "data", Path(temporary) / "run"
        data.mkdir()
        write_copies(chosen.folder, data, chosen.copies)
        run = ni.train(
            "gru4rec",
            data,
            out=out,
            recipe=chosen.recipe,
            minutes=chosen.minutes,
            overrides=chosen.overrides,
            progress=False,
        )
    found = run.metrics
    line = {
        "events_learnt_from": len(run.dataset.interactions),
        "items": run.model.num_items,
        "epochs": len(run.history),
        "best_epoch": found["best_epoch"],
        "stopped": found["stopped"],
        "minutes": round(found["train_seconds"] / 60, 1),
        "threads": chosen.threads,
        **{name: round(found["metrics"][name], 4) for name in ("recall@20", "mrr@20")},
    }
    print(json.dumps({**line, "validation": [round(entry["validation"], 4) for entry in run.history]}))


if __name__ == "__main__":
    main()
