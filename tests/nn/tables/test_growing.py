"""Tests of growing tables: against a dict, with known answers for admission, eviction, growth and resuming."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nextitem.nn.tables.growing import EVICTION_SHARE, GrowingTable
from nextitem.nn.tables.kinds import GrowingRows


class DictTable:
    """The plain reference: which ids have rows after each step, by a dict and exact counts."""

    def __init__(self, config: GrowingRows) -> None:
        self.config, self.step = config, 0
        self.members: dict[int, tuple[float, int]] = {}  # id -> occurrences as of the last use, step of it
        self.waiting: dict[int, int] = {}  # id without a row -> occurrences

    def value(self, member: int) -> float:
        """Return the value by which an id keeps its row."""
        count, last_use = self.members[member]
        return math.log2(count) + last_use / self.config.half_life

    def after_step(self, occurrences: list[int]) -> None:
        """Admit and evict ids after a step with these occurrences."""
        config, newcomers = self.config, []
        self.step += 1
        for member in sorted(set(occurrences) - {0}):
            count = occurrences.count(member)
            if member in self.members:
                former, last_use = self.members[member]
                decayed = former * 2 ** ((last_use - self.step) / config.half_life)
                self.members[member] = (decayed + count, self.step)
                continue
            self.waiting[member] = self.waiting.get(member, 0) + count
            if self.waiting[member] >= config.admit_after:
                newcomers.append((member, self.waiting[member] if config.admit_after > 1 else count))
        newcomers = newcomers[: config.max_rows]
        num_excess = len(self.members) + len(newcomers) - config.max_rows
        if num_excess > 0:
            for member in sorted(self.members, key=lambda member: (self.value(member), member))[:num_excess]:
                del self.members[member]
        self.members.update({member: (float(count), self.step) for member, count in newcomers})


def table_of(width: int = 2, **config: object) -> GrowingTable:
    torch.manual_seed(0)
    return GrowingTable(GrowingRows.model_validate({"half_life": 8.0, "block_rows": 3, **config}), width)


def step(table: GrowingTable, ids: list[int]) -> list[int]:
    """Let the table see one batch, and return the ids that have rows after it."""
    table.observe(torch.tensor(ids, dtype=torch.int64))
    table.after_step()
    return members(table)


def members(table: GrowingTable) -> list[int]:
    return sorted(table.ids[table.ids != 0].tolist())


def has_own_row(table: GrowingTable, value: int) -> bool:
    return int(table.rows_of(torch.tensor([value]))) >= table.first_row


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(-6, 6), max_size=8), max_size=25),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([0.5, 3.0, 1000.0]),
)
def test_any_stream_of_ids_ends_with_the_members_of_a_dict(
    stream: list[list[int]], max_rows: int, admit_after: int, half_life: float
) -> None:
    config = GrowingRows(max_rows=max_rows, admit_after=admit_after, half_life=half_life, block_rows=2)
    table, reference = GrowingTable(config, 2), DictTable(config)
    for ids in stream:
        reference.after_step(ids)
        assert step(table, ids) == sorted(reference.members)
        rows = {value: int(table.rows_of(torch.tensor([value]))) for value in reference.members}
        assert len(set(rows.values())) == len(rows)
        for value, row in rows.items():
            count, last_use = reference.members[value]
            assert int(table.ids[row]) == value
            assert float(table.counts[row]) == pytest.approx(count, rel=1e-5)
            assert int(table.last_use[row]) == last_use
        assert len(table.weight) <= table.first_row + max_rows


def test_an_id_is_admitted_at_exactly_the_nth_occurrence() -> None:
    table = table_of(max_rows=10, admit_after=5)
    assert step(table, [7, 7, -3]) == []
    assert step(table, [7, 7]) == []
    assert not has_own_row(table, 7)
    assert step(table, [7]) == [7]
    assert has_own_row(table, 7)
    assert step(table, [-3] * 3) == [7]
    assert step(table, [-3]) == [-3, 7]


def test_duplicates_in_one_batch_are_as_many_occurrences() -> None:
    table = table_of(max_rows=10, admit_after=3)
    assert step(table, [4, 4, 4, 5, 5]) == [4]


def test_the_least_recent_id_goes_first_under_a_short_half_life() -> None:
    table = table_of(max_rows=3, half_life=0.1)
    for value in (11, 12, 13, 11):
        step(table, [value])
    assert step(table, [14]) == [11, 13, 14]
    assert step(table, [15]) == [11, 14, 15]
    assert step(table, [16]) == [14, 15, 16]


def test_the_rarest_id_goes_first_under_a_long_half_life() -> None:
    table = table_of(max_rows=3, half_life=1e6)
    step(table, [11] * 5 + [12] * 2 + [13] * 3)
    for _ in range(9):
        step(table, [11])
    assert step(table, [14]) == [11, 13, 14]
    assert step(table, [15]) == [11, 13, 15]  # 14 occurred once


def test_equal_values_are_evicted_from_the_smallest_id_on() -> None:
    table = table_of(max_rows=4)
    step(table, [5, -2, 9, 3])
    assert step(table, [100, 101]) == [5, 9, 100, 101]


def test_many_newcomers_replace_everything_and_the_rest_waits() -> None:
    table = table_of(max_rows=3)
    step(table, [1, 2])
    assert step(table, [10, 11, 12, 13, 14]) == [10, 11, 12]


def test_a_large_table_evicts_a_share_of_its_rows_at_once() -> None:
    table = table_of(max_rows=4 * EVICTION_SHARE, block_rows=1000)
    step(table, list(range(1, 4 * EVICTION_SHARE + 1)))
    assert len(step(table, [-1])) == 4 * EVICTION_SHARE - 4 + 1
    assert members(table)[:2] == [-1, 5]


def test_rows_are_allocated_in_blocks_up_to_the_bound() -> None:
    table, sizes = table_of(max_rows=8, block_rows=3, shared_rows=0), []
    for value in range(1, 11):
        step(table, [value])
        sizes.append(len(table.weight) - table.first_row)
    assert sizes == [3, 3, 3, 6, 6, 6, 8, 8, 8, 8]
    assert table.num_embeddings == len(table.weight) == len(table.ids)


def test_padding_is_zero_and_is_never_counted() -> None:
    table = table_of(max_rows=8)
    assert step(table, [0, 0, 0, 4]) == [4]
    assert table(torch.tensor([[0, 4]]))[0, 0].tolist() == [0, 0]
    table(torch.tensor([0])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.to_dense().abs().sum() == 0


def test_empty_look_ups_and_steps_have_their_shapes() -> None:
    table = table_of(width=3)
    assert table(torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 4, 3)
    assert table.means(torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)).tolist() == [[0] * 3] * 2
    assert table.after_step().tolist() == []
    assert step(table, []) == []


def test_a_new_row_begins_as_the_shared_row_that_the_id_had() -> None:
    table = table_of()
    before = table(torch.tensor([42])).detach().clone()
    assert before.abs().sum() > 0
    step(table, [42])
    assert has_own_row(table, 42)
    assert torch.equal(table(torch.tensor([42])), before)


def test_without_shared_rows_unknown_ids_are_zero_and_new_rows_a_function_of_the_id() -> None:
    first, second = (table_of(width=4, shared_rows=0, max_rows=50) for _ in range(2))
    assert first(torch.tensor([42])).tolist() == [[0] * 4]
    step(first, [42, 5])
    step(second, [8])
    step(second, [42])
    assert torch.equal(first(torch.tensor([42])), second(torch.tensor([42])))
    assert first(torch.tensor([42])).abs().sum() > 0


def test_an_evicted_id_reads_the_shared_row_and_its_row_belongs_to_another() -> None:
    table = table_of(max_rows=1)
    shared = table(torch.tensor([3])).detach().clone()
    step(table, [3])
    row = int(table.rows_of(torch.tensor([3])))
    with torch.no_grad():
        table.weight[row] = 7.0
    step(table, [4])
    assert torch.equal(table(torch.tensor([3])), shared)
    assert int(table.rows_of(torch.tensor([4]))) == row
    assert not bool((table.weight[row] == 7).any())


def test_nothing_is_observed_in_evaluation() -> None:
    table = table_of().eval()
    assert step(table, [1, 2]) == []


def test_codes_are_looked_up_by_their_keys() -> None:
    keys = torch.tensor([0, 900, -900])
    torch.manual_seed(0)
    table = GrowingTable(GrowingRows(), 2, keys=keys)
    step(table, [2])
    assert members(table) == [-900]
    by_key = GrowingTable(GrowingRows(), 2)
    by_key.load_state_dict(table.state_dict())
    assert torch.equal(table(torch.tensor([0, 1, 2])), by_key(keys))
    assert torch.equal(table.all_vectors(), by_key(keys))


def test_means_of_bags_are_the_means_of_the_vectors() -> None:
    table = table_of(width=3)
    step(table, [5, 6, 7])
    codes, offsets = torch.tensor([5, 6, 6, 99, 7]), torch.tensor([0, 3, 3])
    vectors = table(codes)
    expected = torch.stack([vectors[:3].mean(0), vectors[:0].sum(0), vectors[3:].mean(0)])
    torch.testing.assert_close(table.means(codes, offsets), expected)


@pytest.mark.parametrize("admit_after", [1, 2])
def test_a_saved_table_goes_on_as_the_uninterrupted_one(tmp_path, admit_after: int) -> None:  # type: ignore[no-untyped-def]
    table = table_of(max_rows=6, admit_after=admit_after)
    stream = torch.randint(-12, 12, (40, 5), generator=torch.Generator().manual_seed(1)).tolist()
    for ids in stream[:20]:
        step(table, ids)
    save_file(table.state_dict(), tmp_path / "table.safetensors")
    other = table_of(max_rows=6, admit_after=admit_after)
    other.load_state_dict(load_file(tmp_path / "table.safetensors"))
    for ids in stream[20:]:
        assert step(table, ids) == step(other, ids)
    for name, value in table.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_order_of_ids_within_a_step_does_not_matter() -> None:
    first, second = table_of(max_rows=5), table_of(max_rows=5)
    generator = torch.Generator().manual_seed(3)
    for _ in range(30):
        ids = torch.randint(-9, 9, (6,), generator=generator)
        for part in (ids[:4], ids[4:]):
            first.observe(part)
        second.observe(ids.flip(0))
        assert torch.equal(first.after_step(), second.after_step())
    assert torch.equal(first.ids, second.ids)


def test_a_copy_of_a_table_is_independent() -> None:
    table = table_of(max_rows=2)
    step(table, [1, 2])
    other = deepcopy(table)
    step(other, [3])
    assert members(table) == [1, 2]
    assert has_own_row(table, 1)
    assert members(other) == [2, 3]
