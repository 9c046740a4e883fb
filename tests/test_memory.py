"""Freed memory that stays with the process, and large arrays in huge pages."""

import os
import subprocess
import sys

import pytest

from ssm_jax import memory

PROGRAM = """
import resource, threading
import numpy as np
from ssm_jax import memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work(counts):
    for _ in range(4):
        before = faults()
        np.ones(2**26, np.uint8)
        counts.append(faults() - before)

def in_thread():
    counts = []
    thread = threading.Thread(target=work, args=[counts])
    thread.start()
    thread.join()
    return counts[-1]

if {kept}:
    memory.keep_freed()
print(in_thread())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone keeps memory")
@pytest.mark.skipif((os.cpu_count() or 1) > memory.FEW_CORES, reason="other threads keep none")
def test_an_array_takes_the_memory_of_the_one_before():
    """In a thread, as JAX computes: 64 MiB are 16,384 pages of 4 KiB, or 32 huge ones."""
    counts = []
    for kept in (False, True):
        command = [sys.executable, "-c", PROGRAM.format(kept=kept)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        counts.append(int(done.stdout))
    assert counts[0] >= 32
    assert counts[1] < counts[0] / 4


PIECES = """
import numpy as np
from ssm_jax import memory

def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4 // 1024  # MiB, of pages of 4 KiB

memory.keep_freed()
pieces = [np.ones(2**20, np.uint8) for _ in range(200)]
del pieces[::2]
before = resident()
memory.give_back()
print(before - resident(), sum(int(piece.sum()) for piece in pieces))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone keeps memory")
def test_memory_between_arrays_goes_back():
    command = [sys.executable, "-c", PIECES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    back, kept = map(int, done.stdout.split())
    assert back > 90
    assert kept == 100 * 2**20


ANEW = """
import os, pathlib, sys
from ssm_jax import memory

memory.HUGE_PAGES = pathlib.Path(sys.argv[1])
print(os.getpid(), os.environ.get("GLIBC_TUNABLES", ""), *sys.argv[2:], flush=True)
memory.with_huge_pages()
print("on")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone can be asked")
@pytest.mark.parametrize(
    ("chosen", "before", "after"),
    [
        ("always [madvise] never", "", "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "a.b=1", "a.b=1:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", None),
        ("[always] madvise never", "", None),
        (None, "", None),
    ],
)
def test_a_program_starts_anew_once_for_huge_pages(tmp_path, chosen, before, after):
    """The same process and arguments, with the environment that glibc reads when it starts."""
    file = tmp_path / "enabled"
    if chosen:
        file.write_text(chosen)
    command = [sys.executable, "-c", ANEW, str(file), "an argument", "--flag=1"]
    environment = {**os.environ, "GLIBC_TUNABLES": before}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=60)
    starts = [before] if after is None else [before, after]
    lines = [f"{process.pid} {settings} an argument --flag=1" for settings in starts]
    assert output.splitlines() == [*lines, "on"]
    assert process.returncode == 0
