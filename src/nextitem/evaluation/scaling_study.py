"""Study of a model's scaling: the laws of its runs, the prediction of its largest size, and a verdict in words.

The largest size is never fitted. The law of compute is fitted to the frontier: configurations (size, share of the data)
to which no other is superior in both compute and loss. The law of parameters and examples is fitted to all runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nextitem.evaluation.scaling_law import REPLICATES, Array, ScalingFit, fit_with_intervals

Config = tuple[float, float]  # size, share of the data
VerdictKind = Literal["power law", "plateau", "no power law", "too few decades"]

MIN_DECADES = 1.0
MIN_CONFIGURATIONS = 4  # one more than the law of compute has numbers
SMALL_GAIN = 0.005  # relative: what ten times the compute must gain, for the curve not to be flat
TOLERANCE = 0.01  # relative error of the prediction that counts as right, however narrow its interval


@dataclass(frozen=True)
class Measurement:
    """What the study reads of one run.

    Attributes:
        size: size of the model, as a factor.
        share: share of the training data.
        seed: seed of the run.
        compute: floating-point operations of the training.
        parameters: number of parameters outside of embeddings.
        examples: number of different training targets.
        loss: loss on validation, above 0.

    """

    size: float
    share: float
    seed: int
    compute: float
    parameters: float
    examples: float
    loss: float

    @property
    def configuration(self) -> Config:
        """Size and share of the data."""
        return self.size, self.share


@dataclass(frozen=True)
class Prediction:
    """Loss of a configuration that was not fitted, as measured and as predicted.

    Attributes:
        variables: variables of the law that predicts.
        size: size of the model.
        share: share of the training data.
        inputs: values of the variables, means over seeds.
        loss: measured loss, mean over seeds.
        predicted: loss that the law predicts.
        low: lower end of the 95% interval of the prediction.
        high: upper end.

    """

    variables: tuple[str, ...]
    size: float
    share: float
    inputs: tuple[float, ...]
    loss: float
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """The prediction over the measured loss, minus 1."""
        return self.predicted / self.loss - 1

    @property
    def is_right(self) -> bool:
        """Whether the interval contains the measured loss, or the error is small."""
        return self.low <= self.loss <= self.high or abs(self.error) <= TOLERANCE


@dataclass(frozen=True, eq=False)
class ScalingStudy:
    """Laws, prediction and verdict.

    Attributes:
        frontier: configurations on the frontier, by ascending compute, without the largest size.
        compute_law: the law of compute; None if there are too few configurations on the frontier.
        size_law: the law of `size_variables`; None if there are too few configurations.
        size_variables: parameters and examples, or parameters alone if there are fewer than three shares of the data.
        held_out: predictions of the largest size: of its best configuration by the law of compute, and of all its
            configurations by the other law.
        kind: the verdict.
        sentences: the verdict in words, the most important first.

    """

    frontier: tuple[Config, ...]
    compute_law: ScalingFit | None
    size_law: ScalingFit | None
    size_variables: tuple[str, ...]
    held_out: tuple[Prediction, ...]
    kind: VerdictKind
    sentences: tuple[str, ...]


def study(measurements: Sequence[Measurement], *, replicates: int = REPLICATES) -> ScalingStudy:
    """Return the study of runs; `replicates` is the number of resampled fits that the intervals are made of."""
    largest = max((each.size for each in measurements), default=0.0)
    fitted = [each for each in measurements if each.size < largest]
    others = [each for each in measurements if each.size == largest]
    frontier = frontier_of(fitted)
    compute_law = _fit([each for each in fitted if each.configuration in frontier], ("compute",), replicates)
    variables = _size_variables(fitted)
    full_share = max((each.share for each in fitted), default=0.0)
    sized = fitted if len(variables) == 2 else [each for each in fitted if each.share == full_share]
    size_law = _fit(sized, variables, replicates)
    held_out = []
    if compute_law is not None:
        best = min(_groups(others).values(), key=_mean_loss)
        held_out.append(_predict(compute_law, ("compute",), best))
    if size_law is not None:
        groups = [group for (_, share), group in _groups(others).items() if len(variables) == 2 or share == full_share]
        held_out += [_predict(size_law, variables, group) for group in groups]
    kind, sentences = _verdict(fitted, frontier, compute_law, held_out)
    return ScalingStudy(frontier, compute_law, size_law, variables, tuple(held_out), kind, sentences)


def frontier_of(measurements: Sequence[Measurement]) -> tuple[Config, ...]:
    """Return the configurations to which no other is superior in both compute and loss, by ascending compute.

    Compute and loss are means over seeds.
    """
    groups = _groups(measurements)
    by_compute = sorted(groups, key=lambda each: (_mean(groups[each], "compute"), _mean_loss(groups[each])))
    members: list[Config] = []
    lowest = math.inf
    for configuration in by_compute:
        if (loss := _mean_loss(groups[configuration])) < lowest:
            members.append(configuration)
            lowest = loss
    return tuple(members)


def _verdict(
    fitted: Sequence[Measurement],
    frontier: Sequence[Config],
    law: ScalingFit | None,
    held_out: Sequence[Prediction],
) -> tuple[VerdictKind, tuple[str, ...]]:
    """Return the verdict on the law of compute, and its sentences."""
    groups = _groups(fitted)
    computes = [_mean(groups[each], "compute") for each in groups]
    decades = math.log10(max(computes) / min(computes)) if computes else 0.0
    if len(groups) < MIN_CONFIGURATIONS or decades < MIN_DECADES:
        return "too few decades", (
            f"Too few decades: the fit has {len(groups)} combinations of size and share over {decades:.1f} "
            f"decades of compute. A law needs at least {MIN_CONFIGURATIONS} over {MIN_DECADES:.0f}: train further "
            "sizes or shares of the data.",
        )
    if law is None or len(frontier) < MIN_CONFIGURATIONS:
        return "plateau", (
            f"A plateau: over {decades:.1f} decades of compute only {len(frontier)} of {len(groups)} configurations "
            "lower the loss of all cheaper ones. Beyond them more compute does not help on these data.",
        )
    end = np.array([[max(_mean(groups[each], "compute") for each in frontier)]])
    gain = 1 - float(law.law(10 * end)[0] / law.law(end)[0])
    if gain < SMALL_GAIN:
        return "plateau", (
            f"A plateau: at the upper end of the fit, ten times the compute would lower the loss by {gain:.2%}.",
            *_law_sentences(law),
            *_held_out_sentences(held_out),
        )
    by_compute = next((each for each in held_out if each.variables == ("compute",)), None)
    if by_compute is not None and not by_compute.is_right:
        side = "higher" if by_compute.loss > by_compute.predicted else "lower"
        reason = "The curve bends: more compute helps less than the law says." * (side == "higher")
        return "no power law", (
            f"No power law that can be extrapolated: the loss of the largest size is {side} than predicted. {reason}",
            *_held_out_sentences(held_out),
            *_law_sentences(law),
        )
    return "power law", (
        f"A power law over {decades:.1f} decades of compute: ten times the compute at the upper end of the fit would "
        f"lower the loss by another {gain:.1%}.",
        *_held_out_sentences(held_out),
        *_law_sentences(law),
    )


def _law_sentences(law: ScalingFit) -> tuple[str, ...]:
    """Return sentences on what of the law of compute is uncertain."""
    (floor_low, floor_high), _, (low, high) = law.intervals()
    sentences = []
    if high > 3 * low:
        sentences.append(
            f"The exponent is uncertain, {low:.2f} to {high:.2f} (95%): more seeds or decades would narrow it."
        )
    if floor_low < 0.5 * floor_high:
        sentences.append(f"The floor is not determined: {floor_low:.3g} to {floor_high:.3g} (95%).")
    return tuple(sentences)


def _held_out_sentences(held_out: Sequence[Prediction]) -> tuple[str, ...]:
    """Return a sentence for the prediction by compute, and one for the largest error of the other law."""
    by_compute = [each for each in held_out if each.variables == ("compute",)]
    sentences = [_prediction_sentence(each, "the law of compute") for each in by_compute]
    others = [each for each in held_out if each.variables != ("compute",)]
    if others:
        worst = max(others, key=lambda each: abs(each.error))
        sentences.append(_prediction_sentence(worst, f"the law of {' and '.join(worst.variables)}"))
    return tuple(sentences)


def _prediction_sentence(each: Prediction, law: str) -> str:
    return (
        f"Size {each.size:g} at share {each.share:g}, which was not fitted: {law} predicts {each.predicted:.4f} "
        f"({each.low:.4f} to {each.high:.4f}), measured {each.loss:.4f}, an error of {each.error:+.1%}."
    )


def _fit(measurements: Sequence[Measurement], variables: Sequence[str], replicates: int) -> ScalingFit | None:
    """Return the law of these variables; None if there are not more configurations than numbers of the law.

    As many configurations as numbers are fitted without residuals, which would look like certainty.
    """
    configurations, inputs = sorted(_groups(measurements)), _inputs(measurements, variables)
    if min(len(configurations), len(np.unique(inputs, axis=0))) <= 1 + 2 * len(variables):
        return None
    groups = [configurations.index(each.configuration) for each in measurements]
    return fit_with_intervals(inputs, np.array([each.loss for each in measurements]), groups, replicates=replicates)


def _predict(law: ScalingFit, variables: tuple[str, ...], group: Sequence[Measurement]) -> Prediction:
    """Return the prediction of one configuration, whose runs are `group`."""
    inputs = _inputs(group, variables).mean(0)
    predicted, low, high = (float(values[0]) for values in law.prediction(inputs[None]))
    size, share = group[0].configuration
    return Prediction(variables, size, share, tuple(map(float, inputs)), _mean_loss(group), predicted, low, high)


def _size_variables(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Return parameters and examples, if both have the three values that a power and a floor need."""
    shares = {each.share for each in measurements}
    return ("parameters", "examples") if len(shares) >= 3 else ("parameters",)


def _inputs(measurements: Sequence[Measurement], variables: Sequence[str]) -> Array:
    rows = [[getattr(each, name) for name in variables] for each in measurements]
    return np.array(rows, np.float64).reshape(len(rows), len(variables))


def _groups(measurements: Sequence[Measurement]) -> dict[Config, list[Measurement]]:
    """Return the runs of each configuration."""
    groups: dict[Config, list[Measurement]] = {}
    for each in measurements:
        groups.setdefault(each.configuration, []).append(each)
    return groups


def _mean(group: Sequence[Measurement], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in group]))


def _mean_loss(group: Sequence[Measurement]) -> float:
    return _mean(group, "loss")
