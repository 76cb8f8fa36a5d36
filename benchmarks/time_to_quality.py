"""Seconds of training until a validation NDCG@10 is reached, ours and public peers', on the same requests.

    python benchmarks/time_to_quality.py DATASET_FOLDER --what sasrec rectools-sasrec-repaired recbole-sasrec
        --python-rectools RECTOOLS/bin/python --python-recbole RECBOLE/bin/python
        [--minutes 15] [--reach 0.044] [--recipe sasrec=amazon14-beauty/sasrec] [--dropout 0.5] [--threads 2]

Each trains with its own loop, one after another. After every epoch, and every minute of training within one, it stops
its clock and writes vectors of users and items (ours: its lists) for the validation requests of leave-one-out. This
process makes the lists, without seen items, and computes NDCG@10 for all by the same code. Model building, data
preparation and the examinations are outside the clock. Ours follows a recipe if --recipe names one (all its epochs),
else the sizes of training_speed.py, which the peers have; --dropout and --learning-rate are the peers'. Prints a line
for each examination, and in the end the curves [seconds, NDCG@10] with the time at which each reached --reach (null:
not within --minutes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Results
from peer_processes import PEERS, command, environment, trainers_parser, write_log

import nextitem as ni
from nextitem.core.batch import SequenceBatch
from nextitem.core.top_items import top_items
from nextitem.data.protocols import make_split
from nextitem.evaluation.metrics import accuracy


def judge(file: Path, requests: SequenceBatch, *, num_items: int) -> float:
    """Return NDCG@10 of the answers in the file; a user that the trainer does not know has an empty list."""
    assert requests.targets is not None
    assert requests.user_ids is not None
    with np.load(file) as answers:
        if "lists" in answers:
            lists = torch.from_numpy(answers["lists"])
        else:
            lists = lists_from_vectors({name: torch.from_numpy(answers[name]) for name in answers}, requests, num_items)
    return float(accuracy.ndcg(lists, requests.targets, 10).nanmean())


def lists_from_vectors(answers: dict[str, torch.Tensor], requests: SequenceBatch, num_items: int) -> torch.Tensor:
    """Return the ten legal items with the largest inner products, [B, 10]; items without a vector are never listed."""
    assert requests.user_ids is not None
    row_of = torch.full((int(max(answers["users"].max(), requests.user_ids.max())) + 1,), -1)
    row_of[answers["users"]] = torch.arange(len(answers["users"]))
    rows = row_of[requests.user_ids]
    parts = []
    for start in range(0, requests.num_requests, 512):
        span = torch.arange(start, min(start + 512, requests.num_requests))
        scores = torch.full((len(span), num_items + 1), -torch.inf)
        has_vector = rows[span] >= 0
        vectors = answers["user_vectors"][rows[span].clamp(min=0)]
        scores[:, answers["items"]] = vectors @ answers["item_vectors"].T
        lists = top_items(scores, requests.select(span), 10).item_ids
        parts.append(lists * has_vector[:, None])
    return torch.cat(parts)


def examine(
    line: list[str], name: str, *, requests: SequenceBatch, answers: Path, num_items: int, threads: int
) -> dict[str, Any]:
    """Run one trainer and judge it at each examination; return its curve and its last JSON line."""
    curve: list[tuple[float, float]] = []
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            line,
            env=environment(name, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            bufsize=1,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for text in process.stdout:
            event = json.loads(text)
            if "epoch" not in event:
                last = event
                continue
            value = judge(answers, requests, num_items=num_items)
            curve.append((event["seconds"], round(value, 5)))
            print(json.dumps({"what": name, **event, "ndcg@10": round(value, 5)}), flush=True)
            process.stdin.write(f"{value}\n")
            process.stdin.flush()
        if process.wait():
            errors.seek(0)
            last = {"failed": errors.read().strip()[-500:]}
    return {**last, "what": name, "curve": curve}


def measurement(name: str, arguments: argparse.Namespace, answers: Path) -> list[str]:
    """Return the measurement's part of a command line."""
    line = ["--minutes", str(arguments.minutes), "--every", str(arguments.every), "--answers", str(answers)]
    for option in ("dropout", "learning_rate"):
        if name in PEERS and getattr(arguments, option) is not None:
            line += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    return line


def main() -> None:
    options = trainers_parser(__doc__)
    options.add_argument("--minutes", type=float, default=15.0)
    options.add_argument("--every", type=float, default=60.0, help="seconds of training between two examinations")
    options.add_argument("--reach", type=float, default=0.044)
    options.add_argument("--dropout", type=float)
    options.add_argument("--learning-rate", type=float)
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    dataset = ni.load_dataset(arguments.folder)
    split = make_split(dataset, "leave-one-out")
    assert split.validation.user_ids is not None
    numbers = torch.from_numpy(dataset.users.numbers_of(split.validation.user_ids.numpy()))  # as the log names users
    requests = replace(split.validation, user_ids=numbers)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        log, answers = Path(folder) / "log.csv", Path(folder) / "answers.npz"
        write_log(split, log)
        for name in arguments.what:
            line = command(name, arguments, log=log, split=split)
            if isinstance(line, str):
                results.add_printed(name, {"what": name, "skipped": line})
                continue
            row = examine(
                line + measurement(name, arguments, answers),
                name,
                requests=requests,
                answers=answers,
                num_items=dataset.catalog.num_items,
                threads=arguments.threads,
            )
            row["reached"] = next((seconds for seconds, value in row["curve"] if value >= arguments.reach), None)
            row["best"] = max((value for _, value in row["curve"]), default=None)
            rows[name] = row
            results.add(name, row)
    summary = {"data": arguments.folder.name, "reach": arguments.reach, "threads": arguments.threads}
    print(json.dumps({**summary, "rows": rows}))


if __name__ == "__main__":
    main()
