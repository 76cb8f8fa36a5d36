"""Arguments of `nextitem scale`: their texts, defaults and checks, which need neither torch nor data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from nextitem.core.errors import UserError

SIZES: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
DATA_SHARES: tuple[float, ...] = (0.25, 0.5, 1.0)
SEEDS: tuple[int, ...] = (0,)
LEARNING_RATES: tuple[float, ...] = (1.0,)


def numbers_of(option: str, text: str) -> tuple[float, ...]:
    """Return numbers or fractions that are separated by commas, such as 1/8,1/4,0.5,1.

    Raises UserError if a part is no number.
    """
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(float(Fraction(part.strip())))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise UserError(f"{option} {text!r}: {part.strip()!r} is no number; write it as 1/8,1/4,1/2,1") from None
    return tuple(numbers)


def seeds_of(text: str) -> tuple[int, ...]:
    """Return seeds that are separated by commas, such as 0,1,2. Raises UserError if one is no whole number."""
    seeds = numbers_of("--seeds", text)
    if any(seed != int(seed) for seed in seeds):
        raise UserError(f"--seeds {text!r}: a seed is a whole number; write them as 0,1,2")
    return tuple(int(seed) for seed in seeds)


def check_arguments(
    *,
    sizes: Sequence[float],
    data_shares: Sequence[float],
    seeds: Sequence[int],
    learning_rates: Sequence[float],
    minutes: float | None,
    points: int | None,
) -> None:
    """Raise UserError if an argument of `scale` is wrong."""
    named = {"--sizes": sizes, "--data-shares": data_shares, "--seeds": seeds, "--learning-rates": learning_rates}
    for option, values in named.items():
        if not values:
            raise UserError(f"{option} is empty; give at least one number, or omit it")
        if len(set(values)) < len(values):
            raise UserError(f"{option} {_text(values)}: a number occurs twice; give each once")
        if option != "--seeds" and not all(0 < value < math.inf for value in values):
            raise UserError(f"{option} {_text(values)}: each has to be greater than 0")
    if any(seed < 0 for seed in seeds):
        raise UserError(f"--seeds {_text(seeds)}: a seed is at least 0")
    if len(sizes) < 2:
        raise UserError(f"--sizes {_text(sizes)}: a scaling study needs at least two sizes; the largest is predicted")
    if max(data_shares) > 1:
        raise UserError(f"--data-shares {_text(data_shares)}: a share of the training data is at most 1")
    for option, value in (("--minutes", minutes), ("--points", points)):
        if value is not None and not value > 0:
            raise UserError(f"{option} {value}: it has to be greater than 0")


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
