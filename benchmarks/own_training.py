"""Our trainer in the benchmarks of training: a registered model, trained by nextitem.training.fit.

    python benchmarks/own_training.py --folder DATASET_FOLDER --model sasrec --what sasrec [--set model.block=published]
        [--recipe amazon14-beauty/sasrec] [--max-batches 40]

training_speed.py, two_tower_speed.py and time_to_quality.py start it as a process of its own. It prints the JSON lines
that the peers print (peers/meter.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peers.meter import Enough, Quality, Speed, silence, trainer_parser, watch_for
from torch import Tensor

import nextitem as ni
from nextitem.core.components import component_class
from nextitem.core.jagged import Jagged
from nextitem.core.roles import Examples
from nextitem.data.protocols import make_split
from nextitem.evaluation.evaluate import recommend_all
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.pipeline.train import with_requirements
from nextitem.recipes import default_recipe, read_recipe
from nextitem.training.fit import fit


class WatchedExamples:
    """Examples that report each batch to the watch before they return the next."""

    def __init__(self, examples: Examples[Any], watch: Speed | Quality) -> None:
        self.examples = examples
        self.watch = watch

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in one epoch."""
        return self.examples.num_batches(batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[Any]:
        """Yield batches `start`, ... of an epoch."""
        for batch in self.examples.batches(batch_size, epoch=epoch, seed=seed, start=start):
            yield batch
            self.watch.batch(targets_in(batch))


def targets_in(batch: Any) -> int:
    """Return the number of real targets of a training batch."""
    targets: Jagged | Tensor = batch.targets
    return int(((targets.values if isinstance(targets, Jagged) else targets) > 0).sum())


def main() -> None:
    parser = trainer_parser(__doc__.splitlines()[0], what=None)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings that differ")
    arguments = parser.parse_args()
    silence()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    split = make_split(ni.load_dataset(arguments.folder), "leave-one-out")
    source: dict[str, Any] = {"data": {"path": str(arguments.folder)}, "model": {"name": arguments.model}}
    base = default_recipe(arguments.model) if arguments.recipe is None else read_recipe(arguments.recipe)
    overrides = list(arguments.overrides)
    if "guide" in component_class("model", source["model"])[0].Config.model_fields:
        overrides.append("model.guide=none")  # a guide is fitted after training
    recipe = resolve_recipe([base, ("the benchmark", source)], overrides=overrides)
    training = recipe.training.model_copy(update={"validate_every": 1, "patience": None, "max_minutes": None})
    kind, config = component_class("model", recipe.model)
    with TemporaryDirectory() as folder:
        train = with_requirements(
            split.train, recipe, kind.needs | config.needs, FitOptions(Path(folder), progress=False)
        )
    model = kind(config, train.catalog)
    model.set_popularity_from(train)
    examples, watch = model.examples(train), watch_for(arguments)
    validate = None
    if isinstance(watch, Quality):
        validate = watch.epoch
    else:
        training = training.model_copy(update={"max_epochs": 1000})
    watch.begin(
        events=sum(targets_in(batch) for batch in examples.batches(training.batch_size, epoch=0, seed=arguments.seed)),
        batches=examples.num_batches(training.batch_size),
        answers=lambda: {"lists": recommend_all(model, split.validation, 10).numpy()},
    )
    watched = WatchedExamples(examples, watch)
    with suppress(Enough):
        fit(model, watched, training, seed=arguments.seed, validate=validate, device="cpu", progress=False)
    watch.report(version=f"nextitem {ni.__version__}", torch=torch.__version__, settings=recipe.model)


if __name__ == "__main__":
    main()
