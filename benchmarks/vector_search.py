"""Exact vector search against faiss IndexFlatIP, alternating in one process, and what each kind of index finds.

    python benchmarks/vector_search.py [--items 1000000] [--width 64] [-k 100] [--runs 7] [--threads 2] [--kinds ivf,pq]

Prints the median milliseconds of each for a batch of 256 queries and for one, the median of the runs' ratios (faiss
over ours), and the share of equal lists; then, for each kind of index, build seconds, recall@k and milliseconds.
Vectors are normal, around --clusters centres (0: around none, where an index has nothing to hold on to).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
PARSER.add_argument("--items", type=int, default=1_000_000)
PARSER.add_argument("--width", type=int, default=64)
PARSER.add_argument("-k", type=int, default=100)
PARSER.add_argument("--runs", type=int, default=7)
PARSER.add_argument("--threads", type=int, default=2)
PARSER.add_argument("--clusters", type=int, default=0)
PARSER.add_argument("--kinds", default="", help="of exact, flat, ivf, hnsw, pq; hnsw takes minutes to build")
ARGUMENTS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import faiss  # noqa: E402
import torch  # noqa: E402

from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig  # noqa: E402
from nextitem.ops.vector_search import VectorTable  # noqa: E402


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def made() -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors [N + 1, D] and 512 queries."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(ARGUMENTS.items + 1 + 512, ARGUMENTS.width, generator=draw)
    if ARGUMENTS.clusters:
        centres = torch.randn(ARGUMENTS.clusters, ARGUMENTS.width, generator=draw)
        points = 0.5 * points + centres[torch.randint(0, ARGUMENTS.clusters, (len(points),), generator=draw)]
    return points[:-512], points[-512:]


def against_faiss(table: VectorTable, flat: faiss.IndexFlatIP, queries: torch.Tensor) -> dict[str, object]:
    k = ARGUMENTS.k
    asked = queries.numpy()
    ours, theirs = table.search(queries, k)[0], torch.from_numpy(flat.search(asked, k)[1]) + 1
    mine, peer = [], []
    for _ in range(ARGUMENTS.runs):
        mine.append(milliseconds(lambda: table.search(queries, k)))
        peer.append(milliseconds(lambda: flat.search(asked, k)))
    return {
        "queries": len(queries),
        "k": k,
        "ours_ms": round(statistics.median(mine), 1),
        "faiss_ms": round(statistics.median(peer), 1),
        "ratio": round(statistics.median(b / a for a, b in zip(mine, peer, strict=True)), 2),
        "equal_lists": round(float((ours == theirs).all(1).double().mean()), 4),
    }


def kind_of_index(kind: str, vectors: torch.Tensor, queries: torch.Tensor) -> dict[str, object]:
    index = AnnIndex(AnnIndexConfig(kind=kind, clusters=1024, recall_at=ARGUMENTS.k))  # type: ignore[arg-type]
    build = milliseconds(lambda: index.build(vectors, queries)) / 1000
    single = queries[:1]
    index.search(vectors, single, ARGUMENTS.k)
    return {
        "index": kind,
        "build_s": round(build, 1),
        f"recall@{ARGUMENTS.k}": round(float(index.recall), 4),
        "batch_ms": round(milliseconds(lambda: index.search(vectors, queries[:256], ARGUMENTS.k)), 1),
        "single_ms": round(
            statistics.median(milliseconds(lambda: index.search(vectors, single, ARGUMENTS.k)) for _ in range(20)), 2
        ),
    }


def main() -> None:
    torch.set_num_threads(ARGUMENTS.threads)
    faiss.omp_set_num_threads(ARGUMENTS.threads)
    vectors, queries = made()
    table = VectorTable(vectors)
    flat = faiss.IndexFlatIP(ARGUMENTS.width)
    flat.add(vectors[1:].numpy())
    for count in (256, 1):
        print(json.dumps(against_faiss(table, flat, queries[:count])), flush=True)
    for kind in filter(None, ARGUMENTS.kinds.split(",")):
        print(json.dumps(kind_of_index(kind, vectors, queries)), flush=True)


if __name__ == "__main__":
    main()
