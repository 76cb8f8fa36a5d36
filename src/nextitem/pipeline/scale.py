"""Scaling study of one family: sizes and shares of the data are trained, and a law is fitted to their losses."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from nextitem.core.config import Config, read_toml, to_toml_values, write_toml
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.data.readers import load_dataset
from nextitem.pipeline.evaluate import split_for
from nextitem.pipeline.folders import prepare_out
from nextitem.pipeline.options import Log, silent
from nextitem.pipeline.provenance import data_table
from nextitem.pipeline.recipe import Recipe, model_name, recipe_layers, resolve_recipe, run_arguments
from nextitem.pipeline.scaling.arguments import DATA_SHARES, LEARNING_RATES, SEEDS, SIZES, check_arguments
from nextitem.pipeline.scaling.families import Family, family_of
from nextitem.pipeline.scaling.outcome import Scaling
from nextitem.pipeline.scaling.points import POINTS_FILE, Point, PointKey, PointRunner, PreparedPoint, read_points
from nextitem.pipeline.stages import DEFAULT_METRIC
from nextitem.pipeline.train import IN_MEMORY

DEFINITION_FILE = "scale.toml"


def scale(
    model: str | type[Recommender],
    data: Dataset | str | Path,
    *,
    out: str | Path,
    sizes: Sequence[float] = SIZES,
    data_shares: Sequence[float] = DATA_SHARES,
    seeds: Sequence[int] = SEEDS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    minutes: float | None = None,
    points: int | None = None,
    settings: Mapping[str, Any] | Config | None = None,
    recipe: str | Path | None = None,
    ids: str | Path | None = None,
    protocol: str | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    drop_unknown_items: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    log: Log | None = None,
) -> Scaling:
    """Train sizes of a model on shares of the data, and fit laws of the loss over compute, parameters and examples.

    The largest size is not fitted but predicted. Test requests are never looked at. Writes report.html, results.json,
    scaling.png and points.jsonl into `out`.

    Args:
        model: the name of a family, or its class.
        data: a data set, the path of its folder, or "shop".
        out: the folder to write; refused if it is not empty.
        sizes: factors of the model's widths; depths are multiplied by the square root. Size 1 is the recipe.
        data_shares: shares of the training users.
        seeds: seeds; each size and share is trained once with each.
        learning_rates: factors of the learning rate; of each size and share, the best one counts. The learning rate of
            size 1 is that of the recipe, others have it divided by the square root of the size.
        minutes: duration; no point is started that is expected to end later.
        points: maximum number of points.
        settings: settings that differ from the recipe, as in `train`.
        recipe: a .toml file, or the name of a recipe that ships with the package; None: the default of the model.
        ids: a folder of semantic IDs, as `tokenize` writes it.
        protocol: how the data are split; None: that of the recipe, or the default of the data.
        device: where to compute: auto, cpu or cuda.
        overrides: settings as text, such as "training.max_epochs=8".
        drop_unknown_items: skip events of items that are not in the items table; otherwise they are an error.
        resume: continue the study in `out`; sizes, shares, seeds and learning rates may be added. Budgets count what it
            has already used.
        overwrite: replace a study that is in `out`.
        log: function that is called with each line of progress and each note; None: they are dropped.

    Returns:
        The points, the laws, the prediction and the verdict.

    Raises:
        UserError: a mistake in the data, the settings or the arguments, or a model without a count of its operations.

    Examples:
        >>> scaling = ni.scale("sasrec", "shop", out="runs/scaling", minutes=20)
        >>> scaling.verdict, scaling.laws
        >>> scaling.to_frame()

    """
    log = silent if log is None else log
    check_arguments(
        sizes=sizes, data_shares=data_shares, seeds=seeds, learning_rates=learning_rates, minutes=minutes, points=points
    )
    name = model_name(model)
    family = family_of(name)
    path = data if not isinstance(data, Dataset) else data.source or IN_MEMORY + data.name
    drop_unknown_items |= isinstance(data, Dataset) and data.drops_unknown_items
    arguments = run_arguments(name, str(path), protocol=protocol, drop=drop_unknown_items, ids=ids)
    resolved = resolve_recipe(
        recipe_layers(name, recipe=recipe, arguments=arguments, settings=settings), overrides=overrides
    )
    family.check(name, resolved.model)
    _check_sizes(family, resolved, sizes)
    if not isinstance(data, Dataset):
        data = load_dataset(data, drop_unknown_items=resolved.data.drop_unknown_items)
    split = split_for(data, resolved.data.protocol, models=[name], seed=resolved.seed)
    resolved = resolved.model_copy(update={"data": data_table(resolved.data, data, split)})
    folder = prepare_out(out, resume=resume, overwrite=overwrite)
    _begin(folder, resolved)
    for note in (*data.notes, *split.notes):
        if not note.startswith("test: "):
            log(f"note: {note}")
    runner = PointRunner(family, resolved, split, device=device)
    keys = [
        PointKey(size, share, seed, rate)
        for seed in seeds
        for share in sorted(data_shares, reverse=True)
        for size in sorted(sizes)
        for rate in learning_rates
    ]
    done = read_points(folder)
    is_complete = _train_points(runner, keys, done, folder, minutes=minutes, max_points=points, resume=resume, log=log)
    if not done:
        if not is_complete:
            raise KeyboardInterrupt
        raise UserError(f"--minutes {minutes:g}: no point fits; give more time, smaller --sizes or --data-shares")
    if not is_complete:
        log("interrupted: the points so far are kept; continue with --resume")
    loss = runner.loss_name(runner.prepare(done[0].key).model)
    merit = "auc" if split.judges_scores else DEFAULT_METRIC
    scaling = Scaling(folder, name, data.name, split.protocol, loss, merit, runner.num_judged, done)
    scaling.save()
    return scaling


def _train_points(
    runner: PointRunner,
    keys: Sequence[PointKey],
    done: list[Point],
    folder: Path,
    *,
    minutes: float | None,
    max_points: int | None,
    resume: bool,
    log: Log,
) -> bool:
    """Train the points that are not done, within the budgets, and append them to `done` and points.jsonl.

    Returns False after Ctrl-C.
    """
    start_time = time.perf_counter() - (done[-1].elapsed if done else 0.0)
    done_keys = {point.key for point in done}
    num_left_out = 0
    try:
        for key in keys:
            if key in done_keys:
                continue
            if max_points is not None and len(done) >= max_points:
                break
            point = runner.prepare(key)
            elapsed = time.perf_counter() - start_time
            if minutes is not None and elapsed + _expected_seconds(point, done) > 60 * minutes:
                num_left_out += 1
                continue
            result = runner.run(point, folder, resume=resume)
            if result is None:
                return False
            done.append(replace(result, elapsed=time.perf_counter() - start_time))
            with (folder / POINTS_FILE).open("a", encoding="utf-8") as file:
                file.write(done[-1].to_json() + "\n")
            log(_progress(done[-1], len(done), len(done_keys | set(keys))))
    except KeyboardInterrupt:
        return False
    if num_left_out:
        log(f"{num_left_out} points were left out, since they would have ended after --minutes {minutes:g}")
    return True


def _expected_seconds(point: PreparedPoint, done: Sequence[Point]) -> float:
    """Return how long a point is expected to take: by the rate of the points that are most like it; 0 for the first."""
    if not done:
        return 0.0
    like = min(done, key=lambda each: (abs(each.compute - point.planned_flops), -each.share))
    return point.planned_flops * like.seconds / (like.compute * like.epochs / like.best_epoch)


def _progress(point: Point, number: int, total: int) -> str:
    """Return the line of progress of a point."""
    rate = f", learning rate x {point.rate:g}" if point.rate != 1 else ""
    return (
        f"point {number} of {total}: size {point.size:g}, share {point.share:g}, seed {point.seed}{rate}: loss "
        f"{point.loss:.4f}, {point.compute:.3g} FLOPs, best epoch {point.best_epoch} of {point.epochs}, "
        f"{point.seconds:.1f} s"
    )


def _check_sizes(family: Family, recipe: Recipe, sizes: Sequence[float]) -> None:
    """Raise UserError if two sizes have the same settings, or a size has settings that the model refuses."""
    former: dict[str, float] = {}
    for size in sorted(sizes):
        settings = family.settings(recipe.model, size)
        text = ", ".join(f"{name} = {value}" for name, value in settings.items())
        if text in former:
            raise UserError(
                f"--sizes: {former[text]:g} and {size:g} are the same model ({text}); omit one, or raise the widths of "
                "size 1 with --set"
            )
        former[text] = size
        resolve_recipe([(f"size {size:g}", recipe.model_copy(update={"model": recipe.model | settings}).model_dump())])


def _begin(folder: Path, recipe: Recipe) -> None:
    """Write scale.toml, the settings of size 1, or check that the study in the folder has the same.

    Raises UserError if it has others.
    """
    file, definition = folder / DEFINITION_FILE, recipe.model_dump()
    if not file.is_file():
        write_toml(file, definition)
    elif read_toml(file) != tomllib.loads(tomli_w.dumps(to_toml_values(definition))):
        raise UserError(f"{folder} was begun with other settings or data; resume with the same, or use --overwrite")
