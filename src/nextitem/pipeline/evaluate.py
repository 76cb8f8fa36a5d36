"""evaluate: the figures of a run on the test requests of its data and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nextitem.core import registry
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.roles import Ranker, Staged
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.distributed import processes
from nextitem.evaluation.evaluate import Evaluation, evaluate_lists
from nextitem.evaluation.evaluate_ranking import evaluate_ranker
from nextitem.evaluation.funnel import funnel
from nextitem.evaluation.generation import generates_codes, generation_report
from nextitem.pipeline.options import Log, silent
from nextitem.pipeline.runs import Run, aligned, load_run

KS = (5, 10, 20)


@processes.process_group()
def evaluate(
    run: Run | str | Path,
    data: Dataset | str | Path | None = None,
    *,
    protocol: str | None = None,
    allow_other_data: bool = False,
    device: str | None = None,
    progress: bool = False,
    generation: int | None = None,
    log: Log | None = None,
) -> Evaluation:
    """Compute the figures of a run on test requests.

    Args:
        run: a run, or its folder.
        data: a data set or its folder; None: the data that the run was trained on.
        protocol: None: the run's own.
        allow_other_data: evaluate on data or a protocol that the run was not trained for, too; its figures may then be
            too good, since the run may have learnt test targets.
        device: where to compute: auto, cpu or cuda; None: where the model is.
        progress: show a progress bar on a terminal.
        generation: report on so many requests how a model that generates codes does so.
        log: receives notes of what was left out; None: nothing is printed.

    Raises:
        UserError: other data or another protocol without `allow_other_data`, or `generation` for a model that generates
            no codes.

    """
    log = log if log is not None and processes.rank() == 0 else silent
    run = load_run(run) if not isinstance(run, Run) else run
    if device is not None:
        run.to(device)
    recipe = run.recipe.data
    if isinstance(data, Dataset):
        dataset = data
    elif data is None and run.is_holding_data:
        dataset = run.dataset
    else:
        source = recipe.path if data is None else data
        dataset = load_dataset(source, drop_unknown_items=recipe.drop_unknown_items)
    if not allow_other_data:
        if dataset.fingerprint != recipe.fingerprint:
            raise UserError(
                f"{dataset.name} is not the data that {run.folder} was trained on ({recipe.path}): "
                "its test targets may have been learnt; add --allow-other-data to evaluate all the same"
            )
        if protocol is not None and protocol != recipe.protocol:
            raise UserError(
                f"{run.folder} was trained under protocol {recipe.protocol}: under {protocol} its test targets "
                "may have been learnt; add --allow-other-data to evaluate all the same"
            )
    split = split_for(aligned(dataset, run.model), protocol or recipe.protocol, models=[run.name], seed=run.recipe.seed)
    for note in (*dataset.notes, *split.notes):
        log(f"note: {note}")
    if generation is not None and not generates_codes(run.model):
        raise UserError(f"{run.name} does not generate items code by code: leave --generation out")
    figures = evaluate_split(run, split, progress=progress)
    return figures if generation is None else replace(figures, generation=generation_quality(run, split, generation))


def generation_quality(run: Run, split: Split, num_requests: int) -> dict[str, Any] | None:
    """Report how a model generates codes, on a sample of the test requests; None if it generates none."""
    if not generates_codes(run.model):
        return None
    width = run.recipe.model["beam_width"]
    return generation_report(run.model, split.test.sample(num_requests), beam_width=width)


def split_for(dataset: Dataset, protocol: str | None, *, models: Sequence[str], seed: int) -> Split:
    """Make the split that these models are judged on; UserError if it asks for scores and one of them gives lists."""
    split = make_split(dataset, protocol, seed=seed)
    if split.judges_scores:
        for name in models:
            if not issubclass(registry.entry("model", name).load(), Ranker):
                ways = "choose another with --protocol" if len(dataset.interactions) else "this data holds nothing else"
                raise UserError(
                    f"protocol {split.protocol} judges the scores that a ranker gives to shown items, and {name} "
                    f"returns lists of its own; {ways}, or take a ranker: lr, din, ..."
                )
    return split


def evaluate_split(run: Run, split: Split, *, progress: bool = False) -> Evaluation:
    """Compute the figures of a run on a split's test requests."""
    if split.judges_scores:
        assert isinstance(run.model, Ranker)
        refit = run.recipe.data.refit
        return evaluate_ranker(run.model, split.test, model_name=run.name, refit=refit, progress=progress)
    figures = evaluate_lists(
        run.model,
        split.test,
        train=split.train,
        ks=KS,
        set_requests=split.test_later,
        model_name=run.name,
        protocol=split.protocol,
        refit=run.recipe.data.refit,
        progress=progress,
    )
    if not isinstance(run.model, Staged):
        return figures
    with_history = split.test.select((split.test.items.lengths > 0).nonzero()[:, 0])
    return replace(figures, funnel=[stage.to_json() for stage in funnel(run.model, with_history)])
