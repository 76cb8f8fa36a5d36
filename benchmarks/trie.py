"""What the catalogue constraint costs: building the trie, its memory, and its share of a decoding step.

    python benchmarks/trie.py [--items 10000 100000 1000000] [--threads 2] [--repeats 30]

A generator with canned logits costs nothing, so the time of a search is the time of everything but the model. It is
split by wrapping the functions that the search calls: gathering (children and their logits), masking (exclusions,
allow-lists, compiled and applied), selection (top-k and the expansion of leaves), and the rest (log-sum-exp,
bookkeeping, reordering). Requests: free; 50 exclusions each; then also an allow-list of half the catalogue, one
for all requests or one for each (a mask of B x N entries); or, of eight sets that are kept as bits, (one or another)
and a third, put together anew for each request; or a set that leaves one item in ten thousand. Catalogues are uniform
random codes; batch 32, width 20, k 20. Compared with one decoder step of TIGER's published size, the
arithmetic alone. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.jagged import Jagged
from nextitem.core.roles import GeneratorState
from nextitem.decoding import beam_search as search_module
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.constraints import Constraints
from nextitem.decoding.sets_on_demand import FilteredSets, FilterIndex
from nextitem.decoding.trie import PrefixTrie

SIZES = (256, 256, 256, 256)
BATCH, WIDTH, EXCLUDED = 32, 20, 50
KINDS = ("free", "excluded", "+ own filters, bits", "+ narrow ones", "+ one allow-list", "+ own allow-lists")


class Canned:
    """A generator whose logits were drawn beforehand."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.logits = [
            torch.randn((BATCH, 1 if level == 0 else WIDTH, size), generator=draw) * 2
            for level, size in enumerate(SIZES)
        ]

    def start(self, batch: SequenceBatch) -> GeneratorState:
        self.level = 0
        return GeneratorState({}, {})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        logits = self.logits[self.level]
        self.level += 1
        return logits[:, : 1 if codes is None else codes.shape[1]], state


@contextmanager
def stopwatches() -> Iterator[dict[str, float]]:
    """Seconds spent in each part of the search while the context is open."""
    seconds: dict[str, float] = defaultdict(float)
    running: list[str] = []

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if running:  # what a part calls is its own time
                return function(*args, **kwargs)
            start = time.perf_counter()
            running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                running.clear()
                seconds[part] += time.perf_counter() - start

        return wrapper

    parts = [
        (PrefixTrie, "expand", "gathering"),
        (search_module, "children_logits", "gathering"),
        (FilterIndex, "allowed", "masking"),
        (FilteredSets, "stacked", "masking"),
        (Constraints, "__init__", "masking"),
        (Constraints, "mask_excluded", "masking"),
        (Constraints, "allows", "masking"),
        (Constraints, "mask_disallowed", "masking"),
        (search_module, "stable_topk", "selection"),
        (search_module.Search, "complete_items", "selection"),
    ]
    patches = [patch.object(owner, name, timed(getattr(owner, name), part)) for owner, name, part in parts]
    for each in patches:
        each.start()
    try:
        yield seconds
    finally:
        for each in patches:
            each.stop()


def tiger_step_seconds(repeats: int) -> float:
    """One decoder step of TIGER's published size (4 layers, width 128, 6 heads of 64, feed-forward 1024)
    for all beams, second code onward, histories of 20 items of 4 codes."""
    rows, width, heads, inner, memory = BATCH * WIDTH, 128, 6, 64, 80
    draw = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * 0.05

    square, back, up, down = weight(384, width), weight(width, 384), weight(1024, width), weight(width, 1024)
    keys, cache, out = weight(BATCH, heads, memory, inner), weight(rows, heads, 2, inner), weight(256, width)

    def step() -> None:
        hidden = weight_in
        for _ in range(4):
            query, key, value = (F.linear(hidden, square).view(rows, heads, 1, inner) for _ in range(3))
            past_keys, past_values = torch.cat([cache, key], 2), torch.cat([cache, value], 2)
            mixed = F.scaled_dot_product_attention(query, past_keys, past_values)
            hidden = hidden + F.linear(mixed.reshape(rows, 384), back)
            query = F.linear(hidden, square).view(BATCH, WIDTH, heads, inner).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(query, keys, keys)
            hidden = hidden + F.linear(mixed.transpose(1, 2).reshape(rows, 384), back)
            hidden = hidden + F.linear(F.linear(hidden, up).relu(), down)
        F.linear(hidden, out)

    weight_in = weight(rows, width)
    return timed_median(step, repeats)


def timed_median(work: Callable[[], object], repeats: int) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def request_batch(items: int, kind: str) -> SequenceBatch:
    draw = torch.Generator().manual_seed(1)
    excluded = allowed = None
    if kind != "free":
        drawn = torch.randint(1, items + 1, (BATCH * EXCLUDED,), generator=draw)
        excluded = Jagged.from_lengths(drawn, torch.full((BATCH,), EXCLUDED))
    if "allow-list" in kind:
        lists = 1 if "one" in kind else BATCH
        allowed = torch.rand((lists, items + 1), generator=draw) < 0.5
    return SequenceBatch(Jagged.from_rows([[1]] * BATCH), excluded=excluded, allowed=allowed)


def measure(items: int, repeats: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    codes = torch.stack(
        [torch.randint(0, s, (items,), generator=torch.Generator().manual_seed(n)) for n, s in enumerate(SIZES)],
        dim=1,
    )
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=SIZES, catalog_fingerprint="")
    start = time.perf_counter()
    trie = PrefixTrie.from_table(table)
    built = time.perf_counter() - start
    draw = torch.Generator().manual_seed(2)
    halves = {str(name): torch.rand(items + 1, generator=draw) < 0.5 for name in range(8)}
    filters = FilterIndex(trie, halves | {"narrow": torch.rand(items + 1, generator=draw) < 1e-4})
    generator, rows = Canned(0), []
    for kind in kinds:
        batch = request_batch(items, kind)

        def search(batch: SequenceBatch = batch, kind: str = kind) -> object:
            allowed = None
            if "bits" in kind:
                chosen = [(row % 8, (row // 8 + row + 1) % 8, (row + 3) % 8) for row in range(BATCH)]
                allowed = FilteredSets.stacked([filters.allowed([[str(a), str(b)], [str(c)]]) for a, b, c in chosen])
            if "narrow" in kind:
                allowed = FilteredSets.stacked([filters.allowed([["narrow"]])] * BATCH)
            return beam_search(generator, batch, trie, k=WIDTH, beam_width=WIDTH, allowed=allowed)

        total = timed_median(search, repeats)
        with stopwatches() as seconds:
            for _ in range(repeats):
                search()
        steps = len(SIZES)
        parts = {part: value / repeats / steps * 1e3 for part, value in seconds.items()}
        per_step = total / steps * 1e3
        rows.append(
            {
                "items": items,
                "build_s": built,
                "bytes_per_item": trie.num_bytes / items,
                "requests": kind,
                "ms_per_step": per_step,
                **parts,
                "rest": per_step - sum(parts.values()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = tiger_step_seconds(options.repeats) * 1e3
    rows = [row for items in options.items for row in measure(items, options.repeats, options.kinds)]
    names = [
        "items",
        "requests",
        "build_s",
        "bytes_per_item",
        "ms_per_step",
        "gathering",
        "masking",
        "selection",
        "rest",
    ]
    print("  ".join(f"{name:>20}" if name == "requests" else f"{name:>14}" for name in names))
    for row in rows:
        cells = [f"{row[n]:>20}" if n == "requests" else f"{row[n]:>14,.2f}" for n in names]
        print("  ".join(cells))
    print(f"a decoder step of TIGER's size (arithmetic alone): {model:.1f} ms")
    summary = {}
    for kind in options.kinds:
        mine = [row for row in rows if row["requests"] == kind]
        summary[kind] = {
            "largest_over_smallest": mine[-1]["ms_per_step"] / mine[0]["ms_per_step"],
            "masking_share_of_model_step": mine[-1]["masking"] / model,
        }
        print(
            f"{kind}: {mine[-1]['items']:,} items cost {summary[kind]['largest_over_smallest']:.2f} times "
            f"{mine[0]['items']:,}; masking is {summary[kind]['masking_share_of_model_step']:.1%} of the model step"
        )
    print(json.dumps({"model_step_ms": model, "threads": options.threads, "summary": summary, "rows": rows}))


if __name__ == "__main__":
    main()
