"""Share of padding among the tokens of training batches, and how long the loader takes to make them.

python benchmarks/padding.py DATASET_FOLDER [--protocol leave-one-out] [--length 50] [--batch-size 128]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import nextitem as ni
from nextitem.data.examples.next_item import NextItemSequences
from nextitem.data.examples.next_target import NextTargets
from nextitem.data.protocols import make_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--protocol", default="leave-one-out")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    log = make_split(ni.load_dataset(arguments.folder), arguments.protocol).train.interactions
    for kind in (NextItemSequences, NextTargets):
        examples = kind(log, max_length=arguments.length)
        tokens = padded = batches = 0
        began = time.perf_counter()
        for batch in examples.batches(arguments.batch_size, epoch=0, seed=0):
            lengths = batch.items.lengths
            tokens += int(lengths.sum())
            padded += len(lengths) * int(lengths.max())
            batches += 1
        seconds = time.perf_counter() - began
        row = {"data": arguments.folder.name, "examples": kind.__name__, "batch_size": arguments.batch_size}
        row |= {"tokens": tokens, "padding": round(1 - tokens / padded, 4)}
        print(json.dumps({**row, "loader_ms_a_batch": round(1000 * seconds / batches, 3)}), flush=True)


if __name__ == "__main__":
    main()
