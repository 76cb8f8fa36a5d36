"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes

MIB = 2**20
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)


def keep_freed_memory() -> None:
    """Lets the C library hold on to up to 1 GiB of freed memory, where it can be told (glibc).

    Left alone, glibc gives blocks of a megabyte back to the system and takes them anew, page by page, at every step on
    a CPU.
    """
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    tell(_MMAP_THRESHOLD, 32 * MIB)  # the highest that glibc takes
    tell(_TRIM_THRESHOLD, 1024 * MIB)
    tell(_TOP_PAD, 16 * MIB)
