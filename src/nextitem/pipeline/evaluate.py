"""Evaluation of a run on the test requests of its data and protocol."""

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
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.distributed import processes
from nextitem.evaluation.evaluate import Evaluation, evaluate_lists
from nextitem.evaluation.evaluate_ranking import evaluate_ranker
from nextitem.evaluation.funnel import funnel
from nextitem.evaluation.generation import generates_codes, generation_report
from nextitem.evaluation.part_figures import part_figures
from nextitem.models.blend import Blend
from nextitem.pipeline.options import Log, silent
from nextitem.pipeline.runs import Run, aligned, load_run

KS = (5, 10, 20)  # list lengths at which metrics are computed


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
    """Evaluate a run on the test requests of its data and protocol.

    Args:
        run: a run, or its folder.
        data: a data set, or the path of its folder; None: the data that the run was trained on.
        protocol: how the data are split; None: the protocol that the run was trained under.
        allow_other_data: accept data or a protocol that the run was not trained for. The figures may then be too good,
            as test targets may be among the run's training events.
        device: where to compute: auto, cpu or cuda; None: the device that the model is on.
        progress: show a progress bar on a terminal.
        generation: number of test requests on which to measure how a model that generates codes does so; None: do not.
        log: function that is called with each note, such as the number of users without a request; None: no notes.

    Returns:
        Metrics with 95% intervals, slices, and the recommended lists.

    Raises:
        UserError: other data or another protocol without `allow_other_data`, or `generation` for a model that generates
            no codes.

    Examples:
        >>> evaluation = ni.evaluate("runs/sasrec")
        >>> evaluation.metrics["recall@10"]

    """
    log = log if log is not None and processes.rank() == 0 else silent
    run = load_run(run) if not isinstance(run, Run) else run
    if device is not None:
        run.to(device)
    table = run.recipe.data
    if isinstance(data, Dataset):
        dataset = data
    elif data is None and run.has_dataset:
        dataset = run.dataset
    else:
        source = table.path if data is None else data
        dataset = load_dataset(source, drop_unknown_items=table.drop_unknown_items)
    if not allow_other_data:
        if dataset.fingerprint != table.fingerprint:
            raise UserError(
                f"{dataset.name} is not the data that {run.folder} was trained on ({table.path}): "
                "its test targets may have been learnt; add --allow-other-data to evaluate anyway"
            )
        if protocol is not None and protocol != table.protocol:
            raise UserError(
                f"{run.folder} was trained under protocol {table.protocol}: under {protocol} its test targets "
                "may have been learnt; add --allow-other-data to evaluate anyway"
            )
    split = split_for(aligned(dataset, run.model), protocol or table.protocol, models=[run.name], seed=run.recipe.seed)
    for note in (*dataset.notes, *split.notes):
        log(f"note: {note}")
    if generation is not None and not generates_codes(run.model):
        raise UserError(f"{run.name} does not generate items code by code: omit --generation")
    figures = evaluate_split(run, split, progress=progress)
    return figures if generation is None else replace(figures, generation=generation_quality(run, split, generation))


def generation_quality(run: Run, split: Split, num_requests: int) -> dict[str, Any] | None:
    """Measure how a model generates codes, on `num_requests` sampled test requests; None if it generates none.

    Requests without an event are skipped: popularity answers them.
    """
    if not generates_codes(run.model):
        return None
    with_history = split.test.select((split.test.items.lengths > 0).nonzero()[:, 0])
    width = run.recipe.model["beam_width"]
    return generation_report(run.model, with_history.sample(num_requests), beam_width=width)


def split_for(dataset: Dataset, protocol: str | None, *, models: Sequence[str], seed: int) -> Split:
    """Split a data set for the evaluation of these models.

    Args:
        dataset: the data to split.
        protocol: name of the protocol; None: the default of the data.
        models: names of the models, to check that they can be evaluated under the protocol.
        seed: seed of a protocol that samples users.

    Raises:
        UserError: the protocol is unknown or does not suit the data, or it evaluates the scores of rankers and one of
            the models returns lists.

    """
    split = make_split(dataset, protocol, seed=seed)
    if split.judges_scores:
        for name in models:
            if not issubclass(registry.entry("model", name).load(), Ranker):
                can_change = len(dataset.interactions) > 0
                remedy = "choose another with --protocol" if can_change else "this data allows no other protocol"
                raise UserError(
                    f"protocol {split.protocol} evaluates the scores of a ranker on logged impressions, and {name} "
                    f"returns lists of its own; {remedy}, or use a ranker: lr, din, ..."
                )
    return split


def evaluate_split(run: Run, split: Split, *, progress: bool = False) -> Evaluation:
    """Evaluate a run on the test requests of a split: lists, or scores of logged impressions."""
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
    if isinstance(run.model, Blend):
        parts = part_figures(run.model, figures, split.test, ks=KS, progress=progress)
        return replace(figures, parts=[part.to_json() for part in parts])
    if isinstance(run.model, GuidedRecommender) and run.model.guidance is not None and run.model.is_guided:
        use = run.model.guidance.chosen_use
        guide = {"model": run.model.guidance.config.model["name"], "weight": use.weight, "combine": use.combine}
        return replace(figures, guide=guide)
    if not isinstance(run.model, Staged):
        return figures
    with_history = split.test.select((split.test.items.lengths > 0).nonzero()[:, 0])
    return replace(figures, funnel=[stage.to_json() for stage in funnel(run.model, with_history)])
