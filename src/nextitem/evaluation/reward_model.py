"""Reward model of off-policy estimates: the reward of an item in a slot, predicted from the lists of other users.

The prediction is the mean reward of the slot times a factor of the item. It is learned and used on different users
(cross-fitting), so that an estimate that subtracts it stays unbiased.

Shapes: B lists, K slots, C candidates of a list, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextitem.evaluation.logged_lists import LoggedLists, TargetPolicy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FOLDS = 5  # parts of the users; the reward model of a part has learned from the others
PRIOR_REWARDS = 3.0  # expected rewards that weigh as much as what is known of an item


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted rewards of the logged lists, by any model of the rewards.

    Attributes:
        logged: predicted reward of the item in each slot, [B, K].
        expected: expected prediction of each slot under the target policy, [B, K].
        is_overall: whether `expected` is over all lists of the target, instead of given the logged items above the
            slot. With one slot, both are the same.
        knows_items: whether predictions depend on items; else they cannot tell one policy from another.

    """

    logged: Floats
    expected: Floats
    is_overall: bool
    knows_items: bool = True


@dataclass(frozen=True, eq=False)
class RewardModel:
    """Predicts the reward of an item in a slot: the mean reward of the slot times a factor of the item.

    Attributes:
        slots: mean reward of each slot, [K].
        factors: rewards of each item over those that its slots would have, shrunk to 1, [N].

    """

    slots: Floats
    factors: Floats

    @classmethod
    def fit(cls, logged: LoggedLists, rows: Bools, *, num_items: int) -> RewardModel:
        """Return the model of the logged lists `rows` [B]."""
        is_item, rewards = logged.is_item[rows], logged.rewards[rows]
        slots = (rewards * is_item).sum(0) / np.maximum(is_item.sum(0), 1)
        items = logged.items[rows][is_item]
        usual = np.broadcast_to(slots, is_item.shape)[is_item]
        rewards_by_item = np.bincount(items, weights=rewards[is_item], minlength=num_items)
        usual_by_item = np.bincount(items, weights=usual, minlength=num_items)
        return cls(slots, (rewards_by_item + PRIOR_REWARDS) / (usual_by_item + PRIOR_REWARDS))

    def predict(self, items: Ints) -> Floats:
        """Return the predicted rewards of items [B, K] in slots 1..K, or [B, 1, C] of candidates in each slot."""
        factors = self.factors[items]
        result: Floats = self.slots[:, None] * factors if items.ndim == 3 else self.slots * factors
        return result


def predictions(logged: LoggedLists, target: TargetPolicy) -> Predictions:
    """Return the predictions of the model of slots and items; of slots alone if the target has no distributions."""
    distributions, is_overall = target.overall_distributions, True
    if distributions is None:
        distributions, is_overall = target.distributions, logged.rewards.shape[1] == 1
    knows_items = target.candidates is not None and distributions is not None
    largest = logged.items.max(initial=0) if target.candidates is None else target.candidates.max(initial=0)
    num_items = int(max(largest, logged.items.max(initial=0))) + 1
    predicted, expected = np.zeros(logged.rewards.shape), np.zeros(logged.rewards.shape)
    for fold in range(FOLDS):
        rows = logged.users % FOLDS == fold
        if not rows.any():
            continue
        model = RewardModel.fit(logged, ~rows, num_items=num_items)
        if target.candidates is None or distributions is None:
            predicted[rows] = expected[rows] = model.slots
        else:
            predicted[rows] = model.predict(logged.items[rows])
            of_candidates = model.predict(target.candidates[rows][:, None, :])
            expected[rows] = (distributions[rows] * of_candidates).sum(2)
    return Predictions(predicted, expected, is_overall, knows_items)
