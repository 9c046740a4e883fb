"""Metrics on disk, and the progress line."""

import io
import json
import math
import os
import struct

import numpy as np
import pytest
import tqdm.std
from tensorboardX.proto import event_pb2

from ssm_jax.training.metrics import (
    MetricsWindow,
    MetricsWriter,
    read_lines,
)
from ssm_jax.training.progress import Progress


def test_lines_are_strict_json(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": np.float32(0.5), "skipped": math.nan})
        writer.write(1, "evaluation", {"confusion": [[1, 0], [0, 2]], "ap": math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 1, "kind": "train", "loss": 0.5, "skipped": None},
        {"step": 1, "kind": "evaluation", "confusion": [[1, 0], [0, 2]], "ap": None},
    ]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_line_is_in_the_file_at_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(3, "train", {"loss": 1.0})
        assert [line["step"] for line in read_lines(tmp_path)] == [3]


@pytest.mark.parametrize("killed", ['{"step": 1, "kind": "tra', '{"step": 1, "kind": "train"}'])
@pytest.mark.parametrize(
    ("resumed", "evaluated", "left"),
    [
        (4, True, [(2, "train"), (4, "train"), (4, "evaluation")]),
        (4, False, [(2, "train"), (4, "train")]),
        (3, True, [(2, "train")]),
        (0, False, []),
    ],
)
def test_resuming_drops_what_followed_the_checkpoint(tmp_path, resumed, evaluated, left, killed):
    """And what a process wrote that was killed in the middle of a line, or before its end."""
    with MetricsWriter(tmp_path) as writer:
        for step in (2, 4, 6):
            writer.write(step, "train", {"loss": step})
            if step == 4:
                writer.write(step, "evaluation", {"ap": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(killed)
    with MetricsWriter(tmp_path, resumed, evaluated) as writer:
        writer.write(7, "train", {})
    lines = [(line["step"], line["kind"]) for line in read_lines(tmp_path)]
    assert lines == [*left, (7, "train")]


def test_window_means_leave_nan_out_and_survive_a_checkpoint():
    window, resumed = MetricsWindow(), MetricsWindow()
    window.add({"seg": 0.1, "cls": 1.0})
    window.add({"seg": math.nan, "cls": 2.0})
    resumed.set_state(json.loads(json.dumps(window.get_state())))
    for one in (window, resumed):
        one.add({"seg": 0.2, "cls": 4.5})
    assert resumed.means() == window.means()
    assert window.means() == {"seg": pytest.approx(0.15), "cls": 2.5}
    window.clear()
    assert window.means() == {}
    window.add({"seg": math.nan})
    assert math.isnan(window.means()["seg"])


def shown(workdir):
    """The scalars that TensorBoard shows: (tag, step) -> values, in the order of its files."""
    seen = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == event_pb2.SessionLog.START:
                seen = [entry for entry in seen if entry[1] < event.step]
            seen += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    found = {}
    for tag, step, value in seen:
        found.setdefault((tag, step), []).append(value)
    return found


@pytest.mark.parametrize(("resumed", "evaluated"), [(4, True), (4, False), (2, True), (0, True)])
def test_every_point_is_shown_once(tmp_path, resumed, evaluated):
    def iterate(writer, first):
        for step in range(first, 7):
            writer.write(step, "train", {"loss": step, "skipped": math.nan, "files": ["a"]})
            if step == 4:
                writer.write(step, "evaluation", {"ap": 0.5})
            if step == 5:
                writer.flush()

    killed = MetricsWriter(tmp_path)
    iterate(killed, 1)
    del killed  # and with it what it held back
    with MetricsWriter(tmp_path, resumed, evaluated) as writer:
        if not evaluated:
            writer.write(4, "evaluation", {"ap": 0.5})
        iterate(writer, resumed + 1)
    expected = {("train/loss", step): [step] for step in range(1, 7)}
    assert shown(tmp_path) == expected | {("evaluation/ap", 4): [0.5]}


def test_points_of_a_checkpoint_are_on_the_disk(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, "train", {"loss": 1.0})
    writer.flush()
    assert shown(tmp_path) == {("train/loss", 1): [1.0]}
    writer.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_file(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer._file = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        writer.write(1, "train", {"loss": 1.0})


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def run_progress(stream, clock):
    """1000 iterations of 0.25 s, an evaluation of 1000 s after the 500th."""
    progress = Progress(1000, stream)
    assert math.isnan(progress.rate)
    for step in range(1, 801):
        clock[0] += 0.25
        progress.update(step, math.nan if step % 2 else 2.0, 0.5, copied=step == 7)
        if step == 500:
            progress.pause()
            clock[0] += 1000
    return progress


def test_progress_on_a_terminal_is_one_line(clock):
    stream = Terminal()
    progress = run_progress(stream, clock)
    assert progress.rate == pytest.approx(4)
    text = "\r 79.9% 799/1000 | ETA 00:50 |  4.00it/s, L_SEG 2.000, L_CLS 0.500, copies 1"
    assert stream.getvalue().endswith(text)
    progress.pause()
    assert stream.getvalue().count("\n") == 2  # the pause for the evaluation, and the end
    assert stream.getvalue().count("\r") > 100


def test_progress_elsewhere_is_a_line_a_minute(clock):
    stream = io.StringIO()
    progress = run_progress(stream, clock)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "0.1% 1/1000 | ETA ? | ?it/s, L_SEG -, L_CLS 0.500, copies 0"
    shown = [int(line.split()[1].split("/")[0]) for line in lines]
    assert shown == [1, 241, 481, 500, 501, 741]  # and where it paused
    assert "\r" not in stream.getvalue()
    progress.pause()
