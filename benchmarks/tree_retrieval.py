"""Growth of the time of TDM's retrieval with the catalogue: one request at a time, random trees and weights.

    python benchmarks/tree_retrieval.py [--items 10000 100000 1000000 10000000] [--beam 50] [--repeats 30] [--plot FILE]

A binary tree of N leaves is log2 N levels deep, and a search scores at most two children of each beam at each level.
Prints one JSON line for each size (median milliseconds of a request, nodes scored), and then the exponent of time
against log N, fitted over all sizes.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Results, Stopwatch, parser

from nextitem.core.batch import SequenceBatch
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.jagged import Jagged
from nextitem.decoding.beam_search import beam_search
from nextitem.models.tdm.network import TreeConfig, TreeNetwork


def network(items: int, *, width: int) -> TreeNetwork:
    """Return a tree of `items` items with random weights."""
    depth = (items - 1).bit_length()
    numbers = torch.arange(items, dtype=torch.int64)
    codes = torch.stack([numbers >> place & 1 for place in range(depth - 1, -1, -1)], dim=1).int()
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=(2,) * depth, catalog_fingerprint="")
    torch.manual_seed(0)
    result = TreeNetwork(TreeConfig(width=width), table, by_level=False)
    torch.nn.init.normal_(result.items.weight, std=1.0)
    torch.nn.init.normal_(result.inner.weight, std=1.0)
    return result.eval()


def main() -> None:
    options = parser(__doc__, beam=50, width=24, repeats=30, threads=2)
    options.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    options.add_argument("--plot", type=Path)
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for items in arguments.items:
        tree = network(items, width=arguments.width)
        draw = torch.Generator().manual_seed(1)
        times = []
        for turn in range(arguments.repeats + 3):
            history = torch.randint(1, items + 1, (1, 20), generator=draw)
            batch = SequenceBatch(Jagged.from_padded(history, torch.tensor([20])))
            with Stopwatch() as watch:
                beam_search(tree, batch, tree.trie, k=10, beam_width=arguments.beam, accumulate="last")
            if turn >= 3:
                times.append(watch.milliseconds)
        depth = tree.trie.num_levels
        scored = sum(min(2**level, 2 * arguments.beam) for level in range(1, depth + 1))
        rows.append({"items": items, "levels": depth, "nodes_scored": scored, "ms": round(statistics.median(times), 2)})
        results.add_printed(f"{items} items", rows[-1])
        del tree
    logs = np.log2([row["items"] for row in rows])
    exponent = float(np.polyfit(np.log(logs), np.log([row["ms"] for row in rows]), 1)[0])
    about = {"beam": arguments.beam, "width": arguments.width}
    results.add_printed("all sizes", {**about, "exponent_of_log_n": round(exponent, 2), "rows": rows})
    if arguments.plot is not None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 3.6))
        axes.plot(logs, [row["ms"] for row in rows], "o-", color="#2563eb")
        axes.set_xlabel("log2 of the catalogue's size")
        axes.set_ylabel("milliseconds a request")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.set_title(f"TDM retrieval, beam {arguments.beam}")
        figure.tight_layout()
        figure.savefig(arguments.plot, dpi=120)


if __name__ == "__main__":
    main()
