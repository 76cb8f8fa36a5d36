"""Real Redis and PostgreSQL servers for tests: on a free port, with a folder of their own, ended with the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest


class StoreServer:
    """A server program that can be started, stopped, killed and paused; its data survive all of these."""

    quick_end = signal.SIGTERM

    def __init__(self) -> None:
        # Not pytest's folder: that one is closed to the account which PostgreSQL runs as.
        self.folder = Path(tempfile.mkdtemp(prefix="nextitem-store-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        log.close()
        wait_for(self.answers, f"{self.command()[0]} does not answer: {self.folder / 'log'}")

    def answers(self) -> bool:
        raise NotImplementedError

    def send(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGINT) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def remove(self) -> None:
        self.stop(self.quick_end)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class RedisServer(StoreServer):
    """A redis-server that syncs each command to its append-only file, unless other arguments are given."""

    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self.arguments = arguments or ("--appendonly", "yes", "--appendfsync", "always")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        place = ["--dir", str(self.folder), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        return [require("redis-server"), *place, *self.arguments]

    def answers(self) -> bool:
        with socket.socket() as client:
            client.settimeout(1)
            try:
                client.connect(("127.0.0.1", self.port))
                client.sendall(b"PING\r\n")
                return client.recv(5) in (b"+PONG", b"-NOAU")
            except OSError:
                return False


class PostgresServer(StoreServer):
    """A postgres with a fresh cluster; it refuses to run as root, so it then runs as the account postgres."""

    quick_end = signal.SIGQUIT  # without writing what only the next start would need

    def __init__(self) -> None:
        initdb, self.program = require("initdb"), require("postgres")
        super().__init__()
        self.account: str | None = None
        if os.geteuid() == 0:
            self.account = "postgres"
            shutil.chown(self.folder, self.account)
        command = [initdb, "-D", str(self.folder / "data"), "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-locale"]
        subprocess.run([*self.prefix(), *command, "--no-sync"], check=True, capture_output=True, cwd=self.folder)

    def prefix(self) -> list[str]:
        return [require("setpriv"), f"--reuid={self.account}", f"--regid={self.account}", "--init-groups"] * bool(
            self.account
        )

    @property
    def url(self) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres"

    def command(self) -> list[str]:
        place = ["-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        return [*self.prefix(), self.program, *place, "-c", "shared_buffers=16MB"]

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


def require(program: str) -> str:
    """Return the path of a program, or skip the test and name the program that is missing."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *os.get_exec_path()]
    path = shutil.which(program, path=os.pathsep.join(map(str, places)))
    if path is None:
        package = "redis-server" if program == "redis-server" else "postgresql"
        pytest.skip(f"the program {program} is missing (package {package})")
    return path


def wait_for(condition: Callable[[], bool], message: str, seconds: float = 30) -> None:
    """Wait until a condition is true; fail with a message if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.02)
