"""Bodies and answers of the HTTP API: their fields, types and limits. Fields that are not listed are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from nextitem.core.errors import UserError
from nextitem.data.times import LATEST_MS
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.values import milliseconds, text

MAX_HISTORY = 2_000  # events of a history in a request
MAX_LIST = 1_000  # items of an answer, of candidates
MAX_EXCLUDED = 10_000  # items that a request excludes
MAX_EVENTS = 1_000  # events in one call

Id = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=512)]
IdOrNumber = Id | Annotated[int, Field(ge=-(2**63), lt=2**63)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Value = Annotated[str, StringConstraints(max_length=2_000)] | bool | int | float
Timestamp = Annotated[float, Field(ge=0, le=LATEST_MS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Event(_Body):
    """One event of a history."""

    item_id: IdOrNumber
    """Id of the item."""
    action: Name | None = None
    """What the user did: view, cart, buy, ..., as in the training data."""
    timestamp: Timestamp | None = None
    """Seconds or milliseconds since 1970 (UTC)."""
    columns: dict[Name, Value | None] = Field(default={}, max_length=50)
    """Further columns of the event that the training data declare."""

    def to_event(self) -> HistoryEvent:
        """Return the event as the engine reads it."""
        return HistoryEvent(str(self.item_id), self.action, milliseconds(self.timestamp), self.columns)


class _Asker(_Body):
    user_id: IdOrNumber | None = None
    """Id of the user, known from training or not."""
    history: Annotated[list[IdOrNumber | Event], Field(max_length=MAX_HISTORY)] | None = None
    """Item ids or events, oldest first; they replace the events that the server knows of the user."""
    context: dict[Name, Value | list[Value] | None] = Field(default={}, max_length=50)
    """Features of the request, by the names that the model has learned, such as user.country."""
    model: Name | None = None
    """Name of the model; without it, the server assigns one to the user."""
    explain: bool = False
    """Whether the answer explains the list; it takes several times as long."""
    guide_weight: float | None = Field(None, ge=0, le=1)
    """Weight of the guide of a generator; without it, the weight that was chosen in training."""
    objective: Name | None = None
    """Name of the objective that orders the list, for models that have several."""

    def _common(self) -> dict[str, Any]:
        if self.user_id is None and self.history is None:
            raise UserError("user_id or history is needed")
        history = (
            None
            if self.history is None
            else tuple(
                entry.to_event() if isinstance(entry, Event) else HistoryEvent(str(entry)) for entry in self.history
            )
        )
        user_id = None if self.user_id is None else str(self.user_id)
        return {
            "user_id": user_id,
            "history": history,
            "context": self.context,
            "explain": self.explain,
            "guide_weight": self.guide_weight,
            "objective": self.objective,
        }


class RecommendBody(_Asker):
    """A request for a list of items."""

    k: int = Field(10, ge=1, le=MAX_LIST)
    """Number of items."""
    exclude: list[IdOrNumber] = Field(default=[], max_length=MAX_EXCLUDED)
    """Ids of items that must not be returned."""
    only: dict[Name, Value] | list[Annotated[str, StringConstraints(max_length=2_200)]] = Field(
        default={}, max_length=20
    )
    """Conditions on columns of the items, all of which an item must satisfy: {"category": "Tents"}."""
    exclude_seen: bool | None = None
    """Whether to leave out the items of the history; by default as the data set says."""
    page: Annotated[str, StringConstraints(max_length=100_000)] | None = None
    """Token `next_page` of an answer: the items that follow those."""
    preview: bool = False
    """Whether the list is only looked at by whoever runs the shop: then it is not logged as an impression."""
    explore: float | None = Field(None, ge=0, le=100)
    """Temperature with which the list is sampled from the best items; 0: not at all; default: as the server is set."""

    def to_request(self) -> ServedRequest:
        """Return the request as the engine reads it. Raises UserError if neither a user nor a history is given."""
        only = (
            self.only if isinstance(self.only, list) else [f"{name}={text(value)}" for name, value in self.only.items()]
        )
        return ServedRequest(
            **self._common(),
            k=self.k,
            exclude=tuple(str(item) for item in self.exclude),
            only=tuple(only),
            exclude_seen=self.exclude_seen,
            is_preview=self.preview,
        )


class RankBody(_Asker):
    """A request to order given items."""

    candidates: list[IdOrNumber] = Field(min_length=1, max_length=MAX_LIST)
    """Ids of the items to order; duplicates count once."""

    def to_request(self) -> ServedRequest:
        """Return the request as the engine reads it. Raises UserError if neither a user nor a history is given."""
        return ServedRequest(**self._common(), candidates=tuple(str(item) for item in self.candidates))


class SimilarBody(_Body):
    """A request for items that are like an item."""

    item_id: IdOrNumber
    """Id of the item."""
    k: int = Field(10, ge=1, le=MAX_LIST)
    """Number of items."""
    model: Name | None = None
    """Name of the model; without it, the first that can tell."""


class UserEvent(_Body):
    """Something that a user did."""

    event_id: Id
    """Unique id of the event: an event that is sent twice counts once."""
    user_id: IdOrNumber
    """Id of the user."""
    item_id: IdOrNumber
    """Id of the item."""
    action: Name | None = None
    """What the user did: view, cart, buy, ..., as in the training data."""
    timestamp: Timestamp | None = None
    """Seconds or milliseconds since 1970 (UTC); without it, now."""
    request_id: Id | None = None
    """`request_id` of the answer that showed the item."""


class EventsBody(_Body):
    """Events to store."""

    events: list[UserEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class Item(BaseModel):
    """One item of a list."""

    item_id: str | int
    score: float
    title: str
    channel: str | None = None
    """For a cascade, the channel that retrieved the item."""
    propensity: float | None = None
    """If the list was sampled, the probability of the item to be chosen for its slot given the slots above."""


class Neighbour(BaseModel):
    """An item of the history, and its share in the score of a listed item."""

    item_id: str | int
    title: str
    share: float


class StagePosition(BaseModel):
    """The place of an item after a stage of a cascade, from 1."""

    stage: str
    position: int


class ExplainedItem(BaseModel):
    """Why an item is in a list."""

    item_id: str | int
    channel: str | None = None
    """For a cascade, the channel that retrieved the item."""
    neighbours: list[Neighbour]
    """Items of the history that raise its score, the largest share first; the shares sum to 1."""
    stages: list[StagePosition] | None = None
    """For a cascade, its place after each stage."""


class ExplainedPrefix(BaseModel):
    """A prefix of semantic IDs in a search."""

    codes: list[int]
    score: float
    """What it was selected by."""
    model: float | None = None
    """Its log-probability by the generator alone, if there is a guide."""
    guide: float | None = None
    """Log of the largest probability that the guide has for an item below it; none for 0."""
    state: Literal["kept", "pruned", "cut"]
    """kept: it stayed in the search; pruned: others were better; cut: no item below it is allowed."""
    titles: list[str] | None = None
    """Titles of the most popular items below it."""


class ExplainedLevel(BaseModel):
    """The prefixes of one level of a search."""

    level: int
    prefixes: list[ExplainedPrefix]
    cut_by_constraint: int
    """Number of prefixes that would have stayed without filters and exclusions."""


class ListExplanation(BaseModel):
    """Why these items: which events carry them, and how the search walked down the semantic IDs."""

    items: list[ExplainedItem]
    levels: list[ExplainedLevel]


class ListAnswer(BaseModel):
    """A list of items, best first."""

    request_id: str
    """Id of this answer; events that it caused name it."""
    model: str
    version: str
    """Fingerprint of the model's weights and settings."""
    items: list[Item]
    fallback: bool
    """Whether the list is not an answer of the model."""
    fallback_reason: str | None = None
    """Why: "no history", "deadline" or "error"."""
    relaxed: list[str] = []
    """Rules that no candidate could satisfy."""
    skipped: list[str] = []
    """Ids of the history that no item has."""
    unknown_exclusions: list[str] = []
    """Ids in `exclude` that no item has."""
    guided: bool | None = None
    """For a generator with a guide, whether the guide had a score for any allowed item."""
    next_page: str | None = None
    """Token for the items that follow; none if this list is the end."""
    explanation: ListExplanation | None = None
    """Why these items, if `explain` was set and the list is not a fallback for a missed deadline or an error."""


class SimilarItem(BaseModel):
    """One item of a list of similar items."""

    item_id: str | int
    score: float


class SimilarAnswer(BaseModel):
    """The items that are most like an item, best first."""

    model: str
    version: str
    """Fingerprint of the model's weights and settings."""
    items: list[SimilarItem]


class EventsAnswer(BaseModel):
    """What became of the events."""

    accepted: int
    """Number of events of the call; all of them are stored durably, now or from a former call."""
    unknown_items: list[str] = []
    """Ids that no model knows; their events are stored, too."""


class RefusedAnswer(BaseModel):
    """A version that could not be taken into use."""

    name: str
    """Name of the version, as in RUN/versions."""
    reason: str


class ModelAnswer(BaseModel):
    """One model that is served."""

    name: str
    kind: str
    """Name of the model in the package, such as sasrec."""
    version: str
    """Fingerprint of the model's weights and settings."""
    version_name: str
    """Name of the version, as in RUN/versions."""
    num_items: int
    weight: float
    """Share of the users who are assigned to it."""
    has_guide: bool = False
    """Whether another model guides its searches, so that a request may say `guide_weight`."""
    guide_weight: float | None = None
    """Weight of the guide that was chosen in training."""
    objectives: list[str] = []
    """Names that a request may give as `objective`."""
    num_levels: int | None = None
    """Number of codes of a semantic ID; none: its items have none."""
    is_shadow: bool
    """Whether it gets copies of requests, and nobody sees its lists."""
    refused: RefusedAnswer | None = None
    """The last version that could not be taken into use, until another one is."""


class Problem(BaseModel):
    """What is wrong with a request, and the way out."""

    error: str
