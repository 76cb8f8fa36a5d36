"""Behaviour sequences: the split of the history by action, and attention between sequences."""

from __future__ import annotations

from dataclasses import replace

import torch
from support.rankers import BuildRanker

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.models.rankers.din import DIN
from nextitem.models.rankers.multi_behaviour import MultiBehaviour

SMALL = {"width": 2, "hidden": (5,), "unit": (6, 3)}


def test_each_event_is_in_the_sequence_of_its_action(ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(MultiBehaviour, **SMALL, behaviours=2, max_history_length=5)
    items = Jagged.from_rows([[1, 2, 3, 4, 5, 6], [], [7, 8]])
    actions = items.with_values(torch.tensor([1, 1, 2, 0, 3, 1, 2, 2]))
    batch = SequenceBatch(items, actions=actions)
    assert [part.to_lists() for part in model.sequences(batch)] == [[[2, 4, 6], [], []], [[3, 5], [], [7, 8]]]
    assert [part.to_lists() for part in model.sequences(SequenceBatch(items))] == [
        [[2, 3, 4, 5, 6], [], [7, 8]],
        [[], [], []],
    ]


def test_with_one_sequence_the_model_equals_din(ranker: BuildRanker, requests: SequenceBatch) -> None:
    several, din = ranker(MultiBehaviour, **SMALL, behaviours=1), ranker(DIN, **SMALL)
    state = {name.replace("attention.0.", "attention."): value for name, value in several.state_dict().items()}
    din.load_state_dict(state)
    torch.testing.assert_close(several.score(requests)["target"], din.score(requests)["target"])


def test_each_sequence_attends_to_the_others(ranker: BuildRanker, requests: SequenceBatch) -> None:
    model = ranker(MultiBehaviour, **SMALL, behaviours=2, fields=("item.id", "item.category"))
    before = model.score(requests)["target"]
    with torch.no_grad():
        for cross in model.cross.values():
            cross.get_parameter("output.weight").zero_()
    assert not torch.allclose(model.score(requests)["target"], before)
    # Without cross attention each sequence is read by itself: scores still depend on the split by action.
    assert requests.actions is not None
    swapped = replace(requests, actions=requests.actions.with_values(torch.ones_like(requests.actions.values)))
    assert not torch.allclose(model.score(swapped)["target"], model.score(requests)["target"])
