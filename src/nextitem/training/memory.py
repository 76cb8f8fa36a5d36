"""Setting of the C library that keeps the memory which a training step frees for the next step."""

from __future__ import annotations

import ctypes

MIB = 2**20
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)


def keep_freed_memory() -> None:
    """Tell glibc to keep up to 1 GiB of freed memory; do nothing on another C library.

    Otherwise, glibc returns blocks of a megabyte to the system, and requests them again, page by page, at every
    training step on a CPU.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    set_option(_MMAP_THRESHOLD, 32 * MIB)  # the maximum that glibc accepts
    set_option(_TRIM_THRESHOLD, 1024 * MIB)
    set_option(_TOP_PAD, 16 * MIB)
