"""Signals before the first iteration, when there is nothing to save."""

import gc
import signal
import subprocess
import sys
import time

import pytest

from ssm_jax.cli import common
from tests.helpers.programs import ROOT, with_usual_signals

# A thread stands in for a compilation: it cannot be interrupted, and Python waits for its end.
COMPILING = """
import concurrent.futures, time
from ssm_jax.cli import common
from ssm_jax.training.interrupt import StopRequest
common.set_up_logging()
with common.one_line_errors(ValueError, OSError), StopRequest(at_once=True):
    future = concurrent.futures.ThreadPoolExecutor(1).submit(time.sleep, 600)
    print("compiling", flush=True)
    future.result()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_compiling_ends_at_once_in_a_plain_line(number):
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=with_usual_signals,
    )
    try:
        assert process.stdout.readline() == "compiling\n"
        process.send_signal(number)
        _, told = process.communicate(timeout=60)  # of the 600 that the thread takes
    finally:
        process.kill()
    assert process.returncode == 128 + number
    (line,) = told.splitlines()
    assert line.endswith(f"{number.name}: ended; start again to go on")


def test_ctrl_c_elsewhere_is_a_plain_line(capsys):
    with pytest.raises(SystemExit) as ended, common.one_line_errors(ValueError):
        raise KeyboardInterrupt
    assert ended.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_in_a_callback_of_the_garbage_collector_ends_too():
    """Python drops the exception there, and a program would go on as if nothing had been said."""
    arrived = []

    def callback(phase, _):
        if phase == "start" and not arrived:
            arrived.append(phase)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs of a shell have none
    try:
        with pytest.raises(KeyboardInterrupt), common.no_interrupt_lost():
            gc.collect()
            time.sleep(10)
    finally:
        gc.callbacks.remove(callback)
        signal.signal(signal.SIGINT, former)
    assert arrived
