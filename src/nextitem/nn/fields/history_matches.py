"""History matches: which events of a history share a candidate's values of item fields, for crossed fields.

Shapes: B requests, P candidates of all requests, T events of all histories, F item fields, G groups of events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged

DENSE_KEYS = 2**20  # number of pairs of a request and a code up to which a table of all pairs replaces a search


@dataclass(frozen=True, eq=False)
class HistoryMatches:
    """Groups of events of one request that share a code of one field, and the group of each candidate.

    Attributes:
        groups: [F, P] index of the group with the candidate's request, field and code; G if there is no such event.
        counts: [G + 1] number of events of each group; 0 at the end.
        since: [G + 1] number of events from the last one of each group to the end of its history, both included; 0 at
            the end.

    """

    groups: Tensor
    counts: Tensor
    since: Tensor

    def of_candidates(self, by_group: Tensor, field: int) -> Tensor:
        """Return the values of `by_group [G + 1]` for each candidate, by the field at an index, [P]."""
        return by_group.index_select(0, self.groups[field])


def history_matches(
    events: Jagged, event_codes: Sequence[Tensor], codes: Sequence[Tensor], rows: Tensor, *, num_codes: Sequence[int]
) -> HistoryMatches:
    """Find the events of each candidate's request that share its code; code 0, a missing value, matches nothing.

    Events are grouped once for all candidates of a request and all fields, so the cost does not grow with events times
    candidates.

    Args:
        events: the latest events of each history, B rows of T events.
        event_codes: codes of the events in each field, F tensors [T].
        codes: codes of the candidates in each field, F tensors [P].
        rows: index of the request of each candidate, [P].
        num_codes: number of codes of each field; codes are 0 .. num_codes - 1.

    """
    event_rows, num_events, device = events.row_ids(), events.values.shape[0], rows.device
    ends_of_codes = list(accumulate(num_codes))
    num_keys = ends_of_codes[-1]  # of a request
    starts = torch.tensor([0, *ends_of_codes[:-1]], device=device)[:, None]
    stacked = torch.stack(list(event_codes))
    keys = (stacked + (event_rows * num_keys + starts)).masked_fill_(stacked == 0, -1)
    keys, order = keys.flatten().sort(stable=True)
    is_last = torch.ones(len(keys), dtype=torch.bool, device=device)  # of its group, in the order of the history
    torch.ne(keys[1:], keys[:-1], out=is_last[:-1])
    ends = (is_last & (keys >= 0)).nonzero()[:, 0]
    counts = ends.diff(prepend=(keys < 0).sum()[None] - 1)
    last_events = order[ends] % max(1, num_events)
    since = events.offsets[1:][event_rows[last_events]] - last_events
    group_keys, num_groups = keys[ends], len(ends)
    candidate_keys = torch.stack(list(codes)) + (rows * num_keys + starts)
    if events.num_rows * num_keys <= DENSE_KEYS:
        table = torch.full((events.num_rows * num_keys,), num_groups, device=device)
        table[group_keys] = torch.arange(num_groups, device=device)
        groups = table.index_select(0, candidate_keys.flatten()).view(candidate_keys.shape)
    else:
        groups = torch.searchsorted(group_keys, candidate_keys)
        padded_keys = torch.nn.functional.pad(group_keys, (0, 1), value=-1)
        groups = torch.where(padded_keys[groups] == candidate_keys, groups, num_groups)
    return HistoryMatches(groups, _with_zero(counts), _with_zero(since))


def _with_zero(values: Tensor) -> Tensor:
    """Return values followed by a 0."""
    return torch.nn.functional.pad(values, (0, 1))
