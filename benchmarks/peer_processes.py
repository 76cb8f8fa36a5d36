"""How the benchmarks of training start ours and the peers: each in its own process, on the same events.

A peer lives in an environment of its own, so that its pins never meet ours; the driver of each, under peers/, imports
the peer alone. Environments, with the versions that the figures were taken with:

    python3 -m venv RECTOOLS && RECTOOLS/bin/pip install torch==2.13.0 'numpy==1.26.4' 'setuptools<81'
    RECTOOLS/bin/pip install 'rectools[torch]==0.19.0' torch==2.13.0 'numpy==1.26.4' 'pandas<3'
    python3 -m venv RECBOLE && RECBOLE/bin/pip install torch==2.13.0 'numpy==1.26.4' 'setuptools<81'
    RECBOLE/bin/pip install recbole==1.2.1 torch==2.13.0 'numpy==1.26.4' 'pandas<3' requests
    git clone https://github.com/hidasib/GRU4Rec_PyTorch_Official GRU4REC     (licensed for research only)
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from nextitem.core.dataset import Split
from nextitem.core.registry import MODELS

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """A driver under peers/, the environment that it needs, and which of ours it is compared with."""

    driver: str
    environment: str  # rectools or recbole
    against: str
    what: str | None = None  # the driver's name of it, where it is not ours
    same_targets: bool = False  # its batches count targets: as many as 128 of our sequences hold


PEERS = {
    "rectools-sasrec": Peer("rectools_models.py", "rectools", "sasrec"),
    "rectools-sasrec-repaired": Peer("rectools_models.py", "rectools", "sasrec"),
    "recbole-sasrec": Peer("recbole_models.py", "recbole", "sasrec-pre-norm"),
    "recbole-sasrec-same-targets": Peer(
        "recbole_models.py", "recbole", "sasrec-pre-norm", what="recbole-sasrec", same_targets=True
    ),
    "rectools-hstu": Peer("rectools_models.py", "rectools", "hstu"),
    "rectools-hstu-repaired": Peer("rectools_models.py", "rectools", "hstu"),
    "recbole-gru4rec": Peer("recbole_models.py", "recbole", "gru4rec"),
    "recbole-gru4rec-same-targets": Peer(
        "recbole_models.py", "recbole", "gru4rec", what="recbole-gru4rec", same_targets=True
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
}


def options(description: str) -> argparse.ArgumentParser:
    """What both benchmarks can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", nargs="+", choices=[*OWN, *PEERS], default=[*OWN, *PEERS])
    parser.add_argument("--python-rectools", type=Path, help="interpreter of an environment with rectools")
    parser.add_argument("--python-recbole", type=Path, help="interpreter of an environment with recbole")
    parser.add_argument("--gru4rec-official", type=Path, help="checkout of hidasib/GRU4Rec_PyTorch_Official")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", dest="own", nargs="+", default=[], metavar="WHAT:SETTING", help="such as gru4rec:model.dropout=0.1"
    )
    return parser


def write_log(split: Split, file: Path) -> None:
    """The training events as CSV: our numbers of users and items, position within the user, times where dated."""
    log = split.train.interactions.targets_only()
    columns = {
        "user_id": log.user_ids,
        "item_id": log.item_ids,
        "position": np.arange(len(log)) - log.offsets[log.user_ids - 1],
    }
    if log.timestamps is not None:
        columns["timestamp"] = log.timestamps
    pl.DataFrame(columns).write_csv(file)


def command(
    name: str, chosen: argparse.Namespace, *, log: Path, split: Split, recipe: str | None = None
) -> list[str] | str:
    """The command line of one process without its measurement; a reason in words where it cannot run.

    `recipe` replaces the sizes that all have, for one of ours.
    """
    shared = ["--threads", str(chosen.threads), "--seed", str(chosen.seed)]
    if name in OWN:
        model, overrides = OWN[name]
        if model not in MODELS:
            return f"nextitem has no model {model}"
        overrides = [] if recipe is not None else list(overrides)
        overrides += [part.partition(":")[2] for part in chosen.own if part.partition(":")[0] == name]
        line = [sys.executable, str(HERE / "own_training.py"), "--what", name, "--model", model]
        line += [] if recipe is None else ["--recipe", recipe]
        return [*line, "--folder", str(chosen.folder), *shared, *(["--set", *overrides] if overrides else [])]
    peer = PEERS[name]
    python = getattr(chosen, f"python_{peer.environment}")
    if python is None:
        return f"give --python-{peer.environment}"
    line = [str(python), str(HERE / "peers" / peer.driver), "--what", peer.what or name, "--csv", str(log), *shared]
    if name == "gru4rec-authors":
        if chosen.gru4rec_official is None:
            return "give --gru4rec-official"
        line += ["--checkout", str(chosen.gru4rec_official.resolve())]
    if peer.same_targets:
        lengths = np.diff(split.train.interactions.targets_only().offsets)
        line += ["--batch", str(round(128 * float((lengths[lengths > 1] - 1).mean())))]
    return line


def environment(name: str, threads: int) -> dict[str, str]:
    """Variables of the process: equal threads, no GPU; a peer never sees our sources."""
    changed = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    changed["CUDA_VISIBLE_DEVICES"] = ""
    if name in PEERS:
        changed.pop("PYTHONPATH", None)
    return changed
