"""Beam search: worked examples, limits, and mistakes of other implementations."""

from __future__ import annotations

import pytest
import torch
from support.fake_generator import FakeGenerator, FakeParallelGenerator, identifier_table, requests
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.roles import GeneratorState
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.trie import PrefixTrie

PAIRS = [[a, b] for a in range(3) for b in range(3)]  # item 3a + b + 1 has codes a, b


def trie_of(rows: list[list[int]], sizes: tuple[int, ...]) -> PrefixTrie:
    return PrefixTrie.from_table(identifier_table(rows, sizes))


def mask_of(items: list[int], count: int) -> Tensor:
    """Return an allow-list [1, count + 1] with these items."""
    mask = torch.zeros((1, count + 1), dtype=torch.bool)
    mask[0, items] = True
    return mask


def logs(rows: list[list[float]]) -> Tensor:
    """Return log-probabilities [1, rows, codes]."""
    return torch.tensor([rows]).log()


# First code: 0.5 0.4 0.1. The best pair, 1 then 2 (0.4 * 0.9 = 0.36), lies below the second-best first code.
TRAP = [logs([[0.5, 0.4, 0.1]]), logs([[0.4, 0.3, 0.3], [0.05, 0.05, 0.9], [0.2, 0.4, 0.4]])]


def test_a_worked_example() -> None:
    answer = beam_search(FakeGenerator(TRAP), requests(1), trie_of(PAIRS, (3, 3)), k=3, beam_width=3)
    assert answer.item_ids.tolist() == [[6, 1, 2]]
    assert torch.allclose(answer.scores.exp(), torch.tensor([[0.36, 0.20, 0.15]]))


def test_beam_width_one_is_greedy_and_misses_the_best_pair() -> None:
    answer = beam_search(FakeGenerator(TRAP), requests(1), trie_of(PAIRS, (3, 3)), k=1, beam_width=1)
    assert answer.item_ids.tolist() == [[1]]


def test_accumulate_last_ranks_by_the_last_logit_alone() -> None:
    tables = [torch.tensor([[[1.0, 0.5, -9.0]]]), torch.tensor([[[0.1, 0.2, 0.3], [9.0, 0.0, 0.25], [99.0] * 3]])]
    answer = beam_search(
        FakeGenerator(tables), requests(1), trie_of(PAIRS, (3, 3)), k=2, beam_width=2, accumulate="last"
    )
    # Code 2 is pruned at the first level, so its 99 is never seen.
    assert answer.item_ids.tolist() == [[4, 3]]
    assert torch.allclose(answer.scores, torch.tensor([[9.0, 0.3]]))


def test_the_softmax_covers_all_codes_of_a_level_unless_renormalised() -> None:
    # Only items 6 (1, 2) and 7 (2, 0) are allowed: first codes with 0.4 and 0.1.
    batch = requests(1, allowed=mask_of([6, 7], 9))
    trie = trie_of(PAIRS, (3, 3))
    plain = beam_search(FakeGenerator(TRAP), batch, trie, k=2, beam_width=2)
    assert plain.item_ids.tolist() == [[6, 7]]
    assert torch.allclose(plain.scores.exp(), torch.tensor([[0.36, 0.02]]))
    legal = beam_search(FakeGenerator(TRAP), batch, trie, k=2, beam_width=2, renormalise=True)
    assert torch.allclose(legal.scores.exp(), torch.tensor([[0.8, 0.2]]))


def test_renormalised_probabilities_of_all_legal_items_sum_to_one() -> None:
    rows = [[0, 0, 1], [0, 2, 0], [1, 1, 1], [3, 0, 0], [3, 2, 1]]
    generator = FakeGenerator.random((4, 3, 2), users=2, seed=1)
    batch = requests(2, excluded=[[2], [1, 4]])
    answer = beam_search(generator, batch, trie_of(rows, (4, 3, 2)), k=5, beam_width=5, renormalise=True)
    assert torch.allclose(answer.scores.exp().sum(1), torch.ones(2))


def test_a_sequence_of_legal_neighbours_that_no_item_has_is_never_returned() -> None:
    # 0 1 1 has legal codes at every level and legal neighbours, but no item has it; the generator prefers it.
    rows = [[0, 1, 0], [1, 1, 1], [0, 0, 1]]
    tables = [torch.tensor([[[9.0, 0.0]]]), torch.tensor([[[0.0, 9.0]] * 2]), torch.tensor([[[0.0, 9.0]] * 4])]
    answer = beam_search(FakeGenerator(tables), requests(1), trie_of(rows, (2, 2, 2)), k=3, beam_width=3)
    assert sorted(answer.item_ids[0].tolist()) == [1, 2, 3]


@pytest.mark.parametrize("items_per_list", [1, 3])
def test_an_empty_allow_list_affects_only_its_own_request(items_per_list: int) -> None:
    allowed = torch.stack([torch.zeros(10, dtype=torch.bool), torch.ones(10, dtype=torch.bool)])
    generator = FakeGenerator.random((3, 3), users=2, seed=0, items_per_list=items_per_list)
    answer = beam_search(
        generator,
        requests(2, allowed=allowed),
        trie_of(PAIRS, (3, 3)),
        k=3,
        beam_width=3,
        items_per_list=items_per_list,
    )
    assert answer.item_ids[0].tolist() == [0, 0, 0]
    assert (answer.scores[0] == -torch.inf).all()
    assert (answer.item_ids[1] > 0).all()


def test_the_search_stops_at_once_if_all_items_are_excluded() -> None:
    generator = FakeGenerator(TRAP)
    batch = requests(1, excluded=[list(range(1, 10))])
    answer = beam_search(generator, batch, trie_of(PAIRS, (3, 3)), k=4, beam_width=2)
    assert answer.item_ids.tolist() == [[0] * 4]
    assert generator.calls == 1


@pytest.mark.parametrize("item", range(1, 10))
def test_a_single_beam_finds_the_only_allowed_item(item: int) -> None:
    batch = requests(1, allowed=mask_of([item], 9))
    answer = beam_search(FakeGenerator(TRAP), batch, trie_of(PAIRS, (3, 3)), k=1, beam_width=1)
    assert answer.item_ids.tolist() == [[item]]


def test_all_items_with_the_same_codes_are_returned_in_item_order() -> None:
    trie = trie_of([[1, 2]] * 7, (3, 3))
    answer = beam_search(FakeGenerator(TRAP), requests(1, excluded=[[3]]), trie, k=7, beam_width=1)
    assert answer.item_ids.tolist() == [[1, 2, 4, 5, 6, 7, 0]]
    assert torch.allclose(answer.scores[0, :6].exp(), torch.full((6,), 0.36))


def test_a_large_leaf_returns_its_first_legal_items() -> None:
    trie = trie_of([[0]] * 5000 + [[1]], (2,))
    allowed = torch.zeros((1, 5002), dtype=torch.bool)
    allowed[0, 4000:] = True
    batch = requests(2, excluded=[[4000, 4002], []], allowed=allowed)
    answer = beam_search(FakeGenerator([torch.zeros((2, 1, 2))]), batch, trie, k=3, beam_width=1)
    assert answer.item_ids.tolist() == [[4001, 4003, 4004], [4000, 4001, 4002]]


def test_one_item_and_one_level() -> None:
    answer = beam_search(FakeGenerator([torch.zeros((1, 1, 1))]), requests(1), trie_of([[0]], (1,)), k=3, beam_width=9)
    assert answer.item_ids.tolist() == [[1, 0, 0]]
    assert answer.scores.tolist() == [[0.0, -torch.inf, -torch.inf]]


def test_equal_scores_are_ordered_by_item_number() -> None:
    rows = [[2, 2], [0, 1], [1, 0], [0, 0]]
    flat = FakeGenerator([torch.zeros((1, 1, 3)), torch.zeros((1, 3, 3))])
    answer = beam_search(flat, requests(1), trie_of(rows, (3, 3)), k=4, beam_width=4)
    assert answer.item_ids.tolist() == [[1, 2, 3, 4]]


def test_codes_with_a_logit_of_minus_infinity_are_never_selected() -> None:
    tables = [torch.tensor([[[0.0, -torch.inf, 0.0]]]), torch.zeros((1, 3, 3))]
    tables[1][0, 2] = -torch.inf
    for renormalise in (False, True):
        answer = beam_search(
            FakeGenerator(tables), requests(1), trie_of(PAIRS, (3, 3)), k=9, beam_width=9, renormalise=renormalise
        )
        assert answer.item_ids.tolist() == [[1, 2, 3, 0, 0, 0, 0, 0, 0]]


def test_nan_logits_raise() -> None:
    tables = [torch.full((1, 1, 3), torch.nan), torch.zeros((1, 3, 3))]
    with pytest.raises(ValueError, match="NaN"):
        beam_search(FakeGenerator(tables), requests(1), trie_of(PAIRS, (3, 3)), k=1, beam_width=1)


def test_logits_of_dead_beams_are_ignored() -> None:
    # User 1 is allowed item 5 (1, 1) alone, so beside user 2 its row contains dead beams, with code 0.
    generator = FakeGenerator.random((3, 3), users=2, seed=0)
    generator.tables[1][0, [0, 2]] = torch.nan
    allowed = torch.stack([mask_of([5], 9)[0], torch.ones(10, dtype=torch.bool)])
    answer = beam_search(generator, requests(2, allowed=allowed), trie_of(PAIRS, (3, 3)), k=3, beam_width=3)
    assert answer.item_ids[0].tolist() == [5, 0, 0]
    assert (answer.item_ids[1] > 0).all()


def test_an_empty_batch_gives_an_empty_answer() -> None:
    answer = beam_search(FakeGenerator(TRAP), requests(0), trie_of(PAIRS, (3, 3)), k=2, beam_width=2)
    assert answer.item_ids.shape == (0, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0, "beam_width": 1},
        {"k": 1, "beam_width": 0},
        {"k": 2, "beam_width": 2, "items_per_list": 3},
        {"k": 2, "beam_width": 2, "items_per_list": 0},
        {"k": 2, "beam_width": 2, "accumulate": "last", "renormalise": True},
    ],
)
def test_invalid_options_raise(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be at|renormalise"):
        beam_search(FakeGenerator(TRAP), requests(1), trie_of(PAIRS, (3, 3)), **options)  # type: ignore[arg-type]


class CountingGenerator(FakeGenerator):
    """Records the number of beams of each step."""

    def start(self, batch: SequenceBatch) -> GeneratorState:
        self.widths: list[int] = []
        return super().start(batch)

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        self.widths.append(state.beams["path"].shape[1])
        return super().step(state, codes)


def test_there_are_no_more_beams_than_the_widest_request_needs() -> None:
    generator = CountingGenerator.random((3, 3, 3), users=2, seed=0)
    rows = [[a, b, c] for a in range(3) for b in range(3) for c in range(3)]
    allowed = torch.stack([mask_of([1], 27)[0], mask_of([1, 2, 27], 27)[0]])
    beam_search(generator, requests(2, allowed=allowed), trie_of(rows, (3, 3, 3)), k=20, beam_width=20)
    assert isinstance(generator, CountingGenerator)
    assert generator.widths == [1, 2, 2]


@pytest.mark.parametrize("items_per_list", [1, 2])
def test_new_tensors_are_created_on_the_device_of_the_batch(items_per_list: int) -> None:
    generator = FakeGenerator.random((3, 3), users=2, seed=0, items_per_list=items_per_list)
    batch = requests(2, excluded=[[1], [2, 3]], allowed=torch.ones((2, 10), dtype=torch.bool))
    trie = trie_of(PAIRS, (3, 3))
    # A tensor created without a device would now contain no data, and an operation with the others would fail.
    with torch.device("meta"):
        answer = beam_search(generator, batch, trie, k=4, beam_width=4, items_per_list=items_per_list)
    assert answer.item_ids.device.type == answer.scores.device.type == "cpu"


def test_levels_with_only_one_child_need_no_extra_call_of_a_parallel_generator() -> None:
    rows = [[a, b, a, b] for a in range(4) for b in range(4)]  # below the second code every node has one child
    tables = FakeGenerator.random((4, 4, 4, 4), users=2, seed=0).tables
    answers = []
    for generator, calls in ((FakeGenerator(tables), 4), (FakeParallelGenerator(tables), 3)):
        answers.append(beam_search(generator, requests(2), trie_of(rows, (4, 4, 4, 4)), k=8, beam_width=8))
        assert generator.calls == calls
    assert torch.equal(answers[0].item_ids, answers[1].item_ids)
    assert torch.equal(answers[0].scores, answers[1].scores)
