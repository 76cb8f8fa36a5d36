"""Incremental encoding: which rows are extended, read from the start or unchanged, and the order of the results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.history_state import HistoryState, StaleStateError
from nextitem.core.jagged import Jagged
from nextitem.nn.attention.incremental import Window, extend_history_state

LIMIT = 4


class SummingModel:
    """Model whose user vector is the sum of the items that it reads, and whose cache contains these items.

    The cache is right-padded. `reads` logs what the model had to read, and whether it extended a state.
    """

    def __init__(self, step: int = 1) -> None:
        self.window = Window(LIMIT, step)
        self.reads: list[tuple[str, list[list[int]]]] = []

    def __call__(self, batch: SequenceBatch, state: HistoryState | None) -> HistoryState:
        assert batch.state is None
        self.reads.append(("start" if state is None else "extended", batch.items.to_lists()))
        items = self.window.recent_events(batch.items)
        if state is None:
            total = items.to_padded().sum(1)
        else:
            new_items = batch.items.last(batch.items.lengths - state.lengths)
            total = state.user_vectors[:, 0].long() + new_items.to_padded().sum(1)
        return HistoryState(batch.items.lengths, total[:, None].float(), {"items": items.to_padded()})


def encode(
    model: SummingModel, histories: list[list[int]], state: HistoryState | None = None, *, is_extensible: bool = True
) -> HistoryState:
    batch = SequenceBatch(Jagged.from_rows(histories), state=state)
    empty = torch.zeros(1)
    return extend_history_state(
        batch, state, model, window=model.window, version="v1", empty=empty, is_extensible=is_extensible
    )


def test_rows_are_extended_or_read_from_the_start_and_keep_their_order() -> None:
    model = SummingModel()
    state = encode(model, [[], [1], [1, 2, 3, 4], [5, 6], []])
    model.reads.clear()
    longer = [[7], [1, 1], [1, 2, 3, 4, 5], [5, 6], []]
    new_state = encode(model, longer, state)
    assert model.reads == [("extended", [[1, 1]]), ("start", [[7], [1, 2, 3, 4, 5]])]
    assert new_state.user_vectors[:, 0].tolist() == [7, 2, 14, 11, 0]
    assert new_state.lengths.tolist() == [1, 2, 5, 2, 0]
    assert new_state.starts.tolist() == [0, 0, 1, 0, 0]
    assert new_state.version == "v1"
    assert new_state.cache["items"].tolist() == [[7, 0, 0, 0], [1, 1, 0, 0], [2, 3, 4, 5], [5, 6, 0, 0], [0, 0, 0, 0]]


def test_rows_that_are_all_treated_alike_are_not_copied() -> None:
    model = SummingModel()
    state = encode(model, [[1], [2, 3]])
    assert encode(model, [[1], [2, 3]], state).vectors is state.vectors
    encode(model, [[1, 1], [2, 3, 1]], state)
    assert [kind for kind, _ in model.reads] == ["start", "extended"]


def test_batch_without_events() -> None:
    assert encode(SummingModel(), []).user_vectors.shape == (0, 1)
    assert encode(SummingModel(), [[], []]).user_vectors.tolist() == [[0], [0]]


def test_state_with_more_events_than_the_history_is_refused() -> None:
    model = SummingModel()
    state = encode(model, [[1, 2]])
    with pytest.raises(ValueError, match="full histories"):
        encode(model, [[1]], state)


def test_state_of_another_version_is_refused_unless_it_is_empty() -> None:
    model = SummingModel()
    state = encode(model, [[1, 2], []])
    with pytest.raises(StaleStateError, match="other weights"):
        encode(model, [[1, 2, 3], [4]], replace(state, version="v0"))
    new_state = encode(model, [[4], [5, 6]], HistoryState.unread(2))
    assert new_state.user_vectors[:, 0].tolist() == [4, 11]
    assert new_state.version == "v1"


def test_start_of_a_window_depends_only_on_the_number_of_events() -> None:
    lengths = torch.arange(12)
    assert Window(4).starts(lengths).tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert Window(4, 2).starts(lengths).tolist() == [0, 0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 8]
    assert Window(4, 4).starts(lengths).tolist() == [0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    for step in (1, 2, 3, 4):
        sizes = Window(4, step).lengths(lengths[1:])
        assert int(sizes.min()) >= 1
        assert int(sizes.max()) == 4
    assert Window(3, 2).recent_events(Jagged.from_rows([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]])).to_lists() == [
        [1, 2, 3],
        [3, 4],
        [3, 4, 5],
    ]
    for step in (0, 5):
        with pytest.raises(ValueError, match=f"window_step = {step}"):
            Window(4, step)


def test_history_is_extended_until_its_window_slides() -> None:
    model = SummingModel(step=2)
    history = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    state = encode(model, [history[:1]])
    for length in range(2, len(history) + 1):
        state = encode(model, [history[:length]], state)
        assert state.user_vectors.tolist() == encode(SummingModel(step=2), [history[:length]]).user_vectors.tolist()
    kinds = [kind for kind, _ in model.reads]
    assert kinds == ["start", "extended", "extended", "extended", "start", "extended", "start", "extended", "start"]


def test_model_that_is_not_extensible_reads_from_the_start() -> None:
    model = SummingModel()
    state = encode(model, [[1], [2, 3]], is_extensible=False)
    new_state = encode(model, [[1, 5], [2, 3]], state, is_extensible=False)
    assert [kind for kind, _ in model.reads] == ["start", "start"]
    assert new_state.user_vectors.tolist() == [[6], [5]]
