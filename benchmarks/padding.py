"""Share of padding among the tokens of training batches, and milliseconds that the loader needs for a batch.

    python benchmarks/padding.py DATASET_FOLDER [--protocol leave-one-out] [--length 50] [--batch-size 128]

Prints one JSON line for each form of examples: a target at every position, and one target a history.
"""

from __future__ import annotations

from pathlib import Path

from measure import Results, Stopwatch, parser

import nextitem as ni
from nextitem.data.examples.next_item import NextItemSequences
from nextitem.data.examples.next_target import NextTargets
from nextitem.data.protocols import make_split


def main() -> None:
    options = parser(__doc__, length=50, batch_size=128)
    options.add_argument("folder", type=Path)
    options.add_argument("--protocol", default="leave-one-out")
    arguments = options.parse_args()
    results = Results(arguments)
    log = make_split(ni.load_dataset(arguments.folder), arguments.protocol).train.interactions
    for kind in (NextItemSequences, NextTargets):
        examples = kind(log, max_length=arguments.length)
        tokens = padded = batches = 0
        with Stopwatch() as watch:
            for batch in examples.batches(arguments.batch_size, epoch=0, seed=0):
                lengths = batch.items.lengths
                tokens += int(lengths.sum())
                padded += len(lengths) * int(lengths.max())
                batches += 1
        row = {"data": arguments.folder.name, "examples": kind.__name__, "batch_size": arguments.batch_size}
        figures = {"tokens": tokens, "padding": round(1 - tokens / padded, 4)}
        loader = {"loader_ms_a_batch": round(watch.milliseconds / batches, 3)}
        results.add_printed(kind.__name__, {**row, **figures, **loader})


if __name__ == "__main__":
    main()
