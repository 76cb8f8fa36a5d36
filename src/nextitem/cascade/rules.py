"""Rules: the owner's demands on a list in addition to relevance: filters, pinned items, caps, gaps, quotas, freshness.

Source: specification of business rules as in industrial cascades; no paper. The rules have an order, most important
first. Filters always hold. Then pinned items are put into their slots. The other slots are filled one by one. Each gets
the best candidate that satisfies every rule at that slot and leaves the later slots able to satisfy theirs. If there is
no such candidate, the last rule of the order is relaxed first.

`Recommendations.relaxations` lists every rule that does not hold in the finished list. It is computed from the list
itself, so a rule that is not listed there holds.

Notable
- Candidates keep the order in which they come; scores are not used.
- The look-ahead counts items and does not try arrangements. It considers: quotas against the remaining slots; quotas
  against the items that caps on the whole list leave them; gaps and windows against the values that remain for the
  remaining slots; a quota against a gap on the same column. Quotas and caps of several columns at once can defeat it.
  Then a rule is relaxed that another arrangement would have satisfied, and it is reported like any other.
- A pinned item takes precedence over items that are not pinned. A pin is relaxed only for caps and gaps that precede it
  in the order, for another pin in its slot, if its slot is beyond the end of the list, and if its item is no candidate.
  A pin beyond k has no effect.
- Items without a value never count as items with the same value. An item is fresh within `days` days after its release,
  at the time of the request. Without a release time or a request time it is not fresh.

Shapes: B requests, K candidates, k items of the answer, N items.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.cascade.reranker import Reranker, select_candidates, sum_by_value
from nextitem.cascade.rule_kinds import Cap, Filter, Fresh, Gap, Pin, Quota, Rule
from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.recommendations import Recommendations, Relaxation
from nextitem.neighbours.item_similarity import categorical_kind, one_value

DAY_MS = 86_400_000
NEVER = -(10**6)  # a slot long before the first
ROUNDING = 1e-6  # tolerance of comparisons of sums of fractions


class RulesConfig(configs.Config):
    """Settings of re-ranking by rules."""

    rules: tuple[Rule, ...] = ()
    """Rules, most important first; if not all can hold, the last is relaxed first."""


class Rules(Reranker):
    """Re-ranker that fills lists under rules of the owner."""

    Config = RulesConfig
    is_allowed: Tensor

    def __init__(self, config: RulesConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        is_allowed = torch.ones(catalog.num_items + 1, dtype=torch.bool)
        self.list_rules: list[tuple[str, Any]] = []  # all rules but filters, in their order: (name of buffer, rule)
        for number, rule in enumerate(config.rules, start=1):
            if isinstance(rule, Filter):
                is_allowed &= _has_value(catalog, rule.column, rule.values) == (rule.kind == "keep")
                continue
            self.list_rules.append((f"rule_{number}", rule))
            self.register_buffer(f"rule_{number}", _item_values(catalog, rule), persistent=False)
        self.register_buffer("is_allowed", is_allowed, persistent=False)  # bool [N + 1], by the filters

    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        ids = candidates.item_ids
        is_available = (ids > 0) & self.is_allowed[ids]
        draft = _Draft(is_available, min(k, ids.shape[1]))
        if draft.selection.numel():
            self._fill(draft, ids, batch)
        selection = F.pad(draft.selection, (0, k - draft.selection.shape[1]), value=-1)
        return select_candidates(candidates, selection, k, relaxations=self._relaxations(selection, ids, batch))

    def _fill(self, draft: _Draft, ids: Tensor, batch: SequenceBatch) -> None:
        """Put pinned items into the draft, then fill the other slots one by one."""
        for name, rule in self.list_rules:
            draft.add_rule(rule, None if isinstance(rule, Pin) else self._rule_values(name, rule, ids, batch))
        for rule_index, (name, rule) in enumerate(self.list_rules):
            if isinstance(rule, Pin):
                draft.pin(ids == getattr(self, name), rule.slot - 1, num_earlier_rules=rule_index)
        draft.prepare_lookaheads()
        for slot in range(draft.selection.shape[1]):
            draft.fill(slot)

    def _rule_values(self, name: str, rule: Any, ids: Tensor, batch: SequenceBatch) -> Tensor:
        """Return what a rule reads of items `ids [B, any]`, of the same shape.

        For a cap or gap these are the codes of the items' values. For a quota they say whether the item counts, bool.
        """
        item_values: Tensor = getattr(self, name)[ids]
        if not isinstance(rule, Fresh):
            return item_values
        if batch.request_times is None:
            return torch.zeros_like(ids, dtype=torch.bool)
        age = batch.request_times[:, None] - item_values
        return (item_values > 0) & (age >= 0) & (age <= rule.days * DAY_MS)

    def _relaxations(self, selection: Tensor, ids: Tensor, batch: SequenceBatch) -> list[Relaxation]:
        """Return every rule that does not hold in the lists, by request, in the order of the rules.

        `selection [B, k]` contains indices of candidates, -1: the slot is empty; `ids [B, K]` the candidates' numbers.
        """
        items = selection.clamp(min=0)
        if ids.shape[1]:
            items = torch.where(selection >= 0, ids.gather(1, items), 0)
        slots = torch.arange(items.shape[1], device=items.device)
        entries = []
        for rule_index, (name, rule) in enumerate(self.list_rules):
            text = f"{name.removeprefix('rule_')}. {_describe(rule)}"
            if isinstance(rule, Pin):
                is_broken = (items != getattr(self, name)) & (slots == rule.slot - 1)
            elif isinstance(rule, Cap | Gap):
                max_count, window = _count_limit(rule)
                values = self._rule_values(name, rule, items, batch)
                is_same = (values[:, :, None] == values[:, None, :]) & (values > 0)[:, None]
                distance = slots[:, None] - slots
                is_broken = (is_same & (distance >= 0) & (distance < (window or len(slots)))).sum(2) > max_count
                is_broken &= values > 0
            else:
                is_short = self._rule_values(name, rule, items, batch).sum(1) < rule.least
                entries += [(row, rule_index, Relaxation(row, text)) for row in is_short.nonzero()[:, 0].tolist()]
                continue
            cells = is_broken.nonzero().tolist()
            entries += [(row, rule_index, Relaxation(row, text, slot + 1)) for row, slot in cells]
        return [relaxation for _, _, relaxation in sorted(entries, key=lambda entry: entry[:2])]


class _Draft:
    """Draft of the lists of a batch, while their slots are being filled.

    Candidates have one more index, K, which stands for no candidate. Putting it into a slot changes nothing. So
    requests whose slot is already filled go through the same steps as the others.

    selection     [B, k] index of the candidate in each slot, -1: the slot is empty
    is_available  bool [B, K + 1] whether a candidate can still be selected
    is_free       bool [B, k] whether a slot is to be filled
    num_later     [B, k] number of free slots after each slot, once pinned items are in their slots
    states        state of each rule, in the order of the rules; None: a pin
    lookaheads    (index of the rule to which it belongs, look-ahead)
    """

    def __init__(self, is_available: Tensor, k: int) -> None:
        num_available = is_available.sum(1, keepdim=True)
        self.is_available = F.pad(is_available, (0, 1))
        self.no_candidate = is_available.shape[1]
        self.selection = torch.full((len(is_available), k), -1, device=is_available.device)
        self.is_free = torch.arange(k, device=is_available.device) < num_available
        self.num_later = self.is_free
        self.states: list[_Cap | _Quota | None] = []
        self.lookaheads: list[tuple[int, _Lookahead]] = []
        self.last_pinned_slot = 0

    def add_rule(self, rule: Any, values: Tensor | None) -> None:
        """Add a rule after the earlier ones; `values [B, K]` are the candidates' values that it reads; None: a pin."""
        if values is None:
            self.states.append(None)
        elif isinstance(rule, Cap | Gap):
            self.states.append(_Cap(rule.column, values, *_count_limit(rule), num_slots=self.selection.shape[1]))
        else:
            is_counted = F.pad(values, (0, 1))
            need = (is_counted & self.is_available).sum(1).clamp(max=rule.least)
            self.states.append(_Quota(getattr(rule, "column", None), is_counted, need))

    def pin(self, is_item: Tensor, slot: int, *, num_earlier_rules: int) -> None:
        """Pin the candidate of `is_item [B, K]` at `slot` if the first `num_earlier_rules` rules allow it there."""
        if slot >= self.selection.shape[1]:
            return
        is_pinned = F.pad(is_item, (0, 1)) & self.is_available & self.is_free[:, slot : slot + 1]
        for state in self.states[:num_earlier_rules]:
            if isinstance(state, _Cap):
                is_pinned = is_pinned & state.allowed_at(slot, both_sides=True)
        self.put(slot, is_pinned.byte().argmax(1, keepdim=True), is_pinned.any(1, keepdim=True))
        self.is_free[:, slot] &= self.selection[:, slot] < 0
        self.last_pinned_slot = max(self.last_pinned_slot, slot)

    def put(self, slot: int, candidate: Tensor, rows: Tensor) -> None:
        """Put the candidates at the indices `candidate [B, 1]` into a slot, in the requests `rows`, bool [B, 1]."""
        candidate = candidate.masked_fill(~rows, self.no_candidate)
        self.selection[:, slot : slot + 1] = torch.where(rows, candidate, self.selection[:, slot : slot + 1])
        self.is_available.scatter_(1, candidate, False)
        for state in self.states:
            if state is not None:
                state.put(slot, candidate)
        for _, lookahead in self.lookaheads:
            lookahead.put(slot, candidate)

    def prepare_lookaheads(self) -> None:
        """Select the look-aheads that could exclude a candidate; with many candidates for few slots, most cannot."""
        self.num_later = self.is_free.flip(1).cumsum(1).flip(1) - self.is_free.long()
        caps = [(rule_index, state) for rule_index, state in enumerate(self.states) if isinstance(state, _Cap)]
        pairs: list[tuple[int, _Lookahead]] = [
            (rule_index, _WindowFeasibility(cap, self.is_available)) for rule_index, cap in caps if cap.window
        ]
        for quota_index, state in enumerate(self.states):
            if isinstance(state, _Quota):
                for cap_index, cap in caps:
                    rule_index = max(quota_index, cap_index)
                    if cap.window is None:
                        pairs.append((rule_index, _QuotaWithinCap(state, cap, self.is_available)))
                    elif cap.column == state.column:
                        pairs.append((rule_index, _QuotaWithinWindow(state, cap)))
        self.lookaheads = [pair for pair in pairs if pair[1].can_constrain(self.is_available, self.num_later)]

    def fill(self, slot: int) -> None:
        """Put the best candidate that the rules allow into a slot, for each request for which the slot is free."""
        rows, num_later = self.is_free[:, slot : slot + 1], self.num_later[:, slot : slot + 1]
        masks = self._masks(slot, num_later)
        fits = self.is_available
        for mask in masks:
            fits = fits & mask
        if not bool((fits.any(1, keepdim=True) | ~rows).all()):
            fits = self.is_available
            for mask in masks:  # the last rules are relaxed first
                both = fits & mask
                fits = torch.where(both.any(1, keepdim=True), both, fits)
        self.put(slot, fits.byte().argmax(1, keepdim=True), rows)

    def _masks(self, slot: int, num_later: Tensor) -> list[Tensor]:
        """Return the candidates that each rule and each look-ahead allows at a slot, bool [B, K + 1], in rule order.

        `num_later [B, 1]` is the number of free slots after this one.
        """
        masks: list[Tensor] = []
        quotas = [state for state in self.states if isinstance(state, _Quota)]
        is_tight = bool(quotas) and bool((sum(quota.need for quota in quotas) > num_later[:, 0]).any())
        num_needed = torch.zeros_like(num_later)  # [B, 1], by the quotas so far
        num_helped = torch.zeros_like(self.is_available, dtype=torch.int64)  # quotas for which a candidate counts
        for rule_index, state in enumerate(self.states):
            if isinstance(state, _Cap):
                masks.append(state.allowed_at(slot, both_sides=slot < self.last_pinned_slot))
            elif isinstance(state, _Quota) and is_tight:
                # All quotas so far must fit into the remaining slots; a quota requires no more than still fits.
                need = torch.minimum(state.need, (num_later[:, 0] + 1 - num_needed[:, 0]).clamp(min=0))[:, None]
                num_needed, num_helped = num_needed + need, num_helped + (state.is_counted & (need > 0))
                masks.append(num_needed - num_helped <= num_later)
            lookaheads = [lookahead for index, lookahead in self.lookaheads if index == rule_index]
            masks += [lookahead.allowed_at(slot, self.is_available, num_later) for lookahead in lookaheads]
        return masks


class _Cap:
    """State of a cap or gap: at most `max_count` items of a value within `window` slots, or on the list (None).

    values       [B, K + 1] codes of the candidates' values; a candidate without a value has a code of its own
    num_on_list  [B, K + 1] number of items on the list with the value of a candidate; used without a window
    is_used      [slots and margins, B, K + 1] whether the item in a slot has the value of a candidate; used with a
                 window; the margins at both ends have window - 1 slots
    """

    def __init__(self, column: str, values: Tensor, max_count: int, window: int | None, *, num_slots: int) -> None:
        self.column, self.max_count = column, max_count
        self.window = window if window is not None and window < num_slots else None
        unique_codes = -1 - torch.arange(values.shape[1] + 1, device=values.device)
        values = F.pad(values, (0, 1))
        self.values = torch.where(values > 0, values, unique_codes)
        self.num_on_list = torch.zeros_like(self.values)
        margin = (self.window or 1) - 1
        shape = (num_slots + 2 * margin, *self.values.shape) if self.window else (0,)
        self.is_used = torch.zeros(shape, dtype=torch.uint8, device=values.device)

    def has_value_of(self, candidate: Tensor) -> Tensor:
        """Return which candidates have the same value as the candidate at index `candidate [B, 1]`, bool [B, K + 1]."""
        return self.values == self.values.gather(1, candidate)

    def put(self, slot: int, candidate: Tensor) -> None:
        """Record that `candidate [B, 1]` is put into a slot."""
        if self.window:
            self.is_used[slot + self.window - 1] |= self.has_value_of(candidate)
        else:
            self.num_on_list += self.has_value_of(candidate)

    def allowed_at(self, slot: int, *, both_sides: bool) -> Tensor:
        """Return which candidates the cap allows at a slot, bool [B, K + 1].

        `both_sides` also reads the slots after it, which is necessary if there may be pinned items.
        """
        if not self.window:
            return self.num_on_list < self.max_count
        if not both_sides:
            return self.is_used[slot : slot + self.window - 1].sum(0) < self.max_count
        around = self.is_used[slot : slot + 2 * self.window - 1].unfold(0, self.window, 1)
        return around.sum(3).amax(0) < self.max_count


class _Quota:
    """State of a quota: how many more items it needs, and which candidates count for it.

    is_counted  bool [B, K + 1] whether a candidate counts
    need        [B] number of items that are still needed; 0 if the quota is satisfied
    """

    def __init__(self, column: str | None, is_counted: Tensor, need: Tensor) -> None:
        self.column, self.is_counted, self.need = column, is_counted, need

    def put(self, slot: int, candidate: Tensor) -> None:
        self.need = (self.need - self.is_counted.gather(1, candidate)[:, 0].long()).clamp(min=0)


class _WindowFeasibility:
    """Check that enough distinct values remain to fill the remaining slots under a cap within a window."""

    def __init__(self, cap: _Cap, is_available: Tensor) -> None:
        self.cap = cap
        self.count = sum_by_value(cap.values, is_available.double())  # available candidates of a candidate's value

    def can_constrain(self, is_available: Tensor, num_later: Tensor) -> bool:
        """Return whether the check can ever exclude a candidate."""
        # It cannot if the number of distinct values is at least the number of later slots plus the window: then there
        # is an allowed value for every slot.
        num_values = (is_available / self.count.clamp(min=1)).sum(1)
        return bool((num_values < num_later.shape[1] + (self.cap.window or 0)).any())

    def put(self, slot: int, candidate: Tensor) -> None:
        self.count = self.count - self.cap.has_value_of(candidate).double()

    def allowed_at(self, slot: int, is_available: Tensor, num_later: Tensor) -> Tensor:
        """Return which candidates leave enough items for the later slots, bool [B, K + 1]."""
        # Selecting an item uses one up only if all available items of its value fit into the later slots. Otherwise
        # another item of the value takes its place there.
        max_count, window = self.cap.max_count, self.cap.window or 1
        room = max_count * (num_later // window) + (num_later % window).clamp(max=max_count)  # for items of one value
        num_fitting = (is_available * (room / self.count.clamp(min=1)).clamp(max=1)).sum(1, keepdim=True)
        return num_fitting - (self.count <= room).double() >= num_later - ROUNDING


class _QuotaWithinCap:
    """Check that a cap on the whole list leaves a quota the items that it needs."""

    def __init__(self, quota: _Quota, cap: _Cap, is_available: Tensor) -> None:
        self.quota, self.cap = quota, cap
        # Available candidates that count for the quota and have a candidate's value.
        self.count = sum_by_value(cap.values, (is_available & quota.is_counted).double())

    def can_constrain(self, is_available: Tensor, num_later: Tensor) -> bool:
        """Return whether the check can ever exclude a candidate: each slot takes at most one item from the quota."""
        spare = self._spare(is_available, (self.cap.max_count - self.cap.num_on_list).clamp(min=0))
        return bool(((spare < num_later.shape[1])[:, 0] & (self.quota.need > 0)).any())

    def put(self, slot: int, candidate: Tensor) -> None:
        is_removed = self.cap.has_value_of(candidate) & self.quota.is_counted.gather(1, candidate)
        self.count = self.count - is_removed.double()

    def allowed_at(self, slot: int, is_available: Tensor, num_later: Tensor) -> Tensor:
        """Return the items that count for the quota, and the others after which it can still be filled."""
        room = (self.cap.max_count - self.cap.num_on_list).clamp(min=0)
        spare = self._spare(is_available, room)
        return self.quota.is_counted | (spare - (self.count >= room).double() >= -ROUNDING)

    def _spare(self, is_available: Tensor, room: Tensor) -> Tensor:
        """Return how many more items for the quota the cap allows than the quota needs, [B, 1]."""
        num_fitting = (is_available & self.quota.is_counted) * (room / self.count.clamp(min=1)).clamp(max=1)
        return num_fitting.sum(1, keepdim=True) - self.quota.need[:, None]


class _QuotaWithinWindow:
    """Check that the remaining slots have room for a quota under a cap within a window on the same column."""

    def __init__(self, quota: _Quota, cap: _Cap) -> None:
        self.quota, self.cap = quota, cap
        self.last_slot = torch.full_like(quota.need, NEVER)  # [B] of the last item that counts for the quota

    def can_constrain(self, is_available: Tensor, num_later: Tensor) -> bool:
        """Return whether the check can ever exclude a candidate: whether the quota needs any item."""
        return bool((self.quota.need > 0).any())

    def put(self, slot: int, candidate: Tensor) -> None:
        self.last_slot = self.last_slot.masked_fill(self.quota.is_counted.gather(1, candidate)[:, 0], slot)

    def allowed_at(self, slot: int, is_available: Tensor, num_later: Tensor) -> Tensor:
        """Return the items that count for the quota, and all others if the later slots suffice for the quota."""
        max_count, window = self.cap.max_count, self.cap.window or 1
        wait = (self.last_slot + window - slot - 1).clamp(min=0)[:, None] if max_count == 1 else 0
        num_slots = (num_later - wait).clamp(min=0)
        room = max_count * (num_slots // window) + (num_slots % window).clamp(max=max_count)
        return self.quota.is_counted | (self.quota.need[:, None] <= room)


_Lookahead = _WindowFeasibility | _QuotaWithinCap | _QuotaWithinWindow


def _count_limit(rule: Cap | Gap) -> tuple[int, int | None]:
    """Return the largest number of items of a value, and the window in slots; a gap allows one within its window."""
    return (rule.most, rule.window) if isinstance(rule, Cap) else (1, rule.between + 1)


def _describe(rule: Any) -> str:
    """Return the text of a rule in relaxations."""
    if isinstance(rule, Pin):
        return f"pin {rule.item} at {rule.slot}"
    if isinstance(rule, Cap):
        return f"cap of {rule.most} per {rule.column}" + (f" within {rule.window}" if rule.window else "")
    if isinstance(rule, Gap):
        return f"gap of {rule.between} per {rule.column}"
    if isinstance(rule, Quota):
        return f"quota of {rule.least} with {rule.column} = {rule.value}"
    return f"quota of {rule.least} released within {rule.days:g} days"


def _item_values(catalog: Catalog, rule: Any) -> Tensor:
    """Return what a rule reads of every item [N + 1]; for a pin, the number of its item [].

    For a cap or gap these are codes of values, 0: missing. For a quota they say whether the item has the value. For
    freshness they are release times in milliseconds. Raises UserError if the catalogue lacks the item or column.
    """
    if isinstance(rule, Pin):
        number = int(catalog.ids.encode(pl.Series([rule.item]))[0])
        if not number:
            raise UserError(
                f"rule pin: there is no item {rule.item!r} in the catalogue; remove the rule or correct the id"
            )
        return torch.tensor(number)
    if isinstance(rule, Cap | Gap):
        return one_value(catalog, rule.column)
    if isinstance(rule, Quota):
        return _has_value(catalog, rule.column, (rule.value,))
    if catalog.released_ms is None:
        raise UserError("rule fresh: release times of items are not known; name their column as [items] released")
    return F.pad(torch.tensor(catalog.released_ms), (1, 0))


def _has_value(catalog: Catalog, column: str, values: tuple[str | int, ...]) -> Tensor:
    """Return whether each item has one of the values in a column, bool [N + 1]."""
    kind = categorical_kind(catalog, column)
    item_values = catalog.table[column].cast(pl.List(pl.String) if kind == "categorical-list" else pl.String)
    table = pl.DataFrame({"number": range(1, catalog.num_items + 1), "value": item_values})
    table = table.explode("value") if kind == "categorical-list" else table
    numbers = table.filter(pl.col("value").is_in([str(value) for value in values]))["number"]
    mask = torch.zeros(catalog.num_items + 1, dtype=torch.bool)
    mask[torch.tensor(numbers.to_list(), dtype=torch.int64)] = True
    return mask
