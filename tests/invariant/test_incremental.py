"""Reading a history piece by piece equals reading it at once, for every model that keeps states of histories."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.history_state import HistoryState, StaleStateError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.core.roles import Incremental, Trainable
from nextitem.nn.attention.transformer import BLOCKS
from nextitem.testing.known_answers import cycle

WINDOW = 7  # max_history_length of models with this setting
SETTINGS: dict[str, list[dict[str, object]]] = {
    "sasrec": [
        {"positions": "from-last"},
        *({"positions": "from-first", "block": block, "layers": 2, "heads": 2} for block in BLOCKS),
        {"positions": "from-first", "temperature": 0.5},
        {"positions": "from-first", "window_step": 3},
        {"positions": "from-last", "window_step": 7},
    ],
    "hstu": [{}, {"window_step": 3}, {"window_step": 7, "actions": "interleaved"}],
    "hstu-ranking": [{}, {"window_step": 3}, {"window_step": 7, "actions": "interleaved"}],
    "onerec-tr": [{}, {"short_length": 3}, {"short_length": 3, "window_step": 3}],
    "gru4rec": [{}, {"window_step": 3}, {"window_step": 7, "embedding": "one-hot"}],
}
CASES = [
    pytest.param(name, settings, id="-".join([name, *map(str, settings.values())]))
    for name, entry in MODELS.items()
    if issubclass(entry.load(), Incremental)
    for settings in SETTINGS.get(name, [{}])
]
every_case = pytest.mark.parametrize(("name", "settings"), CASES)


def model_of(name: str, settings: dict[str, object]) -> Recommender:
    """Return a model with random weights, large enough that any difference is visible."""
    catalog = cycle().catalog
    codes = torch.stack([torch.arange(12) // 4, torch.arange(12) % 4], 1).int()
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=(3, 4), catalog_fingerprint=catalog.fingerprint)
    model_class = MODELS[name].load()
    window = {"max_history_length": WINDOW} if "max_history_length" in model_class.Config.model_fields else {}
    torch.manual_seed(0)
    model: Recommender = model_class(model_class.Config(**{**window, **settings}), catalog.with_identifiers(table))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def read(model: Recommender, histories: list[list[int]], state: HistoryState | None = None) -> HistoryState:
    assert isinstance(model, Incremental)
    return model.encode_history(SequenceBatch(Jagged.from_rows(histories)), state)


def assert_same_state(left: HistoryState, right: HistoryState) -> None:
    assert left.lengths.tolist() == right.lengths.tolist()
    assert left.starts.tolist() == right.starts.tolist()
    assert left.version == right.version
    for row in range(len(left.lengths)):
        torch.testing.assert_close(row_of(left, row), row_of(right, row), rtol=1e-5, atol=1e-5)


def row_of(state: HistoryState, row: int) -> torch.Tensor:
    """Return what a state knows of a history: its vector, or the keys and values of its tokens without padding."""
    if state.vectors is not None:
        return state.vectors[row]
    cache, tokens = state.cache["keys_values"][row], state.cache["digests"].shape[1]
    return cache[: int(state.cache["num_tokens"][row]) * (len(cache) // max(1, tokens))]


def random_histories(seed: int, rows: int = 6) -> tuple[list[list[int]], list[list[int]]]:
    """Return histories up to twice the window, and three ascending lengths of each, to read one after another."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 2 * WINDOW, (rows,), generator=generator).tolist()
    histories = [torch.randint(1, 13, (length,), generator=generator).tolist() for length in lengths]
    stops = [[*sorted(torch.randint(0, length + 1, (2,), generator=generator).tolist()), length] for length in lengths]
    return histories, stops


@every_case
@pytest.mark.parametrize("seed", range(8))
def test_reading_in_pieces_equals_reading_at_once(name: str, settings: dict[str, object], seed: int) -> None:
    """Rows have no, one or several new events, start without a state, and grow beyond the window."""
    model = model_of(name, settings)
    histories, stops = random_histories(seed)
    state = None
    for turn in range(3):
        read_parts = [history[: stop[turn]] for history, stop in zip(histories, stops, strict=True)]
        state = read(model, read_parts, state)
        assert state.lengths.tolist() == [len(history) for history in read_parts]
        for row, history in enumerate(read_parts):
            if history:
                torch.testing.assert_close(row_of(state, row), row_of(read(model, [history]), 0), rtol=1e-5, atol=1e-5)


@every_case
def test_reading_event_by_event_beyond_the_window_equals_reading_at_once(
    name: str, settings: dict[str, object]
) -> None:
    model = model_of(name, settings)
    history = [1, 5, 9, 5, 2, 12, 7, 7, 3, 8]
    state = read(model, [[]])
    for stop in range(1, len(history) + 1):
        state = read(model, [history[:stop]], state)
        assert_same_state(state, read(model, [history[:stop]]))


@every_case
def test_reading_without_new_events_changes_nothing(name: str, settings: dict[str, object]) -> None:
    model = model_of(name, settings)
    histories = [[1, 2, 3], [4], [], [*range(1, 12)]]
    state = read(model, histories)
    again = read(model, histories, state)
    assert_same_state(again, state)
    assert again.lengths.tolist() == [3, 1, 0, 11]


@every_case
def test_rows_of_a_state_can_be_selected_and_reordered(name: str, settings: dict[str, object]) -> None:
    model = model_of(name, settings)
    state = read(model, [[1, 2, 3, 4, 5], [6], [], [7, 8]])
    order = torch.tensor([3, 1, 1, 2])
    longer = [[7, 8, 9], [6], [6, 2, 3, 4], [5]]
    assert_same_state(read(model, longer, state.select(order)), read(model, longer))


@every_case
def test_two_continuations_of_one_state_are_independent(name: str, settings: dict[str, object]) -> None:
    model = model_of(name, settings)
    state = read(model, [[1, 2, 3], [4, 5]])
    before = {label: value.clone() for label, value in state.cache.items()}
    first, second = read(model, [[1, 2, 3, 9], [4, 5]], state), read(model, [[1, 2, 3, 8], [4, 5, 6]], state)
    assert all(torch.equal(value, state.cache[label]) for label, value in before.items())
    assert_same_state(first, read(model, [[1, 2, 3, 9], [4, 5]]))
    assert_same_state(second, read(model, [[1, 2, 3, 8], [4, 5, 6]]))
    assert_same_state(read(model, [[1, 2, 3, 9, 1], [4, 5]], first), read(model, [[1, 2, 3, 9, 1], [4, 5]]))


@every_case
def test_a_request_with_a_state_gets_the_same_items_as_one_without(name: str, settings: dict[str, object]) -> None:
    model = model_of(name, settings)
    long = [9, 8, 7, 6, 5, 4, 3, 2, 1, 12]
    state = read(model, [[1, 2, 3], [], [5], [4, 5], long[:8]])
    batch = SequenceBatch(Jagged.from_rows([[1, 2, 3, 4], [], [5, 6, 7], [4, 5], long]))
    plain, with_state = model.recommend(batch, 12), model.recommend(replace(batch, state=state), 12)
    assert with_state.item_ids.tolist() == plain.item_ids.tolist()
    torch.testing.assert_close(with_state.scores, plain.scores, rtol=1e-5, atol=1e-5)


@every_case
def test_a_state_of_a_longer_history_raises(name: str, settings: dict[str, object]) -> None:
    model = model_of(name, settings)
    with pytest.raises(ValueError, match="read more events"):
        read(model, [[1, 2]], read(model, [[1, 2, 3]]))


@every_case
def test_a_state_of_other_weights_raises(name: str, settings: dict[str, object]) -> None:
    model, other = model_of(name, settings), model_of(name, settings)
    for each in (model, other):
        assert isinstance(each, Trainable)
        each.examples(cycle())  # fits what training fits before its first step
    state = read(model, [[1, 2, 3], []])
    assert state.version == read(other, [[1]]).version  # the same weights, as in another process
    assert_same_state(read(other, [[1, 2, 3, 4], [5]], state), read(model, [[1, 2, 3, 4], [5]]))
    batch = SequenceBatch(Jagged.from_rows([[1, 2, 3, 4], [5]]), state=state)
    train_one_step(model)
    with pytest.raises(StaleStateError, match="other weights"):
        model.recommend(batch, 3)
    renewed = read(model, [[1, 2, 3], []])
    assert_same_state(read(model, [[1, 2, 3, 4], [5]], renewed), read(model, [[1, 2, 3, 4], [5]]))
    model.load_state_dict(other.state_dict())
    model.recommend(batch, 3)
    with pytest.raises(StaleStateError):
        read(model, [[1, 2, 3, 4], [5]], renewed)
    changed = model_of(name, {**settings, "max_history_length": WINDOW + 1})
    with pytest.raises(StaleStateError):
        read(changed, [[1, 2, 3, 4], [5]], state)


def train_one_step(model: Recommender) -> None:
    assert isinstance(model, Trainable)
    model.train()
    model.set_popularity(torch.ones(model.num_items + 1))
    batch = next(model.examples(cycle()).batches(8, epoch=0, seed=0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.training_loss(batch).total.backward()
    optimizer.step()
    model.eval()


@every_case
def test_states_are_joined_row_by_row(name: str, settings: dict[str, object]) -> None:
    model = model_of(name, settings)
    histories = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [6], [7, 8]]
    parts = [read(model, histories[:1]), HistoryState.unread(1), read(model, histories[1:])]
    joined = HistoryState.concat(parts)
    longer = [[*histories[0], 3], [4], [*histories[1], 2, 3], histories[2]]
    assert_same_state(read(model, longer, joined), read(model, longer))
    train_one_step(model)
    with pytest.raises(StaleStateError, match="cannot be joined"):
        HistoryState.concat([joined, read(model, [[1]])])


@every_case
def test_states_have_no_gradient(name: str, settings: dict[str, object]) -> None:
    state = read(model_of(name, settings), [[1, 2, 3], [4]])
    values = [*state.cache.values(), *([] if state.vectors is None else [state.vectors])]
    assert not any(value.requires_grad for value in values)
