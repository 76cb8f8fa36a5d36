"""Logs of a server: lines of text for people, or one JSON object a line for programs, without personal data.

A message names models, versions, files and statuses, never ids of users or items. So of an exception the JSON has class
and places in the code, and not its text, which may quote a request.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]


class JsonFormatter(logging.Formatter):
    """Formatter of a record as one JSON object: time, level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["exception"] = record.exc_info[0].__name__
            line["places"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line, ensure_ascii=False, default=str)


def start_logging(form: LogFormat, stream: TextIO | None = None) -> None:
    """Let all loggers write to one stream, by default stderr: warnings and errors, in JSON also a line a request."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("nextitem.requests").setLevel(logging.INFO if form == "json" else logging.WARNING)
    logging.getLogger("nextitem.serving").setLevel(logging.INFO)


def start_line(names: str, *, host: str, port: int) -> str:
    """Return what is printed when a server answers: the models, and the address of its page."""
    place = f"[{host}]" if ":" in host else host
    address = f"http://{place}:{port}"
    return f"serving {names} at {address} (page: {address}/, API: {address}/openapi.json; stop with Ctrl-C)"
