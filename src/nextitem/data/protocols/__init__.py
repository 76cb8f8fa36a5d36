"""Protocols: rules that split a data set into training data and requests for validation and test.

Importing this package imports neither torch nor a protocol; `make_split` loads the protocol that it applies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nextitem.core.errors import UserError
from nextitem.core.registry import Entry

if TYPE_CHECKING:
    from nextitem.core.dataset import Dataset, Split

__all__ = ["PROTOCOLS", "default_protocol", "make_split"]

PROTOCOLS: dict[str, Entry] = {
    "time": Entry("nextitem.data.protocols.time:split_by_time", "users' next items after a date", "-"),
    "leave-one-out": Entry(
        "nextitem.data.protocols.leave_one_out:split_last_events", "the last two positive events of each user", "-"
    ),
    "session": Entry(
        "nextitem.data.protocols.session:split_by_session",
        "every next event within the latest sessions",
        "arXiv 1511.06939",
    ),
    "user-split": Entry(
        "nextitem.data.protocols.user_split:split_by_user", "the later half of other users' events", "arXiv 1801.02294"
    ),
    "published": Entry(
        "nextitem.data.protocols.published:split_by_marks", "the rows that the column split assigns", "-"
    ),
    "impressions": Entry(
        "nextitem.data.protocols.impressions:split_impressions", "the ranking of impressions after a date", "-"
    ),
}


def make_split(dataset: Dataset, protocol: str | None = None, *, seed: int = 0) -> Split:
    """Split a data set by a protocol.

    The function of each protocol (`PROTOCOLS[name]`) documents it. These rules hold for all of them:

    * A history contains every earlier event that has an item, whether it may be a target or not, in the strict order
      of the log. If the events of a basket have one time, those before the target in the log are history. So no
      request contains its own target, or anything after it.
    * Only positive events are targets. A request has the time of its target.
    * If a seen item may not be recommended (`repeats` is false), requests exclude the items of the history.
    * Training data contain only impressions that precede every request (`time`, dated `session`, `impressions`); the
      other protocols leave impressions out.

    Args:
        dataset: events, impressions or both.
        protocol: a key of PROTOCOLS; None selects `default_protocol`.
        seed: seed of the random sample of users, if the protocol samples users (`user-split`).

    Raises:
        UserError: the data does not allow the protocol, or no training events, validation or test requests remain.

    """
    name = default_protocol(dataset)[0] if protocol is None else protocol
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    if name != "impressions" and not len(dataset.interactions):
        raise UserError(f"{dataset.name}: has impressions only; protocol {name} needs interactions")
    split: Split = PROTOCOLS[name].load()(dataset, seed=seed)
    for part, requests in (("validation", split.validation), ("test", split.test)):
        if not requests.num_requests:
            others = ", ".join(each for each in PROTOCOLS if each != name)
            raise UserError(
                f"{dataset.name}: protocol {name} leaves no {part} requests; "
                f"the log is too small for it, choose another of {others}"
            )
    if not split.judges_scores and not split.train.interactions.is_target().any():
        raise UserError(f"{dataset.name}: protocol {name} leaves no training events; choose another")
    return split


def default_protocol(dataset: Dataset) -> tuple[str, str]:
    """Return the name of the default protocol of a data set, and the reason in words."""
    if not len(dataset.interactions):
        return "impressions", "there are impressions only"
    if dataset.anonymous:
        return "session", "the log has sessions without users"
    if dataset.interactions.timestamps is not None:
        return "time", "every event is dated"
    return "leave-one-out", "not every event is dated"
