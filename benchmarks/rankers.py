"""Rankers on the simulated shop, beside what its true probabilities would reach.

    benchmarks/rankers.py [--models lr,deepfm,...] [--customers 5000] [--seed 0]

Each model trains with its default recipe under protocol `impressions`. The ceilings are the figures of the shop's own
click probabilities: with the item in the first slot, which is all that a ranker can know, and in the slot that it had.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import Shop, generate_shop
from nextitem.evaluation.evaluate import Evaluation
from nextitem.evaluation.evaluate_ranking import evaluate_ranking
from nextitem.pipeline.train import train

MODELS = "lr,gbdt,wide-and-deep,deepfm,dcn,din,sim,multi-behaviour"


def true_scores(shop: Shop, data: Dataset, requests: SequenceBatch, *, slots: bool) -> Jagged:
    """The true probability of a click on each candidate."""
    given, users, times = requests.candidates, requests.user_ids, requests.request_times
    assert given is not None
    assert users is not None
    assert times is not None
    rows = given.row_ids().numpy()
    full = requests.items.lengths.numpy() > 0
    last = np.full(requests.num_requests, -1)
    last[full] = requests.items.values.numpy()[requests.items.offsets[1:].numpy()[full] - 1] - 1
    probabilities = shop.truth.click_probability(
        data.users.numbers_of(users.numpy())[rows] - 1,
        given.values.numpy() - 1,
        times.numpy()[rows] // 1000,
        slots=requests.candidate_features["slot"].values.long().numpy() if slots else 1,
        last_items=last[rows],
    )
    return given.with_values(torch.from_numpy(probabilities))


def line(name: str, found: Evaluation, seconds: float) -> str:
    """A row of the table."""
    figures = [f"{found.metrics[metric]:.4f}" for metric in ("auc", "gauc", "log_loss", "calibration_error")]
    low, high = found.intervals.get("auc", (float("nan"),) * 2)
    return f"| {name} | {figures[0]} ({low:.3f} - {high:.3f}) | {' | '.join(figures[1:])} | {seconds:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--customers", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        shop = generate_shop(0, num_users=chosen.customers)
        shop.write(Path(folder) / "shop")
        data = load_dataset(Path(folder) / "shop")
        test = make_split(data, "impressions").test
        print("| ranker | AUC | GAUC | log-loss | calibration error | training |")
        print("| --- | --- | --- | --- | --- | --- |")
        for slots, what in ((False, "true probabilities, slot unknown"), (True, "true probabilities, slot known")):
            scores = true_scores(shop, data, test, slots=slots)
            print(line(what, evaluate_ranking(scores, test, label="click"), 0), flush=True)
        for name in chosen.models.split(","):
            began = time.perf_counter()
            run = train(name, data, out=Path(folder) / name, protocol="impressions", seed=chosen.seed, progress=False)
            assert run.evaluation is not None
            print(line(name, run.evaluation, time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
