"""Scaling studies: frontier, prediction of the largest size, and verdicts on planted curves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nextitem.evaluation.scaling_study import Measurement, ScalingStudy, frontier_of
from nextitem.evaluation.scaling_study import study as full_study

SIZES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
SHARES = (0.25, 0.5, 1.0)


def study(runs: list[Measurement]) -> ScalingStudy:
    return full_study(runs, replicates=40)


def measurements(
    loss: Callable[[float, float], float],
    *,
    sizes: tuple[float, ...] = SIZES,
    shares: tuple[float, ...] = SHARES,
    seeds: int = 2,
    noise: float = 0.001,
) -> list[Measurement]:
    """Return runs whose loss is a function of size and share, times noise; compute is size ** 2 x share."""
    rng = np.random.default_rng(0)
    return [
        Measurement(
            size, share, seed, 1e11 * size**2 * share, 1e5 * size**2, 1e5 * share,
            loss(size, share) * float(np.exp(rng.normal(0, noise))),
        )
        for size in sizes
        for share in shares
        for seed in range(seeds)
    ]  # fmt: skip


def power(size: float, share: float) -> float:
    return 3.0 + 0.5 * float(size**-0.7) + 0.2 * float(share**-0.5)


def test_a_power_law_is_recognised_and_the_largest_size_predicted() -> None:
    result = study(measurements(power))
    assert result.kind == "power law"
    assert result.size_variables == ("parameters", "examples")
    assert result.size_law is not None
    assert result.size_law.law.exponents == pytest.approx((0.35, 0.5), abs=0.08)  # parameters grow with size ** 2
    by_compute, *by_size = result.held_out
    assert (by_compute.variables, by_compute.size, by_compute.share) == (("compute",), 4.0, 1.0)
    assert by_compute.loss == pytest.approx(power(4, 1), rel=0.002)
    assert [each.share for each in by_size] == list(SHARES)
    for each in by_size:
        assert each.low <= each.loss <= each.high
        assert abs(each.error) < 0.01
    assert "power law over 3.0 decades" in result.sentences[0]


def test_the_largest_size_does_not_change_the_laws() -> None:
    runs = measurements(power)
    changed = [run if run.size < 4 else Measurement(**{**vars(run), "loss": 9.0}) for run in runs]
    before, after = study(runs), study(changed)
    for name in ("compute_law", "size_law"):
        assert getattr(before, name).law == getattr(after, name).law
    assert after.kind == "no power law"
    assert "the loss of the largest size is higher than predicted" in after.sentences[0]


def test_a_flat_curve_is_a_plateau() -> None:
    result = study(measurements(lambda size, share: 3.0 + 0.02 / (size**2 * share), noise=1e-4))
    assert result.kind == "plateau"
    assert result.sentences[0].startswith("A plateau")


def test_larger_models_that_only_become_worse_are_a_plateau() -> None:
    result = study(measurements(lambda size, share: 3.0 + 0.2 * size**0.5, noise=1e-4))
    assert result.kind == "plateau"
    assert "of 15 configurations lower the loss" in result.sentences[0]


@pytest.mark.parametrize(
    ("sizes", "shares"), [((0.5, 1.0, 2.0), (1.0,)), ((0.8, 0.9, 1.0, 1.1, 1.2, 1.3), (1.0,)), ((1.0,), (1.0,))]
)
def test_few_decades_are_no_law(sizes: tuple[float, ...], shares: tuple[float, ...]) -> None:
    result = study(measurements(power, sizes=sizes, shares=shares))
    assert result.kind == "too few decades"
    assert "needs at least 4 over 1" in result.sentences[0]


def test_without_three_shares_the_law_of_parameters_reads_the_largest_share() -> None:
    result = study(measurements(power, shares=(0.5, 1.0)))
    assert result.size_variables == ("parameters",)
    assert result.size_law is not None
    assert len(result.size_law.inputs) == 5 * 2  # sizes but the largest, seeds
    assert [each.share for each in result.held_out if each.variables == ("parameters",)] == [1.0]


def test_the_frontier_has_no_configuration_that_a_cheaper_one_beats() -> None:
    def run(size: float, share: float, compute: float, loss: float) -> Measurement:
        return Measurement(size, share, 0, compute, 1, 1, loss)

    runs = [run(1, 1, 10, 3.0), run(1, 0.5, 5, 3.5), run(2, 0.5, 12, 3.2), run(2, 1, 20, 2.9), run(0.5, 1, 5, 3.6)]
    assert frontier_of(runs) == ((1, 0.5), (1, 1), (2, 1))


def test_a_law_without_residuals_is_not_claimed() -> None:
    result = study(measurements(power, sizes=(0.25, 0.5, 1.0, 2.0), shares=(1.0,)))
    assert len(result.frontier) == 3
    assert result.compute_law is None
    assert result.held_out == ()


def test_a_wide_exponent_and_an_open_floor_are_named() -> None:
    result = study(measurements(lambda size, share: 4.0 * (size**2 * share) ** -0.02, noise=0.002))
    assert any("floor is not determined" in sentence for sentence in result.sentences)
