"""Training of a blend: its parts one after the other, then the choice of their weights on validation requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.item_probabilities import Transform, default_transform
from nextitem.core.recommender import Recommender
from nextitem.distributed import processes
from nextitem.evaluation.mixture_weights import choose_mixture, target_ranks
from nextitem.models.blend import Blend, PartUse
from nextitem.pipeline.bundle import write_json
from nextitem.pipeline.options import FitOptions, Log, silent
from nextitem.pipeline.recipe import Recipe
from nextitem.pipeline.stages import StageTrainer, learns_by_gradient, validation_figure

CHOICE_FILE = "blend.json"  # the chosen weights, in the folder of the stages
TEMPERATURES = (1.0, 0.5, 0.7, 1.4, 2.0)  # values to choose from; the first unless another is clearly better
TRANSFORM_REQUESTS = 1000  # maximum number of requests whose scores decide between share and softmax
MAX_SCORES = 2**30  # scores of a part on which weights are chosen; beyond them, a sample of the requests
BLOCK_SCORES = 2**21  # scores of a part in memory at a time: 8 MiB, and several copies of them


def fit_blend(
    model: Blend, train: Dataset, split: Split | None, recipe: Recipe, options: FitOptions, *, subfolder: str = ""
) -> None:
    """Fit every part of a blend as if it were alone, and choose their weights on the validation requests.

    Args:
        model: the blend to fit, in place.
        train: training data.
        split: the split that `train` is part of; None: this is a refit of the run in the parent folder, whose numbers
            of epochs and weights are used again.
        recipe: settings of the run.
        options: how and where to train.
        subfolder: folder of the parts within that of the stages, if the blend is a part of another model.

    Raises:
        UserError: a part cannot learn alone, or its scores do not suit its transform.

    """
    num_fits = sum(learns_by_gradient(part.model) for part in model.config.parts.values())
    stages = StageTrainer(recipe, options, num_fits=num_fits, is_refit=split is None, subfolder=subfolder)
    for name in model.part_names:
        part = stages.untrained(partial(model.reset_part, name))
        stages.fit(name, part, train, validate=None if split is None else validation_figure(part, split))
    model.set_popularity_from(train)
    file = stages.first_folder / CHOICE_FILE
    if split is None or (options.resume and file.is_file()):
        model.use(_read_choice(file))
    else:
        options.log("weights ...")
        uses = choose_uses(model, split.validation, log=options.log)
        model.use(uses)
        processes.run_on_rank_zero(lambda: write_json(file, {name: asdict(use) for name, use in uses.items()}))
    for name, use in model.uses.items():
        options.log(f"{name}: weight {use.weight:.4g}, {use.transform}, temperature {use.temperature:g}")


def _read_choice(file: Path) -> dict[str, PartUse]:
    """Read the chosen weights of a run. Raises UserError if the file is missing or damaged."""
    try:
        return {name: PartUse(**use) for name, use in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); train again with --overwrite") from None


@torch.inference_mode()
def choose_uses(model: Blend, validation: SequenceBatch, *, log: Log = silent) -> dict[str, PartUse]:
    """Return how to use each part of a trained blend, so that NDCG@10 on the validation requests is highest.

    Args:
        model: the blend, whose parts are trained.
        validation: requests with targets. If there are very many, an evenly spaced sample of them is used.
        log: function that is called with a note if a sample is used.

    Raises:
        UserError: a part has negative scores and the transform "share", or scores that are not finite.

    """
    model.eval()
    options = {name: _options(model, name, validation) for name in model.part_names}
    fixed_weights = model.config.fixed_weights()
    if None not in fixed_weights and all(len(uses) == 1 for uses in options.values()):
        weights, numbers = [cast(float, weight) for weight in fixed_weights], [0] * len(options)
    else:
        requests = validation.sample(max(1, MAX_SCORES // (model.num_items + 1)))
        if requests.num_requests < validation.num_requests:
            counts = f"{requests.num_requests:,} of {validation.num_requests:,}"
            log(f"note: weights are chosen on {counts} validation requests, evenly spaced")
        blocks = _blocks(model, requests, list(options.values()))
        ranks = target_ranks(blocks, model.popularity, num_parts=len(options))
        best = choose_mixture(ranks, fixed_weights)
        weights, numbers = list(best.weights), list(best.options)
    return {
        name: replace(uses[number], weight=weight)
        for (name, uses), number, weight in zip(options.items(), numbers, weights, strict=True)
    }


def _options(model: Blend, name: str, validation: SequenceBatch) -> list[PartUse]:
    """Return the ways to use a part that its settings leave open, the default first."""
    settings = model.config.parts[name]
    requests = validation.select((validation.items.lengths > 0).nonzero()[:, 0]).sample(TRANSFORM_REQUESTS)
    unseen = cast(Recommender, model.parts[model.part_names.index(name)]).unseen_items()
    try:
        defaults = {default_transform(scores, unseen=unseen) for _, scores in _part_scores(model, name, requests)}
    except ValueError as error:
        raise UserError(f"[model.parts.{name}] {settings.model['name']}: {error}; leave this part out") from None
    default: Transform = "softmax" if "softmax" in defaults else "share"
    transforms: Sequence[Transform] = (default,)
    if settings.transform == "validation":
        transforms = ("share", "softmax") if default == "share" else ("softmax",)
    elif settings.transform is not None:
        transforms = (settings.transform,)
    if default == "softmax" and "share" in transforms:
        raise UserError(
            f'[model.parts.{name}] transform = "share" needs scores of at least 0, and {settings.model["name"]} has '
            'negative ones; write transform = "softmax", or leave it out'
        )
    temperatures = TEMPERATURES if settings.temperature == "validation" else (settings.temperature,)
    return [PartUse(0.0, transform, temperature) for transform in transforms for temperature in temperatures]


def _blocks(
    model: Blend, requests: SequenceBatch, options: Sequence[Sequence[PartUse]]
) -> Iterator[tuple[SequenceBatch, list[list[Tensor]]]]:
    """Yield blocks of requests with the terms of every part under each of its options.

    Requests without a history, which popularity answers, come last; no part knows anything of them.
    """
    is_empty = requests.items.lengths == 0
    parts = [_part_scores(model, name, requests.select((~is_empty).nonzero()[:, 0])) for name in model.part_names]
    for blocks in zip(*parts, strict=True):
        terms = [
            model.part_terms(name, scores, uses)
            for name, (_, scores), uses in zip(model.part_names, blocks, options, strict=True)
        ]
        yield blocks[0][0], terms
    for block in requests.select(is_empty.nonzero()[:, 0]).split(_block_size(model)):
        nothing = model.popularity.new_zeros(block.num_requests, model.num_items + 1)
        yield block.to(nothing.device), [[nothing] * len(uses) for uses in options]


def _part_scores(model: Blend, name: str, requests: SequenceBatch) -> Iterator[tuple[SequenceBatch, Tensor]]:
    """Yield blocks of requests, on the device of the model, with the scores of one part [B, N + 1]."""
    for block in requests.split(_block_size(model)):
        moved = block.to(model.popularity.device)
        yield moved, model.part_scores(name, moved)


def _block_size(model: Blend) -> int:
    return max(1, BLOCK_SCORES // (model.num_items + 1))
