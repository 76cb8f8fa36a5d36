"""Labelled candidates for the rankers of a cascade: items that its channels retrieve for recent events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.data.examples.labelled_candidates import TARGET
from nextitem.data.settings import TEACHER

BLOCK = 256  # number of requests whose candidates are retrieved at a time
VALIDATION_SHARE = 0.1  # share of the recent events, the last ones, on which rankers are validated
VALIDATION_REQUESTS = 500  # maximal number of validation requests
RetrievedCandidates = tuple[Tensor, Tensor]  # items [B, C], 0 is padding, and their ranks in the channels [B, C, c]


class CandidateSource(Protocol):
    """Retrieval stage of a cascade: retrieves candidates, and adds them to the requests that a ranker reads."""

    def retrieve_candidates(self, batch: SequenceBatch) -> RetrievedCandidates:
        """Return the candidates of each request: items [B, C] and their ranks in the channels [B, C, c]."""

    def with_candidates(self, batch: SequenceBatch, items: Tensor, ranks: Tensor) -> SequenceBatch:
        """Return the requests with these candidates: items [B, C] and their ranks in the channels [B, C, c]."""


@dataclass(frozen=True, eq=False)
class RankerRequests:
    """Requests with labelled candidates, for training and for validation of a ranker."""

    train: SequenceBatch
    validation: SequenceBatch


def ranker_requests(source: CandidateSource, requests: SequenceBatch, *, num_negatives: int) -> RankerRequests:
    """Retrieve candidates for each request, label them, and split the requests into training and validation.

    The last tenth of the requests, at most VALIDATION_REQUESTS of them, validates with all candidates. Of the others,
    training keeps the requests whose target was retrieved, with `num_negatives` sampled other candidates. The label
    is 1 for the target and 0 for other candidates; the target can be at any place among them.

    Raises UserError if no target was retrieved.
    """
    cut = int(requests.num_requests * (1 - VALIDATION_SHARE))
    first, last = (requests.select(rows) for rows in (torch.arange(cut), torch.arange(cut, requests.num_requests)))
    generator = torch.Generator().manual_seed(0)
    train = [_label_candidates(source, part, num_negatives, generator) for part in first.split(BLOCK)]
    validation = [
        _label_candidates(source, part, None, generator) for part in last.sample(VALIDATION_REQUESTS).split(BLOCK)
    ]
    return RankerRequests(_concat(train), _concat(validation))


def with_teacher(requests: SequenceBatch, score: Callable[[SequenceBatch], Mapping[str, Tensor]]) -> SequenceBatch:
    """Return the requests with a further label: the scores of a ranker for its first task (distillation)."""
    assert requests.candidates is not None
    parts = []
    with torch.inference_mode():
        for part in requests.split(BLOCK):
            assert part.candidates is not None
            scores = next(iter(score(part).values()))
            parts.append(Jagged.from_padded(scores, part.candidates.lengths).values.clone())
    label = requests.candidates.with_values(torch.cat(parts))
    return replace(requests, candidate_labels={**requests.candidate_labels, TEACHER: label})


def _label_candidates(
    source: CandidateSource, requests: SequenceBatch, num_negatives: int | None, generator: torch.Generator
) -> SequenceBatch:
    """Return the requests with candidates and labels.

    With `num_negatives`, only requests whose target was retrieved remain, with a sample of their other candidates.
    """
    assert requests.targets is not None
    items, ranks = source.retrieve_candidates(requests)
    is_target = items == requests.targets.values[:, None]
    if num_negatives is not None:
        rows = is_target.any(1).nonzero()[:, 0]
        requests, items, ranks, is_target = requests.select(rows), items[rows], ranks[rows], is_target[rows]
        keys = torch.rand(items.shape, generator=generator).masked_fill(items == 0, 2).masked_fill(is_target, -1)
        places = keys.argsort(1)[:, : num_negatives + 1].sort(1).values
        items, is_target = items.gather(1, places), is_target.gather(1, places)
        ranks = ranks.gather(1, places[..., None].expand(-1, -1, ranks.shape[2]))
        order = (items == 0).to(torch.uint8).argsort(dim=1, stable=True)  # move padding to the end
        items, is_target = items.gather(1, order), is_target.gather(1, order)
        ranks = ranks.gather(1, order[..., None].expand(ranks.shape))
    labelled = source.with_candidates(requests, items, ranks)
    assert labelled.candidates is not None
    return replace(labelled, candidate_labels={TARGET: labelled.candidates.with_values(is_target[items > 0].float())})


def _concat(parts: list[SequenceBatch]) -> SequenceBatch:
    """Concatenate the parts that have requests; raise UserError if none has."""
    parts = [part for part in parts if part.num_requests]
    if not parts:
        raise UserError("the channels retrieved no target of any recent event: rankers have nothing to learn from")
    return SequenceBatch.concat(parts)
