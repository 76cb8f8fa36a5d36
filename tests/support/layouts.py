"""Folders and archives in the formats in which data sets are distributed, for tests of importers."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextitem.core.dataset import Dataset

Files = Mapping[str, str | bytes]
Imported = Callable[..., tuple[Dataset, str]]  # the fixture `imported`


class Layouts:
    """Writer of folders and archives below a root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, files: Files, name: str = "download") -> Path:
        """Write a folder with these files and return its path."""
        for path, content in files.items():
            file = self.root / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_bytes(content))
        return self.root / name

    def zip(self, files: Files, name: str = "download.zip") -> Path:
        """Write a zip archive of these files and return its path; names are not checked."""
        with zipfile.ZipFile(self.root / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                archive.writestr(path, _bytes(content))
        return self.root / name

    def tar(self, files: Files, name: str = "download.tar.gz") -> Path:
        """Write a compressed tar archive of these files and return its path; names are not checked."""
        with tarfile.open(self.root / name, "w:gz") as archive:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(_bytes(content))
                archive.addfile(entry, io.BytesIO(_bytes(content)))
        return self.root / name

    def gz(self, content: str | bytes, name: str) -> Path:
        """Write one compressed file and return its path."""
        (self.root / name).write_bytes(gzip.compress(_bytes(content)))
        return self.root / name

    def json_gz(self, rows: Sequence[dict[str, Any]], name: str) -> Path:
        """Write one compressed file of JSON lines and return its path."""
        return self.gz("".join(json.dumps(row) + "\n" for row in rows), name)

    def literals_gz(self, rows: Sequence[dict[str, Any]], name: str) -> Path:
        """Write one compressed file of Python literals, one a line, and return its path."""
        return self.gz("".join(repr(row) + "\n" for row in rows), name)


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content
