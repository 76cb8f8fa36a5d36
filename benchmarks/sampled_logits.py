"""Logits of each position's own negatives, forward and backward: gathered in chunks, at once, or picked from all.

    python benchmarks/sampled_logits.py [--positions 1600] [--width 64] [--repeats 3] [--threads 1]

The three ways take turns. One JSON line for each number of items and of negatives: the best of the repeats,
milliseconds.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor

from nextitem.ops.sampled_logits import sampled_logits, sampled_logits_reference


def picked(hidden: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """Scores the whole table."""
    return (hidden @ table.T).gather(1, items)


WAYS = {"chunks": sampled_logits, "at_once": sampled_logits_reference, "picked": picked}


def main() -> None:
    options = argparse.ArgumentParser()
    for name, default in (("positions", 1600), ("width", 64), ("repeats", 3), ("threads", 1)):
        options.add_argument(f"--{name}", type=int, default=default)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    for num_items in (2_000, 12_000, 50_000):
        for negatives in (16, 128):
            hidden = torch.randn(chosen.positions, chosen.width, requires_grad=True)
            table = torch.randn(num_items + 1, chosen.width, requires_grad=True)
            items = torch.randint(1, num_items + 1, (chosen.positions, negatives))
            best = dict.fromkeys(WAYS, float("inf"))
            for _ in range(chosen.repeats):
                for name, way in WAYS.items():
                    hidden.grad = table.grad = None
                    began = time.perf_counter()
                    way(hidden, table, items).logsumexp(1).sum().backward()
                    best[name] = min(best[name], (time.perf_counter() - began) * 1e3)
            figures = {name: round(value, 1) for name, value in best.items()}
            print(json.dumps({"items": num_items, "negatives": negatives, **figures, **vars(chosen)}), flush=True)


if __name__ == "__main__":
    main()
