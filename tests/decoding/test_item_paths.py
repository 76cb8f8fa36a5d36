"""Paths of items down a trie: the nodes themselves, and what the vectors of nodes become if codes are replaced."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nextitem.core.identifiers import IdentifierTable
from nextitem.decoding.item_paths import ItemPaths

CODES = torch.tensor([[0, 0, 0], [1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 2]])
SIZES = (2, 2, 3)


def table_of(codes: Tensor, sizes: tuple[int, ...] = SIZES) -> IdentifierTable:
    return IdentifierTable.from_item_codes(codes, codebook_sizes=sizes, catalog_fingerprint="", report={"items": 5})


def embedding_of(rows: int, width: int = 3) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    with torch.no_grad():
        table.weight.copy_(torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)))
    return table


def test_a_path_leads_from_the_root_to_the_leaf_by_the_codes_of_the_item() -> None:
    paths = ItemPaths(table_of(CODES))
    for item in range(1, 6):
        nodes = torch.zeros(1, dtype=torch.int64)
        for level in range(3):
            assert int(paths.nodes[item, level]) == int(nodes)
            nodes = paths.trie.advance(nodes, paths.codes[item, level : level + 1].long())
        assert int(paths.nodes[item, 3]) == int(nodes)
        assert int(paths.item_of_leaf[nodes]) == item
    assert paths.num_inner == paths.trie.level_starts[3]


def test_vectors_become_weighted_means_of_those_of_the_items_below() -> None:
    paths = ItemPaths(table_of(CODES), replaced_below=0)
    by_node = embedding_of(paths.num_inner)
    by_code = [embedding_of(size) for size in SIZES]
    nodes, codes = paths.nodes.clone(), paths.codes.clone()
    former, former_codes = by_node.weight.detach().clone(), [table.weight.detach().clone() for table in by_code]
    weights = torch.tensor([0.0, 4.0, 1.0, 0.0, 2.0, 3.0])  # item 3 has no event and counts as one
    new_codes = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 2]])
    changed = paths.replace_codes(new_codes, by_node=[by_node], by_code=by_code, weights=weights)
    assert [id(parameter) for parameter in changed] == [id(by_node.weight), *(id(table.weight) for table in by_code)]
    assert torch.equal(paths.table.codes[1:], new_codes.int())
    assert paths.table.report is None
    expected = {(0,): {1: 4, 2: 1}, (1,): {3: 1, 4: 2, 5: 3}}
    for depth, (prefix, members) in product((1, 2), expected.items()):
        node = int(paths.nodes[next(iter(members)), depth])
        mean = sum(weight * former[nodes[item, depth]] for item, weight in members.items()) / sum(members.values())
        torch.testing.assert_close(by_node.weight[node], mean)
        if depth == 1:
            parts = [weight * former_codes[0][int(codes[item, 0])] for item, weight in members.items()]
            torch.testing.assert_close(by_code[0].weight[prefix[0]], sum(parts) / sum(members.values()))
    assert torch.equal(by_code[1].weight[1], former_codes[1][1])  # no item leads to this code any more


def test_vectors_stay_with_nodes_that_only_get_other_codes() -> None:
    paths = ItemPaths(table_of(CODES), replaced_below=0)
    table = embedding_of(paths.num_inner)
    vectors = table.weight[paths.nodes[1:, 1:3]].detach().clone()
    other = torch.stack([1 - CODES[:, 0], CODES[:, 1], (CODES[:, 2] + 1) % 3], dim=1)
    other[:, 1] = torch.where(other[:, 0] == 0, 1 - other[:, 1], other[:, 1])
    paths.replace_codes(other, by_node=[table], by_code=[], weights=torch.arange(6.0))
    torch.testing.assert_close(table.weight[paths.nodes[1:, 1:3]], vectors)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    count=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_no_trie_has_more_inner_nodes_than_there_is_room_for(sizes: list[int], count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], dim=1)
    sizes[-1] = 30
    paths = ItemPaths(table_of(codes, tuple(sizes)), replaced_below=0)
    assert paths.trie.level_starts[-2] <= paths.num_inner


def test_replaced_codes_are_part_of_the_weights() -> None:
    first, second = (ItemPaths(table_of(CODES), replaced_below=0) for _ in range(2))
    first.replace_codes(CODES.flip(0), by_node=[], by_code=[], weights=torch.ones(6))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.table.codes, first.table.codes)
    assert second.table.report is None  # it describes the codes before
    assert torch.equal(second.nodes, first.nodes)
    assert torch.equal(second.item_of_leaf, first.item_of_leaf)


@pytest.mark.parametrize(
    ("codes", "sizes", "below", "message"),
    [
        (CODES, SIZES, 2, "have no level of clusters below the first 2"),
        (CODES[:, :1], (2,), 0, "identifiers of 1 levels"),
        (torch.zeros(5, 2), (2, 2), 0, "fewer codes than the 5 items"),
        (torch.tensor([[0, 0, 0]] * 4 + [[1, 0, 0]]), (3, 1, 2), 1, "fewer codes than the 4 items that share"),
    ],
)
def test_identifiers_that_clusters_cannot_replace_are_refused(
    codes: Tensor, sizes: tuple[int, ...], below: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ItemPaths(table_of(codes, sizes), replaced_below=below)
    ItemPaths(table_of(codes, sizes))  # as long as they are not replaced, any will do
