"""Cost of diversity: NDCG@10 of MMR's and DPP's lists by their diversity, and the time of each re-ranker.

    python benchmarks/reranking.py [DATASET_FOLDER ...] [--channels item-cf item-graph] [--protocol time]
        [--customers 15000] [--candidates 200] [--plot docs/reranking_front.png]

Without a folder: the simulated shop, with --customers customers. Each channel, fitted on training events with its
default settings, retrieves candidates. Re-rankers read content vectors (TF-IDF, 128 wide); diversity is measured as in
evaluation, by vectors of its own: the mean distance of a list's pairs (diversity@10), and the smallest one, as in DPP's
paper. The operating point is the setting with the most diversity among those that lose at most 2% of NDCG@10 on
validation; its figures are those of the test. "dpp more" is the difference in NDCG@10 to mmr at equal diversity, dpp's
settings joined by straight lines, as a share of the candidates' own NDCG@10, with its 95% interval. Then the processor
time of one request alone, 200 candidates to 20, in the median of 200, for every re-ranker. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from measure import Results, Stopwatch, parser
from torch import Tensor

from nextitem.cascade.reranker import Reranker
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import parse
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS, RERANKERS
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import generate_shop
from nextitem.data.text import ContentConfig, content_vectors
from nextitem.evaluation.evaluate import item_vectors
from nextitem.evaluation.intervals import paired_difference
from nextitem.evaluation.metrics import accuracy, beyond_accuracy

Fronts = dict[str, dict[float, dict[str, Tensor]]]  # re-ranker -> setting -> figure -> [requests]

K, LOSS = 10, 0.02
NDCG, MEAN, LEAST = "ndcg@10", "diversity@10", "least distance@10"
SETTING = {"mmr": "relevance_weight", "dpp": "theta"}
SWEEPS = {
    "mmr": (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3),
    "dpp": (0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.91, 0.88, 0.84, 0.8, 0.74, 0.68, 0.6, 0.5),
}
RULES = [
    {"kind": "cap", "column": "brand", "most": 3},
    {"kind": "gap", "column": "category", "between": 1},
    {"kind": "fresh", "days": 30, "least": 2},
]
TIMED: dict[str, tuple[str, dict[str, Any]]] = {
    "mmr": ("mmr", {}),
    "dpp": ("dpp", {}),
    "dpp, window of 8": ("dpp", {"window": 8}),
    "calibrated": ("calibrated", {"column": "category"}),
    "exposure": ("exposure", {"column": "brand"}),
    "rules (cap, gap, freshness)": ("rules", {"rules": RULES}),
}


def build(name: str, settings: dict[str, Any], catalog: Catalog) -> Reranker:
    """Return a re-ranker by its registered name."""
    kind: Any = RERANKERS[name].load()
    reranker: Reranker = kind(parse(kind.Config, settings, where=name), catalog)
    return reranker


def fitted_channel(channel: str, train: Dataset) -> Recommender:
    """Return the channel with its default settings."""
    kind: Any = MODELS[channel].load()
    model: Recommender = kind(kind.Config(), train.catalog)
    model.set_popularity(torch.from_numpy(train.interactions.item_counts()).float())
    model.fit(train)  # type: ignore[operator]
    return model.eval()


class Requests:
    """Requests with their candidates, and the figures of lists for them."""

    def __init__(self, model: Recommender, requests: SequenceBatch, count: int, vectors: Tensor) -> None:
        assert requests.targets is not None
        self.targets, self.vectors = requests.targets, vectors
        self.batches = [(model.recommend(batch, count), batch) for batch in requests.split(256)]

    def figures(self, reranker: Reranker | None) -> dict[str, Tensor]:
        """Return one value a request of each figure of the lists; None: of the candidates in their own order."""
        answers = [
            candidates if reranker is None else reranker.rerank(candidates, batch, K)
            for candidates, batch in self.batches
        ]
        lists = torch.cat([answer.item_ids[:, :K] for answer in answers])
        return {
            NDCG: accuracy.ndcg(lists, self.targets, K),
            MEAN: beyond_accuracy.diversity(lists, self.vectors),
            LEAST: least_distance(lists, self.vectors),
        }


def least_distance(lists: Tensor, vectors: Tensor) -> Tensor:
    """Return the smallest 1 - cosine of a list's pairs, [B]; lists are full here."""
    unit = torch.nn.functional.normalize(vectors[lists].double(), dim=2)
    cosines = torch.bmm(unit, unit.transpose(1, 2))
    return 1 - cosines.masked_fill(torch.eye(lists.shape[1], dtype=torch.bool), -torch.inf).amax((1, 2))


def means(values: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each figure."""
    return {name: round(float(value.nanmean()), 5) for name, value in values.items()}


def milliseconds(reranker: Reranker, requests: list[tuple[Recommendations, SequenceBatch]]) -> float:
    """Return the median processor time of one request, to 20 items; a busy machine changes it little."""
    times = []
    for candidates, batch in requests:
        with Stopwatch(time.thread_time) as watch:
            reranker.rerank(candidates, batch, 20)
        times.append(watch.milliseconds)
    return round(statistics.median(times[len(times) // 10 :]), 3)


def against_mmr(fronts: Fronts, by: str, start: float) -> list[dict[str, Any]]:
    """Return the NDCG that dpp has more at equal diversity, for each setting of mmr within dpp's range."""
    front = sorted(((means(values)[by], values[NDCG]) for values in fronts["dpp"].values()), key=lambda pair: pair[0])
    table = []
    for setting, values in fronts["mmr"].items():
        target = means(values)[by]
        place = next((place for place, (reached, _) in enumerate(front) if reached >= target), 0)
        if place:
            (low, ndcg_low), (high, ndcg_high) = front[place - 1 : place + 1]
            part = (target - low) / (high - low)
            more = paired_difference((1 - part) * ndcg_low + part * ndcg_high, values[NDCG])
            shares = [round(value / start, 4) for value in (more.mean, more.low, more.high)]
            lost = round(1 - means(values)[NDCG] / start, 4)
            table.append({SETTING["mmr"]: setting, "mmr loses": lost, "dpp more": shares[0], "interval": shares[1:]})
    return table


def plot(fronts_of: dict[str, tuple[dict[str, float], Fronts]], file: Path) -> None:
    """Plot a row for each data set and channel: NDCG over the mean and over the least distance."""
    figure = Figure(figsize=(11, 4.2 * len(fronts_of)), layout="constrained")
    for row, (title, (start, fronts)) in zip(
        figure.subplots(len(fronts_of), 2, squeeze=False), fronts_of.items(), strict=True
    ):
        for axes, by in zip(row, (MEAN, LEAST), strict=True):
            for name, mark in (("mmr", "o-"), ("dpp", "s-")):
                points = sorted((means(values)[by], means(values)[NDCG]) for values in fronts[name].values())
                axes.plot(*zip(*points, strict=True), mark, ms=4, label=name)
            axes.plot(start[by], start[NDCG], "k*", ms=11, label="not re-ranked")
            axes.axhline((1 - LOSS) * start[NDCG], color="grey", ls=":", lw=1, label="2% less NDCG")
            axes.set(xlabel=by, ylabel="NDCG@10", title=title)
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(file, dpi=100)


def measure(
    data: Dataset, channel: str, arguments: argparse.Namespace, results: Results
) -> tuple[dict[str, float], Fronts]:
    """Print all figures of one data set and channel; return the candidates' own, and the fronts on test."""
    split = make_split(data, arguments.protocol)
    model = fitted_channel(channel, split.train)
    catalog = split.train.catalog.with_content(content_vectors(split.train.catalog, ContentConfig()))
    vectors = item_vectors(split.train.catalog)
    assert vectors is not None
    valid, test = (Requests(model, part, arguments.candidates, vectors) for part in (split.validation, split.test))
    start, valid_start = means(test.figures(None)), means(valid.figures(None))
    about = {"data": data.name, "channel": channel}
    print_row(results, about, "candidates", requests=split.test.num_requests, reranker="none", **start)
    fronts: Fronts = {name: {} for name in SWEEPS}
    for name, sweep in SWEEPS.items():
        diversity_of = {}  # settings that lose little
        for setting in sweep:
            reranker = build(name, {SETTING[name]: setting}, catalog)
            fronts[name][setting] = test.figures(reranker)
            on_valid = means(valid.figures(reranker))
            print_row(
                results, about, f"{name} {setting}", reranker=name, setting=setting, **means(fronts[name][setting])
            )
            if on_valid[NDCG] >= (1 - LOSS) * valid_start[NDCG]:
                diversity_of[setting] = on_valid[MEAN]
        if diversity_of:
            best = max(diversity_of, key=diversity_of.__getitem__)
            changes = {key: round(value / start[key] - 1, 4) for key, value in means(fronts[name][best]).items()}
            print_row(
                results, about, f"{name}, operating point", reranker=name, operating_point=best, change_on_test=changes
            )
    for by in (MEAN, LEAST):
        for row in against_mmr(fronts, by, start[NDCG]):
            print_row(results, about, f"dpp and mmr at equal {by}", at_equal=by, **row)
    time_each(results, about, model, split.test, catalog)
    return start, fronts


def time_each(
    results: Results, about: dict[str, Any], model: Recommender, requests: SequenceBatch, catalog: Catalog
) -> None:
    """Print the time of every re-ranker whose columns the catalogue has."""
    rows = torch.linspace(0, requests.num_requests - 1, 220).long()
    singles = [requests.select(row[None]) for row in rows]
    batches = [(model.recommend(single, 200), single) for single in singles]
    for title, (name, settings) in TIMED.items():
        columns = {settings.get("column")} | {rule["column"] for rule in settings.get("rules", ()) if "column" in rule}
        if columns - {None} <= set(catalog.features) and (name != "rules" or catalog.released_ms is not None):
            spent = milliseconds(build(name, settings, catalog), batches)
            print_row(results, about, f"time of {title}", time_of=title, ms=spent, threads=torch.get_num_threads())


def print_row(results: Results, about: dict[str, Any], row: str, **figures: Any) -> None:
    """Print one row as a JSON line and append it to the results."""
    results.add_printed(f"{about['data']}, {about['channel']}: {row}", {**about, **figures})


def main() -> None:
    options = parser(__doc__, candidates=200)
    options.add_argument("folders", nargs="*", default=["shop"])
    options.add_argument("--channels", nargs="*", default=["item-cf", "item-graph"])
    options.add_argument("--protocol", default="time")
    options.add_argument("--customers", type=int, help="of the simulated shop; default: as many as it has")
    options.add_argument("--plot", type=Path)
    arguments = options.parse_args()
    results = Results(arguments)
    fronts_of = {}
    for folder in arguments.folders:
        with tempfile.TemporaryDirectory() as temporary:
            if folder == "shop" and arguments.customers:
                generate_shop(num_users=arguments.customers).write(Path(temporary) / "shop")
                folder = Path(temporary) / "shop"
            data = load_dataset(folder)
        for channel in arguments.channels:
            fronts_of[f"{data.name}, candidates of {channel}"] = measure(data, channel, arguments, results)
    if arguments.plot:
        plot(fronts_of, arguments.plot)


if __name__ == "__main__":
    main()
