"""Our side of training_speed.py and time_to_quality.py: a registered model, trained by nextitem.training.fit.

    python benchmarks/own_training.py --folder DATASET_FOLDER --model sasrec --what sasrec [--set model.block=published]
        [--recipe amazon14-beauty/sasrec] [--max-batches 40]

It prints the JSON lines that the peers print (peers/meter.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peers.meter import Enough, Quality, Speed, arguments, silence, watch_for
from torch import Tensor

import nextitem as ni
from nextitem.core.components import component_class
from nextitem.core.jagged import Jagged
from nextitem.core.roles import Examples
from nextitem.data.protocols import make_split
from nextitem.evaluation.evaluate import recommend_all
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.recipes import default_recipe, read_recipe
from nextitem.training.fit import fit


class WatchedExamples:
    """Examples that tell the watch of each batch when the next one is asked for."""

    def __init__(self, examples: Examples, watch: Speed | Quality) -> None:
        self.examples = examples
        self.watch = watch

    def num_batches(self, batch_size: int) -> int:
        """Batches in one epoch."""
        return self.examples.num_batches(batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[Any]:
        """Batches `start`, ... of an epoch."""
        for batch in self.examples.batches(batch_size, epoch=epoch, seed=seed, start=start):
            yield batch
            self.watch.batch(targets_in(batch))


def targets_in(batch: Any) -> int:
    """Real targets of a training batch."""
    targets: Jagged | Tensor = batch.targets
    return int(((targets.values if isinstance(targets, Jagged) else targets) > 0).sum())


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], what=None)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings that differ")
    chosen = parser.parse_args()
    silence()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    split = make_split(ni.load_dataset(chosen.folder), "leave-one-out")
    given: dict[str, Any] = {"data": {"path": str(chosen.folder)}, "model": {"name": chosen.model}}
    base = default_recipe(chosen.model) if chosen.recipe is None else read_recipe(chosen.recipe)
    recipe = resolve_recipe([base, ("the benchmark", given)], overrides=chosen.overrides)
    training = recipe.training.model_copy(update={"validate_every": 1, "patience": None, "max_minutes": None})
    kind, config = component_class("model", recipe.model)
    model = kind(config, split.train.catalog)
    model.set_popularity(torch.from_numpy(split.train.interactions.item_counts()).float())
    examples, watch = model.examples(split.train), watch_for(chosen)
    validate = None
    if isinstance(watch, Quality):
        validate = watch.epoch
    else:
        training = training.model_copy(update={"max_epochs": 1000})
    watch.begin(
        events=sum(targets_in(batch) for batch in examples.batches(training.batch_size, epoch=0, seed=chosen.seed)),
        batches=examples.num_batches(training.batch_size),
        answers=lambda: {"lists": recommend_all(model, split.validation, 10).numpy()},
    )
    watched = WatchedExamples(examples, watch)
    with suppress(Enough):
        fit(model, watched, training, seed=chosen.seed, validate=validate, device="cpu", progress=False)
    watch.report(version=f"nextitem {ni.__version__}", torch=torch.__version__, settings=recipe.model)


if __name__ == "__main__":
    main()
