"""Tests of SASRec: the published block by hand, no leak from the future, no effect of padding."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from support.fixed_recommender import shop
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.negatives import Negatives, sample_negatives
from nextitem.losses.contrastive import contrastive
from nextitem.losses.objectives import BCE, GBCE, FullSoftmax, SampledSoftmax
from nextitem.losses.sampled_softmax import sampled_softmax
from nextitem.models.sasrec import SASRec, SASRecConfig
from nextitem.nn.attention.transformer import BLOCKS, PublishedBlock
from nextitem.pipeline.runs import load_run
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import build, cycle
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit


def tiny() -> Dataset:
    return build([[1, 2, 3, 4, 5], [3, 1]], [f"t{n}" for n in range(8)], name="tiny")


Objective = FullSoftmax | SampledSoftmax | BCE | GBCE
OBJECTIVES: list[Objective] = [
    FullSoftmax(),
    SampledSoftmax(num_negatives=8),
    BCE(num_negatives=8),
    GBCE(num_negatives=8),
]


def model_of(dataset: Dataset, **settings: object) -> SASRec:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(**{"width": 8, "max_history_length": 6, **settings}), dataset.catalog)
    with torch.no_grad():  # larger than at initialisation, so that differences are visible
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def requests(histories: list[list[int]]) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories))


@pytest.mark.parametrize("block", BLOCKS)
def test_the_future_never_leaks(block: str) -> None:
    model = model_of(tiny(), block=block, layers=2)
    hidden = model.encoder._padded(Jagged.from_rows([[1, 2, 3, 4], [5, 6, 7, 8]]), model._embed)
    changed = model.encoder._padded(Jagged.from_rows([[1, 2, 8, 1], [5, 6, 1, 1]]), model._embed)
    assert torch.equal(hidden[:, :2], changed[:, :2])
    assert not torch.equal(hidden[:, 2:], changed[:, 2:])


@pytest.mark.parametrize("block", BLOCKS)
def test_padding_changes_nothing(block: str) -> None:
    model = model_of(tiny(), block=block, layers=2)
    alone = model.user_vectors(requests([[3, 1]]))
    beside = model.user_vectors(requests([[3, 1], [1, 2, 3, 4, 5]]))[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-6)


def test_only_the_latest_events_are_read() -> None:
    model = model_of(tiny())
    long = model.user_vectors(requests([[7, 8, 7, 1, 2, 3, 4, 5, 6]]))
    assert torch.equal(long, model.user_vectors(requests([[1, 2, 3, 4, 5, 6]])))


def test_the_contrastive_term_is_added_and_logged() -> None:
    dataset = tiny()
    plain, added = (
        model_of(dataset, objective={"num_negatives": 3}, contrastive=term) for term in (None, {"weight": 0.5})
    )
    batch = next(iter(plain.examples(dataset).batches(2, epoch=0, seed=0)))
    alone, terms = plain.training_loss(batch), added.training_loss(batch)
    assert not alone.named
    assert torch.equal(terms.named["next_item"], alone.total)
    assert float(terms.named["contrastive"]) > 0
    torch.testing.assert_close(terms.total, alone.total + 0.5 * terms.named["contrastive"])
    terms.total.backward()
    gradient = added.get_parameter("encoder.blocks.0.down.weight").grad
    assert gradient is not None
    assert bool(gradient.any())
    assert torch.equal(added.training_loss(batch).total, terms.total)


def test_equal_views_have_the_contrastive_loss_of_equal_states() -> None:
    term = {"weight": 1.0, "temperature": 2.0, "crop": 1.0, "mask": 0.0, "reorder": 0.0}
    model = model_of(tiny(), contrastive=term, objective={"num_negatives": 3})
    batch = NextItemBatch(Jagged.from_rows([[1, 2], [4, 3]]), Jagged.from_rows([[2, 3], [3, 1]]), seed=0)
    last = model.encoder(batch.items, model._embed)[[1, 3]]
    term_value = model.training_loss(batch).named["contrastive"]
    torch.testing.assert_close(term_value, contrastive(last, last, temperature=2.0))


def with_features() -> Dataset:
    """Return the cycle, with items that have a kind, tags and a price."""
    dataset = cycle()
    number = pl.int_range(12)
    table = dataset.catalog.table.with_columns(
        pl.when(number > 1).then(pl.format("kind{}", number % 3)).alias("kind"),
        pl.concat_list(pl.format("tag{}", number % 4), pl.format("tag{}", number % 5)).alias("tags"),
        (number * 1.5).alias("price"),
    )
    kinds = {"kind": "categorical", "tags": "categorical-list", "price": "numeric"}
    return dataset.with_catalog(replace(dataset.catalog, table=table, features=kinds))


@pytest.mark.parametrize("merge", ["sum", "concat"])
def test_a_bundle_with_features_has_the_same_answers_as_the_model(merge: str, tmp_path: Path) -> None:
    overrides = [
        'model.features=["kind", "tags", "price", "content"]',
        f"model.features_merge={merge}",
        "training.max_epochs=2",
        "content.dim=4",
    ]
    run = train(
        "sasrec",
        with_features(),
        out=tmp_path / "run",
        recipe="debug/sasrec",
        protocol="leave-one-out",
        overrides=overrides,
        progress=False,
    )
    batch = requests([[1, 2, 3], [7], [4, 9]])
    before, after = run.model.recommend(batch, 5), load_run(run.folder).model.recommend(batch, 5)
    assert torch.equal(before.item_ids, after.item_ids)
    assert torch.equal(before.scores, after.scores)


def test_features_are_read_only_if_configured() -> None:
    dataset = with_features()
    assert model_of(dataset).features is None
    model = model_of(dataset, features=("kind",))
    assert model.features is not None
    before = model.user_vectors(requests([[3, 1], [6, 8]]))
    with torch.no_grad():
        model.features.get_parameter("parts.0.embedding.weight")[0] += torch.randn(
            8
        )  # the row of items 1 and 2, which have no kind
    changed = (model.user_vectors(requests([[3, 1], [6, 8]])) != before).any(1)
    assert changed.tolist() == [True, False]
    assert SASRecConfig(features=("kind",)).needs == frozenset()
    assert SASRecConfig(features=("kind", "content")).needs == {"content"}
    with pytest.raises(ValueError, match="needs a catalogue with content vectors"):
        model_of(dataset, features=("content",))


def test_extending_a_history_computes_its_new_events_only() -> None:
    model = model_of(tiny(), positions="from-first", layers=2)
    state = model.encode_history(requests([[1, 2, 3, 4], [5]]))
    input_shapes: list[tuple[int, ...]] = []
    block = model.encoder.blocks[1]
    block.register_forward_pre_hook(lambda _, arguments: input_shapes.append(tuple(arguments[0].shape[:2])))
    model.encode_history(requests([[1, 2, 3, 4, 5], [5, 6]]), state)
    assert input_shapes == [(2, 1)]


def test_positions_count_from_either_end() -> None:
    histories = requests([[1, 2, 3]])
    for counted in ("from-last", "from-first"):
        for number in range(3):
            model = model_of(tiny(), positions=counted)
            before = model.encoder._padded(histories.items, model._embed)
            with torch.no_grad():
                model.encoder.positions.weight[number] += torch.randn(8)
            changed = (model.encoder._padded(histories.items, model._embed) != before).any(-1)[0]
            first = number if counted == "from-first" else 2 - number
            assert changed.tolist() == [place >= first for place in range(3)]


def test_the_length_limit_does_not_shift_positions() -> None:
    short = model_of(tiny(), max_history_length=4)
    longer = SASRec(SASRecConfig(width=8, max_history_length=9), tiny().catalog).eval()
    state = short.state_dict()
    state["encoder.positions.weight"] = torch.cat([state["encoder.positions.weight"], torch.randn(5, 8)])
    longer.load_state_dict(state)
    torch.testing.assert_close(short.user_vectors(requests([[1, 2, 3]])), longer.user_vectors(requests([[1, 2, 3]])))


def test_the_published_block_is_that_of_the_authors() -> None:
    """By hand: query from the normalised input, keys and values from the input itself, no output projection."""
    torch.manual_seed(1)
    block = PublishedBlock(6, heads=2, dropout=0.5).eval()
    x = torch.randn(1, 4, 6)

    def norm(values: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-8).sqrt() * layer.weight + layer.bias

    query_in = norm(x[0], block.norm_query)
    query = block.query(query_in).view(4, 2, 3)
    key, value = (part.view(4, 2, 3) for part in block.key_value(x[0]).view(4, 2, 6).unbind(1))
    mixed = torch.zeros(4, 2, 3)
    for t in range(4):
        for head in range(2):
            logits = [float((query[t, head] @ key[s, head]).detach()) / math.sqrt(3) for s in range(t + 1)]
            weights = [math.exp(logit) / sum(math.exp(other) for other in logits) for logit in logits]
            mixed[t, head] = sum(weight * value[s, head] for s, weight in enumerate(weights))
    mid = norm(mixed.reshape(4, 6) + query_in, block.norm_feed)
    inner = block.feed[3](torch.relu(block.feed[0](mid)))
    torch.testing.assert_close(block(x)[0], mid + inner, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_learns_a_cycle_by_every_objective(block: str, objective: Objective) -> None:
    dataset = cycle()
    torch.manual_seed(0)
    config = SASRecConfig(width=16, dropout=0.0, block=block, objective=objective)
    model = SASRec(config, dataset.catalog)
    settings = TrainingConfig(max_epochs=16, batch_size=16, learning_rate=1e-2)
    fit(model, model.examples(dataset), settings, progress=False)
    answer = model.recommend(requests([[item] for item in range(1, 13)]), 1)
    assert answer.item_ids[:, 0].tolist() == [*range(2, 13), 1]


def test_negatives_depend_on_the_batch_alone() -> None:
    dataset = tiny()
    for settings in (
        {"kind": "bce"},
        *({"shared_by": who} for who in ("batch", "sequence", "position")),
    ):
        model = model_of(dataset, objective={"num_negatives": 3, **settings})
        batch = next(iter(model.examples(dataset).batches(2, epoch=0, seed=0)))
        torch.manual_seed(1)
        first = model.training_loss(batch).total
        torch.manual_seed(2)
        assert torch.equal(first, model.training_loss(batch).total)


def sampled_negatives(model: SASRec, batch: NextItemBatch) -> Negatives:
    objective, generator = model.config.objective, torch.Generator().manual_seed(batch.seed)
    assert isinstance(objective, SampledSoftmax)
    return sample_negatives(
        batch,
        model.popularity,
        count=objective.num_negatives,
        shared_by=objective.shared_by,
        generator=generator,
        power=objective.power,
    )


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_single_sequence_has_the_batch_s_negatives_except_its_items(power: float) -> None:
    items, targets = Jagged.from_rows([[1, 2, 3, 4]]), Jagged.from_rows([[2, 0, 4, 5]])
    batch = NextItemBatch(items, targets, seed=5)
    per_batch, per_sequence = (
        model_of(tiny(), objective={"num_negatives": 12, "power": power, "shared_by": sharing})
        for sharing in ("batch", "sequence")
    )
    sampled = sampled_negatives(per_batch, batch)
    other_items = sampled.negatives[~torch.isin(sampled.negatives, torch.tensor([1, 2, 3, 4, 5]))]
    assert 0 < len(other_items) < 12
    expected = sampled_softmax(
        per_batch.encoder(items, per_batch._embed)[[0, 2, 3]],
        per_batch.item_vectors(),
        torch.tensor([2, 4, 5]),
        negatives=other_items,
        log_q=sampled.log_q,
    )
    torch.testing.assert_close(per_sequence.training_loss(batch).total, expected)
    assert not torch.isclose(per_batch.training_loss(batch).total, expected)


def test_negatives_are_shared_by_sequence_or_by_position() -> None:
    items, targets = Jagged.from_rows([[1, 2], [1, 2], [3]]), Jagged.from_rows([[2, 3], [0, 3], [1]])
    batch = NextItemBatch(items, targets, seed=5)
    places = [(0, 0, 2), (1, 0, 3), (3, 1, 3), (4, 2, 1)]  # position, sequence, target
    sequence_items = [[1, 2, 3], [1, 2, 3], [1, 3]]
    for sharing, num_sets in (("sequence", 3), ("position", 4)):
        model = model_of(tiny(), objective={"num_negatives": 6, "shared_by": sharing})
        negatives = sampled_negatives(model, batch).negatives
        assert negatives.shape == (num_sets, 6)
        hidden, table = model.encoder(items, model._embed), model.item_vectors()
        expected = []
        for number, (position, row, target) in enumerate(places):
            sampled = negatives[number if sharing == "position" else row]
            if sharing == "sequence":
                sampled = sampled[~torch.isin(sampled, torch.tensor(sequence_items[row]))]
            expected.append(sampled_softmax(hidden[position][None], table, torch.tensor([target]), negatives=sampled))
        torch.testing.assert_close(model.training_loss(batch).total, torch.stack(expected).mean())


def test_temperature_makes_scores_cosines() -> None:
    model = model_of(tiny(), temperature=0.05)
    batch = requests([[3, 1], [1, 2, 3]])
    with torch.no_grad():
        answer = model.recommend(batch, 8)
        hidden = model.encoder(batch.items, model._embed)[[1, 4]]
        for row in range(2):
            expected = torch.cosine_similarity(hidden[row], model.items.weight[answer.item_ids[row]]) / 0.05
            torch.testing.assert_close(answer.scores[row], expected, rtol=1e-4, atol=1e-4)


PINNED: list[tuple[dict[str, object], list[float]]] = [
    ({}, [6.858223, 6.8127332, 6.7786617]),
    ({"block": "published", "objective": {"kind": "bce", "num_negatives": 1}}, [1.3889904, 1.3609185, 1.3554862]),
    (
        {"block": "pre-norm", "objective": "full-softmax", "layers": 2, "heads": 2},
        [2.4873555, 2.4588666, 2.4256728],
    ),
    (
        {"block": "published", "objective": {"kind": "gbce", "num_negatives": 4}, "heads": 2},
        [0.6360196, 0.6253737, 0.6245001],
    ),
    ({"objective": {"num_negatives": 5, "power": 0.5}, "temperature": 0.05}, [12.3304319, 6.031074, 5.3803968]),
]


@pytest.mark.parametrize(("settings", "losses"), PINNED)
def test_three_steps_have_their_pinned_losses(settings: dict[str, object], losses: list[float]) -> None:
    """A new option must not change the training of a recipe without it."""
    dataset = cycle()
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(**{"width": 8, "max_history_length": 6, **settings}), dataset.catalog)
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    step_losses = []
    for batch, _ in zip(model.examples(dataset).batches(16, epoch=0, seed=0), losses, strict=False):
        loss = model.training_loss(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step_losses.append(loss.item())
    assert step_losses == pytest.approx(losses, rel=1e-5)


def test_later_events_are_targets_of_the_full_softmax_with_their_weights() -> None:
    """A state learns from the next event and, at half the weight, from the one after it."""
    dataset = tiny()
    model = model_of(dataset, dropout=0.0, objective={"kind": "full-softmax", "target_weights": (1.0, 0.5)})
    (batch,) = model.examples(dataset).batches(2, epoch=0, seed=0)
    hidden_TD = model.encoder(batch.items, model._embed)
    log_probs = torch.log_softmax(hidden_TD @ model.item_vectors()[1:].T, dim=1)
    losses, row_ids = [], batch.targets.row_ids()
    for place, target in enumerate(batch.targets.values.tolist()):
        losses.append(-log_probs[place, target - 1])
        if place + 1 < len(row_ids) and row_ids[place + 1] == row_ids[place]:
            losses.append(-0.5 * log_probs[place, int(batch.targets.values[place + 1]) - 1])
    expected = torch.stack(losses).sum() / len(row_ids)
    torch.testing.assert_close(model.training_loss(batch).total, expected)


def test_heads_must_divide_width() -> None:
    with pytest.raises(ValueError, match="heads = 3 must divide width = 8"):
        model_of(tiny(), heads=3)


@pytest.mark.parametrize("block", ["published", "pre-norm", "ligr"])
def test_initial_weights_are_as_documented(block: str) -> None:
    torch.manual_seed(0)
    catalog = shop([[1, 2]], items=300).catalog
    model = SASRec(SASRecConfig(width=48, block=block, max_history_length=40), catalog)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            rows = parameter[1:] if name == "items.weight" else parameter
            assert float(rows.std()) == pytest.approx(0.02, rel=0.06), name
        elif name.endswith("bias"):
            assert bool((parameter == 0).all()), name
    assert bool((model.items.weight[0] == 0).all())
