"""TIGER's decoding against the transformers library: same weights, same process, same answers.

    python benchmarks/decoding.py [--items 12101] [--width 20] [--repeats 9] [--threads 2]

TIGER's published sizes (4 + 4 layers, width 128, 6 heads of 64, feed-forward 1,024), random weights, random unique
identifiers of 4 levels x 256 codes, histories of 20 items. Ours is the model's own `recommend`, request and answer
checks included. The peer is transformers' T5 with `generate`: num_beams, num_return_sequences and a prefix function
over a dict trie, applied by the library's PrefixConstrainedLogitsProcessor (what prefix_allowed_tokens_fn makes),
after a level softmax that makes its scores mean what ours mean. Measurements
alternate, medians count. Prints requests per second at batch 32, p50 milliseconds at batch 1, their ratios, and
the share of requests whose sets of items are identical; then JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import torch

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
    """Items with random unique code sequences."""
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
    """TIGER's published sizes with random weights."""
    torch.manual_seed(seed)
    config = TigerConfig(
        width=128, heads=6, head_width=64, ff_width=1024, encoder_layers=4, decoder_layers=4, beam_width=width
    )
    return Tiger(config, catalog).eval()


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def main() -> None:
    options = argparse.ArgumentParser()
    for name, default in (("items", 12101), ("width", 20), ("repeats", 9), ("threads", 2), ("seed", 0)):
        options.add_argument(f"--{name}", type=int, default=default)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    model = published(random_catalog(chosen.items, seed=chosen.seed), width=chosen.width, seed=chosen.seed)
    peer, trie = as_transformers(model), DictTrie(model)
    draw = torch.Generator().manual_seed(chosen.seed + 1)
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), **vars(chosen)}
    same, asked = 0, 0
    for size, repeats in ((BATCH, chosen.repeats), (1, 4 * chosen.repeats)):
        ours, theirs = [], []
        for turn in range(repeats + 2):
            items = torch.randint(1, chosen.items + 1, (size * HISTORY,), generator=draw)
            batch = SequenceBatch(Jagged.from_lengths(items, torch.full((size,), HISTORY)))
            own_seconds, own = timed(lambda batch=batch: model.recommend(batch, chosen.width))  # type: ignore[misc]
            with torch.inference_mode():
                peer_seconds, found = timed(lambda batch=batch: generate(peer, model, trie, batch, chosen.width))  # type: ignore[misc]
            for row, sequences in enumerate(found[0].tolist()):
                named = {item for sequence in sequences for item in trie.items[tuple(sequence)]}
                same += named == set(own.item_ids[row].tolist())
                asked += 1
            if turn >= 2:  # the first turns warm up
                ours.append(own_seconds)
                theirs.append(peer_seconds)
        own_time, peer_time = median(ours), median(theirs)
        ratio = median(b / a for a, b in zip(ours, theirs, strict=True))
        figures[f"batch_{size}"] = {
            "ours_ms": round(1000 * own_time, 2),
            "transformers_ms": round(1000 * peer_time, 2),
            "ours_per_second": round(size / own_time, 1),
            "transformers_per_second": round(size / peer_time, 1),
            "ratio": round(ratio, 2),
        }
        print(
            f"batch {size:2}: ours {1000 * own_time:7.1f} ms, {size / own_time:6.1f} requests/s; "
            f"transformers {1000 * peer_time:7.1f} ms, {size / peer_time:6.1f} requests/s; ratio {ratio:.1f}"
        )
    figures["identical_sets"] = same / asked
    print(f"identical sets of {chosen.width}: {same} of {asked} requests")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
