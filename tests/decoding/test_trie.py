"""PrefixTrie, compared with a trie of plain dictionaries."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.fake_generator import identifier_table

from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.decoding import trie as trie_module
from nextitem.decoding.trie import PrefixTrie


def dict_trie(rows: list[list[int]]) -> dict[tuple[int, ...], set[int]]:
    """Return prefix -> codes that may follow, and full sequence -> its items."""
    following: dict[tuple[int, ...], set[int]] = {}
    for item, row in enumerate(rows, start=1):
        for depth, code in enumerate(row):
            following.setdefault(tuple(row[:depth]), set()).add(code)
        following.setdefault(tuple(row), set()).add(item)
    return following


@st.composite
def tables(draw: Any) -> tuple[list[list[int]], tuple[int, ...]]:
    sizes = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes)).map(list)
    return draw(st.lists(row, min_size=1, max_size=30)), sizes


@pytest.mark.parametrize("dense_entries", [0, 12, 2**17])
@settings(max_examples=60, deadline=None)
@given(data=tables())
def test_a_trie_equals_a_trie_of_dictionaries(
    dense_entries: int, data: tuple[list[list[int]], tuple[int, ...]]
) -> None:
    rows, sizes = data
    before = trie_module._DENSE_ENTRIES
    trie_module._DENSE_ENTRIES = dense_entries
    try:
        trie = PrefixTrie.from_table(identifier_table(rows, sizes))
    finally:
        trie_module._DENSE_ENTRIES = before
    nodes: dict[tuple[int, ...], int] = {(): trie.root}
    for prefix, following in sorted(dict_trie(rows).items(), key=lambda entry: len(entry[0])):
        node, depth = nodes[prefix], len(prefix)
        if depth == len(sizes):
            assert trie.items_under(node).tolist() == sorted(following)
            continue
        allowed = trie.allowed(torch.tensor([[node]]), depth=depth)[0, 0]
        assert set(allowed.nonzero()[:, 0].tolist()) == following
        codes = torch.arange(sizes[depth])
        reached = trie.advance(torch.full_like(codes, node), codes)
        assert set((reached >= 0).nonzero()[:, 0].tolist()) == following
        children = trie.expand(torch.tensor([[node, -1]]), depth=depth)
        assert (children.nodes[0, 1] == -1).all()
        assert sorted(n for n in children.nodes[0, 0].tolist() if n >= 0) == sorted(reached[reached >= 0].tolist())
        nodes |= {(*prefix, code): int(reached[code]) for code in following}
        assert trie.parents(reached, depth=depth).tolist() == torch.where(reached >= 0, node, -1).tolist()
    for position, item in enumerate(trie.items.tolist()):
        assert int(trie.positions[item]) == position
        for depth in range(len(sizes) + 1):
            ancestor = trie.ancestors(torch.tensor([position]), depth=depth)
            assert ancestor.item() == nodes[tuple(rows[item - 1][:depth])]


def test_dead_nodes_leaves_and_unknown_codes_lead_nowhere() -> None:
    trie = PrefixTrie.from_table(identifier_table([[0, 1], [2, 0]], (3, 2)))
    leaf = trie.advance(trie.advance(torch.tensor([0]), torch.tensor([2])), torch.tensor([0]))
    assert leaf.item() >= 0
    nodes = torch.tensor([-1, int(leaf), 0, 0, 0, 0])
    assert trie.advance(nodes, torch.tensor([0, 0, 1, 3, -1, 999])).tolist() == [-1] * 6
    assert not trie.allowed(torch.tensor([-1]), depth=1).any()


def test_code_sequences_that_do_not_fit_one_sort_key_are_sorted_too() -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = (2**20, 2**20, 2**20, 40_000)
    codes = torch.stack([torch.randint(0, min(size, 3), (200,), generator=draw) for size in sizes], dim=1)
    codes[:, 3] += 39_000
    trie = PrefixTrie.from_table(IdentifierTable.from_item_codes(codes, codebook_sizes=sizes, catalog_fingerprint=""))
    rows = codes.tolist()
    assert trie.items.tolist() == sorted(range(1, 201), key=lambda item: (rows[item - 1], item))


def test_building_again_gives_the_same_trie_and_colliding_items_stay_in_order() -> None:
    rows = [[1, 1], [0, 0], [1, 1], [1, 0], [1, 1]]
    first, second = (PrefixTrie.from_table(identifier_table(rows, (2, 2))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    assert first.items.tolist() == [2, 4, 1, 3, 5]


def test_the_state_dict_of_a_model_contains_nothing_of_its_trie() -> None:
    assert PrefixTrie.from_table(identifier_table([[0]], (1,))).state_dict() == {}


@pytest.mark.slow
def test_a_million_items_build_in_seconds_and_stay_small() -> None:
    codes = torch.randint(0, 256, (1_000_000, 4), generator=torch.Generator().manual_seed(0))
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=(256,) * 4, catalog_fingerprint="")
    start = time.process_time()
    trie = PrefixTrie.from_table(table)
    assert time.process_time() - start <= 6
    assert trie.num_bytes <= 64 * 1_000_000


@settings(max_examples=40, deadline=None)
@given(data=tables(), live_flags=st.lists(st.booleans(), min_size=30, max_size=30))
def test_a_trie_contains_live_items_only(data: tuple[list[list[int]], tuple[int, ...]], live_flags: list[bool]) -> None:
    rows, sizes = data
    live = torch.tensor([False, *live_flags[: len(rows)]])
    trie = PrefixTrie.from_table(identifier_table(rows, sizes), live=live)
    live_items = live.nonzero()[:, 0]
    expected = PrefixTrie.from_table(identifier_table([rows[item - 1] for item in live_items.tolist()], sizes))
    assert torch.equal(live_items[expected.items.long() - 1].int(), trie.items)
    assert all(
        torch.equal(part, dict(expected.named_buffers())[name])
        for name, part in trie.named_buffers()
        if name not in ("items", "positions")
    )
    assert bool((trie.positions[~live] == -1).all())
    assert torch.equal(trie.items[trie.positions[live_items].long()].long(), live_items)


@settings(max_examples=30, deadline=None)
@given(data=tables())
def test_an_opened_trie_equals_the_saved_one(data: tuple[list[list[int]], tuple[int, ...]]) -> None:
    trie = PrefixTrie.from_table(identifier_table(*data))
    with TemporaryDirectory() as folder:
        trie.save(Path(folder) / "trie.safetensors")
        opened = PrefixTrie.open(Path(folder) / "trie.safetensors")
        assert opened.codebook_sizes == trie.codebook_sizes
        assert opened.level_starts == trie.level_starts
        buffers = dict(opened.named_buffers())
        assert buffers.keys() == dict(trie.named_buffers()).keys()
        assert all(torch.equal(part, buffers[name]) for name, part in trie.named_buffers())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists the mapped files of a process")
def test_an_opened_trie_is_mapped_from_its_file(tmp_path: Path) -> None:
    PrefixTrie.from_table(identifier_table([[0, 1], [2, 0]], (3, 2))).save(tmp_path / "trie.safetensors")
    opened = PrefixTrie.open(tmp_path / "trie.safetensors")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [part[0].split("-") for part in maps if part[-1] == str(tmp_path / "trie.safetensors")]
    for part in opened.buffers():
        assert any(int(low, 16) <= part.data_ptr() < int(high, 16) for low, high in mapped)


@pytest.mark.parametrize("name", ["first_child", "item_starts", "items", "head_0", "codes"])
def test_a_file_with_numbers_that_point_outside_its_tensors_raises(name: str, tmp_path: Path) -> None:
    trie = PrefixTrie.from_table(identifier_table([[0, 1], [2, 0], [2, 1]], (3, 2)))
    part = trie.get_buffer(name)
    if name == "codes":
        trie.codes = part[:-1]
    else:
        part.view(-1)[0] = 10_000
    trie.save(tmp_path / "trie.safetensors")
    with pytest.raises(UserError, match="damaged"):
        PrefixTrie.open(tmp_path / "trie.safetensors")


def test_a_missing_file_and_files_of_other_formats_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing or damaged"):
        PrefixTrie.open(tmp_path / "none")
    (tmp_path / "text").write_text("no trie")
    with pytest.raises(UserError, match="missing or damaged"):
        PrefixTrie.open(tmp_path / "text")
    save_file({"items": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(UserError, match="no trie"):
        PrefixTrie.open(tmp_path / "other")
