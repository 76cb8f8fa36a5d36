"""A guided generator, the same generator alone and its guide alone, over several seeds, with paired intervals.

    python benchmarks/guided.py amazon14-beauty/depth-decoder DATASET_FOLDER [--seeds 0 1 2] [--refit]
        [--others sasrec=amazon14-beauty/sasrec] [--set training.max_epochs=12]

Trains through `nextitem.train`, which chooses the weight of the guide on validation requests. Prints one JSON line for
each seed, then means and spreads (largest minus smallest). Recall and NDCG are of the test requests, over the full
catalogue; `gain` is guided minus the other, per request, with its 95% interval. The slice `generalization` contains the
requests whose target did not follow the last item in training. If the guide is a blend, its parts are judged alone, and
as guides by themselves, too ("guided by NAME"; not with --refit, as their weights come from validation requests).
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import cast

import torch
from measure import Results, parser

import nextitem as ni
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.evaluation.evaluate import Evaluation, evaluate_lists
from nextitem.evaluation.intervals import paired_difference
from nextitem.models.blend import Blend
from nextitem.pipeline.guide import choose_use
from nextitem.recipes import read_recipe

METRICS = ("recall@10", "ndcg@10")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("recipe")
    options.add_argument("folder")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--refit", action="store_true")
    options.add_argument("--others", nargs="*", default=[], help="further models to compare with: name=recipe")
    options.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings that differ from the recipe")
    arguments = options.parse_args()
    results = Results(arguments)
    dataset = load_dataset(arguments.folder)
    tables = read_recipe(arguments.recipe)[1]
    split = make_split(dataset, tables.get("data", {}).get("protocol"))
    train = split.refit() if arguments.refit else split.train
    values: dict[str, list[float]] = {}

    def judge(model: Recommender) -> Evaluation:
        return evaluate_lists(model, split.test, train=train)

    def run_of(name: str, recipe: str, seed: int, overrides: list[str]) -> ni.Run:
        return ni.train(
            name,
            dataset,
            out=Path(folder) / f"{name}-{seed}",
            recipe=recipe,
            refit=arguments.refit,
            seed=seed,
            overrides=overrides,
            progress=False,
        )

    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            run = run_of(tables["model"]["name"], arguments.recipe, seed, arguments.overrides)
            model = cast(GuidedRecommender, run.model)
            guidance = model.guidance
            assert guidance is not None
            use = guidance.chosen_use
            row: dict[str, object] = {"weight": use.weight, "combine": use.combine}
            evaluations = {"guided": judge(model), "guide": judge(guidance.scorer)}
            if isinstance(guidance.scorer, Blend):
                parts = dict(zip(guidance.scorer.part_names, guidance.scorer.parts, strict=True))
                row["parts"] = {name: round(use.weight, 3) for name, use in guidance.scorer.uses.items()}
                for name, part in parts.items():
                    evaluations[name] = judge(cast(Recommender, part))
                    if not arguments.refit:
                        guidance.scorer = cast(Recommender, part)
                        guidance.use(choose_use(model, split.validation))
                        row[f"weight of {name}"] = guidance.chosen_use.weight
                        evaluations[f"guided by {name}"] = judge(model)
            evaluations["alone"] = judge(model.without_guide())
            for text in arguments.others:
                name, _, recipe = text.partition("=")
                evaluations[name] = judge(run_of(name, recipe, seed, []).model)
            row["train_minutes"] = round(run.metrics["train_seconds"] / 60, 2)
            for name, evaluation in evaluations.items():
                for metric in METRICS:
                    values.setdefault(f"{name} {metric}", []).append(evaluation.metrics[metric])
                    row[f"{name} {metric}"] = round(evaluation.metrics[metric], 4)
                slice_figures = evaluation.slices.get("generalization", {})
                row[f"{name} generalization"] = [round(slice_figures.get(metric, 0.0), 4) for metric in METRICS]
                if name != "guided":
                    gain = paired_difference(evaluations["guided"].values["ndcg@10"], evaluation.values["ndcg@10"])
                    row[f"gain over {name}"] = [round(part, 4) for part in (gain.mean, gain.low, gain.high)]
            results.add_printed(f"seed {seed}", {"seed": seed, "refit": arguments.refit, **row})
    summary: dict[str, float] = {}
    for name, figures in values.items():
        summary[name] = round(statistics.mean(figures), 4)
        summary[f"{name} spread"] = round(max(figures) - min(figures), 4)
    about = {"data": Path(arguments.folder).name, "recipe": arguments.recipe, "refit": arguments.refit}
    about |= {"set": arguments.overrides, "threads": torch.get_num_threads()}
    results.add_printed("mean and spread", {**about, **summary})


if __name__ == "__main__":
    main()
