"""Calibration curves: against scikit-learn, monotone, hand-computed values, storage in a state_dict, errors."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from nextitem.nn.ranking.calibration import Isotonic, Platt, calibration

ROWS = st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=40)


def random_scores_and_labels(slope: float = 0.4, shift: float = -2.0, num_scores: int = 4000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(num_scores, generator=generator)
    return scores, (torch.rand(num_scores, generator=generator) < torch.sigmoid(slope * scores + shift)).float()


def test_platt_recovers_the_curve_that_generated_the_labels() -> None:
    scores, labels = random_scores_and_labels(num_scores=200_000)
    curve = Platt()
    curve.fit(scores, labels)
    assert float(curve.slope) == pytest.approx(0.4, abs=0.02)
    assert float(curve.shift) == pytest.approx(-2.0, abs=0.03)


def test_platt_equals_that_of_scikit_learn() -> None:
    scores, labels = random_scores_and_labels()
    curve, reference = calibration("platt"), _SigmoidCalibration().fit(scores.double().numpy(), labels.numpy())
    curve.fit(scores, labels)
    torch.testing.assert_close(
        curve(scores).double(), torch.from_numpy(reference.predict(scores.double().numpy())), rtol=1e-3, atol=1e-4
    )


def test_isotonic_equals_that_of_scikit_learn_on_smoothed_targets() -> None:
    scores, labels = random_scores_and_labels()
    curve, reference = calibration("isotonic"), IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    curve.fit(scores, labels)
    num_positive, num_labels = int(labels.sum()), len(labels)
    targets = torch.where(labels > 0, (num_positive + 1) / (num_positive + 2), 1 / (num_labels - num_positive + 2))
    reference.fit(scores.double().numpy(), targets.double().numpy())
    grid = torch.linspace(-20, 20, 999, dtype=torch.float64)
    torch.testing.assert_close(curve(grid), torch.from_numpy(reference.predict(grid.numpy())).float())


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from(["platt", "isotonic"]))
def test_curves_rise_and_return_probabilities(
    rows: list[tuple[float, bool]], kind: Literal["platt", "isotonic"]
) -> None:
    scores, labels = torch.tensor([score for score, _ in rows]), torch.tensor([float(label) for _, label in rows])
    assume(0 < int(labels.sum()) < len(labels))
    curve = calibration(kind)
    curve.fit(scores, labels)
    probabilities = curve(torch.cat([scores, torch.linspace(-9, 9, 60)]).sort().values)
    assert bool(((probabilities >= 0) & (probabilities <= 1)).all())
    assert bool((probabilities.diff() >= 0).all())


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_mean_probability_equals_the_fraction_of_positives(kind: Literal["platt", "isotonic"]) -> None:
    scores, labels = random_scores_and_labels()
    curve = calibration(kind)
    curve.fit(scores, labels)
    assert float(curve(scores).mean()) == pytest.approx(float(labels.mean()), abs=1e-3)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_unfitted_curve_is_the_logistic_function(kind: Literal["platt", "isotonic"]) -> None:
    scores = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(calibration(kind)(scores), torch.sigmoid(scores))


def test_scores_that_contradict_the_labels_get_the_mean() -> None:
    scores, labels = random_scores_and_labels(slope=-1.0)
    curve = Platt()
    curve.fit(scores, labels)
    assert float(curve.slope) == 0
    assert float(curve(scores)[0]) == pytest.approx(float(labels.mean()), abs=1e-3)


def test_isotonic_curve_equals_a_hand_computed_one() -> None:
    curve = Isotonic()
    curve.fit(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    # With two labels of each kind, targets are 1/4 and 3/4; the falling pair 3/4, 1/4 is pooled to 1/2.
    assert curve(torch.tensor([0.0, 1.0, 1.5, 2.0, 2.7, 3.0, 4.0, 9.0])).tolist() == pytest.approx(
        [0.25, 0.25, 0.375, 0.5, 0.5, 0.5, 0.75, 0.75]
    )


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_log_probabilities_are_finite_and_match_the_probabilities(kind: Literal["platt", "isotonic"]) -> None:
    curve = calibration(kind)
    scores = torch.cat([torch.linspace(-5, 5, 50), torch.tensor([-1e6, 1e6])])
    torch.testing.assert_close(curve.log_probabilities(scores[:50]), curve(scores[:50]).double().log())  # not fitted
    assert bool(curve.log_probabilities(scores).isfinite().all())
    curve.fit(scores, (scores > 0).float())  # a separable set: an all-negative step, then an all-positive one
    torch.testing.assert_close(
        curve.log_probabilities(scores[:50]), curve(scores[:50]).double().log(), rtol=1e-5, atol=0
    )
    assert bool(curve.log_probabilities(scores).isfinite().all())


def test_curves_are_stored_as_buffers() -> None:
    scores, labels = random_scores_and_labels()
    for kind in ("platt", "isotonic"):
        curve = calibration(kind)
        curve.fit(scores, labels)
        copy = calibration(kind)
        for name, value in curve.state_dict().items():
            copy._buffers[name] = value
        assert torch.equal(copy(scores), curve(scores))
        assert not list(curve.parameters())


def test_labels_that_allow_no_fit_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"2 labels, 3 scores"):
        calibration("platt").fit(torch.zeros(3), torch.zeros(2))
    for kind in ("platt", "isotonic"):
        for labels, message in (
            (torch.zeros(0), "0 of 0 are positive"),
            (torch.zeros(3), "needs both labels: 0 of 3"),
            (torch.ones(3), "needs both labels: 3 of 3"),
        ):
            with pytest.raises(ValueError, match=message):
                calibration(kind).fit(torch.arange(len(labels)).float(), labels)
    assert np.isfinite(float(calibration("platt")(torch.tensor(50.0))))
