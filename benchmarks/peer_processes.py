"""Start our trainers and those of peers: each in its own process, on the same events.

A peer has an environment of its own, so that the versions it needs do not conflict with ours. The driver of each, under
peers/, imports the peer alone. Environments, with the versions of the figures in docs/results.md:

    python3 -m venv RECTOOLS && RECTOOLS/bin/pip install torch==2.13.0 'numpy==1.26.4' 'setuptools<81'
    RECTOOLS/bin/pip install 'rectools[torch]==0.19.0' torch==2.13.0 'numpy==1.26.4' 'pandas<3'
    python3 -m venv RECBOLE && RECBOLE/bin/pip install torch==2.13.0 'numpy==1.26.4' 'setuptools<81'
    RECBOLE/bin/pip install recbole==1.2.1 torch==2.13.0 'numpy==1.26.4' 'pandas<3' requests
    git clone https://github.com/hidasib/GRU4Rec_PyTorch_Official GRU4REC     (licensed for research only)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measure import HERE, Results, parser

from nextitem.core.dataset import Split
from nextitem.core.registry import MODELS


@dataclass(frozen=True)
class Peer:
    """A driver under peers/, the environment that it needs, and which of ours it is compared with."""

    driver: str
    environment: str  # rectools or recbole
    against: str
    what: str | None = None  # the driver's name of it, if it is not ours
    has_same_targets: bool = False  # a batch has as many targets as 128 of our sequences


PEERS = {
    "rectools-sasrec": Peer("rectools_models.py", "rectools", "sasrec"),
    "rectools-sasrec-repaired": Peer("rectools_models.py", "rectools", "sasrec"),
    "recbole-sasrec": Peer("recbole_models.py", "recbole", "sasrec-pre-norm"),
    "recbole-sasrec-same-targets": Peer(
        "recbole_models.py", "recbole", "sasrec-pre-norm", what="recbole-sasrec", has_same_targets=True
    ),
    "rectools-hstu": Peer("rectools_models.py", "rectools", "hstu"),
    "rectools-hstu-repaired": Peer("rectools_models.py", "rectools", "hstu"),
    "recbole-gru4rec": Peer("recbole_models.py", "recbole", "gru4rec"),
    "recbole-gru4rec-same-targets": Peer(
        "recbole_models.py", "recbole", "gru4rec", what="recbole-gru4rec", has_same_targets=True
    ),
    "gru4rec-authors": Peer("gru4rec_authors.py", "rectools", "gru4rec"),
}

TRANSFORMER = [
    *("model.width=64", "model.layers=1", "model.heads=1", "model.dropout=0.2", "model.max_history_length=50"),
    *("model.objective=full-softmax", "training.batch_size=128", "training.learning_rate=1e-3"),
]
GRU = [
    *("model.layers=[128]", "model.num_negatives=2048", "model.dropout_hidden=0.2", "model.dropout_embedding=0"),
    *("model.objective=cross-entropy", "training.momentum=0"),
    *("training.optimizer=adagrad", "training.batch_size=128", "training.learning_rate=0.05"),
]

# Ours: the model, and the sizes of its peers.
OWN: dict[str, tuple[str, list[str]]] = {
    "sasrec": ("sasrec", [*TRANSFORMER, "model.block=published"]),  # the block that RecTools has
    "sasrec-pre-norm": ("sasrec", [*TRANSFORMER, "model.block=pre-norm"]),  # inner width 4 x width, as RecBole has
    "hstu": ("hstu", [*TRANSFORMER, "model.head_width=64"]),
    "gru4rec": ("gru4rec", GRU),
    "depth-decoder": ("depth-decoder", [part for part in TRANSFORMER if "objective" not in part]),
}


def trainers_parser(doc: str, **numbers: int) -> argparse.ArgumentParser:
    """Return `measure.parser` with the options that name data, trainers, their recipes and their environments."""
    options = parser(doc, threads=2, seed=0, **numbers)
    options.add_argument("folder", type=Path)
    options.add_argument("--what", nargs="+", choices=[*OWN, *PEERS], default=[*OWN, *PEERS])
    options.add_argument("--python-rectools", type=Path, help="interpreter of an environment with rectools")
    options.add_argument("--python-recbole", type=Path, help="interpreter of an environment with recbole")
    options.add_argument("--gru4rec-official", type=Path, help="checkout of hidasib/GRU4Rec_PyTorch_Official")
    options.add_argument(
        "--set", dest="own", nargs="+", default=[], metavar="WHAT:SETTING", help="such as gru4rec:model.dropout=0.1"
    )
    options.add_argument("--recipe", dest="recipes", nargs="+", default=[], metavar="WHAT=RECIPE", help="of ours")
    return options


def write_log(split: Split, file: Path) -> None:
    """Write the training events as CSV: our numbers of users and items, position within the user, times if known."""
    log = split.train.interactions.targets_only()
    columns = {
        "user_id": log.user_ids,
        "item_id": log.item_ids,
        "position": np.arange(len(log)) - log.offsets[log.user_ids - 1],
    }
    if log.timestamps is not None:
        columns["timestamp"] = log.timestamps
    pl.DataFrame(columns).write_csv(file)


def command(name: str, arguments: argparse.Namespace, *, log: Path, split: Split) -> list[str] | str:
    """Return the command line of one process, without the options of its measurement.

    Args:
        name: a key of OWN or PEERS.
        arguments: those of `trainers_parser`; a recipe of ours takes the place of the sizes that all have.
        log: the file of `write_log`.
        split: the events that a trainer learns from.

    Returns:
        The command line; if it cannot run, the reason as a sentence.
    """
    shared = ["--threads", str(arguments.threads), "--seed", str(arguments.seed)]
    if name in OWN:
        model, overrides = OWN[name]
        if model not in MODELS:
            return f"nextitem has no model {model}"
        recipe = dict(part.split("=", 1) for part in arguments.recipes).get(name)
        overrides = [] if recipe is not None else list(overrides)
        overrides += [part.partition(":")[2] for part in arguments.own if part.partition(":")[0] == name]
        line = [sys.executable, str(HERE / "own_training.py"), "--what", name, "--model", model]
        line += [] if recipe is None else ["--recipe", recipe]
        return [*line, "--folder", str(arguments.folder), *shared, *(["--set", *overrides] if overrides else [])]
    peer = PEERS[name]
    python = getattr(arguments, f"python_{peer.environment}")
    if python is None:
        return f"give --python-{peer.environment}"
    line = [str(python), str(HERE / "peers" / peer.driver), "--what", peer.what or name, "--csv", str(log), *shared]
    if name == "gru4rec-authors":
        if arguments.gru4rec_official is None:
            return "give --gru4rec-official"
        line += ["--checkout", str(arguments.gru4rec_official.resolve())]
    if peer.has_same_targets:
        lengths = np.diff(split.train.interactions.targets_only().offsets)
        line += ["--batch", str(round(128 * float((lengths[lengths > 1] - 1).mean())))]
    return line


def environment(name: str, threads: int) -> dict[str, str]:
    """Return the variables of the process: equal threads, no GPU; a peer never sees our sources."""
    changed = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    changed["CUDA_VISIBLE_DEVICES"] = ""
    if name in PEERS:
        changed.pop("PYTHONPATH", None)
    return changed


def run_trainer(line: list[str], name: str, *, threads: int) -> dict[str, Any]:
    """Run one process and return its last JSON line; if it failed, the end of its errors."""
    process = subprocess.run(line, env=environment(name, threads), capture_output=True, text=True, check=False)
    if process.returncode or not process.stdout.strip():
        return {"what": name, "failed": process.stderr.strip()[-500:]}
    return {**json.loads(process.stdout.strip().splitlines()[-1]), "what": name}


class SpeedRuns:
    """Events per second of trainers that run in turns, and their peak memory."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {}
        self.peaks: dict[str, float] = {}

    def run(
        self,
        lines: Mapping[str, list[str]],
        results: Results,
        *,
        repeats: int,
        threads: int,
        max_batches: int,
        whole_epoch: Collection[str],
    ) -> None:
        """Run every trainer `repeats` times; print each run and append it to the results.

        Args:
            lines: the command line of each trainer.
            results: where the rows go.
            repeats: number of runs of each trainer.
            threads: of each process.
            max_batches: number of batches that are timed; 0: a whole epoch.
            whole_epoch: trainers that are always timed over a whole epoch.
        """
        for _ in range(repeats):
            for name, line in lines.items():
                limit = ["--max-batches", str(max_batches)] if max_batches and name not in whole_epoch else []
                row = run_trainer(line + limit, name, threads=threads)
                results.add_printed(name, row)
                if "failed" not in row:
                    self.rates.setdefault(name, []).append(row["events_per_second"])
                    self.peaks[name] = max(row["peak_mb"], self.peaks.get(name, 0))

    def median(self, name: str) -> float:
        """Return the median of a trainer's events per second."""
        return statistics.median(self.rates[name])

    def has_both(self, own: str, peer: str) -> bool:
        """Return whether both trainers finished a run."""
        return own in self.rates and peer in self.rates

    def ratios(self, own: str, peer: str) -> tuple[float, list[float], float]:
        """Return ours over the peer's: events per second, the range over all pairs of runs, peak memory."""
        ours, theirs = self.rates[own], self.rates[peer]
        span = [round(min(ours) / max(theirs), 2), round(max(ours) / min(theirs), 2)]
        return round(self.median(own) / self.median(peer), 2), span, round(self.peaks[own] / self.peaks[peer], 2)
