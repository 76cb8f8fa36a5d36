"""Model card of a run: README.md with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextitem.core.registry import MODELS
from nextitem.pipeline.runs import Run

METRICS = ("recall@10", "ndcg@10", "mrr@10", "set_recall@10", "coverage@10", "auc", "gauc", "log_loss")
TASK = "recommendation"

CARD = """# {repo}

A recommender of [nextitem](https://pypi.org/project/nextitem): {summary}. It ranks {num_items:,} items for a history.

```
nextitem pull {repo} --out run
```

```python
import nextitem as ni

run = ni.load_run("run")
print(run.recommend(history={history}, k=10))
```

## Data and figures

Trained on the data set {data}, protocol `{protocol}`, {refit}. The data are not part of this repository.
`catalog.parquet` contains the ids and columns of the items, `recipe.toml` all settings, among them the folder of the
data.

{metrics}

## Limits

It knows the items of its catalogue alone, and recommends what such histories led to before. It was judged on one data
set; measure it on yours with `nextitem evaluate`.
"""


def model_card(run: Run, repo: str, *, license: str) -> str:
    """Return the text of README.md, which begins with metadata as YAML: tags, licence, and the metrics of the run."""
    from huggingface_hub import EvalResult, ModelCardData

    data = _data_name(run)
    values = _metrics(run)
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Next-item recommendation",
            dataset_type=data,
            dataset_name=data,
            dataset_config=str(run.recipe.data.protocol),
            dataset_split="test",
            metric_type=name,
            metric_name=name,
            metric_value=value,
        )
        for name, value in values.items()
    ]
    figures: dict[str, Any] = {"model_name": repo.rsplit("/", 1)[-1], "eval_results": results} if results else {}
    metadata = ModelCardData(
        library_name="nextitem",
        license=license,
        tags=["nextitem", "recommender-system", "sequential-recommendation", _tag(run.name)],
        **figures,
    )
    rows = [f"| {name} | {value:.4f} |" for name, value in values.items()]
    table = "\n".join(["| metric | test |", "| --- | --- |", *rows]) if rows else "It has not been evaluated."
    text = CARD.format(
        repo=repo,
        summary=MODELS[run.name].summary if run.name in MODELS else run.name,
        num_items=run.model.num_items,
        history=run.model.catalog.ids.external.head(2).to_list(),
        data=data,
        protocol=run.recipe.data.protocol,
        refit="refit on validation events" if run.recipe.data.refit else "on training events only",
        metrics=table,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{text}"


def _metrics(run: Run) -> dict[str, float]:
    """Return the figures of metrics.json that a card states."""
    figures: dict[str, Any] = run.metrics.get("metrics", {})
    return {name: float(figures[name]) for name in METRICS if isinstance(figures.get(name), int | float)}


def _data_name(run: Run) -> str:
    """Return the name of the data set without the folder that contains it."""
    path = run.recipe.data.path
    return path.removeprefix("memory:") if path.startswith("memory:") else Path(path).name or path


def _tag(name: str) -> str:
    """Return the name of a model, or of a class, as a tag."""
    return name.rsplit(":", 1)[-1]
