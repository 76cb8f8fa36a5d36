"""Outcome of a tuning: the trials, the best settings with their figures, and the files that contain them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import tomli_w

from nextitem.core.config import to_toml_values
from nextitem.pipeline.tuning.proposals import importances
from nextitem.pipeline.tuning.search import best_of
from nextitem.pipeline.tuning.space import Choices, Dimension, Range, SearchSpace, is_below, value_at
from nextitem.pipeline.tuning.trials import Confirmation, Trial
from nextitem.reporting.tuning_report import TuningFigure, TuningSlice, save_tuning_plot, setting_text

MAX_SLICES = 12  # settings whose values are plotted
NEAR_END = 0.1  # share of a logarithmic range that counts as its end


@dataclass(frozen=True)
class Tuning:
    """Outcome of a search for settings.

    Attributes:
        folder: the folder that contains best.toml, trials.jsonl and tuning.png.
        model: name of the model.
        metric: the figure that settings are chosen by.
        requests: number of validation requests that settings were chosen on, for each data set.
        trials: all trials; the first has the default settings.
        confirmations: figures on validation requests that the settings were not chosen on, for each data set that had
            enough of them; empty if the default settings are the best.
        space: the settings that were varied.
        tables: names of the settings and tables of a recipe that the model reads.

    """

    folder: Path
    model: str
    metric: str
    requests: dict[str, int]
    trials: list[Trial] = field(repr=False)
    confirmations: list[Confirmation] = field(repr=False)
    space: SearchSpace = field(repr=False)
    tables: tuple[str, ...] = field(repr=False)

    @property
    def default(self) -> Trial:
        """The trial with the default settings."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The best complete trial; of equal ones the first."""
        return best_of(self.trials)

    @property
    def title(self) -> str:
        """What was searched, in a line."""
        minutes, seconds = divmod(round(self.trials[-1].elapsed), 60)
        duration = f"{len(self.trials):,} trials, {minutes}:{seconds:02} minutes"
        return f"{self.model} on {', '.join(self.requests)} by {self.metric} on validation requests, {duration}"

    @property
    def recipe(self) -> Path:
        """The recipe with the best settings, for `train(recipe=...)`."""
        return self.folder / "best.toml"

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Default and best value of each setting that was varied and has an effect in the best trial."""
        return {name: (value_at(self.space.tables, name), value) for name, value in self.best.settings.items()}

    @property
    def notes(self) -> list[str]:
        """What a reader of the best settings should know, one sentence for each note."""
        notes = []
        if self.best.number:
            notes.append(
                f"the best of {len(self.trials)} trials was selected by these requests, so its figure is too optimistic"
            )
        tables = self.space.with_values(self.best.settings)
        for dimension in self.space.dimensions:
            has_effect = self.space.has_effect(dimension, tables)  # another kind may have a setting of this name
            end = _end_of(dimension, self.best.settings.get(dimension.name)) if has_effect else None
            if end is not None and self.best.number:
                notes.append(f"{dimension.name} is best near the {end} end of {dimension.values}: try a wider range")
        return notes

    @property
    def figures(self) -> list[TuningFigure]:
        """Figures of the default and the best settings: on the requests of the search, and on those set aside."""
        of_search = [
            TuningFigure(f"{name}: {count:,}, by which settings were selected", self.default.values[name], best)
            for (name, count), best in zip(self.requests.items(), self.best.values.values(), strict=True)
        ]
        others = [
            TuningFigure(f"{each.name}: {each.requests:,} others", each.default, each.best, each.difference)
            for each in self.confirmations
        ]
        return [*of_search, *others]

    def to_frame(self) -> pl.DataFrame:
        """Return a data frame with one row for each trial: number, state, figures, seconds and settings."""
        rows = [
            {
                "number": trial.number,
                "state": trial.state,
                **{name: trial.values.get(name) for name in self.default.values},
                "seconds": trial.seconds,
                **{dimension.name: None for dimension in self.space.dimensions},
                **trial.settings,
            }
            for trial in self.trials
        ]
        return pl.DataFrame(rows, infer_schema_length=None, strict=False)

    def __repr__(self) -> str:
        """Return the folder, and the default and best figure of each data set."""
        lines = [f"Tuning of {self.model} in {self.folder}: {len(self.trials)} trials, {self.metric} on validation"]
        for name, value in self.default.values.items():
            lines.append(f"  {name}: default {value:.4f}, best {self.best.values[name]:.4f}")
        return "\n".join(lines)

    def save_recipe(self) -> None:
        """Write best.toml, a recipe with the best settings; its comments contain the figures."""
        comments = [f"nextitem tune: the best settings of {self.title}"]
        comments += [
            f"{each.requests}: default {each.default:.4f}, best {each.best:.4f}, {each.change}" for each in self.figures
        ]
        comments += self.notes
        for name, (before, best) in self.changes.items():
            comments.append(f"{name}: {setting_text(before)} -> {setting_text(best)}")
        tables = self.space.with_values(self.best.settings)
        idle = self.space.idle(tables)
        model = {name: value for name, value in tables["model"].items() if not is_below(f"model.{name}", idle)}
        used_tables = {name: tables[name] for name in self.tables if tables[name] not in (None, {})}
        text = tomli_w.dumps(to_toml_values({**used_tables, "model": model}))
        header = "".join(f"# {line}\n" for line in comments)
        self.recipe.write_text(f"{header}\n{text}", encoding="utf-8")

    def save_plot(self) -> None:
        """Write tuning.png: the figures of the trials, in order and by the values of settings."""
        pairs = [(trial, trial.objective(self.default)) for trial in self.trials]
        variance_shares = importances(self.space, pairs)
        dimensions = sorted(self.space.dimensions, key=lambda each: -variance_shares.get(each.key, 0.0))
        slices = [
            each for each in (_slice(self.space, dimension, pairs) for dimension in dimensions) if each is not None
        ]
        default = self.default.objective(self.default)
        assert default is not None
        save_tuning_plot(
            self.folder / "tuning.png",
            [(trial.number, trial.state, objective) for trial, objective in pairs],
            slices[:MAX_SLICES],
            title=self.title,
            objective=self.metric if len(self.requests) == 1 else f"mean relative change of {self.metric}",
            default=default,
        )


def _slice(
    space: SearchSpace, dimension: Dimension, trials: Sequence[tuple[Trial, float | None]]
) -> TuningSlice | None:
    """Return the values of a setting over the complete trials; None if fewer than two have a value."""
    values, name = dimension.values, dimension.name
    points = [
        (trial.settings[name], objective)
        for trial, objective in trials
        if trial.state == "complete"
        and objective is not None
        and values.contains(trial.settings.get(name))
        and space.has_effect(dimension, space.with_values(trial.settings))
    ]
    if len(points) < 2:
        return None
    if isinstance(values, Range):
        return TuningSlice(dimension.key, points, ends=(values.low, values.high), is_log=values.is_log)
    if values.is_ordered:
        is_log = values.values[0] > 0
        return TuningSlice(dimension.key, points, ends=(values.values[0], values.values[-1]), is_log=is_log)
    return TuningSlice(dimension.key, sorted(points, key=lambda point: values.place_of(point[0])))


def _end_of(dimension: Dimension, value: Any) -> str | None:
    """Return at which end of its values, "lower" or "upper", a value is; None if at neither, or there is no order.

    The ends of a linear range are mostly limits of the setting itself, so they are not reported.
    """
    values = dimension.values
    if value is None:
        return None
    if isinstance(values, Choices):
        if not values.is_ordered or len(values.values) < 3:
            return None
        return {values.values[0]: "lower", values.values[-1]: "upper"}.get(value)
    if not values.is_log:
        return None
    place = math.log(value / values.low) / math.log(values.high / values.low)
    return "lower" if place < NEAR_END else "upper" if place > 1 - NEAR_END else None
