"""Tests of tables in two processes: rows, gradients, admission and eviction equal those of one process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.two_processes import launch
from torch import Tensor, nn

from nextitem.core.components import build_component
from nextitem.core.recommender import Recommender
from nextitem.core.roles import LossTerms
from nextitem.data.examples.content_rows import ContentBatch, ContentRows
from nextitem.data.protocols import make_split
from nextitem.distributed import processes
from nextitem.nn.tables.growing import GrowingTable
from nextitem.nn.tables.hashed import HashedTable
from nextitem.nn.tables.kinds import GrowingRows, HashedRows
from nextitem.testing.known_answers import cycle
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

IDS = torch.arange(-9, 10)
TABLES: dict[str, GrowingRows | HashedRows] = {
    "stored by all": GrowingRows(max_rows=7, block_rows=2, half_life=3.0, admit_after=2),
    "divided": GrowingRows(max_rows=7, block_rows=2, half_life=3.0, admit_after=2, is_divided=True),
    "divided, zero": GrowingRows(max_rows=7, block_rows=2, half_life=3.0, shared_rows=0, is_divided=True),
    "hashed": HashedRows(rows=11),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
    "adagrad": {"optimizer": "adagrad", "learning_rate": 0.1, "momentum": 0.5},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.02, "gradient_clip": 0.4, "weight_decay": 0.1},
}
CASES = [
    ("stored by all", "adagrad"),
    ("stored by all", "adamw"),
    ("divided", "sgd"),
    ("divided", "adagrad"),
    ("divided", "adamw"),
    ("divided, zero", "adamw"),
    ("hashed", "adamw"),
]


class TwoReads(nn.Module):
    """Network that looks up ids twice: each by itself, and as a bag."""

    def __init__(self, config: GrowingRows | HashedRows) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = (GrowingTable if isinstance(config, GrowingRows) else HashedTable)(config, 3)  # type: ignore[arg-type]
        self.line = nn.Linear(6, 1)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """Return the mean squared distance to the last column."""
        ids = batch.content[:, :2].long()
        self.table.observe(ids)
        bags = self.table.means(ids.flatten(), torch.arange(len(ids)) * 2)
        outputs = self.line(torch.cat([self.table(ids[:, 0]), bags], 1))[:, 0]
        return LossTerms((outputs - batch.content[:, 2]).square().mean())


class Rows(ContentRows):
    """57 rows in batches of seven: one process has no part of the last batch. A batch may press Ctrl-C."""

    def __init__(self, *, interrupted: bool = False) -> None:
        generator = torch.Generator().manual_seed(5)
        ids = (4 * torch.randn(57, 2, generator=generator)).round().clamp(-9, 9)
        super().__init__(torch.cat([ids, torch.randn(57, 1, generator=generator)], 1))
        self.interrupted = interrupted

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[ContentBatch]:
        """Yield the batches, and interrupt the process in the second epoch."""
        for index, batch in enumerate(super().batches(batch_size, epoch=epoch, seed=seed, start=start), start):
            if self.interrupted and (epoch, index) == (1, 4):
                signal.raise_signal(signal.SIGINT)
            yield batch


def train(
    table: str, optimizer: str, *, out: Path | None = None, interrupted: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Return what a network knows after training: the vector of each id, and the state of its table by id."""
    net = TwoReads(TABLES[table])
    validated: list[Tensor] = []

    def validate() -> float:
        validated.append(net.table(IDS).detach().clone())
        return float(getattr(net.table, "step", len(validated)))  # the last weights are the best, also after resuming

    settings = TrainingConfig(max_epochs=2, batch_size=7, patience=None, **OPTIMIZERS[optimizer])
    fit(net, Rows(interrupted=interrupted), settings, seed=1, out=out, resume=resume, validate=validate, progress=False)
    results = {
        "vectors": net.table(IDS).detach(),
        "line": net.line.weight.detach(),
        "validated": torch.stack(validated),
    }
    if isinstance(net.table, GrowingTable):
        used = net.table.ids != 0
        order = net.table.ids[used].argsort()
        for name in ("ids", "counts", "last_use"):
            results[name] = getattr(net.table, name)[used][order]
        results["step"] = net.table.step
        if net.table.sketch is not None:
            results["cells"] = net.table.sketch.cells
    return results


MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {"width": 8, "dropout": 0.0, "max_history_length": 8},
    "deepfm": {"width": 4, "hidden": [8]},
}


def train_model(name: str) -> dict[str, Any]:
    """Return the weights by id, and the lists, of a model with a divided table."""
    dataset, table = cycle(), {"kind": "growing", "block_rows": 16, "max_rows": 60, "is_divided": True}
    torch.manual_seed(0)
    model: Recommender = build_component("model", {"name": name, "table": table, **MODELS[name]}, dataset.catalog)
    model.set_popularity_from(dataset)
    settings = TrainingConfig(optimizer="sgd", learning_rate=0.1, max_epochs=2, batch_size=79, patience=None)
    result = fit(model, model.examples(dataset), settings, seed=1, validate=lambda: 1.0, progress=False)  # type: ignore[operator]
    requests = make_split(dataset, "leave-one-out").test
    scores = model.recommend(requests, 12)
    tables = [part for part in model.modules() if isinstance(part, GrowingTable)]
    return {
        "losses": torch.tensor([entry["loss"] for entry in result.epoch_log]),
        "scores": scores.scores,
        "ids": torch.cat([part.ids[part.ids != 0].sort().values for part in tables]),
    }


def run_process(out: Path) -> None:
    """Train in each of two processes, interrupt and resume, and save the results in `out`."""
    with processes.process_group():
        assert processes.world_size() == 2
        results = {f"{table} {optimizer}": train(table, optimizer) for table, optimizer in CASES}
        results |= {name: train_model(name) for name in MODELS}
        # Begun by one process, continued by two, ended by one.
        results["continued"] = train("divided", "adamw", out=out / "moved", interrupted=False, resume=True)
        train("divided", "adamw", out=out / "begun-by-two", interrupted=True)
        torch.save(results, out / f"{processes.rank()}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of two processes."""
    out = tmp_path_factory.mktemp("tables")
    train("divided", "adamw", out=out / "moved", interrupted=True)
    launch(__file__, "run_process", out)
    return out


def assert_close(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("table", "optimizer"), CASES)
def test_two_processes_equal_one(folder: Path, table: str, optimizer: str) -> None:
    """Check vectors, counts and members; which ids have rows is equal bit for bit."""
    expected = train(table, optimizer)
    if "ids" in expected:
        assert len(expected["ids"]) == 7
    for rank in (0, 1):
        saved = torch.load(folder / f"{rank}.pt", weights_only=True)[f"{table} {optimizer}"]
        assert_close(expected, saved)
        for name in {"ids", "last_use", "cells"} & expected.keys():
            assert torch.equal(expected[name], saved[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_with_a_divided_table_learns_what_one_process_learns(folder: Path, name: str) -> None:
    expected = train_model(name)
    for rank in (0, 1):
        saved = torch.load(folder / f"{rank}.pt", weights_only=True)[name]
        assert_close(expected, saved)
        assert torch.equal(expected["ids"], saved["ids"])


@pytest.mark.slow
def test_a_checkpoint_moves_from_one_process_to_two_and_back(folder: Path) -> None:
    expected = train("divided", "adamw")
    del expected["validated"]
    for rank in (0, 1):
        saved = torch.load(folder / f"{rank}.pt", weights_only=True)["continued"]
        assert_close(expected, {name: value for name, value in saved.items() if name != "validated"})
    ended_by_one = train("divided", "adamw", out=folder / "begun-by-two", resume=True)
    assert_close(expected, {name: value for name, value in ended_by_one.items() if name != "validated"})
