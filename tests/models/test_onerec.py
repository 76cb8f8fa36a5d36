"""OneRec: lists against an enumeration by the training loss, what a slot sees, filled lists, and bad input."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset, Users
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.examples.user_sessions import UserSessionBatch
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.guide import Guide
from nextitem.models.depth_decoder import DepthDecoder, DepthDecoderConfig
from nextitem.models.onerec import OneRec, OneRecConfig
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

SIZES = (3, 4)
NUM_ITEMS = 8
HISTORIES = [[1, 2, 3], [4], [5, 6, 7, 8]]
EXPERTS = {"num_experts": 3, "top_k": 2}


def catalog_of(num_items: int = NUM_ITEMS, sizes: tuple[int, ...] = SIZES) -> Catalog:
    generator = torch.Generator().manual_seed(3)
    grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    codes = grid[torch.randperm(len(grid), generator=generator)[:num_items]]
    ids = pl.Series("item_id", range(num_items))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=sizes, catalog_fingerprint=catalog.fingerprint)
    return catalog.with_identifiers(table)


def model_of(catalog: Catalog | None = None, **settings: Any) -> OneRec:
    torch.manual_seed(5)
    small: dict[str, Any] = {"width": 8, "depth_width": 12, "dropout": 0.0, "max_history_length": 6, "feed_width": 12}
    small |= {
        "items_per_list": 3,
        "experts": EXPERTS,
        "target_weights": (1.0,),
        "session_share": 1.0,
        "decodes_first": True,
    }
    model = OneRec(OneRecConfig.model_validate(small | settings), catalog or catalog_of()).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the initial vectors are too small to tell items apart
            parameter.mul_(5)
    model.set_popularity(torch.ones(model.num_items + 1).index_fill_(0, torch.tensor([0]), 0))
    return model


def batch_of(rows: list[list[int]], **columns: Any) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(rows), **columns)


def lists_after(history: list[int], lists: list[list[int]], starts: list[int] | None = None) -> UserSessionBatch:
    """Return lists that follow one history, after all or the first few of its events."""
    return UserSessionBatch(
        Jagged.from_rows([history]),
        Jagged.from_rows([starts or [len(history)] * len(lists)]),
        Jagged.from_rows(lists),
        seed=0,
    )


@torch.no_grad()
def log_prob(model: OneRec, history: list[int], items: list[int]) -> float:
    """Return the log-probability of a list, which is minus the loss of it alone."""
    return -float(model.training_loss(lists_after(history, [items])).total)


@pytest.mark.parametrize(
    "settings",
    [{"decodes_first": False}, {"experts": None, "decoder_layers": 2}, {"depth_network": "transformer"}],
)
def test_a_search_returns_the_likeliest_of_all_lists(settings: dict[str, Any]) -> None:
    model, histories = model_of(catalog_of(5), **settings), [[1, 2, 3], [4]]
    answer = beam_search(model, batch_of(histories), model.trie, k=2, items_per_list=2, beam_width=100)
    all_lists = list(permutations(range(1, 6), 2))
    for row, history in enumerate(histories):
        scores = [log_prob(model, history, list(items)) for items in all_lists]
        assert answer.item_ids[row].tolist() == list(all_lists[int(np.argmax(scores))])
        assert float(answer.scores[row].sum()) == pytest.approx(max(scores), abs=1e-4)


def test_the_probabilities_of_all_lists_sum_to_one() -> None:
    model = model_of(catalog_of(5))
    total = sum(np.exp(log_prob(model, [1, 2], [first, second])) for first in range(1, 6) for second in range(1, 6))
    assert total == pytest.approx(1, abs=1e-4)


def test_a_slot_sees_the_items_before_it_and_no_later_ones() -> None:
    model = model_of()
    by_first = [log_prob(model, [1, 2], [first, 7]) - log_prob(model, [1, 2], [first]) for first in (3, 4, 5)]
    assert max(by_first) - min(by_first) > 0.01
    with torch.no_grad():
        events = model.encoder(Jagged.from_rows([[1, 2]]), model._embed)[None]
        history = model.decoder.read(events, torch.tensor([[2]]))
        one, other = (model.decoder(history, model._embed(torch.tensor([row]))[:, None]) for row in ([3, 4], [3, 5]))
    assert torch.equal(one[:, :, :2], other[:, :, :2])
    assert not torch.allclose(one[:, :, 2], other[:, :, 2])


def test_lists_of_one_history_see_the_part_before_them() -> None:
    model = model_of()
    together = lists_after([1, 2, 3, 4], [[3, 4], [5], [6, 7, 8]], [2, 2, 4])
    with torch.no_grad():
        loss = float(model.training_loss(together).total)
    apart = [([1, 2], [3, 4]), ([1, 2], [5]), ([1, 2, 3, 4], [6, 7, 8])]
    assert loss == pytest.approx(-sum(log_prob(model, history, items) for history, items in apart) / 3, abs=1e-5)


def test_the_parts_of_a_batch_add_up() -> None:
    model = model_of(target_weights=(1.0, 0.3))
    batch = UserSessionBatch(
        Jagged.from_rows([[1, 2, 3], [4, 5], [6]]),
        Jagged.from_rows([[1, 3], [2], [1]]),
        Jagged.from_rows([[2, 3], [5, 6, 7], [1], [2, 8]]),
        seed=0,
    )
    with torch.no_grad():
        whole = float(model.training_loss(batch).total)
        parts = [batch.share(rank, 2) for rank in (0, 1)]
        mean = sum(part.loss_count * float(model.training_loss(part).total) for part in parts) / batch.loss_count
    assert whole == pytest.approx(mean, abs=1e-5)


def test_without_later_slots_the_first_alone_is_computed() -> None:
    model = model_of(session_share=0.0)
    tokens = []
    model.decoder.layers[0].feed.register_forward_hook(lambda _, inputs, output: tokens.append(len(inputs[0])))  # type: ignore[union-attr]
    with torch.no_grad():
        loss = float(model.training_loss(lists_after([1, 2, 3], [[4, 5, 6], [7, 8]], [2, 3])).total)
    assert tokens == [2]
    assert loss == pytest.approx(-(log_prob(model, [1, 2], [4]) + log_prob(model, [1, 2, 3], [7])) / 2, abs=1e-5)


def test_a_sample_of_no_list_leaves_the_first_slots() -> None:
    batch, losses = lists_after([1, 2, 3], [[4, 5, 6]]), []
    for share in (1e-9, 0.0):
        model = model_of(session_share=share).train()
        losses.append(model.training_loss(batch).total)
        losses[-1].backward()
    torch.testing.assert_close(*losses)


def test_the_first_slot_is_that_of_the_depth_decoder() -> None:
    model = model_of(decodes_first=False, generates="items", target_weights=(1.0, 0.4))
    small = {name: getattr(model.config, name) for name in DepthDecoderConfig.model_fields}
    plain = DepthDecoder(DepthDecoderConfig.model_validate(small), model.catalog).eval()
    plain.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith("decoder.")}
    )
    expected, answer = (one.recommend(batch_of(HISTORIES), 5) for one in (plain, model))
    assert torch.equal(answer.item_ids, expected.item_ids)
    torch.testing.assert_close(answer.scores, expected.scores)
    model.config = model.config.model_copy(update={"session_share": 0.0})
    batch = lists_after([1, 2, 3], [[2, 3, 4], [3, 4], [4]], [1, 2, 3])
    with torch.no_grad():
        loss = plain.training_loss(NextItemBatch(Jagged.from_rows([[1, 2, 3]]), Jagged.from_rows([[2, 3, 4]]), seed=0))
        torch.testing.assert_close(model.training_loss(batch).total, loss.total)


def test_every_part_learns_and_padding_is_no_load_of_the_experts() -> None:
    model = model_of(experts=EXPERTS | {"balance": "loss"}).train()
    terms = model.training_loss(lists_after([1, 2, 3, 4], [[3, 4, 5], [5], [6, 7]], [2, 3, 4]))
    terms.total.backward()
    assert {"level_1", "level_2", "balance"} <= terms.named.keys()
    assert int(model.decoder.layers[0].feed.load.sum()) == 2 * (3 + 6)  # type: ignore[union-attr,operator]
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize("k", [1, 2, 3, 5, NUM_ITEMS])
def test_a_list_is_followed_by_the_best_further_items(k: int) -> None:
    model, batch = model_of(), batch_of(HISTORIES)
    answer = model.recommend(batch, k)
    assert answer.ordered_by == ("score" if k == 1 else "generation")
    assert all(len(set(row)) == k for row in answer.item_ids.tolist())
    length = min(k, 3)
    alone = beam_search(model, batch, model.trie, k=length, items_per_list=length, beam_width=20)
    assert torch.equal(answer.item_ids[:, :length], alone.item_ids)
    ranking = beam_search(model, batch, model.trie, k=NUM_ITEMS, beam_width=20).item_ids
    for row, order in zip(answer.item_ids.tolist(), ranking.tolist(), strict=True):
        assert row[length:] == [item for item in order if item not in row[:length]][: k - length]
    assert torch.equal(model_of(generates="items").recommend(batch, k).item_ids, ranking[:, :k])


def test_every_item_of_a_list_is_allowed() -> None:
    model = model_of()
    allowed = torch.zeros(1, NUM_ITEMS + 1, dtype=torch.bool)
    allowed[:, [2, 4, 5, 7, 8]] = True
    batch = batch_of(HISTORIES, allowed=allowed, excluded=Jagged.from_rows([[2], [4, 5, 7], [4, 5, 7, 8, 2]]))
    rows = model.recommend(batch, 4).item_ids.tolist()
    assert [sorted(row) for row in rows] == [[4, 5, 7, 8], [0, 0, 2, 8], [0, 0, 0, 0]]


def test_items_without_events_come_last() -> None:
    model = model_of()
    model.set_popularity(torch.tensor([0.0, 1, 1, 0, 0, 0, 0, 0, 0]))
    rows = model.recommend(batch_of(HISTORIES), 4).item_ids.tolist()
    assert all(sorted(row[:2]) == [1, 2] and row[2:] == [3, 4] for row in rows)


def test_a_catalogue_smaller_than_a_list() -> None:
    model = model_of(catalog_of(2))
    assert [sorted(row) for row in model.recommend(batch_of([[1], [2, 1]]), 5).item_ids.tolist()] == [
        [0, 0, 0, 1, 2]
    ] * 2


def test_users_without_history_are_answered_by_popularity() -> None:
    model = model_of()
    answer = model.recommend(batch_of([[], [1, 2]]), 3)
    assert answer.fallback is not None
    assert answer.fallback.tolist() == [True, False]
    assert answer.item_ids[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("positions", ["from-first", "from-last"])
def test_a_cached_history_gives_the_same_lists(positions: str) -> None:
    model = model_of(positions=positions)
    with torch.no_grad():
        state = model.encode_history(batch_of([[1, 2], [4], [5, 6, 7, 8, 1, 2]]))
        histories = [[1, 2, 3], [4], [5, 6, 7, 8, 1, 2, 3, 4]]  # extended, unchanged, and beyond the window
        fresh, cached = (model.recommend(batch_of(histories, state=before), 5) for before in (None, state))
    assert torch.equal(fresh.item_ids, cached.item_ids)
    torch.testing.assert_close(fresh.scores, cached.scores)


def test_a_guide_steers_every_slot() -> None:
    model = model_of(items_per_list=2)
    probabilities = torch.zeros(3, NUM_ITEMS + 1)
    probabilities[:, [6, 2, 7]] = torch.tensor([0.5, 0.3, 0.2])
    answer = model.search(batch_of(HISTORIES), 4, guide=Guide(probabilities, 1.0))
    assert [sorted(row) for row in answer.item_ids[:, :2].tolist()] == [[2, 6]] * 3  # equally likely in either order
    assert answer.item_ids[:, 2].tolist() == [7] * 3
    assert answer.guided is not None


def test_codes_leave_less_open_from_level_to_level() -> None:
    sizes = (4, 4, 4)
    model, entropies = model_of(catalog_of(20, sizes)), []
    rows = batch_of(HISTORIES)
    with torch.no_grad():
        state, codes, weights = model.start(rows), None, torch.ones(3, 1)
        for level in range(3):
            logits, state = model.step(state, codes)
            probabilities = logits.softmax(2)
            entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum(2)
            entropies.append(float((weights * entropy).sum() / 3))
            if level < 2:  # every prefix becomes a beam
                beams, choices = (probabilities > 0)[0].nonzero(as_tuple=True)
                codes = choices.expand(3, -1)
                weights = (weights[..., None] * probabilities)[:, beams, choices]
                state = state.reorder(beams.expand(3, -1))
    assert entropies[0] > entropies[1] > entropies[2]


def partners(seed: int = 0) -> Dataset:
    """Return sessions of two: 1 or 2 with equal probability, then its partner, 3 or 4; 5 is every user's first item."""
    rng = np.random.default_rng(seed)
    rows = [[5, *(item for first in rng.integers(1, 3, 3) for item in (first, first + 2))] for _ in range(60)]
    items = np.array([item for row in rows for item in row], np.int32)
    sessions = np.array([100 * user + (place + 1) // 2 for user, row in enumerate(rows) for place in range(len(row))])
    users = np.repeat(np.arange(1, 61), 7).astype(np.int32)
    log = Interactions(users, items, 60, 5, columns=pl.DataFrame({"session_id": sessions}))
    ids = Users(IdMap(pl.Series("user_id", [f"u{number}" for number in range(60)])))
    return Dataset("partners", log, catalog_of(5), ids, fingerprint="partners")


def trained(dataset: Dataset, **settings: Any) -> OneRec:
    torch.manual_seed(0)
    small = {
        "width": 16,
        "depth_width": 16,
        "dropout": 0.0,
        "feed_width": 16,
        "items_per_list": 2,
        "experts": EXPERTS,
        "session_share": 1.0,
    }
    model = OneRec(OneRecConfig.model_validate(small | settings), dataset.catalog)
    model.set_popularity_from(dataset)
    training = TrainingConfig(max_epochs=20, batch_size=32, learning_rate=0.01)
    fit(model, model.examples(dataset), training, progress=False)
    return model.eval()


def test_a_list_has_partners_where_the_best_items_one_by_one_are_alternatives() -> None:
    dataset = partners()
    model, request = trained(dataset, target_weights=(1.0,), sessions={"starts": "sessions"}), batch_of([[5, 1, 3]])
    first, second = model.recommend(request, 2).item_ids[0].tolist()
    assert second == first + 2
    model.config = model.config.model_copy(update={"generates": "items"})
    assert sorted(model.recommend(request, 2).item_ids[0].tolist()) == [1, 2]


def test_sessions_of_one_item_are_lists_of_one() -> None:
    dataset = partners()
    columns = dataset.interactions.columns.with_columns(session_id=pl.int_range(len(dataset.interactions)))
    log = replace(dataset.interactions, columns=columns)
    model = model_of(dataset.catalog, sessions={"cut": "column"})
    ones = Dataset("ones", log, dataset.catalog, dataset.users, fingerprint="ones")
    batches = list(model.examples(ones).batches(20, epoch=0, seed=0))
    assert {int(length) for batch in batches for length in batch.lists.lengths} == {1}
    assert torch.isfinite(model.training_loss(batches[0]).total)


def test_a_guide_leaves_the_initial_weights_alone() -> None:
    alone, guided = (model_of(guide=guide).decoder for guide in (None, {"model": {"name": "sasrec", "width": 8}}))
    assert torch.equal(alone.begin.weight, guided.begin.weight)
