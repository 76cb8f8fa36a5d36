"""Tests of fit: it is deterministic, resumable after a kill, can be stopped, and reports divergence."""

from __future__ import annotations

import io
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from nextitem.core.errors import UserError
from nextitem.core.roles import LossTerms
from nextitem.training import training_state
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import TrainingResult, fit
from nextitem.training.optimizers import build_optimizer, rate_factor
from nextitem.training.progress import ProgressBar


@dataclass(frozen=True)
class Rows:
    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> Rows:
        return Rows(self.inputs.to(device), self.targets.to(device))

    def share(self, rank: int, count: int) -> Rows:
        return Rows(self.inputs[rank::count], self.targets[rank::count])

    @property
    def loss_count(self) -> int:
        return len(self.inputs)


class LineExamples:
    """Examples of y = 3x - 1, shuffled by (seed, epoch); each batch takes `pause` seconds."""

    def __init__(self, count: int = 64, pause: float = 0.0) -> None:
        self.pause = pause
        self.inputs = torch.linspace(-1, 1, count)[:, None].repeat(1, 4)
        self.targets = 3 * self.inputs[:, :1] - 1

    def num_batches(self, batch_size: int) -> int:
        return math.ceil(len(self.inputs) / batch_size)

    def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[Rows]:
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for rows in order.split(batch_size)[start:]:
            if self.pause:
                time.sleep(self.pause)
            yield Rows(self.inputs[rows], self.targets[rows])


class Net(nn.Module):
    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))

    def examples(self, train: object) -> LineExamples:
        return LineExamples()

    def training_loss(self, batch: Rows) -> LossTerms:
        error = self.layers(batch.inputs) - batch.targets
        return LossTerms((error**2).mean(), {"absolute": error.detach().abs().mean()})


def config(**fields: object) -> TrainingConfig:
    return TrainingConfig(**{"max_epochs": 6, "batch_size": 8, "learning_rate": 0.01, "patience": None, **fields})


def run(net: Net, settings: TrainingConfig, **arguments: object) -> TrainingResult:
    return fit(net, LineExamples(), settings, progress=False, **arguments)  # type: ignore[arg-type]


def have_same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_training_learns_and_the_same_seed_gives_the_same_weights() -> None:
    nets = [Net(), Net(), Net()]
    results = [run(net, config(max_epochs=40), seed=seed) for net, seed in zip(nets, (1, 1, 2), strict=True)]
    assert results[0].epoch_log[-1]["loss"] < 0.2 * results[0].epoch_log[0]["loss"]
    assert have_same_weights(nets[0], nets[1])
    assert not have_same_weights(nets[0], nets[2])
    assert (results[0].epochs, results[0].stop_reason) == (40, "finished")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
    ],
)
def test_training_equals_a_plain_loop_of_optimizer_steps(name: str, kind: Callable[..., torch.optim.Optimizer]) -> None:
    net, plain = Net(dropout=0.0), Net(dropout=0.0)
    run(net, config(optimizer=name), seed=3)
    optimizer = kind(plain.parameters(), lr=0.01, weight_decay=0.0)
    for epoch in range(6):
        for batch in LineExamples().batches(8, epoch=epoch, seed=3):
            optimizer.zero_grad()
            plain.training_loss(batch).total.backward()
            optimizer.step()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_accumulated_batches_equal_one_large_batch() -> None:
    small, large = Net(dropout=0.0), Net(dropout=0.0)
    result = run(small, config(accumulate=4, optimizer="sgd"))
    expected = run(large, config(batch_size=32, optimizer="sgd"))
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    # Within an epoch both see the same weights every 32 rows, so the means of the losses agree too.
    assert [entry["loss"] for entry in result.epoch_log] == pytest.approx(
        [entry["loss"] for entry in expected.epoch_log]
    )


def test_a_validation_without_a_figure_is_not_better_and_does_not_stop_training() -> None:
    nan, net, plain = float("nan"), Net(), Net()
    result = run(net, config(patience=1), validate=lambda: nan)
    expected = run(plain, config())
    assert (result.epochs, result.stop_reason, result.best_epoch, result.best_value) == (6, "finished", 6, None)
    assert have_same_weights(net, plain)
    assert result.epoch_log == expected.epoch_log  # no entry has a validation
    assert result.notes == (
        "validation returned no figure after 6 of 6 epochs, since its requests cannot be judged (all labels alike, or "
        "no requests), and training.patience = 1 did not count them; the last weights are used",
    )
    assert expected.notes == ()


def test_epochs_without_a_figure_do_not_count_for_patience(tmp_path: Path) -> None:
    values = iter([0.1, float("nan"), 0.3, float("nan"), 0.2, float("nan"), 0.1, 9.0])
    result = run(Net(), config(patience=2, max_epochs=8), validate=lambda: next(values))
    assert (result.epochs, result.stop_reason, result.best_epoch, result.best_value) == (7, "patience", 3, 0.3)
    assert "no figure after 3 of 7 epochs" in result.notes[0]
    assert result.notes[0].endswith("the best of the other epochs is epoch 3")


def test_the_gradient_is_clipped_to_the_maximum_norm() -> None:
    clipped, plain = Net(dropout=0.0), Net(dropout=0.0)
    run(clipped, config(gradient_clip=0.1, optimizer="sgd", learning_rate=0.5, max_epochs=2))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for epoch in range(2):
        for batch in LineExamples().batches(8, epoch=epoch, seed=0):
            optimizer.zero_grad()
            plain.training_loss(batch).total.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            optimizer.step()
    assert have_same_weights(clipped, plain)


def test_the_epoch_log_contains_the_mean_parts_of_the_loss() -> None:
    net = Net(dropout=0.0)
    entry = run(net, config(max_epochs=1, learning_rate=1e-12)).epoch_log[0]
    batches = list(LineExamples().batches(8, epoch=0, seed=0))
    terms = [Net(dropout=0.0).training_loss(batch) for batch in batches]
    assert entry["loss"] == pytest.approx(sum(float(t.total.detach()) for t in terms) / 8)
    assert entry["absolute"] == pytest.approx(sum(float(t.named["absolute"]) for t in terms) / 8)


def test_mixed_precision_learns_and_half_floats_need_a_gpu() -> None:
    mixed, full = Net(dropout=0.0), Net(dropout=0.0)
    result = run(mixed, config(max_epochs=20, precision="bf16-mixed", gradient_clip=10.0))
    run(full, config(max_epochs=20))
    assert result.epoch_log[-1]["loss"] < 0.2 * result.epoch_log[0]["loss"]
    assert not have_same_weights(mixed, full)
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"16-mixed.*bf16-mixed"):
            run(Net(), config(precision="16-mixed"))


@pytest.mark.parametrize("cut_after", [1, 7, 8, 20, 33])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path: Path, cut_after: int) -> None:
    whole, cut, resumed = Net(), Net(), Net()
    values = iter([0.1, 0.5, 0.3, 0.4, 0.2, 0.45])
    expected = run(whole, config(), seed=4, validate=lambda: next(values))

    class StopTraining(Exception):
        pass

    class CutExamples(LineExamples):
        num_batches_read = 0

        def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[Rows]:
            for batch in super().batches(batch_size, epoch=epoch, seed=seed, start=start):
                if self.num_batches_read == cut_after:
                    raise StopTraining
                self.num_batches_read += 1
                yield batch

    values = iter([0.1, 0.5, 0.3, 0.4, 0.2, 0.45])
    settings = config(checkpoint_minutes=1e-9)
    with pytest.raises(StopTraining):
        fit(cut, CutExamples(), settings, seed=4, out=tmp_path, validate=lambda: next(values), progress=False)
    result = run(resumed, settings, seed=4, out=tmp_path, validate=lambda: next(values), resume=True)
    assert have_same_weights(whole, resumed)
    assert result.epoch_log == expected.epoch_log
    assert (result.best_epoch, result.best_value) == (expected.best_epoch, expected.best_value) == (2, 0.5)


@pytest.mark.parametrize("interrupt_after", [0, 1, 2, 6])
def test_an_interrupted_run_resumes_without_any_difference(tmp_path: Path, interrupt_after: int) -> None:
    """Check that no gradient is lost, at whatever batch of an accumulated group Ctrl-C is pressed."""

    class InterruptedExamples(LineExamples):
        num_batches_read = 0

        def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[Rows]:
            for batch in super().batches(batch_size, epoch=epoch, seed=seed, start=start):
                if self.num_batches_read == interrupt_after:
                    os.kill(os.getpid(), signal.SIGINT)
                self.num_batches_read += 1
                yield batch

    whole, cut, resumed = Net(), Net(), Net()
    settings = config(accumulate=3, max_epochs=2)
    expected = run(whole, settings, seed=4)
    before = signal.getsignal(signal.SIGINT)
    interrupted = fit(cut, InterruptedExamples(), settings, seed=4, out=tmp_path, progress=False)
    assert (interrupted.stop_reason, interrupted.epochs) == ("interrupted", interrupt_after // 6)
    assert signal.getsignal(signal.SIGINT) is before
    result = run(resumed, settings, seed=4, out=tmp_path, resume=True)
    assert (result.stop_reason, result.epoch_log) == ("finished", expected.epoch_log)
    assert have_same_weights(whole, resumed)


CHILD = """
import sys, torch
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {tests!r})
from test_fit import LineExamples, Net, config
from nextitem.training.fit import fit
out, resume, pause = Path(sys.argv[1]), sys.argv[2] == "resume", float(sys.argv[3])
torch.set_num_threads(1)
net = Net()
settings = config(max_epochs=12, checkpoint_minutes=1e-9, optimizer="adam", schedule="cosine")
result = fit(net, LineExamples(pause=pause), settings, seed=9, out=out, resume=resume, progress=False)
torch.save(net.state_dict(), out / "final.pt")
print(result.stop_reason, result.epochs)
"""


def child_command(out: Path, mode: str, pause: float) -> list[str]:
    """Return the command of a training process; `mode` is "new" or "resume"."""
    return [sys.executable, "-c", CHILD.format(tests=str(Path(__file__).parent)), str(out), mode, str(pause)]


def start_and_wait(out: Path, mode: str) -> subprocess.Popen[str]:
    """Start a slow training process, and return it once it has saved a checkpoint."""
    checkpoint = out / "checkpoints" / "last.ckpt"
    former = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    process = subprocess.Popen(
        child_command(out, mode, 0.02), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == former:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_kill_9_and_resuming_gives_the_same_final_weights(tmp_path: Path) -> None:
    """Kill training twice, at random times: it saves after every batch, so a checkpoint is often half written."""
    whole = Net()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(whole, config(max_epochs=12, optimizer="adam", schedule="cosine"), seed=9)
    torch.set_num_threads(threads)
    for mode in ("new", "resume"):
        process = start_and_wait(tmp_path, mode)
        time.sleep(random.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "final.pt").exists()
    again = subprocess.run(child_command(tmp_path, "resume", 0.0), check=True, capture_output=True, text=True)
    assert (again.stdout.split(), again.stderr) == (["finished", "12"], "")
    final_weights = torch.load(tmp_path / "final.pt", weights_only=True)
    assert all(torch.equal(value, final_weights[name]) for name, value in whole.state_dict().items())


def test_a_kill_during_a_save_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed = Net(), Net()
    settings = config(checkpoint_minutes=1e-9)
    run(whole, settings, seed=4)
    saved_paths, save = [], lightning.Trainer.save_checkpoint

    def save_half(trainer: lightning.Trainer, path: Path) -> None:
        save(trainer, path)
        saved_paths.append(path)
        if len(saved_paths) == 11:
            path.write_bytes(path.read_bytes()[:100])
            raise MemoryError

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", save_half)
    with pytest.raises(MemoryError):
        run(Net(), settings, seed=4, out=tmp_path)
    monkeypatch.undo()
    run(resumed, settings, seed=4, out=tmp_path, resume=True)
    assert have_same_weights(whole, resumed)


@pytest.mark.slow
def test_ctrl_c_stops_training_which_can_be_resumed(tmp_path: Path) -> None:
    process = start_and_wait(tmp_path, "new")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("interrupted")
    assert err == ""
    assert (tmp_path / "final.pt").is_file()
    again = subprocess.run(child_command(tmp_path, "resume", 0.0), check=True, capture_output=True, text=True)
    assert again.stdout.split() == ["finished", "12"]


def test_early_stopping_restores_the_best_weights(tmp_path: Path) -> None:
    net, values, weights_by_epoch = Net(), iter([0.1, 0.3, 0.2, 0.2, 0.9]), []

    def validate() -> float:
        weights_by_epoch.append([p.detach().clone() for p in net.parameters()])
        return next(values)

    result = run(net, config(max_epochs=9, patience=2), validate=validate, out=tmp_path)
    assert (result.stop_reason, result.epochs, result.best_epoch, result.best_value) == ("patience", 4, 2, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights_by_epoch[1], strict=True))
    assert sorted(path.name.partition(".")[0] for path in tmp_path.iterdir()) == ["checkpoints", "events"]
    resumed = run(Net(), config(max_epochs=9, patience=2), validate=validate, out=tmp_path, resume=True)
    assert (resumed.stop_reason, resumed.epochs) == ("patience", 4)


def test_training_stops_when_the_time_budget_ends() -> None:
    settings = config(max_epochs=1000, max_minutes=1 / 60)
    result = fit(Net(), LineExamples(pause=0.01), settings, progress=False, validate=lambda: 1.0)
    assert result.stop_reason == "time"
    assert result.seconds > 0.9
    assert result.epochs < 500  # a thousand epochs with 0.01 seconds a batch would take far longer


def test_an_epoch_cut_by_the_budget_is_validated_and_logged_as_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still until a batch of the second epoch takes an hour."""
    clock = [0.0]

    class SlowSecondEpoch(LineExamples):
        def batches(self, batch_size: int, *, epoch: int, seed: int, start: int = 0) -> Iterator[Rows]:
            for number, batch in enumerate(super().batches(batch_size, epoch=epoch, seed=seed, start=start)):
                clock[0] += 3600 if epoch and number == 4 else 0
                yield batch

    values = iter([0.9, 0.4])
    monkeypatch.setattr(training_state, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    settings = config(max_epochs=1000, max_minutes=1)
    result = fit(Net(), SlowSecondEpoch(), settings, progress=False, validate=lambda: next(values))
    assert (result.stop_reason, result.epochs, result.best_epoch, result.best_value) == ("time", 1, 1, 0.9)
    assert [(entry["epoch"], entry["validation"]) for entry in result.epoch_log] == [(1, 0.9), (2, 0.4)]


def test_a_budget_that_ends_in_the_first_epoch_gives_a_validated_model(tmp_path: Path) -> None:
    def train_slowly(minutes: float | None, *, resume: bool = False) -> tuple[Net, TrainingResult]:
        net, settings = Net(), config(max_epochs=1, max_minutes=minutes, patience=1)
        examples = LineExamples(count=400, pause=0.02 if minutes else 0)
        return net, fit(net, examples, settings, out=tmp_path, resume=resume, validate=lambda: 0.5, progress=False)

    first, result = train_slowly(0.3 / 60)
    assert (result.stop_reason, result.epochs, result.best_epoch, result.best_value) == ("time", 0, 1, 0.5)
    second, again = train_slowly(0.3 / 60, resume=True)  # the budget is spent: the same result
    assert (again.stop_reason, again.epoch_log) == ("time", result.epoch_log)
    assert have_same_weights(first, second)
    resumed, longer = train_slowly(None, resume=True)
    whole = Net()
    expected = fit(whole, LineExamples(count=400), config(max_epochs=1), validate=lambda: 0.5, progress=False)
    assert (longer.stop_reason, longer.epoch_log) == ("finished", expected.epoch_log)
    assert have_same_weights(resumed, whole)


def test_a_refit_with_fewer_epochs_follows_the_same_schedule() -> None:
    weights_by_epoch: list[list[Tensor]] = []
    net, short = Net(), Net()

    def validate() -> float:
        weights_by_epoch.append([p.detach().clone() for p in net.parameters()])
        return 0.0

    run(net, config(schedule="cosine", max_epochs=6), validate=validate)
    run(short, config(schedule="cosine", max_epochs=6), stop_after=3)
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), weights_by_epoch[2], strict=True))


def test_divergence_is_an_error_with_place_and_remedy() -> None:
    with pytest.raises(UserError, match=r"epoch \d+, batch \d+.*learning_rate"):
        run(Net(), config(optimizer="sgd", learning_rate=1e9, max_epochs=50))


def test_missing_examples_and_devices_are_named_in_the_error() -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        fit(Net(), LineExamples(count=0), config(), progress=False)
    with pytest.raises(UserError, match="choose auto, cpu or cuda"):
        run(Net(), config(), device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            run(Net(), config(), device="cuda")


def test_a_damaged_checkpoint_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"damaged.*--overwrite"):
        run(Net(), config(), out=tmp_path, resume=True)


def test_progress_is_one_line_for_each_epoch_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Net(), LineExamples(), config(max_epochs=2), label="net", validate=lambda: 0.5)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(
        r"net: epoch 2/2 loss \d+\.\d{4} validation 0\.5000 \(best: epoch 1\), [\d.,]+ batches/s, 0:00 left",
        lines[1],
    )


def test_on_a_terminal_progress_is_a_bar_that_reaches_its_end() -> None:
    terminal = io.StringIO()
    bar = ProgressBar("net", console=Console(file=terminal, force_terminal=True, width=160))
    bar.start(3, 12, per_epoch=6)
    for index in range(9):
        bar.step(index // 6, torch.tensor(0.25))
    bar.epoch({"epoch": 2.0, "loss": 0.25, "validation": 0.5}, best_epoch=1)
    bar.stop()
    assert "12/12" in terminal.getvalue()
    assert "loss 0.2500 validation 0.5000 best epoch 1" in terminal.getvalue()


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("cosine", 0, [1.0, 0.5 * (1 + math.cos(math.pi / 6)), None, 0.5, None, None]),
        ("inverse-sqrt", 1, [1, 1, math.sqrt(1 / 2), math.sqrt(1 / 3), 0.5, math.sqrt(1 / 5)]),
    ],
)
def test_schedules_of_the_learning_rate(schedule: str, warmup: int, expected: list[float | None]) -> None:
    settings = config(schedule=schedule, warmup_steps=warmup)
    for step, value in enumerate(expected):
        if value is not None:
            assert rate_factor(step, settings, total_steps=6) == pytest.approx(value)


def test_weight_decay_acts_on_matrices_only() -> None:
    groups = build_optimizer(Net(), config(weight_decay=0.1)).param_groups
    assert {p.dim(): group["weight_decay"] for group in groups for p in group["params"]} == {2: 0.1, 1: 0.0}
