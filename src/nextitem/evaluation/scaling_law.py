"""Scaling laws: a loss that falls as powers of compute, or of parameters and examples, towards a floor.

    L(x_1, ..., x_K) = E + sum over k of A_k x_k ** -a_k

With K = 1 and compute this is L(C) = E + A C ** -a, with parameters and examples L(N, D) = E + A N ** -a + B D ** -b
(Hoffmann et al., arXiv 2203.15556, approach 3). The fit minimises the Huber loss of log L, from several starts, since
the problem is not convex. Intervals are those of a bootstrap of the residuals on two levels. Configurations (a size and
a share of the data) differ from the law, and the runs of a configuration (its seeds) differ from each other.

Shapes: n runs, K variables, P = 1 + 2 K numbers of a law, R replicates of the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

Array = NDArray[np.float64]

HUBER = 0.01  # residuals of log L beyond this count linearly: one percent of the loss
REPLICATES = 300
EXPONENTS = (0.1, 0.3, 0.6, 1.2)  # starts of the exponents ...
FLOORS = (0.05, 0.5, 0.9, 0.99)  # ... and of the floor, as shares of the lowest loss
LOWEST_FLOOR = 1e-4  # share of the lowest loss that counts as no floor
MIN_EXPONENT, MAX_EXPONENT = 1e-3, 5.0
LEVELS = (0.025, 0.975)
OTHER_STARTS = 4  # starts of a replicate beside the numbers of the law itself
MAX_STEPS = 120
MAX_STEP = 2.0  # largest change of a number in one step
MIN_GAIN = 1e-7  # relative gain of a step below which a problem is solved
MAX_DAMPING = 1e6


@dataclass(frozen=True)
class ScalingLaw:
    """A law L(x) = floor + sum over k of coefficients[k] * x_k ** -exponents[k].

    Attributes:
        floor: the loss that more of everything does not go below (E).
        coefficients: one for each variable (A, B, ...).
        exponents: one for each variable (a, b, ...).

    """

    floor: float
    coefficients: tuple[float, ...]
    exponents: tuple[float, ...]

    def __call__(self, inputs: Array) -> Array:
        """Return the losses [n] at the inputs [n, K]."""
        return self.floor + self.reducible(inputs)

    def reducible(self, inputs: Array) -> Array:
        """Return the part of the losses above the floor, [n], at the inputs [n, K]."""
        powers = np.asarray(inputs, np.float64) ** -np.array(self.exponents)
        parts: Array = (powers * np.array(self.coefficients)).sum(1)
        return parts

    def numbers(self) -> list[float]:
        """Return floor, coefficients and exponents in one list, of length P."""
        return [self.floor, *self.coefficients, *self.exponents]


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A fitted law with the replicates of its bootstrap.

    Attributes:
        law: the law.
        replicates: laws that were fitted to resampled losses.
        noise: residuals of log L of runs, which a single new run has too.
        inputs: inputs that the law was fitted to, [n, K].

    """

    law: ScalingLaw
    replicates: list[ScalingLaw]
    noise: Array
    inputs: Array

    def intervals(self) -> list[tuple[float, float]]:
        """Return the 95% interval of each number of the law, in the order of `ScalingLaw.numbers`."""
        values = np.array([law.numbers() for law in self.replicates])
        return [(float(low), float(high)) for low, high in np.quantile(values, LEVELS, axis=0).T]

    def band(self, inputs: Array) -> tuple[Array, Array]:
        """Return the ends of the 95% interval of the law at inputs [n, K], [n] each."""
        low, high = np.quantile([law(inputs) for law in self.replicates], LEVELS, axis=0)
        return low, high

    def prediction(self, inputs: Array) -> tuple[Array, Array, Array]:
        """Return the predicted losses of new runs at inputs [n, K], and the ends of their 95% intervals, [n] each.

        The interval contains the uncertainty of the law and the scatter of a run around it.
        """
        curves = np.array([law(inputs) for law in self.replicates])
        scattered = (curves[:, None] * np.exp(self.noise)[None, :, None]).reshape(-1, len(inputs))
        low, high = np.quantile(scattered, LEVELS, axis=0)
        return self.law(inputs), low, high


def fit_law(inputs: Array, losses: Array) -> ScalingLaw:
    """Return the law with the smallest Huber loss of log L.

    Args:
        inputs: values of the variables of each run, [n, K], above 0.
        losses: losses of the runs, [n], above 0.

    Raises:
        ValueError: a number is not above 0, or there are fewer different inputs than numbers of the law.

    """
    problem, log_losses = _Problem.of(inputs, losses), np.log(losses)
    return problem.law(problem.best(log_losses, problem.starts(log_losses)))


def fit_with_intervals(
    inputs: Array, losses: Array, groups: Sequence[int], *, replicates: int = REPLICATES, seed: int = 0
) -> ScalingFit:
    """Return the law with the smallest Huber loss of log L, with a bootstrap over configurations and runs.

    A replicate has the losses of the law, times the deviation of a random configuration from the law, times the
    deviation of a random run from the mean of its configuration. Both are widened by the degrees of freedom that the
    fit and the means have used up; those of configurations also by Student's t, as they are few.

    Args:
        inputs: values of the variables of each run, [n, K], above 0.
        losses: losses of the runs, [n], above 0.
        groups: configuration of each run: runs that differ by their seed alone have the same number.
        replicates: number of resampled fits.
        seed: seed of the resampling.

    Raises:
        ValueError: as `fit_law`.

    """
    problem, log_losses = _Problem.of(inputs, losses), np.log(losses)
    starts = problem.starts(log_losses)
    best = problem.best(log_losses, starts)
    fitted = problem.values(best[None])[0]
    between, within, members = _deviations(log_losses - fitted, groups, num_numbers=len(best))
    rng = np.random.default_rng(seed)
    of_groups = rng.choice(between, (replicates, len(between)))[:, members]
    resampled = fitted + of_groups + rng.choice(within, (replicates, len(within)))
    starts = np.concatenate([best[None], starts[:: max(1, len(starts) // OTHER_STARTS)][:OTHER_STARTS]])
    numbers, costs = problem.minimise(np.repeat(resampled, len(starts), axis=0), np.tile(starts, (replicates, 1)))
    best_starts = costs.reshape(replicates, -1).argmin(1)
    laws = [problem.law(row) for row in numbers.reshape(replicates, len(starts), -1)[range(replicates), best_starts]]
    return ScalingFit(problem.law(best), laws, np.unique(between[members] + within), np.asarray(inputs, np.float64))


def _deviations(residuals: Array, groups: Sequence[int], *, num_numbers: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return the deviations of configurations and of runs, and the configuration of each run.

    Args:
        residuals: residuals of log L, [n].
        groups: configuration of each run, any numbers.
        num_numbers: number of numbers of the law (P).

    Returns:
        Deviations of the G configurations [G] and of the runs within theirs [n], and indices 0..G - 1, [n].

    """
    _, members = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.bincount(members)
    means = np.bincount(members, residuals) / counts
    num_groups = len(counts)
    freedom = max(1, num_groups - num_numbers)
    between = means * math.sqrt(num_groups / freedom) * float(t.ppf(LEVELS[1], freedom) / norm.ppf(LEVELS[1]))
    within = residuals - means[members]
    within *= np.sqrt(counts / np.maximum(1, counts - 1))[members]
    return between, within, members.astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Least squares of log L in the numbers log E, log A_k (at the geometric mean of x_k) and a_k.

    Attributes:
        scaled: log x_k minus its mean, [n, K].
        centres: mean of log x_k, [K].

    """

    scaled: Array
    centres: Array

    @classmethod
    def of(cls, inputs: Array, losses: Array) -> _Problem:
        """Return the problem of these runs; ValueError if they cannot determine a law."""
        inputs, losses = np.asarray(inputs, np.float64), np.asarray(losses, np.float64)
        is_positive = (inputs > 0).all(1) & np.isfinite(inputs).all(1) & (losses > 0) & np.isfinite(losses)
        if not is_positive.all():
            raise ValueError("inputs and losses of a scaling law must be finite and above 0")
        needed, different = 1 + 2 * inputs.shape[1], len(np.unique(inputs, axis=0))
        if different < needed:
            raise ValueError(f"{needed} numbers of the law need as many different inputs; there are {different}")
        logs = np.log(inputs)
        return cls(logs - logs.mean(0), logs.mean(0))

    def starts(self, log_losses: Array) -> Array:
        """Return the starts [S, P]: each combination of floor and exponents, with coefficients that fit the mean."""
        num_variables, low, mean = self.scaled.shape[1], log_losses.min(), log_losses.mean()
        starts = []
        for share, exponents in product(FLOORS, product(EXPONENTS, repeat=num_variables)):
            floor = low + math.log(share)
            rest = max(math.exp(mean) - math.exp(floor), 1e-3 * math.exp(mean)) / num_variables
            starts.append([floor, *[math.log(rest)] * num_variables, *exponents])
        return np.array(starts)

    def minimise(self, log_losses: Array, starts: Array) -> tuple[Array, Array]:
        """Return the numbers [R, P] that each start [R, P] leads to, and their Huber losses [R].

        Levenberg-Marquardt with weights that make the squares a Huber loss, for R problems `log_losses` [R, n] at once.
        The numbers stay within bounds that no sensible law reaches.
        """
        lows, highs = self._bounds(log_losses)
        numbers = np.clip(starts, lows, highs)
        costs, damping = self._costs(numbers, log_losses), np.full(len(numbers), 1e-3)
        rows = np.arange(len(numbers))  # of the problems that still improve
        for _ in range(MAX_STEPS):
            proposals = np.clip(
                numbers[rows] + self._steps(numbers[rows], log_losses[rows], damping[rows]), lows[rows], highs[rows]
            )
            new_costs = self._costs(proposals, log_losses[rows])
            gains = (costs[rows] - new_costs) / np.maximum(costs[rows], 1e-300)
            is_better = gains > 0
            numbers[rows[is_better]], costs[rows[is_better]] = proposals[is_better], new_costs[is_better]
            damping[rows] = np.clip(damping[rows] * np.where(is_better, 1 / 3, 4), 1e-9, MAX_DAMPING)
            rows = rows[np.where(is_better, gains > MIN_GAIN, damping[rows] < MAX_DAMPING) & (costs[rows] > 1e-26)]
            if not len(rows):
                break
        return numbers, costs

    def _steps(self, numbers: Array, log_losses: Array, damping: Array) -> Array:
        """Return the damped Gauss-Newton steps of numbers [R, P], [R, P]."""
        residuals, slopes = self.values(numbers) - log_losses, self._slopes(numbers)
        weights = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-300))
        weighted = (slopes * weights[:, :, None]).transpose(0, 2, 1)
        squares, gradients = weighted @ slopes, weighted @ residuals[:, :, None]
        diagonal = np.einsum("rpp->rp", squares) + 1e-12
        squares += (damping[:, None] * diagonal)[:, :, None] * np.eye(squares.shape[1])
        return np.clip(-np.linalg.solve(squares, gradients)[:, :, 0], -MAX_STEP, MAX_STEP)

    def best(self, log_losses: Array, starts: Array) -> Array:
        """Return the numbers [P] with the smallest Huber loss that any of the starts [S, P] leads to."""
        numbers, costs = self.minimise(np.broadcast_to(log_losses, (len(starts), len(log_losses))), starts)
        best: Array = numbers[int(costs.argmin())]
        return best

    def values(self, numbers: Array) -> Array:
        """Return log L of the runs under numbers [R, P], [R, n]."""
        values: Array = np.log(np.exp(numbers[:, :1]) + self._parts(numbers).sum(2))
        return values

    def law(self, numbers: Array) -> ScalingLaw:
        """Return the law of numbers [P], in the variables themselves."""
        num_variables = self.scaled.shape[1]
        logs, exponents = numbers[1 : 1 + num_variables], numbers[1 + num_variables :]
        coefficients = np.exp(logs + exponents * self.centres)
        return ScalingLaw(math.exp(numbers[0]), tuple(map(float, coefficients)), tuple(map(float, exponents)))

    def _bounds(self, log_losses: Array) -> tuple[Array, Array]:
        """Return the lowest and highest numbers, [R, P] each."""
        num_variables, rows = self.scaled.shape[1], len(log_losses)
        low, high = log_losses.min(1, keepdims=True), log_losses.max(1, keepdims=True)
        ones = np.ones((rows, num_variables))
        return (
            np.concatenate([low + math.log(LOWEST_FLOOR), high - 25 * ones, MIN_EXPONENT * ones], axis=1),
            np.concatenate([high, high + 10 * ones, MAX_EXPONENT * ones], axis=1),
        )

    def _costs(self, numbers: Array, log_losses: Array) -> Array:
        """Return the Huber losses of numbers [R, P], [R]."""
        sizes = np.abs(self.values(numbers) - log_losses)
        costs: Array = np.where(sizes <= HUBER, sizes**2 / 2, HUBER * (sizes - HUBER / 2)).sum(1)
        return costs

    def _parts(self, numbers: Array) -> Array:
        """Return the power of each variable at the runs, [R, n, K]."""
        num_variables = self.scaled.shape[1]
        logs, exponents = numbers[:, None, 1 : 1 + num_variables], numbers[:, None, 1 + num_variables :]
        parts: Array = np.exp(logs - exponents * self.scaled)
        return parts

    def _slopes(self, numbers: Array) -> Array:
        """Return the derivatives of log L of the runs by each number, [R, n, P]."""
        parts, floors = self._parts(numbers), np.exp(numbers[:, 0])[:, None, None]
        totals = floors + parts.sum(2, keepdims=True)
        floors = np.broadcast_to(floors, totals.shape)
        slopes: Array = np.concatenate([floors, parts, -parts * self.scaled], axis=2) / totals
        return slopes
