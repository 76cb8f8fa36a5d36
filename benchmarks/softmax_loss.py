"""The blocked full softmax against the plain one, forward and backward: time and peak memory.

python benchmarks/softmax_loss.py [--positions 4000] [--width 64] [--items 12101 100000 1000000] [--repeat 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from nextitem.ops.softmax_loss import softmax_loss, softmax_loss_reference

WAYS = {"blocked": softmax_loss, "plain": softmax_loss_reference}
PLAIN_AT_MOST = 2**30  # logits: beyond 4 GiB the plain version is not run

MEMORY = """
import sys, torch
from pathlib import Path
from nextitem.ops import softmax_loss as module
positions, items, width = map(int, sys.argv[2:])
hidden = torch.randn(positions, width, requires_grad=True)
table = torch.randn(items + 1, width, requires_grad=True)
def kib(name):  # getrusage would give the parent's peak
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
before = kib("VmRSS")
loss = {"blocked": module.softmax_loss, "plain": module.softmax_loss_reference}[sys.argv[1]]
loss(hidden, table, torch.randint(1, items + 1, (positions,))).backward()
print((kib("VmHWM") - before) // 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=4000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    for items in arguments.items:
        torch.manual_seed(0)
        hidden = torch.randn(arguments.positions, arguments.width, requires_grad=True)
        table = (0.1 * torch.randn(items + 1, arguments.width)).requires_grad_()
        targets = torch.randint(1, items + 1, (arguments.positions,))
        ways = dict(WAYS) if arguments.positions * items <= PLAIN_AT_MOST else {"blocked": softmax_loss}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.repeat + 1):  # alternating, the first round warms up
            for name, way in ways.items():
                hidden.grad = table.grad = None
                began = time.perf_counter()
                way(hidden, table, targets).backward()
                seconds[name].append(time.perf_counter() - began)
        row: dict[str, object] = {"positions": arguments.positions, "items": items, "width": arguments.width}
        for name in ways:
            row[f"{name}_ms"] = round(1000 * statistics.median(seconds[name][1:]), 1)
            sizes = [str(value) for value in (arguments.positions, items, arguments.width)]
            command = [sys.executable, "-c", MEMORY, name, *sizes]
            row[f"{name}_mib"] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if "plain" in ways:
            ratios = [left / right for left, right in zip(*(seconds[name][1:] for name in WAYS), strict=True)]
            row["blocked_over_plain"] = round(statistics.median(ratios), 2)
        print(json.dumps({**row, "threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    main()
