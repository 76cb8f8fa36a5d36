"""Training over a network: two namespaces, as two machines, reach the weights of one process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

ADDRESSES = ("10.213.77.1", "10.213.77.2")
# SGD: Adam would magnify the rounding errors of gradients that are otherwise 0.
SETTINGS = ("training.max_epochs=2", "training.optimizer=sgd", "training.learning_rate=0.3", "model.dropout=0")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Create two network namespaces that are connected by a cable, and remove them afterwards."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need the command `ip` and root")
    names = tuple(f"nextitem-{os.getpid()}-{end}" for end in "ab")
    with ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip("link", "add", "wire0", "netns", names[0], "type", "veth", "peer", "name", "wire0", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be created here: {error.stderr.strip()}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire0")
            ip("-n", name, "link", "set", "wire0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names[0], names[1]


def received_bytes(namespace: str) -> int:
    """Return the bytes that have arrived through the cable."""
    line = ["ip", "netns", "exec", namespace, "cat", "/sys/class/net/wire0/statistics/rx_bytes"]
    return int(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def command(data: Path, out: Path) -> list[str]:
    words = ["nextitem", "train", "sasrec", "--recipe", "debug/sasrec", "--data", str(data), "--out", str(out)]
    return words + [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.mark.slow
def test_two_machines_reach_the_weights_of_one_process(namespaces: tuple[str, str], tmp_path: Path) -> None:
    rows = [(user, (user + step) % 12, 1_700_000_000 + step) for user in range(60) for step in range(6)]
    (tmp_path / "data").mkdir()
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_parquet(tmp_path / "data" / "interactions.parquet")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "wire0"}
    processes = []
    for node, name in enumerate(namespaces):
        launch = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        launch += ["--nproc-per-node", "1", "--node-rank", str(node), "--master-addr", ADDRESSES[0]]
        launch += ["--master-port", "29577", "-m", *command(tmp_path / "data", tmp_path / "two")]
        processes.append(
            subprocess.Popen(launch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    single = subprocess.run(
        [sys.executable, "-m", *command(tmp_path / "data", tmp_path / "one")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert single.returncode == 0, single.stderr
    assert all(received_bytes(name) > 10_000 for name in namespaces)  # the gradients came through the cable
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
    metrics = [(tmp_path / name / "metrics.json").read_text(encoding="utf-8") for name in ("one", "two")]
    assert '"recall@10"' in metrics[0]
    assert '"recall@10"' in metrics[1]
