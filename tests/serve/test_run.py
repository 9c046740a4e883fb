"""A running server: its first answer, requests that are two, and its end with work at hand."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("uvicorn", reason="the extra ssm-jax[serve] is not installed")
pytest.importorskip("python_multipart", reason="the extra ssm-jax[serve] is not installed")

from tests.helpers.programs import ROOT, with_usual_signals

SERVER = """
import contextlib, time
from ssm_jax.serve.app import make_app
from ssm_jax.serve.run import run
from ssm_jax.serve.work import Model

@contextlib.contextmanager
def endless(stop):
    while not stop():
        time.sleep(0.01)
    raise ValueError("stopped")
    yield

run(make_app(Model(endless, None, None, {}, 0.5)), "127.0.0.1", 0)
"""
HEAD = (
    "POST /scans HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
)
PART = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'


@contextlib.contextmanager
def started(folder):
    """A server with a folder for temporary files, and its port."""
    command = [sys.executable, "-c", SERVER]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    environment = {**os.environ, "TMPDIR": str(folder)}
    settings |= {"env": environment, "preexec_fn": with_usual_signals}
    with subprocess.Popen(command, **settings) as process:
        try:
            yield process, int(re.search(r":(\d+) ", process.stdout.readline())[1])
        finally:
            process.kill()


@contextlib.contextmanager
def sent(port, text):
    """A connection over which something was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(text.encode())
        yield connection


def answered(port, text):
    """Everything that comes back until the server closes the connection."""
    with sent(port, text) as connection:
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_it_ends_at_once_and_leaves_nothing(tmp_path, how):
    """One upload is being read, others wait, and one is half way here."""
    with started(tmp_path) as (process, port):
        body = PART + "pixels\r\n--b--\r\n"
        for _ in range(3):
            answer = answered(
                port, f"{HEAD}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
            assert answer.startswith("HTTP/1.1 202")
        with sent(port, f"{HEAD}Content-Length: 1000000\r\n\r\n{PART}{'x' * 300_000}"):
            until(lambda: len(files(tmp_path)) == 4)
            process.send_signal(how)
            output, _ = process.communicate(timeout=20)
    until(lambda: not list(tmp_path.iterdir()))
    assert "Traceback" not in output
    assert process.returncode == {signal.SIGINT: 0, signal.SIGHUP: 0}.get(how, -how)


def test_one_request_gets_one_answer(tmp_path):
    """What follows a body of two lengths is no request of its own."""
    follow = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with started(tmp_path) as (_, port):
        assert answered(port, "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(
            "HTTP/1.1 200"
        )
        for text in (
            f"{HEAD}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{follow}",
            f"{HEAD}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n{follow}\r\n0\r\n",
            f"{HEAD}Content-Length: 0\r\nContent-Length: 50\r\n\r\n{follow}",
        ):
            assert re.findall(r"HTTP/1\.1 (\d+)", answered(port, text)) == ["400"], text
        # A body that is refused in the middle is not waited for.
        answer = answered(port, f"{HEAD}Content-Length: 1000\r\n\r\n--other")
        assert answer.startswith("HTTP/1.1 400")
