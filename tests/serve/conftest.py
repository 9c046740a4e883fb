"""A server around a made-up model, which takes little."""

import tempfile

import pytest

from tests.helpers.serve_tools import Server


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Server(upload_bytes=10_000, files=3, waiting=2, keep=2) as server:
        yield server
