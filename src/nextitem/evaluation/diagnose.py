"""Diagnosis of a log before training: which comparisons of models it can support.

arXiv 2605.07125 (2026): on many common data sets the last one or two items predict the next one, by transitions and
content alone. A figure on such data says little about sequence models. This module takes the same measurements on the
user's own log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.core.top_items import top_items
from nextitem.data.text import ContentConfig, content_vectors
from nextitem.evaluation.metrics.accuracy import recall
from nextitem.models.item_graph import PublishedWalk
from nextitem.neighbours.sparse_rows import ages, weighted_histories
from nextitem.neighbours.transitions import item_transitions

MEMORIES = (1, 2, 5, 50)  # numbers of most recent items that the untrained walk reads
DECAY = 0.8  # weight of an item for each event that followed it
SAMPLE = 3000  # maximum number of users whose last event is predicted
# Verdicts. A quarter more hits from a longer memory is beyond the noise of SAMPLE requests at common hit rates.
LONG_MEMORY_GAIN = 0.25
FEW_SUCCESSORS = 20  # below this number of likely successors, a list of ten covers most of what transitions predict
MANY_REPEATS = 0.2  # share of events
MANY_COLD = 0.1  # share of held-out events
SMOOTH = 2.0  # ratio of the content similarity of consecutive items to that of random ones


@dataclass(frozen=True)
class Diagnosis:
    """Measurements of a log (None: cannot be measured on it) and the verdicts that follow from them."""

    users: int
    items: int
    events: int  # that may be targets
    effective_successors: float | None  # exp of the entropy of the next item given the item, in training events
    held_out_steps_seen: float | None  # share of held-out steps (last item -> next) that occur in training
    similarity_of_neighbours: float | None  # mean content cosine of consecutive items
    similarity_at_random: float | None  # the same of random pairs of events
    hits_by_memory: dict[
        int, float
    ]  # number of last items that an untrained walk reads -> recall@10 on held-out events
    repeats: float  # share of events whose item occurs earlier in the same user's log
    cold_targets: float | None  # share of held-out events whose item does not occur in training
    ties: float | None  # share of events at the same time as the user's previous event; None: undated
    verdicts: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Return the text for the terminal: the measurements, then the verdicts."""
        lines = [f"{self.users:,} users, {self.items:,} items, {self.events:,} events that may be targets", ""]
        measurements: Mapping[str, str | None] = {
            "likely successors of an item": _number(self.effective_successors, "{:.1f}"),
            "held-out steps seen in training": _number(self.held_out_steps_seen, "{:.1%}"),
            "content similarity, consecutive / random": None
            if self.similarity_of_neighbours is None
            else f"{self.similarity_of_neighbours:.3f} / {_number(self.similarity_at_random, '{:.3f}')}",
            "recall@10 of an untrained walk from the last": ", ".join(
                f"{memory}: {hit:.4f}" for memory, hit in self.hits_by_memory.items()
            ),
            "repeats": _number(self.repeats, "{:.1%}"),
            "held-out items without training events": _number(self.cold_targets, "{:.1%}"),
            "events at the time of the previous one": _number(self.ties, "{:.1%}"),
        }
        width = max(len(name) for name in measurements)
        lines += [f"{name:<{width}}  {value}" for name, value in measurements.items() if value]
        return "\n".join([*lines, "", *(f"- {verdict}" for verdict in self.verdicts)])


def diagnose(dataset: Dataset) -> Diagnosis:
    """Measure a log: hold out each user's last event, and compute transitions from the events before it.

    Deterministic. Reads no more than SAMPLE held-out events.

    Args:
        dataset: the log and its catalogue. Only events that may be targets are read.

    Returns:
        The measurements and verdicts.

    Raises:
        UserError: no user has two events that may be targets.

    """
    log = dataset.interactions.targets_only()
    lengths = np.diff(log.offsets)
    if not (lengths >= 2).any():
        raise UserError(
            f"{dataset.name}: no user has two events that may be targets; check interactions.positive_actions, or use "
            "a longer log"
        )
    is_last = np.zeros(len(log), dtype=np.bool_)
    is_last[log.offsets[1:][lengths >= 2] - 1] = True
    train = log.select(~is_last)
    histories, targets = _held_out(log, train, lengths)
    steps = item_transitions(train, (1.0,), backward=0.0)
    previous = histories.values[histories.offsets[1:] - 1].numpy().copy()
    target_items = targets.values.numpy().copy()
    consecutive, random = _content_similarities(dataset, log)
    facts = Diagnosis(
        users=int((lengths > 0).sum()),
        items=log.num_items,
        events=len(log),
        effective_successors=_effective_successors(steps, train),
        held_out_steps_seen=float((np.asarray(steps[previous, target_items]).ravel() > 0).mean()),
        similarity_of_neighbours=consecutive,
        similarity_at_random=random,
        hits_by_memory=_hits_by_memory(train, histories, targets),
        repeats=_repeats(log),
        cold_targets=float((train.item_counts()[target_items] == 0).mean()),
        ties=_ties(log),
        verdicts=[],
    )
    return Diagnosis(**{**facts.__dict__, "verdicts": _verdicts(facts, can_repeat=dataset.repeats)})


def _held_out(log: Interactions, train: Interactions, lengths: np.ndarray[Any, Any]) -> tuple[Jagged, Jagged]:
    """Return histories and last events of up to SAMPLE users, evenly spaced over all users."""
    users = np.flatnonzero(lengths >= 2)
    users = users[np.linspace(0, len(users) - 1, min(SAMPLE, len(users))).astype(np.int64)]
    targets = torch.from_numpy(log.item_ids[log.offsets[1:][users] - 1].astype(np.int64))
    return train.histories().select(torch.from_numpy(users)), Jagged(targets, torch.arange(len(users) + 1))


def _effective_successors(steps: sp.csr_matrix, train: Interactions) -> float | None:
    """Return exp of the mean entropy of the rows of `steps`, weighted by the items' event counts; None if empty."""
    if not steps.nnz:
        return None
    rows = np.repeat(np.arange(steps.shape[0]), np.diff(steps.indptr))
    entropy = np.bincount(rows, weights=-steps.data * np.log(steps.data), minlength=steps.shape[0])
    weight = train.item_counts() * (np.diff(steps.indptr) > 0)
    return float(np.exp((entropy * weight).sum() / max(1, weight.sum())))


def _content_similarities(dataset: Dataset, log: Interactions) -> tuple[float | None, float | None]:
    """Return the mean content cosine of a user's consecutive items, and of random pairs of events.

    Pairs of equal items are skipped. (None, None) if the items have neither text nor features.
    """
    try:
        content = content_vectors(dataset.catalog, ContentConfig())
    except UserError:
        return None, None  # neither text nor features
    unit = torch.nn.functional.normalize(content, dim=1)
    rng = np.random.default_rng(0)
    same_user = np.flatnonzero(log.user_ids[1:] == log.user_ids[:-1])
    sampled = rng.choice(same_user, min(20_000, len(same_user)), replace=False)
    others = rng.permutation(len(log))[: len(sampled)]

    def mean(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float | None:
        is_different = torch.from_numpy(first != second)
        cosine = (unit[torch.from_numpy(first).long()] * unit[torch.from_numpy(second).long()]).sum(1)
        return float(cosine[is_different].mean()) if bool(is_different.any()) else None

    items = log.item_ids
    return mean(items[sampled], items[sampled + 1]), mean(items[sampled], items[others])


def _hits_by_memory(train: Interactions, histories: Jagged, targets: Jagged) -> dict[int, float]:
    """Return recall@10 of an untrained walk on the transitions, for each number of last items that it reads."""
    published = PublishedWalk()
    walk = item_transitions(train, published.lag_weights, backward=published.backward)
    recalls = {}
    for memory in MEMORIES:
        recent = histories.last(memory)
        start = weighted_histories(
            recent.values, recent.offsets, DECAY ** ages(recent.offsets).float(), num_items=train.num_items
        )
        hits = []
        for first in range(0, histories.num_rows, 500):
            rows = torch.arange(first, min(first + 500, histories.num_rows))
            scores = torch.from_numpy((start[rows.numpy()] @ walk).toarray())
            lists = top_items(scores, SequenceBatch(histories.select(rows)), 10).item_ids
            hits.append(recall(lists, targets.select(rows), 10))
        recalls[memory] = float(torch.cat(hits).mean())
    return recalls


def _repeats(log: Interactions) -> float:
    """Return the share of events whose item occurs earlier in the same user's log."""
    pairs = log.user_ids.astype(np.int64) * (log.num_items + 1) + log.item_ids
    return 1 - len(np.unique(pairs)) / len(pairs)


def _ties(log: Interactions) -> float | None:
    """Return the share of events at the same time as the user's previous event; None if the log is undated."""
    if log.timestamps is None:
        return None
    is_tied = (log.user_ids[1:] == log.user_ids[:-1]) & (log.timestamps[1:] == log.timestamps[:-1])
    return float(is_tied.mean())


def _verdicts(facts: Diagnosis, *, can_repeat: bool) -> list[str]:
    """Return what follows from the measurements, one sentence for each finding."""
    verdicts = []
    shortest, best = facts.hits_by_memory[MEMORIES[0]], max(facts.hits_by_memory.values())
    if shortest > 0 and best < (1 + LONG_MEMORY_GAIN) * shortest:
        verdicts.append(
            "Items before the last one hardly help an untrained walk: compare every model with item-graph; a sequence "
            "model that does not beat it shows nothing on this log."
        )
    else:
        verdicts.append("Longer histories help even an untrained walk: sequence models can learn from them.")
    if facts.effective_successors is not None and facts.effective_successors < FEW_SUCCESSORS:
        verdicts.append("Items have few likely successors: transitions alone predict much of what follows.")
    if facts.held_out_steps_seen is not None:
        seen = facts.held_out_steps_seen
        verdicts.append(
            f"{seen:.0%} of held-out steps occur in training: read the memorization slice; the other {1 - seen:.0%} "
            "are the generalization slice, by which generative models are judged."
        )
    consecutive, random = facts.similarity_of_neighbours, facts.similarity_at_random
    if consecutive is None:
        verdicts.append(
            "Items have neither text nor features: semantic IDs and content models cannot be compared here."
        )
    elif random is not None and consecutive > SMOOTH * max(random, 1e-6):
        verdicts.append("Consecutive items resemble each other: content helps, also for items without events.")
    if facts.repeats > MANY_REPEATS and can_repeat:
        verdicts.append(
            "Many events repeat an item: figures mix re-purchase with discovery; evaluate without seen items, too."
        )
    if facts.cold_targets is not None and facts.cold_targets > MANY_COLD:
        verdicts.append(
            "Many targets are new items: a model of item ids alone cannot recommend them; read the cold slice."
        )
    if facts.ties is not None and facts.ties > 0.5:
        verdicts.append(
            "Most events share their time with the previous one (baskets): the order within a basket is arbitrary."
        )
    return verdicts


def _number(value: float | None, form: str) -> str | None:
    """Format a number; None stays None."""
    return None if value is None else form.format(value)
