"""Several processes that are one job: one that dies ends the others in one line."""

import io
import os
import signal
import socket
import subprocess
import sys

import pytest

from ssm_jax.cli.lost_process import LOST, pass_on
from tests.helpers.programs import ROOT, with_usual_signals

# A job whose processes wait for each other now and then, as those of a training do.
JOB = """
import sys, time
from ssm_jax.cli import common
from ssm_jax.cli.processes import ProcessFlags, ending_at_once, join
common.set_up_logging()
with common.one_line_errors(ValueError, OSError), ending_at_once():
    port, own, count = (int(word) for word in sys.argv[1:])
    join(ProcessFlags(coordinator=f"localhost:{port}", num_processes=count, process_id=own))
    import numpy as np
    from jax.experimental import multihost_utils
    for _ in range(3):
        multihost_utils.process_allgather(np.float32(own))
    print("together", flush=True)
    while True:
        time.sleep(0.05)
        multihost_utils.process_allgather(np.float32(own))
"""
# What JAX's service prints where the first process of a job died.
PAGE = b"""\
E1128 08:49:52.915763   28099 coordination_service_agent.cc:289] Polled an error from it.
F1128 08:49:52.915826   28099 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. This most likely indicates that another task died; see the other task logs.
:UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}
*** Check failure stack trace: ***
    @     0x7f23cac40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""


def passed_on(text):
    out = io.BytesIO()
    pass_on(io.BytesIO(text), out, b"one line")
    return out.getvalue()


def test_the_page_of_a_lost_process_is_one_line():
    assert passed_on(b"W1 a warning\n" + PAGE) == b"W1 a warning\none line\n"
    assert passed_on(LOST) == passed_on(LOST + PAGE) == passed_on(PAGE + LOST) == b"one line\n"


def test_all_else_that_libraries_print_passes():
    complaint = PAGE.splitlines(keepends=True)[0]
    text = b"W1 a warning\n\xff\n" + complaint + b"more of it\nno end of line"
    assert passed_on(text) == text


@pytest.mark.parametrize(
    ("victim", "count", "name"),
    [
        (0, 2, "process 0"),
        pytest.param(1, 2, "process 1", marks=pytest.mark.slow),
        pytest.param(1, 3, "another process", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_ends_the_others_in_one_line(victim, count, name):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    job = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(port), str(own), str(count)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"XLA_FLAGS": ""},
            text=True,
            preexec_fn=with_usual_signals,
        )
        for own in range(count)
    ]
    try:
        for process in job:
            assert any("together" in line for line in process.stdout), process.stderr.read()
        job[victim].send_signal(signal.SIGKILL)
        others = [process for own, process in enumerate(job) if own != victim]
        told = [process.communicate(timeout=200)[1] for process in others]
    finally:
        for process in job:
            process.kill()
            process.communicate()
    assert all(process.returncode != 0 for process in others)
    line = f"error: {name} of the job has ended or cannot be reached; start all of them again"
    assert told == [f"{line} to go on\n"] * (count - 1)
