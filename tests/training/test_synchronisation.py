"""Tests of buffers that training moves: two processes end with those of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from support.two_processes import launch
from torch import Tensor, nn

from nextitem.core.roles import LossTerms, Synchronised
from nextitem.data.examples.content_rows import ContentBatch, ContentRows
from nextitem.distributed import processes
from nextitem.models.streaming_vq import StreamingVQ, StreamingVQConfig
from nextitem.nn.experts import Experts, ExpertsConfig
from nextitem.nn.quantisation.learnt_codebooks import LearntCodebooks
from nextitem.nn.ranking.dice import Dice
from nextitem.nn.ranking.node_scorer import NodeScorer
from nextitem.nn.streaming_frequency import StreamingFrequency
from nextitem.testing.known_answers import cycle
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

STILL = 1e-30  # a learning rate that leaves the weights as they are, so that only buffers move


class Buffers(nn.Module):
    """Network with a counter, a mean over the batches, and parts of the package whose buffers move."""

    synchronised: ClassVar[Mapping[str, Literal["sum", "mean"]]] = {"count": "sum", "mean": "mean"}
    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3))
        self.frequency = StreamingFrequency(6, rate=0.3)
        self.codebooks = LearntCodebooks((2, 4, 2), split="residual", update="ema", decay=0.8, revive_every=1000)
        self.codebooks.tables.copy_(torch.randn(2, 4, 2))
        self.codebooks.steps.fill_(1)  # no initialisation, which several processes take over from the first
        self.dice = Dice(3)
        self.experts = Experts(ExpertsConfig(num_experts=4, top_k=2), 3, hidden=4)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """Return the mean squared output, and move all buffers."""
        rows = batch.content[:, 1:]
        self.count += len(rows)
        self.mean.mul_(0.9).add_(0.1 * rows.mean(0))
        self.frequency.update(batch.content[:, 0].long().unique())
        self.codebooks(rows[:, :2])
        return LossTerms(self.line(rows + 0 * self.dice(rows) + 0 * self.experts(rows)).square().mean())


def rows() -> ContentRows:
    """Return 29 rows: in batches of seven, one process has no part of the last batch."""
    generator = torch.Generator().manual_seed(3)
    return ContentRows(
        torch.cat([torch.randint(1, 7, (29, 1), generator=generator), torch.randn(29, 3, generator=generator)], 1)
    )


def train_buffers() -> dict[str, Tensor]:
    net = Buffers()
    fit(net, rows(), TrainingConfig(max_epochs=3, batch_size=7, learning_rate=STILL), seed=1, progress=False)
    return net.state_dict()


def train_streaming_vq(learning_rate: float) -> dict[str, Tensor]:
    dataset = cycle()
    torch.manual_seed(0)
    settings = StreamingVQConfig(width=8, hidden=8, clusters=4, dropout=0.0, rarity_power=0.5)
    model = StreamingVQ(settings, dataset.catalog)
    result = fit(
        model,
        model.examples(dataset),
        TrainingConfig(max_epochs=2, batch_size=65, learning_rate=learning_rate),
        progress=False,
    )
    losses = torch.tensor([entry["loss"] for entry in result.epoch_log])
    return {**model.state_dict(), "losses": losses}


def run_process(out: Path) -> None:
    """Train in each of two processes, and save the results in `out`."""
    with processes.process_group():
        results = {
            "buffers": train_buffers(),
            "still": train_streaming_vq(STILL),
            "trained": train_streaming_vq(0.01),
        }
        torch.save(results, out / f"{processes.rank()}.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Return the results of two processes."""
    out = tmp_path_factory.mktemp("buffers")
    launch(__file__, "run_process", out)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_declared_buffers_equal_those_of_one_process(saved: list[dict[str, dict[str, Tensor]]]) -> None:
    """Check counters, moving averages, item frequencies and moved codebooks; variances are means over processes."""
    expected = train_buffers()
    assert int(expected["count"]) == 3 * 29
    assert bool(expected["experts.bias"].any())
    for results in saved:
        for name, value in expected.items():
            if not name.startswith("dice."):
                torch.testing.assert_close(results["buffers"][name], value, rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(results["buffers"]["dice.norm.running_mean"], expected["dice.norm.running_mean"])
        ratio = results["buffers"]["dice.norm.running_var"] / expected["dice.norm.running_var"]
        assert bool(((ratio - 1).abs() < 0.5).all())
    first, second = (results["buffers"] for results in saved)
    names = [name for name in first if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(first[name], second[name]) for name in names)


@pytest.mark.slow
def test_streaming_vq_learns_the_index_of_one_process(saved: list[dict[str, dict[str, Tensor]]]) -> None:
    """Check clusters, weights, intervals and the cluster of each item while the weights stay the same."""
    expected = train_streaming_vq(STILL)
    assert len(expected["assigned"][1:].unique()) > 1
    for results in saved:
        for name, value in expected.items():
            if name != "losses":
                torch.testing.assert_close(results["still"][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_streaming_vq_trains_in_two_processes(saved: list[dict[str, dict[str, Tensor]]]) -> None:
    """Check that both processes agree, and that losses fall as with one; negatives are those of a part."""
    first, second = (results["trained"] for results in saved)
    assert all(torch.equal(first[name], second[name]) for name in first)
    expected = train_streaming_vq(0.01)
    assert first["losses"][1] < first["losses"][0]
    assert float(first["losses"][0] - first["losses"][1]) == pytest.approx(
        float(expected["losses"][0] - expected["losses"][1]), rel=0.5
    )


def test_the_declared_buffers_exist() -> None:
    parts = [
        Buffers(),
        Dice(3),
        Experts(ExpertsConfig(), 4, hidden=4),
        NodeScorer(4, windows=(1, 1), hidden=(5, 3)),
        LearntCodebooks((1, 3, 2), split="residual", update="gradient"),
    ]
    for part in parts:
        assert isinstance(part, Synchronised)
        assert part.synchronised
        for name in part.synchronised:
            assert part.get_buffer(name).dim() >= 0
