"""Metrics on disk, and the progress line."""

import io
import json
import math

import numpy as np
import pytest

from ssm_jax.training.metrics import (
    MetricsWindow,
    MetricsWriter,
    read_lines,
)
from ssm_jax.training.progress import Progress, Smoothed


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


def test_smoothed_is_an_exact_mean_of_constants_and_ignores_nan():
    smoothed = Smoothed(0.9)
    assert math.isnan(smoothed.value)
    for value in (3.0, math.nan, 3.0):
        smoothed.add(value)
    assert smoothed.value == pytest.approx(3.0)
    smoothed.add(4.0)  # weights 0.81, 0.9, 1 (without the NaN)
    assert smoothed.value == pytest.approx((0.81 * 3 + 0.9 * 3 + 4) / 2.71)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_progress(stream, plain_interval=10.0):
    """100 iterations of 0.25 s, an evaluation of 1000 s after the 50th."""
    now = [0.0]
    progress = Progress(100, 0, stream, plain_interval, clock=lambda: now[0])
    for step in range(1, 81):
        now[0] += 0.25
        if step == 51:
            progress.pause()
            now[0] += 1000
        progress.update(step, math.nan if step % 2 else 2.0, 0.5, copied=step == 7)
    return progress


def test_progress_line():
    progress = run_progress(io.StringIO())
    assert progress.rate == pytest.approx(4)
    assert progress.text() == (
        " 80.0% 80/100 | ETA 0:00:05 | 4.0 it/s | L_SEG 2.000 | L_CLS 0.500 | copies 1"
    )
    assert "ETA ? | ? it/s" in Progress(10, stream=io.StringIO()).text()


def test_progress_is_plain_lines_in_a_file_and_one_line_on_a_terminal():
    plain, terminal = io.StringIO(), Terminal()
    run_progress(plain)
    lines = plain.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert "\r" not in plain.getvalue()
    run_progress(terminal).pause()
    assert terminal.getvalue().count("\n") == 2  # the pause for the evaluation, and the end
    assert terminal.getvalue().count("\r") > 10
