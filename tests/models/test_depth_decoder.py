"""The depth decoder against a plain computation of its probabilities, item by item."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.components import build_component
from nextitem.core.config import parse
from nextitem.core.dataset import Dataset, Users
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.core.sparse_scores import SparseScores
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.guide import Guide
from nextitem.models.depth_decoder import DepthDecoder, DepthDecoderConfig
from nextitem.pipeline.bundle import load_model, save_model
from nextitem.pipeline.recipe import Recipe
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import TrainingResult, fit

SIZES = (4, 3, 5)
NUM_ITEMS = 23
HISTORIES = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 23]]
VARIANTS: list[dict[str, Any]] = [
    {"vectors": vectors, "depth_network": network, "content_at_leaves": content, "reads": reads}
    for vectors, network, (content, reads) in product(
        ("nodes", "codes", "both"),
        ("mlp", "transformer"),
        ((False, ("items", "nodes")), (True, ("items", "nodes", "content"))),
    )
]


def catalog_of(num_items: int = NUM_ITEMS, *, sizes: tuple[int, ...] = SIZES, unique: bool = True) -> Catalog:
    generator = torch.Generator().manual_seed(3)
    codes = torch.stack([torch.randint(size, (8 * num_items,), generator=generator) for size in sizes], dim=1)
    if unique:
        codes = torch.unique(codes, dim=0)
        codes = codes[torch.randperm(len(codes), generator=generator)]
    ids = pl.Series("item_id", range(num_items))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    content = torch.randn(num_items + 1, 6, generator=generator)
    content[0] = 0
    table = IdentifierTable.from_item_codes(
        codes[:num_items], codebook_sizes=sizes, catalog_fingerprint=catalog.fingerprint
    )
    return catalog.with_content(content).with_identifiers(table)


def model_of(catalog: Catalog | None = None, **settings: Any) -> DepthDecoder:
    torch.manual_seed(5)
    small = {"width": 8, "depth_width": 12, "dropout": 0.0, "max_history_length": 6}
    model = DepthDecoder(DepthDecoderConfig.model_validate(small | settings), catalog or catalog_of()).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the initial vectors are too small to tell nodes apart
            parameter.mul_(10)
    model.set_popularity(torch.ones(model.num_items + 1).index_fill_(0, torch.tensor([0]), 0))
    return model


def batch_of(rows: list[list[int]], **columns: Any) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(rows), **columns)


def vector_of(model: DepthDecoder, node: int, depth: int) -> Tensor:
    """Return the vector of one node, from its parts."""
    item = int(model.tree.item_of_leaf[node])
    total = torch.zeros(model.config.width)
    if model.nodes.inner is not None:
        total = total + (model.items.weight[item] if depth == len(SIZES) else model.nodes.inner.weight[node])
    if model.nodes.codes is not None:
        total = total + model.nodes.codes[depth - 1].weight[int(model.trie.codes[node])]  # type: ignore[index]
    if model.nodes.content is not None and depth == len(SIZES):
        assert model.content is not None
        total = total + model.nodes.content(model.content[item])
    return total


def item_log_probs(model: DepthDecoder, history: list[int]) -> Tensor:
    """Return log p of every item after one history, [N + 1], computed node by node."""
    hidden = model.encoder.last(Jagged.from_rows([history]), model._embed)[0]
    out = torch.full((model.num_items + 1,), -torch.inf)
    for item in range(1, model.num_items + 1):
        states, total = model.deeper.start(hidden[None]), torch.zeros(())
        for level in range(len(SIZES)):
            parent, node = int(model.tree.nodes[item, level]), int(model.tree.nodes[item, level + 1])
            if level:
                states = model.deeper(states, vector_of(model, parent, level)[None], level=level)
            siblings = range(int(model.trie.first_child[parent]), int(model.trie.first_child[parent + 1]))
            logits = torch.stack([states[0, -1] @ vector_of(model, sibling, level + 1) for sibling in siblings])
            total = total + logits.log_softmax(0)[node - siblings.start]
        out[item] = total
    return out


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_a_full_search_equals_the_scores_of_all_items(settings: dict[str, Any]) -> None:
    model = model_of(**settings)
    answer = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    with torch.no_grad():
        expected = torch.stack([item_log_probs(model, history) for history in HISTORIES])
    torch.testing.assert_close(answer.scores, expected.gather(1, answer.item_ids), atol=1e-4, rtol=1e-4)
    assert torch.equal(answer.item_ids.sort(1).values, torch.arange(1, NUM_ITEMS + 1).expand(3, -1))
    torch.testing.assert_close(answer.scores.exp().sum(1), torch.ones(3))  # the catalogue is all that there is


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_loss_is_minus_the_log_probability_of_the_targets(settings: dict[str, Any]) -> None:
    model = model_of(target_weights=(1.0, 0.5), **settings)
    batch = NextItemBatch(Jagged.from_rows([[1, 2, 3], [9, 4]]), Jagged.from_rows([[2, 3, 7], [4, 0]]), seed=0)
    targets = [(1, [1], 2), (1, [1, 2], 3), (1, [1, 2, 3], 7), (1, [9], 4), (0.5, [1], 3), (0.5, [1, 2], 7)]
    with torch.no_grad():
        expected = -sum(weight * item_log_probs(model, past)[target] for weight, past, target in targets) / 4
        loss = model.training_loss(batch)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.total, torch.stack(list(loss.named.values())).sum())


def test_the_dense_head_is_a_further_softmax_over_items() -> None:
    batch = NextItemBatch(Jagged.from_rows([[1, 2, 3]]), Jagged.from_rows([[2, 3, 7]]), seed=0)
    plain, dense = model_of(), model_of(dense_weight=0.5)
    with torch.no_grad():
        loss, former = dense.training_loss(batch), plain.training_loss(batch)
    torch.testing.assert_close(loss.total, former.total + 0.5 * loss.named["dense"])


def test_step_gives_the_logits_of_legal_codes_only() -> None:
    model = model_of()
    with torch.no_grad():
        logits, state = model.step(model.start(batch_of(HISTORIES)), None)
        first = logits[:, 0].argmax(1, keepdim=True)
        logits, state = model.step(state, first)
        legal = model.trie.allowed(state.beams["node"], depth=1)
    assert torch.equal(logits > -torch.inf, legal)


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_a_cached_history_gives_the_same_lists(network: str) -> None:
    model = model_of(depth_network=network)
    former = model.encode_history(batch_of([history[:-1] for history in HISTORIES]))
    cached = model.recommend(batch_of(HISTORIES, state=former), 10)
    plain = model.recommend(batch_of(HISTORIES), 10)
    assert torch.equal(cached.item_ids, plain.item_ids)
    torch.testing.assert_close(cached.scores, plain.scores)


def test_the_future_never_leaks() -> None:
    model = model_of()
    first, second = ([[1, 2, 3, 4, 5]], [[1, 2, 3, 9, 8]])
    states = [model.encoder(Jagged.from_rows(rows), model._embed) for rows in (first, second)]
    torch.testing.assert_close(states[0][:3], states[1][:3])
    assert not torch.allclose(states[0][3:], states[1][3:])


def test_every_part_learns() -> None:
    batch = NextItemBatch(Jagged.from_rows([[1, 2, 3], [9, 4]]), Jagged.from_rows([[2, 3, 7], [4, 5]]), seed=0)
    for settings in VARIANTS:
        model = model_of(**settings).train()
        model.training_loss(batch).total.backward()
        norms = {name: p.grad for name, p in model.named_parameters()}
        idle = [name for name, grad in norms.items() if grad is None or not bool(grad.any())]
        # The last state of the transformer has one position of its own; the MLP has none.
        assert not idle, (settings, idle)


def test_hidden_items_are_hidden_at_input_and_output() -> None:
    model = model_of(id_dropout=0.5, content_at_leaves=True).train()
    everything = list(range(1, NUM_ITEMS + 1))
    batch = NextItemBatch(Jagged.from_rows([everything[:-1]]), Jagged.from_rows([everything[1:]]), seed=0)
    model.training_loss(batch).total.backward()
    assert model.items.weight.grad is not None
    is_hidden = ~model.items.weight.grad[1:].any(1)
    assert 0.2 < float(is_hidden.float().mean()) < 0.8
    loss = model.training_loss(batch).total
    with torch.no_grad():
        model.items.weight[1:][is_hidden] += 100.0
    torch.testing.assert_close(model.training_loss(batch).total, loss)


def test_an_item_without_events_is_ranked_by_its_content() -> None:
    model = model_of(content_at_leaves=True)
    counts = torch.ones(NUM_ITEMS + 1)
    counts[[0, 7]] = 0
    model.set_popularity(counts)
    before = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    with torch.no_grad():
        model.items.weight[7] += 100.0
    after = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    assert torch.equal(before.item_ids, after.item_ids)
    assert torch.equal(before.scores, after.scores)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_items_without_events_do_not_compete_in_training(settings: dict[str, Any]) -> None:
    model = model_of(**settings).train()
    counts = torch.ones(NUM_ITEMS + 1)
    counts[[0, 7, 8, 11]] = 0
    model.set_popularity(counts)
    batch = NextItemBatch(Jagged.from_rows([[1, 2, 3], [9, 4]]), Jagged.from_rows([[2, 3, 5], [4, 6]]), seed=0)
    loss = model.training_loss(batch).total
    loss.backward()
    unseen = torch.tensor([7, 8, 11])
    assert model.items.weight.grad is not None
    assert not bool(model.items.weight.grad[unseen].any())
    with torch.no_grad():
        model.items.weight[unseen] = 100.0
        if model.content is not None:
            model.content[unseen] = 100.0
    torch.testing.assert_close(model.training_loss(batch).total, loss)


def test_unseen_items_take_no_probability_from_seen_ones_and_a_loaded_model_knows_them() -> None:
    model = model_of()
    parents = model.tree.nodes[1:, -2].tolist()
    unseen = next(item for item in range(1, NUM_ITEMS + 1) if parents.count(parents[item - 1]) > 1)
    counts = torch.ones(NUM_ITEMS + 1)
    counts[[0, unseen]] = 0
    model.set_popularity(counts)
    answer = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    assert answer.item_ids[:, -1].tolist() == [unseen] * len(HISTORIES)
    torch.testing.assert_close(answer.scores[:, :-1].exp().sum(1), torch.ones(len(HISTORIES)))
    loaded = model_of()
    loaded.load_state_dict(model.state_dict())
    repeated = loaded.recommend(batch_of(HISTORIES), NUM_ITEMS)
    assert torch.equal(repeated.item_ids, answer.item_ids)
    assert torch.equal(repeated.scores, answer.scores)


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("num_unseen", [1, 9, 15])
def test_a_search_without_unseen_items_equals_one_with_an_allow_list(
    num_unseen: int, weight: float, is_sparse: bool
) -> None:
    model = model_of(catalog_of(sizes=(4, 3, 2), unique=False))
    random = torch.Generator().manual_seed(num_unseen)
    counts = torch.ones(NUM_ITEMS + 1)
    counts[0] = 0
    counts[1 + torch.randperm(NUM_ITEMS, generator=random)[:num_unseen]] = 0
    model.set_popularity(counts)
    probabilities = torch.rand(3, NUM_ITEMS + 1, generator=random) / NUM_ITEMS
    probabilities[:, 0] = 0
    everything = Jagged.from_rows([list(range(1, NUM_ITEMS + 1))] * 3)
    sparse = SparseScores(everything, probabilities[:, 1:].flatten(), NUM_ITEMS)
    guide = Guide(sparse if is_sparse else probabilities, weight)
    batch = batch_of(HISTORIES, excluded=Jagged.from_rows([[2, 3], [], [9, 11, 12, 20]]))
    answer = model.search(batch, NUM_ITEMS, guide=guide)
    seen = (counts > 0)[None]
    former = beam_search(
        model, replace(batch, allowed=seen), model.trie, k=NUM_ITEMS, beam_width=NUM_ITEMS, guide=guide
    )
    for row in range(3):
        length = int((former.item_ids[row] > 0).sum())
        assert length == int(seen.sum()) - sum(bool(seen[0, i]) for i in ([2, 3], [], [9, 11, 12, 20])[row])
        assert torch.equal(answer.item_ids[row, :length], former.item_ids[row, :length])
        torch.testing.assert_close(answer.scores[row, :length], former.scores[row, :length])


def test_content_shares_add_items_without_events_to_the_list_of_the_others() -> None:
    model, plain = model_of(content_shares={"weight": 2.0, "power": 0.8}), model_of()
    assert model.can_rank_unseen_items
    counts = torch.ones(NUM_ITEMS + 1)
    counts[[0, 7, 8, 11]] = 0
    for part in (model, plain):
        part.set_popularity(counts)
    batch = batch_of(HISTORIES, excluded=Jagged.from_rows(HISTORIES))
    answer, former = model.recommend(batch, NUM_ITEMS), plain.recommend(batch, NUM_ITEMS)
    unseen = torch.tensor([7, 8, 11])
    assert model.shares is not None
    shares = model.shares(batch)
    for row in range(len(HISTORIES)):
        is_new = torch.isin(answer.item_ids[row], unseen)
        new = answer.item_ids[row][is_new]
        torch.testing.assert_close(answer.scores[row][is_new], 0.8 * shares[row, new] + math.log(2))
        others, expected = (
            [item for item in items[row].tolist() if item not in (0, *unseen.tolist())]
            for items in (answer.item_ids, former.item_ids)
        )
        assert others == expected


def test_content_shares_store_what_follows_the_items_and_a_loaded_model_knows_it(tmp_path: Path) -> None:
    catalog = catalog_of()
    items = np.array([1, 2, 3, 4, 2, 5, 6, 3, 2, 9], dtype=np.int32)
    log = Interactions(np.repeat([1, 2], 5).astype(np.int32), items, 2, NUM_ITEMS)
    train = Dataset("small", log, catalog, Users(IdMap(pl.Series("user_id", [0, 1]))))
    settings: dict[str, Any] = {"weight": 5.0, "transition_weight": 0.5}
    model = model_of(catalog, content_shares=settings)
    before = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    model.set_popularity_from(train)
    assert model.shares is not None
    assert model.shares.transitions is not None
    assert model.shares.transitions.matrix().nnz
    answer = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    assert not torch.equal(answer.item_ids, before.item_ids)
    save_model(tmp_path, model)
    values = model.config.model_dump() | {"name": "depth-decoder"}
    bundled = load_model(tmp_path, Recipe.model_validate({"model": values, "data": {"path": "small"}}))
    started = model_of(catalog, content_shares=settings)  # without transitions so far
    started.load_state_dict(model.state_dict())
    for loaded in (bundled, started):
        repeated = loaded.recommend(batch_of(HISTORIES), NUM_ITEMS)
        assert torch.equal(repeated.item_ids, answer.item_ids)
        torch.testing.assert_close(repeated.scores, answer.scores)


def test_content_shares_need_content() -> None:
    with pytest.raises(ValueError, match="content_shares needs a catalogue with content"):
        model_of(replace(catalog_of(), content=None), content_shares={})


@pytest.mark.parametrize(
    ("codes", "sizes"), [([[0, 0, 0]], (1, 1, 1)), ([[0, 1], [1, 0], [2, 2]], (3, 3)), ([[0], [1], [2]], (3,))]
)
def test_catalogues_of_one_item_single_children_and_one_level(codes: list[list[int]], sizes: tuple[int, ...]) -> None:
    ids = pl.Series("item_id", range(len(codes)))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    table = IdentifierTable.from_item_codes(
        torch.tensor(codes), codebook_sizes=sizes, catalog_fingerprint=catalog.fingerprint
    )
    model = model_of(catalog.with_identifiers(table))
    answer = model.recommend(batch_of([[1]]), 3)
    assert (answer.item_ids > 0).sum() == len(codes)
    batch = NextItemBatch(Jagged.from_rows([[1]]), Jagged.from_rows([[len(codes)]]), seed=0)
    loss = model.train().training_loss(batch).total
    loss.backward()
    assert bool(loss.isfinite())


def test_items_that_share_a_leaf_are_all_reachable() -> None:
    model = model_of(catalog_of(sizes=(2, 2), unique=False))
    answer = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    assert torch.equal(answer.item_ids.sort(1).values, torch.arange(1, NUM_ITEMS + 1).expand(3, -1))


def relearned(model: DepthDecoder, epoch: int = 1) -> DepthDecoder:
    """Return the model after its epoch hook, with other identifiers than before."""
    former = model.identifiers.codes.clone()
    changed = model.after_epoch(epoch)
    assert changed
    assert not torch.equal(model.identifiers.codes, former)
    return model


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_after_relearning_a_full_search_equals_the_scores_of_all_items(settings: dict[str, Any]) -> None:
    model = relearned(model_of(relearn_after=[1], **settings))
    answer = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    with torch.no_grad():
        expected = torch.stack([item_log_probs(model, history) for history in HISTORIES])
        logits, state = model.step(model.start(batch_of(HISTORIES)), None)
        logits, state = model.step(state, logits[:, 0].argmax(1, keepdim=True))
    assert torch.equal(logits > -torch.inf, model.trie.allowed(state.beams["node"], depth=1))
    torch.testing.assert_close(answer.scores, expected.gather(1, answer.item_ids), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer.scores.exp().sum(1), torch.ones(3))
    assert model.identifiers.is_unique


def test_items_are_relearned_only_after_the_configured_epochs() -> None:
    model = model_of(relearn_after=[2, 5])
    codes = model.identifiers.codes
    assert [bool(model.after_epoch(epoch)) for epoch in (1, 3)] == [False, False]
    assert torch.equal(model.identifiers.codes, codes)
    relearned(model, 2)


def test_relearning_keeps_the_vectors_of_items_and_the_first_codes() -> None:
    model = model_of(relearn_after=[1], relearn_below=1, vectors="both")
    items, first = model.items.weight.detach().clone(), model.identifiers.codes[:, 0].clone()
    inner = model.nodes.inner.weight.detach().clone()  # type: ignore[union-attr]
    relearned(model)
    assert torch.equal(model.items.weight, items)
    assert torch.equal(model.identifiers.codes[:, 0], first)
    top = range(1, 1 + int(first[1:].unique().numel()))
    torch.testing.assert_close(model.nodes.inner.weight[top], inner[top])  # type: ignore[union-attr]


def test_other_numbers_of_the_same_clusters_change_no_probability() -> None:
    """Node vectors go where their items go, so a new numbering alone is no change of the model."""
    model = model_of(relearn_after=[1], vectors="both")
    with torch.no_grad():
        before = [item_log_probs(model, history) for history in HISTORIES]
        codes = torch.tensor(SIZES) - 1 - model.identifiers.codes[1:]
        by_node = [table for table in (model.nodes_read, model.nodes.inner) if table is not None]
        model.tree.replace_codes(
            codes, by_node=by_node, by_code=model.nodes.code_tables, weights=torch.rand(NUM_ITEMS + 1)
        )
        after = [item_log_probs(model, history) for history in HISTORIES]
    torch.testing.assert_close(after, before)


def test_relearned_identifiers_are_part_of_weights_and_bundle(tmp_path: Path) -> None:
    model, fresh = relearned(model_of(relearn_after=[1])), model_of(relearn_after=[1])
    expected = model.recommend(batch_of(HISTORIES), NUM_ITEMS)
    former = fresh.weights_fingerprint()
    fresh.load_state_dict(model.state_dict())
    assert fresh.weights_fingerprint() not in (former, "")
    save_model(tmp_path, model)
    values = {"data": {"path": "-"}, "model": {"name": "depth-decoder", **model.config.model_dump()}}
    loaded = load_model(tmp_path, parse(Recipe, values, where="test"))
    for other in (fresh, loaded):
        answer = other.recommend(batch_of(HISTORIES), NUM_ITEMS)
        assert torch.equal(answer.item_ids, expected.item_ids)
        assert torch.equal(answer.scores, expected.scores)
        assert other.identifiers is not None
        assert torch.equal(other.identifiers.codes, model.identifiers.codes)
    assert torch.equal(IdentifierTable.load(tmp_path).codes, model.identifiers.codes)
    assert loaded.catalog.identifiers is not None
    assert torch.equal(loaded.catalog.identifiers.codes, model.identifiers.codes)


def planted() -> tuple[Catalog, NextItemSequences, Tensor]:
    """Return items of six groups, whose users stay within a group, with codes that have nothing to do with them."""
    ids = pl.Series("item_id", range(60))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    codes = torch.stack([order % 6, order // 6], dim=1)
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=(6, 10), catalog_fingerprint=catalog.fingerprint)
    return catalog.with_identifiers(table), group_histories(seed=0), torch.arange(60) % 6


def group_histories(seed: int) -> NextItemSequences:
    """Return six random items of a group, the items g + 1, g + 7, ..., for each of 300 users."""
    rng = np.random.default_rng(seed)
    items = [user % 6 + 1 + 6 * rng.integers(10, size=6) for user in range(300)]
    users = np.repeat(np.arange(1, 301), 6).astype(np.int32)
    log = Interactions(users, np.concatenate(items).astype(np.int32), 300, 60)
    return NextItemSequences(log, max_length=6)


def test_input_vectors_are_clustered_and_not_own_vectors_alone() -> None:
    """Own vectors are small here, so the vectors of the former nodes decide: clusters stay together."""
    catalog, _, group = planted()
    model = model_of(catalog, relearn_after=[1])
    assert model.nodes_read is not None
    former = model.identifiers.codes[1:, 0].long()
    with torch.no_grad():
        model.items.weight.mul_(0.01)
    relearned(model)
    assert len(torch.unique(model.identifiers.codes[1:, 0].long() * 6 + former)) == 6
    with torch.no_grad():
        model.items.weight[1:] = 100 * torch.eye(8)[group]
    model.after_epoch(1)
    assert len(torch.unique(model.identifiers.codes[1:, 0].long() * 6 + group)) == 6


@torch.no_grad()
def log_loss(model: DepthDecoder, examples: NextItemSequences) -> float:
    losses = [model.training_loss(batch).total for batch in examples.batches(32, epoch=0, seed=0)]
    return float(torch.stack(losses).mean())


def trained_on(
    catalog: Catalog, examples: NextItemSequences, *, epochs: int, relearn_after: list[int], **options: Any
) -> tuple[DepthDecoder, TrainingResult]:
    torch.manual_seed(1)
    settings = {"width": 16, "depth_width": 16, "dropout": 0.0, "target_weights": [1.0], "relearn_after": relearn_after}
    model = DepthDecoder(DepthDecoderConfig.model_validate(settings), catalog)
    model.set_popularity(torch.ones(model.num_items + 1).index_fill_(0, torch.tensor([0]), 0))
    config = TrainingConfig(
        max_epochs=epochs, batch_size=32, learning_rate=1e-2, patience=None, checkpoint_minutes=1e-9
    )
    return model, fit(model, examples, config, device="cpu", progress=False, **options)


def test_relearning_finds_the_groups_of_items_and_raises_the_likelihood() -> None:
    catalog, examples, group = planted()
    plain, fixed = trained_on(catalog, examples, epochs=8, relearn_after=[])
    model, result = trained_on(catalog, examples, epochs=8, relearn_after=[4])
    assert result.epoch_log[:4] == fixed.epoch_log[:4]
    assert len(torch.unique(plain.identifiers.codes[1:, 0] * 6 + group)) > 24  # of 36 pairs of cluster and group
    assert len(torch.unique(model.identifiers.codes[1:, 0] * 6 + group)) == 6  # a cluster is a group
    losses = [log_loss(entry, group_histories(seed=1)) for entry in (plain, model)]
    # A target is one of the ten items of its group: no model has less than log 10 on other users.
    assert math.log(10) < losses[1] < losses[0] - 0.03


@pytest.mark.parametrize("cut_after", [19, 20, 25, 41])
def test_resuming_after_relearning_equals_an_uninterrupted_run(tmp_path: Path, cut_after: int) -> None:
    """Ten batches make an epoch, and identifiers are relearned after the second and the fourth of five."""
    catalog, examples, _ = planted()
    options: dict[str, Any] = {"epochs": 5, "relearn_after": [2, 4]}
    whole, expected = trained_on(catalog, examples, **options)

    class StopTraining(Exception):
        pass

    class CutExamples(NextItemSequences):
        num_batches_read = 0

        def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[NextItemBatch]:
            for batch in super().batches(batch_size, epoch=epoch, seed=seed, start=start):
                if self.num_batches_read == cut_after:
                    raise StopTraining
                self.num_batches_read += 1
                yield batch

    cut = CutExamples.__new__(CutExamples)
    cut.__dict__.update(examples.__dict__)
    assert examples.num_batches(32) == 10
    with pytest.raises(StopTraining):
        trained_on(catalog, cut, out=tmp_path, **options)
    resumed, result = trained_on(catalog, examples, out=tmp_path, resume=True, **options)
    assert result.epoch_log == expected.epoch_log
    assert torch.equal(resumed.identifiers.codes, whole.identifiers.codes)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.parametrize("best", [1, 3, 4])
def test_the_best_weights_are_kept_with_their_identifiers(best: int) -> None:
    catalog, examples, _ = planted()
    model = model_of(catalog, relearn_after=[2, 3])
    by_epoch: list[Tensor] = []

    def validate() -> float:
        by_epoch.append(model.identifiers.codes.clone())
        return float(len(by_epoch) == best)

    fit(model, examples, TrainingConfig(max_epochs=4, batch_size=32), validate=validate, progress=False)
    codes = model.identifiers.codes
    assert torch.equal(codes, by_epoch[best - 1])
    assert [torch.equal(codes, other) for other in by_epoch].count(True) == (2 if best == 1 else 1)
    answer = model.recommend(batch_of([[1, 2]]), 60)
    assert torch.equal(answer.item_ids.sort(1).values, torch.arange(1, 61)[None])


@pytest.mark.parametrize(
    ("sizes", "below", "message"),
    [((2, 2), 0, "fewer codes than the 23 items"), (SIZES, 2, "no level of clusters below the first 2")],
)
def test_identifiers_that_cannot_be_relearned_are_refused_at_once(
    sizes: tuple[int, ...], below: int, message: str
) -> None:
    catalog = catalog_of(sizes=sizes, unique=len(sizes) > 2)
    with pytest.raises(UserError, match=message):
        build_component("model", {"name": "depth-decoder", "relearn_after": [1], "relearn_below": below}, catalog)
