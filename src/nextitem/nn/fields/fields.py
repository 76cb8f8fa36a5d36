"""Fields: what a ranker reads of a request and a candidate, declared once, as codes and as vectors.

item.<column>       what the catalogue says of the candidate: item.id, every declared feature but text (times as ages,
                    histories as lists; content vectors stand for text), item.age (since its release), item.popularity
                    and item.trend (events up to the request; in its last two weeks; undated: all other events)
user.<column>       features of the user;  <column>: context of the request
request.hour, request.weekday
events.<column>     of the latest events: their actions and other categorical columns, the mean of numeric ones (context
                    and labels of [interactions])
history.<column>    the latest items of the history by their ids or by a categorical column; history.length
cross.<column>      how many of the latest events share the candidate's id or category; cross.<column>.since: how many
                    events ago; cross.<column>.last: the last event's value crossed with the candidate's
candidate.<name>    what came with the candidates: candidate.slot, ranks in the channels of a cascade

Everything is read from the batch and from what training has seen, so serving reads what training read.

Shapes: B requests, P candidates of all of them, F fields, D width, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged, offsets_of
from nextitem.nn.fields import kinds
from nextitem.nn.fields.event_kinds import EventBag, EventMean
from nextitem.nn.fields.item_popularity import ItemPopularity

TREND_DAYS = 14


@dataclass(frozen=True, eq=False)
class FieldCodes:
    """The codes of a batch, each field's from where it starts in one table of all fields.

    request         [B, F1] of fields with one code a request;  request_bags: B rows each
    candidate       [P, F2] of fields with one code a candidate;  candidate_bags: P rows each
    rows            [P] the request of each candidate
    """

    request: Tensor
    request_bags: Sequence[Jagged]
    candidate: Tensor
    candidate_bags: Sequence[Jagged]
    rows: Tensor

    def matrix(self) -> Tensor:
        """Fields with one code a row, side by side [P, F1 + F2]."""
        return torch.cat([self.request[self.rows], self.candidate], dim=1)

    def looked_up(self) -> tuple[Tensor, Tensor]:
        """All codes of the batch, each as often as it is there, and how many candidates it is there for."""
        shown = torch.bincount(self.rows, minlength=len(self.request)).float()
        of_candidates = torch.cat([self.candidate.flatten(), *(bag.values for bag in self.candidate_bags)])
        codes = [self.request.flatten(), *(bag.values for bag in self.request_bags), of_candidates]
        counts = [
            shown.repeat_interleave(self.request.shape[1]),
            *(shown[bag.row_ids()] for bag in self.request_bags),
            shown.new_ones(len(of_candidates)),
        ]
        return torch.cat(codes), torch.cat(counts)


class Fields(nn.Module):
    """The chosen fields (none named: all that there are), in the order request, request bags, candidate, its bags.

    `brought` names what comes with the candidates. `missing` counts, by column, the requests outside training that
    lacked it, or whose value training had not seen.
    """

    starts: Tensor

    def __init__(
        self,
        catalog: Catalog,
        chosen: Sequence[str] = (),
        *,
        max_history_length: int = 50,
        buckets: int = 32,
        pair_buckets: int = 65_536,
        brought: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.max_history_length = max_history_length
        known = _known(catalog, buckets=buckets, pair_buckets=pair_buckets, brought=brought)
        for name in chosen:
            if name not in known:
                raise UserError(f"there is no field {name!r}; this data has {', '.join(known)}")
        picked = {name: known[name] for name in (chosen or known)}
        order = sorted(picked, key=lambda name: (picked[name].of == "candidate", picked[name].is_bag))
        self.names = tuple(order)
        self._parts = [picked[name] for name in order]
        self.parts = nn.ModuleList(self._parts)
        sizes = [part.size for part in self._parts]
        self.size = sum(sizes)  # codes of all fields
        self.register_buffer("starts", torch.tensor([0, *sizes]).cumsum(0), persistent=False)
        self._starts = self.starts.tolist()
        self.missing: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Takes quantiles, vocabularies and counts from training requests and events."""
        for part in self._parts:
            part.fit(requests, log)

    def forward(self, batch: SequenceBatch) -> FieldCodes:
        """The codes of a batch with candidates."""
        asked = kinds.FieldInputs(batch, self.max_history_length)
        single: dict[str, list[Tensor]] = {"request": [], "candidate": []}
        bags: dict[str, list[Jagged]] = {"request": [], "candidate": []}
        for start, name, part in zip(self._starts, self.names, self._parts, strict=False):
            codes = part(asked)
            if isinstance(codes, Jagged):
                bags[part.of].append(codes.with_values(codes.values + start))
                continue
            if not self.training and isinstance(part, kinds.RequestCategory | kinds.RequestNumber):
                self._count(name, codes)
            single[part.of].append(codes + start)
        rows = {"request": batch.num_requests, "candidate": len(asked.items)}
        request, candidate = (
            torch.stack(single[of], 1) if single[of] else asked.items.new_zeros(rows[of], 0) for of in rows
        )
        return FieldCodes(request, bags["request"], candidate, bags["candidate"], asked.rows)

    def items(self) -> list[tuple[int, kinds.ItemField]]:
        """Fields that a candidate's item alone decides, with where their codes start."""
        return [
            (start, part)
            for start, part in zip(self._starts, self._parts, strict=False)
            if isinstance(part, kinds.ItemField)
        ]

    @property
    def has_content(self) -> bool:
        """Whether a field reads a column of the catalogue: then candidates differ by more than ids and counts."""
        columns = (kinds.ItemCategory, kinds.ItemList, kinds.ItemNumber, kinds.ItemAge)
        about_candidates = [part for part in self._parts if part.of == "candidate"]
        read = [part.field if isinstance(part, kinds.Reading) else part for part in about_candidates]
        return any(isinstance(part, columns) for part in read)

    def unseen_items(self, otherwise: Tensor | None) -> Tensor | None:
        """Return the items whose id training has not seen, bool [N + 1]; None: there are none.

        `otherwise` is returned if the items' ids are not read.
        """
        for part in self._parts:
            if isinstance(part, kinds.ItemId):
                unseen = part.codes == 0
                unseen[0] = False
                return unseen if bool(unseen.any()) else None
        return otherwise

    def _count(self, name: str, codes: Tensor) -> None:
        lacking = int((codes == 0).sum())
        if lacking:
            self.missing[name] = self.missing.get(name, 0) + lacking


class FieldVectors(nn.Module):
    """A vector for each field of each candidate; a bag has the mean of its members'. What is missing starts as 0."""

    def __init__(self, fields: Fields, width: int) -> None:
        super().__init__()
        self.fields = (fields,)  # no submodule: the model holds it
        self.width = width
        self.table = nn.Embedding(fields.size, width)
        nn.init.normal_(self.table.weight, std=0.1 * width**-0.5)
        with torch.no_grad():
            self.table.weight[fields.starts[:-1]] = 0

    def forward(self, codes: FieldCodes) -> Tensor:
        """[P, F, D], in the order of `Fields.names`."""
        by_candidate = [self.table(codes.candidate), *self._means(codes.candidate_bags)]
        return torch.cat([self.of_requests(codes)[codes.rows], *by_candidate], 1)

    def of_requests(self, codes: FieldCodes) -> Tensor:
        """[B, F1, D], of the requests' own fields and bags."""
        return torch.cat([self.table(codes.request), *self._means(codes.request_bags)], 1)

    def of_items(self, item_ids: Tensor) -> Tensor:
        """What the fields say of items alone, side by side: [..., X] of `item_ids [...]`, X = `item_width`."""
        flat, single, bags = item_ids.flatten(), [], []
        for start, field in self.fields[0].items():
            codes = field.of_items(flat)
            if isinstance(codes, Jagged):
                bags.append(codes.with_values(codes.values + start))
            else:
                single.append(codes + start)
        vectors = [self.table(torch.stack(single, 1))] if single else []
        return torch.cat([*vectors, *self._means(bags)], 1).view(*item_ids.shape, self.item_width)

    @property
    def item_width(self) -> int:
        """X: fields of items, times D."""
        return len(self.fields[0].items()) * self.width

    def _means(self, bags: Sequence[Jagged]) -> list[Tensor]:
        """[n, bags, D] of bags of n rows each, looked up at once: each look-up has a gradient of the table's size."""
        if not bags:
            return []
        starts = offsets_of(torch.tensor([len(bag.values) for bag in bags], device=bags[0].values.device))
        offsets = [bag.offsets[:-1] + start for bag, start in zip(bags, starts, strict=False)]
        values = torch.cat([bag.values for bag in bags])
        means = F.embedding_bag(values, self.table.weight, torch.cat(offsets), mode="mean")
        return [means.view(len(bags), bags[0].num_rows, self.width).transpose(0, 1)]


def _known(catalog: Catalog, *, buckets: int, pair_buckets: int, brought: Sequence[str]) -> dict[str, kinds.Field]:
    """Every field that there is for a catalogue, by name."""
    known: dict[str, kinds.Field] = {
        "request.hour": kinds.RequestTime("hour"),
        "request.weekday": kinds.RequestTime("weekday"),
        "history.length": kinds.HistoryLength(),
    }
    for name, column in catalog.requests.items():
        known[name] = _request_field(name, column.kind, catalog, buckets)
    for name, encoding in catalog.events.items():
        if encoding.kind == "categorical":
            known[f"events.{name}"] = EventBag(name, encoding)
        elif encoding.kind == "numeric":
            known[f"events.{name}"] = EventMean(name, buckets)
    items: dict[str, kinds.ItemField] = {"id": kinds.ItemId(catalog.num_items)}
    for name, kind in catalog.features.items():
        if kind == "categorical":
            items[name] = kinds.ItemCategory(catalog.table[name])
        elif kind in ("categorical-list", "history"):
            items[name] = kinds.ItemList(catalog.table[name])
        elif kind == "timestamp":
            known[f"item.{name}"] = kinds.ItemAge(_milliseconds(catalog.table[name]))
        elif kind == "numeric":
            items[name] = kinds.ItemNumber(catalog.table[name], buckets)
    known |= {f"item.{name}": field for name, field in items.items()}
    known["item.popularity"] = ItemPopularity(catalog.num_items, None)
    known["item.trend"] = ItemPopularity(catalog.num_items, TREND_DAYS)
    if catalog.released_ms is not None:
        known["item.age"] = kinds.ItemAge(torch.from_numpy(catalog.released_ms.copy()))
    for name, field in items.items():
        if not isinstance(field, kinds.ItemId | kinds.ItemCategory):
            continue
        known[f"history.{name}"] = kinds.HistoryBag(field)
        known[f"cross.{name}"] = kinds.HistoryMatchCount(field)
        known[f"cross.{name}.since"] = kinds.EventsSinceMatch(field)
        known[f"cross.{name}.last"] = kinds.CrossedWithLast(field, pair_buckets)
    for name in brought:
        known[f"candidate.{name}"] = kinds.CandidateFeature(name, default=1.0 if name == "slot" else 0.0)
    return known


def _milliseconds(column: pl.Series) -> Tensor:
    """Times [N], 0 if missing; the first millisecond of 1970 becomes the second one."""
    times = column.cast(pl.Datetime("ms")).to_physical().replace(0, 1)
    return torch.tensor(times.fill_null(0).to_list(), dtype=torch.int64)


def _request_field(name: str, kind: str, catalog: Catalog, buckets: int) -> kinds.Field:
    if kind == "categorical":
        return kinds.RequestCategory(name, catalog.requests[name])
    if kind == "categorical-list":
        return kinds.RequestList(name, catalog.requests[name])
    return kinds.RequestNumber(name, buckets) if kind == "numeric" else kinds.RequestAge(name)
