"""Speed of TIGER's decoding against the transformers library: same weights, same process, same answers.

    python benchmarks/decoding.py [--items 12101] [--width 20] [--repeats 9] [--threads 2]

TIGER's published sizes (4 + 4 layers, width 128, 6 heads of 64, feed-forward 1,024), random weights, random unique
identifiers of 4 levels x 256 codes, histories of 20 items. Ours is `recommend` of the model, checks of request and
answer included. The peer is transformers' T5 with `generate`: num_beams, num_return_sequences and a prefix function
over a dict trie, applied by the library's PrefixConstrainedLogitsProcessor (which prefix_allowed_tokens_fn builds),
after a softmax over each level, so that its scores mean the same as ours.
Measurements alternate. Prints medians: requests per second at batch 32, p50 milliseconds at batch 1, their ratios, and
the share of requests whose sets of items are identical; then JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import torch
from measure import Results, Stopwatch, median_ratio, parser

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.models.tiger import Tiger, TigerConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.t5_peer import DictTrie, as_transformers, generate

LEVELS, CODES, HISTORY, BATCH = 4, 256, 20, 32


def random_catalog(items: int, *, seed: int) -> Catalog:
    """Return items with random unique code sequences."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.unique(torch.randint(0, CODES**LEVELS, (2 * items,), generator=draw))
    keys = keys[torch.randperm(len(keys), generator=draw)][:items]
    codes = torch.stack([keys // CODES ** (LEVELS - 1 - level) % CODES for level in range(LEVELS)], dim=1)
    ids = pl.Series("item_id", range(items))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    table = IdentifierTable.from_item_codes(
        codes, codebook_sizes=(CODES,) * LEVELS, catalog_fingerprint=catalog.fingerprint
    )
    return catalog.with_identifiers(table)


def published(catalog: Catalog, *, width: int, seed: int) -> Tiger:
    """Return a model of TIGER's published sizes with random weights."""
    torch.manual_seed(seed)
    config = TigerConfig(
        width=128, heads=6, head_width=64, ff_width=1024, encoder_layers=4, decoder_layers=4, beam_width=width
    )
    return Tiger(config, catalog).eval()


def main() -> None:
    options = parser(__doc__, items=12101, width=20, repeats=9, threads=2, seed=0)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    catalog = random_catalog(arguments.items, seed=arguments.seed)
    model = published(catalog, width=arguments.width, seed=arguments.seed)
    peer, trie = as_transformers(model), DictTrie(model)
    draw = torch.Generator().manual_seed(arguments.seed + 1)
    sizes = {name: getattr(arguments, name) for name in ("items", "width", "repeats", "threads", "seed")}
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), **sizes}
    num_same, num_requests = 0, 0
    for size, repeats in ((BATCH, arguments.repeats), (1, 4 * arguments.repeats)):
        ours, theirs = [], []
        for turn in range(repeats + 2):
            items = torch.randint(1, arguments.items + 1, (size * HISTORY,), generator=draw)
            batch = SequenceBatch(Jagged.from_lengths(items, torch.full((size,), HISTORY)))
            with Stopwatch() as own_watch:
                own = model.recommend(batch, arguments.width)
            with torch.inference_mode(), Stopwatch() as peer_watch:
                codes = generate(peer, model, trie, batch, arguments.width)[0]
            for row, sequences in enumerate(codes.tolist()):
                peer_items = {item for sequence in sequences for item in trie.items[tuple(sequence)]}
                num_same += peer_items == set(own.item_ids[row].tolist())
                num_requests += 1
            if turn >= 2:  # the first turns warm up
                ours.append(own_watch.seconds)
                theirs.append(peer_watch.seconds)
        own_time, peer_time = median(ours), median(theirs)
        ratio = median_ratio(theirs, ours)
        figures[f"batch_{size}"] = {
            "ours_ms": round(1000 * own_time, 2),
            "transformers_ms": round(1000 * peer_time, 2),
            "ours_per_second": round(size / own_time, 1),
            "transformers_per_second": round(size / peer_time, 1),
            "ratio": ratio,
        }
        results.add(f"batch {size}", figures[f"batch_{size}"])
        print(
            f"batch {size:2}: ours {1000 * own_time:7.1f} ms, {size / own_time:6.1f} requests/s; "
            f"transformers {1000 * peer_time:7.1f} ms, {size / peer_time:6.1f} requests/s; ratio {ratio:.1f}"
        )
    figures["identical_sets"] = num_same / num_requests
    results.add("identical sets", {"share": num_same / num_requests, "requests": num_requests})
    print(f"identical sets of {arguments.width}: {num_same} of {num_requests} requests")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
