"""OneRec-V2 against a plain computation of its probabilities, its objectives, and what a search computes once."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog, ColumnEncoding
from nextitem.core.config import parse
from nextitem.core.dataset import Dataset, Users
from nextitem.core.errors import UserError
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_target import NextTargets
from nextitem.data.examples.objectives import OBJECTIVE, objective_masks
from nextitem.data.readers import dataset_from_frames
from nextitem.decoding.beam_search import beam_search
from nextitem.decoding.code_outputs import CodeOutputs
from nextitem.models.onerec_v2 import OneRecV2, OneRecV2Config
from nextitem.pipeline.steering import objectives_of, ordered_by
from nextitem.serving.engine import Engine
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

SIZES = (4, 3, 5)
NUM_ITEMS = 23
HISTORIES = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 23]]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"head": "linear"},
    {"kv_heads": 1, "separate_values": True, "kv_layers": 2, "reads": ("nodes",)},
]


def catalog_of(num_items: int = NUM_ITEMS, *, sizes: tuple[int, ...] = SIZES, **columns: Any) -> Catalog:
    generator = torch.Generator().manual_seed(3)
    codes = torch.stack([torch.randint(size, (12 * num_items,), generator=generator) for size in sizes], dim=1)
    codes = torch.unique(codes, dim=0)
    codes = codes[torch.randperm(len(codes), generator=generator)]
    ids = pl.Series("item_id", [f"i{number}" for number in range(1, num_items + 1)])
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}), **columns)
    table = IdentifierTable.from_item_codes(
        codes[:num_items], codebook_sizes=sizes, catalog_fingerprint=catalog.fingerprint
    )
    return catalog.with_identifiers(table)


def model_of(catalog: Catalog | None = None, **settings: Any) -> OneRecV2:
    torch.manual_seed(5)
    small = {"width": 8, "heads": 2, "ff_width": 12, "dropout": 0.0, "max_history_length": 6}
    model = OneRecV2(OneRecV2Config.model_validate(small | settings), catalog or catalog_of()).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the initial weights are too small to tell nodes apart
            if parameter.dim() > 1:
                parameter.mul_(10)
    model.set_popularity(torch.ones(model.num_items + 1).index_fill_(0, torch.tensor([0]), 0))
    return model


def batch_of(rows: list[list[int]], **columns: Any) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(rows), **columns)


def item_log_probs(model: OneRecV2, history: list[int], *, objective: int = 0, legal_only: bool = True) -> Tensor:
    """Return log p of every item after one history, [N + 1], each item's path read from the start.

    With `legal_only` the codes that lead to a node compete, else all codes of a level.
    """
    scale = model.config.width**0.5
    context, _ = model._context(batch_of([history[-model.config.max_history_length :]]))
    out = torch.full((model.num_items + 1,), -torch.inf)
    for item in range(1, model.num_items + 1):
        inputs, total = [scale * model.first.weight[objective]], torch.zeros(())
        for level in range(len(SIZES)):
            parent, node = int(model.tree.nodes[item, level]), int(model.tree.nodes[item, level + 1])
            if level:
                codes = int(model.trie.codes[parent])
                if isinstance(model.head, CodeOutputs):
                    inputs.append(scale * cast(Any, model.head.inputs[level - 1]).weight[codes])
                else:
                    inputs.append(scale * cast(Any, model.head.inner).weight[parent])
            hidden = model.norms[level](model.decoder(torch.stack(inputs)[None, None], context)[0][0, 0, -1])
            siblings = range(int(model.trie.first_child[parent]), int(model.trie.first_child[parent + 1]))
            if isinstance(model.head, CodeOutputs):
                by_code = model.head.outputs[level](hidden)
                logits = by_code[[int(model.trie.codes[sibling]) for sibling in siblings]]
                rest = logits if legal_only else by_code
            else:
                is_leaf = level + 1 == len(SIZES)
                rows = [int(model.tree.item_of_leaf[sibling]) if is_leaf else sibling for sibling in siblings]
                logits = (model.tokens.items.weight if is_leaf else cast(Any, model.head.inner).weight)[rows] @ hidden
                rest = logits
            total = total + logits[node - siblings.start] - rest.logsumexp(0)
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
    torch.testing.assert_close(answer.scores.exp().sum(1), torch.ones(3))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_loss_is_the_mean_over_codes_of_the_weighted_targets(settings: dict[str, Any]) -> None:
    model = model_of(target_weights=(1.0, 0.5), **settings)
    batch = batch_of([[1, 2, 3], [9, 4]], targets=Jagged.from_rows([[7, 2], [4]]))
    targets = [(1, [1, 2, 3], 7), (0.5, [1, 2, 3], 2), (1, [9, 4], 4)]
    with torch.no_grad():
        by_target = [w * item_log_probs(model, past, legal_only=False)[item] for w, past, item in targets]
        loss = model.training_loss(batch)
    torch.testing.assert_close(loss.total, -torch.stack(by_target).sum() / 2 / len(SIZES))
    torch.testing.assert_close(loss.total, torch.stack(list(loss.named.values())).mean())


def test_sampled_targets_have_the_expected_loss_of_all() -> None:
    """The mean over 4,000 copies of two requests is about the loss with all targets."""
    settings: dict[str, Any] = {"target_weights": (1.0, 0.5, 0.25)}
    batch = batch_of([[1, 2, 3], [9, 4]] * 4000, targets=Jagged.from_rows([[7, 2, 11], [4]] * 4000))
    every, sampled = (model_of(**settings, codes_after_first=which).train() for which in ("all", "sampled"))
    torch.manual_seed(1)
    with torch.no_grad():
        expected, losses = every.training_loss(batch).named, sampled.training_loss(batch).named
        torch.testing.assert_close(losses["level_1"], expected["level_1"])  # all targets share the root
        for level in ("level_2", "level_3"):
            assert losses[level] != expected[level]
            torch.testing.assert_close(losses[level], expected[level], atol=0.1, rtol=0)
        same = sampled.eval().training_loss(batch).total
    torch.testing.assert_close(same, every.training_loss(batch).total)


def test_a_search_reads_the_history_once_for_all_beams() -> None:
    model, shapes = model_of(), []

    def count(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes.append((tuple(inputs[0].shape), tuple(output.shape)))

    model.decoder.processor.register_forward_hook(count)
    model.recommend(batch_of([[1, 2, 3], [4, 5, 6]]), 10)
    assert shapes == [((2, 3, 8), (2, 1, 1, 2, 3, 4))]  # nothing is repeated for beams or layers
    state = model.start(batch_of([[1, 2, 3], [4, 5, 6]]))
    _, later = model.step(state, None)
    codes = model.trie.codes[model.tree.nodes[1:15, 1]].view(2, 7).long()  # seven beams a request
    _, last = model.step(later.reorder(torch.zeros(2, 7, dtype=torch.int64)), codes)
    assert last.shared["context"] is later.shared["context"] is state.shared["context"]
    assert len(shapes) == 2


def test_more_history_than_the_limit_is_not_read() -> None:
    model, long = model_of(), [7, 8, 1, 2, 3, 4, 5, 6]
    first, second = model.recommend(batch_of([long]), 5), model.recommend(batch_of([long[2:]]), 5)
    assert torch.equal(first.item_ids, second.item_ids)
    assert torch.equal(first.scores, second.scores)


def test_after_an_item_the_next_one_begins_and_steps_have_gradients() -> None:
    model = model_of()
    state = model.start(batch_of([[1, 2, 3]]))
    logits, state = model.step(state, None)
    first = logits
    for level in range(3):
        _, state = model.step(state, model.tree.codes[4, level].long().view(1, 1)) if level < 2 else (None, state)
    again, state = model.step(state, model.tree.codes[4, 2].long().view(1, 1))
    torch.testing.assert_close(again, first)  # the root, after a whole item
    deeper, _ = model.step(state, model.tree.codes[5, 0].long().view(1, 1))
    deeper[deeper > -torch.inf].sum().backward()
    assert model.decoder.processor.projection.weight.grad is not None
    assert float(model.decoder.processor.projection.weight.grad.abs().sum()) > 0
    lists = beam_search(model, batch_of([[1, 2, 3]]), model.trie, k=4, beam_width=6, items_per_list=4)
    assert len(set(lists.item_ids[0].tolist())) == 4


def test_items_without_events_come_last_and_the_linear_head_generates_them() -> None:
    counts = torch.ones(NUM_ITEMS + 1)
    counts[[0, 20, 21]] = 0
    by_node, linear = model_of(), model_of(head="linear")
    for model in (by_node, linear):
        model.set_popularity(counts)
    assert by_node.recommend(batch_of([[1, 2]]), NUM_ITEMS).item_ids[0, -2:].tolist() == [20, 21]
    assert not by_node.can_rank_unseen_items
    assert linear.can_rank_unseen_items
    answer = linear.recommend(batch_of([[1, 2]]), NUM_ITEMS)
    assert torch.isfinite(answer.scores).all()
    assert answer.item_ids[0, -2:].tolist() != [20, 21]
    own = by_node.tokens.items.weight.detach().clone()
    with torch.no_grad():
        by_node.tokens.items.weight[20] = 100.0  # never trained, so never read
    first = by_node.recommend(batch_of([[1, 20]]), 5)
    with torch.no_grad():
        by_node.tokens.items.weight.copy_(own)
    assert torch.equal(first.scores, by_node.recommend(batch_of([[1, 20]]), 5).scores)


def test_the_user_is_a_context_token() -> None:
    countries = ColumnEncoding("categorical", pl.Series(["FR", "NL"]))
    hobbies = ColumnEncoding("categorical-list", pl.Series(["chess", "golf"]))
    catalog = catalog_of(
        requests={"user.country": countries, "user.hobbies": hobbies, "price": ColumnEncoding("numeric")}
    )
    model = model_of(catalog)

    def scores(country: int, codes: list[int]) -> Tensor:
        context = {"user.country": torch.tensor([country]), "user.hobbies": Jagged.from_rows([codes])}
        return model.recommend(batch_of([[1, 2]], context=context), 5).scores

    assert model._context(batch_of([[1, 2]]))[0].shape[4] == 3
    assert not torch.equal(scores(1, [1]), scores(2, [1]))
    assert not torch.equal(scores(1, [1]), scores(1, [1, 2]))
    unknown = model.recommend(batch_of([[1, 2]]), 5).scores
    assert torch.equal(scores(0, []), unknown)
    assert model_of(catalog, user_features=False)._context(batch_of([[1, 2]]))[0].shape[4] == 2
    assert model_of().tokens.user is None  # a catalogue without features of users


def test_a_mixture_of_experts_adds_its_balance_loss() -> None:
    experts = {"num_experts": 4, "top_k": 2, "balance": "loss", "balance_weight": 0.1}
    model = model_of(experts=experts, target_weights=(1.0, 0.5)).train()
    loss = model.training_loss(batch_of([[1, 2, 3], [9, 4]], targets=Jagged.from_rows([[7, 2], [4]])))
    levels = torch.stack([value for name, value in loss.named.items() if name.startswith("level")])
    torch.testing.assert_close(loss.total, levels.mean() + loss.named["balance"])
    assert float(loss.named["balance"]) > 0


SEGMENTS = 4


def two_objectives(*, users: int = 120, seed: int = 0) -> Dataset:
    """Return a log in which a user of segment s clicks items 1 + 4s .. 4 + 4s and buys items 17 + 2s, 18 + 2s."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for place in range(10):
            is_purchase, segment = place % 3 == 2, user % SEGMENTS
            item = 17 + 2 * segment + rng.integers(2) if is_purchase else 1 + 4 * segment + rng.integers(4)
            action = "purchase" if is_purchase else "click"
            rows.append((f"u{user}", f"i{item:02d}", 1_600_000_000 + 60 * place, action, int(is_purchase)))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "action", "bought"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{number:02d}" for number in range(1, 25)]})
    settings = {"interactions": {"labels": ["bought"]}}
    data = dataset_from_frames({"interactions": frame, "items": items}, settings, name="two-objectives")
    numbers = torch.from_numpy(data.catalog.ids.lookup(items["item_id"].to_list())).long()
    assert torch.equal(numbers, torch.arange(1, 25))
    codes = torch.stack([torch.arange(24) // 5, torch.arange(24) % 5], dim=1).int()
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=(5, 5), catalog_fingerprint=data.catalog.fingerprint)
    return data.with_catalog(data.catalog.with_identifiers(table))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[OneRecV2, Dataset]:
    data = two_objectives()
    torch.manual_seed(0)
    small = {"width": 16, "heads": 2, "ff_width": 32, "dropout": 0.0, "max_history_length": 6}
    model = OneRecV2(OneRecV2Config(**small, objectives=("click", "purchase")), data.catalog)
    model.set_popularity_from(data)
    settings = TrainingConfig(max_epochs=5, batch_size=64, learning_rate=1e-2)
    fit(model, model.examples(data), settings, seed=0, progress=False)
    return model.eval(), data


def test_each_objective_lists_what_fulfils_it(learned: tuple[OneRecV2, Dataset]) -> None:
    """In a segment four items are clicked and two bought: the list of an objective has those, the other's none."""
    model, _ = learned
    segments = torch.arange(SEGMENTS)
    batch = batch_of([[1 + 4 * segment, 17 + 2 * segment, 2 + 4 * segment] for segment in range(SEGMENTS)])
    clicked = ordered_by(model, "click").recommend(batch, 4)
    bought = ordered_by(model, "purchase").recommend(batch, 2)
    assert torch.equal(clicked.item_ids.sort(1).values, 1 + 4 * segments[:, None] + torch.arange(4))
    assert torch.equal(bought.item_ids.sort(1).values, 17 + 2 * segments[:, None] + torch.arange(2))
    default = model.recommend(batch, 4)  # the first objective
    assert torch.equal(default.item_ids, clicked.item_ids)
    assert torch.equal(model.recommend(batch, 4).scores, default.scores)  # the model itself stays as it was
    assert objectives_of(model) == ("click", "purchase")
    with pytest.raises(UserError, match="no objective is called 'love'; there are click, purchase"):
        ordered_by(model, "love")
    assert objectives_of(model_of()) == ()
    with pytest.raises(UserError, match="OneRecV2 has none; remove it"):
        ordered_by(model_of(), "click")


def test_a_request_names_the_objective_that_orders_its_list(learned: tuple[OneRecV2, Dataset]) -> None:
    model, data = learned
    history = tuple(HistoryEvent(item) for item in ("i01", "i17", "i02"))
    names = [None, "purchase", "click", "love"]
    requests = [ServedRequest(history=history, k=2, objective=name, exclude_seen=False) for name in names]
    answers = Engine(model, data).recommend(requests)
    default, bought, clicked, wrong = answers
    assert {*cast(Any, bought).item_ids} == {"i17", "i18"}
    assert {*cast(Any, clicked).item_ids} < {"i01", "i02", "i03", "i04"}
    assert cast(Any, default).item_ids == cast(Any, clicked).item_ids
    assert isinstance(wrong, UserError)


def test_examples_have_the_number_of_their_objective() -> None:
    data = two_objectives(users=4)
    masks = objective_masks(data, ["purchase", "bought", "click"])
    assert masks.sum(0).tolist() == [12, 12, 28]
    assert np.array_equal(masks[:, 0], masks[:, 1])  # an action and a label that say the same
    examples = NextTargets(data.interactions, max_length=4, num_targets=3, objectives=masks)
    rows = []
    for batch in examples.batches(8, epoch=0, seed=0):
        assert batch.targets is not None
        items = batch.targets.to_padded()
        is_bought = (items > 16) | (items == 0)
        objectives = batch.context[OBJECTIVE]
        assert bool(torch.where(objectives[:, None] < 2, is_bought, (items <= 16)).all())
        assert bool((items[:, 0] > 0).all())
        rows += list(zip(objectives.tolist(), items[:, 0].tolist(), strict=True))
    assert len(rows) == 12 + 12 + 28 - 4  # nothing precedes the first click of a user


def test_a_stream_trains_every_target_once_by_time() -> None:
    data = two_objectives(users=6)
    model = OneRecV2(OneRecV2Config(order="time", objectives=("click", "purchase")), data.catalog)
    lengths, count = [], 0
    for batch in model.examples(data).batches(7, epoch=3, seed=9):
        lengths += batch.items.lengths.tolist()
        count += batch.num_requests
    assert count == 6 * 9
    assert lengths == sorted(lengths)  # each user has one event at each time
    idle = OneRecV2Config(order="time", targets_per_epoch=5).idle_fields()
    assert idle["targets_per_epoch"] == "order is time"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ["click", "click"]}, "name each objective once"),
        ({"objectives": ["click"], "objective": "buy"}, "'buy' is none of objectives"),
        ({"reads": []}, "reads"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(OneRecV2Config, settings, where="[model]")


def test_an_objective_without_an_event_is_explained() -> None:
    data = two_objectives(users=3)
    with pytest.raises(UserError, match=r"'love' is neither .* actions click, purchase; labels bought"):
        objective_masks(data, ["click", "love"])
    log = data.interactions
    only_clicks = Interactions(
        log.user_ids, log.item_ids, log.num_users, log.num_items, positive=(log.item_ids <= 16), columns=log.columns
    )
    with pytest.raises(UserError, match="no training event of 'purchase' may be a target"):
        objective_masks(data.with_interactions(only_clicks), ["purchase"])
    plain = Dataset(
        "plain",
        Interactions(np.ones(2, np.int32), np.ones(2, np.int32), 1, 24),
        data.catalog,
        Users(IdMap(pl.Series(["u"]))),
    )
    with pytest.raises(UserError, match="there are no actions; no labels"):
        objective_masks(plain, ["click"])
