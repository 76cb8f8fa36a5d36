"""Training of a Trainable by Lightning, the same for every model."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from nextitem.core.errors import UserError
from nextitem.core.roles import BatchT, Examples
from nextitem.distributed import processes
from nextitem.training.config import TrainingConfig
from nextitem.training.loader import BatchStream
from nextitem.training.memory import keep_freed_memory
from nextitem.training.module import TrainingModule
from nextitem.training.progress import progress_for
from nextitem.training.training_state import TrainingState


@dataclass(frozen=True)
class TrainingResult:
    """Outcome of a training run.

    Attributes:
        epochs: number of complete epochs.
        best_epoch: best epoch by validation, from 1; without validation the last one that was started.
        best_value: validation value of that epoch; None without validation.
        seconds: duration of training, over all parts of a resumed run.
        stop_reason: "finished", "patience", "time" or "interrupted".
        epoch_log: one entry for each epoch: epoch, loss and its named parts (means over the batches), and validation
            if the epoch was validated.
        notes: sentences for the user on epochs that validation could not judge.

    """

    epochs: int
    best_epoch: int
    best_value: float | None
    seconds: float
    stop_reason: str
    epoch_log: list[dict[str, float]]
    notes: tuple[str, ...] = ()


def fit(
    model: nn.Module,
    examples: Examples[BatchT],
    config: TrainingConfig,
    *,
    seed: int = 0,
    out: Path | None = None,
    validate: Callable[[], float] | None = None,
    stop_after: int | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
    label: str = "",
) -> TrainingResult:
    """Train a model, and load the weights of the best epoch into it.

    Ctrl-C and the time budget stop training after the current optimizer step. If the time budget ends within an epoch,
    the partial epoch is validated, and can be selected as the best. On a CPU, a resumed run ends with the weights of an
    uninterrupted run.

    Args:
        model: the model, a Trainable. Its weights are changed in place.
        examples: the training examples.
        config: settings of training.
        seed: seed of the order of examples, of dropout and of negatives.
        out: folder for TensorBoard events and, under checkpoints/, the checkpoint to resume from; None: neither.
        validate: returns the value of the current weights, to be maximised. NaN means that there is nothing to judge
            by: such an epoch is neither better nor worse, and does not count for `patience`. Without any value, the
            last weights are the best.
        stop_after: number of epochs after which training ends, while schedules keep the length of `config.max_epochs`
            (a refit with the best number of epochs).
        resume: continue from the checkpoint in `out`, if there is one.
        device: "auto", "cpu" or "cuda".
        progress: print a progress bar, or a line for each epoch if stderr is no terminal.
        label: name of the model in the progress; if empty, the name of its class.

    Returns:
        The outcome, with the log of all epochs.

    Raises:
        UserError: there are no examples, the device is missing or lacks the precision, the checkpoint is damaged, or
            the loss diverges.

    """
    accelerator = _accelerator(device, config.precision)
    if accelerator == "cpu":
        keep_freed_memory()
    epochs = config.max_epochs if stop_after is None else min(stop_after, config.max_epochs)
    checkpoint = None if out is None else out / "checkpoints" / "last.ckpt"
    saved = _read_checkpoint(checkpoint) if resume and checkpoint is not None else None
    logger = None if out is None or processes.rank() else TensorBoardLogger(out, name="", version="")
    state = TrainingState(
        config,
        progress_for(label or type(model).__name__, is_enabled=progress and processes.rank() == 0),
        validate=validate,
        checkpoint=checkpoint,
        record=lambda values, epoch: None if logger is None else logger.log_metrics(values, step=epoch),
    )
    if saved is not None:
        state.load_state_dict(saved["callbacks"][state.state_key])
        if state.stop_reason == "interrupted" or (state.stop_reason == "time" and not _is_budget_spent(state, config)):
            state.stop_reason = None
    stream = BatchStream(
        examples, batch_size=config.batch_size, seed=seed, epochs=epochs, epoch=state.epoch, start=state.batch
    )
    if stream.per_epoch == 0:
        raise UserError("there is nothing to train on: no user has two training events; use a longer log")
    total_steps = max(1, config.max_epochs * stream.per_epoch // config.accumulate)
    module = TrainingModule(model, config, seed=seed, total_steps=total_steps)
    if state.stop_reason is None and len(stream):
        try:
            _train(module, stream, state, config, saved=saved, accelerator=accelerator, epochs=epochs)
        finally:
            if logger is not None and state.epoch_log:
                logger.experiment.close()
    elif saved is not None:
        module.load_state_dict(saved["state_dict"])
        state.validate_partial_epoch(module)
    if state.best_weights:
        model.load_state_dict(state.best_weights)
    model.eval()
    return TrainingResult(
        epochs=state.epoch,
        best_epoch=state.best_epoch if state.best_weights else state.epoch + (state.batch > 0),
        best_value=state.best_value if state.best_weights else None,
        seconds=state.seconds,
        stop_reason=state.stop_reason or "finished",
        epoch_log=state.epoch_log,
        notes=_notes(state, config),
    )


def _notes(state: TrainingState, config: TrainingConfig) -> tuple[str, ...]:
    """Return a sentence on the epochs that validation could not judge, if there are any."""
    if not state.num_undefined:
        return ()
    num_judged = sum("validation" in entry for entry in state.epoch_log)
    patience = "" if config.patience is None else f", and training.patience = {config.patience} did not count them"
    return (
        f"validation returned no figure after {state.num_undefined} of {num_judged + state.num_undefined} epochs, "
        f"since its requests cannot be judged (all labels alike, or no requests){patience}; "
        + (f"the best of the other epochs is epoch {state.best_epoch}" if num_judged else "the last weights are used"),
    )


def _train(
    module: TrainingModule,
    stream: BatchStream[Any],
    state: TrainingState,
    config: TrainingConfig,
    *,
    saved: dict[str, Any] | None,
    accelerator: str,
    epochs: int,
) -> None:
    """Run Lightning's trainer from the cursor of `state`, and move the model to the CPU afterwards."""
    restore_callbacks = [] if saved is None else [_Restore(saved)]
    with _quiet():
        # Lightning sees all epochs as one. TrainingState has the cursor, so no loop state has to be restored.
        trainer = lightning.Trainer(
            accelerator=accelerator,
            **_process_settings(),
            max_epochs=1,
            callbacks=[*restore_callbacks, state],
            precision=config.precision,
            gradient_clip_val=config.gradient_clip,
            accumulate_grad_batches=config.accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        num_done = state.epoch * stream.per_epoch + state.batch
        state.progress.start(num_done, epochs * stream.per_epoch, per_epoch=stream.per_epoch)
        module.model.train()
        try:
            with _ctrl_c(state):
                trainer.fit(module, train_dataloaders=stream)
        finally:
            state.progress.stop()
        state.finish(trainer, module)
    module.model.to("cpu")


def _process_settings() -> dict[str, Any]:
    """Return Lightning's settings for the processes that torchrun has started, or for a single process."""
    if processes.world_size() == 1:
        return {"devices": 1}
    num_local = int(os.environ["LOCAL_WORLD_SIZE"])
    return {
        "devices": num_local,
        "num_nodes": processes.world_size() // num_local,
        # Each process has its own state between steps, so buffers are not broadcast. Not every step has a gradient for
        # every parameter: biases by time have none if the log is undated.
        "strategy": DDPStrategy(broadcast_buffers=False, find_unused_parameters=True),
    }


class _Restore(lightning.Callback):
    """Callback that loads weights, optimizer and schedule of a checkpoint when training starts."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self.saved = saved

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Lightning's hook: load the checkpoint; the optimizers exist by now."""
        module.load_state_dict(self.saved["state_dict"])
        if "step_state" in self.saved:
            module.model.step_state = self.saved["step_state"].to(module.device)
        for optimizer, state in zip(trainer.optimizers, self.saved["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        for entry, state in zip(trainer.lr_scheduler_configs, self.saved["lr_schedulers"], strict=True):
            entry.scheduler.load_state_dict(state)


def _read_checkpoint(checkpoint: Path) -> dict[str, Any] | None:
    """Return the contents of a checkpoint, or None if there is no file; raise UserError if it is damaged."""
    if not checkpoint.is_file():
        return None
    try:
        contents: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, UnpicklingError) as error:
        raise UserError(f"{checkpoint} is damaged ({error}); train from scratch with --overwrite") from None
    return contents


def _is_budget_spent(state: TrainingState, config: TrainingConfig) -> bool:
    """Return whether earlier parts of the run have used up the time budget."""
    return config.max_minutes is not None and state.seconds > 60 * config.max_minutes


def _accelerator(device: str, precision: str) -> str:
    """Return "cuda" or "cpu"; raise UserError if the device is missing or lacks the precision."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': torch finds no GPU here; use --device cpu, or install a CUDA build of torch")
    accelerator = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if accelerator == "cpu" and precision == "16-mixed":
        raise UserError("training.precision '16-mixed' needs a GPU; use 'bf16-mixed' or '32-true' on a CPU")
    return accelerator


@contextmanager
def _ctrl_c(state: TrainingState) -> Iterator[None]:
    """Stop after the current optimizer step at the first Ctrl-C, and immediately at the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request_stop(signum: int, frame: Any) -> None:
        state.is_interrupted = True
        signal.signal(signal.SIGINT, former_handler)

    former_handler = signal.signal(signal.SIGINT, request_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former_handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's banners, hints and warnings, which are not for our users."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [entry.level for entry in loggers]
    for entry in loggers:
        entry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for entry, level in zip(loggers, levels, strict=True):
            entry.setLevel(level)
