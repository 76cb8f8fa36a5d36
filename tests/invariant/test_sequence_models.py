"""Invariants of every model that reads histories: only the latest events of the request itself matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.optional import not_none

from nextitem.core.batch import SequenceBatch
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.core.roles import ClosedForm
from nextitem.losses.objectives import FullSoftmax
from nextitem.models.sasrec import SASRec, SASRecConfig
from nextitem.nn.attention.transformer import BLOCKS
from nextitem.testing.known_answers import cycle

WINDOW = 6  # max_history_length of the models under test
HISTORIES = [[1], [4, 5, 6, 7, 8, 9, 10, 11], [2, 3, 2], [12, 1, 2, 3, 4, 5], [7, 7]]
NAMES = [
    name
    for name, entry in MODELS.items()
    if "max_history_length" in entry.load().Config.model_fields and not issubclass(entry.load(), ClosedForm)
]
# The attention of a wide model with such large weights ignores single events.
SETTINGS = {"sim": {"long_history_length": WINDOW}, "depth-decoder": {"width": 8}}


def model_of(name: str) -> Recommender:
    """Return a model with random weights, large enough that any difference is visible."""
    catalog = cycle().catalog
    codes = torch.stack([torch.arange(12) // 4, torch.arange(12) % 4], 1).int()
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=(3, 4), catalog_fingerprint=catalog.fingerprint)
    model_class = MODELS[name].load()
    content = torch.randn(13, 4, generator=torch.Generator().manual_seed(0)) * (torch.arange(13) > 0)[:, None]
    catalog = catalog.with_content(content)
    torch.manual_seed(0)
    config = model_class.Config(max_history_length=WINDOW, **SETTINGS.get(name, {}))
    model: Recommender = model_class(config, catalog.with_identifiers(table))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def requests(histories: list[list[int]]) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories))


def answers(model: Recommender, batch: SequenceBatch) -> tuple[list[list[int]], torch.Tensor]:
    answer = model.recommend(batch, 12)
    return answer.item_ids.tolist(), answer.scores


@pytest.mark.parametrize("name", NAMES)
def test_requests_in_one_batch_get_the_same_answers_as_one_by_one(name: str) -> None:
    model = model_of(name)
    items, scores = answers(model, requests(HISTORIES))
    for row, history in enumerate(HISTORIES):
        alone, alone_scores = answers(model, requests([history]))
        assert alone == [items[row]]
        torch.testing.assert_close(alone_scores[0], scores[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_in_the_order_of_the_requests(name: str) -> None:
    model = model_of(name)
    order = torch.tensor([3, 0, 4, 1, 2])
    items, _ = answers(model, requests(HISTORIES))
    reordered, _ = answers(model, requests(HISTORIES).select(order))
    assert reordered == [items[row] for row in order.tolist()]


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_never_read(name: str) -> None:
    model = model_of(name)
    items, scores = answers(model, requests(HISTORIES))
    items_with_targets, scores_with_targets = answers(
        model, replace(requests(HISTORIES), targets=Jagged.from_rows([[5]] * len(HISTORIES)))
    )
    assert items_with_targets == items
    assert torch.equal(scores_with_targets, scores)


@pytest.mark.parametrize("name", NAMES)
def test_events_before_the_window_change_nothing_and_later_events_do(name: str) -> None:
    model = model_of(name)
    recent = [3, 9, 4, 1, 12, 5]
    items, scores = answers(model, requests([recent]))
    older, older_scores = answers(model, requests([[8, 8, 2, *recent]]))
    assert older == items
    assert torch.equal(older_scores, scores)
    for index in range(WINDOW):
        changed = [*recent[:index], 7, *recent[index + 1 :]]
        assert not torch.equal(answers(model, requests([changed]))[1], scores), index


@pytest.mark.parametrize("block", BLOCKS)
def test_the_loss_of_a_batch_is_the_mean_over_the_targets_of_its_sequences(block: str) -> None:
    """The same for gradients: a batch of several sequences equals that number of batches of one."""
    dataset = cycle()
    torch.manual_seed(0)
    config = SASRecConfig(width=8, layers=2, block=block, objective=FullSoftmax(), max_history_length=WINDOW)
    model = SASRec(config, dataset.catalog).double().eval()
    examples = model.examples(dataset)
    whole = next(iter(examples.batches(8, epoch=0, seed=0)))
    model.training_loss(whole).total.backward()
    batch_gradients = {name: not_none(parameter.grad).clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    assert whole.items.num_rows > 4
    for row in range(whole.items.num_rows):
        rows = torch.tensor([row])
        single = replace(whole, items=whole.items.select(rows), targets=whole.targets.select(rows))
        share = len(single.targets.values) / len(whole.targets.values)
        (share * model.training_loss(single).total).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, batch_gradients[name], msg=(name + ": {}").format)
