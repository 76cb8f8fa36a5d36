"""What off-policy estimates are made from: the lists of a log, and what another policy would have done in their place.

Shapes: B lists, K slots, C candidates of a list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextitem.core.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NO_EXPLORATION = (
    "the log has no exploration: every propensity is 1, so it cannot tell how other lists would do; serve with "
    "exploration for a while"
)


@dataclass(frozen=True, eq=False)
class LoggedLists:
    """Lists that were shown with propensities below 1, and their rewards; shorter lists are padded at the end.

    A single action, such as one item that was shown in one place, is a list of one slot.

    Attributes:
        rewards: rewards of the slots, [B, K], 0 in padding.
        propensities: probability of each slot's item given the items above, [B, K], 1 in padding.
        items: numbers of the items from 0, [B, K], any number in padding.
        is_item: whether a slot is no padding, [B, K].
        users: numbers of the users from 0, [B].
        overall_propensities: probability of each slot's item over all lists, whatever is above it, [B, K], 1 in
            padding; None: unknown.

    """

    rewards: Floats
    propensities: Floats
    items: Ints
    is_item: Bools
    users: Ints
    overall_propensities: Floats | None = None


@dataclass(frozen=True, eq=False)
class TargetPolicy:
    """What a policy would have done where the logged lists were shown.

    For a policy that samples without replacement, `plackett_luce` and `slot_probabilities` compute all of it.

    Attributes:
        probabilities: its probability of each slot's logged item given the logged items above, [B, K], 1 in padding.
        candidates: numbers of the items that it selects from, [B, C]; None: unknown.
        distributions: its probability of each candidate in each slot given the logged items above, [B, K, C]; None:
            unknown. Without any distributions, the reward model knows slots only, not items.
        overall_probabilities: its probability of each slot's logged item over all its lists, [B, K]; None: unknown.
        overall_distributions: its probability of each candidate in each slot over all its lists, [B, K, C]; None:
            unknown.

    """

    probabilities: Floats
    candidates: Ints | None = None
    distributions: Floats | None = None
    overall_probabilities: Floats | None = None
    overall_distributions: Floats | None = None


def check_lists(logged: LoggedLists, target: TargetPolicy) -> None:
    """Check that a log and a target can be compared.

    Raises:
        UserError: no list has a propensity below 1, a propensity is 0, or a probability is not between 0 and 1.

    """
    if not (logged.propensities[logged.is_item] < 1).any():
        raise UserError(NO_EXPLORATION)
    for propensities in (logged.propensities, logged.overall_propensities):
        if propensities is not None and not (propensities[logged.is_item] > 0).all():
            raise UserError("a propensity is 0: an item that was shown had a probability above 0; correct the log")
    for probabilities in (target.probabilities, target.overall_probabilities):
        if probabilities is None:
            continue
        probabilities = probabilities[logged.is_item]
        if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN neither
            raise UserError("a probability of the target policy is not between 0 and 1")
