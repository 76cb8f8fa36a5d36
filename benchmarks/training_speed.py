"""Training speed of SASRec, HSTU and GRU4Rec on a CPU, ours and public peers', over the same leave-one-out events.

    python benchmarks/training_speed.py DATASET_FOLDER --python-rectools RECTOOLS/bin/python
        --python-recbole RECBOLE/bin/python --gru4rec-official GRU4REC
        [--what sasrec rectools-sasrec-repaired ...] [--repeats 3] [--max-batches 40] [--threads 2]

Without --what all run; what cannot is left out, with its reason. peer_processes.py says how to make the environments
and what is compared with what. An event is a real target that is learnt from; model building and data preparation are
outside the clock, and so are five warm-up batches. Ours is timed over a whole epoch; peers over --max-batches of it
("extrapolated": true), 0: whole epochs too. All have width 64, one block or layer, one head, histories of 50, batches
of 128, dropout 0.2 and cross-entropy over all items, except that
  RecBole       makes an example of every prefix, so that its 128 examples have 128 targets and ours some 750:
                "same-targets" gives it batches with as many targets as ours; its GRU has 128 hidden units
  gru4rec-authors  one layer of 128 units, 128 lanes, 2,048 sampled items; always timed over a whole epoch
  "repaired"    RecTools with the loss at real targets only, as ours: stock computes logits of padding too
Runs alternate, --repeats times; the last line gives medians, and ratios (ours over the peer) of events per second
with their range, and of peak memory (whole process, libraries included).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from peer_processes import OWN, PEERS, command, environment, options, write_log

import nextitem as ni
from nextitem.data.protocols import make_split

WHOLE_EPOCH = {*OWN, "gru4rec-authors"}


def measure(line: list[str], name: str, *, threads: int, max_batches: int) -> dict[str, Any]:
    """The JSON line of one process; where it failed, how."""
    limit = [] if name in WHOLE_EPOCH or not max_batches else ["--max-batches", str(max_batches)]
    done = subprocess.run(line + limit, env=environment(name, threads), capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return {"what": name, "failed": done.stderr.strip()[-500:]}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "what": name}


def ratios(rates: dict[str, list[float]], peaks: dict[str, float]) -> dict[str, Any]:
    """Ours over each peer that was measured beside it."""
    table = {}
    for name, peer in PEERS.items():
        if name in rates and peer.against in rates:
            own, other = rates[peer.against], rates[name]
            table[name] = {
                "ours": peer.against,
                "events_per_second": round(statistics.median(own) / statistics.median(other), 2),
                "range": [round(min(own) / max(other), 2), round(max(own) / min(other), 2)],
                "peak_memory": round(peaks[peer.against] / peaks[name], 2),
            }
    return table


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-batches", type=int, default=40)
    chosen = parser.parse_args()
    split = make_split(ni.load_dataset(chosen.folder), "leave-one-out")
    rates: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        write_log(split, log)
        lines = {name: command(name, chosen, log=log, split=split) for name in chosen.what}
        for name, line in lines.items():
            if isinstance(line, str):
                print(json.dumps({"what": name, "skipped": line}), flush=True)
        for _ in range(chosen.repeats):
            for name, line in lines.items():
                if isinstance(line, str):
                    continue
                row = measure(line, name, threads=chosen.threads, max_batches=chosen.max_batches)
                print(json.dumps(row), flush=True)
                if "failed" not in row:
                    rates.setdefault(name, []).append(row["events_per_second"])
                    peaks[name] = max(row["peak_mb"], peaks.get(name, 0))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    summary = {"data": chosen.folder.name, "threads": chosen.threads, "events_per_second": medians}
    print(json.dumps({**summary, "ours_over_peer": ratios(rates, peaks)}))


if __name__ == "__main__":
    main()
