"""Tensors as safetensors files, with the file mode that the user's umask gives."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], file: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file that every account can read which may read other new files.

    safetensors writes through a temporary file of mode 600, whatever the umask: a run that one account has trained
    could then not be served by another.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
    file.chmod(mode)
