"""How many impressions a second does hstu-ranking train on if a user's requests share one pass over the history?

    python benchmarks/user_samples.py [--customers 16000] [--steps 12] [--epochs 0] [--threads 1]

Impressions of a simulated shop. Three kinds of training samples: a user with all requests (`user`, as the model
trains), a request with its candidates (`request`), and a candidate (`impression`), each with the history read anew. All
have the same loss; a batch has as many impressions. Prints one JSON line: impressions per second of each (median over
steps, processor time of the thread), the ratios, and with `--epochs` the AUC on the validation requests after training
for so many epochs by each kind with one seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measure import Results, interleaved, median_ratio, parser

from nextitem.core.batch import SequenceBatch
from nextitem.core.config import parse
from nextitem.core.jagged import Jagged
from nextitem.data.examples.labelled_candidates import impression_examples
from nextitem.data.examples.user_requests import UserRequests
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.data.shop.shop import generate_shop
from nextitem.evaluation.evaluate_ranking import quick_auc
from nextitem.models.rankers.hstu_ranking import HSTURanking, HSTURankingConfig

BATCH_SIZE = 256


def without_sharing(batch: SequenceBatch) -> SequenceBatch:
    """Return the requests of a batch as those of unknown users, who share nothing."""
    return replace(batch, user_ids=None)


def by_impression(batch: SequenceBatch) -> SequenceBatch:
    """Return one request for each candidate of a batch, of an unknown user."""
    assert batch.candidates is not None
    rows = batch.candidates.row_ids()
    offsets = torch.arange(len(rows) + 1)
    alone = replace(batch, candidates=None, candidate_features={}, candidate_labels={}).select(rows)
    return replace(
        alone,
        user_ids=None,
        candidates=Jagged(batch.candidates.values, offsets),
        candidate_features={name: Jagged(part.values, offsets) for name, part in batch.candidate_features.items()},
        candidate_labels={name: Jagged(part.values, offsets) for name, part in batch.candidate_labels.items()},
    )


KINDS: dict[str, Callable[[SequenceBatch], SequenceBatch]] = {
    "user": lambda batch: batch,
    "request": without_sharing,
    "impression": by_impression,
}


def main() -> None:
    """Measure training steps, and the quality after some epochs."""
    options = parser(__doc__ or "", customers=16_000, steps=12, epochs=0, threads=1)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments)
    with TemporaryDirectory() as folder:
        generate_shop(0, num_users=arguments.customers).write(f"{folder}/shop")
        split = make_split(load_dataset(f"{folder}/shop"), "impressions")
    examples = UserRequests(impression_examples(split.train))

    def model_and_step() -> tuple[HSTURanking, Callable[[SequenceBatch], None]]:
        torch.manual_seed(0)
        config = parse(HSTURankingConfig, {"l2": 1.0}, where="benchmark")
        assert isinstance(config, HSTURankingConfig)
        model = HSTURanking(config, split.train.catalog)
        model.examples(split.train)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def step(batch: SequenceBatch) -> None:
            optimizer.zero_grad()
            model.training_loss(batch).total.backward()
            optimizer.step()

        return model.train(), step

    batches = list(examples.batches(BATCH_SIZE, epoch=1, seed=0))[: arguments.steps + 1]
    works = {}
    for name, kind in KINDS.items():
        _, step = model_and_step()
        works[name] = stepper(step, [kind(batch) for batch in batches])
    seconds = interleaved(works, repeats=len(batches) - 1, clock=time.thread_time)
    sizes = [len(batch.candidates.values) for batch in batches[1:] if batch.candidates is not None]
    figures: dict[str, object] = {
        "impressions_per_second": {
            name: round(float(np.median(np.array(sizes) / part))) for name, part in seconds.items()
        },
        "user_by_request": median_ratio(seconds["request"], seconds["user"]),
        "user_by_impression": median_ratio(seconds["impression"], seconds["user"]),
    }
    if arguments.epochs:
        aucs = {}
        for name, kind in KINDS.items():
            model, step = model_and_step()
            for epoch in range(1, arguments.epochs + 1):
                for batch in examples.batches(BATCH_SIZE, epoch=epoch, seed=0):
                    step(kind(batch))
            aucs[name] = round(quick_auc(model.eval(), split.validation), 4)
        figures["validation_auc"] = aucs
    results.add_printed("training samples", figures)


def stepper(step: Callable[[SequenceBatch], None], batches: list[SequenceBatch]) -> Callable[[], None]:
    """Return a function whose calls train on one batch each, in order."""
    rest: Iterator[SequenceBatch] = iter(batches)
    return lambda: step(next(rest))


if __name__ == "__main__":
    main()
