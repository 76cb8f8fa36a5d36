"""Assignment of users to models: always the same model, in shares by weight.

Each model has a number for each user: -weight / log(u), with u in (0, 1) from a hash of both names. The largest number
wins (weighted rendezvous hashing). So if a weight changes, or a model is added or removed, only the users who go to or
come from this model change theirs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from nextitem.core.errors import UserError


def shares_of(names: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the share of users of each model; the models without a weight share the rest equally.

    Args:
        names: all models.
        weights: share of some of them, 0 to 1.

    Raises:
        UserError: a weight is out of range or of no model, or the weights of all models do not add up to 1.

    """
    for name, weight in weights.items():
        if name not in names:
            raise UserError(f"--weight {name}={weight:g}: no model is called {name!r}; there are {', '.join(names)}")
        if not 0 <= weight <= 1:
            raise UserError(f"--weight {name}={weight:g}: a weight is a share of the users, from 0 to 1")
    rest, others = 1 - sum(weights.values()), [name for name in names if name not in weights]
    if rest < -1e-9 or (not others and rest > 1e-9):
        words = "; leave one model without a weight, and it gets the rest" if not others else ""
        raise UserError(f"--weight: the weights add up to {1 - rest:g}, not to 1{words}")
    return {name: weights.get(name, max(rest, 0.0) / max(len(others), 1)) for name in names}


def assigned(shares: Mapping[str, float], user_id: str) -> str:
    """Return the model of a user; at least one share is positive."""
    user = user_id.encode("utf-8", "surrogatepass")

    def number(name: str) -> float:
        digest = hashlib.blake2b(user, digest_size=8, key=hashlib.blake2b(name.encode(), digest_size=16).digest())
        u = (int.from_bytes(digest.digest(), "big") + 0.5) / 2**64
        return -shares[name] / math.log(u) if u < 1 else math.inf

    return max(shares, key=number)
