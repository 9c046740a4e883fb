"""What the phantom promises: a pure function of its seed, classes that differ by lesions only."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ssm_jax.data import images
from ssm_jax.data.objects import lesion_objects
from ssm_jax.data.phantom import drawing
from ssm_jax.data.phantom.anatomy import make_anatomy
from ssm_jax.data.phantom.slices import phantom_slice, set_slice, slice_label
from tests.helpers.programs import ROOT, with_usual_signals

SIZE = 128
COUNT = 40


@pytest.fixture(scope="module")
def slices():
    """label -> list of (image, mask), the same seeds for every label."""
    return {k: [phantom_slice((5, i), k, SIZE) for i in range(COUNT)] for k in range(3)}


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 2**31), min_size=1, max_size=4), st.integers(0, 2), st.integers(32, 90)
)
def test_shapes_values_and_purity(seed, label, size):
    image, mask = phantom_slice(seed, label, size)
    again, mask_again = phantom_slice(tuple(seed), label, size)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert image.shape == mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.max() <= (1 if label == 0 else 3)
    assert (mask == 1).any()


def test_full_size_has_objects_of_the_default_area():
    for label in (1, 2):
        image, mask = phantom_slice((1, label), label)
        _, boxes, _ = lesion_objects(mask)
        assert image.shape == (512, 512) and len(boxes) >= 1


def test_seeds_differ():
    one, two = phantom_slice((0, 1), 2, 64)[0], phantom_slice((0, 2), 2, 64)[0]
    assert (one != two).mean() > 0.2


def test_classes_differ_in_the_lungs_only(slices):
    """The same seed is the same body on the same scanner: no other hint at the class."""
    for i, ((normal, _), (image, _), (covid, _)) in enumerate(zip(*slices.values(), strict=True)):
        anatomy = make_anatomy(np.random.default_rng([5, i, 0]), SIZE)
        outside = anatomy.lung == 0
        assert outside.mean() > 0.3
        np.testing.assert_array_equal(image[outside], normal[outside])
        np.testing.assert_array_equal(covid[outside], normal[outside])


def lesion_facts(pairs):
    """Per slice: objects, pixels of the largest, share of consolidation, whether in both lungs."""
    facts = []
    for _, mask in pairs:
        instances, boxes, _ = lesion_objects(mask, 100)
        lesion = mask >= 2
        columns = np.nonzero(lesion)[1]
        left = (columns < SIZE / 2).mean()
        facts.append(
            (
                len(boxes),
                np.bincount(instances.ravel())[1:].max(),
                (mask == 3).sum() / lesion.sum(),
                0.05 < left < 0.95,
            )
        )
    return np.mean(facts, axis=0)


def test_lesions_follow_the_class(slices):
    assert all(mask.max() == 1 for _, mask in slices[0])
    assert all((mask >= 2).any() for k in (1, 2) for _, mask in slices[k])
    count, largest, dense, bilateral = lesion_facts(slices[1])
    covid_count, covid_largest, covid_dense, covid_bilateral = lesion_facts(slices[2])
    assert covid_count > count + 1
    assert covid_bilateral > 0.6 and bilateral < 0.4
    assert largest > 1.2 * covid_largest
    assert dense > 0.5 and covid_dense < 0.25


def test_lesions_are_brighter_than_the_lung_around_them(slices):
    for label in (1, 2):
        for image, mask in slices[label]:
            assert image[mask >= 2].mean() > image[mask == 1].mean() + 5


def test_covid_lies_further_out(slices):
    """Distance of lesions to the edge of the lung field, relative to the largest there."""

    def depth(pairs):
        shares = []
        for _, mask in pairs:
            field = ndimage.distance_transform_edt(ndimage.binary_fill_holes(mask > 0))
            shares.append(field[mask >= 2].mean() / field.max())
        return np.mean(shares)

    assert depth(slices[2]) < depth(slices[1])


def test_sets_share_no_slice_and_have_their_classes():
    labels = [slice_label(0, "cls", "train", i) for i in range(9)]
    assert labels == [0, 1, 2] * 3
    labels = np.array([slice_label(3, "seg", "train", i) for i in range(2000)])
    shares = np.bincount(labels, minlength=3) / len(labels)
    np.testing.assert_allclose(shares, [0.07, 0.35, 0.58], atol=0.035)
    pictures = [
        set_slice(0, part, split, 2, 64)[0].tobytes()
        for part in ("seg", "cls")
        for split in ("train", "test")
    ]
    assert len(set(pictures)) == 4


def check_drawn(made, count):
    made = list(made)
    assert len(made) == count
    for index, example in enumerate(made):
        image, mask, _ = set_slice(4, "seg", "test", index, 48)
        assert example["file"] == f"test{index:05d}_0.png"
        np.testing.assert_array_equal(images.decode(example["image"])[..., 0], image)
        np.testing.assert_array_equal(images.decode_mask(example["mask"]), mask)


def test_a_small_set_is_drawn_in_this_process(monkeypatch):
    monkeypatch.setattr(drawing, "ProcessPoolExecutor", None)
    check_drawn(drawing.encoded_slices(4, "seg", "test", 48, 5, processes=2), 5)


def test_processes_draw_the_same_slices_in_order(monkeypatch):
    monkeypatch.setattr(drawing, "SMALL_SET", 4)
    check_drawn(drawing.encoded_slices(4, "seg", "test", 48, 5, processes=2), 5)


def test_an_error_of_a_process_is_raised_here(monkeypatch):
    monkeypatch.setattr(drawing, "SMALL_SET", 0)
    with pytest.raises(ValueError, match="too small"):
        list(drawing.encoded_slices(0, "seg", "train", 8, 3, processes=1))


SCRIPT = """
import multiprocessing, os, signal, sys
from ssm_jax.data.phantom import drawing

how, drawing.SMALL_SET = sys.argv[1], 0
print("started", os.getpid(), flush=True)
count = 2 if how == "finish" else 1
drawn = drawing.encoded_slices(4, "seg", "test", 48, 500, processes=count)
first = next(drawn)
workers = [process.pid for process in multiprocessing.active_children()]
print(*workers, flush=True)
if how == "finish":
    print(first["file"], sum(1 for _ in zip(range(9), drawn)))
    drawn.close()
elif how == "kill worker":
    os.kill(workers[0], signal.SIGKILL)
    list(drawn)
elif how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    os.kill(os.getpid(), signal.SIGINT)
    list(drawn)
"""


def started(tmp_path, how, by):
    """Runs the script; it and the worker processes that it had must be gone afterwards."""
    (tmp_path / "script.py").write_text(SCRIPT)
    given = ["-c", SCRIPT] if by == "-c" else [tmp_path / "script.py"]
    done = subprocess.run(
        [sys.executable, *given, how],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=with_usual_signals,
    )
    first, workers, *rest = done.stdout.splitlines()
    assert first.startswith("started") and workers.split()
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers.split()):
        assert time.monotonic() < deadline, "a worker goes on without its parent"
        time.sleep(0.05)
    return done, rest


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="looks at processes in /proc")
class TestProcesses:
    @pytest.mark.parametrize("by", ["file", "-c"])
    def test_a_program_without_a_main_guard_works(self, tmp_path, by):
        done, rest = started(tmp_path, "finish", by)
        assert done.returncode == 0, done.stderr
        assert rest == ["test00000_0.png 9"]

    def test_a_killed_worker_is_an_error(self, tmp_path):
        done, _ = started(tmp_path, "kill worker", "file")
        assert done.returncode == 1
        assert "RuntimeError: a process that draws phantom slices was ended" in done.stderr

    def test_ctrl_c_ends_all(self, tmp_path):
        done, _ = started(tmp_path, "interrupt", "file")
        assert "KeyboardInterrupt" in done.stderr and done.returncode == -signal.SIGINT

    def test_workers_end_with_a_killed_parent(self, tmp_path):
        done, _ = started(tmp_path, "kill", "file")
        assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("label", "size", "match"), [(3, 64, "label 3"), (1, 16, "16 pixels")])
def test_impossible_arguments(label, size, match):
    with pytest.raises(ValueError, match=match):
        phantom_slice((0,), label, size)
