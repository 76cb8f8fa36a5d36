"""Rules: what an owner demands of a list, beside relevance: filters, pinned items, caps, gaps, quotas, freshness.

Source: specification of business rules as in industrial cascades; no paper. The rules stand in an order, most important
first. Filters hold always. Then pins are put at their places, and the other places are filled one by one, each with the
best candidate that keeps every rule at that place and leaves the later places able to keep theirs. Where none does,
the last rule of the order gives way first; whatever does not hold in the finished list stands in
`Recommendations.relaxations`: that is read off the list itself, so what is not said there holds.

Notable
- Candidates keep the order in which they come; scores play no part.
- The look-ahead counts, and does not try arrangements. It sees: quotas against the places left; quotas against the
  items that caps on the whole list leave them; gaps and windows against the values left for the places left; a quota
  against a gap on its own column. Quotas and caps of several columns at once can defeat it. Then a rule gives way that
  another arrangement would have kept, and that is said as any other.
- A pin comes before what is not pinned, and gives way only to caps and gaps that stand before it in the order, to a pin
  at its place, to the list's end, and where its item is no candidate. A pin beyond k asks nothing.
- Items without a value are alike to none. An item is fresh within `days` days after its release, at the request's time;
  without a release or a request time it is not.

Shapes: B requests, K candidates, k items of the answer, N items.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import polars as pl
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from nextitem.cascade.reranker import Reranker, sum_by_value, take
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.recommendations import Recommendations, Relaxation
from nextitem.neighbours.item_similarity import categorical_kind, one_value

DAY_MS = 86_400_000
NEVER = -(10**6)  # a place long before the first
ROUNDING = 1e-6


class Filter(configs.Config):
    """Only items with one of the values are kept, or those are dropped."""

    kind: Literal["keep", "drop"]
    """Keep items by the value of a column."""
    column: str
    """Categorical or categorical-list feature."""
    values: tuple[str | int, ...]
    """Values that an item may have in the column."""


class Pin(configs.Config):
    """An item that stands at a place wherever it is a candidate."""

    kind: Literal["pin"]
    """Put an item into a slot."""
    item: str | int
    """The owner's item id."""
    slot: int = Field(ge=1)
    """Place, from 1."""


class Cap(configs.Config):
    """At most so many items of one value."""

    kind: Literal["cap"]
    """Limit how many items share a value."""
    column: str
    """Categorical feature."""
    most: int = Field(ge=1)
    """Items of one value."""
    window: int | None = Field(None, ge=2)
    """Within so many neighbouring places; None: on the list."""


class Gap(configs.Config):
    """Items of one value stand apart."""

    kind: Literal["gap"]
    """Keep items of one value apart."""
    column: str
    """Categorical feature."""
    between: int = Field(ge=1)
    """Other items between two of one value, at least."""


class Quota(configs.Config):
    """At least so many items of a value are on the list."""

    kind: Literal["quota"]
    """Require a number of items of a value."""
    column: str
    """Categorical or categorical-list feature."""
    value: str | int
    """The value that the items must have."""
    least: int = Field(ge=1)
    """Items."""


class Fresh(configs.Config):
    """At least so many items are new."""

    kind: Literal["fresh"]
    """Require a number of new items."""
    days: float = Field(gt=0)
    """Since the release, at most."""
    least: int = Field(ge=1)
    """Items."""


Rule = Annotated[Filter | Pin | Cap | Gap | Quota | Fresh, Field(discriminator="kind")]


class RulesConfig(configs.Config):
    """Settings of Rules."""

    rules: tuple[Rule, ...] = ()
    """Most important first: where not all can hold, the last gives way first."""


class Rules(Reranker):
    """Fills a list under rules."""

    Config = RulesConfig
    passes: Tensor

    def __init__(self, config: RulesConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        passes = torch.ones(catalog.num_items + 1, dtype=torch.bool)
        self.ordered: list[tuple[str, Any]] = []  # (name of its buffer, rule)
        for number, rule in enumerate(config.rules, start=1):
            if isinstance(rule, Filter):
                passes &= _has(catalog, rule.column, rule.values) == (rule.kind == "keep")
                continue
            self.ordered.append((f"rule_{number}", rule))
            self.register_buffer(f"rule_{number}", _of_items(catalog, rule), persistent=False)
        self.register_buffer("passes", passes, persistent=False)

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        ids = candidates.item_ids
        left = (ids > 0) & self.passes[ids]
        draft = _Draft(left, min(k, ids.shape[1]))
        if draft.chosen.numel():
            self._fill(draft, ids, batch)
        chosen = F.pad(draft.chosen, (0, k - draft.chosen.shape[1]), value=-1)
        return take(candidates, chosen, k, relaxations=self._broken(chosen, ids, batch))

    def _fill(self, draft: _Draft, ids: Tensor, batch: SequenceBatch) -> None:
        """Pins, then place by place."""
        for name, rule in self.ordered:
            draft.add(rule, None if isinstance(rule, Pin) else self._read(name, rule, ids, batch))
        for place, (name, rule) in enumerate(self.ordered):
            if isinstance(rule, Pin):
                draft.pin(ids == getattr(self, name), rule.slot - 1, before=place)
        draft.look_ahead()
        for slot in range(draft.chosen.shape[1]):
            draft.fill(slot)

    def _read(self, name: str, rule: Any, ids: Tensor, batch: SequenceBatch) -> Tensor:
        """What a cap, gap or quota knows of items [...]: their values, or whether they count."""
        of_items: Tensor = getattr(self, name)[ids]
        if not isinstance(rule, Fresh):
            return of_items
        if batch.request_times is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        age = batch.request_times[:, None] - of_items
        return (of_items > 0) & (age >= 0) & (age <= rule.days * DAY_MS)

    def _broken(self, chosen: Tensor, ids: Tensor, batch: SequenceBatch) -> list[Relaxation]:
        """Every rule that does not hold in the lists `chosen [B, k]`, request by request, in the order of the rules."""
        shown = torch.where(chosen >= 0, ids.gather(1, chosen.clamp(min=0)), 0) if ids.shape[1] else chosen.clamp(min=0)
        places = torch.arange(shown.shape[1], device=shown.device)
        found = []
        for order, (name, rule) in enumerate(self.ordered):
            text = f"{name.removeprefix('rule_')}. {_text(rule)}"
            if isinstance(rule, Pin):
                wrong = (shown != getattr(self, name)) & (places == rule.slot - 1)
            elif isinstance(rule, Cap | Gap):
                most, window = _limits(rule)
                values = self._read(name, rule, shown, batch)
                equal = (values[:, :, None] == values[:, None, :]) & (values > 0)[:, None]
                near = places[:, None] - places
                wrong = (equal & (near >= 0) & (near < (window or len(places)))).sum(2) > most
                wrong &= values > 0
            else:
                short = self._read(name, rule, shown, batch).sum(1) < rule.least
                found += [(row, order, Relaxation(row, text)) for row in short.nonzero()[:, 0].tolist()]
                continue
            found += [(row, order, Relaxation(row, text, slot + 1)) for row, slot in wrong.nonzero().tolist()]
        return [relaxation for _, _, relaxation in sorted(found, key=lambda entry: entry[:2])]


class _Draft:
    """Lists that are being filled: `chosen [B, k]` positions, -1 where there is none yet.

    Candidates have one more column, K, which stands for nothing: what goes there changes nothing, so requests whose
    place is taken already go through the same steps as the others.
    """

    def __init__(self, left: Tensor, k: int) -> None:
        count = left.sum(1, keepdim=True)
        self.left = F.pad(left, (0, 1))  # bool [B, K + 1]: who may still come
        self.nothing = left.shape[1]
        self.chosen = torch.full((len(left), k), -1, device=left.device)
        self.free = torch.arange(k, device=left.device) < count  # [B, k]: places to be filled
        self.after = self.free  # [B, k]: free places after each, once pins are set
        self.states: list[_Cap | _Quota | None] = []  # in the order of the rules; None: a pin
        self.glances: list[tuple[int, _Lookahead]] = []  # with the place of the rule that each belongs to
        self.last_pin = 0

    def add(self, rule: Any, known: Tensor | None) -> None:
        """Takes a rule into account; `known [B, K]` is what it reads of the candidates."""
        if known is None:
            self.states.append(None)
        elif isinstance(rule, Cap | Gap):
            self.states.append(_Cap(rule.column, known, *_limits(rule), places=self.chosen.shape[1]))
        else:
            counts = F.pad(known, (0, 1))
            need = (counts & self.left).sum(1).clamp(max=rule.least)
            self.states.append(_Quota(getattr(rule, "column", None), counts, need))

    def pin(self, is_item: Tensor, slot: int, *, before: int) -> None:
        """Puts the candidate of `is_item [B, K]` to a place where it may stand there by the first `before` rules."""
        if slot >= self.chosen.shape[1]:
            return
        held = F.pad(is_item, (0, 1)) & self.left & self.free[:, slot : slot + 1]
        for state in self.states[:before]:
            if isinstance(state, _Cap):
                held = held & state.may(slot, both_sides=True)
        self.put(slot, held.byte().argmax(1, keepdim=True), held.any(1, keepdim=True))
        self.free[:, slot] &= self.chosen[:, slot] < 0
        self.last_pin = max(self.last_pin, slot)

    def put(self, slot: int, position: Tensor, rows: Tensor) -> None:
        """The candidates at `position [B, 1]` go to a place, in the requests `rows [B, 1]`."""
        position = position.masked_fill(~rows, self.nothing)
        self.chosen[:, slot : slot + 1] = torch.where(rows, position, self.chosen[:, slot : slot + 1])
        self.left.scatter_(1, position, False)
        for state in self.states:
            if state is not None:
                state.put(slot, position)
        for _, glance in self.glances:
            glance.put(slot, position)

    def look_ahead(self) -> None:
        """Finds which rules could come to bind each other: most never do, with many candidates for few places."""
        self.after = self.free.flip(1).cumsum(1).flip(1) - self.free.long()
        caps = [(place, state) for place, state in enumerate(self.states) if isinstance(state, _Cap)]
        glances: list[tuple[int, _Lookahead]] = [
            (place, _WindowFeasibility(cap, self.left)) for place, cap in caps if cap.window
        ]
        for place, state in enumerate(self.states):
            if isinstance(state, _Quota):
                for other, cap in caps:
                    if cap.window is None:
                        glances.append((max(place, other), _QuotaWithinCap(state, cap, self.left)))
                    elif cap.column == state.column:
                        glances.append((max(place, other), _QuotaWithinWindow(state, cap)))
        self.glances = [(place, glance) for place, glance in glances if glance.can_constrain(self.left, self.after)]

    def fill(self, slot: int) -> None:
        """Puts the best fitting candidate of each request to a place that is free."""
        rows, after = self.free[:, slot : slot + 1], self.after[:, slot : slot + 1]
        masks = self._masks(slot, after)
        fits = self.left
        for mask in masks:
            fits = fits & mask
        if not bool((fits.any(1, keepdim=True) | ~rows).all()):
            fits = self.left
            for mask in masks:  # the last ones give way first
                both = fits & mask
                fits = torch.where(both.any(1, keepdim=True), both, fits)
        self.put(slot, fits.byte().argmax(1, keepdim=True), rows)

    def _masks(self, slot: int, after: Tensor) -> list[Tensor]:
        """Which candidates each rule, and each look ahead, lets stand at a place [B, K + 1], in the order of rules."""
        masks: list[Tensor] = []
        quotas = [state for state in self.states if isinstance(state, _Quota)]
        pressed = bool(quotas) and bool((sum(quota.need for quota in quotas) > after[:, 0]).any())
        owed, helped = torch.zeros_like(after), torch.zeros_like(self.left, dtype=torch.int64)
        for place, state in enumerate(self.states):
            if isinstance(state, _Cap):
                masks.append(state.may(slot, both_sides=slot < self.last_pin))
            elif isinstance(state, _Quota) and pressed:
                # All quotas so far must fit into the places left; one that cannot be met any more asks nothing.
                need = torch.minimum(state.need, (after[:, 0] + 1 - owed[:, 0]).clamp(min=0))[:, None]
                owed, helped = owed + need, helped + (state.counts & (need > 0))
                masks.append(owed - helped <= after)
            masks += [glance.may(slot, self.left, after) for own, glance in self.glances if own == place]
        return masks


class _Cap:
    """At most `most` of a value within `window` places, or on the list (None)."""

    def __init__(self, column: str, values: Tensor, most: int, window: int | None, *, places: int) -> None:
        self.column, self.most = column, most
        self.window = window if window is not None and window < places else None
        unlike = -1 - torch.arange(values.shape[1] + 1, device=values.device)
        values = F.pad(values, (0, 1))
        self.values = torch.where(values > 0, values, unlike)  # [B, K + 1]; what has no value is alike to none
        self.held = torch.zeros_like(self.values)  # items of a candidate's value on the list
        margin = (self.window or 1) - 1
        shape = (places + 2 * margin, *self.values.shape) if self.window else (0,)
        self.at = torch.zeros(shape, dtype=torch.uint8, device=values.device)  # are there any at a place (after margin)

    def alike(self, position: Tensor) -> Tensor:
        """Which candidates have the value of those at `position [B, 1]`."""
        return self.values == self.values.gather(1, position)

    def put(self, slot: int, position: Tensor) -> None:
        if self.window:
            self.at[slot + self.window - 1] |= self.alike(position)
        else:
            self.held += self.alike(position)

    def may(self, slot: int, *, both_sides: bool) -> Tensor:
        """Which candidates may stand at a place [B, K + 1]; with pins ahead it has to look at `both_sides`."""
        if not self.window:
            return self.held < self.most
        if not both_sides:
            return self.at[slot : slot + self.window - 1].sum(0) < self.most
        around = self.at[slot : slot + 2 * self.window - 1].unfold(0, self.window, 1)
        return around.sum(3).amax(0) < self.most


class _Quota:
    """So many more items are needed, [B], among those that count, [B, K + 1]; below 0: more than needed."""

    def __init__(self, column: str | None, counts: Tensor, need: Tensor) -> None:
        self.column, self.counts, self.need = column, counts, need

    def put(self, slot: int, position: Tensor) -> None:
        self.need = (self.need - self.counts.gather(1, position)[:, 0].long()).clamp(min=0)


class _WindowFeasibility:
    """Are there enough different values left to fill the places left, with a cap within a window?"""

    def __init__(self, cap: _Cap, left: Tensor) -> None:
        self.cap = cap
        self.count = sum_by_value(cap.values, left.double())  # left of a candidate's value

    def can_constrain(self, left: Tensor, after: Tensor) -> bool:
        """As long as a window's worth of values is left, each place finds one."""
        distinct = (left / self.count.clamp(min=1)).sum(1)
        return bool((distinct < after.shape[1] + (self.cap.window or 0)).any())

    def put(self, slot: int, position: Tensor) -> None:
        self.count = self.count - self.cap.alike(position).double()

    def may(self, slot: int, left: Tensor, after: Tensor) -> Tensor:
        """Choosing an item uses one up where its value's items all could have come; else others take its place."""
        most, window = self.cap.most, self.cap.window or 1
        room = most * (after // window) + (after % window).clamp(max=most)  # of one value in the places left
        can_come = (left * (room / self.count.clamp(min=1)).clamp(max=1)).sum(1, keepdim=True)
        return can_come - (self.count <= room).double() >= after - ROUNDING


class _QuotaWithinCap:
    """Does a cap on the list leave a quota the items that it needs?"""

    def __init__(self, quota: _Quota, cap: _Cap, left: Tensor) -> None:
        self.quota, self.cap = quota, cap
        self.count = sum_by_value(cap.values, (left & quota.counts).double())  # left of a candidate's value that count

    def can_constrain(self, left: Tensor, after: Tensor) -> bool:
        """Each place takes away one at most."""
        spare = self._spare(left, (self.cap.most - self.cap.held).clamp(min=0))
        return bool(((spare < after.shape[1])[:, 0] & (self.quota.need > 0)).any())

    def put(self, slot: int, position: Tensor) -> None:
        gone = self.cap.alike(position) & self.quota.counts.gather(1, position)
        self.count = self.count - gone.double()

    def may(self, slot: int, left: Tensor, after: Tensor) -> Tensor:
        """Items of the quota, and others that take nothing away which it needs."""
        room = (self.cap.most - self.cap.held).clamp(min=0)
        spare = self._spare(left, room)
        return self.quota.counts | (spare - (self.count >= room).double() >= -ROUNDING)

    def _spare(self, left: Tensor, room: Tensor) -> Tensor:
        """Items that can come beyond those needed, [B, 1]."""
        can_come = (left & self.quota.counts) * (room / self.count.clamp(min=1)).clamp(max=1)
        return can_come.sum(1, keepdim=True) - self.quota.need[:, None]


class _QuotaWithinWindow:
    """Do the places left hold the items that a quota needs, with a cap within a window on the same column?"""

    def __init__(self, quota: _Quota, cap: _Cap) -> None:
        self.quota, self.cap = quota, cap
        self.last = torch.full_like(quota.need, NEVER)  # place of the last of them

    def can_constrain(self, left: Tensor, after: Tensor) -> bool:
        """Where anything is needed at all."""
        return bool((self.quota.need > 0).any())

    def put(self, slot: int, position: Tensor) -> None:
        self.last = self.last.masked_fill(self.quota.counts.gather(1, position)[:, 0], slot)

    def may(self, slot: int, left: Tensor, after: Tensor) -> Tensor:
        """Items of the quota, and others where it can wait."""
        most, window = self.cap.most, self.cap.window or 1
        wait = (self.last + window - slot - 1).clamp(min=0)[:, None] if most == 1 else 0
        places = (after - wait).clamp(min=0)
        room = most * (places // window) + (places % window).clamp(max=most)
        return self.quota.counts | (self.quota.need[:, None] <= room)


_Lookahead = _WindowFeasibility | _QuotaWithinCap | _QuotaWithinWindow


def _limits(rule: Cap | Gap) -> tuple[int, int | None]:
    """How many of a value, within how many places; a gap is a window with one."""
    return (rule.most, rule.window) if isinstance(rule, Cap) else (1, rule.between + 1)


def _text(rule: Any) -> str:
    """A rule in words."""
    if isinstance(rule, Pin):
        return f"pin {rule.item} at {rule.slot}"
    if isinstance(rule, Cap):
        return f"cap of {rule.most} per {rule.column}" + (f" within {rule.window}" if rule.window else "")
    if isinstance(rule, Gap):
        return f"gap of {rule.between} per {rule.column}"
    if isinstance(rule, Quota):
        return f"quota of {rule.least} with {rule.column} = {rule.value}"
    return f"quota of {rule.least} released within {rule.days:g} days"


def _of_items(catalog: Catalog, rule: Any) -> Tensor:
    """What a rule reads of every item [N + 1]; of a pin, the item's number []."""
    if isinstance(rule, Pin):
        number = int(catalog.ids.encode(pl.Series([rule.item]))[0])
        if not number:
            raise UserError(
                f"rule pin: there is no item {rule.item!r} in the catalogue; remove the rule or mend the id"
            )
        return torch.tensor(number)
    if isinstance(rule, Cap | Gap):
        return one_value(catalog, rule.column)
    if isinstance(rule, Quota):
        return _has(catalog, rule.column, (rule.value,))
    if catalog.released_ms is None:
        raise UserError("rule fresh: release times of items are not known; name their column as [items] released")
    return F.pad(torch.tensor(catalog.released_ms), (1, 0))


def _has(catalog: Catalog, column: str, values: tuple[str | int, ...]) -> Tensor:
    """bool [N + 1]: has an item one of the values?"""
    kind = categorical_kind(catalog, column)
    listed = catalog.table[column].cast(pl.List(pl.String) if kind == "categorical-list" else pl.String)
    table = pl.DataFrame({"number": range(1, catalog.num_items + 1), "value": listed})
    table = table.explode("value") if kind == "categorical-list" else table
    found = table.filter(pl.col("value").is_in([str(value) for value in values]))["number"]
    mask = torch.zeros(catalog.num_items + 1, dtype=torch.bool)
    mask[torch.tensor(found.to_list(), dtype=torch.int64)] = True
    return mask
