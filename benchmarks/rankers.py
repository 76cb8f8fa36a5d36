"""Rankers on the simulated shop, compared with its true click probabilities.

    python benchmarks/rankers.py [--models lr,deepfm] [--customers 5000] [--seed 0] [--fields counting]

Each model trains with its default recipe under protocol `impressions`, with the default fields (`--fields default`),
with all fields (`all`), or without those that weigh events or compare an item with its category (`counting`).
The shop's own click probabilities are the ceiling: with the item in the first slot (all that a ranker can know), and in
its real slot. Prints a table: AUC with its 95% interval, GAUC, log-loss, calibration error, seconds of training.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measure import Results, Stopwatch, parser

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import Shop, generate_shop
from nextitem.evaluation.evaluate import Evaluation
from nextitem.evaluation.evaluate_ranking import evaluate_ranking
from nextitem.nn.fields.fields import Fields
from nextitem.pipeline.train import train

METRICS = ("auc", "gauc", "log_loss", "calibration_error")
MODELS = "lr,gbdt,wide-and-deep,deepfm,dcn,din,sim,multi-behaviour"


def true_scores(shop: Shop, data: Dataset, requests: SequenceBatch, *, slots: bool) -> Jagged:
    """Return the true probability of a click on each candidate."""
    candidates, users, times = requests.candidates, requests.user_ids, requests.request_times
    assert candidates is not None
    assert users is not None
    assert times is not None
    rows = candidates.row_ids().numpy()
    full = requests.items.lengths.numpy() > 0
    last = np.full(requests.num_requests, -1)
    last[full] = requests.items.values.numpy()[requests.items.offsets[1:].numpy()[full] - 1] - 1
    probabilities = shop.truth.click_probability(
        data.users.numbers_of(users.numpy())[rows] - 1,
        candidates.values.numpy() - 1,
        times.numpy()[rows] // 1000,
        slots=requests.candidate_features["slot"].values.long().numpy() if slots else 1,
        last_items=last[rows],
    )
    return candidates.with_values(torch.from_numpy(probabilities))


def is_comparing(name: str) -> bool:
    """Whether a field weighs events by age, session or action, or compares an item with its category."""
    is_weighted = name.startswith("cross.") and not {"fast", "slow", "session"}.isdisjoint(name.split("."))
    return is_weighted or ".in." in name or name.startswith(("history.fast", "history.slow", "session.", "shown."))


def add_line(results: Results, name: str, evaluation: Evaluation, seconds: float) -> None:
    """Print a row of the table and append it to the results."""
    figures = [f"{evaluation.metrics[metric]:.4f}" for metric in METRICS]
    low, high = evaluation.intervals.get("auc", (float("nan"),) * 2)
    print(
        f"| {name} | {figures[0]} ({low:.3f} - {high:.3f}) | {' | '.join(figures[1:])} | {seconds:.0f} s |", flush=True
    )
    metrics: dict[str, object] = {metric: evaluation.metrics[metric] for metric in METRICS}
    results.add(name, {**metrics, "auc_interval": evaluation.intervals.get("auc"), "seconds": seconds})


def main() -> None:
    options = parser(__doc__, customers=5000, seed=0)
    options.add_argument("--models", default=MODELS)
    options.add_argument("--fields", choices=("default", "all", "counting"), default="default")
    arguments = options.parse_args()
    results = Results(arguments)
    with TemporaryDirectory() as folder:
        shop = generate_shop(0, num_users=arguments.customers)
        shop.write(Path(folder) / "shop")
        data = load_dataset(Path(folder) / "shop")
        test = make_split(data, "impressions").test
        print("| ranker | AUC | GAUC | log-loss | calibration error | training |")
        print("| --- | --- | --- | --- | --- | --- |")
        for slots, what in ((False, "true probabilities, slot unknown"), (True, "true probabilities, slot known")):
            scores = true_scores(shop, data, test, slots=slots)
            add_line(results, what, evaluate_ranking(scores, test, label="click"), 0)
        names = Fields(data.catalog).all_names
        selected = {"default": (), "all": names, "counting": [name for name in names if not is_comparing(name)]}
        for name in arguments.models.split(","):
            with Stopwatch() as watch:
                run = train(
                    name,
                    data,
                    out=Path(folder) / name,
                    protocol="impressions",
                    seed=arguments.seed,
                    settings={"model.fields": list(selected[arguments.fields])},
                    progress=False,
                )
            assert run.evaluation is not None
            add_line(results, name, run.evaluation, watch.seconds)


if __name__ == "__main__":
    main()
