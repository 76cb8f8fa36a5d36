"""Options, timing and result file of the benchmarks.

A script builds its options with `parser`, times with `Stopwatch`, `interleaved` or `timed_median`, and adds each row of
figures to `Results`, which writes them to the file that `--json` names. README.md describes the form.

Only the standard library is imported here: some scripts set the number of threads of their libraries before they
import them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent

Clock = Callable[[], float]


def parser(doc: str, **numbers: int) -> argparse.ArgumentParser:
    """Return the parser of a script: its docstring as help, `--json`, and an option for each whole number.

    Args:
        doc: the docstring of the script.
        numbers: name and default of an option each; `max_batches=40` adds `--max-batches`.
    """
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    for name, default in numbers.items():
        options.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    return options


class Stopwatch:
    """Context manager that measures the seconds spent in its body."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.seconds = 0.0
        self._clock = clock

    def __enter__(self) -> Self:
        self._start = self._clock()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = self._clock() - self._start

    @property
    def milliseconds(self) -> float:
        """The milliseconds spent in its body."""
        return 1000 * self.seconds


def interleaved(
    works: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of every call of each work; the works take turns within a repeat.

    A temporary load slows all works equally, so ratios within a repeat are steadier than times.

    Args:
        works: what is compared, by name.
        repeats: number of measured calls of each.
        warmup: number of calls of each before the first measured one.
        clock: returns seconds: `time.process_time` or `time.thread_time` if a busy machine shall count little.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(warmup + repeats):
        for name, work in works.items():
            with Stopwatch(clock) as watch:
                result = work()
            del result  # its memory is released outside the clock
            if repeat >= warmup:
                seconds[name].append(watch.seconds)
    return seconds


def timed_median(
    work: Callable[[], object], *, repeats: int, warmup: int = 1, clock: Clock = time.perf_counter
) -> float:
    """Return the median seconds of a call; the arguments are those of `interleaved`."""
    return statistics.median(interleaved({"": work}, repeats=repeats, warmup=warmup, clock=clock)[""])


def median_ms(seconds: Sequence[float], digits: int = 2) -> float:
    """Return the median in milliseconds, rounded."""
    return round(1000 * statistics.median(seconds), digits)


def median_ratio(numerators: Sequence[float], denominators: Sequence[float], digits: int = 2) -> float:
    """Return the median of the ratios of the repeats, rounded."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), digits)


def in_own_process(script: str, cell: Mapping[str, object]) -> dict[str, Any]:
    """Run `script --cell CELL` in a process of its own and return the JSON object that it prints.

    The peak memory of a process only grows, so each figure of memory needs a process.
    """
    line = [sys.executable, script, "--cell", json.dumps(cell)]
    printed = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(printed)
    return result


class Results:
    """The rows of figures of one benchmark, written to the file of `--json` after each row.

    A benchmark that is interrupted leaves the rows that it reached.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.rows: list[dict[str, Any]] = []
        self._file: Path | None = arguments.json
        script = f"{HERE.name}/{Path(sys.argv[0]).name}"
        settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "cell")}
        self._head = {
            "script": script,
            "command": shlex.join(["python", script, *sys.argv[1:]]),
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": settings,
        }
        self._write()  # an unwritable file is an error before hours of work

    def add(self, name: str, metrics: Mapping[str, object]) -> None:
        """Append a row; `metrics` contains its figures, and the sizes that distinguish it from other rows."""
        self.rows.append({"name": name, "metrics": dict(metrics)})
        self._write()

    def add_printed(self, name: str, metrics: Mapping[str, object]) -> None:
        """Print the metrics as one JSON line and append them as a row."""
        print(json.dumps(metrics), flush=True)
        self.add(name, metrics)

    def _write(self) -> None:
        if self._file is not None:
            result = {**self._head, "machine": machine(), "rows": self.rows}
            self._file.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


def commit() -> str | None:
    """Return the commit of the sources, with `-dirty` if files differ from it; None outside a checkout."""
    line = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, object]:
    """Return what a figure depends on: processor, cores, memory, GPU, versions, number of threads."""
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    """Return the name of the processor; that of its architecture if the system does not tell."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
