"""Cost of the catalogue constraint: building the trie, its memory, and its share of a decoding step.

    python benchmarks/trie.py [--items 10000 100000 1000000] [--threads 2] [--repeats 30]

A generator with canned logits costs nothing, so the time of a search is the time of everything but the model. It is
split by wrapping the functions that the search calls; it is an error if one of them is never called. The parts:
gathering (children and their logits), masking (exclusions, allow-lists, compiled and applied), selection (top-k and the
expansion of leaves), and the rest (log-sum-exp, bookkeeping, reordering).

Requests: free; 50 exclusions each; then also an allow-list of half the catalogue, one for all requests or one for each
(a mask of B x N entries); or, of eight sets that are stored as bits, (one or another) and a third, combined for each
request; or a set of one item in ten thousand. Catalogues are uniform random codes; batch 32, width 20, k 20. Compared
with one decoder step of TIGER's published size, the arithmetic alone. Prints a table, then JSON.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import torch
from measure import Results, Stopwatch, parser, timed_median
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
    """A generator whose logits were sampled beforehand."""

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


class Part(NamedTuple):
    """A function that the search calls, the part of the search that its time belongs to, and who must call it."""

    owner: Any
    function: str
    part: str
    needed_by: str | None = ""  # kinds of requests whose name contains it must call the function; None: no kind must


PARTS = (
    Part(PrefixTrie, "expand", "gathering"),
    Part(search_module, "children_logits", "gathering"),
    Part(FilterIndex, "allowed", "masking", needed_by="+ own filters"),
    Part(FilteredSets, "stacked", "masking", needed_by="+ own filters"),
    Part(Constraints, "__init__", "masking"),
    Part(Constraints, "mask_excluded", "masking"),
    Part(Constraints, "allows", "masking", needed_by="+"),
    Part(Constraints, "mask_disallowed", "masking", needed_by=None),
    Part(search_module, "stable_topk", "selection"),
    Part(search_module.Search, "complete_items", "selection"),
)


class PartTimes:
    """Context manager that measures the seconds spent in each part of the search, by wrapping its functions.

    A function that is renamed or no longer called would count as no time: `check` raises an error for it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._calls: dict[Part, int] = dict.fromkeys(PARTS, 0)
        self._is_inside = False
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        for part in PARTS:  # `patch` raises AttributeError if the function does not exist
            original = getattr(part.owner, part.function)
            self._patches.enter_context(patch.object(part.owner, part.function, self._timed(original, part)))
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()

    def check(self, kind: str) -> None:
        """Raise RuntimeError if a function was never called that this kind of requests needs."""
        idle = [
            part.function
            for part, calls in self._calls.items()
            if part.needed_by is not None and part.needed_by in kind and not calls
        ]
        if idle:
            raise RuntimeError(
                f"requests '{kind}': the search never called {', '.join(idle)}; correct PARTS in trie.py"
            )

    def _timed(self, function: Callable[..., Any], part: Part) -> Callable[..., Any]:
        """Return the function with a clock; what a part calls is its own time."""

        def wrapper(*positional: Any, **keywords: Any) -> Any:
            self._calls[part] += 1
            if self._is_inside:
                return function(*positional, **keywords)
            self._is_inside = True
            try:
                with Stopwatch() as watch:
                    return function(*positional, **keywords)
            finally:
                self._is_inside = False
                self.seconds[part.part] += watch.seconds

        return wrapper


def tiger_step_seconds(repeats: int) -> float:
    """Return the seconds of one decoder step of TIGER's published size for all beams.

    4 layers, width 128, 6 heads of 64, feed-forward 1,024; second code onward, histories of 20 items of 4 codes.
    """
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
    return timed_median(step, repeats=repeats, warmup=3)


def request_batch(items: int, kind: str) -> SequenceBatch:
    """Return requests of that kind."""
    draw = torch.Generator().manual_seed(1)
    excluded = allowed = None
    if kind != "free":
        items_to_exclude = torch.randint(1, items + 1, (BATCH * EXCLUDED,), generator=draw)
        excluded = Jagged.from_lengths(items_to_exclude, torch.full((BATCH,), EXCLUDED))
    if "allow-list" in kind:
        lists = 1 if "one" in kind else BATCH
        allowed = torch.rand((lists, items + 1), generator=draw) < 0.5
    return SequenceBatch(Jagged.from_rows([[1]] * BATCH), excluded=excluded, allowed=allowed)


def measure(items: int, repeats: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row for each kind of requests."""
    codes = torch.stack(
        [torch.randint(0, s, (items,), generator=torch.Generator().manual_seed(n)) for n, s in enumerate(SIZES)],
        dim=1,
    )
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=SIZES, catalog_fingerprint="")
    with Stopwatch() as build:
        trie = PrefixTrie.from_table(table)
    draw = torch.Generator().manual_seed(2)
    halves = {str(name): torch.rand(items + 1, generator=draw) < 0.5 for name in range(8)}
    filters = FilterIndex(trie, halves | {"narrow": torch.rand(items + 1, generator=draw) < 1e-4})
    generator, rows = Canned(0), []
    for kind in kinds:
        batch = request_batch(items, kind)

        def search(batch: SequenceBatch = batch, kind: str = kind) -> object:
            allowed = None
            if "bits" in kind:
                names = [(row % 8, (row // 8 + row + 1) % 8, (row + 3) % 8) for row in range(BATCH)]
                allowed = FilteredSets.stacked([filters.allowed([[str(a), str(b)], [str(c)]]) for a, b, c in names])
            if "narrow" in kind:
                allowed = FilteredSets.stacked([filters.allowed([["narrow"]])] * BATCH)
            return beam_search(generator, batch, trie, k=WIDTH, beam_width=WIDTH, allowed=allowed)

        total = timed_median(search, repeats=repeats, warmup=3)
        with PartTimes() as times:
            for _ in range(repeats):
                search()
        times.check(kind)
        steps = len(SIZES)
        parts = {part: value / repeats / steps * 1e3 for part, value in times.seconds.items()}
        per_step = total / steps * 1e3
        rows.append(
            {
                "items": items,
                "build_s": build.seconds,
                "bytes_per_item": trie.num_bytes / items,
                "requests": kind,
                "ms_per_step": per_step,
                **parts,
                "rest": per_step - sum(parts.values()),
            }
        )
    return rows


def main() -> None:
    options = parser(__doc__, threads=2, repeats=30)
    options.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    model = tiger_step_seconds(arguments.repeats) * 1e3
    rows = [row for items in arguments.items for row in measure(items, arguments.repeats, arguments.kinds)]
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
        results.add(f"{row['items']} items, {row['requests']}", row)
        cells = [f"{row[n]:>20}" if n == "requests" else f"{row[n]:>14,.2f}" for n in names]
        print("  ".join(cells))
    print(f"a decoder step of TIGER's size (arithmetic alone): {model:.1f} ms")
    results.add("model step", {"ms": model})
    summary = {}
    for kind in arguments.kinds:
        mine = [row for row in rows if row["requests"] == kind]
        summary[kind] = {
            "largest_over_smallest": mine[-1]["ms_per_step"] / mine[0]["ms_per_step"],
            "masking_share_of_model_step": mine[-1]["masking"] / model,
        }
        results.add(f"summary, {kind}", summary[kind])
        print(
            f"{kind}: {mine[-1]['items']:,} items cost {summary[kind]['largest_over_smallest']:.2f} times "
            f"{mine[0]['items']:,}; masking is {summary[kind]['masking_share_of_model_step']:.1%} of the model step"
        )
    print(json.dumps({"model_step_ms": model, "threads": arguments.threads, "summary": summary, "rows": rows}))


if __name__ == "__main__":
    main()
