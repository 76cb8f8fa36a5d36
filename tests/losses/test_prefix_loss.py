"""Tests of the loss of prefixes: weights by hand, gradients, the plain loss without it, and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.roles import LossTerms
from nextitem.data.examples.next_item import NextItemBatch, NextItemSequences
from nextitem.losses.prefix_loss import PrefixLoss, PrefixLossConfig, prefix_losses
from nextitem.models.cobra import Cobra, CobraConfig
from nextitem.models.depth_decoder import DepthDecoder, DepthDecoderConfig
from nextitem.models.tiger import Tiger, TigerConfig
from nextitem.testing.known_answers import cycle
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

SIZES = (4, 3, 5)


def loss_of(weight: float = 0.3, rate: float = 0.5, num_levels: int = 3) -> PrefixLoss:
    return PrefixLoss(PrefixLossConfig(weight=weight, rate=rate), num_levels=num_levels)


def levels(*values: float) -> list[Tensor]:
    return [torch.tensor(value, requires_grad=True) for value in values]


def catalog() -> Catalog:
    codes = torch.tensor([[first, second, (first + second) % 5] for first in range(4) for second in range(3)])
    ids = pl.Series("item_id", range(12))
    base = Catalog(IdMap(ids), pl.DataFrame({"item_id": ids}))
    table = IdentifierTable.from_item_codes(codes, codebook_sizes=SIZES, catalog_fingerprint=base.fingerprint)
    return base.with_identifiers(table)


def tiger(prefix_loss: dict[str, float] | None = None) -> Tiger:
    torch.manual_seed(5)
    small = {"width": 16, "heads": 2, "head_width": 8, "ff_width": 16, "dropout": 0.0}
    return Tiger(TigerConfig.model_validate({**small, "prefix_loss": prefix_loss}), catalog())


def depth_decoder(prefix_loss: dict[str, float] | None = None) -> DepthDecoder:
    torch.manual_seed(5)
    small = {"width": 8, "depth_width": 12, "dropout": 0.0, "max_history_length": 6}
    return DepthDecoder(DepthDecoderConfig.model_validate({**small, "prefix_loss": prefix_loss}), catalog())


def cobra(prefix_loss: dict[str, float] | None = None) -> Cobra:
    torch.manual_seed(5)
    small = {"width": 16, "dropout": 0.0, "dense": False}
    content = torch.nn.functional.pad(torch.eye(12), (0, 0, 1, 0))
    return Cobra(CobraConfig.model_validate({**small, "prefix_loss": prefix_loss}), catalog().with_content(content))


def terms_of(model: Any) -> LossTerms:
    """Return the loss of a batch of the kind that the model reads."""
    items = Jagged.from_rows([[1, 2, 3], [9, 4]])
    if isinstance(model, Tiger):
        return model.training_loss(SequenceBatch(items, targets=Jagged.from_rows([[7], [5]])))
    terms: LossTerms = model.training_loss(NextItemBatch(items, Jagged.from_rows([[2, 3, 7], [4, 5]]), seed=0))
    return terms


BUILDERS: list[Callable[..., Any]] = [tiger, depth_decoder, cobra]


def test_a_prefix_has_the_mean_loss_of_its_codes() -> None:
    torch.testing.assert_close(prefix_losses(torch.tensor([4.0, 1.0, 1.0])), torch.tensor([4.0, 2.5, 2.0]))


def test_two_steps_of_the_weights_equal_values_computed_by_hand() -> None:
    loss = loss_of(weight=0.3, rate=0.5)
    assert loss(levels(4.0, 1.0, 1.0)).tolist() == pytest.approx(0.3 * (4 + 2.5 + 2) / 3)  # equal weights at first
    loss.after_batch(1.0)
    first = [math.exp(0.5 * value) for value in (4, 2.5, 2)]
    assert loss.weights.tolist() == pytest.approx([value / sum(first) for value in first])
    expected = sum(weight / sum(first) * value for weight, value in zip(first, (1.0, 2.0, 3.0), strict=True))
    assert loss(levels(1.0, 3.0, 5.0)).tolist() == pytest.approx(0.3 * expected)  # the weights of the batch before
    loss.after_batch(1.0)
    second = [weight * math.exp(0.5 * value) for weight, value in zip(first, (1, 2, 3), strict=True)]
    assert loss.weights.tolist() == pytest.approx([value / sum(second) for value in second])


def test_weights_move_to_the_worst_prefix_and_back() -> None:
    loss = loss_of(rate=1.0)
    for worst, values, count in ((0, (9.0, 0.0, 0.0), 200), (2, (0.0, 0.0, 12.0), 400)):
        for _ in range(count):  # the first count would make a weight that is no logarithm 0 for ever
            loss(levels(*values))
            loss.after_batch(1.0)
        assert int(loss.weights.argmax()) == worst
        assert loss.weights.sum().tolist() == pytest.approx(1)


def test_rate_0_keeps_equal_weights() -> None:
    loss = loss_of(rate=0.0)
    loss(levels(9.0, 0.0, 0.0))
    loss.after_batch(1.0)
    assert loss.weights.tolist() == pytest.approx([1 / 3] * 3)


def test_the_gradient_of_a_level_is_the_sum_over_the_prefixes_that_contain_it() -> None:
    loss = loss_of(weight=0.3, rate=0.5)
    loss(levels(4.0, 1.0, 1.0))
    loss.after_batch(1.0)
    first, second, third = loss.weights.tolist()
    parts = levels(2.0, 3.0, 1.0)
    loss(parts).backward()
    expected = [first + second / 2 + third / 3, second / 2 + third / 3, third / 3]
    assert [float(part.grad) for part in parts] == pytest.approx([0.3 * value for value in expected])  # type: ignore[arg-type]
    assert not loss.weights.requires_grad


@pytest.mark.parametrize("build", BUILDERS)
def test_a_model_adds_the_term_on_the_scale_of_its_plain_loss(build: Callable[..., Any]) -> None:
    plain, model, idle = (build(settings) for settings in (None, {"weight": 0.3}, {"weight": 0.0}))
    former, terms = terms_of(plain), terms_of(model)
    assert torch.equal(terms_of(idle).total, former.total)
    by_level = torch.stack([former.named[f"level_{level}"] for level in (1, 2, 3)])
    scale = float(former.total.detach() / by_level.mean())  # 1 for a mean over the levels, 3 for a sum
    assert scale == pytest.approx(1 if isinstance(model, Tiger) else 3)
    torch.testing.assert_close(terms.named["prefixes"], scale * 0.3 * prefix_losses(by_level).mean())
    torch.testing.assert_close(terms.total, former.total + terms.named["prefixes"])


@pytest.mark.parametrize("build", BUILDERS)
def test_the_gradient_of_a_model_weights_its_levels(build: Callable[..., Any]) -> None:
    model = build({"weight": 0.3})
    level_losses: list[Tensor] = []
    model.prefix_loss.register_forward_hook(lambda module, inputs, output: level_losses.extend(inputs[0]))
    terms, scale = terms_of(model), 1 if isinstance(model, Tiger) else 3
    factors = [1 / 3 + 0.3 * sum(1 / 3 / length for length in range(level, 4)) for level in (1, 2, 3)]
    weighted = scale * (torch.tensor(factors) * torch.stack(level_losses)).sum()
    for parameter in model.parameters():
        gradients = [
            torch.autograd.grad(total, parameter, retain_graph=True, allow_unused=True)[0]
            for total in (terms.total, weighted)
        ]
        if gradients[0] is not None:
            torch.testing.assert_close(*gradients)


def test_a_resumed_run_ends_with_the_same_weights_of_prefixes(tmp_path: Path) -> None:
    settings = TrainingConfig(max_epochs=4, batch_size=16, learning_rate=0.01)

    def run(**arguments: Any) -> dict[str, Tensor]:
        model = depth_decoder({"weight": 0.3, "rate": 0.1})
        examples = NextItemSequences(cycle().interactions, max_length=6)
        fit(model, examples, settings, seed=4, progress=False, **arguments)
        return model.state_dict()

    whole, cut = run(), run(out=tmp_path, stop_after=2)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    next(iter(saved["callbacks"].values()))["stopped"] = "interrupted"
    torch.save(saved, tmp_path / "checkpoints" / "last.ckpt")
    resumed = run(out=tmp_path, resume=True)
    name = "prefix_loss.log_weights"
    assert not torch.equal(whole[name], cut[name])
    assert float(whole[name].exp().max()) > 0.34  # the weights have moved
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
