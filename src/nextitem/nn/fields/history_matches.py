"""History matches: which events of a history share a candidate's value of an item field, for crossed fields.

Shapes: B requests, P candidates of all requests, T events of all histories, G groups of events.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged

DENSE_KEYS = 2**20  # number of pairs of a request and a code up to which a table of all pairs replaces a search


@dataclass(frozen=True, eq=False)
class HistoryMatches:
    """Groups of events of one request that share a code, and the group of each candidate.

    Attributes:
        groups: [P] index of the group with the candidate's request and code; G if there is no such event.
        counts: [G + 1] number of events of each group; 0 at the end.
        since: [G + 1] number of events from the last one of each group to the end of its history, both included; 0 at
            the end.

    """

    groups: Tensor
    counts: Tensor
    since: Tensor

    def of_candidates(self, by_group: Tensor) -> Tensor:
        """Return the values of `by_group [G + 1]` for each candidate, [P]."""
        return by_group.index_select(0, self.groups)


def history_matches(event_codes: Jagged, codes: Tensor, rows: Tensor, *, num_codes: int) -> HistoryMatches:
    """Find the events of each candidate's request that share its code; code 0, a missing value, matches nothing.

    Events are grouped once for all candidates of a request, so the cost does not grow with events times candidates.

    Args:
        event_codes: codes of the latest events of each history, B rows of T codes.
        codes: codes of the candidates, [P].
        rows: index of the request of each candidate, [P].
        num_codes: number of codes; codes are 0 .. num_codes - 1.

    """
    device, lengths = codes.device, event_codes.lengths
    event_rows, num_events = event_codes.row_ids(), event_codes.values.shape[0]
    keys = event_codes.values + event_rows * num_codes
    keys, order = keys.masked_fill_(event_codes.values == 0, -1).sort(stable=True)
    is_last = torch.ones(num_events, dtype=torch.bool, device=device)  # of its group, in the order of the history
    torch.ne(keys[1:], keys[:-1], out=is_last[:-1])
    is_last &= keys >= 0
    ends = is_last.nonzero()[:, 0]
    num_missing = (keys < 0).sum()
    counts = ends - torch.cat([num_missing[None] - 1, ends[:-1]])[: len(ends)]
    last_events = order[ends]
    since = event_codes.offsets[1:][event_rows[last_events]] - last_events
    group_keys, num_groups = keys[ends], len(ends)
    candidate_keys = rows * num_codes + codes
    if len(lengths) * num_codes <= DENSE_KEYS:
        table = torch.full((len(lengths) * num_codes,), num_groups, device=device)
        table[group_keys] = torch.arange(num_groups, device=device)
        groups = table.index_select(0, candidate_keys)
    else:
        groups = torch.searchsorted(group_keys, candidate_keys)
        padded_keys = torch.nn.functional.pad(group_keys, (0, 1), value=-1)
        groups = torch.where(padded_keys.index_select(0, groups) == candidate_keys, groups, num_groups)
    return HistoryMatches(groups, _with_zero(counts), _with_zero(since))


def _with_zero(values: Tensor) -> Tensor:
    """Return values followed by a 0."""
    return torch.nn.functional.pad(values, (0, 1))
