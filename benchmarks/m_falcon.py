"""What does it save to read a history once for all candidates, and to keep what was read?

    python benchmarks/m_falcon.py [--items 100000] [--layers 4] [--width 64] [--repeats 5] [--threads 1]
        [--deep-window 256]

A hstu-ranking model with random weights scores the candidates of one user. Prints one JSON line for each number of
events and candidates: candidates per second with the history read once (`shared`), and with the history read anew for
each candidate (`separate`: some candidates, each with a request of its own), their ratio, the ratio of their
floating-point operations, and how far the two ratios are apart. Then one line for each number of events: milliseconds
of a user's first request and of the next one, which continues what the first has read (one new event, 128 candidates).
Times are processor time of the thread.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import polars as pl
import torch
from measure import Results, interleaved, median_ms, median_ratio, parser

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import parse
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.models.rankers.hstu_ranking import HSTURanking, HSTURankingConfig
from nextitem.nn.attention.stu import STULayer
from nextitem.ops.hstu_attention import Layout
from nextitem.pipeline.scaling.flops import hstu_ranking

START, HOUR_MS = 1_700_000_000_000, 3_600_000
LENGTHS, COUNTS = (256, 1024, 4096), (128, 1024, 8192)
NUM_SEPARATE = 8  # candidates of a call that are scored with histories of their own


def make_model(items: int, layers: int, width: int, deep_window: int | None) -> HSTURanking:
    """Return a model with random weights that reads ids and a category of 100 values."""
    rng = np.random.default_rng(0)
    ids = pl.Series("item_id", [f"i{number}" for number in range(1, items + 1)])
    categories = pl.Series("category", [f"c{code}" for code in rng.integers(0, 100, items)])
    catalog = Catalog(IdMap(ids), pl.DataFrame([ids, categories]), features={"category": "categorical"})
    settings = {
        "fields": ["item.id", "item.category"],
        "token_width": width,
        "layers": layers,
        "deep_window": deep_window,
        "head_width": width // 2,
        "max_history_length": max(LENGTHS),
        "window_step": max(LENGTHS) // 2,
    }
    config = parse(HSTURankingConfig, settings, where="benchmark")
    assert isinstance(config, HSTURankingConfig)
    torch.manual_seed(0)
    model = HSTURanking(config, catalog)
    log = Interactions(np.ones(items, np.int32), np.arange(1, items + 1, dtype=np.int32), 1, items)
    model.fields.fit(SequenceBatch(Jagged.from_rows([[1]]), candidates=Jagged.from_rows([[1]])), log)
    return model.eval()


def request(model: HSTURanking, length: int, count: int, *, rows: int = 1) -> SequenceBatch:
    """Return requests with a history of `length` events and `count` candidates each; they share no stream."""
    rng = np.random.default_rng(length)
    items = torch.from_numpy(rng.integers(1, model.num_items + 1, length)).repeat(rows)
    times = (START + HOUR_MS * torch.arange(length)).repeat(rows)
    candidates = torch.from_numpy(rng.integers(1, model.num_items + 1, rows * count))
    offsets = torch.arange(rows + 1)
    return SequenceBatch(
        Jagged(items, offsets * length),
        timestamps=Jagged(times, offsets * length),
        request_times=torch.full((rows,), START + HOUR_MS * length),
        candidates=Jagged(candidates, offsets * count),
    )


def operations(model: HSTURanking, batch: SequenceBatch) -> float:
    """Return the operations of scoring requests, with the pairs of tokens that the attention computes in its blocks.

    They lie between all pairs of a history, which `nextitem scale` counts, and those that a token sees.
    """
    assert batch.candidates is not None
    config, streams = model.config, model.reader.read(batch)
    lengths, owners = streams.items.lengths, streams.streams[batch.candidates.row_ids()]
    tokens, (candidates, _) = Layout(streams.items.offsets), model.candidate_layout(batch, streams)
    later = 0
    for number, layer in enumerate(model.layers, start=1):
        window = cast(STULayer, layer).window
        layouts = [candidates, tokens] if number < config.layers else [candidates]
        visible = lengths if window is None else lengths.clamp(max=window)
        counted = [int(visible[owners].sum()), int((lengths * visible).sum())]
        for layout, num_counted in zip(layouts, counted, strict=False):
            blocks = layout.within(window).blocks
            later += sum(block.queries.numel() * block.keys.shape[1] for block in blocks) - num_counted
    return hstu_ranking(model, batch).forward + 4.0 * later * config.heads * config.head_width


def main() -> None:
    """Measure sharing and continuing."""
    options = parser(__doc__ or "", items=100_000, layers=4, width=64, repeats=5, threads=1)
    options.add_argument("--deep-window", type=int, help="number of last events that all layers but the first read")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = (arguments.items, arguments.layers, arguments.width, arguments.deep_window)
    model, results = make_model(*sizes), Results(arguments)
    for length in LENGTHS:
        separate = request(model, length, 1, rows=NUM_SEPARATE)
        for count in COUNTS:
            shared = request(model, length, count)
            works = {"shared": partial(model.score, shared), "separate": partial(model.score, separate)}
            with torch.inference_mode():
                seconds = interleaved(works, repeats=arguments.repeats, clock=time.thread_time)
            per_second = {
                "shared": count / float(np.median(seconds["shared"])),
                "separate": NUM_SEPARATE / float(np.median(seconds["separate"])),
            }
            ratio = median_ratio(seconds["separate"], seconds["shared"]) * count / NUM_SEPARATE
            expected = count / NUM_SEPARATE * operations(model, separate) / operations(model, shared)
            results.add_printed(
                f"{length} events, {count} candidates",
                {
                    "candidates_per_second": {name: round(value, 1) for name, value in per_second.items()},
                    "ratio": round(ratio, 2),
                    "ratio_of_operations": round(expected, 2),
                    "apart": round(max(ratio / expected, expected / ratio), 3),
                },
            )
    for length in LENGTHS:
        whole = request(model, length, 128)
        before = replace(whole, items=whole.items.drop_last(1), timestamps=whole.timestamps.drop_last(1))  # type: ignore[union-attr]
        with torch.inference_mode():
            state = model.encode_history(before)
            works = {
                "first": partial(model.score, whole),
                "second": partial(model.score, replace(whole, state=state)),
            }
            seconds = interleaved(works, repeats=arguments.repeats, clock=time.thread_time)
        results.add_printed(
            f"{length} events, next request",
            {
                "first_ms": median_ms(seconds["first"]),
                "second_ms": median_ms(seconds["second"]),
                "ratio": median_ratio(seconds["first"], seconds["second"]),
                "state_bytes": state.num_bytes,
            },
        )


if __name__ == "__main__":
    main()
