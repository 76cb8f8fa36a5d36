"""Tests of NextItNet: convolutions by hand, exact receptive field, no leak from the future or from padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.modules import part
from support.optional import not_none
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.jagged import Jagged
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.losses.objectives import SampledSoftmax
from nextitem.models.nextitnet import CausalConvolution, NextItNet, NextItNetConfig
from nextitem.testing.known_answers import build, cycle
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

NUM_ITEMS = 8


def catalog() -> Catalog:
    return build([[1, 2, 3]], [f"t{n}" for n in range(NUM_ITEMS)], name="tiny").catalog


def model_of(**settings: object) -> NextItNet:
    torch.manual_seed(0)
    model = NextItNet(NextItNetConfig(**{"width": 6, **settings}), catalog())
    with torch.no_grad():  # larger than at initialisation, so that differences are visible
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def requests(histories: list[list[int]]) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories))


def naive_layer(layer: CausalConvolution, hidden: list[Tensor], kernel_size: int, dilation: int) -> list[Tensor]:
    """Return the state [D] of each position: sum of the taps at t, t - dilation, ..., layer norm, ReLU."""
    weight, bias = layer.convolution.weight, layer.convolution.bias
    assert bias is not None
    out = []
    for t in range(len(hidden)):
        total = bias
        for tap in range(kernel_size):
            place = t - (kernel_size - 1 - tap) * dilation
            if place >= 0:
                total = total + weight[:, :, tap] @ hidden[place]
        centred = total - total.mean()
        normed = centred / (centred.pow(2).mean() + 1e-8).sqrt() * layer.norm.weight + layer.norm.bias
        out.append(normed.clamp(min=0))
    return out


def naive_states(model: NextItNet, history: list[int]) -> Tensor:
    """Return the states [L, D], computed position by position."""
    config = model.config
    hidden = [model.items.weight[item] for item in history]
    for number, block in enumerate(model.blocks):
        first, second = (part(block, name, CausalConvolution) for name in ("first", "second"))
        inner = naive_layer(first, hidden, config.kernel_size, config.dilations[2 * number])
        added = naive_layer(second, inner, config.kernel_size, config.dilations[2 * number + 1])
        hidden = [old + new for old, new in zip(hidden, added, strict=True)]
    return torch.stack(hidden)


@pytest.mark.parametrize(("kernel_size", "dilations"), [(3, (1, 2, 4, 8)), (2, (1, 3)), (1, (1, 1)), (4, (2, 1, 5, 1))])
def test_states_equal_convolutions_computed_by_hand(kernel_size: int, dilations: tuple[int, ...]) -> None:
    model = model_of(kernel_size=kernel_size, dilations=dilations)
    histories = [[3], [1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 4, 2], [5, 5, 8]]
    expected = torch.cat([naive_states(model, history) for history in histories])
    torch.testing.assert_close(model._flat_hidden(Jagged.from_rows(histories)), expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_of_ones_sums_every_second_event() -> None:
    layer = CausalConvolution(2, kernel_size=3, dilation=2)
    torch.nn.init.ones_(layer.convolution.weight)
    torch.nn.init.zeros_(not_none(layer.convolution.bias))
    layer.norm = torch.nn.Identity()  # type: ignore[assignment]
    events = torch.tensor([1.0, 10, 100, 1000, 10000, 100000])
    sums = layer(torch.stack([events, torch.zeros(6)], 1)[None])[0]
    assert sums[:, 0].tolist() == [1, 10, 101, 1010, 10101, 101010]


@pytest.mark.parametrize(("kernel_size", "dilations", "field"), [(3, (1, 2, 4, 8), 31), (2, (1, 2), 4), (3, (1, 1), 5)])
def test_the_receptive_field_is_exact(kernel_size: int, dilations: tuple[int, ...], field: int) -> None:
    model = model_of(kernel_size=kernel_size, dilations=dilations, width=16).double()
    assert model.receptive_field == field
    length = field + 5
    inputs = torch.randn(1, length, 16, dtype=torch.float64, requires_grad=True)
    model.blocks(inputs)[0, -1].sum().backward()
    assert inputs.grad is not None
    is_read = (inputs.grad[0] != 0).any(1)
    assert is_read.tolist() == [False] * 5 + [True] * field


@settings(max_examples=60, deadline=None)
@given(data=st.data(), length=st.integers(2, 40))
def test_the_future_never_leaks(data: st.DataObject, length: int) -> None:
    model = model_of()
    history = st.lists(st.integers(1, NUM_ITEMS), min_size=length, max_size=length)
    num_shared = data.draw(st.integers(1, length - 1))
    one, other = data.draw(history), data.draw(history)
    rows = Jagged.from_rows([one, one[:num_shared] + other[num_shared:]])
    before, after = model._flat_hidden(rows).view(2, length, -1)
    assert torch.equal(before[:num_shared], after[:num_shared])


def test_later_events_change_later_states() -> None:
    model = model_of()
    states = model._flat_hidden(Jagged.from_rows([[1, 2, 3, 4], [1, 2, 8, 4]])).view(2, 4, -1)
    assert (states[0, 2:] != states[1, 2:]).any(1).all()


@settings(max_examples=60, deadline=None)
@given(
    histories=st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=12), min_size=1, max_size=5),
    padding=st.integers(1, NUM_ITEMS),
)
def test_values_in_the_padding_change_nothing(histories: list[list[int]], padding: int) -> None:
    """Exactly, and up to rounding if a longer neighbour changes the shape of the computation."""
    model = model_of()
    items = Jagged.from_rows(histories)
    is_real = items.to_padded() > 0
    expected = model._flat_hidden(items)
    filled = model.blocks(model.items(items.to_padded(fill=padding)))
    assert torch.equal(filled[is_real], expected)
    alone = torch.cat([model._flat_hidden(Jagged.from_rows([history])) for history in histories])
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_reaches_events_without_a_later_target() -> None:
    model = model_of()
    batch = NextItemBatch(Jagged.from_rows([[1, 2, 3], [4]]), Jagged.from_rows([[2, 0, 0], [5]]), seed=0)
    model.training_loss(batch).total.backward()
    assert model.items.weight.grad is not None
    assert (model.items.weight.grad != 0).any(1).nonzero()[:, 0].tolist() == [1, 4]


def test_only_the_receptive_field_is_computed_for_a_request() -> None:
    model = model_of(dilations=(1, 2), kernel_size=2)
    history = [7, 8, 7, 1, 2, 3, 4, 5]
    whole = model._flat_hidden(Jagged.from_rows([history]))[-1]
    torch.testing.assert_close(model.user_vectors(requests([history]))[0, :-1], whole, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_scores_are_inner_products_plus_the_item_s_bias() -> None:
    model = model_of()
    answer = model.recommend(requests([[1, 2, 3]]), NUM_ITEMS)
    last = naive_states(model, [1, 2, 3])[-1]
    expected = {item: float(last @ model.output.weight[item, :-1] + model.output.weight[item, -1]) for item in range(9)}
    assert answer.scores[0].tolist() == pytest.approx(
        [expected[item] for item in answer.item_ids[0].tolist()], abs=1e-4
    )


def test_the_loss_is_the_mean_cross_entropy_at_real_targets() -> None:
    model = model_of()
    batch = NextItemBatch(Jagged.from_rows([[1, 2, 3], [4]]), Jagged.from_rows([[2, 0, 6], [5]]), seed=0)
    table = model.output.weight[1:]
    losses = []
    for history, targets in (([1, 2, 3], [2, 0, 6]), ([4], [5])):
        for state, target in zip(naive_states(model, history), targets, strict=True):
            logits = table[:, :-1] @ state + table[:, -1]
            losses += [logits.logsumexp(0) - logits[target - 1]] if target else []
    torch.testing.assert_close(model.training_loss(batch).total, torch.stack(losses).mean())


def test_negatives_depend_on_the_batch_alone() -> None:
    model = model_of(objective={"kind": "sampled-softmax", "num_negatives": 3})
    items, targets = Jagged.from_rows([[1, 2, 3]]), Jagged.from_rows([[2, 3, 4]])
    losses = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(global_seed)
        losses.append(model.training_loss(NextItemBatch(items, targets, seed=seed)).total)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_it_learns_a_cycle_by_sampled_softmax() -> None:
    dataset = cycle()
    torch.manual_seed(0)
    config = NextItNetConfig(width=16, objective=SampledSoftmax(num_negatives=8))
    model = NextItNet(config, dataset.catalog)
    fit(
        model,
        model.examples(dataset),
        TrainingConfig(max_epochs=30, batch_size=16, learning_rate=1e-2),
        progress=False,
    )
    answer = model.recommend(requests([[item] for item in range(1, 13)]), 1)
    assert answer.item_ids[:, 0].tolist() == [*range(2, 13), 1]


@pytest.mark.parametrize("dilations", [(1, 2, 4), (1, 0)])
def test_two_positive_dilations_make_a_block(dilations: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="positive, and two for each block"):
        model_of(dilations=dilations)
