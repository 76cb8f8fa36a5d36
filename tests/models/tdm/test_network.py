"""Tests of the tree network: scorer by hand, samples, search against scoring all leaves, beam-aware labels."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.roles import GeneratorState
from nextitem.data.negatives import level_negatives
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.trie import PrefixTrie
from nextitem.models.tdm.network import TreeConfig, TreeNetwork, bits_to_codes
from nextitem.models.tdm.tdm import TDM, TDMConfig
from nextitem.nn.quantisation.balanced_tree import balanced_tree
from nextitem.nn.ranking.node_scorer import NodeScorer


def tree_table(count: int, *, seed: int = 0, fingerprint: str = "") -> IdentifierTable:
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    bits = balanced_tree(vectors, seed=seed).bits
    sizes = (2,) * bits.shape[1]
    codes = bits_to_codes(bits, sizes)
    return IdentifierTable.from_item_codes(codes, codebook_sizes=sizes, catalog_fingerprint=fingerprint)


def network(count: int = 13, *, by_level: bool = False, **fields: object) -> TreeNetwork:
    torch.manual_seed(0)
    tree_network = TreeNetwork(
        TreeConfig.model_validate({"windows": (2, 1, 1), "hidden": (8,), **fields}),
        tree_table(count),
        by_level=by_level,
    )
    torch.nn.init.normal_(tree_network.items.weight[1:])
    torch.nn.init.normal_(tree_network.inner.weight)
    return tree_network.eval()


def model_of(count: int, **fields: object) -> TDM:
    ids = pl.Series("item_id", [f"i{n}" for n in range(count)])
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    catalog = catalog.with_identifiers(tree_table(count, fingerprint=catalog.fingerprint))
    torch.manual_seed(1)
    model = TDM(TDMConfig.model_validate({"windows": (2, 1, 1), "hidden": (8,), **fields}), catalog)
    torch.nn.init.normal_(model.network.items.weight[1:])
    torch.nn.init.normal_(model.network.inner.weight)
    return model.eval()


def batch_of(histories: list[list[int]], targets: list[int] | None = None) -> SequenceBatch:
    target_rows = None if targets is None else Jagged.from_rows([[item] for item in targets])
    return SequenceBatch(Jagged.from_rows(histories), targets=target_rows)


def test_the_scorer_is_that_of_the_paper() -> None:
    """Activation units, window means, concatenation, layers: one history item and one node at a time."""
    torch.manual_seed(0)
    scorer = NodeScorer(4, windows=(2, 2, 1), hidden=(6,)).eval()
    history, nodes = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    lengths = torch.tensor([5, 2])
    scores = scorer(history, lengths, nodes, torch.ones(2, 3, dtype=torch.bool))
    for row, length in enumerate(lengths.tolist()):
        items = history[row, :length]
        for column, node in enumerate(nodes[row]):
            windows = [torch.zeros(4) for _ in range(3)]
            for age, item in enumerate(items.flip(0)):  # 0: the newest
                hidden = scorer.of_item(item) + scorer.of_product(item * node) + scorer.of_node(node)
                weight = scorer.unit(hidden[None])[0, 0]
                window, size = [(2, 1), (1, 2), (1, 2), (0, 2), (0, 2)][age]
                windows[window] = windows[window] + weight * item / size
            inputs = torch.cat([*windows, node])
            torch.testing.assert_close(scores[row, column], scorer.layers(inputs[None])[0, 0])


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 40), num_negatives=st.integers(1, 9), seed=st.integers(0, 99))
def test_negatives_are_other_nodes_of_their_level_each_once(count: int, num_negatives: int, seed: int) -> None:
    trie = PrefixTrie.from_table(tree_table(count))
    paths = torch.stack(
        [trie.ancestors(trie.positions[1:].long(), depth=depth) for depth in range(1, trie.num_levels + 1)], dim=1
    )
    torch.manual_seed(seed)
    nodes, depths = level_negatives(paths, trie.level_starts, [num_negatives] * trie.num_levels)
    for depth in range(1, trie.num_levels + 1):
        start, end = trie.level_starts[depth], trie.level_starts[depth + 1] - 1
        sampled = nodes[:, depths == depth]
        assert sampled.shape[1] == min(num_negatives, end - start - 1)
        assert bool(((sampled >= start) & (sampled < end)).all())
        assert not bool((sampled == paths[:, depth - 1 : depth]).any())
        assert all(len(set(row)) == len(row) for row in sampled.tolist())


def test_every_other_node_is_sampled_equally_often() -> None:
    trie = PrefixTrie.from_table(tree_table(16))
    paths = trie.ancestors(torch.tensor([5]), depth=4)[:, None].expand(6000, 1)
    starts = (0, trie.level_starts[4], trie.level_starts[5])
    torch.manual_seed(0)
    nodes, _ = level_negatives(paths, starts, [4])
    counts = torch.bincount(nodes.flatten() - starts[1], minlength=16).double()
    assert int(counts[int(paths[0, 0]) - starts[1]]) == 0
    others = counts[counts > 0]
    assert len(others) == 15
    assert float(((others - 1600).square() / 1600).sum()) < 36  # chi-square, 14 degrees of freedom: p = 0.001


@pytest.mark.parametrize("by_level", [False, True])
def test_a_score_depends_on_its_own_history_and_node_alone(by_level: bool) -> None:
    tree_network = network(by_level=by_level)
    batch = batch_of([[1, 2, 3, 4, 5], [7], [8, 9]])
    nodes = tree_network.paths[[3, 4, 5]]
    together = tree_network.logits(batch.items, nodes, range(1, nodes.shape[1] + 1))
    for row in range(3):
        alone = tree_network.logits(
            batch.items.select(torch.tensor([row])), nodes[row : row + 1], range(1, nodes.shape[1] + 1)
        )
        torch.testing.assert_close(alone[0], together[row])
    older = tree_network.logits(batch_of([[12, 2, 3, 4, 5]]).items, nodes[:1], range(1, nodes.shape[1] + 1))
    torch.testing.assert_close(older[0], together[0])  # the network reads four items


def test_a_history_is_read_as_its_ancestors_at_each_depth() -> None:
    tree_network = network(by_level=True)
    depth, nodes = 2, tree_network.paths[[3], 1:2]
    ancestors = tree_network._vectors(tree_network.paths[torch.tensor([[5, 9]]), depth - 1])
    expected = tree_network.scorer(
        ancestors, torch.tensor([2]), tree_network._vectors(nodes), torch.ones(1, 1, dtype=torch.bool)
    )
    torch.testing.assert_close(tree_network.logits(batch_of([[5, 9]]).items, nodes, [depth]), expected)


@pytest.mark.parametrize("count", [2, 5, 16, 37])
def test_a_search_of_full_width_equals_scoring_every_leaf(count: int) -> None:
    model = model_of(count)
    batch = batch_of([[1], [2, 1]])
    leaves = model.network.paths[1:, -1].expand(2, -1)
    scores = model.network.logits(batch.items, leaves, [model.network.trie.num_levels] * count)
    answer = beam_search(model, batch, model.network.trie, k=count, beam_width=count, accumulate="last")
    best = scores.argsort(dim=1, descending=True, stable=True) + 1
    torch.testing.assert_close(answer.scores, scores.sort(dim=1, descending=True).values)
    assert torch.equal(answer.item_ids, best)


class MaxHeap:
    """A generator whose node scores are those of the best leaf below, which scores of a tree represent."""

    def __init__(self, trie: PrefixTrie, leaf_scores: Tensor) -> None:
        self.trie, self.scores = trie, leaf_scores

    def start(self, batch: SequenceBatch) -> GeneratorState:
        return GeneratorState({}, {"node": torch.zeros((batch.num_requests, 1), dtype=torch.int64)})

    def step(self, state: GeneratorState, codes: Tensor | None) -> tuple[Tensor, GeneratorState]:
        node = state.beams["node"]
        if codes is not None:
            node = self.trie.advance(node, codes)
        size = self.trie.codebook_sizes[0]
        logits = torch.full((*node.shape, size), -torch.inf)
        for row in range(node.shape[0]):
            for beam in range(node.shape[1]):
                for code in range(size):
                    child = int(self.trie.advance(node[row, beam], torch.tensor(code)))
                    if child >= 0:
                        logits[row, beam, code] = self.scores[row][self.trie.items_under(child)].max()
        return logits, GeneratorState({}, {"node": node})


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 24), k=st.integers(1, 24), seed=st.integers(0, 99))
def test_with_scores_of_a_max_heap_the_k_best_are_exact_for_every_k(count: int, k: int, seed: int) -> None:
    trie = PrefixTrie.from_table(tree_table(count, seed=seed))
    scores = torch.randn(2, count + 1, generator=torch.Generator().manual_seed(seed))
    answer = beam_search(MaxHeap(trie, scores), batch_of([[1], [1]]), trie, k=k, beam_width=k, accumulate="last")
    expected = scores[:, 1:].argsort(dim=1, descending=True)[:, :k] + 1
    assert torch.equal(answer.item_ids[:, : min(k, count)], expected)


def _set_scores(tree_network: TreeNetwork, table: dict[int, float]) -> None:
    def logits(items: Jagged, nodes_BK: Tensor, depths_K: Sequence[int]) -> Tensor:
        return torch.tensor([[table.get(int(node), -9.0) for node in row] for row in nodes_BK])

    tree_network.logits = logits  # type: ignore[method-assign]


def test_beam_aware_labels_follow_the_best_scored_child() -> None:
    """Four leaves; the target is one of them. If the present model prefers its sibling, the parent is no target."""
    tree_network = network(4, objective={"kind": "beam-aware", "training_beam": 1})
    target, sibling = tree_network.trie.items_under(int(tree_network.paths[1, 0])).tolist()
    parent, leaf, sibling_leaf = (
        int(tree_network.paths[target, 0]),
        int(tree_network.paths[target, 1]),
        int(tree_network.paths[sibling, 1]),
    )
    batch, paths = batch_of([[1]], [target]), tree_network.paths[[target]]
    for scores, expected in [
        ({parent: 1.0, leaf: 2.0, sibling_leaf: 1.0}, {parent: 1.0, leaf: 1.0, sibling_leaf: 0.0}),
        ({parent: 1.0, leaf: 1.0, sibling_leaf: 2.0}, {parent: 0.0, leaf: 1.0, sibling_leaf: 0.0}),
        # The beam goes elsewhere: the siblings on the path have an effect all the same.
        ({parent: -20.0, leaf: 2.0, sibling_leaf: 1.0}, {parent: 1.0, leaf: 1.0, sibling_leaf: 0.0}),
    ]:
        _set_scores(tree_network, scores)
        nodes, depths, labels = tree_network._visited(batch, paths, beam_width=1)
        label_of_node = {int(node): float(label) for node, label in zip(nodes[0], labels[0], strict=True) if node >= 0}
        assert {node: label_of_node[node] for node in expected} == expected
        real_nodes = [int(node) for node in nodes[0] if node >= 0]
        assert len(real_nodes) == len(set(real_nodes))
        assert len(depths) == nodes.shape[1]
        assert sum(label_of_node.values()) == sum(expected.values())


def test_beam_aware_training_corrects_the_search_where_levels_mislead_it() -> None:
    """Constructed preferences: one very good leaf beside a very bad one, and two medium ones on the other side.

    If any positive item below a node makes it a target, the search of width 1 goes to the medium side. If a node
    represents its best child, the search returns the best item.
    """
    best_items = {}
    settings = {"levels": {"negatives": 8}, "beam-aware": {"training_beam": 1}}
    for objective in settings:
        model = model_of(4, objective={"kind": objective, **settings[objective]}, beam_width=1)
        pairs = [model.network.trie.items_under(node).tolist() for node in model.network.paths[:, 0].unique()[1:]]
        (best, worst), (middle, other) = pairs
        # The best item has 40% of the targets, the medium ones 30% each: their side has 60% of all targets.
        targets = torch.tensor([best] * 4 + [middle] * 3 + [other] * 3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        model.train()
        for _ in range(300):
            batch = SequenceBatch(Jagged.from_rows([[1]] * 10), targets=Jagged(targets, torch.arange(11)))
            optimizer.zero_grad()
            model.training_loss(batch).total.backward()
            optimizer.step()
        model.eval()
        best_items[objective] = int(
            beam_search(model, batch_of([[1]]), model.network.trie, k=1, beam_width=1, accumulate="last").item_ids
        )
        assert worst != best_items[objective]
    assert best_items["levels"] in (middle, other)
    assert best_items["beam-aware"] == best


def test_another_tree_keeps_item_vectors_and_averages_inner_nodes() -> None:
    tree_network = network(13)
    items = tree_network.items.weight.clone()
    tree_network.replace_tree(tree_network.clustered_codes(torch.ones(14), seed=1))
    assert [id(parameter) for parameter in tree_network.average_inner_vectors()] == [id(tree_network.inner.weight)]
    assert torch.equal(tree_network.items.weight, items)
    assert tree_network.table.is_unique
    assert sorted(tree_network.trie.items.tolist()) == list(range(1, 14))
    assert torch.equal(tree_network.item_of_node[tree_network.paths[1:, -1]], torch.arange(1, 14))
    for depth in range(1, tree_network.trie.num_levels):
        for node in tree_network.paths[1:, depth - 1].unique():
            below = [item for item in range(1, 14) if tree_network.paths[item, depth - 1] == node]
            torch.testing.assert_close(tree_network.inner.weight[node], items[below].mean(0))


def test_a_rebuilt_tree_separates_tastes_although_popularity_dominates() -> None:
    popularity = torch.cat(
        [torch.zeros(1), torch.logspace(0, 3, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]]
    )
    taste = torch.arange(16) % 2
    tree_network = network(16)
    with torch.no_grad():
        tree_network.items.weight.zero_()
        tree_network.items.weight[1:, 0] = 5 * torch.log1p(popularity[1:])
        tree_network.items.weight[1:, 1] = taste - 0.5
    side = tree_network.clustered_codes(popularity, seed=0)[:, 0]
    assert torch.equal(side == side[0], taste == taste[0])


def test_the_rebuilt_tree_is_part_of_the_weights() -> None:
    first, second = network(13), network(13)
    first.replace_tree(first.clustered_codes(torch.ones(14), seed=1))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.table.codes, first.table.codes)
    assert torch.equal(second.paths, first.paths)
    batch = batch_of([[1, 2, 3]])
    nodes = first.paths[[4]]
    assert torch.equal(first.logits(batch.items, nodes, range(4)), second.logits(batch.items, nodes, range(4)))


def test_bits_are_grouped_by_codebook_sizes_and_misfits_raise() -> None:
    bits = torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert bits_to_codes(bits, (4, 2)).tolist() == [[2, 1], [1, 1]]
    assert bits_to_codes(bits, (2, 2, 2)).tolist() == bits.tolist()
    with pytest.raises(ValueError, match="powers of 2"):
        bits_to_codes(bits, (3, 4))
    with pytest.raises(ValueError, match="too few codes"):
        bits_to_codes(bits, (2, 2))
