"""Fields: the inputs of a ranker from a request and a candidate, declared once, as codes and as vectors.

item.<column>       the candidate's columns of the catalogue: item.id, every declared feature except text (times as
                    ages, histories as lists; content vectors represent text), item.age (time since the item's release),
                    item.popularity and item.trend (number of events before the request, and in the two weeks before
                    it; without times: all other events)
user.<column>       features of the user;  <column>: context of the request
request.hour, request.weekday
events.<column>     columns of the latest events: their actions and other categorical columns, the mean of numeric ones
                    (context and labels of [interactions])
history.<column>    ids or a categorical column of the latest items of the history; history.length: number of them
cross.<column>      number of latest events that share the candidate's id or category; cross.<column>.since: number of
                    events since the last of them; cross.<column>.last: pair of the last event's value and the
                    candidate's
cross.<column>.fast, .slow, .session
                    share of the candidate's id or category among the latest events, weighted by their age with two
                    half-lives, and among those of the current session; cross.<column>.slow.<action>: among those with
                    this action; history.fast, history.slow, session.events: weight of these events, the evidence for
                    the shares; session.minutes: duration of the session
item.<number>.in.<category>
                    quantile of a numeric column among the items of the same category;  cross.<number>.in.<category>:
                    its difference from the mean of the history;  item.popularity.in.<category>: popularity divided by
                    the mean of the category
shown.<column>      weighted number of times that the user was shown the candidate's id or category without a click
candidate.<name>    features that come with the candidates: candidate.slot, ranks in the channels of a cascade

All fields are computed from the batch and from what training has seen, so serving reads the same fields as training.

Shapes: B requests, P candidates of all requests, F fields, D width, N items.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl
import torch
from torch import Tensor, nn

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION, Catalog
from nextitem.core.errors import UserError
from nextitem.core.ids import stable_keys
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged, offsets_of
from nextitem.nn.fields import kinds
from nextitem.nn.fields.event_kinds import EventBag, EventMean
from nextitem.nn.fields.event_weights import SESSION, Weighting
from nextitem.nn.fields.interest_kinds import EventEvidence, InterestShare, NotClicked, SessionMinutes
from nextitem.nn.fields.item_popularity import ItemPopularity, PopularityWithin
from nextitem.nn.fields.relative_kinds import RelativeNumber, RelativeToHistory
from nextitem.nn.tables.id_hash import hash_ids
from nextitem.nn.tables.kinds import DenseRows, TableConfig
from nextitem.nn.tables.tables import Table, build_table

TREND_DAYS = 14
HALF_LIVES = (3.0, 30.0)
# Fields that are read only if they are named: they help some data sets, and not the others (decision 130).
OPTIONAL = re.compile(r"^history\.(fast|slow)$|^session\.|^cross\..*\.(session|slow\..*)$|^shown\.")
MAX_ACTIONS = 4  # a log with more actions than that has no fields of single actions


@dataclass(frozen=True, eq=False)
class FieldCodes:
    """Codes of the fields of a batch, as row numbers in one table that all fields share.

    The codes of a field begin at its offset in that table.

    Attributes:
        request: [B, F1] codes of fields with one code for each request.
        request_bags: bags with B rows, one for each field with any number of codes for a request.
        candidate: [P, F2] codes of fields with one code for each candidate.
        candidate_bags: bags with P rows, one for each field with any number of codes for a candidate.
        rows: [P] index of the request of each candidate.

    """

    request: Tensor
    request_bags: Sequence[Jagged]
    candidate: Tensor
    candidate_bags: Sequence[Jagged]
    rows: Tensor

    def matrix(self) -> Tensor:
        """Return the codes of all fields that are no bags, one row for each candidate [P, F1 + F2]."""
        return torch.cat([self.request[self.rows], self.candidate], dim=1)

    def code_occurrences(self) -> tuple[Tensor, Tensor]:
        """Return every code occurrence in the batch and the number of candidates it applies to.

        Both have one entry for each occurrence. A code of a request applies to all of its candidates.
        """
        num_candidates = torch.bincount(self.rows, minlength=len(self.request)).float()
        of_candidates = torch.cat([self.candidate.flatten(), *(bag.values for bag in self.candidate_bags)])
        codes = [self.request.flatten(), *(bag.values for bag in self.request_bags), of_candidates]
        counts = [
            num_candidates.repeat_interleave(self.request.shape[1]),
            *(num_candidates[bag.row_ids()] for bag in self.request_bags),
            num_candidates.new_ones(len(of_candidates)),
        ]
        return torch.cat(codes), torch.cat(counts)


class Fields(nn.Module):
    """Encoder of the selected fields of requests and candidates into codes.

    The order of the fields is: those of requests, bags of requests, those of candidates, bags of candidates.

    Args:
        catalog: catalogue, which decides what fields there are.
        names: names of the fields to read; empty for all that the catalogue has, except those of OPTIONAL.
        max_history_length: number of latest events of a history that fields read.
        buckets: number of buckets of a numeric column.
        pair_buckets: number of buckets into which pairs of values are hashed.
        candidate_features: names of the features that come with the candidates.
        half_lives: half-lives of fast and slow weights of events, in days (in events if the log has no times).
        delay_hours: hours within which a label of an impression may still arrive.

    Attributes:
        all_names: names of all fields that the catalogue has.
        missing: by field, how many requests outside training lacked a value or had one that training had not seen.

    Raises:
        UserError: one of `names` is no field of this catalogue.

    """

    starts: Tensor

    def __init__(
        self,
        catalog: Catalog,
        names: Sequence[str] = (),
        *,
        max_history_length: int = 50,
        buckets: int = 32,
        pair_buckets: int = 65_536,
        candidate_features: Sequence[str] = (),
        half_lives: tuple[float, float] = HALF_LIVES,
        delay_hours: float = 0.0,
    ) -> None:
        super().__init__()
        self.max_history_length = max_history_length
        available = _available_fields(
            catalog, buckets=buckets, pair_buckets=pair_buckets, candidate_features=candidate_features
        )
        available |= _interest_fields(catalog, available, buckets=buckets, half_lives=half_lives)
        available |= _shown_fields(catalog, available, Weighting(half_lives[1]), delay_ms=delay_hours * kinds.HOUR_MS)
        self.all_names = tuple(available)
        for name in names:
            if name not in available:
                raise UserError(f"there is no field {name!r}; this data has {', '.join(available)}")
        defaults = [name for name in available if not OPTIONAL.search(name)]
        selected = {name: available[name] for name in (names or defaults)}
        order = sorted(selected, key=lambda name: (selected[name].scope == "candidate", selected[name].is_bag))
        self.names = tuple(order)
        self._parts = [selected[name] for name in order]
        self.parts = nn.ModuleList(self._parts)
        sizes = [part.size for part in self._parts]
        self.size = sum(sizes)  # number of codes of all fields
        self.register_buffer("starts", torch.tensor([0, *sizes]).cumsum(0), persistent=False)
        self._starts = self.starts.tolist()
        self._single: dict[str, slice] = {}  # places of the fields that are no bags, by their scope
        for scope in ("request", "candidate"):
            places = [place for place, part in enumerate(self._parts) if part.scope == scope and not part.is_bag]
            self._single[scope] = slice(places[0], places[-1] + 1) if places else slice(0)
        readers = [part for part in self._parts if isinstance(part, kinds.HistoryMatchCount | kinds.EventsSinceMatch)]
        self._crossed = tuple(dict.fromkeys(part.field for part in readers))
        self.missing: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Compute quantiles, vocabularies and counts from training requests and events."""
        for part in self._parts:
            part.fit(requests, log)

    def forward(self, batch: SequenceBatch) -> FieldCodes:
        """Return the codes of a batch with candidates."""
        inputs = kinds.FieldInputs(batch, self.max_history_length, self._crossed)
        single: dict[str, list[Tensor]] = {"request": [], "candidate": []}
        bags: dict[str, list[Jagged]] = {"request": [], "candidate": []}
        for start, name, part in zip(self._starts, self.names, self._parts, strict=False):
            codes = part(inputs)
            if isinstance(codes, Jagged):
                bags[part.scope].append(codes.with_values(codes.values + start))
                continue
            if not self.training and isinstance(part, kinds.RequestCategory | kinds.RequestNumber):
                self._count_missing(name, codes)
            single[part.scope].append(codes)
        num_rows = {"request": batch.num_requests, "candidate": len(inputs.items)}
        request, candidate = (
            torch.stack(single[scope], 1).add_(self.starts[self._single[scope]])
            if single[scope]
            else inputs.items.new_zeros(count, 0)
            for scope, count in num_rows.items()
        )
        return FieldCodes(request, bags["request"], candidate, bags["candidate"], inputs.rows)

    def code_keys(self) -> Tensor:
        """Return a key of each code of all fields [size], int64, never 0; it stays if a catalogue grows."""
        keys = [
            hash_ids(part.code_keys() + salt)
            for salt, part in zip(stable_keys(self.names).tolist(), self._parts, strict=True)
        ]
        return torch.cat(keys).clamp(min=1)

    def request_codes(self, batch: SequenceBatch, names: Sequence[str]) -> Tensor:
        """Return the codes [B, number of names] of fields with one code for each request; no candidates are needed."""
        inputs = kinds.FieldInputs(batch, self.max_history_length)
        parts = dict(zip(self.names, zip(self._starts, self._parts, strict=False), strict=True))
        columns = [part(inputs) + start for start, part in (parts[name] for name in names)]
        return torch.stack(columns, 1) if columns else batch.items.offsets.new_zeros(batch.num_requests, 0)

    def user_names(self) -> tuple[str, ...]:
        """Return the names of the fields with one code for each user: the features of users that are no lists."""
        pairs = zip(self.names, self._parts, strict=True)
        return tuple(name for name, part in pairs if name.startswith("user.") and not part.is_bag)

    def items(self) -> list[tuple[int, kinds.ItemField]]:
        """Return the fields that depend on an item alone, each with the offset of its codes."""
        return [
            (start, part)
            for start, part in zip(self._starts, self._parts, strict=False)
            if isinstance(part, kinds.ItemField)
        ]

    @property
    def has_content(self) -> bool:
        """Whether a field reads a column of the catalogue, so that candidates differ by more than ids and counts."""
        columns = (kinds.ItemCategory, kinds.ItemList, kinds.ItemNumber, kinds.ItemAge, RelativeNumber)
        about_candidates = [part for part in self._parts if part.scope == "candidate"]
        sources = [getattr(part, "field", part) for part in about_candidates]
        return any(isinstance(part, columns) for part in sources)

    def unseen_items(self, fallback: Tensor | None) -> Tensor | None:
        """Return the items whose id training has not seen, bool [N + 1], or None if there are none.

        `fallback` is returned if no field reads the items' ids.
        """
        for part in self._parts:
            if isinstance(part, kinds.ItemId):
                is_unseen = part.codes == 0
                is_unseen[0] = False
                return is_unseen if bool(is_unseen.any()) else None
        return fallback

    def _count_missing(self, name: str, codes: Tensor) -> None:
        num_missing = int((codes == 0).sum())
        if num_missing:
            self.missing[name] = self.missing.get(name, 0) + num_missing


class FieldVectors(nn.Module):
    """Embedding vectors of the codes of all fields.

    A bag has the mean of the vectors of its codes. The vector of missing values (code 0) starts as 0 in a dense table.

    Args:
        fields: the fields.
        width: width of the vectors (D).
        table: kind of the table of the vectors.
        std: standard deviation of the initial vectors; None: 0.1 / sqrt(D).

    """

    def __init__(
        self, fields: Fields, width: int, table: TableConfig | None = None, *, std: float | None = None
    ) -> None:
        super().__init__()
        self.fields = (fields,)  # in a tuple, so that it is no submodule here: the model contains it
        self.width = width
        std = 0.1 * width**-0.5 if std is None else std
        if table is not None and not isinstance(table, DenseRows):
            self.table: Table = build_table(table, width, fields.code_keys(), std=std)
            return
        self.table = build_table(DenseRows(), width, fields.size)
        nn.init.normal_(self.table.weight, std=std)
        with torch.no_grad():
            self.table.weight[fields.starts[:-1]] = 0

    def forward(self, codes: FieldCodes) -> Tensor:
        """Return the vectors of all fields for each candidate, [P, F, D], in the order of `Fields.names`."""
        by_candidate = [self.of_codes(codes.candidate), *self._means(codes.candidate_bags)]
        return torch.cat([self.of_requests(codes)[codes.rows], *by_candidate], 1)

    def of_requests(self, codes: FieldCodes) -> Tensor:
        """Return the vectors of the fields and bags of requests, [B, number of them, D]."""
        return torch.cat([self.of_codes(codes.request), *self._means(codes.request_bags)], 1)

    def of_items(self, item_ids: Tensor) -> Tensor:
        """Return the concatenated vectors of the fields that depend on an item alone.

        They have shape [..., X] for `item_ids [...]`, X = `item_width`.
        """
        flat, single, bags = item_ids.flatten(), [], []
        for start, field in self.fields[0].items():
            codes = field.of_items(flat)
            if isinstance(codes, Jagged):
                bags.append(codes.with_values(codes.values + start))
            else:
                single.append(codes + start)
        vectors = [self.of_codes(torch.stack(single, 1))] if single else []
        return torch.cat([*vectors, *self._means(bags)], 1).view(*item_ids.shape, self.item_width)

    @property
    def item_width(self) -> int:
        """Width of `of_items` (X): the number of fields that depend on an item alone, times D."""
        return len(self.fields[0].items()) * self.width

    def of_codes(self, codes: Tensor) -> Tensor:
        """Return the vectors [..., D] of codes; in training each one counts as an occurrence."""
        self.table.observe(codes)
        vectors: Tensor = self.table(codes)
        return vectors

    def _means(self, bags: Sequence[Jagged]) -> list[Tensor]:
        """Return the mean vectors of bags of n rows each: a list with one tensor [n, bags, D], or an empty list.

        All bags are looked up at once, since each look-up has a gradient of the table's size.
        """
        if not bags:
            return []
        starts = offsets_of(torch.tensor([len(bag.values) for bag in bags], device=bags[0].values.device))
        offsets = [bag.offsets[:-1] + start for bag, start in zip(bags, starts, strict=False)]
        values = torch.cat([bag.values for bag in bags])
        self.table.observe(values)
        means = self.table.means(values, torch.cat(offsets))
        return [means.view(len(bags), bags[0].num_rows, self.width).transpose(0, 1)]


def _available_fields(
    catalog: Catalog, *, buckets: int, pair_buckets: int, candidate_features: Sequence[str]
) -> dict[str, kinds.Field]:
    """Return every field that a catalogue has, by name."""
    available: dict[str, kinds.Field] = {
        "request.hour": kinds.RequestTime("hour"),
        "request.weekday": kinds.RequestTime("weekday"),
        "history.length": kinds.HistoryLength(),
    }
    for name, column in catalog.requests.items():
        available[name] = _request_field(name, column.kind, catalog, buckets)
    for name, encoding in catalog.events.items():
        if encoding.kind == "categorical":
            available[f"events.{name}"] = EventBag(name, encoding)
        elif encoding.kind == "numeric":
            available[f"events.{name}"] = EventMean(name, buckets)
    items: dict[str, kinds.ItemField] = {"id": kinds.ItemId(catalog.ids.external)}
    for name, kind in catalog.features.items():
        if kind == "categorical":
            items[name] = kinds.ItemCategory(catalog.table[name])
        elif kind in ("categorical-list", "history"):
            items[name] = kinds.ItemList(catalog.table[name])
        elif kind == "timestamp":
            available[f"item.{name}"] = kinds.ItemAge(_milliseconds(catalog.table[name]))
        elif kind == "numeric":
            items[name] = kinds.ItemNumber(catalog.table[name], buckets)
    available |= {f"item.{name}": field for name, field in items.items()}
    available["item.popularity"] = ItemPopularity(catalog.num_items, None)
    available["item.trend"] = ItemPopularity(catalog.num_items, TREND_DAYS)
    if catalog.released_ms is not None:
        available["item.age"] = kinds.ItemAge(torch.from_numpy(catalog.released_ms.copy()))
    for name, field in _matched_fields(available):
        available[f"history.{name}"] = kinds.HistoryBag(field)
        available[f"cross.{name}"] = kinds.HistoryMatchCount(field)
        available[f"cross.{name}.since"] = kinds.EventsSinceMatch(field)
        available[f"cross.{name}.last"] = kinds.CrossedWithLast(field, pair_buckets)
    for name in candidate_features:
        available[f"candidate.{name}"] = kinds.CandidateFeature(name, default=1.0 if name == "slot" else 0.0)
    return available


def _interest_fields(
    catalog: Catalog, available: dict[str, kinds.Field], *, buckets: int, half_lives: tuple[float, float]
) -> dict[str, kinds.Field]:
    """Return the fields that weigh events or compare an item with its category, by name.

    `available` contains the fields of items that they read.
    """
    weightings = dict(zip(("fast", "slow"), map(Weighting, half_lives), strict=True)) | {"session": SESSION}
    slow = weightings["slow"]
    fields: dict[str, kinds.Field] = {
        "history.fast": EventEvidence(weightings["fast"]),
        "history.slow": EventEvidence(slow),
        "session.events": EventEvidence(SESSION),
        "session.minutes": SessionMinutes(),
    }
    actions = catalog.events[ACTION].values if ACTION in catalog.events else None
    if actions is not None and 1 < len(actions) <= MAX_ACTIONS:
        weightings |= {f"slow.{name}": replace(slow, action=code) for code, name in enumerate(actions, start=1)}
    for name, field in _matched_fields(available):
        for weights, weighting in weightings.items():
            fields[f"cross.{name}.{weights}"] = InterestShare(field, weighting, catalog.num_items)
        if not isinstance(field, kinds.ItemCategory):
            continue
        fields[f"item.popularity.in.{name}"] = PopularityWithin(catalog.num_items, field)
        for number in (column for column, kind in catalog.features.items() if kind == "numeric"):
            relative = RelativeNumber(catalog.table[number], catalog.table[name], buckets)
            fields[f"item.{number}.in.{name}"] = relative
            fields[f"cross.{number}.in.{name}"] = RelativeToHistory(relative, slow, buckets)
    return fields


def _shown_fields(
    catalog: Catalog, available: dict[str, kinds.Field], weighting: Weighting, *, delay_ms: float
) -> dict[str, kinds.Field]:
    """Return the fields that count what was shown in vain, by name; none if impressions have no labels."""
    return {
        f"shown.{name}": NotClicked(field, weighting, label=label, delay_ms=delay_ms)
        for label in catalog.labels[:1]
        for name, field in _matched_fields(available)
    }


def _matched_fields(available: dict[str, kinds.Field]) -> list[tuple[str, kinds.ItemField]]:
    """Return the fields of items in which events and candidates can be equal: the id and categories, by column."""
    return [
        (name.removeprefix("item."), field)
        for name, field in available.items()
        if isinstance(field, kinds.ItemId | kinds.ItemCategory)
    ]


def _milliseconds(column: pl.Series) -> Tensor:
    """Return times [N] in milliseconds since 1970, 0 if missing; the first millisecond of 1970 becomes the second."""
    times = column.cast(pl.Datetime("ms")).to_physical().replace(0, 1)
    return torch.tensor(times.fill_null(0).to_list(), dtype=torch.int64)


def _request_field(name: str, kind: str, catalog: Catalog, buckets: int) -> kinds.Field:
    if kind == "categorical":
        return kinds.RequestCategory(name, catalog.requests[name])
    if kind == "categorical-list":
        return kinds.RequestList(name, catalog.requests[name])
    return kinds.RequestNumber(name, buckets) if kind == "numeric" else kinds.RequestAge(name)
