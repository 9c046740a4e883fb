"""Files that are never half-written, JSON, and locks."""

import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from ssm_jax import files


def test_a_file_stays_as_it_was_where_writing_fails(tmp_path):
    path = tmp_path / "notes.txt"
    files.write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text_atomically(path, "no text: \ud800")
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == ["notes.txt"] and path.read_text() == "old"


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    files.write_text_atomically(tmp_path / "a", "text")
    assert synced == [(tmp_path / "a").stat().st_ino]


def test_json_is_replaced_only_when_it_can(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    files.write_json(path, [{"ap": math.nan}])
    assert json.loads(path.read_text()) == [{"ap": None}]
    with pytest.raises(TypeError):
        files.write_json(path, {"ap": object()})
    assert json.loads(path.read_text()) == [{"ap": None}]
    files.write_json(path, {"a": [1, 2]}, indent=None)
    assert path.read_text() == '{"a": [1, 2]}\n'


def test_what_json_can_not_hold_is_converted():
    value = {"a": np.float32([1, np.inf]), "b": (np.int64(3), math.nan), "c": {"d": np.bool_(True)}}
    assert files.json_ready(value) == {"a": [1.0, None], "b": [3, None], "c": {"d": True}}
    assert math.isnan(value["b"][1])


HOLDER = """
import sys
from ssm_jax import files
held = files.lock(sys.argv[1])
print(flush=True)
input()
"""


def test_a_lock_is_free_when_its_process_is_killed(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        with pytest.raises(BlockingIOError):
            files.lock(path)
        waited = []

        def waiting():
            waited.append(True)
            process.kill()

        with files.lock(path, waiting):
            assert waited == [True]
            with pytest.raises(BlockingIOError):
                files.lock(path)
    with files.lock(path):
        pass


def test_a_full_disk_tells_the_file(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x\.json'"):
        files.write_json(tmp_path / "x.json", {})
    assert not list(tmp_path.iterdir())
