"""Write the tables of docs/results/ and docs/lab_notes.md from docs/results/results.jsonl.

    python docs/results/tables.py                 write every table that has changed
    python docs/results/tables.py --check         exit with 1, and name the page, if a table is stale
    python docs/results/tables.py --find TEXT     print id, command and figures of the rows whose id or label has TEXT

A page asks for a table by `<!-- table: TOPIC/GROUP -->` and `<!-- end -->`; the text between the two is replaced. The
rows are those with this topic and group, in the order of the file. `summary/DATA` has the rows of that data set that
are marked `"summary": true`, the best recall first. Below a table follow the commands that measured it, and the notes
of its rows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
DATA = FOLDER / "results.jsonl"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.S)

REPORTED = re.compile(r" ?The commit was not recorded; the figure was first reported in (\w+)\.")

Row = dict[str, Any]

ACCURACY = {"recall@10": "*recall@10", "NDCG@10": "*ndcg@10"}
OUTSIDE = {"paper": "paper:recall@10|ndcg@10", "best public re-run": "public:recall@10|ndcg@10", "verdict": "verdict"}
SUMMARY = {"model": "label", **ACCURACY, **OUTSIDE, "details": "details"}
CHANNELS = {
    "channel": "label",
    "recall@10": "*recall@10",
    "@50": "*recall@50",
    "@200": "*recall@200",
    "p50, ms": "p50_ms",
}
BY_BEAM = {f"beam {width}": f"beam {width} recall@10" for width in (10, 16, 20, 30, 50, 100)}
PEERS = {
    "ours / peer": "label",
    "ours, events per second": "events_per_second",
    "peer": "peer_events_per_second",
    "ratio": "ratio",
    "goal": "target:ratio",
    "verdict": "verdict",
}
GUIDED = {
    "model": "label",
    **ACCURACY,
    "recall@10, generalization": "generalization recall@10",
    "spread of the seeds": "recall@10 spread|ndcg@10 spread",
    "guided less this, NDCG@10 (95%)": "gain",
    "goal": "target:recall@10|ndcg@10",
}
IDENTIFIERS = {
    "identifiers": "label",
    "NDCG@10": "*validation ndcg@10",
    "recall@10": "*validation recall@10",
    "recall@10, generalization": "generalization recall@10",
    "difference in NDCG@10 (95%)": "gain",
}
MASKING = {
    "filters of a request": "label",
    "search step over that at 10^4 items": "step over that at 10^4",
    "masking, % of the decoder step": "masking_percent",
    "goals": "target:step over that at 10^4|masking_percent",
}
RANKERS = {
    "ranker": "label",
    "AUC (95% interval)": "auc",
    "GAUC": "gauc",
    "log-loss": "log_loss",
    "calibration error": "calibration_error",
}
RERANKED = {
    "candidates, re-ranker": "label",
    "NDCG@10": "ndcg@10",
    "NDCG@10, change in %": "ndcg@10 change percent",
    "diversity@10": "diversity@10",
    "diversity@10, change in %": "diversity@10 change percent",
}
WHOLE = {
    "model": "label",
    "recall@10 (95% interval)": "*recall@10",
    "NDCG@10 (95% interval)": "*ndcg@10",
    "training, seconds": "training_seconds",
}
STAGES = {
    "stage": "label",
    "items left": "items",
    "targets among them": "targets among them",
    "kept of what came in, %": "kept_percent",
    "NDCG@10": "ndcg@10",
}
TOWERS = {
    "model": "label",
    "recall@10": "recall@10",
    "recall@200": "recall@200",
    "cold items, recall@10": "cold recall@10",
    "training, seconds": "training_seconds",
}
CODES = {
    "items that share codes, %": "items_sharing_codes_percent",
    "neighbours with the same first code, %": "neighbours_same_first_code_percent",
    "stability": "stability",
}
TREES = {"tree": "label", "recall@10": "*recall@10", "recall@20": "*recall@20", "NDCG@10": "*ndcg@10"}
VALIDATED = {"variant": "label", "validation NDCG@10": "*validation ndcg@10", **ACCURACY}
GENERATORS = {
    "change": "label",
    "data": "data",
    "NDCG@10": "*validation ndcg@10",
    "recall@10": "*validation recall@10",
    "generalization, NDCG@10 / recall@10": "generalization ndcg@10|generalization recall@10",
    "weight of the graph": "weight of the graph",
    "mixture, NDCG@10 / recall@10": "mixture ndcg@10|mixture recall@10",
}
EPOCHS = {f"epoch {number}": f"validation ndcg@10, epoch {number}" for number in (1, 2)}
LEVELS = "right after the true codes", "right after its own codes", "true codes among 20 beams"
SURVIVAL = tuple(f"true codes among {width} beams" for width in (10, 20, 50, 100))

# Each table, and its columns: header, and what a cell shows. A cell is a field of the row ("label"), metrics
# ("recall@10", several joined by "|"; the best of a column in bold after "*"), "seeds:METRIC" (one figure a seed),
# or figures from elsewhere ("paper:", "public:", "target:").
TABLES: dict[str, dict[str, str]] = {
    "summary/amazon14-beauty": SUMMARY,
    "summary/amazon14-sports": SUMMARY,
    "summary/tmall-sessions": {
        "model": "label",
        "recall@20": "*recall@20",
        "MRR@20": "*mrr@20",
        "paper": "paper:recall@20|mrr@20",
        "best public re-run": "public:recall@20|mrr@20",
        "verdict": "verdict",
        "details": "details",
    },
    "summary/online-retail": SUMMARY,
    "summary/simulated-shop": SUMMARY,
    "sequence_models/amazon": {
        "model": "label",
        "data": "data",
        "recall@10": "recall@10",
        "NDCG@10": "ndcg@10",
        "spread of the seeds": "recall@10 spread|ndcg@10 spread",
        **OUTSIDE,
        "seconds of training": "training_seconds",
    },
    "sequence_models/validation": {"model": "label", "validation NDCG@10": "*validation ndcg@10"},
    "sequence_models/sessions": {
        "model": "label",
        "recall@20": "*recall@20",
        "MRR@20": "*mrr@20",
        "paper": "paper:recall@20|mrr@20",
        "goal": "target:recall@20|mrr@20",
        "verdict": "verdict",
        "minutes of training": "training_minutes",
    },
    "sequence_models/popularity": {
        "targets": "label",
        "sasrec, recall@10": "sasrec recall@10",
        "hstu, recall@10": "hstu recall@10",
    },
    "semantic_ids/planted": {
        "tokenizer": "label",
        "recall@10, mean": "*recall@10",
        "by seed": "seeds:recall@10",
        **CODES,
    },
    "semantic_ids/beauty": {
        "tokenizer": "label",
        **ACCURACY,
        "paper, recall@10": "paper:recall@10",
        **CODES,
        "seconds, test included": "seconds",
    },
    "semantic_ids/beauty_18": {"tokenizer": "label", **ACCURACY},
    "semantic_ids/cost": {
        "tokenizer": "label",
        "seconds": "seconds",
        "items that share codes, %": "items_sharing_codes_percent",
        "error": "error",
    },
    "generation/beauty": {
        "model": "label",
        **ACCURACY,
        **OUTSIDE,
        "weights": "weights",
        "minutes": "training_minutes",
    },
    "guided/beauty": GUIDED,
    "guided/sports": GUIDED,
    "guided/shop": GUIDED,
    "guided/identifiers": IDENTIFIERS,
    "guided/clusters": {
        "clusters and items": "label",
        "NDCG@10": "*validation ndcg@10",
        "recall@10": "*validation recall@10",
        "recall@10, generalization": "generalization recall@10",
        "seconds of training": "train_seconds",
    },
    "generation/leaving": {
        "training": "label",
        **{name: "|".join(f"{name}, level {level}" for level in range(1, 5)) for name in LEVELS},
        "recall@10 / NDCG@10": "recall@10|ndcg@10",
        "seconds": "seconds",
    },
    "survival/prefix_loss": {
        "training": "label",
        **{f"beam {width}": f"beam {width} validation ndcg@10" for width in (10, 20, 50, 100)},
        "difference with 20 beams (95%)": "gain",
    },
    "survival/beauty": {
        "model": "label",
        **{name: "|".join(f"{name}, level {level}" for level in range(1, 5)) for name in (*LEVELS[:2], *SURVIVAL)},
        "recall@10": "recall@10",
        "minutes": "training_minutes",
    },
    "generation/constraint": {
        "search": "label",
        "recall@10": "recall@10",
        "no item, % of the first 10": "no_item_percent_of_first_10",
        "no item, % of the first 20": "no_item_percent_of_first_20",
    },
    "generation/new_items": {
        "share of new items": "label",
        "cold": "cold recall@10",
        "warm": "warm recall@10",
        "harmonic mean": "*harmonic mean",
        "all": "*recall@10",
    },
    "cold_items/beauty": {
        "model": "label",
        "cold": "*cold recall@10",
        "by seed": "seeds:cold recall@10",
        "less content-neighbours (95%)": "gain",
        "warm, recall@10 / NDCG@10": "warm recall@10|warm ndcg@10",
        "warm, part of plain": "warm recall@10 ratio|warm ndcg@10 ratio",
        "all, recall@10": "*recall@10",
    },
    "generation/diversity": {
        "sampling": "label",
        "entropy of 10 / 20 / 50 items": "entropy@10|entropy@20|entropy@50",
        "paper": "paper:entropy@10|entropy@20|entropy@50",
        "recall@10": "recall@10",
    },
    "generation/beam_width": {
        "search": "label",
        "recall@10": "recall@10",
        "NDCG@10": "ndcg@10",
        "recall, change in %": "recall change percent",
        "NDCG, change in %": "ndcg change percent",
    },
    "trees/planted": {"tree": "label", "recall@10 by seed": "recall@10", "recall@20 by seed": "recall@20"},
    "trees/online_retail": TREES,
    "trees/beauty": TREES,
    "trees/exhaustive": {
        "data, tree": "label",
        "beam of 100, recall@10": "beam of 100 recall@10",
        "every leaf, recall@10": "every leaf recall@10",
    },
    "trees/beams": {
        "tree of tdm": "label",
        **{
            f"beam {width}, {kind}": f"{prefix}beam {width} recall@10"
            for width in (10, 20, 50, 100)
            for kind, prefix in (("mean", ""), ("seeds", "seeds:"))
        },
    },
    "trees/streaming_vq": {"model": "label", "recall@10": "recall@10", "NDCG@10": "ndcg@10"},
    "neighbours/item_graph": {
        "model": "label",
        "data": "data",
        "recall@10": "recall@10",
        "NDCG@10": "ndcg@10",
        **OUTSIDE,
    },
    "neighbours/item_graph_time": {"what": "label", "data": "data", "seconds": "seconds", "goal": "target:seconds"},
    "neighbours/channels_shop": CHANNELS,
    "neighbours/channels_beauty": CHANNELS,
    "neighbours/channels_100k": {
        "channel": "label",
        "processor time, median ms": "median_cpu_ms",
        "shortest wall time, ms": "shortest_wall_ms",
    },
    "neighbours/implicit": {
        "data": "label",
        "time over implicit's": "time over implicit's",
        "goal, at most": "target:time over implicit's",
    },
    "two_towers/shop": TOWERS,
    "two_towers/beauty": TOWERS,
    "rankers/shop": RANKERS,
    "rankers/shop_16000": RANKERS,
    "ranking/sharing": {
        "events, candidates": "label",
        "candidates per second, history read once": "shared_per_second",
        "history read for each": "separate_per_second",
        "ratio": "ratio",
        "ratio of operations": "ratio_of_operations",
    },
    "ranking/continued": {
        "events": "label",
        "first request, ms": "first_ms",
        "next request, ms": "second_ms",
        "ratio": "ratio",
    },
    "ranking/samples": {
        "kind of sample": "label",
        "impressions per second": "per_second",
        "the model's / this": "ratio",
        "AUC on validation after 2 epochs": "validation_auc",
    },
    "ranking/growing": {
        "work": "label",
        "growing table, ids per second": "growing_per_second",
        "torch embedding": "embedding_per_second",
    },
    "rankers/ceiling_parts": {"ceiling": "label", "AUC": "auc"},
    "reranking/operating": {**RERANKED, "least distance, change in %": "least distance@10 change percent"},
    "reranking/dpp_less_mmr": {
        "candidates": "label",
        "by mean distance, %": "by mean distance percent",
        "by least distance, %": "by least distance percent",
        "dpp above mmr": "verdict",
    },
    "reranking/by_validation": RERANKED,
    "reranking/online_retail": RERANKED,
    "reranking/time": {"re-ranker": "label", "ms": "cpu_ms", "goal": "target:cpu_ms", "verdict": "verdict"},
    "cascade/shop": WHOLE,
    "cascade/online_retail": WHOLE,
    "cascade/stages_shop": STAGES,
    "cascade/stages_online_retail": STAGES,
    "cascade/diversity": {
        "data": "label",
        "diversity@10 before": "diversity@10 before",
        "after": "diversity@10 after",
        "change, %": "diversity change percent",
        "NDCG@10, change in %": "ndcg change percent",
    },
    "cascade/latency": {
        "catalogue": "label",
        "p50": "p50_ms",
        "goal": "target:p50_ms",
        "p99": "p99_ms",
        "retrieval": "retrieval_ms",
        **{
            f"of which {channel}": f"{channel}_ms"
            for channel in ("item-cf", "two-tower", "geo-popularity", "popularity")
        },
        "pre-ranking": "pre-ranking_ms",
        "ranking": "ranking_ms",
        "re-ranking": "re-ranking_ms",
    },
    "cost_growth/trie_softmax": {
        "trie": "label",
        "fused, ms": "fused_ms",
        "grouped products": "grouped_ms",
        "padded": "padded_ms",
        "plain full softmax": "plain_ms",
        "full softmax in blocks": "full_ms",
    },
    "training_speed/peers": {**PEERS, "the peer's epoch, seconds": "peer_epoch_seconds"},
    "training_speed/memory": {"ours / peer": "label", "ours, MiB": "peak_mib", "peer, MiB": "peer_peak_mib"},
    "training_speed/gru4rec_cpu": {
        "ours / peer": "label",
        "ours": "epoch_cpu_seconds",
        "peer": "peer_epoch_cpu_seconds",
        "ratio": "ratio",
    },
    "two_towers/speed": {**PEERS, "memory, MiB": "peak_mib", "peer, MiB": "peer_peak_mib"},
    "training_speed/time_to_quality": {
        "model": "label",
        "seconds to 0.044": "seconds to 0.044",
        "seconds to 0.052": "seconds to 0.052",
        "best within 9 minutes": "*best validation ndcg@10",
        "after seconds": "seconds to best",
    },
    "training_speed/sessions": {
        "what": "label",
        "minutes": "training_minutes",
        "goal": "target:training_minutes",
        "recall@20": "recall@20",
        "MRR@20": "mrr@20",
    },
    "training_speed/validation_by_epoch": {
        "validation": "label",
        **{f"epoch {epoch}": f"validation ndcg@10, epoch {epoch}" for epoch in range(1, 10)},
    },
    "training_speed/padding": {
        "data": "label",
        "padding, %": "padding_percent",
        "with single targets, %": "padding_percent_single_targets",
        "goal, %": "target:padding_percent",
        "loader, ms a batch": "loader_ms_per_batch",
    },
    "training_speed/softmax": {
        "catalogue": "label",
        "time over plain": "time over plain",
        "goal, at most": "target:time over plain",
        "seconds": "seconds",
        "MiB": "mib",
        "plain, MiB": "plain_mib",
        "plain, GiB": "plain_gib",
    },
    "training_speed/step": {
        "what": "label",
        "ratio of times": "time over plain loop",
        "goal, at most": "target:time over plain loop",
    },
    "cost_growth/exponents": {
        "along what": "label",
        "time, exponent": "time exponent",
        "memory, exponent": "memory exponent",
        "ms, from": "first_ms",
        "ms, to": "last_ms",
        "seconds, from": "first_seconds",
        "seconds, to": "last_seconds",
    },
    "decoding_speed/transformers": {
        "what": "label",
        "sequences per second": "sequences_per_second",
        "peer": "peer_sequences_per_second",
        "p50, ms": "p50_ms",
        "peer, ms": "peer_p50_ms",
        "ratio": "ratio",
        "goal": "target:ratio",
        "verdict": "verdict",
    },
    "decoding_speed/identical": {"what": "label", "identical": "identical_requests", "of": "requests"},
    "decoding_speed/trie": {
        "catalogue": "label",
        "build, seconds": "build_seconds",
        "goal, seconds": "target:build_seconds",
        "bytes an item": "bytes_per_item",
        "goal, bytes": "target:bytes_per_item",
    },
    "decoding_speed/masking_1e7": MASKING,
    "decoding_speed/masking_1e6": MASKING,
    "decoding_speed/filters": {"a stored set that allows": "label", "ms": "cpu_ms_per_search"},
    "decoding_speed/large_catalogues": {
        "catalogue": "label",
        "p50, ms": "p50_ms",
        "p99, ms": "p99_ms",
        "guided, p50, ms": "guided_p50_ms",
        "guided, p99, ms": "guided_p99_ms",
        "guided / not": "ratio",
    },
    "serving/latency": {
        "model": "label",
        "one client: p50, ms": "p50_ms",
        "p99, ms": "p99_ms",
        "60 a second: p50, ms": "rate60_p50_ms",
        "p99": "rate60_p99_ms",
        "64 clients: requests a second": "saturated",
        "over one by one": "saturated_over_one",
        "over a plain endpoint": "over_plain",
    },
    "serving/overload": {
        "model": "label",
        "p99 at capacity, ms": "capacity_p99_ms",
        "p99 at 3 times, ms": "overload_p99_ms",
        "ratio": "ratio",
        "refused, %": "refused_percent",
        "memory before, MiB": "memory_before_mib",
        "after": "memory_after_mib",
    },
    "serving/update": {
        "model": "label",
        "frozen, NDCG@10": "frozen ndcg@10",
        "updated, NDCG@10": "updated ndcg@10",
        "smallest lower bound of the difference": "smallest_low",
    },
    "serving/states": {
        "model and history": "label",
        "one request with states, ms": "one_with_ms",
        "without": "one_without_ms",
        "64 requests with states, ms": "batch_with_ms",
        "64 without": "batch_without_ms",
    },
    "serving/ray": {
        "what": "label",
        "users a second": "users_per_second",
        "at best": "best_users_per_second",
        "seconds": "seconds",
        "memory of all processes, GiB": "peak_gib",
    },
    "onerec/beauty": {
        "model": "label",
        "alone: recall@10": "alone recall@10",
        "NDCG@10": "alone ndcg@10",
        "guided: recall@10": "guided recall@10",
        "guided: NDCG@10": "guided ndcg@10",
        "seconds of a core": "seconds",
    },
    "onerec/speed": {
        "model": "label",
        "training examples a second": "examples_per_second",
        "loss": "training_loss",
        "held-out loss": "held_out_loss",
    },
    "onerec/lists": {
        "answer": "label",
        "recall@10": "recall@10",
        "NDCG@10": "ndcg@10",
        "true clicks of a list": "clicks",
        "purchases": "purchases",
    },
    "onerec/alignment": {
        "method": "label",
        "weight": "weight",
        "true clicks, change (95%)": "true_clicks_change",
        "recall@10, change in %": "recall_change_percent",
        "seconds": "seconds",
    },
    "onerec/simulation": {
        "policy": "label",
        "visits": "sessions",
        "true clicks of a list": "clicks_per_list",
        "satisfaction": "satisfaction",
        "customers who visit in the last week": "retention",
        "regret of a list": "regret",
    },
    "off_policy/synthetic": {
        "estimator": "label",
        **{
            f"{title}: {header}": f"{world} {metric}"
            for world, title in (("similar", "similar policies"), ("different", "different"), ("lists", "lists"))
            for header, metric in (("error", "error"), ("bias", "bias"), ("covered, %", "covered_percent"))
        },
    },
    "off_policy/obd": {
        "policy and log": "label",
        "clicks, % (95%)": "click_percent",
        "less its own log (95%)": "difference",
        "impressions that count": "effective_size",
        "largest weight": "largest_weight",
    },
    "decoding_speed/incremental": {
        "batch": "label",
        **{f"{events} events": f"ratio at {events} events" for events in ("50", "200", "1,000")},
    },
    "decoding_speed/window": {"window": "label", "mean, ms": "mean_ms", "largest, ms": "largest_ms"},
    "search_speed/exact": {
        "queries": "label",
        "ours, ms": "ms",
        "faiss IndexFlatIP, ms": "peer_ms",
        "ratio": "ratio",
        "goal": "target:ratio",
    },
    "search_speed/tree": {"catalogue": "label", "ms": "milliseconds"},
    "data_speed/large_log": {
        "log": "label",
        "read and encode, seconds": "read_seconds",
        "split, seconds": "split_seconds",
        "peak memory, GiB": "peak_gib",
        "goal, GiB": "target:peak_gib",
    },
    "data_speed/other": {"what": "label", "seconds": "seconds", "goal": "target:seconds"},
    "lab_notes/depth_decoder_vectors": VALIDATED,
    "lab_notes/depth_decoder_first": GENERATORS,
    "lab_notes/depth_decoder_second": GENERATORS,
    "lab_notes/guide_sums": {"semantic IDs": "label", **BY_BEAM, "exact": "exact recall@10"},
    "lab_notes/superseded": {
        "what": "label",
        "recall@10": "recall@10",
        "NDCG@10": "ndcg@10",
        "spread of the seeds": "recall@10 spread|ndcg@10 spread",
        "minutes": "training_minutes",
        "seconds": "training_seconds",
        "paper": "paper:recall@10|ndcg@10",
        "best public re-run": "public:recall@10|ndcg@10",
        "goal": "target:recall@10|ndcg@10",
    },
    "lab_notes/superseded_sessions": {
        "what": "label",
        "recall@20": "recall@20",
        "MRR@20": "mrr@20",
        "minutes": "training_minutes",
        "goal": "target:recall@20|mrr@20",
        "verdict": "verdict",
    },
    "lab_notes/superseded_speed": {
        "ours / peer": "label",
        "ours": "epoch_cpu_seconds",
        "peer": "peer_epoch_cpu_seconds",
        "ratio": "ratio",
    },
    "lab_notes/sasrec_recipe": {"settings": "label", "validation NDCG@10": "*validation ndcg@10"},
    "lab_notes/hstu_variants": VALIDATED,
    "lab_notes/initial_weights": VALIDATED,
    "lab_notes/cross_entropy": {"settings": "label", **EPOCHS, "training loss in epoch 2": "training loss, epoch 2"},
    "lab_notes/cross_entropy_2048": {"loss": "label", **EPOCHS},
    "lab_notes/cobra": {"step": "label", **ACCURACY, "validation NDCG@10": "validation ndcg@10"},
    "lab_notes/trees_otm": {"training": "label", **BY_BEAM},
    "lab_notes/trees_before": {"tree": "label", "recall@10": "recall@10"},
    "lab_notes/masking_1e7_shared": MASKING,
    "lab_notes/search_shared": {"queries": "label", "ratio": "ratio"},
    "lab_notes/rankers": {"what": "label", "AUC": "auc"},
    "lab_notes/cascade_dpp": {
        "re-ranking": "label",
        "NDCG@10": "validation ndcg@10",
        "diversity@10": "validation diversity@10",
    },
    "lab_notes/cascade_examples": {
        "rankers learn from": "label",
        "online-retail: recall@10": "online-retail recall@10",
        "NDCG@10": "online-retail ndcg@10",
        "shop: recall@10": "shop recall@10",
    },
    "lab_notes/two_towers": {
        "what": "label",
        "recall@200": "validation recall@200",
        "recall@10": "validation recall@10",
    },
}


def pages() -> list[Path]:
    """Return the pages that may contain tables."""
    return [*sorted(FOLDER.glob("*.md")), FOLDER.parent / "lab_notes.md"]


def read_rows() -> list[Row]:
    """Return the rows of results.jsonl; figures keep their digits (Decimal)."""
    lines = DATA.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_float=Decimal) for line in lines]


def select_rows(rows: list[Row], table: str) -> list[Row]:
    """Return the rows of a table, in the order of the file."""
    topic, group = table.split("/")
    if topic == "summary":
        selected = [row for row in rows if row.get("summary") and row["data"].replace(" ", "-") == group]
        return sorted(selected, key=lambda row: -next(iter(row["metrics"].values()), 0))  # by recall
    return [row for row in rows if (row["topic"], row["group"]) == (topic, group)]


def figure(value: Decimal | int) -> str:
    """Return a figure with the digits that it was recorded with, thousands apart."""
    return f"{value:,}"


def metric(row: Row, name: str) -> str:
    """Return the text of one metric: value, interval or range, or the figures of the seeds."""
    value = row["metrics"].get(name)
    span = row["intervals"].get(name) or row.get("ranges", {}).get(name)
    text = f"{figure(span[0])} to {figure(span[1])}" if span else ""
    if value is not None:
        return f"{figure(value)} ({text})" if text else figure(value)
    return text or ", ".join(map(figure, row.get("by_seed", {}).get(name, [])))


def cell(row: Row, key: str) -> str:
    """Return the text of one cell."""
    if key == "details":
        return f"[{row['topic'].replace('_', ' ')}]({row['topic']}.md)"
    if key == "verdict" and not any(row.get(part) for part in ("metrics", "intervals", "ranges", "by_seed")):
        return "not run"
    if key in ("label", "data", "verdict"):
        return row[key] or ""
    where, colon, names = key.partition(":")
    if not colon:
        texts = [metric(row, name) for name in key.removeprefix("*").split("|")]
    elif where == "seeds":
        texts = [", ".join(map(figure, row.get("by_seed", {}).get(names, [])))]
    else:
        figures = row.get(where) or {}
        texts = [figure(figures[name]) for name in names.split("|") if name in figures]
    return " / ".join(text for text in texts if text)


def table_lines(rows: list[Row], columns: dict[str, str]) -> list[str]:
    """Return a Markdown table without the columns that are empty in every row."""
    body = {header: [cell(row, key) for row in rows] for header, key in columns.items()}
    for header, key in columns.items():
        if key.startswith("*"):
            values = [row["metrics"].get(key[1:]) for row in rows]
            best = max((value for value in values if value is not None), default=None)
            marked = zip(body[header], values, strict=True)
            body[header] = [f"**{text}**" if value is not None and value == best else text for text, value in marked]
    body = {header: cells for header, cells in body.items() if any(cells)}
    lines = ["| " + " | ".join(body) + " |", "| " + " | ".join("---" for _ in body) + " |"]
    lines += ["| " + " | ".join(text or "-" for text in texts) + " |" for texts in zip(*body.values(), strict=True)]
    return lines


def source(row: Row) -> str:
    """Return one sentence on how a row was measured."""
    command = f"`{row['command']}`" if row["command"] else "No command"
    reported = REPORTED.search(row["note"] or "")
    commit = "commit not recorded" + (f", first reported in {reported[1]}" if reported else "")
    if row["commit"]:
        commit = f"{row['commit']}, {row['date']}"
    facts = [commit]
    if row["seeds"] is not None:
        facts.append(("seed " if len(row["seeds"]) == 1 else "seeds ") + ", ".join(map(str, row["seeds"])))
    if row["machine"]:
        facts.append(row["machine"])
    if row.get("threads"):
        facts.append("one thread" if row["threads"] == 1 else "two threads")
    return f"{command} ({'; '.join(facts)})."


def grouped(rows: list[Row], texts: list[str]) -> list[str]:
    """Return one bullet for each different text, with the labels of its rows unless it is true of all rows."""
    times = Counter(row["label"] for row in rows)
    labels: dict[str, list[str]] = {}
    for row, text in zip(rows, texts, strict=True):
        if text:
            label = row["label"] if times[row["label"]] == 1 else f"{row['label']}, {row['data']}"
            labels.setdefault(text, []).append(label)
    largest = max(map(len, labels.values()), default=0)
    bullets = []
    for text, of in labels.items():
        prefix = "; ".join(of) + ": "
        if len(of) == len(rows):
            prefix = ""
        elif len(of) == largest > 2 and all(texts):
            prefix, largest = "The other rows: ", 0
        bullets.append(f"* {prefix}{text}")
    return sorted(bullets, key=lambda bullet: bullet.startswith("* The other rows: "))


def render(rows: list[Row], table: str) -> str:
    """Return a table, the commands that measured it and the notes of its rows."""
    selected = select_rows(rows, table)
    if table not in TABLES or not selected:
        raise SystemExit(f"{table}: no such table; its columns belong in TABLES, its rows in results.jsonl")
    lines = table_lines(selected, TABLES[table])
    if not table.startswith("summary/"):
        lines += ["", *grouped(selected, [source(row) for row in selected])]
        lines += grouped(selected, [REPORTED.sub("", row["note"] or "") for row in selected])
    return "\n".join(lines) + "\n"


def with_tables(text: str, rows: list[Row]) -> str:
    """Return the text of a page with its tables rendered."""
    return MARKED.sub(lambda found: found[1] + render(rows, found[2]) + found[3], text)


def stale_pages() -> dict[Path, str]:
    """Return the pages whose tables are stale, with the text that they should have."""
    rows = read_rows()
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    wanted = {page: with_tables(text, rows) for page, text in texts.items()}
    return {page: text for page, text in wanted.items() if text != texts[page]}


def find_rows(text: str) -> None:
    """Print the rows whose id or label contains the text."""
    for row in read_rows():
        if text in row["id"] or text in row["label"]:
            print(f"{row['id']}: {row['label']} ({row['data']})\n  {source(row)}")
            print("  " + ", ".join(f"{name} {metric(row, name)}" for name in row["metrics"]))


def main() -> None:
    """Write, check or search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is stale")
    parser.add_argument("--find", metavar="TEXT", help="print the rows whose id or label has this text")
    arguments = parser.parse_args()
    if arguments.find:
        find_rows(arguments.find)
        return
    stale = stale_pages()
    for page, text in stale.items():
        if arguments.check:
            print(f"{page.relative_to(FOLDER.parent.parent)}: a table is stale; run python docs/results/tables.py")
        else:
            page.write_text(text, encoding="utf-8")
            print(f"wrote {page.relative_to(FOLDER.parent.parent)}")
    if arguments.check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
