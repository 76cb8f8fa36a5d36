"""Tests of training in two processes: weights, figures and checkpoints equal those of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.two_processes import launch
from torch import nn

from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.core.recommender import Recommender
from nextitem.core.registry import MODELS
from nextitem.core.roles import LossTerms, Trainable
from nextitem.data.examples.content_rows import ContentBatch, ContentRows
from nextitem.data.examples.next_item import NextItemBatch
from nextitem.data.examples.session_lanes import SessionLanes
from nextitem.data.protocols import make_split
from nextitem.data.readers import dataset_from_frames
from nextitem.data.settings import TABLES
from nextitem.data.shop.shop import generate_shop
from nextitem.distributed import processes
from nextitem.evaluation.evaluate import evaluate_lists, recommend_all
from nextitem.losses.objectives import SampledSoftmax
from nextitem.losses.prefix_loss import PrefixLoss, PrefixLossConfig
from nextitem.models.gru4rec import BPR, GRU4Rec, GRU4RecConfig
from nextitem.models.rankers.mtgr import MTGR, MTGRConfig
from nextitem.models.sasrec import SASRec, SASRecConfig
from nextitem.pipeline.runs import load_run
from nextitem.pipeline.train import train as run_training
from nextitem.testing.known_answers import cycle
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

BATCH_SIZE = 79
TRAINABLE = [name for name, entry in MODELS.items() if issubclass(entry.load(), Trainable)]


def sasrec() -> SASRec:
    torch.manual_seed(0)
    return SASRec(
        SASRecConfig(width=8, dropout=0.0, max_history_length=8, objective=SampledSoftmax(num_negatives=6)),
        cycle().catalog,
    )


def gru4rec() -> GRU4Rec:
    dataset = cycle()
    torch.manual_seed(0)
    model = GRU4Rec(GRU4RecConfig(layers=(6,), num_negatives=20, objective=BPR()), dataset.catalog)
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    return model


def config(name: str, epochs: int) -> TrainingConfig:
    if name == "gru4rec":
        return TrainingConfig(optimizer="adagrad", learning_rate=0.05, max_epochs=epochs, batch_size=7)
    # SGD: Adam would magnify the rounding errors of gradients that are otherwise 0.
    return TrainingConfig(optimizer="sgd", max_epochs=epochs, batch_size=BATCH_SIZE, learning_rate=0.5)


class SparseNet(nn.Module):
    """Network over the rows of a table; only the rows that a batch contains have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 3, sparse=True)
        self.line = nn.Linear(3, 1)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """Return the mean squared distance to 1 over the rows of the batch."""
        return LossTerms((self.line(self.table(batch.content[:, 0].long())) - 1).square().mean())


def train_sparse() -> dict[str, torch.Tensor]:
    """Train on seven rows in batches of three: one process has no row of the last batch."""
    net = SparseNet()
    rows = torch.tensor([1, 2, 2, 5, 5, 7, 8])[:, None].float()
    settings = TrainingConfig(optimizer="adagrad", learning_rate=0.1, momentum=0.5, max_epochs=5, batch_size=3)
    fit(net, ContentRows(rows), settings, seed=1, progress=False)
    return net.state_dict()


class TwoLevelNet(nn.Module):
    """Network with the loss of two levels and of their prefixes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(1, 2)
        self.prefix_loss = PrefixLoss(PrefixLossConfig(weight=0.5, rate=0.3), num_levels=2)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """Return the mean squared distance of two outputs to 1 and to 3, and the loss of prefixes."""
        errors = (self.line(batch.content) - torch.tensor([1.0, 3.0])).square().mean(0)
        return LossTerms(errors.mean() + self.prefix_loss(list(errors)))


def train_prefixes() -> dict[str, torch.Tensor]:
    """Train on seven rows in batches of three: one process has no row of the last batch."""
    net, rows = TwoLevelNet(), torch.tensor([0.1, 0.5, 1.0, -1.0, 2.0, 0.3, -0.7])[:, None]
    settings = TrainingConfig(optimizer="sgd", learning_rate=0.05, max_epochs=5, batch_size=3)
    fit(net, ContentRows(rows), settings, seed=1, progress=False)
    return net.state_dict()


def train_single_rows() -> dict[str, torch.Tensor]:
    """Train on batches of one sequence: the second process never has any."""
    model = sasrec()
    settings = TrainingConfig(optimizer="sgd", max_epochs=1, batch_size=1, learning_rate=0.05)
    fit(model, model.examples(cycle()), settings, seed=1, progress=False)
    return model.state_dict()


def train_mtgr() -> dict[str, torch.Tensor]:
    """Train MTGR on impressions, in batches of whole users with about equal numbers of tokens."""
    tables = generate_shop(3, num_items=120, num_users=40)
    dataset = dataset_from_frames({name: getattr(tables, name) for name in TABLES}, tables.settings, name="shop")
    torch.manual_seed(0)
    settings = {"width": 4, "token_width": 8, "head_width": 4, "hidden": (8,), "stream_dropout": 0.0}
    model = MTGR(MTGRConfig.model_validate(settings), dataset.catalog)
    config = TrainingConfig(optimizer="sgd", learning_rate=0.1, max_epochs=2, batch_size=13)
    fit(model, model.examples(dataset), config, seed=1, progress=False)
    return model.state_dict()


def train(name: str, out: Path, epochs: int, *, resume: bool = False) -> tuple[Recommender, list[dict[str, float]]]:
    model: SASRec | GRU4Rec = sasrec() if name == "sasrec" else gru4rec()
    examples = model.examples(cycle())
    settings = config(name, 4)
    result = fit(model, examples, settings, seed=1, out=out, stop_after=epochs, resume=resume, progress=False)
    return model, result.epoch_log


def train_interrupted(out: Path) -> None:
    """Train both models for one epoch of four, and mark the checkpoints as interrupted by Ctrl-C."""
    for name in ("sasrec", "gru4rec"):
        train(name, out / name, 1)
        file = out / name / "checkpoints" / "last.ckpt"
        if processes.rank() == 0:
            saved = torch.load(file, weights_only=True)
            next(iter(saved["callbacks"].values()))["stopped"] = "interrupted"
            torch.save(saved, file)
        processes.broadcast_int(0)


def run_process(out: Path) -> None:
    """Train, evaluate and resume in each of two processes, and save the results in `out`."""
    with processes.process_group():
        assert processes.world_size() == 2
        is_first = processes.rank() == 0
        for name in ("sasrec", "gru4rec"):
            model, epoch_log = train(name, out / "two" / name, 4)
            if is_first:
                torch.save({"weights": model.state_dict(), "epoch_log": epoch_log}, out / f"{name}.pt")
        torch.save(train_sparse(), out / f"sparse-{processes.rank()}.pt")
        torch.save(train_prefixes(), out / f"prefixes-{processes.rank()}.pt")
        torch.save(train_single_rows(), out / f"single-rows-{processes.rank()}.pt")
        torch.save(train_mtgr(), out / f"mtgr-{processes.rank()}.pt")
        test = make_split(cycle(), "leave-one-out").test
        lists = recommend_all(sasrec().eval(), test, 3, batch_size=9)
        few_requests = test.select(torch.arange(4))  # one batch: none for the second process
        first_lists = recommend_all(sasrec().eval(), few_requests, 3, batch_size=9)
        torch.save({"lists": lists, "first_lists": first_lists}, out / f"lists-{processes.rank()}.pt")
        train_interrupted(out / "cut-by-two")
        resumed_gru4rec, _ = train("gru4rec", out / "cut-by-one" / "gru4rec", 4, resume=True)
        resumed_sasrec, _ = train("sasrec", out / "cut-by-one" / "sasrec", 4, resume=True)
        if is_first:
            torch.save(
                {"gru4rec": resumed_gru4rec.state_dict(), "sasrec": resumed_sasrec.state_dict()}, out / "resumed.pt"
            )
        # A time budget that ends at once stops both processes at the same step.
        result = fit(
            sasrec(),
            sasrec().examples(cycle()),
            config("sasrec", 4).model_copy(update={"max_minutes": 1e-9}),
            progress=False,
        )
        assert result.stop_reason == "time"
        with pytest.raises(FileNotFoundError if is_first else UserError):
            processes.run_on_rank_zero(lambda: (out / "missing" / "file").read_text())


def train_all_models(out: Path) -> None:
    """Train every model with gradients on an undated log, where biases by time have no gradient."""
    with processes.process_group():
        dataset = cycle()
        dataset = dataset.with_interactions(replace(dataset.interactions, timestamps=None))
        for name in TRAINABLE:
            overrides = ["training.max_epochs=1"]
            run_training(name, dataset, out=out / name, recipe=f"debug/{name}", overrides=overrides, progress=False)


@pytest.fixture(scope="module")
def results_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of two processes."""
    out = tmp_path_factory.mktemp("two-processes")
    train_interrupted(out / "cut-by-one")
    launch(__file__, "run_process", out)
    return out


@pytest.fixture(scope="module")
def runs_of_all_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs that two processes have trained."""
    out = tmp_path_factory.mktemp("models")
    launch(__file__, "train_all_models", out)
    return out


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Check that two sets of weights are equal up to rounding."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(results_folder: Path, tmp_path: Path) -> None:
    """Check weights, and that the logged losses are those of whole batches."""
    model, epoch_log = train("sasrec", tmp_path, 4)
    saved = torch.load(results_folder / "sasrec.pt", weights_only=True)
    assert_close(saved["weights"], model.state_dict())
    for entry, other in zip(epoch_log, saved["epoch_log"], strict=True):
        assert entry == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_sparse_gradients_are_those_of_one_process(results_folder: Path) -> None:
    """Check rows that one process, both or none has read, with their own momentum."""
    expected = train_sparse()
    for rank in (0, 1):
        assert_close(torch.load(results_folder / f"sparse-{rank}.pt", weights_only=True), expected)
    torch.testing.assert_close(expected["table.weight"][[0, 3, 4, 6]], SparseNet().table.weight.detach()[[0, 3, 4, 6]])


@pytest.mark.slow
def test_weights_of_prefixes_are_those_of_one_process(results_folder: Path) -> None:
    """Check that they follow the losses of whole batches, also if a process has no part of one."""
    expected = train_prefixes()
    assert float(expected["prefix_loss.log_weights"].exp().max()) > 0.55
    ranks = [torch.load(results_folder / f"prefixes-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for saved in ranks:
        assert_close(saved, expected)
    assert torch.equal(ranks[0]["prefix_loss.log_weights"], ranks[1]["prefix_loss.log_weights"])


@pytest.mark.slow
def test_a_process_without_a_part_of_a_batch_gets_the_same_weights(results_folder: Path) -> None:
    expected = train_single_rows()
    for rank in (0, 1):
        assert_close(torch.load(results_folder / f"single-rows-{rank}.pt", weights_only=True), expected)


@pytest.mark.slow
def test_gradients_of_mtgr_weighted_by_samples_are_those_of_one_process(results_folder: Path) -> None:
    """Check a ranker whose requests share streams, though a process has a part of the requests of a user."""
    expected = train_mtgr()
    for rank in (0, 1):
        assert_close(torch.load(results_folder / f"mtgr-{rank}.pt", weights_only=True), expected)


@pytest.mark.slow
def test_session_lanes_are_divided_between_processes_and_learn(results_folder: Path, tmp_path: Path) -> None:
    """Check that losses are near, not equal: each process has fewer lanes, and so fewer negatives."""
    _, epoch_log = train("gru4rec", tmp_path, 4)
    saved = torch.load(results_folder / "gru4rec.pt", weights_only=True)["epoch_log"]
    assert saved[-1]["loss"] < 0.8 * saved[0]["loss"]
    assert saved[-1]["loss"] == pytest.approx(epoch_log[-1]["loss"], rel=0.15)


@pytest.mark.slow
def test_two_processes_return_the_lists_of_one(results_folder: Path) -> None:
    test = make_split(cycle(), "leave-one-out").test
    expected = recommend_all(sasrec().eval(), test, 3, batch_size=9)
    for rank in (0, 1):
        saved = torch.load(results_folder / f"lists-{rank}.pt", weights_only=True)
        assert torch.equal(saved["lists"], expected)
        assert torch.equal(saved["first_lists"], expected[:4])


@pytest.mark.slow
def test_a_run_of_one_process_resumes_in_two_and_vice_versa(results_folder: Path, tmp_path: Path) -> None:
    whole, _ = train("sasrec", tmp_path, 4)
    # Started by one process, ended by two.
    resumed = torch.load(results_folder / "resumed.pt", weights_only=True)
    assert_close(resumed["sasrec"], whole.state_dict())
    # Started by two processes, ended by one.
    single, _ = train("sasrec", results_folder / "cut-by-two" / "sasrec", 4, resume=True)
    assert_close(single.state_dict(), whole.state_dict())
    checkpoint = results_folder / "cut-by-two" / "gru4rec" / "checkpoints" / "last.ckpt"
    lanes = torch.load(checkpoint, weights_only=True)["step_state"]
    assert bool((lanes != 0).any(1).all())  # the lanes of both processes


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_model_trains_in_two_processes(runs_of_all_models: Path, name: str) -> None:
    run = load_run(runs_of_all_models / name)
    assert 0 <= run.metrics["metrics"]["recall@10"] <= 1
    assert run.metrics["users"] == 80


@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_all_processes_make_up_the_batch(count: int) -> None:
    items = Jagged.from_rows([[1, 2], [3], [4, 5, 6], [7]])
    batch = NextItemBatch(items, items.with_values((items.values > 2) * items.values), seed=3, timestamps=items)
    parts = [batch.share(rank, count) for rank in range(count)]
    assert sorted(row for part in parts for row in part.items.to_lists()) == sorted(items.to_lists())
    assert all(part.timestamps is not None and part.seed == 3 for part in parts)
    assert sum(part.loss_count for part in parts) == batch.loss_count == 5
    dataset = cycle()
    lanes = next(iter(SessionLanes(dataset.interactions).batches(5, epoch=0, seed=0)))
    shares = [lanes.share(rank, count) for rank in range(count)]
    assert np.array_equal(np.sort(torch.cat([part.items for part in shares]).numpy()), np.sort(lanes.items.numpy()))
    assert all(part.num_lanes == 5 and part.loss_count == 5 for part in shares)
    requests = make_split(dataset, "leave-one-out").test
    assert sum(requests.share(rank, count).loss_count for rank in range(count)) == requests.num_requests


def test_a_single_process_communicates_with_itself_only() -> None:
    assert (processes.world_size(), processes.rank(), processes.broadcast_int(7)) == (1, 0, 7)
    part = torch.arange(3)
    assert processes.gather(part) == [part]
    calls: list[int] = []
    processes.run_on_rank_zero(lambda: calls.append(1))
    assert calls == [1]


@pytest.mark.slow
def test_torchrun_writes_one_bundle_and_one_error(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nextitem", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)

    settings = ["--set", "training.max_epochs=2", "--set", "model.dropout=0"]
    command = ["train", "sasrec", "--data", "shop", "--recipe", "debug/sasrec"]
    finished = run(*command, "--out", str(tmp_path / "two"), *settings)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("recall@10") == 1
    assert {"recipe.toml", "weights.safetensors", "metrics.json"} <= {
        file.name for file in (tmp_path / "two").iterdir()
    }
    misspelled = run(*command, "--out", str(tmp_path / "wrong"), "--set", "model.widht=3")
    assert misspelled.returncode != 0
    assert misspelled.stderr.count("unknown setting") == 1
    not_empty = run(*command, "--out", str(tmp_path / "two"))
    assert not_empty.returncode != 0
    assert not_empty.stderr.count("is not empty") == 1
    compared = run("compare", "--models", "popularity", "--data", "shop", "--out", str(tmp_path / "report"))
    assert compared.returncode != 0
    assert compared.stderr.count("without it") == 1


def test_metrics_of_an_evaluation_do_not_depend_on_the_batch_size() -> None:
    """Check what gathering relies on: the list of a request does not depend on its batch."""
    split = make_split(cycle(), "leave-one-out")
    model = sasrec().eval()
    figures = [
        evaluate_lists(model, replace(split.test), train=split.train, batch_size=size).metrics for size in (7, 64)
    ]
    assert figures[0] == figures[1]
