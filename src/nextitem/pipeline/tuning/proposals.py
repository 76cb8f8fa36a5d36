"""Proposals of settings to try next, by optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

A proposal is a function of the trials before it and of a seed. So a search that is resumed from its list of trials
goes on as it would have without the interruption, and no state of a sampler is ever saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nextitem.pipeline.tuning.space import Choices, Dimension, SearchSpace, Values, round_to_digits

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

RANDOM_TRIALS = 10  # trials with random settings, before the estimator has enough to learn from
ATTEMPTS, RANDOM_ATTEMPTS = 5, 50  # to propose settings that were not tried yet: by the estimator, then at random
COMPARED_TRIALS = 5  # trials of which as many validations must be known before training is ended early
FIRST_VALIDATIONS = 2  # validations after which training is never ended early


class EarlierTrial(Protocol):
    """What a proposal reads of an earlier trial."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Value of each setting that was varied."""

    @property
    def state(self) -> str:
        """State of the trial: "complete", "pruned", "failed", or "running"."""


def propose(
    space: SearchSpace, trials: Sequence[tuple[EarlierTrial, float | None]], *, number: int, seed: int
) -> dict[str, Any] | None:
    """Return settings to try next, or None if everything seems to have been tried.

    Args:
        space: the search space.
        trials: the trials before, in order, with their figures; None for a trial without a figure.
        number: number of the trial that the settings are for.
        seed: seed of the search.

    """
    tried_settings = [dict(trial.settings) for trial, _ in trials]
    for attempt in range(ATTEMPTS + RANDOM_ATTEMPTS):
        numbers = np.random.SeedSequence([seed, number, attempt])
        settings = _propose(space, trials, seed=int(numbers.generate_state(1)[0]), is_random=attempt >= ATTEMPTS)
        if settings not in tried_settings:
            return settings
    return None


def importances(space: SearchSpace, trials: Sequence[tuple[EarlierTrial, float | None]]) -> dict[str, float]:
    """Return how much of the variance of the figure each setting explains (fANOVA, Hutter et al. 2014), by key.

    Only settings that all complete trials have in common are compared. Empty if there are too few trials.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    complete = [(trial, value) for trial, value in trials if trial.state == "complete"]
    if len({value for _, value in complete}) < 2:
        return {}
    with _quiet():
        study = _study(space, complete, seed=0, is_random=True)
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def is_hopeless(curve: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Return whether training is to be ended: its best figure is below the median of others after as many validations.

    Args:
        curve: figures of the validations so far; NaN if a figure was not defined.
        others: figures of the validations of earlier trials.

    """
    step = len(curve) - 1
    comparable = [value for other in others if len(other) > step for value in [other[step]] if value == value]
    defined = [value for value in curve if value == value]
    if step < FIRST_VALIDATIONS or len(comparable) < COMPARED_TRIALS or not defined:
        return False
    return max(defined) < float(np.median(comparable))


def _propose(
    space: SearchSpace, trials: Sequence[tuple[EarlierTrial, float | None]], *, seed: int, is_random: bool
) -> dict[str, Any]:
    with _quiet():
        trial = _study(space, trials, seed=seed, is_random=is_random).ask()

        def choose(dimension: Dimension, default: Any) -> Any:
            return _value(dimension.values, _ask(trial, dimension))

        return space.select(choose)


def _study(
    space: SearchSpace, trials: Sequence[tuple[EarlierTrial, float | None]], *, seed: int, is_random: bool
) -> Study:
    """Return a study that contains the trials so far."""
    from optuna import create_study
    from optuna.samplers import RandomSampler, TPESampler

    has_kinds = any(dimension.kinds for dimension in space.dimensions)
    sampler = (
        RandomSampler(seed=seed)
        if is_random
        else TPESampler(
            seed=seed, n_startup_trials=RANDOM_TRIALS, multivariate=True, group=has_kinds, constant_liar=True
        )
    )
    study = create_study(direction="maximize", sampler=sampler)
    study.add_trials([_frozen(space, trial, value) for trial, value in trials])
    return study


def _frozen(space: SearchSpace, trial: EarlierTrial, figure: float | None) -> FrozenTrial:
    """Return a trial in optuna's form."""
    from optuna.trial import TrialState, create_trial

    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}

    def choose(dimension: Dimension, default: Any) -> Any:
        if dimension.name not in trial.settings:
            return default
        value = trial.settings[dimension.name]
        if dimension.values.contains(value):
            distributions[dimension.key] = _distribution(dimension.values)
            params[dimension.key] = _stored(dimension.values, value)
        return value

    space.select(choose)
    state = {"complete": "COMPLETE", "pruned": "PRUNED", "running": "RUNNING"}.get(trial.state, "FAIL")
    return create_trial(
        state=TrialState[state],
        value=figure if state == "COMPLETE" else None,
        params=params,
        distributions=distributions,
        intermediate_values={0: figure} if state == "PRUNED" and figure is not None else None,
    )


def _ask(trial: OptunaTrial, dimension: Dimension) -> Any:
    """Return what optuna proposes for a dimension, in its own form."""
    key, values = dimension.key, dimension.values
    if isinstance(values, Choices):
        count = len(values.values)
        return (
            trial.suggest_int(key, 0, count - 1) if values.is_ordered else trial.suggest_categorical(key, range(count))
        )
    if values.is_integer:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.is_log)
    return trial.suggest_float(key, values.low, values.high, log=values.is_log)


def _distribution(values: Values) -> BaseDistribution:
    """Return the values of a dimension in optuna's form; of a list, the places are stored."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Choices):
        if values.is_ordered:
            return IntDistribution(0, len(values.values) - 1)
        return CategoricalDistribution(range(len(values.values)))
    if values.is_integer:
        return IntDistribution(int(values.low), int(values.high), log=values.is_log)
    return FloatDistribution(values.low, values.high, log=values.is_log)


def _stored(values: Values, value: Any) -> Any:
    """Return what optuna stores for a value."""
    if isinstance(values, Choices):
        return values.place_of(value)
    return int(value) if values.is_integer else float(value)


def _value(values: Values, stored: Any) -> Any:
    """Return the value that optuna has stored."""
    return values.values[stored] if isinstance(values, Choices) else round_to_digits(stored, values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide optuna's messages and its warnings of options that may change."""
    from optuna import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
