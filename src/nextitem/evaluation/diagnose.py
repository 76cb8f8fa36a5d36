"""diagnose: what a log can show, before anybody trains on it.

arXiv 2605.07125 (2026): on many common data sets the next item follows from the last one or two by transitions and
content alone; there, a figure says little about sequence models. The same measurements, on the owner's log.
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
from nextitem.models.item_graph import ItemGraphConfig, item_transitions
from nextitem.neighbours.sparse_rows import ages, weighted_histories

MEMORIES = (1, 2, 5, 50)  # most recent items that the untrained walk reads
DECAY = 0.8  # weight of an item for each event that followed it
SAMPLE = 3000  # users whose last event is predicted
# Verdicts. A quarter more hits from a longer memory is beyond the noise of SAMPLE requests at common hit rates.
LONG_MEMORY_GAIN = 0.25
FEW_SUCCESSORS = 20  # at so few likely successors a list of ten covers most of what transitions can say
MANY_REPEATS = 0.2
MANY_COLD = 0.1
SMOOTH = 2.0  # consecutive items this many times as similar as random ones


@dataclass(frozen=True)
class Diagnosis:
    """Measurements of a log (None: cannot be measured on it) and what follows from them."""

    users: int
    items: int
    events: int
    effective_successors: float | None  # exp of the entropy of the next item, given the item; training events
    held_out_steps_seen: float | None  # share of held-out steps (last item -> next) that occur in training
    similarity_of_neighbours: float | None  # mean content cosine of consecutive items
    similarity_at_random: float | None  # the same of random pairs of events
    hits_by_memory: dict[int, float]  # last m items read by an untrained walk -> recall@10 on held-out events
    repeats: float  # share of events whose item the user had before
    cold_targets: float | None  # share of held-out events whose item does not occur in training
    ties: float | None  # share of events at the very time of the user's event before; None: undated
    verdicts: list[str]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """For the terminal: measurements, then what follows."""
        lines = [f"{self.users:,} users, {self.items:,} items, {self.events:,} events that may be targets", ""]
        shown: Mapping[str, str | None] = {
            "likely successors of an item": _number(self.effective_successors, "{:.1f}"),
            "held-out steps seen in training": _number(self.held_out_steps_seen, "{:.1%}"),
            "content similarity, consecutive / random": None
            if self.similarity_of_neighbours is None
            else f"{self.similarity_of_neighbours:.3f} / {_number(self.similarity_at_random, '{:.3f}')}",
            "recall@10 of an untrained walk from the last": ", ".join(
                f"{memory}: {hit:.4f}" for memory, hit in self.hits_by_memory.items()
            ),
            "repeats": _number(self.repeats, "{:.1%}"),
            "held-out items that are cold": _number(self.cold_targets, "{:.1%}"),
            "events at the time of the one before": _number(self.ties, "{:.1%}"),
        }
        width = max(len(name) for name in shown)
        lines += [f"{name:<{width}}  {value}" for name, value in shown.items() if value]
        return "\n".join([*lines, "", *(f"- {verdict}" for verdict in self.verdicts)])


def diagnose(dataset: Dataset) -> Diagnosis:
    """Measures a log: each user's last event is held out, everything before it is learnt from. Deterministic."""
    log = dataset.interactions.targets_only()
    sizes = np.diff(log.offsets)
    if not (sizes >= 2).any():
        raise UserError(f"{dataset.name}: no user has two events that may be targets; nothing follows anything here")
    last = np.zeros(len(log), dtype=np.bool_)
    last[log.offsets[1:][sizes >= 2] - 1] = True
    train = log.select(~last)
    histories, targets = _held_out(log, train, sizes)
    steps = item_transitions(train, ItemGraphConfig(lag_weights=(1.0,), backward=0.0))
    previous = histories.values[histories.offsets[1:] - 1].numpy().copy()
    wanted = targets.values.numpy().copy()
    near, random = _smoothness(dataset, log)
    facts = Diagnosis(
        users=int((sizes > 0).sum()),
        items=log.num_items,
        events=len(log),
        effective_successors=_effective_successors(steps, train),
        held_out_steps_seen=float((np.asarray(steps[previous, wanted]).ravel() > 0).mean()),
        similarity_of_neighbours=near,
        similarity_at_random=random,
        hits_by_memory=_hits_by_memory(train, histories, targets),
        repeats=_repeats(log),
        cold_targets=float((train.item_counts()[wanted] == 0).mean()),
        ties=_ties(log),
        verdicts=[],
    )
    return Diagnosis(**{**facts.__dict__, "verdicts": _verdicts(facts, repeats_allowed=dataset.repeats)})


def _held_out(log: Interactions, train: Interactions, sizes: np.ndarray[Any, Any]) -> tuple[Jagged, Jagged]:
    """Histories and last events of up to SAMPLE users, evenly spread."""
    users = np.flatnonzero(sizes >= 2)
    users = users[np.linspace(0, len(users) - 1, min(SAMPLE, len(users))).astype(np.int64)]
    targets = torch.from_numpy(log.item_ids[log.offsets[1:][users] - 1].astype(np.int64))
    return train.histories().select(torch.from_numpy(users)), Jagged(targets, torch.arange(len(users) + 1))


def _effective_successors(steps: sp.csr_matrix, train: Interactions) -> float | None:
    """exp of the mean entropy of the rows of `steps`, weighted by how often the item occurs."""
    if not steps.nnz:
        return None
    rows = np.repeat(np.arange(steps.shape[0]), np.diff(steps.indptr))
    entropy = np.bincount(rows, weights=-steps.data * np.log(steps.data), minlength=steps.shape[0])
    weight = train.item_counts() * (np.diff(steps.indptr) > 0)
    return float(np.exp((entropy * weight).sum() / max(1, weight.sum())))


def _smoothness(dataset: Dataset, log: Interactions) -> tuple[float | None, float | None]:
    """Mean content cosine of consecutive items of a user, and of random pairs of events; equal items left out."""
    try:
        content = content_vectors(dataset.catalog, ContentConfig())
    except UserError:
        return None, None  # neither text nor features
    unit = torch.nn.functional.normalize(content, dim=1)
    rng = np.random.default_rng(0)
    same_user = np.flatnonzero(log.user_ids[1:] == log.user_ids[:-1])
    picked = rng.choice(same_user, min(20_000, len(same_user)), replace=False)
    others = rng.permutation(len(log))[: len(picked)]

    def mean(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float | None:
        differ = torch.from_numpy(first != second)
        cosine = (unit[torch.from_numpy(first).long()] * unit[torch.from_numpy(second).long()]).sum(1)
        return float(cosine[differ].mean()) if bool(differ.any()) else None

    items = log.item_ids
    return mean(items[picked], items[picked + 1]), mean(items[picked], items[others])


def _hits_by_memory(train: Interactions, histories: Jagged, targets: Jagged) -> dict[int, float]:
    walk = item_transitions(train, ItemGraphConfig())
    found = {}
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
        found[memory] = float(torch.cat(hits).mean())
    return found


def _repeats(log: Interactions) -> float:
    pairs = log.user_ids.astype(np.int64) * (log.num_items + 1) + log.item_ids
    return 1 - len(np.unique(pairs)) / len(pairs)


def _ties(log: Interactions) -> float | None:
    if log.timestamps is None:
        return None
    same = (log.user_ids[1:] == log.user_ids[:-1]) & (log.timestamps[1:] == log.timestamps[:-1])
    return float(same.mean())


def _verdicts(facts: Diagnosis, *, repeats_allowed: bool) -> list[str]:
    words = []
    one, most = facts.hits_by_memory[MEMORIES[0]], max(facts.hits_by_memory.values())
    if one > 0 and most < (1 + LONG_MEMORY_GAIN) * one:
        words.append(
            "The last item tells nearly all that an untrained walk can use: print item-graph beside every model; a "
            "sequence model that does not beat it shows nothing here."
        )
    else:
        words.append("Longer histories help even an untrained walk: sequence models have something to learn here.")
    if facts.effective_successors is not None and facts.effective_successors < FEW_SUCCESSORS:
        words.append("Items have few likely successors: local transitions alone go far.")
    if facts.held_out_steps_seen is not None:
        seen = facts.held_out_steps_seen
        words.append(
            f"{seen:.0%} of held-out steps were seen in training: read the memorization slice; "
            f"the other {1 - seen:.0%} are what generalization and generative models are judged by."
        )
    near, random = facts.similarity_of_neighbours, facts.similarity_at_random
    if near is None:
        words.append("Items have neither text nor features: semantic IDs and content models cannot be compared here.")
    elif random is not None and near > SMOOTH * max(random, 1e-6):
        words.append("Consecutive items resemble each other: content helps, also for items without history.")
    if facts.repeats > MANY_REPEATS and repeats_allowed:
        words.append(
            "Many events repeat an item: figures mix re-purchase with discovery; compare with seen items excluded too."
        )
    if facts.cold_targets is not None and facts.cold_targets > MANY_COLD:
        words.append("Many targets are new items: a model by item id alone cannot find them; read the cold slice.")
    if facts.ties is not None and facts.ties > 0.5:
        words.append(
            "Most events share their time with the one before (baskets): the order within a basket is arbitrary."
        )
    return words


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)
