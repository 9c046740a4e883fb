"""The comparison of training curves: window means, the widened range, verdict and picture."""

import json

import numpy as np
import pytest

from experiments import curves
from tests.helpers.programs import run_module
from tests.helpers.shared import REFERENCE, needs_reference


def write_ours(path, seg, cls, start=1):
    lines = [{"step": 0, "ap50": 0.1}]  # an evaluation: passed over
    for i, (a, b) in enumerate(zip(seg, cls, strict=True)):
        lines.append({"step": i + start, "loss_seg": None if np.isnan(a) else a, "loss_cls": b})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def write_reference(path, seg, cls):
    rows = [f"{i},0.0,{a},{b},0" for i, (a, b) in enumerate(zip(seg, cls, strict=True))]
    path.write_text("\n".join(["iteration,seconds,seg_loss,cls_loss,copied", *rows]) + "\n")
    return str(path)


@pytest.mark.parametrize("start", [0, 1])
def test_window_means_leave_skipped_steps_out(tmp_path, start):
    seg, cls = [9.0, 2.0, np.nan, 4.0, 9.0], [1.0, 2.0, 3.0, 7.0, 1.0]
    ours = curves.read_ours(write_ours(tmp_path / "a.jsonl", seg, cls, start), "ours")
    theirs = curves.read_reference(write_reference(tmp_path / "a.csv", seg, cls), "theirs")
    for curve in (ours, theirs):
        assert curve.iteration.tolist() == [0, 1, 2, 3, 4]
        assert curves.window_means(curve, 1, 3) == {"seg": 3.0, "cls": 4.0}
    with pytest.raises(ValueError, match="has 2 of the 3 iterations 3 to 5"):
        curves.window_means(ours, 3, 5)
    with pytest.raises(ValueError, match="no L_SEG in iterations 2 to 2"):
        curves.window_means(ours, 2, 2)


def test_the_last_line_of_a_step_counts(tmp_path):
    path = tmp_path / "a.jsonl"
    write_ours(path, [1.0, 2.0], [1.0, 1.0])
    path.write_text(path.read_text() + '{"step": 2, "loss_seg": 5.0, "loss_cls": 6.0}\n')
    curve = curves.read_ours(str(path), "ours")
    assert (curve.seg.tolist(), curve.cls.tolist()) == ([1, 5], [1, 6])


def test_bad_files(tmp_path):
    path = tmp_path / "a.jsonl"
    for text, message in (
        ("{}\n", "no line with"),
        ("{\n", "line 1: not JSON"),
        ('{"step": 10, "loss_seg": 1, "loss_cls": 1}\n', "first step is 10"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            curves.read_ours(str(path), "ours")
    path.write_text("iteration,seg_loss\n0,1\n")
    with pytest.raises(ValueError, match="no column"):
        curves.read_reference(str(path), "reference")


def test_range_and_verdict():
    def constant(name, seg, cls):
        return curves.Curve(name, np.arange(4), np.full(4, seg), np.full(4, cls))

    assert curves.widened([3.0, 1.0, 2.0]) == (0.5, 3.5)
    reference = [constant("r0", 1.0, 2.0), constant("r1", 3.0, 2.0)]
    good = [constant("a", 0.5, 2.0), constant("b", 3.5, 2.0)]
    table, inside = curves.make_table(good, reference, 1, 2)
    assert inside
    assert "| 1.0000 to 3.0000 | 2.0000 to 2.0000 |" in table
    assert "| 0.5000 to 3.5000 | 2.0000 to 2.0000 |" in table
    assert "| a | 0.5000 | 2.0000 | yes |" in table
    table, inside = curves.make_table([constant("c", 3.6, 2.1)], reference, 1, 2)
    assert not inside
    assert "| c | 3.6000 | 2.1000 | **no**: L_SEG, L_CLS |" in table


def test_smooth():
    values = np.array([np.nan, 1.0, np.nan, 4.0, np.nan, np.nan, 8.0])
    expected = [np.nan, 1, 1, 4, 4, np.nan, 8]
    np.testing.assert_allclose(curves.smooth(values, 2), expected)


def test_pairs():
    def rising(name, seg, cls):
        return curves.Curve(name, np.arange(4), seg + np.arange(4.0), np.full(4, cls))

    pairs = [(rising("p", 1.0, 2.0), rising("p", 0.5, 2.5)), (rising("q", 2, 3), rising("q", 2, 2))]
    assert curves.make_pairs([], 2, 3) == ""
    table = curves.make_pairs(pairs, 2, 3)
    assert "| p | 3.5000 | 3.0000 | 2.0000 | 2.5000 |" in table  # iterations 2 and 3
    assert "| p | 2.5000 | 2.0000 | 2.0000 | 2.5000 |" in table  # all four
    assert "| q | 3.5000 | 3.5000 | 3.0000 | 2.0000 |" in table
    # Differences 0.5 and 0, -0.5 and 1: half their distance is the standard error of their mean.
    assert table.count("| +0.2500 ± 0.2500 |  | +0.2500 ± 0.7500 |  |") == 2
    assert "±" not in curves.make_pairs(pairs[:1], 2, 3)
    assert curves.make_pairs(pairs, 0, 3).count("iterations 0–3") == 1


@needs_reference
def test_program(tmp_path):
    pytest.importorskip("matplotlib")
    csvs = [str(REFERENCE / f"curve_r18_3_seed{k}.csv") for k in range(3)]
    recorded = [curves.read_reference(path, "") for path in csvs]
    ours = [
        write_ours(tmp_path / f"{k}.jsonl", curve.seg[:300], curve.cls[:300])
        for k, curve in enumerate(recorded)
    ]
    flags = [f"--output={tmp_path}/out/curves.png", f"--table={tmp_path}/table.md"]
    flags += [f"--reference={','.join(csvs)}", f"--ours={','.join(ours)}"]
    run = run_module(curves, *flags)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    table = (tmp_path / "table.md").read_text()
    assert table in run.stdout
    assert table.count("| yes |") == 3
    mean = np.nanmean(recorded[0].seg[200:300])
    assert table.count(f"run 0 | {mean:.4f} |") == 2


def test_spread_lists_every_whole_window_of_long_runs():
    def curve(name, length):
        values = np.arange(length, dtype=float)
        return curves.Curve(name, np.arange(length), values, 10 * values)

    text = curves.make_spread([curve("long", 9), curve("short", 5)], 2, 4)
    assert [line for line in text.splitlines() if "short" in line] == []
    assert [line for line in text.splitlines() if line.startswith("| long")] == [
        "| long | 2–4 | 3.0000 | 30.0000 |",
        "| long | 5–7 | 6.0000 | 60.0000 |",
    ]
    assert curves.make_spread([curve("short", 5)], 2, 4) == ""
