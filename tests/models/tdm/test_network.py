"""The tree network: its scorer by hand, its samples, its walk against scoring every leaf, beam-aware labels."""

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
    made = TreeNetwork(
        TreeConfig.model_validate({"windows": (2, 1, 1), "hidden": (8,), **fields}),
        tree_table(count),
        by_level=by_level,
    )
    torch.nn.init.normal_(made.items.weight[1:])
    torch.nn.init.normal_(made.inner.weight)
    return made.eval()


def model_of(count: int, **fields: object) -> TDM:
    ids = pl.Series("item_id", [f"i{n}" for n in range(count)])
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    catalog = catalog.with_identifiers(tree_table(count, fingerprint=catalog.fingerprint))
    torch.manual_seed(1)
    made = TDM(TDMConfig.model_validate({"windows": (2, 1, 1), "hidden": (8,), **fields}), catalog)
    torch.nn.init.normal_(made.network.items.weight[1:])
    torch.nn.init.normal_(made.network.inner.weight)
    return made.eval()


def batch_of(histories: list[list[int]], targets: list[int] | None = None) -> SequenceBatch:
    wanted = None if targets is None else Jagged.from_rows([[item] for item in targets])
    return SequenceBatch(Jagged.from_rows(histories), targets=wanted)


def test_the_scorer_is_the_papers() -> None:
    """Activation units, window means, concatenation, layers: one history item and one node at a time."""
    torch.manual_seed(0)
    scorer = NodeScorer(4, windows=(2, 2, 1), hidden=(6,)).eval()
    history, nodes = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    lengths = torch.tensor([5, 2])
    found = scorer(history, lengths, nodes, torch.ones(2, 3, dtype=torch.bool))
    for row, length in enumerate(lengths.tolist()):
        items = history[row, :length]
        for column, node in enumerate(nodes[row]):
            windows = [torch.zeros(4) for _ in range(3)]
            for age, item in enumerate(items.flip(0)):  # 0: the newest
                hidden = scorer.of_item(item) + scorer.of_product(item * node) + scorer.of_node(node)
                weight = scorer.unit(hidden[None])[0, 0]
                window, size = [(2, 1), (1, 2), (1, 2), (0, 2), (0, 2)][age]
                windows[window] = windows[window] + weight * item / size
            read = torch.cat([*windows, node])
            torch.testing.assert_close(found[row, column], scorer.layers(read[None])[0, 0])


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 40), wanted=st.integers(1, 9), seed=st.integers(0, 99))
def test_negatives_are_other_nodes_of_their_level_each_once(count: int, wanted: int, seed: int) -> None:
    trie = PrefixTrie.from_table(tree_table(count))
    paths = torch.stack(
        [trie.ancestors(trie.positions[1:].long(), depth=depth) for depth in range(1, trie.num_levels + 1)], dim=1
    )
    torch.manual_seed(seed)
    nodes, depths = level_negatives(paths, trie.level_starts, [wanted] * trie.num_levels)
    for depth in range(1, trie.num_levels + 1):
        start, end = trie.level_starts[depth], trie.level_starts[depth + 1] - 1
        drawn = nodes[:, depths == depth]
        assert drawn.shape[1] == min(wanted, end - start - 1)
        assert bool(((drawn >= start) & (drawn < end)).all())
        assert not bool((drawn == paths[:, depth - 1 : depth]).any())
        assert all(len(set(row)) == len(row) for row in drawn.tolist())


def test_every_other_node_is_drawn_equally_often() -> None:
    trie = PrefixTrie.from_table(tree_table(16))
    paths = trie.ancestors(torch.tensor([5]), depth=4)[:, None].expand(6000, 1)
    starts = (0, trie.level_starts[4], trie.level_starts[5])
    torch.manual_seed(0)
    nodes, _ = level_negatives(paths, starts, [4])
    counts = torch.bincount(nodes.flatten() - starts[1], minlength=16).double()
    assert int(counts[int(paths[0, 0]) - starts[1]]) == 0
    others = counts[counts > 0]
    assert len(others) == 15
    assert float(((others - 1600).square() / 1600).sum()) < 36  # chi-square, 14 degrees of freedom: p = .001


@pytest.mark.parametrize("by_level", [False, True])
def test_a_score_depends_on_its_own_history_and_node_alone(by_level: bool) -> None:
    made = network(by_level=by_level)
    batch = batch_of([[1, 2, 3, 4, 5], [7], [8, 9]])
    nodes = made.paths[[3, 4, 5]]
    together = made.logits(batch.items, nodes, range(1, nodes.shape[1] + 1))
    for row in range(3):
        alone = made.logits(batch.items.select(torch.tensor([row])), nodes[row : row + 1], range(1, nodes.shape[1] + 1))
        torch.testing.assert_close(alone[0], together[row])
    older = made.logits(batch_of([[12, 2, 3, 4, 5]]).items, nodes[:1], range(1, nodes.shape[1] + 1))
    torch.testing.assert_close(older[0], together[0])  # four items are read


def test_at_each_depth_a_history_is_its_ancestors_there() -> None:
    made = network(by_level=True)
    depth, nodes = 2, made.paths[[3], 1:2]
    ancestors = made._vectors(made.paths[torch.tensor([[5, 9]]), depth - 1])
    expected = made.scorer(ancestors, torch.tensor([2]), made._vectors(nodes), torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(made.logits(batch_of([[5, 9]]).items, nodes, [depth]), expected)


@pytest.mark.parametrize("count", [2, 5, 16, 37])
def test_a_walk_of_full_width_finds_what_scoring_every_leaf_finds(count: int) -> None:
    model = model_of(count)
    batch = batch_of([[1], [2, 1]])
    leaves = model.network.paths[1:, -1].expand(2, -1)
    scores = model.network.logits(batch.items, leaves, [model.network.trie.num_levels] * count)
    found = beam_search(model, batch, model.network.trie, k=count, beam_width=count, accumulate="last")
    best = scores.argsort(dim=1, descending=True, stable=True) + 1
    torch.testing.assert_close(found.scores, scores.sort(dim=1, descending=True).values)
    assert torch.equal(found.item_ids, best)


class MaxHeap:
    """A generator whose node scores are those of the best leaf below: what a tree's scores stand for."""

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
def test_with_scores_that_are_a_max_heap_the_k_best_are_exact_for_every_k(count: int, k: int, seed: int) -> None:
    trie = PrefixTrie.from_table(tree_table(count, seed=seed))
    scores = torch.randn(2, count + 1, generator=torch.Generator().manual_seed(seed))
    found = beam_search(MaxHeap(trie, scores), batch_of([[1], [1]]), trie, k=k, beam_width=k, accumulate="last")
    expected = scores[:, 1:].argsort(dim=1, descending=True)[:, :k] + 1
    assert torch.equal(found.item_ids[:, : min(k, count)], expected)


def _with_scores(made: TreeNetwork, table: dict[int, float]) -> None:
    def logits(items: Jagged, nodes_BK: Tensor, depths_K: Sequence[int]) -> Tensor:
        return torch.tensor([[table.get(int(node), -9.0) for node in row] for row in nodes_BK])

    made.logits = logits  # type: ignore[method-assign]


def test_beam_aware_labels_follow_the_best_scored_child() -> None:
    """Four leaves; the target is item t. Where the present model prefers its sibling, the parent is no target."""
    made = network(4, objective={"kind": "beam-aware", "training_beam": 1})
    target, sibling = made.trie.items_under(int(made.paths[1, 0])).tolist()
    parent, leaf, beside = int(made.paths[target, 0]), int(made.paths[target, 1]), int(made.paths[sibling, 1])
    batch, paths = batch_of([[1]], [target]), made.paths[[target]]
    for scores, wanted in [
        ({parent: 1.0, leaf: 2.0, beside: 1.0}, {parent: 1.0, leaf: 1.0, beside: 0.0}),
        ({parent: 1.0, leaf: 1.0, beside: 2.0}, {parent: 0.0, leaf: 1.0, beside: 0.0}),
        # The beam goes elsewhere: the siblings on the way are learnt from all the same.
        ({parent: -20.0, leaf: 2.0, beside: 1.0}, {parent: 1.0, leaf: 1.0, beside: 0.0}),
    ]:
        _with_scores(made, scores)
        nodes, depths, labels = made._visited(batch, paths, beam_width=1)
        found = {int(node): float(label) for node, label in zip(nodes[0], labels[0], strict=True) if node >= 0}
        assert {node: found[node] for node in wanted} == wanted
        real = [int(node) for node in nodes[0] if node >= 0]
        assert len(real) == len(set(real))
        assert len(depths) == nodes.shape[1]
        assert sum(found.values()) == sum(wanted.values())


def test_beam_aware_training_mends_what_the_walk_gets_wrong() -> None:
    """A crafted preference: one very good leaf beside a very bad one, under two middling ones elsewhere.

    Trained on means (any positive below makes a node a target) the walk of width 1 goes to the middling side; where a
    node stands for its best child it finds the best item.
    """
    found = {}
    settings = {"levels": {"negatives": 8}, "beam-aware": {"training_beam": 1}}
    for objective in settings:
        model = model_of(4, objective={"kind": objective, **settings[objective]}, beam_width=1)
        pairs = [model.network.trie.items_under(node).tolist() for node in model.network.paths[:, 0].unique()[1:]]
        (best, worst), (middle, other) = pairs
        # 40% want the best item, the middling ones 30% each: their side has 60% of all targets.
        targets = torch.tensor([best] * 4 + [middle] * 3 + [other] * 3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        model.train()
        for _ in range(300):
            batch = SequenceBatch(Jagged.from_rows([[1]] * 10), targets=Jagged(targets, torch.arange(11)))
            optimizer.zero_grad()
            model.training_loss(batch).total.backward()
            optimizer.step()
        model.eval()
        found[objective] = int(
            beam_search(model, batch_of([[1]]), model.network.trie, k=1, beam_width=1, accumulate="last").item_ids
        )
        assert worst != found[objective]
    assert found["levels"] in (middle, other)
    assert found["beam-aware"] == best


def test_another_tree_keeps_the_items_and_sums_up_inner_nodes() -> None:
    made = network(13)
    items = made.items.weight.clone()
    made.replace_tree(made.clustered_codes(torch.ones(14), seed=1))
    assert [id(each) for each in made.average_inner_vectors()] == [id(made.inner.weight)]
    assert torch.equal(made.items.weight, items)
    assert made.table.is_unique
    assert sorted(made.trie.items.tolist()) == list(range(1, 14))
    assert torch.equal(made.item_of_node[made.paths[1:, -1]], torch.arange(1, 14))
    for depth in range(1, made.trie.num_levels):
        for node in made.paths[1:, depth - 1].unique():
            below = [item for item in range(1, 14) if made.paths[item, depth - 1] == node]
            torch.testing.assert_close(made.inner.weight[node], items[below].mean(0))


def test_a_learnt_tree_is_one_of_tastes_where_vectors_hold_popularity_above_all() -> None:
    popularity = torch.cat(
        [torch.zeros(1), torch.logspace(0, 3, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]]
    )
    taste = torch.arange(16) % 2
    made = network(16)
    with torch.no_grad():
        made.items.weight.zero_()
        made.items.weight[1:, 0] = 5 * torch.log1p(popularity[1:])
        made.items.weight[1:, 1] = taste - 0.5
    side = made.clustered_codes(popularity, seed=0)[:, 0]
    assert torch.equal(side == side[0], taste == taste[0])


def test_the_learnt_tree_travels_with_the_weights() -> None:
    first, second = network(13), network(13)
    first.replace_tree(first.clustered_codes(torch.ones(14), seed=1))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.table.codes, first.table.codes)
    assert torch.equal(second.paths, first.paths)
    batch = batch_of([[1, 2, 3]])
    nodes = first.paths[[4]]
    assert torch.equal(first.logits(batch.items, nodes, range(4)), second.logits(batch.items, nodes, range(4)))


def test_bits_are_grouped_as_the_codebooks_say_and_misfits_are_refused() -> None:
    bits = torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert bits_to_codes(bits, (4, 2)).tolist() == [[2, 1], [1, 1]]
    assert bits_to_codes(bits, (2, 2, 2)).tolist() == bits.tolist()
    with pytest.raises(ValueError, match="powers of 2"):
        bits_to_codes(bits, (3, 4))
    with pytest.raises(ValueError, match="too few codes"):
        bits_to_codes(bits, (2, 2))
