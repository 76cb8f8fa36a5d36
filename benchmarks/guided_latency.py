"""Time of one request to the depth decoder over large catalogues, with and without a guide.

    python benchmarks/guided_latency.py [--items 10000 1000000 10000000] [--levels 2] [--threads 1] [--requests 200]
        [--history 20] [--entries 2000] [--content 64] [--unseen 0.05] [--processor-time]

Weights and codes are random; trie and tables have their full size, and each request reads other rows of them. A request
is `recommend` from its history to ten items, which excludes the items of the history; no state is kept between
requests. The guide has the scores of --entries random items. Finding them is the work of the guide's model and is not
measured. A share of the items has no training event (--unseen) and is ranked last, or by content: `--content` is the
width of a content vector at every leaf (0: none). The ways take turns. Prints one JSON line for each catalogue: p50 and
p99 in milliseconds, and the median of the ratios guided / unguided.
"""

from __future__ import annotations

import math
import time
from functools import partial

import numpy as np
import polars as pl
import torch
from measure import Clock, Results, Stopwatch, interleaved, median_ms, median_ratio, parser
from torch import nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.sparse_scores import SparseScores
from nextitem.decoding.guide import Guide
from nextitem.models.depth_decoder import DepthDecoder, DepthDecoderConfig
from nextitem.nn.quantisation.cluster_codes import equal_codebook_sizes


class FixedGuidance(nn.Module):
    """Guidance by scores that were sampled beforehand."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.scores: SparseScores | None = None

    def guide(self, batch: SequenceBatch) -> Guide | None:
        """Return the guide of the current request, or None if there are no scores."""
        return None if self.scores is None else Guide(self.scores, self.weight)


def catalog_of(num_items: int, sizes: tuple[int, ...], *, content_width: int = 0) -> Catalog:
    """Return a catalogue whose items have different random codes."""
    draw = np.random.default_rng(0)
    rank = draw.permutation(num_items)
    numbers = rank * (math.prod(sizes) // num_items)  # spread over all codes
    codes = np.stack(np.unravel_index(numbers, sizes), axis=1)
    ids = pl.Series("item_id", np.arange(1, num_items + 1))
    content = torch.randn((num_items + 1, content_width), generator=torch.Generator().manual_seed(0))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}), content=content if content_width else None)
    table = IdentifierTable.from_item_codes(
        torch.from_numpy(codes), codebook_sizes=sizes, tokenizer="random", catalog_fingerprint=catalog.fingerprint
    )
    return Catalog(catalog.ids, catalog.table, content=catalog.content, identifiers=table)


def requests_of(num_items: int, *, count: int, history: int, draw: torch.Generator) -> list[SequenceBatch]:
    """Return requests with random histories, which they exclude."""
    batches = []
    for _ in range(count):
        items = torch.randint(1, num_items + 1, (history,), generator=draw)
        events = Jagged(items, torch.tensor([0, history]))
        batches.append(SequenceBatch(events, excluded=events))
    return batches


def scores_of(num_items: int, entries: int, draw: torch.Generator) -> SparseScores:
    """Return shares of random items, which fall as the rank grows."""
    items = torch.randint(1, num_items + 1, (entries,), generator=draw).unique()
    values = 1 / (1 + torch.randperm(len(items), generator=draw)).float()
    return SparseScores(Jagged(items, torch.tensor([0, len(items)])), values / values.sum(), num_items)


def model_of(catalog: Catalog, *, width: int, unseen: float = 0.0) -> DepthDecoder:
    """Return a model with random weights; a share of the items has no training event."""
    torch.manual_seed(0)
    has_content = catalog.content is not None
    model = DepthDecoder(DepthDecoderConfig(width=width, content_at_leaves=has_content), catalog).eval()
    is_seen = torch.rand(catalog.num_items + 1, generator=torch.Generator().manual_seed(2)) >= unseen
    is_seen[0] = False
    model.set_popularity(is_seen.float())
    return model


def compare(
    model: DepthDecoder, *, requests: int, history: int, entries: int, weight: float, clock: Clock
) -> dict[str, object]:
    """Return p50 and p99 of both ways, and the median of their ratios."""
    draw = torch.Generator().manual_seed(1)
    num_items = model.catalog.num_items
    batches = requests_of(num_items, count=requests + 5, history=history, draw=draw)
    scores = [scores_of(num_items, entries, draw) for _ in batches]
    guidance = FixedGuidance(weight)
    model.guidance = guidance  # type: ignore[assignment]
    places = {"unguided": iter(range(len(batches))), "guided": iter(range(len(batches)))}

    def recommend(name: str) -> None:
        place = next(places[name])
        guidance.scores = scores[place] if name == "guided" else None
        model.recommend(batches[place], 10)

    seconds = interleaved({name: partial(recommend, name) for name in places}, repeats=requests, warmup=5, clock=clock)
    row: dict[str, object] = {}
    for name, times in seconds.items():
        row |= {f"{name}_p50_ms": median_ms(times), f"{name}_p99_ms": round(1000 * float(np.quantile(times, 0.99)), 2)}
    return {**row, "ratio": median_ratio(seconds["guided"], seconds["unguided"])}


def main() -> None:
    options = parser(__doc__, threads=1, requests=200, history=20, entries=2000, width=64, content=0)
    options.add_argument("--items", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    options.add_argument("--levels", type=int, help="number of codes of an item; default: as the tokenizer of clusters")
    options.add_argument("--unseen", type=float, default=0.05, help="share of items without a training event")
    options.add_argument("--processor-time", action="store_true", help="of the thread, for a machine that is shared")
    options.add_argument("--weight", type=float, default=0.9, help="weight of the guide")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    for num_items in arguments.items:
        sizes = equal_codebook_sizes(num_items)
        if arguments.levels is not None:
            sizes = (math.ceil(round(num_items ** (1 / arguments.levels), 6)),) * arguments.levels
        with Stopwatch() as watch:
            model = model_of(
                catalog_of(num_items, sizes, content_width=arguments.content),
                width=arguments.width,
                unseen=arguments.unseen,
            )
        row = compare(
            model,
            requests=arguments.requests,
            history=arguments.history,
            entries=arguments.entries,
            weight=arguments.weight,
            clock=time.thread_time if arguments.processor_time else time.perf_counter,
        )
        about = {"items": num_items, "trie": "x".join(map(str, sizes)), "content": arguments.content}
        results.add_printed(f"{num_items} items", {**about, **row, "build_seconds": round(watch.seconds, 1)})
        del model


if __name__ == "__main__":
    main()
