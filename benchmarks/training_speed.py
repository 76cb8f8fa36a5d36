"""Training speed of SASRec, HSTU, GRU4Rec and the depth decoder on a CPU, ours and public peers', on equal events.

    python benchmarks/training_speed.py DATASET_FOLDER --python-rectools RECTOOLS/bin/python
        --python-recbole RECBOLE/bin/python --gru4rec-official GRU4REC
        [--what sasrec rectools-sasrec-repaired ...] [--repeats 3] [--max-batches 40] [--threads 2]
        [--recipe sasrec=amazon14-beauty/sasrec depth-decoder=amazon14-beauty/depth-decoder]

Without --what all run; a trainer that cannot run is skipped with its reason. peer_processes.py describes the
environments and names the rival of each peer. An event is a real target that a trainer learns from. Model building,
data preparation and five warm-up batches are outside the clock. Ours is timed over a whole epoch; peers over
--max-batches of it ("extrapolated": true), 0: whole epochs too. All have width 64, one block or layer, one head,
histories of 50, batches of 128, dropout 0.2 and cross-entropy over all items, except that
  RecBole       makes an example of every prefix, so that its 128 examples have 128 targets and ours some 750:
                "same-targets" gives it batches with as many targets as ours; its GRU has 128 hidden units
  gru4rec-authors  one layer of 128 units, 128 lanes, 2,048 sampled items; always timed over a whole epoch
  "repaired"    RecTools with the loss at real targets only, as ours: stock computes logits of padding too
  depth-decoder  no softmax over all items, but one over siblings at each level; it has no peer, and is compared with
                our sasrec
Ours follows the recipe that --recipe names instead of these sizes, without its guide. Runs alternate, --repeats times;
the last line gives medians, and ratios (ours over the peer) of events per second with their range, and of peak memory
(whole process, libraries included).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from measure import Results
from peer_processes import OWN, PEERS, SpeedRuns, command, trainers_parser, write_log

import nextitem as ni
from nextitem.data.protocols import make_split

WHOLE_EPOCH = {*OWN, "gru4rec-authors"}


def ratios(runs: SpeedRuns) -> dict[str, dict[str, object]]:
    """Return ours over each peer whose rival was measured too."""
    table: dict[str, dict[str, object]] = {}
    for name, peer in PEERS.items():
        if runs.has_both(peer.against, name):
            rate, span, memory = runs.ratios(peer.against, name)
            table[name] = {"ours": peer.against, "events_per_second": rate, "range": span, "peak_memory": memory}
    if runs.has_both("depth-decoder", "sasrec"):
        rate, span, memory = runs.ratios("depth-decoder", "sasrec")
        table["sasrec"] = {"ours": "depth-decoder", "events_per_second": rate, "range": span, "peak_memory": memory}
    return table


def main() -> None:
    options = trainers_parser(__doc__, repeats=3, max_batches=40)
    arguments = options.parse_args()
    results = Results(arguments)
    split = make_split(ni.load_dataset(arguments.folder), "leave-one-out")
    runs = SpeedRuns()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        write_log(split, log)
        lines: dict[str, list[str]] = {}
        for name in arguments.what:
            line = command(name, arguments, log=log, split=split)
            if isinstance(line, str):
                results.add_printed(name, {"what": name, "skipped": line})
            else:
                lines[name] = line
        runs.run(
            lines,
            results,
            repeats=arguments.repeats,
            threads=arguments.threads,
            max_batches=arguments.max_batches,
            whole_epoch=WHOLE_EPOCH,
        )
    medians = {name: runs.median(name) for name in runs.rates}
    summary = {"data": arguments.folder.name, "threads": arguments.threads, "events_per_second": medians}
    results.add_printed("medians and ratios", {**summary, "ours_over_peer": ratios(runs)})


if __name__ == "__main__":
    main()
