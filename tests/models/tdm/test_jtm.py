"""Tests of JTM's assignment: exact for few items, never worse than before, within the capacity of nodes."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_target import NextTargets
from nextitem.models.tdm.jtm import JTM, JTMConfig, assign_items
from nextitem.models.tdm.network import bits_to_codes
from nextitem.nn.quantisation.balanced_tree import balanced_tree


def model_of(count: int, **fields: object) -> JTM:
    ids = pl.Series("item_id", [f"i{n}" for n in range(count)])
    bits = balanced_tree(torch.arange(count)[:, None].float(), seed=0).bits
    sizes = (2,) * bits.shape[1]
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    table = IdentifierTable.from_item_codes(
        bits_to_codes(bits, sizes), codebook_sizes=sizes, catalog_fingerprint=catalog.fingerprint
    )
    catalog = catalog.with_identifiers(table)
    torch.manual_seed(1)
    model = JTM(JTMConfig.model_validate({"windows": (2, 1), "hidden": (8,), **fields}), catalog)
    torch.nn.init.normal_(model.network.items.weight[1:])
    torch.nn.init.normal_(model.network.inner.weight)
    return model.eval()


def batch_of(count: int, targets: int, seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    histories = torch.randint(1, count + 1, (targets, 3), generator=generator)
    target_items = torch.randint(1, count + 1, (targets,), generator=generator)
    return SequenceBatch(
        Jagged.from_padded(histories, torch.full((targets,), 3)),
        targets=Jagged(target_items, torch.arange(targets + 1)),
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    capacity=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(lambda r: 0 < sum(r) < 7),
)
def test_the_exact_method_returns_the_best_of_all_assignments(seed: int, capacity: list[int]) -> None:
    weights = np.random.default_rng(seed).normal(size=(sum(capacity), len(capacity)))
    slots = np.repeat(np.arange(len(capacity)), capacity)
    best = max(weights[np.arange(len(slots)), list(order)].sum() for order in set(permutations(slots)))
    for exact in (True, False):
        slots_of_items = assign_items(weights, np.array(capacity), exact=exact)
        assert np.bincount(slots_of_items, minlength=len(capacity)).tolist() == capacity
        value = weights[np.arange(len(slots)), slots_of_items].sum()
        assert value == pytest.approx(best) if exact else value <= best + 1e-9


def test_items_with_the_largest_margin_are_assigned_first() -> None:
    weights = np.array([[5.0, 4.0], [9.0, 1.0], [3.0, 2.5]])
    assert assign_items(weights, np.array([1, 2]), exact=False).tolist() == [1, 0, 1]


def test_the_likelihood_is_summed_over_targets_and_levels_above_the_leaves() -> None:
    model = model_of(11)
    batch = batch_of(11, 6)
    assert batch.targets is not None
    expected = 0.0
    for row, target in enumerate(batch.targets.values.tolist()):
        items = batch.items.select(torch.tensor([row]))
        for depth, node in enumerate(model.network.paths[target, :-1].tolist(), start=1):
            expected += float(F.logsigmoid(model.network.logits(items, torch.tensor([[node]]), [depth])))
    assert model.likelihood([batch]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("segment", [1, 2, 3, 7])
@pytest.mark.parametrize("exact", [0, 256])
def test_an_assignment_never_lowers_the_likelihood(segment: int, exact: int) -> None:
    model = model_of(21, segment=segment, exact_items=exact)
    batches = [batch_of(21, 40, seed=seed) for seed in range(3)]
    former, codes = model.likelihood(batches), model.network.codes[1:].clone()
    new_codes = model.assigned_codes(batches)
    assert new_codes is not None
    assert torch.equal(new_codes.unique(dim=0), codes.unique(dim=0))  # the same leaves, each with one item
    # The likelihood that the assignment maximises: the present vectors at the nodes of the new paths.
    leaf = {tuple(row): item for item, row in enumerate(codes.tolist(), start=1)}
    moved = torch.tensor([0] + [leaf[tuple(row)] for row in new_codes.tolist()])
    likelihood = 0.0
    for batch in batches:
        assert batch.targets is not None
        paths = model.network.paths[moved[batch.targets.values], :-1]
        likelihood += float(
            F.logsigmoid(model.network.logits(batch.items, paths, range(1, paths.shape[1] + 1))).double().sum()
        )
    assert likelihood > former


def test_replacing_the_tree_raises_the_likelihood() -> None:
    # All histories are equal, and nodes read items, not ancestors: so the new tree does not change the inputs.
    model = model_of(21, segment=2)
    batches = [batch_of(21, 40, seed=seed) for seed in range(3)]
    for batch in batches:
        batch.items.values.fill_(1)
    model.network.by_level = False
    former, inner = model.likelihood(batches), model.network.inner.weight.clone()
    new_codes = model.assigned_codes(batches)
    assert new_codes is not None
    model.network.replace_tree(new_codes)
    assert torch.equal(model.network.inner.weight, inner)
    assert model.likelihood(batches) > former


def test_one_segment_over_the_whole_tree_results_in_the_best_tree() -> None:
    model = model_of(5, segment=3)
    batches = [batch_of(5, 30)]
    new_codes = model.assigned_codes(batches)
    codes = model.network.codes[1:].clone()
    leaf = {tuple(row): item for item, row in enumerate(codes.tolist(), start=1)}

    def value(items: tuple[int, ...]) -> float:
        moved = torch.tensor([0, *items])
        total = 0.0
        for batch in batches:
            assert batch.targets is not None
            paths = model.network.paths[moved[batch.targets.values], :-1]
            total += float(F.logsigmoid(model.network.logits(batch.items, paths, range(1, 3))).double().sum())
        return total

    best = max(value(order) for order in permutations(range(1, 6)))
    assert new_codes is not None
    assert value(tuple(leaf[tuple(row)] for row in new_codes.tolist())) == pytest.approx(best, rel=1e-6)


def test_a_tree_that_cannot_be_improved_stays() -> None:
    model = model_of(9, segment=4)
    # All nodes have the same score: no assignment is better than another.
    torch.nn.init.zeros_(model.network.inner.weight)
    torch.nn.init.zeros_(model.network.items.weight)
    assert model.assigned_codes([batch_of(9, 40)]) is None


def test_no_item_has_more_targets_than_the_limit_and_all_are_real() -> None:
    users = np.repeat(np.arange(1, 9), 6).astype(np.int32)
    items = np.random.default_rng(0).integers(1, 5, 48).astype(np.int32)
    log = Interactions(users, items, 8, 4)
    examples = NextTargets(log, max_length=3)
    batches = list(examples.item_capped_batches(3, batch_size=4, seed=0))
    targets = torch.cat([batch.targets.values for batch in batches if batch.targets is not None])
    possible = torch.bincount(examples.items[torch.from_numpy(examples.places)], minlength=5)
    assert torch.bincount(targets, minlength=5).tolist() == possible.clamp(max=3).tolist()
    again = list(examples.item_capped_batches(3, batch_size=4, seed=0))
    assert [batch.items.to_lists() for batch in batches] == [batch.items.to_lists() for batch in again]
