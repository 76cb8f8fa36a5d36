"""At which level of the codes does each generator lose the true item, side by side.

    python benchmarks/prefix_survival.py amazon14-beauty/depth-decoder amazon14-beauty/tiger-small RUN DATASET_FOLDER
        [--beams 10 20 50 100] [--requests 2000] [--split validation] [--minutes 6] [--set model.dropout=0.2]

Each model is a recipe, which is trained first, or the folder of a run on these data. Measured on test or validation
requests with their first target, spread evenly; all models get the same requests. Three shares of requests for each
level (evaluation/generation.py): the best code after the true prefix is true; the greedy code is true after the codes
that the search chose itself; the true prefix is among the beams. A guided model is measured with its guide and alone.

Prints a JSON line for each model and search, then the table. Levels of two models differ in number and meaning. The
last level is the item itself, so these figures can be compared, unless codes name buckets of items (cobra).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import Results, Stopwatch, parser

import nextitem as ni
from nextitem.core.recommender import Recommender
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.evaluation.generation import generates_codes, prefix_survival
from nextitem.recipes import read_recipe


def main() -> None:
    options = parser(__doc__, requests=2000, seed=0)
    options.add_argument("models", nargs="+", help="recipes to train, or folders of runs")
    options.add_argument("folder", help="dataset folder, or shop")
    options.add_argument("--beams", type=int, nargs="+", default=[10, 20, 50, 100])
    options.add_argument("--split", choices=("test", "validation"), default="test")
    options.add_argument("--minutes", type=float, help="maximum training time of each recipe; default: as it says")
    options.add_argument("--set", dest="overrides", nargs="+", default=[], help="settings that differ from the recipes")
    arguments = options.parse_args()
    results = Results(arguments)
    dataset = load_dataset(arguments.folder)
    columns: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(arguments.models):
            if (Path(name) / "recipe.toml").is_file():
                run = ni.load_run(name)
            else:
                run = ni.train(
                    read_recipe(name)[1]["model"]["name"],
                    dataset,
                    out=Path(folder) / str(number),
                    recipe=name,
                    seed=arguments.seed,
                    minutes=arguments.minutes,
                    overrides=arguments.overrides,
                    progress=False,
                )
            if run.model.catalog.fingerprint != dataset.catalog.fingerprint:
                raise SystemExit(f"{name}: a run on other items than those of {arguments.folder}")
            split = make_split(dataset, run.recipe.data.protocol, seed=run.recipe.data.split_seed or 0)
            requests = split.test if arguments.split == "test" else split.validation
            requests = requests.select((requests.items.lengths > 0).nonzero()[:, 0]).sample(arguments.requests)
            about: dict[str, object] = {"model": run.name, "run": name, "split": arguments.split}
            about["train_minutes"] = round(run.metrics.get("train_seconds", 0.0) / 60, 2)
            about["recall@10"] = run.metrics.get("metrics", {}).get("recall@10")  # of all test requests, as trained
            for search, model in searches(run.model).items():
                assert generates_codes(model), f"{name} generates no codes"
                with Stopwatch() as watch:
                    figures = prefix_survival(model, requests, beam_widths=arguments.beams)
                label = f"{run.name} {search}".strip()
                columns[label if label not in columns else f"{label} ({name})"] = figures
                row = {**about, "search": search, "codes": list(model.trie.codebook_sizes), **rounded(figures)}
                results.add_printed(label, {**row, "seconds": round(watch.seconds, 1)})
    print_table(columns, arguments.beams)
    print(f"{Path(arguments.folder).name}, {arguments.split} requests, threads {torch.get_num_threads()}")


def searches(model: Recommender) -> dict[str, Recommender]:
    """Return the model under "", or as "guided" and "alone" if it has a guide."""
    if isinstance(model, GuidedRecommender) and model.is_guided:
        return {"guided": model, "alone": model.without_guide()}
    return {"": model}


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures with their shares rounded to four digits."""
    shares = {name: [round(share, 4) for share in figures[name]] for name in ("teacher_forced", "free_running")}
    survival = {width: [round(share, 4) for share in levels] for width, levels in figures["survival"].items()}
    return {**figures, **shares, "survival": survival}


def print_table(columns: dict[str, dict[str, Any]], beams: list[int]) -> None:
    """Print one line for each figure and level, and one column for each model and search."""
    parts = {
        "after true codes": [figures["teacher_forced"] for figures in columns.values()],
        "after own codes": [figures["free_running"] for figures in columns.values()],
        **{f"among {width} beams": [figures["survival"][width] for figures in columns.values()] for width in beams},
    }
    num_levels = max(len(figures["teacher_forced"]) for figures in columns.values())
    lines = [["figure", "level", *columns]]
    for name, by_model in parts.items():
        for level in range(num_levels):
            cells = [f"{shares[level]:.1%}" if level < len(shares) else "-" for shares in by_model]
            lines.append([name, str(level + 1), *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
