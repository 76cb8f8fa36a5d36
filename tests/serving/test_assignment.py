"""Users are assigned to models in shares by weight, always in the same way, and few move if a weight changes."""

from __future__ import annotations

import pytest

from nextitem.core.errors import UserError
from nextitem.serving.assignment import assigned, shares_of

USERS = [f"user-{number}" for number in range(4000)]


def test_shares_follow_the_weights_and_the_others_share_the_rest() -> None:
    shares = shares_of(["a", "b", "c"], {"a": 0.5})
    assert shares == {"a": 0.5, "b": 0.25, "c": 0.25}
    models = [assigned(shares, user) for user in USERS]
    assert models == [assigned(shares, user) for user in USERS]
    for name, share in shares.items():
        assert models.count(name) / len(USERS) == pytest.approx(share, abs=0.03)  # four standard deviations


def test_only_users_of_the_changed_model_move() -> None:
    before = {user: assigned({"a": 0.5, "b": 0.3, "c": 0.2}, user) for user in USERS}
    after = {user: assigned({"a": 0.5, "b": 0.3, "c": 0.6}, user) for user in USERS}
    moves = {(before[user], after[user]) for user in USERS if before[user] != after[user]}
    assert moves == {("a", "c"), ("b", "c")}


def test_a_model_without_weight_has_no_user() -> None:
    assert {assigned({"a": 1.0, "b": 0.0}, user) for user in USERS} == {"a"}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"x": 0.5}, "no model is called 'x'"),
        ({"a": 1.5}, "from 0 to 1"),
        ({"a": float("nan")}, "from 0 to 1"),
        ({"a": 0.6, "b": 0.6}, "add up to 1.2"),
        ({"a": 0.2, "b": 0.3}, "leave one model without a weight"),
    ],
)
def test_mistakes_are_named(weights: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        shares_of(["a", "b"], weights)
