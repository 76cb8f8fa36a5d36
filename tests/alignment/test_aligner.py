"""The aligner as a Trainable: it raises the reward, keeps its reference, and resumes as if uninterrupted."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_models import identified, small_model
from torch import Tensor

from nextitem.alignment.aligner import Aligner
from nextitem.alignment.config import METHODS, AlignmentConfig
from nextitem.alignment.examples import AlignmentExamples
from nextitem.alignment.frozen_copy import FrozenCopy
from nextitem.alignment.rewards.reward import Reward
from nextitem.core.batch import SequenceBatch
from nextitem.core.config import parse
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import HasBatchHook
from nextitem.decoding.list_log_probs import list_log_probs
from nextitem.testing.rich_log import rich_log
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

SIZES: dict[str, dict[str, Any]] = {
    "depth-decoder": {"width": 16, "depth_width": 16, "max_history_length": 5, "dropout": 0.2},
    "tiger": {"width": 16, "heads": 2, "head_width": 8, "ff_width": 16, "encoder_layers": 1, "decoder_layers": 1},
}


class EvenItems(Reward):
    """Share of a list's items with an even number."""

    name = "even items"

    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        return ((item_ids > 0) & (item_ids % 2 == 0)).double().mean(2).float()


class Constant(EvenItems):
    """A reward that tells no list from another."""

    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        return torch.ones(item_ids.shape[:2])


def settings(**values: Any) -> AlignmentConfig:
    base = {"lists": 6, "steps_per_epoch": 4, "batch_size": 16, "sft_batch_size": 8, "epochs": 2}
    return parse(AlignmentConfig, {**base, **values}, where="test")


def aligner_of(
    data: Dataset, *, name: str = "tiger", reward: Reward | None = None, items: int = 1, **values: Any
) -> Aligner:
    model: Any = small_model(name, data, **SIZES[name])
    return Aligner(model, model.trie, reward or EvenItems(), settings(**values), items_per_list=items)


def trained(aligner: Aligner, data: Dataset, *, epochs: int = 2, **options: Any) -> Any:
    config = TrainingConfig(max_epochs=epochs, batch_size=16, learning_rate=1e-2, patience=None)
    return fit(aligner, aligner.examples(data), config, progress=False, **options)


def mean_reward(aligner: Aligner, data: Dataset) -> float:
    batch = next(aligner.examples(data).batches(64, epoch=0, seed=0)).requests
    model: Recommender = aligner.policy.eval()
    return float(EvenItems().score(batch, model.recommend(batch, 3).item_ids[:, None]).mean())


@pytest.fixture(scope="module")
def data() -> Dataset:
    return identified(rich_log())


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "ecpo" else pytest.mark.slow) for kind in METHODS]
)
def test_every_method_raises_the_reward(kind: str, data: Dataset) -> None:
    aligner = aligner_of(data, method={"kind": kind}, sft_weight=0.0, steps_per_epoch=2)
    before = mean_reward(aligner, data)
    result = trained(aligner, data, epochs=8)
    assert mean_reward(aligner, data) > before + 0.1
    log = result.epoch_log
    assert log[-1]["reward"] > log[0]["reward"]
    names = {"loss", "reward", "dead_groups", "log_prob", "chosen_log_prob", "kl", "legality", "entropy_1", "entropy_2"}
    assert names <= set(log[0])
    assert log[-1]["kl"] > 0


@pytest.mark.parametrize("name", ["depth-decoder", "tiger"])
def test_the_reference_is_the_policy_at_the_start(name: str, data: Dataset) -> None:
    aligner = aligner_of(data, name=name, method={"kind": "dpo"}, items=2)
    batch = next(aligner.examples(data).batches(8, epoch=0, seed=0)).requests
    rollouts = aligner.generate(batch)
    model: Any = aligner.policy
    first = list_log_probs(model, batch, rollouts.codes, model.trie).detach()
    trained(aligner, data)
    model.eval()
    reference: Any = aligner.reference.model
    torch.testing.assert_close(list_log_probs(reference, batch, rollouts.codes, model.trie), first)
    assert not torch.allclose(list_log_probs(model, batch, rollouts.codes, model.trie), first)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert reference.catalog is model.catalog


def test_ipa_moves_its_reference_after_each_epoch(data: Dataset) -> None:
    aligner = aligner_of(data, method={"kind": "ipa"})
    before = aligner.reference.model.weights_fingerprint()
    with torch.no_grad():
        next(aligner.policy.parameters()).add_(1.0)
    aligner.after_epoch(1)
    assert aligner.reference.model.weights_fingerprint() != before
    other = aligner_of(data, method={"kind": "dpo"})
    with torch.no_grad():
        next(other.policy.parameters()).add_(1.0)
    other.after_epoch(1)
    assert other.reference.model.weights_fingerprint() == before


@pytest.mark.parametrize("refresh_every", [1, 3])
def test_lists_come_from_the_policy_of_the_last_refresh(refresh_every: int, data: Dataset) -> None:
    aligner = aligner_of(data, refresh_every=refresh_every, method={"kind": "grpo"})
    batches = list(aligner.examples(data).batches(8, epoch=0, seed=0))
    clip_rates: list[float] = []
    differs: list[bool] = []
    for batch in batches:
        weights = next(aligner.policy.parameters())
        with torch.no_grad():
            weights.add_(0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(len(differs))))
        clip_rates.append(float(aligner.training_loss(batch).named["clip_rate"]))
        model = aligner.policy if aligner.behaviour is None else aligner.behaviour.model
        differs.append(not torch.equal(next(model.parameters()), weights))
    assert differs == [step % refresh_every > 0 for step in range(4)]
    assert clip_rates[0] == 0
    assert any(rate > 0 for rate in clip_rates) == (refresh_every > 1)


@pytest.mark.parametrize(
    "options",
    [
        {"refresh_every": 3},
        pytest.param({"rollouts": "sampling", "method": {"kind": "ipa"}}, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_alignment_is_as_an_uninterrupted_one(options: dict[str, Any], data: Dataset, tmp_path: Path) -> None:
    values = itertools.count()  # each epoch is better than the one before, so the last weights are the best
    whole = aligner_of(data, name="depth-decoder", **options)
    trained(whole, data, epochs=3, validate=lambda: float(next(values)))
    first = aligner_of(data, name="depth-decoder", **options)

    def interrupt() -> float:
        signal.raise_signal(signal.SIGINT)
        return -1.0

    stopped = trained(first, data, epochs=3, out=tmp_path, validate=interrupt)
    assert (stopped.stop_reason, stopped.epochs) == ("interrupted", 1)
    second = aligner_of(data, name="depth-decoder", **options)
    trained(second, data, epochs=3, out=tmp_path, resume=True, validate=lambda: float(next(values)))
    for (name, weight), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    assert int(second.steps) == 12


def test_examples_continue_in_the_log_and_can_start_anywhere(data: Dataset) -> None:
    examples = aligner_of(data).examples(data)
    every = [list(examples.batches(16, epoch=epoch, seed=1)) for epoch in range(5)]
    first = [tuple(batch.requests.items.values.tolist()) for batch in every[0]]
    second = [tuple(batch.requests.items.values.tolist()) for batch in every[1]]
    assert set(first) != set(second)
    late = list(examples.batches(16, epoch=3, seed=1, start=2))
    assert len(late) == 2
    for batch, expected in zip(late, every[3][2:], strict=True):
        assert torch.equal(batch.requests.items.values, expected.requests.items.values)
        assert batch.supervised is not None
        assert expected.supervised is not None
        assert torch.equal(batch.supervised.items.values, expected.supervised.items.values)
    assert all(bool((batch.requests.items.lengths > 0).all()) for epoch in every for batch in epoch)
    half = every[0][0].share(1, 2)
    assert half.loss_count == 8
    moved: Any = half.to("cpu")
    assert moved.supervised.num_requests == 4


def test_users_without_history_make_no_requests(data: Dataset) -> None:
    log = data.interactions
    alone = log.select(np.arange(len(log)) == log.offsets[log.user_ids - 1])
    some = log.select((log.user_ids > 5) | (np.arange(len(log)) == log.offsets[log.user_ids - 1]))
    assert aligner_of(data).examples(replace(data, interactions=some)).num_skipped_users == 5
    assert aligner_of(data).examples(data).num_skipped_users == 0
    with pytest.raises(UserError, match="no user has two training events"):
        AlignmentExamples(
            replace(data, interactions=alone),
            steps_per_epoch=1,
            history_length=5,
            supervised=None,
            supervised_batch_size=1,
        )


@pytest.mark.slow
def test_format_samples_raise_the_share_of_legal_codes(data: Dataset) -> None:
    """Codes 0-0 to 2-3 have 12 items, so a table with more codes has sequences of no item."""
    wide = identified(rich_log(), sizes=(6, 4))
    aligner = aligner_of(wide, sft_weight=0.0, format_weight=1.0, method={"kind": "ecpo", "weight": 1e-6})
    result = trained(aligner, wide, epochs=6)
    shares = [epoch["free_legal_share"] for epoch in result.epoch_log]
    assert shares[0] < 0.9
    assert shares[-1] > shares[0] + 0.1
    legality = [epoch["legality"] for epoch in result.epoch_log]
    assert abs(legality[0] - shares[0]) < 0.15  # both estimate the same probability
    assert legality[-1] > legality[0]


def test_groups_with_equal_rewards_are_counted_and_teach_nothing(data: Dataset) -> None:
    aligner = aligner_of(data, reward=Constant(), sft_weight=0.0)
    before = [parameter.clone() for parameter in aligner.policy.parameters()]
    result = trained(aligner, data, epochs=1)
    assert result.epoch_log[0]["dead_groups"] == 1
    for parameter, former in zip(aligner.policy.parameters(), before, strict=True):
        assert torch.equal(parameter, former)


def test_a_group_without_any_legal_list_is_counted_and_skipped(data: Dataset) -> None:
    aligner = aligner_of(data, sft_weight=0.0)
    batch = next(aligner.examples(data).batches(4, epoch=0, seed=0))
    allowed = torch.ones(4, 13, dtype=torch.bool)
    allowed[1] = False
    terms = aligner.training_loss(replace(batch, requests=replace(batch.requests, allowed=allowed)))
    assert bool(terms.total.isfinite())
    assert 0.25 <= float(terms.named["dead_groups"]) < 1
    assert bool(torch.stack([value.double() for value in terms.named.values()]).isfinite().all())


def test_a_copy_is_hidden_from_hooks_and_optimizers(data: Dataset) -> None:
    class Hooked(torch.nn.Module):
        def after_batch(self, weight: float) -> None:
            raise AssertionError("a frozen copy must not be updated")

    model = small_model("tiger", data, **SIZES["tiger"])
    model.hooked = Hooked()
    copied = FrozenCopy(model)
    assert not [part for part in copied.modules() if isinstance(part, HasBatchHook)]
    assert not list(copied.parameters())
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert not torch.equal(next(copied.model.parameters()), next(model.parameters()))
    copied.copy_from(model)
    assert torch.equal(next(copied.model.parameters()), next(model.parameters()))
    other = FrozenCopy(small_model("tiger", data, **SIZES["tiger"]))
    other.load_state_dict(copied.state_dict())
    assert torch.equal(next(other.model.parameters()), next(model.parameters()))
