"""Two processes train as one does: the same weights, the same figures, the same resume points."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
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
from nextitem.distributed import processes
from nextitem.evaluation.evaluate import evaluate_lists, recommend_all
from nextitem.losses.objectives import SampledSoftmax
from nextitem.models.gru4rec import BPR, GRU4Rec, GRU4RecConfig
from nextitem.models.sasrec import SASRec, SASRecConfig
from nextitem.pipeline.runs import load_run
from nextitem.pipeline.train import train as run_training
from nextitem.testing.known_answers import cycle
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

BATCH = 79
ALONE = {"streaming-vq"}  # one stream, one process: refused with a line
LEARNING = [name for name, entry in MODELS.items() if issubclass(entry.load(), Trainable) and name not in ALONE]


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
    # Plain steps: Adam would blow up the rounding of gradients that are 0 but for it.
    return TrainingConfig(optimizer="sgd", max_epochs=epochs, batch_size=BATCH, learning_rate=0.5)


class SparseNet(nn.Module):
    """Rows of a table towards 1; only the rows that a batch names have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 3, sparse=True)
        self.line = nn.Linear(3, 1)

    def training_loss(self, batch: ContentBatch) -> LossTerms:
        """Mean over the rows of the batch."""
        return LossTerms((self.line(self.table(batch.content[:, 0].long())) - 1).square().mean())


def train_sparse() -> dict[str, torch.Tensor]:
    """Seven rows in batches of three: of the last, one process has nothing."""
    net = SparseNet()
    rows = torch.tensor([1, 2, 2, 5, 5, 7, 8])[:, None].float()
    settings = TrainingConfig(optimizer="adagrad", learning_rate=0.1, momentum=0.5, max_epochs=5, batch_size=3)
    fit(net, ContentRows(rows), settings, seed=1, progress=False)
    return net.state_dict()


def train_lonely() -> dict[str, torch.Tensor]:
    """Batches of one sequence: the second process has nothing, ever."""
    model = sasrec()
    settings = TrainingConfig(optimizer="sgd", max_epochs=1, batch_size=1, learning_rate=0.05)
    fit(model, model.examples(cycle()), settings, seed=1, progress=False)
    return model.state_dict()


def train(name: str, out: Path, epochs: int, *, resume: bool = False) -> tuple[Recommender, list[dict[str, float]]]:
    model: SASRec | GRU4Rec = sasrec() if name == "sasrec" else gru4rec()
    examples = model.examples(cycle())
    settings = config(name, 4)
    result = fit(model, examples, settings, seed=1, out=out, stop_after=epochs, resume=resume, progress=False)
    return model, result.history


def interrupted(out: Path) -> None:
    """One epoch of both models, of four, as Ctrl-C would leave them."""
    for name in ("sasrec", "gru4rec"):
        train(name, out / name, 1)
        file = out / name / "checkpoints" / "last.ckpt"
        if processes.rank() == 0:
            saved = torch.load(file, weights_only=True)
            next(iter(saved["callbacks"].values()))["stopped"] = "interrupted"
            torch.save(saved, file)
        processes.broadcast_int(0)


def child(out: Path) -> None:
    """What each of two processes does."""
    with processes.process_group():
        assert processes.count() == 2
        first = processes.rank() == 0
        for name in ("sasrec", "gru4rec"):
            model, history = train(name, out / "two" / name, 4)
            if first:
                torch.save({"weights": model.state_dict(), "history": history}, out / f"{name}.pt")
        torch.save(train_sparse(), out / f"sparse-{processes.rank()}.pt")
        torch.save(train_lonely(), out / f"lonely-{processes.rank()}.pt")
        test = make_split(cycle(), "leave-one-out").test
        lists = recommend_all(sasrec().eval(), test, 3, batch_size=9)
        one = recommend_all(sasrec().eval(), test.select(torch.arange(4)), 3, batch_size=9)  # nothing for the second
        torch.save({"lists": lists, "few": one}, out / f"lists-{processes.rank()}.pt")
        interrupted(out / "cut-by-two")
        model, _ = train("gru4rec", out / "cut-by-one" / "gru4rec", 4, resume=True)
        other, _ = train("sasrec", out / "cut-by-one" / "sasrec", 4, resume=True)
        if first:
            torch.save({"gru4rec": model.state_dict(), "sasrec": other.state_dict()}, out / "resumed.pt")
        # A budget that is over at once ends both at the same step.
        stopped = fit(
            sasrec(),
            sasrec().examples(cycle()),
            config("sasrec", 4).model_copy(update={"max_minutes": 1e-9}),
            progress=False,
        )
        assert stopped.stopped == "time"
        with pytest.raises(UserError, match="one process"):
            run_training("streaming-vq", cycle(), out=out / "stream", recipe="debug/streaming-vq", progress=False)
        with pytest.raises(FileNotFoundError if first else UserError):
            processes.run_on_rank_zero(lambda: (out / "missing" / "file").read_text())


def child_of_all_models(out: Path) -> None:
    """Train every model that learns by gradient, from an undated log: biases by time stay without a gradient."""
    with processes.process_group():
        dataset = cycle()
        dataset = dataset.with_interactions(replace(dataset.interactions, timestamps=None))
        for name in LEARNING:
            few = ["training.max_epochs=1"]
            run_training(name, dataset, out=out / name, recipe=f"debug/{name}", overrides=few, progress=False)


def launch(out: Path, *, function: str = "child") -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {paths!r}; import test_data_parallel as t; t.{function}(t.Path({str(out)!r}))"
    running = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **shared, **own}))
    try:
        assert [process.wait(timeout=240) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left what they found."""
    out = tmp_path_factory.mktemp("together")
    interrupted(out / "cut-by-one")
    launch(out)
    return out


@pytest.fixture(scope="module")
def runs_of_all_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that two processes have trained."""
    out = tmp_path_factory.mktemp("models")
    launch(out, function="child_of_all_models")
    return out


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.allclose(value, right[name], rtol=1e-4, atol=1e-5), name


def test_two_processes_learn_what_one_learns(found: Path, tmp_path: Path) -> None:
    """The shown losses are those of whole batches."""
    model, history = train("sasrec", tmp_path, 4)
    saved = torch.load(found / "sasrec.pt", weights_only=True)
    close(saved["weights"], model.state_dict())
    for entry, other in zip(history, saved["history"], strict=True):
        assert entry == pytest.approx(other, rel=1e-5)


def test_sparse_gradients_are_those_of_one_process(found: Path) -> None:
    """Rows that one of them, both or none has looked up, with momentum of their own."""
    alone = train_sparse()
    for rank in (0, 1):
        close(torch.load(found / f"sparse-{rank}.pt", weights_only=True), alone)
    torch.testing.assert_close(alone["table.weight"][[0, 3, 4, 6]], SparseNet().table.weight.detach()[[0, 3, 4, 6]])


def test_a_process_without_a_part_of_a_batch_learns_along(found: Path) -> None:
    alone = train_lonely()
    for rank in (0, 1):
        close(torch.load(found / f"lonely-{rank}.pt", weights_only=True), alone)


def test_lanes_are_shared_and_learn(found: Path, tmp_path: Path) -> None:
    """Each process has fewer lanes in its batch, and so fewer negatives: near, not equal."""
    _, history = train("gru4rec", tmp_path, 4)
    saved = torch.load(found / "gru4rec.pt", weights_only=True)["history"]
    assert saved[-1]["loss"] < 0.8 * saved[0]["loss"]
    assert saved[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=0.15)


def test_evaluation_gathers_the_lists_of_one_process(found: Path) -> None:
    test = make_split(cycle(), "leave-one-out").test
    expected = recommend_all(sasrec().eval(), test, 3, batch_size=9)
    for rank in (0, 1):
        saved = torch.load(found / f"lists-{rank}.pt", weights_only=True)
        assert torch.equal(saved["lists"], expected)
        assert torch.equal(saved["few"], expected[:4])


def test_resume_points_move_between_one_process_and_two(found: Path, tmp_path: Path) -> None:
    whole, _ = train("sasrec", tmp_path, 4)
    resumed = torch.load(found / "resumed.pt", weights_only=True)  # begun by one, ended by two
    close(resumed["sasrec"], whole.state_dict())
    alone, _ = train("sasrec", found / "cut-by-two" / "sasrec", 4, resume=True)  # begun by two, ended by one
    close(alone.state_dict(), whole.state_dict())
    lanes = torch.load(found / "cut-by-two" / "gru4rec" / "checkpoints" / "last.ckpt", weights_only=True)["step_state"]
    assert bool((lanes != 0).any(1).all())  # those of both processes


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_every_model_trains_in_two_processes(runs_of_all_models: Path, name: str) -> None:
    run = load_run(runs_of_all_models / name)
    assert 0 <= run.metrics["metrics"]["recall@10"] <= 1
    assert run.metrics["users"] == 80


@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_the_batch(count: int) -> None:
    items = Jagged.from_rows([[1, 2], [3], [4, 5, 6], [7]])
    batch = NextItemBatch(items, items.with_values((items.values > 2) * items.values), seed=3, timestamps=items)
    parts = [batch.share(rank, count) for rank in range(count)]
    assert sorted(row for part in parts for row in part.items.to_lists()) == sorted(items.to_lists())
    assert all(part.timestamps is not None and part.seed == 3 for part in parts)
    assert sum(part.loss_count for part in parts) == batch.loss_count == 5
    dataset = cycle()
    lanes = next(iter(SessionLanes(dataset.interactions).batches(5, epoch=0, seed=0)))
    own = [lanes.share(rank, count) for rank in range(count)]
    assert np.array_equal(np.sort(torch.cat([part.items for part in own]).numpy()), np.sort(lanes.items.numpy()))
    assert all(part.num_lanes == 5 and part.loss_count == 5 for part in own)
    requests = make_split(dataset, "leave-one-out").test
    assert sum(requests.share(rank, count).loss_count for rank in range(count)) == requests.num_requests


def test_alone_nothing_is_shared() -> None:
    assert (processes.count(), processes.rank(), processes.broadcast_int(7)) == (1, 0, 7)
    part = torch.arange(3)
    assert processes.gather(part) == [part]
    done: list[int] = []
    processes.run_on_rank_zero(lambda: done.append(1))
    assert done == [1]


@pytest.mark.slow
def test_torchrun_writes_one_bundle_and_one_line_of_error(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nextitem", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)

    few = ["--set", "training.max_epochs=2", "--set", "model.dropout=0"]
    base = ["train", "sasrec", "--data", "shop", "--recipe", "debug/sasrec"]
    both = run(*base, "--out", str(tmp_path / "two"), *few)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("recall@10") == 1
    assert {"recipe.toml", "weights.safetensors", "metrics.json"} <= {
        file.name for file in (tmp_path / "two").iterdir()
    }
    wrong = run(*base, "--out", str(tmp_path / "wrong"), "--set", "model.widht=3")
    assert wrong.returncode != 0
    assert wrong.stderr.count("unknown setting") == 1
    standing = run(*base, "--out", str(tmp_path / "two"))
    assert standing.returncode != 0
    assert standing.stderr.count("is not empty") == 1
    other = run("compare", "--models", "popularity", "--data", "shop", "--out", str(tmp_path / "report"))
    assert other.returncode != 0
    assert other.stderr.count("without it") == 1


def test_metrics_of_an_evaluation_do_not_depend_on_its_batches() -> None:
    """What gathering relies on: a list is that of its request, whatever batch it was answered in."""
    split = make_split(cycle(), "leave-one-out")
    model = sasrec().eval()
    figures = [
        evaluate_lists(model, replace(split.test), train=split.train, batch_size=size).metrics for size in (7, 64)
    ]
    assert figures[0] == figures[1]
