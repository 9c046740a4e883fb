"""Memory of a process: what is freed is kept for the next array, but for the compiler's; and large
arrays lie in huge pages.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys
from typing import Any

# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
FEW_CORES = 8
_LARGEST = 2**30  # bytes of an array that is kept
_KEPT = 2**31 - 1  # bytes at the end of the heap beyond which they go back to the system

# When Linux uses pages of 2 MiB; in brackets what is chosen.
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ASK = "glibc.malloc.hugetlb=1"


def with_huge_pages() -> None:
    """Starts the program anew where only this lets large arrays lie in huge pages: on Linux with
    glibc where the system gives huge pages to those that ask for them. For the first line of one.

    The intermediate results of a batch of six slices or more are an array above the size that
    `keep_freed` keeps, and each step takes a page fault for every page of it: hundreds of
    thousands, a sixth of the time, or a few hundred of huge ones. glibc asks for them where the
    environment says so when a process starts; process number and arguments stay the same.
    """
    settings = [text for text in os.environ.get("GLIBC_TUNABLES", "").split(":") if text]
    if any(text.startswith("glibc.malloc.hugetlb=") for text in settings):
        return
    if _of_glibc("mallopt") is None or not HUGE_PAGES.exists():
        return
    if "[madvise]" in HUGE_PAGES.read_text(encoding="ascii"):
        os.environ["GLIBC_TUNABLES"] = ":".join([*settings, _ASK])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_freed() -> None:
    """Makes freed memory stay with the process, on Linux with glibc; elsewhere it does nothing.

    By itself glibc hands an array of some megabytes back to the system as soon as it is freed, and
    the next one costs a page fault every 4 KiB. In a training iteration on a CPU, whose
    intermediate results are one large array, a tenth of the time goes there. The heaps of other
    threads than the first hold no large arrays, so that all share the first one where there are
    few cores. On many cores, threads that compile at the same time would wait for each other there;
    there, the first thread alone keeps large arrays.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
    if (os.cpu_count() or 1) <= FEW_CORES:
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Hands freed memory back to the system, on Linux with glibc; elsewhere it does nothing.

    For after a compilation: the compiler takes hundreds of megabytes that no array needs later, and
    frees them in pieces between which other things lie. A few milliseconds, and a page fault for
    each page that is used again.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function of the C library; None where it has none of this name."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
