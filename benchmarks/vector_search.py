"""Exact vector search against faiss IndexFlatIP, alternating in one process, and the recall of each kind of index.

    python benchmarks/vector_search.py [--items 1000000] [--width 64] [-k 100] [--runs 7] [--threads 2] [--kinds ivf,pq]

Prints the median milliseconds of each for a batch of 256 queries and for one, the median of the runs' ratios (faiss
over ours), and the share of equal lists; then, for each kind of index, build seconds, recall@k and milliseconds.
Vectors are normal, around --clusters centres (0: around none, the hardest case for an index).
"""

from __future__ import annotations

import os

from measure import Results, Stopwatch, interleaved, median_ms, median_ratio, parser, timed_median

PARSER = parser(__doc__, width=64, runs=7, threads=2, clusters=0)
PARSER.add_argument("--items", type=int, default=1_000_000)
PARSER.add_argument("-k", type=int, default=100)
PARSER.add_argument("--kinds", default="", help="of exact, flat, ivf, hnsw, pq; hnsw takes minutes to build")
ARGUMENTS = PARSER.parse_args()
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import faiss  # noqa: E402
import torch  # noqa: E402

from nextitem.neighbours.ann_index import AnnIndex, AnnIndexConfig, ExactIndex, FlatIndex, HNSWIndex, IVFIndex, PQIndex  # noqa: E402
from nextitem.ops.vector_search import VectorTable  # noqa: E402


def random_vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors [N + 1, D] and 512 queries [512, D]."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(ARGUMENTS.items + 1 + 512, ARGUMENTS.width, generator=draw)
    if ARGUMENTS.clusters:
        centres = torch.randn(ARGUMENTS.clusters, ARGUMENTS.width, generator=draw)
        points = 0.5 * points + centres[torch.randint(0, ARGUMENTS.clusters, (len(points),), generator=draw)]
    return points[:-512], points[-512:]


def against_faiss(table: VectorTable, flat: faiss.IndexFlatIP, queries: torch.Tensor) -> dict[str, object]:
    """Return times of both, their ratio, and the share of equal lists."""
    k = ARGUMENTS.k
    array = queries.numpy()
    ours, theirs = table.search(queries, k)[0], torch.from_numpy(flat.search(array, k)[1]) + 1
    works = {"ours": lambda: table.search(queries, k), "faiss": lambda: flat.search(array, k)}
    seconds = interleaved(works, repeats=ARGUMENTS.runs, warmup=0)
    return {
        "queries": len(queries),
        "k": k,
        "ours_ms": median_ms(seconds["ours"], 1),
        "faiss_ms": median_ms(seconds["faiss"], 1),
        "ratio": median_ratio(seconds["faiss"], seconds["ours"]),
        "equal_lists": round(float((ours == theirs).all(1).double().mean()), 4),
    }


def kind_of_index(kind: str, vectors: torch.Tensor, queries: torch.Tensor) -> dict[str, object]:
    """Return build seconds, recall and times of one kind of index."""
    k = ARGUMENTS.k
    configs: dict[str, AnnIndexConfig] = {
        "exact": ExactIndex(),
        "flat": FlatIndex(recall_at=k),
        "ivf": IVFIndex(recall_at=k, clusters=1024),
        "hnsw": HNSWIndex(recall_at=k),
        "pq": PQIndex(recall_at=k),
    }
    index = AnnIndex(configs[kind])
    with Stopwatch() as build:
        index.build(vectors, queries)
    single = queries[:1]
    index.search(vectors, single, k)
    with Stopwatch() as batch:
        index.search(vectors, queries[:256], k)
    one = timed_median(lambda: index.search(vectors, single, k), repeats=20, warmup=0)
    return {
        "index": kind,
        "build_s": round(build.seconds, 1),
        f"recall@{k}": round(float(index.recall), 4),
        "batch_ms": round(batch.milliseconds, 1),
        "single_ms": round(1000 * one, 2),
    }


def main() -> None:
    torch.set_num_threads(ARGUMENTS.threads)
    faiss.omp_set_num_threads(ARGUMENTS.threads)
    results = Results(ARGUMENTS)
    vectors, queries = random_vectors()
    table = VectorTable(vectors)
    flat = faiss.IndexFlatIP(ARGUMENTS.width)
    flat.add(vectors[1:].numpy())
    for count in (256, 1):
        results.add_printed(f"exact, {count} queries", against_faiss(table, flat, queries[:count]))
    for kind in filter(None, ARGUMENTS.kinds.split(",")):
        results.add_printed(kind, kind_of_index(kind, vectors, queries))


if __name__ == "__main__":
    main()
