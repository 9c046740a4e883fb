"""Freed memory that stays with the process."""

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
