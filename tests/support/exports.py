"""Programs without this package and without torch, for tests of exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

BLOCKED = (
    "import sys\nfor name in ('nextitem', 'torch', 'polars', 'safetensors', 'faiss'):\n    sys.modules[name] = None\n"
)
ANSWER = """
import json
from generate import Generator

generator = Generator()
calls = json.load(sys.stdin)
print(json.dumps([generator.recommend(**call) for call in calls]))
"""


def readme_code(folder: Path) -> str:
    """Return the Python code of README.md of an export."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    return str(code)


def run_blocked(code: str, folder: Path, text: str = "", *, allowed: str = "") -> str:
    """Run code in a folder, in a process that can import neither this package nor torch, and return what it prints.

    `allowed` is one more module that it may import.
    """
    blocked = BLOCKED.replace(f", '{allowed}'", "") if allowed else BLOCKED
    command = [sys.executable, "-c", blocked + code]
    process = subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def answers_of(folder: Path, calls: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return what generate.py of an export answers to calls of `recommend`."""
    answers: list[list[dict[str, Any]]] = json.loads(run_blocked(ANSWER, folder, json.dumps(calls)))
    return answers
