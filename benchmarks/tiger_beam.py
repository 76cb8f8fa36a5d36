"""Recall and NDCG that the beam search of a trained TIGER loses against scoring every item.

    python benchmarks/tiger_beam.py RUN [--users 500] [--widths 10 20 50] [--k 10] [--threads 2] [--seed 0]

RUN is a folder that `nextitem train tiger` made. Exhaustive scoring passes the code of every item through the decoder,
all positions at once, without caches and without the search; excluded items are skipped. Requests are a sample of the
test requests. Prints recall, NDCG and the share of requests with the same set of k
items, for the exhaustive list and each beam width; the target is a loss of at most 0.5% if width >= k.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from measure import Results, Stopwatch, parser
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import top_items
from nextitem.data.protocols import make_split
from nextitem.decoding.beam_search import beam_search
from nextitem.evaluation.metrics import accuracy
from nextitem.models.tiger import Tiger
from nextitem.pipeline.runs import load_run


@torch.inference_mode()
def every_score(model: Tiger, request: SequenceBatch) -> Tensor:
    """Return the log-probability of each item for one request, [1, N + 1]."""
    shared = model.start(request).shared
    parts = []
    for codes in torch.split(model.codes[1:], 2048):
        repeated = {name: value.expand(len(codes), *value.shape[1:]) for name, value in shared.items()}
        hidden = model._decode(repeated, codes[:, :-1])
        total = torch.zeros(len(codes))
        for level, (start, size) in enumerate(zip(model.code_offsets, model.sizes, strict=True)):
            logits = hidden[:, level] @ model.output.weight[start : start + size].T
            total += logits.log_softmax(1).gather(1, codes[:, level, None])[:, 0]
        parts.append(total)
    return F.pad(torch.cat(parts), (1, 0))[None]


def exhaustive(model: Tiger, requests: SequenceBatch, k: int) -> Recommendations:
    """Return the k best items of each request by scoring all of them."""
    return Recommendations.concat([top_items(every_score(model, request), request, k) for request in requests.split(1)])


def figures(lists: Tensor, requests: SequenceBatch, k: int) -> dict[str, float]:
    """Return recall and NDCG at k."""
    assert requests.targets is not None
    return {
        f"recall@{k}": float(accuracy.recall(lists, requests.targets, k).nanmean()),
        f"ndcg@{k}": float(accuracy.ndcg(lists, requests.targets, k).nanmean()),
    }


def compare(model: Tiger, requests: SequenceBatch, *, widths: list[int], k: int) -> dict[str, Any]:
    """Return the figures of exhaustive scoring and of each beam width (at least k) on the same requests."""
    with Stopwatch() as watch:
        best = exhaustive(model, requests, k)
    rows: dict[str, Any] = {"exhaustive": figures(best.item_ids, requests, k)}
    rows["exhaustive"]["seconds"] = watch.seconds
    for width in widths:
        with Stopwatch() as watch:
            parts = [beam_search(model, part, model.trie, k=k, beam_width=width) for part in requests.split(256)]
            lists = torch.cat([part.item_ids for part in parts])
        same = (lists.sort(1).values == best.item_ids.sort(1).values).all(1)
        rows[f"beam {width}"] = figures(lists, requests, k) | {
            "same_sets": float(same.double().mean()),
            "seconds": watch.seconds,
        }
    return rows


def main() -> None:
    options = parser(__doc__, users=500, k=10, threads=2, seed=0)
    options.add_argument("run", type=Path)
    options.add_argument("--widths", type=int, nargs="+", default=[10, 20, 50])
    arguments = options.parse_args()
    results = Results(arguments)
    torch.set_num_threads(arguments.threads)
    run = load_run(arguments.run)
    assert isinstance(run.model, Tiger), f"{arguments.run} is not a run of tiger"
    test = make_split(run.dataset, run.recipe.data.protocol, seed=run.recipe.seed).test
    draw = torch.Generator().manual_seed(arguments.seed)
    requests = test.select(torch.randperm(test.num_requests, generator=draw)[: arguments.users])
    requests = requests.select((requests.items.lengths > 0).nonzero()[:, 0])
    with torch.inference_mode():
        rows = compare(run.model.eval(), requests, widths=arguments.widths, k=arguments.k)
    base = rows["exhaustive"]
    for name, row in rows.items():
        losses = [f"{key} {row[key]:.4f} ({row[key] / base[key] - 1:+.2%})" for key in base if "@" in key and base[key]]
        same = f", same set {row['same_sets']:.1%}" if "same_sets" in row else ""
        results.add(name, row)
        print(f"{name:12} {', '.join(losses)}{same}, {row['seconds']:.1f} s")
    print(json.dumps({"users": requests.num_requests, "k": arguments.k, "rows": rows}))


if __name__ == "__main__":
    main()
