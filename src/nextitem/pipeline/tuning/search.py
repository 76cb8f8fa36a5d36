"""Search over the trials of a tuning: proposes settings, runs them, and records every trial in trials.jsonl."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.pipeline.folders import read_records
from nextitem.pipeline.options import Log, silent
from nextitem.pipeline.tuning.processes import trial_processes
from nextitem.pipeline.tuning.proposals import propose
from nextitem.pipeline.tuning.trials import Confirmation, Trial, TrialRunner, confirm

TRIALS_FILE = "trials.jsonl"


@dataclass
class Search:
    """A search for settings.

    Attributes:
        runner: runs the trials.
        folder: the folder of trials.jsonl.
        seed: seed of the proposals.
        log: function that is called with a line for each trial.
        trials: the trials so far, in the order in which they ended.

    """

    runner: TrialRunner
    folder: Path
    seed: int
    log: Log = silent
    trials: list[Trial] = field(default_factory=list)
    _models: dict[int, list[Recommender]] = field(default_factory=dict)  # of the default and the best trial

    def run(self, *, num_trials: int | None, minutes: float | None, jobs: int = 1) -> bool:
        """Run trials until a budget is spent, or nothing new is found to try.

        Args:
            num_trials: number of trials, those before a resumption included; None: no limit.
            minutes: duration, that before a resumption included; None: no limit. A trial is not started if the mean
                duration of the trials so far says that it would end later.
            jobs: number of trials that run at the same time.

        Returns:
            Whether the search has ended by itself; False after Ctrl-C.

        Raises:
            UserError: the default settings fail.

        """
        start_time = time.perf_counter() - (self.trials[-1].elapsed if self.trials else 0.0)
        running_trials: dict[Future[Trial], Trial] = {}
        try:
            with trial_processes(self.runner, jobs) as submit:
                while True:
                    # The first trial runs alone: the others are measured by it.
                    while len(running_trials) < (jobs if self.trials else 1):
                        elapsed = time.perf_counter() - start_time
                        if not self._has_budget(len(running_trials), elapsed, num_trials, minutes):
                            break
                        trial = self._next(list(running_trials.values()))
                        if trial is None:
                            break
                        running_trials[submit(trial.number, trial.settings, tuple(self.trials))] = trial
                    if not running_trials:
                        return True
                    for future in wait(running_trials, return_when=FIRST_COMPLETED).done:
                        running_trials.pop(future)
                        self._record(replace(future.result(), elapsed=time.perf_counter() - start_time))
        except KeyboardInterrupt:
            return False

    def _has_budget(self, num_running: int, elapsed: float, num_trials: int | None, minutes: float | None) -> bool:
        """Return whether another trial may be started."""
        if num_trials is not None and len(self.trials) + num_running >= num_trials:
            return False
        if minutes is None or not self.trials:
            return True
        expected = sum(trial.seconds for trial in self.trials) / len(self.trials)
        return elapsed + expected < 60 * minutes

    def _next(self, running_trials: Sequence[Trial]) -> Trial | None:
        """Return the next trial, to be run; None if no new settings are found."""
        if not self.trials:
            return Trial(0, self.runner.space.default(), "running", {}, {}, 0.0)
        trials = [*self.trials, *running_trials]
        number = 1 + max(trial.number for trial in trials)
        figures = [(trial, self._objective(trial)) for trial in trials]
        settings = propose(self.runner.space, figures, number=number, seed=self.seed)
        if settings is None:
            if not running_trials:
                self.log("no settings are left that were not tried")
            return None
        return Trial(number, settings, "running", {}, {}, 0.0)

    def _objective(self, trial: Trial) -> float | None:
        return None if trial.state == "running" else trial.objective(self.trials[0])

    def _record(self, trial: Trial) -> None:
        """Append a trial to the list and to trials.jsonl, and keep the models of the default and the best one."""
        if not self.trials and len(trial.values) > 1:
            for name, value in trial.values.items():
                if value <= 0:
                    raise UserError(
                        f"{name}: {self.runner.metric} of the default settings is {value:g}, so nothing can be "
                        "measured relative to it; choose another --metric, or tune on the other data alone"
                    )
        self.trials.append(trial)
        with (self.folder / TRIALS_FILE).open("a", encoding="utf-8") as file:
            file.write(trial.to_json() + "\n")
        best = best_of(self.trials)
        if self.runner.models and trial.number in (0, best.number):
            self._models[trial.number] = self.runner.models
            self._models = {number: models for number, models in self._models.items() if number in (0, best.number)}
        figure = self._objective(trial)
        text = f"failed: {trial.reason}" if figure is None else f"{figure:.4f}"
        ended_early = " (ended early)" if trial.state == "pruned" else ""
        best_figure = self._objective(best)
        assert best_figure is not None
        best_text = f"best {best_figure:.4f} (trial {best.number})"
        self.log(f"trial {trial.number}: {text}{ended_early}, {best_text}, {trial.seconds:.1f} s")

    def confirmations(self, *, can_train: bool) -> list[Confirmation]:
        """Return the figures of the default and the best settings on the requests that were set aside.

        Args:
            can_train: whether models that are not in memory may be trained again: those of other processes, or of an
                earlier part of a resumed search.

        Returns:
            One entry for each data set with such requests; empty if the default settings are the best.

        """
        best = best_of(self.trials)
        numbers = (0, best.number)
        has_models = all(number in self._models for number in numbers)
        data = [each for each in self.runner.data if each.others is not None]
        if not data or best.number == 0 or not (has_models or can_train):
            return []
        for trial in (self.trials[0], best):
            if trial.number not in self._models:
                self.log(f"trial {trial.number} is trained again, for the requests that were set aside")
                if self.runner.run(trial.number, trial.settings).state != "complete":
                    return []
                self._models[trial.number] = self.runner.models
        return [
            confirm(each, default, best_model, metric=self.runner.metric)
            for each, default, best_model in zip(self.runner.data, *(self._models[n] for n in numbers), strict=True)
            if each.others is not None
        ]


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the complete trial with the highest objective; of equal ones the first."""
    complete = [(trial.objective(trials[0]), trial) for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda pair: (pair[0] or 0.0, -pair[1].number))[1]


def read_trials(folder: Path) -> list[Trial]:
    """Return the trials in trials.jsonl of a folder; see `read_records`. Raises UserError if the first is missing."""
    file = folder / TRIALS_FILE
    trials = read_records(file, Trial, way_out="search again with --overwrite")
    if trials and trials[0].number != 0:
        raise UserError(f"{file} does not begin with trial 0; search again with --overwrite")
    return trials
