"""Constraints: live nodes and items of leaves, compared with counting items one by one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_generator import identifier_table, requests

from nextitem.decoding.constraints import Constraints
from nextitem.decoding.trie import PrefixTrie

NUM_ITEMS = 9
items = st.lists(st.integers(0, NUM_ITEMS), max_size=12)
masks = st.lists(st.booleans(), min_size=NUM_ITEMS, max_size=NUM_ITEMS)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)).map(list), min_size=NUM_ITEMS, max_size=NUM_ITEMS),
    excluded=st.lists(items, min_size=2, max_size=2),
    allowed=st.none() | st.lists(masks, min_size=1, max_size=2),
    limit=st.integers(1, 4),
)
def test_live_nodes_and_items_of_leaves_are_those_of_a_plain_count(
    rows: list[list[int]], excluded: list[list[int]], allowed: list[list[bool]] | None, limit: int
) -> None:
    mask = None if allowed is None else torch.tensor([[False, *row] for row in allowed])
    trie = PrefixTrie.from_table(identifier_table(rows, (3, 3)))
    constraints = Constraints(trie, requests(2, excluded=excluded, allowed=mask))
    leaves = sorted({int(trie.ancestors(torch.tensor([p]), depth=2)) for p in range(NUM_ITEMS)})
    for request in range(2):
        row_mask = None if mask is None else mask[min(request, len(mask) - 1)]

        def live(item: int, request: int = request, row_mask: torch.Tensor | None = row_mask) -> bool:
            return item not in excluded[request] and (row_mask is None or bool(row_mask[item]))

        for depth in range(3):
            for node in {int(trie.ancestors(torch.tensor([p]), depth=depth)) for p in range(NUM_ITEMS)}:
                count = sum(live(item) for item in trie.items_under(node).tolist())
                query = torch.tensor([request]), torch.tensor([node])
                assert [constraints.live(*query, num_others=number).item() for number in range(NUM_ITEMS)] == [
                    count > number for number in range(NUM_ITEMS)
                ]
                is_allowed = row_mask is None or bool(row_mask[trie.items_under(node)].any())
                assert constraints.allows(*query).item() == is_allowed

        beams = torch.full((2, len(leaves)), -1)
        beams[request] = torch.tensor(leaves)
        repeated = torch.full((2, len(leaves), 1), int(trie.positions[1]))
        owners, positions = constraints.items_of_leaves(beams, limit=limit, item_positions=repeated)
        assert set(owners.tolist()) <= set(range(request * len(leaves), (request + 1) * len(leaves)))
        for beam, leaf in enumerate(leaves):
            listed = trie.items[positions[owners == request * len(leaves) + beam]].tolist()
            expected = [item for item in trie.items_under(leaf).tolist() if live(item) and item != 1]
            assert listed == expected[: len(listed)]
            assert len(listed) >= min(limit, len(expected))
