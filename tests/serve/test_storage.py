"""The folder of a server: it goes with the server, whatever ends it."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from ssm_jax.serve import storage
from tests.helpers.programs import with_usual_signals

HOLD = """
import pathlib, sys, time
from ssm_jax.serve.storage import private_folder
with private_folder() as folder:
    (folder / "job" / "uploads").mkdir(parents=True)
    (folder / "job" / "uploads" / "a.dcm").write_text("somebody")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextlib.contextmanager
def holder(temporary):
    """A process that has a folder."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", HOLD]
    settings = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, preexec_fn=with_usual_signals, **settings) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def gone(path):
    until = time.monotonic() + 20
    while os.path.exists(path) and time.monotonic() < until:
        time.sleep(0.01)
    return not os.path.exists(path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_it_is_gone_after_any_death(temporary, how):
    with holder(temporary) as (process, folder):
        assert os.path.isdir(folder)
        assert os.stat(folder).st_mode & 0o077 == 0
        process.send_signal(how)
        process.wait()
        assert gone(folder)


def test_what_is_left_is_swept_at_the_next_start(temporary):
    """As after a power failure: nobody was left to remove it."""
    left = temporary / f"{storage.PREFIX}left"
    (left / "job").mkdir(parents=True)
    (left / "job" / "a.dcm").write_text("somebody")
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    (temporary / f"{storage.PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{storage.PREFIX}file").write_text("kept")
    with holder(temporary) as (_, other), storage.private_folder() as folder:
        assert not left.exists()
        assert os.path.isdir(other)  # of a server that runs
        assert folder.is_dir()
    assert not folder.exists()
    assert (elsewhere / "kept").is_file()
    assert (temporary / f"{storage.PREFIX}file").is_file()
