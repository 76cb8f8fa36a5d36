"""Processes in which the trials of a tuning run: this one, or several others."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from typing import Any

import torch

from nextitem.core.errors import UserError
from nextitem.pipeline.tuning.trials import Trial, TrialRunner

# Starts a trial: its number, its settings, and the trials that it is compared with.
Submit = Callable[[int, Mapping[str, Any], Sequence[Trial]], Future[Trial]]

_runner: TrialRunner | None = None  # of a process that runs trials for another


@contextmanager
def trial_processes(runner: TrialRunner, jobs: int) -> Iterator[Submit]:
    """Provide a function that starts a trial; trials that still run at an error or an interruption are ended.

    Args:
        runner: runs the trials; with several processes, each has a copy of it and of its data.
        jobs: number of trials that run at the same time. One runs in this process, several in processes of their own,
            which share the threads of this one.

    Raises:
        UserError: a process has ended unexpectedly.

    """
    if jobs == 1:
        yield partial(_run_here, runner)
        return
    earlier_processes = set(active_children())
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_prepare_process, initargs=(runner, threads)
    )
    try:
        yield lambda number, settings, earlier: pool.submit(_run_in_process, number, settings, earlier)
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(active_children()) - earlier_processes:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a process of --jobs has ended unexpectedly, probably for want of memory; continue with --resume and "
                "fewer --jobs"
            ) from None
        raise
    pool.shutdown()


def _run_here(runner: TrialRunner, number: int, settings: Mapping[str, Any], earlier: Sequence[Trial]) -> Future[Trial]:
    """Run a trial in this process, and return it as a future that is done."""
    future: Future[Trial] = Future()
    future.set_result(runner.run(number, settings, earlier))
    return future


def _prepare_process(runner: TrialRunner, threads: int) -> None:
    """Prepare a process that runs trials for another, which alone reacts to Ctrl-C."""
    global _runner
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _runner = runner


def _run_in_process(number: int, settings: Mapping[str, Any], earlier: Sequence[Trial]) -> Trial:
    """Run a trial in a process that `_prepare_process` has prepared."""
    assert _runner is not None
    return _runner.run(number, settings, earlier)
