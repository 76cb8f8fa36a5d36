"""Training of a generator's guide, and the choice of its weight on validation requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.item_probabilities import Transform, default_transform
from nextitem.core.roles import ItemScorer
from nextitem.decoding.guidance import Guidance, GuidedRecommender, GuideUse
from nextitem.decoding.guide import Combination, Guide
from nextitem.distributed import processes
from nextitem.evaluation.metrics import accuracy
from nextitem.models.blend import Blend
from nextitem.pipeline.blend import fit_blend
from nextitem.pipeline.bundle import write_json
from nextitem.pipeline.options import FitOptions, Log, silent
from nextitem.pipeline.recipe import Recipe
from nextitem.pipeline.stages import StageTrainer, learns_by_gradient, validation_figure

STAGE = "guide"  # name of the stage, which is also its folder and, unless it is a blend, its table in [stages]
CHOICE_FILE = "guide.json"
CHOICE_REQUESTS = 4000  # maximum number of validation requests on which the weight is chosen
BLOCK = 256  # requests that are searched together
WEIGHTS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
NEAR = (-0.05, -0.025, 0.025)  # steps around the best of these weights
TEMPERATURES = (1.0, 0.7, 1.4)
TRANSFORM_REQUESTS = 1000  # maximum number of requests whose scores decide between share and softmax
K = 10


def fit_guide(
    model: GuidedRecommender, train: Dataset, split: Split | None, recipe: Recipe, options: FitOptions
) -> None:
    """Fit the guide of a trained generator, and choose its weight on the validation requests.

    Args:
        model: the generator, trained, with a guide.
        train: training data.
        split: the split that `train` is part of; None: this is a refit of the run in the parent folder, whose choice is
            used again.
        recipe: settings of the run.
        options: how and where to train.

    Raises:
        UserError: the guide, or a part of it, cannot learn alone, or its scores do not suit its transform.
        KeyboardInterrupt: training was interrupted.

    """
    guidance = model.guidance
    assert guidance is not None
    stages = StageTrainer(
        recipe, options, num_fits=int(learns_by_gradient(guidance.config.model)), is_refit=split is None
    )
    scorer = stages.untrained(guidance.reset_scorer)
    if isinstance(scorer, Blend):
        fit_blend(scorer, train, split, recipe, options, subfolder=STAGE)
        scorer.eval()
    else:
        stages.fit(STAGE, scorer, train, validate=None if split is None else validation_figure(scorer, split))
    scorer.requires_grad_(False).to(model.popularity.device)
    file = stages.first_folder / CHOICE_FILE
    if split is None or (options.resume and file.is_file()):
        guidance.use(_read_choice(file))
    else:
        use = choose_use(model, split.validation, log=options.log)
        guidance.use(use)
        processes.run_on_rank_zero(lambda: write_json(file, asdict(use)))
    use = guidance.chosen_use
    options.log(f"guide: weight {use.weight:.3g}, {use.combine}, {use.transform}, temperature {use.temperature:g}")


def _read_choice(file: Path) -> GuideUse:
    """Read the choice of a run. Raises UserError if the file is missing or damaged."""
    try:
        return GuideUse(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); train again with --overwrite") from None


@torch.inference_mode()
def choose_use(model: GuidedRecommender, validation: SequenceBatch, *, log: Log = silent) -> GuideUse:
    """Return how to use the guide, so that NDCG@10 on validation requests is highest.

    The weight is 0 unless the guide raises the figure by more than one standard error of the difference.

    Args:
        model: a trained generator with a trained guide.
        validation: requests with targets. If there are many, an evenly spaced sample of them is used.
        log: function that is called with a note if a sample is used, or if the guide does not help.

    Raises:
        UserError: the guide's scores do not suit its transform, or are not finite.

    """
    guidance = model.guidance
    assert guidance is not None
    model.eval()
    config = guidance.config
    requests = validation.select((validation.items.lengths > 0).nonzero()[:, 0])
    transform = _transform(guidance, requests.sample(TRANSFORM_REQUESTS))
    sample = requests.sample(CHOICE_REQUESTS)
    first = GuideUse(0.0, "mixture", transform, 1.0)
    if not isinstance(config.weight, str):
        weights: Sequence[float] = (config.weight,)
    elif sample.num_requests == 0:
        raise UserError('[model.guide] weight = "validation" needs validation requests, and there are none')
    else:
        weights = WEIGHTS
    temperatures = TEMPERATURES if config.temperature == "validation" else (config.temperature,)
    combinations: tuple[Combination, ...] = (
        ("mixture", "product") if config.combine == "validation" else (config.combine,)
    )
    uses = [
        replace(first, weight=weight, combine=combine, temperature=temperature)
        for combine in combinations
        for temperature in temperatures
        for weight in weights
    ]
    if len(uses) == 1:
        return uses[0]
    if sample.num_requests < requests.num_requests:
        counts = f"{sample.num_requests:,} of {requests.num_requests:,}"
        log(f"note: the guide's weight is chosen on {counts} validation requests, evenly spaced")
    values = dict(zip(uses, _ndcg(model, sample, uses), strict=True))
    best = max(uses, key=lambda use: float(values[use].mean()))
    if isinstance(config.weight, str):
        near = [round(best.weight + step, 3) for step in NEAR]
        further = [replace(best, weight=weight) for weight in near if 0 < weight < 1 and weight not in weights]
        values |= zip(further, _ndcg(model, sample, further), strict=True)
        best = max(values, key=lambda use: float(values[use].mean()))
        unguided = next(use for use in uses if use.weight == 0)
        gain = values[best] - values[unguided]
        if float(gain.mean()) <= float(gain.std()) / max(1, len(gain)) ** 0.5:
            log("note: the guide does not help on the validation requests; its weight is 0")
            return unguided
    return best


def _transform(guidance: Guidance, requests: SequenceBatch) -> Transform:
    """Return the transform of the settings, or the one that suits the scores of some requests."""
    scorer, config = guidance.scorer, guidance.config
    assert isinstance(scorer, ItemScorer)
    unseen, transforms = scorer.unseen_items(), set()
    try:
        for block in requests.split(BLOCK):
            transforms.add(default_transform(scorer.scores(block.to(scorer.popularity.device)), unseen=unseen))
    except ValueError as error:
        raise UserError(f"[model.guide] {config.model['name']}: {error}; use another guide") from None
    if config.transform == "share" and "softmax" in transforms:
        raise UserError(
            f'[model.guide] transform = "share" needs scores of at least 0, and {config.model["name"]} has negative '
            'ones; write transform = "softmax", or leave it out'
        )
    return config.transform or ("softmax" if "softmax" in transforms else "share")


def _ndcg(model: GuidedRecommender, requests: SequenceBatch, uses: Sequence[GuideUse]) -> list[Tensor]:
    """Return the NDCG@10 of each request [R] under each way to use the guide."""
    assert model.guidance is not None
    values: list[list[Tensor]] = [[] for _ in uses]
    for block in requests.split(BLOCK):
        moved = block.to(model.popularity.device)
        probabilities = {
            temperature: model.guidance.probabilities(moved, next(u for u in uses if u.temperature == temperature))
            for temperature in {use.temperature for use in uses}
        }
        assert block.targets is not None
        for use, parts in zip(uses, values, strict=True):
            guide = Guide(probabilities[use.temperature], use.weight, use.combine) if use.weight else None
            lists = model.search(moved, K, guide=guide).item_ids.cpu()
            parts.append(accuracy.ndcg(lists, block.targets, K))
    return [torch.cat(parts) if parts else torch.zeros(0) for parts in values]
