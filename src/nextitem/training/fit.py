"""fit: the one training path."""

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
    """How training went.

    `epochs` counts complete ones. `best_epoch` counts from 1; without validation it is the last one begun.
    `history` has an entry an epoch: epoch, loss and its named parts (means over the batches), and validation
    where there was one. `notes` are sentences for the user: what validation could not do.
    """

    epochs: int
    best_epoch: int
    best_value: float | None
    seconds: float
    stopped: str  # finished, patience, time, interrupted
    history: list[dict[str, float]]
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
    """Trains `model` (a Trainable) and leaves in it the weights of the best epoch.

    `validate` returns the value to be maximised, NaN if there is nothing to judge by: such an epoch is neither better
    nor worse, and counts nothing towards `patience`. Without any value the last weights are the best. `stop_after` ends
    after so many epochs while schedules keep the length of `config.max_epochs` (a refit for a chosen number of
    epochs). `out` takes TensorBoard events and, under checkpoints/, the resume point; with `resume` training
    goes on from there and ends, on a CPU, with the weights of an uninterrupted run. Ctrl-C and the time budget
    stop it after the current optimizer step; what the budget leaves of an epoch is validated as an epoch, and so
    may be the best. Raises UserError where there are no examples, a device is missing, its precision is, or the
    loss diverges.
    """
    accelerator = _accelerator(device, config.precision)
    if accelerator == "cpu":
        keep_freed_memory()
    epochs = config.max_epochs if stop_after is None else min(stop_after, config.max_epochs)
    checkpoint = None if out is None else out / "checkpoints" / "last.ckpt"
    saved = _read(checkpoint) if resume and checkpoint is not None else None
    logger = None if out is None or processes.rank() else TensorBoardLogger(out, name="", version="")
    state = TrainingState(
        config,
        progress_for(label or type(model).__name__, shown=progress and processes.rank() == 0),
        validate=validate,
        checkpoint=checkpoint,
        record=lambda values, epoch: None if logger is None else logger.log_metrics(values, step=epoch),
    )
    if saved is not None:
        state.load_state_dict(saved["callbacks"][state.state_key])
        if state.stopped == "interrupted" or (state.stopped == "time" and not _spent(state, config)):
            state.stopped = None
    stream = BatchStream(
        examples, batch_size=config.batch_size, seed=seed, epochs=epochs, epoch=state.epoch, start=state.batch
    )
    if stream.per_epoch == 0:
        raise UserError("there is nothing to train on: no user has two events that may be learnt from")
    total_steps = max(1, config.max_epochs * stream.per_epoch // config.accumulate)
    module = TrainingModule(model, config, seed=seed, total_steps=total_steps)
    if state.stopped is None and len(stream):
        try:
            _train(module, stream, state, config, saved=saved, accelerator=accelerator, epochs=epochs)
        finally:
            if logger is not None and state.history:
                logger.experiment.close()
    elif saved is not None:
        module.load_state_dict(saved["state_dict"])
        state.judge_rest(module)
    if state.best_weights:
        model.load_state_dict(state.best_weights)
    model.eval()
    return TrainingResult(
        epochs=state.epoch,
        best_epoch=state.best_epoch if state.best_weights else state.epoch + (state.batch > 0),
        best_value=state.best_value if state.best_weights else None,
        seconds=state.seconds,
        stopped=state.stopped or "finished",
        history=state.history,
        notes=_notes(state, config),
    )


def _notes(state: TrainingState, config: TrainingConfig) -> tuple[str, ...]:
    """Return what the user should know of validation."""
    if not state.num_undefined:
        return ()
    judged = sum("validation" in entry for entry in state.history)
    patience = "" if config.patience is None else f", and training.patience = {config.patience} did not count them"
    return (
        f"validation gave no figure after {state.num_undefined} of {judged + state.num_undefined} epochs, since "
        f"what it holds cannot be judged (all labels alike, or nothing asked){patience}; "
        + (f"the best of the others is epoch {state.best_epoch}" if judged else "the last weights are kept"),
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
    restore = [] if saved is None else [_Restore(saved)]
    with _quiet():
        # All epochs are one epoch to Lightning: the cursor is ours, so no loop state has to be restored.
        trainer = lightning.Trainer(
            accelerator=accelerator,
            **_together(),
            max_epochs=1,
            callbacks=[*restore, state],
            precision=config.precision,
            gradient_clip_val=config.gradient_clip,
            accumulate_grad_batches=config.accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        done = state.epoch * stream.per_epoch + state.batch
        state.progress.start(done, epochs * stream.per_epoch, per_epoch=stream.per_epoch)
        module.model.train()
        try:
            with _ctrl_c(state):
                trainer.fit(module, train_dataloaders=stream)
        finally:
            state.progress.stop()
        state.finish(trainer, module)
    module.model.to("cpu")


def _together() -> dict[str, Any]:
    """Lightning's settings for the processes that torchrun has started, or for this one alone."""
    if processes.count() == 1:
        return {"devices": 1}
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return {
        "devices": here,
        "num_nodes": processes.count() // here,
        # What a model carries between steps is each process's own. Not every step has a gradient for every parameter:
        # an undated log has none for biases by time.
        "strategy": DDPStrategy(broadcast_buffers=False, find_unused_parameters=True),
    }


class _Restore(lightning.Callback):
    """Puts a checkpoint's weights, optimizer and schedule into a trainer that is about to begin."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self.saved = saved

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Lightning's hook: optimizers are made by now."""
        module.load_state_dict(self.saved["state_dict"])
        if "step_state" in self.saved:
            module.model.step_state = self.saved["step_state"].to(module.device)
        for optimizer, state in zip(trainer.optimizers, self.saved["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        for entry, state in zip(trainer.lr_scheduler_configs, self.saved["lr_schedulers"], strict=True):
            entry.scheduler.load_state_dict(state)


def _read(checkpoint: Path) -> dict[str, Any] | None:
    if not checkpoint.is_file():
        return None
    try:
        loaded: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, UnpicklingError) as error:
        raise UserError(f"{checkpoint} is damaged ({error}); begin again with --overwrite") from None
    return loaded


def _spent(state: TrainingState, config: TrainingConfig) -> bool:
    return config.max_minutes is not None and state.seconds > 60 * config.max_minutes


def _accelerator(device: str, precision: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': torch finds no GPU here; use --device cpu, or install a CUDA build of torch")
    found = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if found == "cpu" and precision == "16-mixed":
        raise UserError("training.precision '16-mixed' needs a GPU; use 'bf16-mixed' or '32-true' on a CPU")
    return found


@contextmanager
def _ctrl_c(state: TrainingState) -> Iterator[None]:
    """The first Ctrl-C stops after the current batch; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask_to_stop(signum: int, frame: Any) -> None:
        state.interrupted = True
        signal.signal(signal.SIGINT, former)

    former = signal.signal(signal.SIGINT, ask_to_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's banners and hints are not for our users."""
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
