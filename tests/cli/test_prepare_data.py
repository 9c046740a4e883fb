"""The program prepare_data: twice, killed, side by side, wrong flags, and into the builders."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from PIL import Image

from ssm_jax.__main__ import run as start
from ssm_jax.cli import configs
from ssm_jax.data import DataError, findings, inspection, open_datasets
from ssm_jax.data.folders import locked
from ssm_jax.data.published import standard_tree
from tests.helpers import own_sets, programs
from tests.helpers import publisher_trees as trees
from tests.helpers.data_tools import noise, save, small_config
from tests.helpers.publisher_trees import copy, files_of, items, run

ROOT = programs.ROOT


def program(tmp_path, *more, **flags):
    """Runs the program as a user does."""
    flags = {"min_area": 2300, "data_dir": tmp_path / "data"} | flags
    given = [f"--{name}={value}" for name, value in flags.items()]
    return programs.run("prepare_data", *given, *more)


def test_ten_of_a_kind_on_the_terminal_all_in_the_report(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    for k in range(13):
        trees.add_line(flags["train_list"], f"0_9_9_{k:04d}.png")
    done = program(tmp_path, **flags)
    assert done.returncode == 1
    [line] = [text for text in done.stdout.splitlines() if "missing (13)" in text]
    assert len(re.findall(r"0_9_9_\d+\.png", line)) == 10 and line.endswith(" and 3 more")
    report = json.loads((tmp_path / "data/ct_classes.report.json").read_text())
    assert len(items(report, "missing")) == 13
    assert done.stderr.strip().splitlines()[-1] == (
        "error: 13 defects, listed above; nothing was prepared"
    )
    assert not (tmp_path / "data/ct_classes").exists()


def test_as_a_user_runs_it_twice_and_into_the_builders(tmp_path):
    seg_flags = trees.cncb_seg(tmp_path / "seg")
    cls_flags = trees.covidx_ct(tmp_path / "cls")
    given = {}
    for flags, part in ((seg_flags, "seg"), (cls_flags, "cls")):
        done = program(tmp_path, **flags)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "checking slices: 100%" in done.stderr
        match = re.search(rf"--config\.data\.{part}_dir=(\S+)", done.stdout)
        given[f"data__{part}_dir"] = match[1]
        before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*")}
        again = program(tmp_path, **flags)
        assert again.returncode == 0 and "nothing to do" in again.stdout
        assert match[0] in again.stdout and "checking" not in again.stderr
        after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*")}
        changed = {p.name for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        assert changed <= {"lock"}, "a second run writes nothing"
    datasets = open_datasets(small_config(tmp_path / "cache", **given))
    assert len(datasets.seg_train) == 5 and len(datasets.seg_test) == 2
    assert datasets.seg_train.object_counts.tolist() == [1] * 5
    assert sorted(datasets.cls_train.labels.tolist()) == [0, 1, 1, 2, 2, 2]
    k = datasets.seg_train.files.index("12_31.jpg")
    picture = np.asarray(Image.open(tmp_path / "seg/image/12/31.jpg"))
    np.testing.assert_array_equal(datasets.seg_train[k].image[..., 0], picture)
    np.testing.assert_array_equal(datasets.seg_train[k].boxes, [[8, 8, 20, 24]])
    k = datasets.cls_test.files.index("2_coronacases-010_0_0075.png")
    assert datasets.cls_test[k].label == 2


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_links_and_copies(tmp_path, link):
    flags = trees.ct_classes(tmp_path / "src")
    result = run(tmp_path, **flags, link=link)
    source, made = tmp_path / "src/0_1728_1013_0023.png", result.tree / "train/0_1728_1013_0023.png"
    assert made.read_bytes() == source.read_bytes()
    assert made.is_symlink() == (link == "symbolic")
    assert (made.stat().st_ino == source.stat().st_ino) == (link != "copy")
    assert run(tmp_path, **flags, link=link).done_before


def test_copies_where_no_hard_link_is_possible(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(standard_tree.errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(standard_tree.os, "link", refuse)
    flags = trees.ct_classes(tmp_path / "src")
    assert len(files_of(run(tmp_path, **flags, link="auto").tree)) == 6
    with pytest.raises(DataError, match="set --link to symbolic or copy"):
        run(tmp_path, **flags, link="hard")


def test_what_changed_is_made_again(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    tree = run(tmp_path, **flags).tree
    assert run(tmp_path, **flags).done_before
    save(tmp_path / "src/0_1728_1013_0023.png", noise(99, 48, 48))
    assert not run(tmp_path, **flags).done_before
    pixels = np.asarray(Image.open(tree / "train/0_1728_1013_0023.png"))
    np.testing.assert_array_equal(pixels, noise(99, 48, 48))
    flags["train_list"].write_text("2_96_1328_0032.png\n")
    assert not run(tmp_path, **flags).done_before
    assert sorted(p.name for p in (tree / "train").iterdir()) == ["2_96_1328_0032.png"]
    (tree / "test/0_3905_5437_0094.png").unlink()
    assert not run(tmp_path, **flags).done_before
    assert (tree / "test/0_3905_5437_0094.png").is_file()


def test_a_defect_leaves_an_earlier_folder_alone(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    tree = run(tmp_path, **flags).tree
    before = files_of(tree)
    (tmp_path / "src/2_96_1328_0032.png").unlink()
    assert "missing" in run(tmp_path, **flags).report["errors"]
    assert files_of(tree) == before


def test_a_folder_of_someone_else_is_not_touched(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    save(tmp_path / "data/ct_classes/train/0_mine_1_1.png", noise(0, 48, 48))
    with pytest.raises(DataError, match="not made by this program"):
        run(tmp_path, **flags)
    assert len(files_of(tmp_path / "data/ct_classes")) == 1
    assert run(tmp_path, **flags, name="other").tree == tmp_path / "data/other"


def test_check_only(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    result = run(tmp_path, **flags, check_only=True)
    assert result.report["prepared"] is None and result.report["errors"] == {}
    assert result.report_file.is_file() and not result.tree.exists()


def test_data_dir_inside_the_source(tmp_path):
    """Prepared files are not read as more source files."""
    flags = trees.ct_classes(tmp_path / "data", "covidx")
    run(tmp_path, **flags)
    result = run(tmp_path, **flags, name="again")
    assert result.report["errors"] == {} and result.report["warnings"] == {}
    assert run(tmp_path, **flags).done_before


KILLED = """
import os, signal, sys
from ssm_jax.__main__ import run
from ssm_jax.data import inspection
from ssm_jax.data.published import standard_tree

where, calls = sys.argv.pop(1), 0
module, name = (inspection, "slice_facts") if where == "check" else (standard_tree, "_put")
whole = getattr(module, name)
inspection._BATCH = 2

def counted(*args):
    global calls
    calls += 1
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args)

setattr(module, name, counted)
run(["prepare-data", *sys.argv[1:]])
"""


@pytest.mark.parametrize("where", ["check", "write"])
def test_killed_half_way(tmp_path, where, monkeypatch):
    flags = trees.ct_classes(tmp_path / "src")
    more = {"min_area": 2300, "threads": 1, "link": "copy", "data_dir": tmp_path / "data"}
    given = [f"--{name}={value}" for name, value in (flags | more).items()]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), where, *given],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    tree, state = tmp_path / "data/ct_classes", tmp_path / "data/.ct_classes"
    assert not tree.exists() and (state / "checked.jsonl").is_file()
    assert (state / "partial").exists() == (where == "write")
    seen, slice_facts = [], inspection.slice_facts
    monkeypatch.setattr(
        inspection, "slice_facts", lambda path, n: seen.append(path) or slice_facts(path, n)
    )
    result = run(tmp_path, **flags)
    assert len(seen) == (2 if where == "check" else 0), "what was checked is not checked again"
    assert result.report["errors"] == {} and len(files_of(tree)) == 6
    assert sorted(p.name for p in state.iterdir()) == ["lock"]


def test_a_record_that_was_cut_off(tmp_path):
    record = tmp_path / "state" / "checked.jsonl"
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for k, path in enumerate(paths):
        save(path, noise(k, 8, 8 + k))
    slices = [inspection.Slice("train", path.name, path.name, path) for path in paths]

    def widths():
        return [
            found.picture["width"] for found in inspection.Inspector(1, 1, record).inspect(slices)
        ]

    assert widths() == [8, 9, 10]
    whole = record.read_bytes()
    record.write_bytes(whole[:-20])
    save(paths[0], noise(9, 8, 30))
    assert widths() == [30, 9, 10]
    assert all(json.loads(line) for line in record.read_text().splitlines())
    assert inspection.Inspector(3, 1, record)._known == {}, "of other channels"
    record.write_text(record.read_text() + "spoiled\n")
    assert inspection.Inspector(3, 1, record)._known == {}
    assert len(record.read_text().splitlines()) == 1


def test_spoiled_reports_and_marks_are_made_again(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    result = run(tmp_path, **flags)
    for path in (result.report_file, result.tree / standard_tree.MARK):
        path.write_text("{")
        assert not run(tmp_path, **flags).done_before
        assert json.loads(path.read_text())["fingerprint"]
    assert run(tmp_path, **flags).done_before


def test_two_processes_at_once(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    results = []
    with locked(tmp_path / "data/.ct_classes", "--data_dir"):
        threads = [
            threading.Thread(target=lambda: results.append(run(tmp_path, **flags))) for _ in "ab"
        ]
        for thread in threads:
            thread.start()
        threads[0].join(0.5)
        assert not results
    for thread in threads:
        thread.join()
    assert sorted(result.done_before for result in results) == [False, True]


BAD_FLAGS = {
    "no source": ({"source": "nowhere"}, r"no folder .*nowhere; set --source"),
    "no lists": ({"train_list": None, "test_list": None}, "set --train_list and --test_list"),
    "no test": ({"test_list": None}, "set --test_list to"),
    "no such list": ({"train_list": "nolist.txt"}, "can not read --train_list=.*nolist.txt"),
    "name": ({"name": "../up"}, "--name=../up has to be a plain folder name"),
    "order": ({"class_order": "a,b,c"}, "--class_order=a,b,c has to name normal, cp"),
    "layout": ({"dataset": "cncb_seg"}, "no picture lies in a folder image or images or imgs"),
    "data_dir": ({"data_dir": "/dev/null/x"}, "set --data_dir to a folder that can be written"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_one_clear_line(tmp_path, name):
    changed, expected = BAD_FLAGS[name]
    flags = trees.ct_classes(tmp_path / "src") | changed
    given = {key: value for key, value in flags.items() if value is not None}
    done = program(tmp_path, **given)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(rf"error: .*{expected}.*\n", done.stderr), done.stderr


def test_a_set_of_ones_own_and_the_flags_to_train_on_it(tmp_path, capsys):
    own_sets.coco_set(tmp_path / "src")
    given = [f"--source={tmp_path / 'src'}", f"--data_dir={tmp_path / 'data'}", "--min_area=0"]
    start(["prepare-data", "--dataset=coco", "--split=0.8,0.2,0", "--image_size=64", *given])
    shown = capsys.readouterr().out
    assert re.search(r"pictures with objects, train: 16 slices; \d+ with lesions; mask", shown)
    assert "whose slices they are is not known: splits may share patients" in shown
    sizes = re.search(r"(\d+)% with (--config\.model\.anchor_sizes='\((.*),\)')", shown)
    assert int(sizes[1]) > 0 and all(0 < float(size) < 64 for size in sizes[3].split(","))
    *_, last = shown.splitlines()
    assert last == (
        f"for ssm-jax train: --config.data.seg_dir={tmp_path / 'data/coco'} "
        "--config.data.test_split=val --config.checkpoint.best_metric=ap"
    )
    config = configs.load("pretrain")
    changed = configs.changed(config, [*shlex.split(last)[3:], *shlex.split(sizes[2])])
    assert changed.data.test_split == "val"
    assert [f"{size:g}" for size in changed.model.anchor_sizes] == sizes[3].split(",")
    (tmp_path / "src/images/box0_0.png").unlink()
    with pytest.raises(SystemExit, match="error: 1 defects, listed above; nothing was prepared"):
        start(["prepare-data", "--dataset=coco", "--check_only", *given])
    assert "missing (1): " in capsys.readouterr().out


def test_an_empty_list_and_a_folder_without_pictures(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    flags["test_list"].write_text("\n# nothing\n")
    with pytest.raises(DataError, match="has no lines: the split is empty"):
        run(tmp_path, **flags)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no PNG or JPEG file; check --source"):
        run(tmp_path, **flags | {"source": tmp_path / "empty"})


def test_several_versions_of_covidx_side_by_side(tmp_path):
    flags = trees.covidx_ct(tmp_path / "src")
    copy(tmp_path / "src/train_COVIDx_CT-2A.txt", tmp_path / "src/train_COVIDx_CT-2B.txt")
    with pytest.raises(
        DataError, match=r"several lists for train: .*2A\.txt, .*2B\.txt; say which"
    ):
        run(tmp_path, **flags)


def test_the_help_tells_errors_from_warnings():
    text = findings.describe_kinds()
    errors, warnings = text.split("Warnings:")
    for name, kind in findings.KINDS.items():
        assert f"  {name}: " in (errors if kind.error else warnings)
    done = programs.run("prepare_data", "--help")
    assert text.splitlines()[1] in done.stdout
