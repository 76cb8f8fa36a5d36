"""Tests of TIGER against transformers' T5 with equal weights, against exhaustive scoring, and of published sizes."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import polars as pl
import pytest
import torch
from support.t5_peer import DictTrie, as_transformers, encoder_inputs, generate
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.models.tiger import Tiger, TigerConfig
from nextitem.nn.attention.t5 import DecoderLayer
from nextitem.testing.known_answers import cycle

SIZES = (16, 12, 16, 8)


def catalog_of(items: int = 150, sizes: tuple[int, ...] = SIZES, *, unique: bool = True) -> Catalog:
    generator = torch.Generator().manual_seed(3)
    codes = torch.stack([torch.randint(size, (4 * items,), generator=generator) for size in sizes], dim=1)
    if unique:
        codes = torch.unique(codes, dim=0)
        codes = codes[torch.randperm(len(codes), generator=generator)]
    ids = pl.Series("item_id", range(items))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    table = IdentifierTable.from_item_codes(
        codes[:items], codebook_sizes=sizes, catalog_fingerprint=catalog.fingerprint
    )
    return catalog.with_identifiers(table)


def tiger(catalog: Catalog | None = None, **settings: object) -> Tiger:
    torch.manual_seed(5)
    small = {"width": 32, "heads": 2, "head_width": 8, "ff_width": 48}
    return Tiger(TigerConfig.model_validate(small | settings), catalog or catalog_of()).eval()


def requests(*histories: list[int], users: list[int] | None = None) -> SequenceBatch:
    user_ids = None if users is None else torch.tensor(users)
    return SequenceBatch(Jagged.from_rows(histories), user_ids=user_ids)


HISTORIES = ([1, 2, 3], [4], [5, 6, 7, 8, 9, 150])


def code_log_probs(model: Tiger, batch: SequenceBatch) -> Tensor:
    """Return log p of every item, [B, N + 1], each scored by itself without caches."""
    rows = []
    for row in range(batch.num_requests):
        repeated = batch.select(torch.full((model.num_items,), row))
        hidden = model._decode(model._shared(repeated), model.codes[1:, :-1])
        total = torch.zeros(model.num_items)
        for level, (start, size) in enumerate(zip(model.code_offsets, model.sizes, strict=True)):
            logits = hidden[:, level] @ model.output.weight[start : start + size].T
            total += logits.log_softmax(1).gather(1, model.codes[1:, level, None])[:, 0]
        rows.append(F.pad(total, (1, 0), value=-torch.inf))
    return torch.stack(rows)


@torch.no_grad()
def test_encoder_and_decoder_equal_t5() -> None:
    model = tiger(encoder_layers=3, decoder_layers=2)
    peer, batch = as_transformers(model), requests(*HISTORIES)
    inputs = encoder_inputs(model, batch)
    encoded = model._encode(batch)[0]
    is_real = inputs["attention_mask"].bool()
    expected = peer.encoder(**inputs).last_hidden_state
    torch.testing.assert_close(encoded[is_real], expected[is_real], rtol=1e-4, atol=1e-4)

    codes = model.codes[[10, 20, 30], :-1]
    tokens = F.pad(codes + torch.tensor(model.code_offsets[:-1]), (1, 0), value=model.first_input)
    logits = peer(**inputs, decoder_input_ids=tokens).logits[..., : model.first_input]
    ours = model._decode(model._shared(batch), codes) @ model.output.weight.T
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_the_search_equals_generate_of_transformers() -> None:
    model = tiger(beam_width=6)
    batch, trie = requests(*HISTORIES), DictTrie(model)
    sequences, scores = generate(as_transformers(model), model, trie, batch, 6)
    answer = model.recommend(batch, 6)
    expected = [[trie.items[tuple(sequence)][0] for sequence in row] for row in sequences.tolist()]
    assert answer.item_ids.tolist() == expected
    torch.testing.assert_close(answer.scores, scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_beam_of_full_width_equals_exhaustive_scoring() -> None:
    model = tiger()
    batch = requests(*HISTORIES)
    scores, items = code_log_probs(model, batch).sort(dim=1, descending=True, stable=True)
    answer = model.recommend(batch, model.num_items)
    assert torch.equal(answer.item_ids, items[:, :-1])
    torch.testing.assert_close(answer.scores, scores[:, :-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_probabilities_of_all_items_sum_to_at_most_one() -> None:
    total = code_log_probs(tiger(), requests(*HISTORIES)).exp().sum(1)
    assert bool((total <= 1 + 1e-5).all())
    # If every code sequence is an item, the sum is one.
    ids = pl.Series("item_id", range(12))
    catalog = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    full = IdentifierTable.from_item_codes(codes, codebook_sizes=(3, 4), catalog_fingerprint=catalog.fingerprint)
    complete = code_log_probs(tiger(catalog.with_identifiers(full)), requests([1, 2], [3])).exp().sum(1)
    torch.testing.assert_close(complete, torch.ones(2))


@torch.no_grad()
def test_cached_steps_equal_one_pass_without_caches() -> None:
    model = tiger()
    batch = requests(*HISTORIES)
    codes = torch.randint(8, (3, 4, 3), generator=torch.Generator().manual_seed(1))  # [B, W, M - 1]
    logits, state = model.step(model.start(batch), None)
    stepped = [logits.expand(-1, 4, -1)]
    state = state.reorder(torch.zeros((3, 4), dtype=torch.int64))
    order = torch.tensor([2, 0, 3, 1])
    for level in range(3):
        logits, state = model.step(state, codes[:, :, level])
        # Beams are reordered between steps; so are their caches.
        state, codes = state.reorder(order.expand(3, -1)), codes[:, order]
        stepped = [
            logits_at_level[:, order] if logits_at_level.shape[1] == 4 else logits_at_level
            for logits_at_level in [*stepped, logits]
        ]
    for beam in range(4):
        hidden = model._decode(model._shared(batch), codes[:, beam])
        for level, (start, size) in enumerate(zip(model.code_offsets, model.sizes, strict=True)):
            expected = hidden[:, level] @ model.output.weight[start : start + size].T
            torch.testing.assert_close(stepped[level][:, beam], expected, rtol=1e-4, atol=1e-4)


def test_the_encoder_runs_once_and_its_output_is_not_copied_per_beam() -> None:
    model = tiger()
    state = model.start(requests(*HISTORIES))
    assert all(value.numel() == 0 for value in state.beams.values())
    assert {value.shape[0] for value in state.shared.values()} == {3}
    after = model.step(state, None)[1].reorder(torch.zeros((3, 7), dtype=torch.int64))
    assert all(after.shared[name] is value for name, value in state.shared.items())
    assert all(value.shape[:2] == (3, 7) for value in after.beams.values())


@torch.no_grad()
def test_two_codes_at_once_equal_one_after_the_other() -> None:
    model = tiger()
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(size, (3, 5), generator=generator) for size in model.sizes[:3]], dim=2)
    start = model.step(model.start(requests(*HISTORIES)), None)[1].reorder(torch.zeros((3, 5), dtype=torch.int64))
    second, state = model.step(start, codes[..., 0])
    third, state = model.step(state, codes[..., 1])
    fourth, _ = model.step(state, codes[..., 2])
    together, state = model.steps(start, codes[..., :2])
    for together_logits, expected in zip(together, (second, third), strict=True):
        torch.testing.assert_close(together_logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.step(state, codes[..., 2])[0], fourth, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_loss_is_the_mean_cross_entropy_of_the_codes() -> None:
    model = tiger()
    targets = torch.tensor([17, 90, 3])
    history_batch = requests(*HISTORIES)
    batch = SequenceBatch(history_batch.items, targets=Jagged.from_rows([[17], [90], [3]]))
    log_p = code_log_probs(model, history_batch).gather(1, targets[:, None])
    terms = model.training_loss(batch)
    torch.testing.assert_close(terms.total, -log_p.mean() / 4, rtol=1e-4, atol=1e-5)
    assert sorted(terms.named) == ["level_1", "level_2", "level_3", "level_4"]


WEIGHTS = (1.0, 0.5, 0.25)
LATER_TARGETS = ([17, 4, 9], [90, 0, 5], [3])  # 0: an event that may not be a target


def training_batch(*targets: list[int]) -> SequenceBatch:
    return SequenceBatch(requests(*HISTORIES).items, targets=Jagged.from_rows(targets))


@torch.no_grad()
def test_the_loss_of_several_targets_is_the_weighted_sum_of_separate_decodes() -> None:
    model = tiger(target_weights=WEIGHTS)
    log_p = code_log_probs(model, requests(*HISTORIES))
    terms = [
        weight * log_p[row, item]
        for row, items in enumerate(LATER_TARGETS)
        for weight, item in zip(WEIGHTS, items, strict=False)
        if item
    ]
    total = model.training_loss(training_batch(*LATER_TARGETS)).total
    torch.testing.assert_close(total, -torch.stack(terms).sum() / 3 / 4, rtol=1e-4, atol=1e-5)


def test_gradients_of_several_targets_are_those_of_separate_examples() -> None:
    """Each target as an example of its own, with the same encoder input, has the same gradient by its weight."""
    several, plain = tiger(dropout=0.0, target_weights=WEIGHTS).train(), tiger(dropout=0.0).train()
    plain.load_state_dict(several.state_dict())
    several.training_loss(training_batch(*LATER_TARGETS)).total.backward()
    for lag, weight in enumerate(WEIGHTS):
        rows = [row for row, items in enumerate(LATER_TARGETS) if lag < len(items) and items[lag]]
        targets = Jagged.from_rows([[LATER_TARGETS[row][lag]] for row in rows])
        separate = replace(requests(*HISTORIES).select(torch.tensor(rows)), targets=targets)
        (weight * len(rows) / 3 * plain.training_loss(separate).total).backward()
    for (name, parameter), expected in zip(several.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_all_targets_of_a_request_share_one_encoding() -> None:
    model = tiger(target_weights=WEIGHTS).train()
    layers: list[tuple[str, nn.Module]] = [(f"encoder {n}", layer) for n, layer in enumerate(model.encoder)]
    for number, layer in enumerate(model.decoder):
        assert isinstance(layer, DecoderLayer)
        layers.append((f"keys {number}", layer.cross.key_value))
    read_rows: dict[str, list[int]] = {}
    for name, layer in layers:
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: read_rows.setdefault(name, []).append(len(inputs[0]))
        )
    model.training_loss(training_batch(*LATER_TARGETS)).total.backward()
    assert read_rows == {name: [3] for name in ("encoder 0", "encoder 1", "keys 0", "keys 1")}


@torch.no_grad()
def test_no_sequence_reads_a_later_code_or_another_target() -> None:
    model = tiger()
    shared = model._shared(requests(*HISTORIES))
    codes = model.codes[[17, 4, 90, 5, 3, 9], :-1]  # two sequences for each of three requests
    hidden = model._decode(shared, codes)
    changed = codes.clone()
    changed[1::2] = (changed[1::2] + 1) % 8  # all of each second sequence
    changed[::2, 2] = (changed[::2, 2] + 1) % 8  # the last code of each first one
    after = model._decode(shared, changed)
    torch.testing.assert_close(after[::2, :3], hidden[::2, :3])
    assert not torch.allclose(after[::2, 3], hidden[::2, 3])


def test_parts_of_a_batch_with_several_targets_add_up_to_it() -> None:
    """As in training in several processes; no row of the last part has as many targets as one of the others."""
    whole, parts = (tiger(dropout=0.0, target_weights=WEIGHTS).train() for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    batch = training_batch(*LATER_TARGETS)
    loss = whole.training_loss(batch).total
    loss.backward()
    for count in (2, 3):
        parts.zero_grad()
        shares = [batch.share(rank, count) for rank in range(count)]
        losses = [parts.training_loss(part).total * part.loss_count / batch.loss_count for part in shares]
        torch.testing.assert_close(torch.stack(losses).sum(), loss)
        torch.stack(losses).sum().backward()
        for parameter, expected in zip(parts.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_examples_have_as_many_targets_as_there_are_weights() -> None:
    dataset = cycle()  # item i is followed by i + 1, and item 12 by 1
    batch = next(iter(tiger(target_weights=WEIGHTS).examples(dataset).batches(64, epoch=0, seed=0)))
    assert batch.targets is not None
    assert int(batch.targets.lengths.max()) == 3
    for history, targets in zip(batch.items.to_lists(), batch.targets.to_lists(), strict=True):
        assert targets == [(history[-1] + lag) % 12 + 1 for lag in range(len(targets))]


def test_padding_and_old_events_change_nothing() -> None:
    model = tiger(max_history_length=3)
    together = model.recommend(requests([7, 8, 9, 1, 2, 3], [4]), 5)
    for row, history in enumerate(([1, 2, 3], [4])):
        alone = model.recommend(requests(history), 5)
        assert alone.item_ids.tolist() == together.item_ids[row : row + 1].tolist()
        torch.testing.assert_close(alone.scores[0], together.scores[row], rtol=1e-4, atol=1e-4)


def test_the_order_of_the_history_changes_scores() -> None:
    model = tiger()
    answer = model.recommend(requests([1, 2, 3], [3, 2, 1]), 5)
    assert not torch.equal(answer.scores[0], answer.scores[1])


def test_user_tokens_are_hashed_and_visitors_have_a_separate_one() -> None:
    model = tiger(user_buckets=4)
    batch = requests(*[[1, 2]] * 6, users=[1, 2, 3, 4, 0, 1])
    tokens = model._user_tokens(batch) - model.first_input - 1
    assert int(tokens[4]) == 0
    assert bool(((tokens[:4] >= 1) & (tokens[:4] <= 4)).all())
    assert len(tokens[:4].unique()) > 1
    scores = model.recommend(batch, 3).scores
    torch.testing.assert_close(scores[0], scores[5])
    assert not torch.allclose(scores[0], scores[4])
    anonymous = model.recommend(requests([1, 2]), 3).scores
    torch.testing.assert_close(anonymous[0], scores[4])


def test_items_that_share_a_sequence_are_all_returned() -> None:
    model = tiger(catalog_of(40, (2, 2), unique=False), beam_width=2)
    answer = model.recommend(requests([1, 2]), 40)
    assert sorted(answer.item_ids[0].tolist()) == list(range(1, 41))


def test_a_catalogue_without_identifiers_raises() -> None:
    ids = pl.Series("item_id", [1])
    with pytest.raises(ValueError, match="nextitem tokenize"):
        Tiger(TigerConfig(), Catalog(IdMap(ids), pl.DataFrame({"item_id": ids})))


@pytest.mark.parametrize(
    ("settings", "layers_size", "total_size"),
    [
        # Plain T5 has about 4.8 million parameters; two readings reach the paper's 13 million.
        ({}, 4_459_648, 4_978_048),
        ({"ff_layers": 2}, 12_848_256, 13_366_656),
        ({"width": 384}, 13_378_176, 14_933_376),
    ],
)
def test_sizes_are_those_published(settings: dict[str, int], layers_size: int, total_size: int) -> None:
    published = {"width": 128, "heads": 6, "head_width": 64, "ff_width": 1024, "user_buckets": 2000}
    published |= {"encoder_layers": 4, "decoder_layers": 4}
    model = tiger(catalog_of(sizes=(256,) * 4), **(published | settings))
    tables = model.tokens.weight.numel() + model.output.weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (total - tables, total) == (layers_size, total_size)


def _versions() -> tuple[Catalog, Catalog]:
    """Return a catalogue of 60 items, and a later version with 80 items."""
    later = catalog_of(80)
    table = later.identifiers
    assert table is not None
    ids = later.ids.external.head(60)
    first = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    part = IdentifierTable(table.codes[:61], table.codebook_sizes, first.fingerprint)
    return first.with_identifiers(part), later


def test_a_model_of_a_later_catalogue_answers_as_one_built_for_it() -> None:
    first, later = _versions()
    model, fresh = tiger(first), tiger(later)
    fresh.load_state_dict(
        {name: part for name, part in model.state_dict().items() if name != "popularity"}, strict=False
    )
    is_live = torch.ones(81, dtype=torch.bool)
    is_live[[5, 61]] = False
    model, former = model.with_catalog(later, live=is_live), model
    assert (model.num_items, former.num_items) == (80, 60)
    assert model.tokens is former.tokens
    batch = requests([1, 2, 3], [70, 62])
    allowed = fresh.recommend(replace(batch, allowed=is_live[None]), 80)
    answer = model.recommend(batch, 80)
    assert torch.equal(answer.item_ids, allowed.item_ids)
    assert not bool(torch.isin(answer.item_ids, torch.tensor([5, 61])).any())
    empty = model.recommend(requests([]), 80)  # popularity does not return removed items, either
    assert sorted(empty.item_ids[0].tolist()) == [0, 0, *(item for item in range(1, 81) if is_live[item])]
    model.set_popularity(torch.arange(81.0))
    model = model.with_catalog(later, live=is_live).with_catalog(later)  # restored items have their former popularity
    assert int(model.popularity[5]) == 5
    assert model.recommend(requests([]), 80).item_ids[0].tolist() == list(range(80, 0, -1))
    assert int((model.recommend(batch, 80).item_ids > 0).sum()) == 160


def test_catalogues_that_are_no_later_version_raise() -> None:
    first, later = _versions()
    model = tiger(later)
    ids, table = pl.Series("item_id", range(1, 81)), later.identifiers
    assert table is not None
    renamed = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    renamed = renamed.with_identifiers(replace(table, catalog_fingerprint=renamed.fingerprint))
    with pytest.raises(ValueError, match="begin with the model's items"):  # the same codes for other items
        model.with_catalog(renamed)
    with pytest.raises(ValueError, match="begin with the model's items"):
        model.with_catalog(first)
    with pytest.raises(ValueError, match="begin with the model's items"):
        model.with_catalog(catalog_of(90, (16, 12, 16, 9)))


def test_no_request_fails_while_the_catalogue_changes() -> None:
    """Every request is answered by the version that it began with, with and without filters."""
    first, later = _versions()
    start = tiger(first, width=16)
    start.set_popularity((torch.arange(61) > 30).float())  # half of the items are new
    start.config = start.config.model_copy(update={"new_items": 0.3})
    is_odd = torch.arange(81) % 2 == 1
    is_odd[0] = False
    versions = [start, start.with_catalog(later), start.with_catalog(later, live=is_odd)]
    service = {"model": start}
    stop, errors, request_numbers, answer_numbers = threading.Event(), [], [], []

    def send_requests(number: int) -> None:
        while not stop.is_set():
            request_numbers.append(number)
            model = service["model"]
            time.sleep(0)  # another thread may change the catalogue here, or anywhere below
            allowed = torch.arange(model.num_items + 1) % 4 != 1 if number == 1 else None
            batch = SequenceBatch(
                Jagged.from_rows([[1 + number, 2], [3], []]),
                excluded=Jagged.from_rows([[1], [], [7]]),
                allowed=None if allowed is None else allowed[None],
            )
            is_legal = torch.isin(torch.arange(model.num_items + 1), model.trie.items)
            is_legal &= True if allowed is None else allowed
            answer = model.recommend(batch, 5)
            errors.extend(
                answer.item_ids[answer.item_ids > 0][~is_legal[answer.item_ids[answer.item_ids > 0]]].tolist()
            )
            errors.extend(row for row in (answer.item_ids > 0).sum(1).tolist() if row != 5)
            answer_numbers.append(number)

    threads = [threading.Thread(target=send_requests, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(40):
        service["model"] = versions[turn % 3]
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(answer_numbers) == sorted(
        request_numbers
    )  # no request raised an error either, which a thread does not pass on
    assert set(answer_numbers) == {0, 1, 2}


def test_new_items_fill_at_most_their_share_of_a_list() -> None:
    model = tiger(catalog_of(60))
    model.set_popularity((torch.arange(61) > 30).float())  # items 1 .. 30 are new
    unlimited = model.recommend(requests([40, 41]), 10).item_ids[0]
    assert 0 < int((unlimited <= 30).sum()) < 10
    for share, max_count in ((0.0, 0), (0.1, 1), (0.35, 3)):
        model.config = model.config.model_copy(update={"new_items": share})
        item_ids = model.recommend(requests([40, 41]), 10).item_ids[0]
        assert int(((item_ids > 0) & (item_ids <= 30)).sum()) <= max_count
        assert int((item_ids > 0).sum()) == 10


def test_scheduled_sampling_changes_training_alone() -> None:
    plain, scheduled = tiger(dropout=0.0), tiger(dropout=0.0, scheduled_sampling=0.5)
    scheduled.load_state_dict(plain.state_dict())
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [3, 4, 5], [6]] * 8), targets=Jagged.from_rows([[7], [8], [9]] * 8))
    torch.testing.assert_close(scheduled.training_loss(batch).total, plain.training_loss(batch).total)
    scheduled.train(), plain.train()
    torch.manual_seed(0)
    terms, plain_terms = scheduled.training_loss(batch), plain.training_loss(batch)
    torch.testing.assert_close(
        terms.named["level_1"], plain_terms.named["level_1"]
    )  # no code comes before the first level
    assert float(terms.named["level_2"]) != float(plain_terms.named["level_2"])
    terms.total.backward()
    assert scheduled.output.weight.grad is not None
    assert bool(torch.isfinite(scheduled.output.weight.grad).all())


def test_scheduled_sampling_of_several_targets_reads_no_absent_one() -> None:
    model = tiger(dropout=0.0, scheduled_sampling=0.9, target_weights=(1.0, 0.5)).train()
    plain = tiger(dropout=0.0, target_weights=(1.0, 0.5)).train()
    plain.load_state_dict(model.state_dict())
    batch = training_batch([17, 4], [90, 0], [3])
    torch.manual_seed(0)
    terms, plain_terms = model.training_loss(batch), plain.training_loss(batch)
    torch.testing.assert_close(terms.named["level_1"], plain_terms.named["level_1"])
    assert float(terms.named["level_2"]) != float(plain_terms.named["level_2"])
    terms.total.backward()
    assert all(bool(torch.isfinite(part.grad).all()) for part in model.parameters() if part.grad is not None)


def test_the_beam_aware_loss_compares_the_next_event_alone() -> None:
    model = tiger(dropout=0.0, beam_aware=2.0, training_beam=6, target_weights=(1.0, 0.5)).train()
    one = model.training_loss(training_batch([17], [90], [3])).named["beam"]
    torch.testing.assert_close(model.training_loss(training_batch([17, 4], [90, 0], [3])).named["beam"], one)


def test_the_beam_aware_loss_compares_a_target_with_prefixes_in_the_beam() -> None:
    """With a beam as wide as the catalogue each level's loss is a softmax over all its prefixes."""
    model = tiger(dropout=0.0, beam_aware=2.0, training_beam=200).train()
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [3, 4, 5]]), targets=Jagged.from_rows([[7], [8]]))
    terms = model.training_loss(batch)
    assert model.training
    expected = []
    for row, target in enumerate([7, 8]):
        repeated = batch.select(torch.full((model.num_items,), row))
        logits = model._all_logits(model._decode(model._shared(repeated), model.codes[1:, :-1]))
        steps = [
            level_logits.log_softmax(1).gather(1, model.codes[1:, level, None])
            for level, level_logits in enumerate(logits)
        ]
        for depth, scores in enumerate(torch.cat(steps, 1).cumsum(1).unbind(1), start=1):
            prefixes = {
                tuple(codes[:depth]): row_of_prefix for row_of_prefix, codes in enumerate(model.codes[1:].tolist())
            }
            expected.append(scores[list(prefixes.values())].logsumexp(0) - scores[target - 1])
    torch.testing.assert_close(terms.named["beam"], torch.stack(expected).mean().detach())
    codes = torch.stack([value for name, value in terms.named.items() if name.startswith("level")]).mean()
    torch.testing.assert_close(terms.total.detach(), codes + 2 * terms.named["beam"])


def test_beam_aware_training_lowers_its_loss() -> None:
    model = tiger(dropout=0.0, beam_aware=1.0, training_beam=2).train()
    batch = SequenceBatch(Jagged.from_rows([[1, 2], [3, 4, 5]]), targets=Jagged.from_rows([[7], [8]]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        terms = model.training_loss(batch)
        terms.total.backward()
        optimizer.step()
        losses.append(float(terms.named["beam"]))
    assert losses[-1] < 0.7 * losses[0]


def test_initial_weights_are_those_of_transformers_t5() -> None:
    """The output layer is T5X's: the library scales the output of an untied T5 by 1."""
    model = tiger(width=96, heads=4, head_width=24, ff_width=192)
    ours = as_transformers(model)
    fresh = dict(type(ours)(ours.config).named_parameters())
    num_compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.dim() == 2 and not name.startswith("lm_head"):
            tolerance = 0.3 if "relative_attention_bias" in name else 0.1
            assert float(parameter.std()) == pytest.approx(float(fresh[name].std()), rel=tolerance), name
            num_compared += 1
    assert num_compared > 20
    assert float(model.output.weight.std()) == pytest.approx(96**-0.5, rel=0.1)
