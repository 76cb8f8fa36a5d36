"""Write tensors to safetensors files with the file mode of the user's umask."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], file: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, and optional text metadata, to a safetensors file with the file mode of other new files.

    safetensors writes through a temporary file of mode 600 and ignores the umask, so a run that was trained by one
    account could not be served by another.
    """
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
    file.chmod(mode)
