"""Both layouts of a trie step, compared with plain Python."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.ops.trie_step import (
    Children,
    children_logits,
    children_logits_reference,
    dense_children,
    listed_children,
)


def as_dicts(child_logits: torch.Tensor, children: Children) -> list[list[dict[int, float]]]:
    """Return code -> logit for each beam, of the entries that are a child."""
    slots = torch.arange(child_logits.shape[2]).expand_as(child_logits)
    codes = slots if children.codes is None else children.codes
    return [
        [
            {int(c): float(v) for c, v, n in zip(*beam, strict=True) if n >= 0}
            for beam in zip(row_codes, row_logits, row_nodes, strict=True)
        ]
        for row_codes, row_logits, row_nodes in zip(codes, child_logits, children.nodes, strict=True)
    ]


@settings(max_examples=100, deadline=None)
@given(
    families=st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=5),
    picks=st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), min_size=1, max_size=3),
)
def test_layouts_equal_the_reference(families: list[set[int]], picks: list[list[int]]) -> None:
    # Nodes from 10 on have children from 20 on; there are nodes of degree 0, repeated parents and dead beams.
    count = len(families)
    parents = torch.tensor([[-1 if pick < 0 else 10 + pick % count for pick in row] for row in picks])
    lengths = torch.tensor([0, *(len(family) for family in families)])
    first_child = torch.cat([torch.zeros(10), 20 + lengths.cumsum(0)]).int()
    codes = torch.tensor([-1] * 20 + [code for family in families for code in sorted(family)] + [-1]).short()
    table = torch.full((count, 7), -1, dtype=torch.int32)
    for row, family in enumerate(families):
        for number, code in enumerate(sorted(family)):
            table[row, code] = first_child[10 + row] + number
    logits = torch.randn((len(picks), 3, 7), generator=torch.Generator().manual_seed(0))

    expected = children_logits_reference(logits, parents, first_child, codes)
    listed, dense = listed_children(parents, first_child, codes), dense_children(parents, table, 10)
    for children in (listed, dense):
        child_logits = children_logits(logits, children)
        assert as_dicts(child_logits, children) == expected
        assert (child_logits[children.nodes < 0] == -torch.inf).all()
    assert [sorted(n for n in beam if n >= 0) for row in listed.nodes.tolist() for beam in row] == [
        sorted(n for n in beam if n >= 0) for row in dense.nodes.tolist() for beam in row
    ]
    assert listed.nodes.shape[2] == max((len(families[n - 10]) for n in parents.flatten() if n >= 0), default=0)
