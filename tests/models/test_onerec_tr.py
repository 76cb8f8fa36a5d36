"""OneRec-TR against a plain computation of its probabilities, and what its pathways read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest
import torch
from support.spies import spy
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION, Catalog, ColumnEncoding
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.decoding.beam_search import beam_search
from nextitem.models.onerec_tr import OneRecTR, OneRecTRConfig, similarity_vectors
from nextitem.nn.attention import pathways

SIZES = (4, 3, 5)
NUM_ITEMS = 23
HISTORIES = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 23, 1, 2, 3, 11]]
HOUR = 3_600_000
VIEW, BUY = 2, 1  # codes of actions
SMALL: dict[str, Any] = {
    "width": 8,
    "ff_width": 12,
    "dropout": 0.0,
    "max_history_length": 12,
    "short_length": 3,
    "positive": ["buy"],
    "positive_length": 2,
    "lifelong_clusters": 3,
    "cluster_size": 1,
    "lifelong_queries": 2,
    "user_buckets": 5,
}


def catalog_of(**columns: Any) -> Catalog:
    generator = torch.Generator().manual_seed(3)
    codes = torch.unique(torch.stack([torch.randint(size, (200,), generator=generator) for size in SIZES], 1), dim=0)
    codes = codes[torch.randperm(len(codes), generator=generator)][:NUM_ITEMS]
    ids = pl.Series("item_id", range(NUM_ITEMS))
    events = {
        ACTION: ColumnEncoding("categorical", pl.Series(["buy", "view"])),
        "watched": ColumnEncoding("numeric"),
        **columns.pop("events", {}),
    }
    requests = {"user.country": ColumnEncoding("categorical", pl.Series(["FR", "NL"]))}
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}), **{"events": events, "requests": requests} | columns)
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=SIZES, catalog_fingerprint=catalog.fingerprint)
    content = torch.randn(NUM_ITEMS + 1, 6, generator=generator)
    return catalog.with_content(content).with_identifiers(table)


def model_of(catalog: Catalog | None = None, **settings: Any) -> OneRecTR:
    torch.manual_seed(5)
    model = OneRecTR(OneRecTRConfig.model_validate(SMALL | settings), catalog or catalog_of()).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the initial vectors are too small to tell anything apart
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.set_popularity(torch.ones(NUM_ITEMS + 1).index_fill_(0, torch.tensor([0]), 0))
    return model


def batch_of(rows: list[list[int]], *, actions: list[list[int]] | None = None, **columns: Any) -> SequenceBatch:
    items = Jagged.from_rows(rows)
    place = torch.arange(len(items.values)) - items.offsets[items.row_ids()]
    return SequenceBatch(
        items,
        actions=items.with_values(torch.full_like(items.values, VIEW))
        if actions is None
        else Jagged.from_rows(actions),
        timestamps=items.with_values(place * HOUR),
        request_times=items.lengths * HOUR,
        **columns,
    )


def plain_log_probs(model: OneRecTR, batch: SequenceBatch, row: int) -> Tensor:
    """Return log p of every item for one request, [N + 1]: whole paths through the layers, without a cache."""
    encoded, bias = model.pathways(batch, model._embed)
    encoded, bias, trie, levels = encoded[row : row + 1], bias[row : row + 1], model.trie, len(SIZES)
    shared, out = model.decoder.shared(encoded), torch.full((NUM_ITEMS + 1,), -torch.inf)
    causal = torch.full((levels, levels), -torch.inf).triu(1)[None]

    def vector(node: int, depth: int) -> Tensor:
        assert model.nodes.inner is not None
        return model.items.weight[model.tree.item_of_leaf[node]] if depth == levels else model.nodes.inner.weight[node]

    for item in range(1, NUM_ITEMS + 1):
        path = model.tree.nodes[item].tolist()
        first = torch.zeros(8)
        if model.config.begins_with_last:
            first = encoded[0, min(model.config.short_length, int(batch.items.lengths[row]))]
        inputs = torch.stack([first, *(vector(path[depth], depth) for depth in range(1, levels))])
        hidden = (inputs + model.decoder.positions)[None]
        for number, layer in enumerate(model.decoder.layers):
            cross = (shared[f"key_{number}"], shared[f"value_{number}"])
            hidden = layer(hidden, cross, bias=causal, cross_bias=bias)
        hidden = model.decoder.norm(hidden)[0]
        total = torch.zeros(())
        for level in range(levels):
            siblings = range(int(trie.first_child[path[level]]), int(trie.first_child[path[level] + 1]))
            logits = torch.stack([hidden[level] @ vector(sibling, level + 1) for sibling in siblings])
            total = total + logits.log_softmax(0)[path[level + 1] - siblings.start]
        out[item] = total
    return out


@pytest.mark.parametrize(
    "settings", [{}, {"decoder_layers": 2, "positive": [], "user_buckets": 0, "begins_with_last": False}], ids=str
)
def test_a_full_search_equals_the_plain_scores_of_all_items(settings: dict[str, Any]) -> None:
    model, batch = model_of(**settings), batch_of(HISTORIES)
    answer = model.recommend(batch, NUM_ITEMS)
    with torch.no_grad():
        expected = torch.stack([plain_log_probs(model, batch, row) for row in range(3)])
    torch.testing.assert_close(answer.scores, expected.gather(1, answer.item_ids), atol=1e-4, rtol=1e-4)
    assert torch.equal(answer.item_ids.sort(1).values, torch.arange(1, NUM_ITEMS + 1).expand(3, -1))
    torch.testing.assert_close(expected[:, 1:].exp().sum(1), torch.ones(3))  # only legal codes compete


def test_the_loss_is_the_weighted_sum_over_codes_and_later_targets() -> None:
    model = model_of(target_weights=[1.0, 0.5]).train()
    batch = batch_of(HISTORIES, targets=Jagged.from_rows([[7, 3], [9, 0], [2]]))
    loss = model.training_loss(batch)
    log_probs = [plain_log_probs(model, batch, row) for row in range(3)]
    expected = -(log_probs[0][7] + 0.5 * log_probs[0][3] + log_probs[1][9] + log_probs[2][2]) / 3
    torch.testing.assert_close(loss.total, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sum(loss.named.values()), expected.detach(), atol=1e-4, rtol=1e-4)


def test_steps_with_given_codes_are_differentiable_and_equal_the_loss() -> None:
    model = model_of(target_weights=[1.0])
    items = torch.tensor([7, 9, 2])
    batch = batch_of(HISTORIES, targets=Jagged.from_rows([[7], [9], [2]]))
    state, codes, total = model.start(batch), None, torch.zeros(())
    for level in range(len(SIZES)):
        logits, state = model.step(state, codes)
        codes = model.codes[items, level].long()[:, None]
        total = total - logits.log_softmax(2).gather(2, codes[..., None]).sum() / 3
    expected = model.training_loss(batch).total
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    others = torch.autograd.grad(expected, parameters, allow_unused=True)
    for first, second in zip(gradients, others, strict=True):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-3)


def test_the_balance_of_experts_is_part_of_the_loss() -> None:
    batch = batch_of(HISTORIES, targets=Jagged.from_rows([[7, 3], [9, 0], [2]]))
    model = model_of(experts={"balance": "loss", "balance_weight": 0.5}).train()
    loss = model.training_loss(batch)
    levels = [value for name, value in loss.named.items() if name.startswith("level_")]
    torch.testing.assert_close(loss.total.detach(), torch.stack(levels).sum() + loss.named["balance"])
    assert float(loss.named["balance"]) > 0


def test_a_step_after_a_complete_item_begins_the_next_one() -> None:
    model, batch = model_of(), batch_of(HISTORIES)
    first, state = model.step(model.start(batch), None)
    item = torch.tensor([7, 9, 2])
    for level in range(len(SIZES)):
        again, state = model.step(state, model.codes[item, level].long()[:, None])
    torch.testing.assert_close(again, first)
    answer = beam_search(model, batch, model.trie, k=3, beam_width=NUM_ITEMS, items_per_list=3)
    assert all(len(set(row)) == 3 and 0 not in row for row in answer.item_ids.tolist())


def scores(model: OneRecTR, batch: SequenceBatch) -> Tensor:
    answer = model.recommend(batch, NUM_ITEMS)
    return answer.scores.gather(1, answer.item_ids.argsort(1))


def test_each_pathway_reads_its_events_and_no_others() -> None:
    model = model_of()
    items = [5, 6, 7, 8, 9, 23, 1, 2, 3, 11]

    def changed(*, place: int | None = None, action: int | None = None, **settings: Any) -> bool:
        other, model = list(items), model_of(**settings)
        actions, other_actions = [VIEW] * 10, [VIEW] * 10
        actions[4] = other_actions[4] = BUY
        if place is not None and action is None:
            other[place] = 15
        if place is not None and action is not None:
            other_actions[place] = action
        first, second = (
            scores(model, batch_of([row], actions=[codes])) for row, codes in ((items, actions), (other, other_actions))
        )
        return not torch.allclose(first, second, atol=1e-5)

    assert all(changed(place=place) for place in range(10))
    # Without the lifelong pathway: the last three events, and the positive one.
    assert [changed(place=place, lifelong_clusters=0) for place in range(10)] == [False] * 4 + [True] + [False] * 2 + [
        True
    ] * 3
    assert changed(place=2, action=BUY, lifelong_clusters=0)  # a second positive event
    # Events before the longest history.
    assert [changed(place=place, max_history_length=6) for place in range(5)] == [False] * 4 + [True]
    assert scores(model, batch_of([items])).isfinite().all()


def test_two_positive_events_are_read_and_an_older_one_is_not() -> None:
    model = model_of(lifelong_clusters=0)
    items, actions = [5, 6, 7, 8, 9, 10, 1, 2, 3], [BUY, BUY, VIEW, BUY, VIEW, VIEW, VIEW, VIEW, VIEW]
    first = scores(model, batch_of([items], actions=[actions]))
    for place, is_read in ((0, False), (1, True), (2, False), (3, True), (5, False)):
        other = list(items)
        other[place] = 15
        assert torch.allclose(scores(model, batch_of([other], actions=[actions])), first, atol=1e-5) != is_read


def test_a_label_above_zero_is_positive() -> None:
    model = model_of(lifelong_clusters=0, positive=["watched"])
    items = Jagged.from_rows([[5, 6, 7, 8, 9]])
    batch = batch_of([[5, 6, 7, 8, 9]])
    first, second, third = (
        scores(model, replace(batch, features={"watched": items.with_values(torch.tensor(values))}))
        for values in ([0.0, torch.nan, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0, 0.0])
    )
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, third, atol=1e-4)


def test_the_order_of_lifelong_events_does_not_matter() -> None:
    """In a history without times, only the set of lifelong events counts; the order of the short ones does, too."""
    model = model_of(positive=[])
    rows = [[5, 6, 7, 8, 9, 1, 2, 3], [8, 5, 9, 7, 6, 1, 2, 3], [5, 6, 7, 8, 9, 2, 1, 3]]
    first, second, third = scores(model, SequenceBatch(Jagged.from_rows(rows)))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, third, atol=1e-4)


def test_the_summary_of_a_returning_user_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(window_step=3, max_history_length=30)
    history = list(range(1, 15))
    calls = spy(monkeypatch, pathways, "cluster_histories", lambda items, *_, **__: items)
    state, computed = None, []
    for stop in range(3, 14):
        batch = batch_of([history[:stop]])
        calls.clear()
        state = model.encode_history(batch, state)
        computed.append(len(calls))
        calls.clear()
        cached = scores(model, replace(batch, state=state))
        assert not calls
        torch.testing.assert_close(cached, scores(model, batch), atol=1e-5, rtol=1e-5)
    assert computed == [1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]  # the window advances with the events 4, 7, 10 and 13


def test_features_and_key_of_the_user_are_read() -> None:
    model = model_of()

    def user(key: int, country: int) -> Tensor:
        return scores(
            model, batch_of([[1, 2]], user_ids=torch.tensor([key]), context={"user.country": torch.tensor([country])})
        )

    assert not torch.allclose(user(3, 1), user(3, 2), atol=1e-4)
    assert not torch.allclose(user(3, 1), user(4, 1), atol=1e-4)
    torch.testing.assert_close(user(3, 1), user(8, 1))  # five buckets
    torch.testing.assert_close(user(0, 0), scores(model, batch_of([[1, 2]])))  # an unknown visitor


def test_users_without_positive_events_features_or_history_are_answered() -> None:
    model = model_of()
    batch = batch_of([[1, 2], [], [3]], actions=[[VIEW, VIEW], [], [BUY]])
    answer = model.recommend(batch, 4)
    assert answer.fallback is not None
    assert answer.fallback.tolist() == [False, True, False]
    assert bool(answer.scores.isfinite().all())
    bare = model_of(catalog_of(requests={}, events={}), user_buckets=0, positive=[])
    assert bare.pathways.static.layers is None
    only_items = SequenceBatch(Jagged.from_rows([[1, 2, 3, 4, 5], [3]]))
    assert bool(bare.recommend(only_items, 4).scores.isfinite().all())
    model.train()
    loss = model.training_loss(replace(batch.select(torch.tensor([0, 2])), targets=Jagged.from_rows([[4], [5]])))
    loss.total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_a_positive_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"'like' is neither an action nor a numeric column .* buy, view, watched"):
        model_of(positive=["like"])


def test_without_content_lifelong_events_are_near_that_share_codes() -> None:
    model = model_of(replace(catalog_of(), content=None))
    vectors, codes = similarity_vectors(None, model.tree)[1:], model.codes[1:]
    distances = torch.cdist(vectors, vectors)
    shares_first, shares_two = (
        (codes[:, None, :count] == codes[:, :count]).all(2) & ~torch.eye(len(codes), dtype=torch.bool)
        for count in (1, 2)
    )
    others = ~(codes[:, None, 0] == codes[:, 0])
    assert distances[shares_two].mean() < distances[shares_first & ~shares_two].mean() < distances[others].mean()
    assert bool(model.recommend(batch_of(HISTORIES), 3).scores.isfinite().all())


def test_wide_content_is_projected_without_changing_what_is_near() -> None:
    model = model_of()
    wide = torch.randn(NUM_ITEMS + 1, 300, generator=torch.Generator().manual_seed(0))
    wide[2] = wide[1] + 0.1 * wide[3]
    vectors = similarity_vectors(wide, model.tree)
    assert vectors.shape == (NUM_ITEMS + 1, 32)
    assert int(torch.cdist(vectors[1:2], vectors[2:]).argmin()) == 0
