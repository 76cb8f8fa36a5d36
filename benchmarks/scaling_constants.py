"""How many bytes does an item take in each structure that a server keeps?

    python benchmarks/scaling_constants.py [--items 1000000 10000000] [--width 64]

Builds each structure in a process of its own, adds up the bytes of its tensors, arrays and columns, and measures the
peak memory of the process while it is built. Random vectors, random codes of three levels, ids as text of 13
characters, titles of 42. Prints bytes and peak bytes per item; benchmarks/scaling.toml has the rounded figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from measure import Results, in_own_process, parser
from peers.meter import peak_mb

from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.decoding.trie import PrefixTrie
from nextitem.ops.vector_search import VectorTable


def size_of(structure: Any) -> int:
    """Return the bytes of a tensor, an array or a column, or of all that an object or module contains."""
    if isinstance(structure, torch.Tensor | np.ndarray):
        return int(structure.nbytes)
    if isinstance(structure, pl.Series):
        views = 16 * len(structure) if structure.dtype == pl.String else 0  # which estimated_size leaves out
        return int(structure.estimated_size()) + views
    if isinstance(structure, torch.nn.Module):
        return sum(map(size_of, structure.buffers()))
    if isinstance(structure, tuple):
        return sum(map(size_of, structure))
    return sum(map(size_of, vars(structure).values())) if hasattr(structure, "__dict__") else 0


def vectors(items: int, width: int) -> torch.Tensor:
    return torch.randn(items + 1, width, generator=torch.Generator().manual_seed(0))


def codes(items: int) -> IdentifierTable:
    """Return random codes of three levels, each as large as the cube root of the number of items."""
    size = round(items ** (1 / 3)) + 1
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(0, size, (items + 1, 3), generator=draw, dtype=torch.int32)
    rows[0] = -1
    return IdentifierTable(rows, (size,) * 3, "random")


def text_ids(items: int) -> pl.Series:
    return pl.Series("item_id", np.arange(items)).cast(pl.String).str.zfill(8).str.head(8) + "-item"


def index_of(ids: IdMap) -> tuple[Any, ...]:
    """Return the arrays by which a server looks up ids."""
    ids.lookup([])
    return ids._index or ()


STRUCTURES: dict[str, tuple[Callable[[int, int], Any], Callable[[Any], Any]]] = {
    "vectors": (lambda items, width: (items, width), lambda sizes: vectors(*sizes)),
    "exact search, with the vectors": (vectors, VectorTable),
    "trie of semantic ids": (lambda items, width: codes(items), PrefixTrie.from_table),
    "text ids": (lambda items, width: items, text_ids),
    "index of ids": (lambda items, width: IdMap(text_ids(items)), index_of),
    "titles": (lambda items, width: items, lambda items: text_ids(items) + " a title of twenty-eight char"),
}


def measured(cell: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one structure in this process."""
    torch.set_num_threads(1)
    items, width = cell["items"], cell["width"]
    prepare, build = STRUCTURES[cell["what"]]
    before = peak_mb()
    structure = build(prepare(items, width))
    peak = (peak_mb() - before) * 2**20
    return {"bytes_per_item": round(size_of(structure) / items, 1), "peak_bytes_per_item": round(peak / items)}


def main() -> None:
    options = parser(__doc__, width=64)
    options.add_argument("--items", type=int, nargs="+", default=[1_000_000, 10_000_000])
    options.add_argument("--cell", type=json.loads, help="measure one structure in this process")
    arguments = options.parse_args()
    if arguments.cell:
        print(json.dumps(measured(arguments.cell)))
        return
    results = Results(arguments)
    for items in arguments.items:
        for what in STRUCTURES:
            cell = {"what": what, "items": items, "width": arguments.width}
            results.add_printed(what, {"what": what, "items": items, **in_own_process(sys.argv[0], cell)})


if __name__ == "__main__":
    main()
