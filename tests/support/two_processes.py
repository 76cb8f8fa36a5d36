"""Start two processes of a distributed run, as torchrun does, which call a function of a test module."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(test_file: str, function: str, out: Path) -> None:
    """Run a function of a test module, with `out` as its argument, in two processes.

    Args:
        test_file: path of the test module.
        function: name of the function.
        out: folder for its results.

    """
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    file = Path(test_file)
    paths = [str(file.parent), str(Path(__file__).parents[1])]
    code = (
        f"import sys; sys.path[:0] = {paths!r}; from pathlib import Path; "
        f"import {file.stem} as module; module.{function}(Path({str(out)!r}))"
    )
    children = []
    for rank in ("0", "1"):
        rank_variables = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
        children.append(subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **shared, **rank_variables}))
    try:
        assert [process.wait(timeout=240) for process in children] == [0, 0]
    finally:
        for process in children:
            process.kill()
