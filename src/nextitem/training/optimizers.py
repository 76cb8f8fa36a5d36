"""Optimizers and learning-rate schedules, built from a TrainingConfig."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nextitem.core.errors import UserError
from nextitem.nn.tables.row_table import RowTable
from nextitem.training.adagrad import Adagrad
from nextitem.training.chained_optimizer import ChainedOptimizer
from nextitem.training.config import OptimizerConfig, TrainingConfig
from nextitem.training.ftrl import FTRL
from nextitem.training.muon import Muon
from nextitem.training.row_adam import RowAdam


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters that require a gradient; weight decay applies to matrices only.

    Parameters whose names begin with a name in `config.groups` have the optimizer of that group. Embeddings get sparse
    gradients if their optimizer supports them, see `sparse_tables`.

    Raises:
        UserError: a group has no parameter, the learning rate of ftrl would change, muon has no matrix to train, or an
            optimizer cannot train the rows of a table.

    """
    sparse = sparse_tables(model, config)
    row_tables = {id(module.weight) for module in model.modules() if isinstance(module, RowTable)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            module.sparse = f"{name}.weight".lstrip(".") in sparse
    parts: dict[str, list[nn.Parameter]] = {name: [] for name in ("", *config.groups)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[_group_of(name, config)].append(parameter)
    for name in config.groups:
        if not parts[name]:
            children = ", ".join(child for child, _ in model.named_children())
            raise UserError(f"training.groups.{name}: no parameter's name begins with {name}; there are: {children}")
    # A fused step is one pass over memory, on a CPU eight times as fast. It forbids gradient clipping under mixed
    # precision.
    fused = True if config.precision == "32-true" else None
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    optimizers: list[torch.optim.Optimizer] = []
    for name, group in parts.items():
        settings = config.groups.get(name, config)
        where = f"training.groups.{name}" if name else "training"
        rows = [parameter for parameter in group if id(parameter) in row_tables]
        group = [parameter for parameter in group if id(parameter) not in row_tables]
        if rows:
            optimizers.append(_row_optimizer(rows, settings, where=where))
        if group and settings.optimizer == "muon":
            optimizers += _muon(group, settings, tables=tables, fused=fused, where=where)
        elif group:
            optimizers.append(_optimizer(group, settings, fused=fused))
    if any(isinstance(optimizer, FTRL) for optimizer in optimizers) and (
        config.schedule != "constant" or config.warmup_steps
    ):
        raise UserError('ftrl lowers its rates by itself: set training.schedule = "constant" and warmup_steps = 0')
    return optimizers[0] if len(optimizers) == 1 else ChainedOptimizer(optimizers)


def sparse_tables(model: nn.Module, config: TrainingConfig) -> dict[str, Tensor]:
    """Return the embedding tables with sparse gradients: parameter name -> weights.

    These are all tables of rows (`RowTable`), and the embeddings that request sparse gradients
    (`nn.Embedding(sparse=True)`) and are trained by adagrad: no other optimizer of theirs leaves the rows that a step
    does not read unchanged.
    """
    row_tables = {f"{name}.weight".lstrip(".") for name, part in model.named_modules() if isinstance(part, RowTable)}
    candidates = {
        f"{name}.weight".lstrip("."): part.weight
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding) and part.sparse
    }
    return {
        name: weight
        for name, weight in candidates.items()
        if name in row_tables or config.groups.get(_group_of(name, config), config).optimizer == "adagrad"
    }


def clear_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Delete the state (moments) that an optimizer has of a parameter."""
    for part in optimizer.parts if isinstance(optimizer, ChainedOptimizer) else [optimizer]:
        part.state.pop(parameter, None)


def row_states(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each entry of an optimizer's state that has a value for each row of a table: the state, and its name."""
    for part in optimizer.parts if isinstance(optimizer, ChainedOptimizer) else [optimizer]:
        state = part.state.get(parameter, {})
        for name in sorted(state):
            if isinstance(state[name], Tensor) and state[name].dim():
                yield state, name


def _group_of(parameter: str, config: TrainingConfig) -> str:
    """Return the longest name in `config.groups` that a parameter's name begins with, or "" if there is none."""
    prefixes = [name for name in config.groups if f"{parameter}.".startswith(f"{name}.")]
    return max(prefixes, key=len, default="")


def _optimizer(parameters: list[nn.Parameter], config: OptimizerConfig, *, fused: bool | None) -> torch.optim.Optimizer:
    """Return one optimizer by its config; `fused` is for adam and adamw."""
    matrices, others = ([p for p in parameters if (p.dim() >= 2) == is_matrix] for is_matrix in (True, False))
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "ftrl":
        groups[0]["l1"] = config.l1
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
    if config.optimizer == "adagrad":
        return Adagrad(groups, lr=config.learning_rate, momentum=config.momentum)
    if config.optimizer == "ftrl":
        return FTRL(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def _row_optimizer(parameters: list[nn.Parameter], config: OptimizerConfig, *, where: str) -> torch.optim.Optimizer:
    """Return the optimizer of tables of rows; muon leaves them to adamw. Raises UserError if there is none."""
    if config.optimizer == "adagrad":
        return _optimizer(parameters, config, fused=None)
    if config.optimizer == "sgd" and not config.momentum and not config.weight_decay:
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    if config.optimizer in ("ftrl", "sgd"):
        raise UserError(
            f"{where}.optimizer = {config.optimizer!r} cannot train the rows of a growing or hashed table; choose "
            "adamw, adam, adagrad, muon, or sgd without momentum and weight decay"
        )
    rate = config.muon.adamw_learning_rate if config.optimizer == "muon" else None
    return RowAdam(
        parameters,
        lr=rate or config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        is_decoupled=config.optimizer != "adam",
    )


def _muon(
    parameters: list[nn.Parameter], config: OptimizerConfig, *, tables: set[int], fused: bool | None, where: str
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices among the parameters, and AdamW for the others, if there are any.

    Args:
        parameters: the parameters that both train.
        config: settings of both.
        tables: ids of the weights of embeddings, which count as no matrices: a row of a table is a vector of its own.
        fused: as for `_optimizer`.
        where: prefix of the settings, for errors.

    """
    matrices = [weight for weight in parameters if weight.dim() == 2 and id(weight) not in tables]
    others = [weight for weight in parameters if weight.dim() != 2 or id(weight) in tables]
    if not matrices:
        raise UserError(
            f"{where}.optimizer = 'muon' finds no matrix to train: embeddings, biases and norms are not; choose adamw"
        )
    optimizers: list[torch.optim.Optimizer] = [
        Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.muon.momentum,
            nesterov=config.muon.nesterov,
            iterations=config.muon.iterations,
            scale=config.muon.scale,
        )
    ]
    if others:
        rate = config.muon.adamw_learning_rate or config.learning_rate
        adamw = config.model_copy(update={"optimizer": "adamw", "learning_rate": rate})
        optimizers.append(_optimizer(others, adamw, fused=fused))
    return optimizers


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, *, total_steps: int) -> LambdaLR:
    """Return the schedule of the learning rate, which changes at every optimizer step."""
    return LambdaLR(optimizer, lambda step: rate_factor(step, config, total_steps=total_steps))


def rate_factor(step: int, config: TrainingConfig, *, total_steps: int) -> float:
    """Return the factor of the highest learning rate at optimizer step `step`, counted from 0.

    After a linear warm-up, the factor is constant, or falls as half a cosine to 0 at `total_steps`, or falls as
    1 / sqrt(step). The latter is 1 until the end of warm-up (until step 10,000 without one, as in TIGER).
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "inverse-sqrt":
        num_flat_steps = config.warmup_steps or 10_000
        return min(1.0, math.sqrt(num_flat_steps / max(1, step)))
    return 1.0
