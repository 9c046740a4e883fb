"""Uploads are read by a process of their own: what it may take, and what its end does to others."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from ssm_jax.ops import rle
from ssm_jax.predictor import Prediction
from ssm_jax.scans.options import InputOptions, ScanError
from ssm_jax.scans.result import ScanResult, SliceResult
from ssm_jax.serve import reader, reading
from ssm_jax.serve.limits import Limits
from tests.helpers.fake_predictions import blob

H, W = 40, 56


def pixels(number):
    return np.random.default_rng(number).integers(0, 256, (H, W), np.uint8)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        Image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def readers(request):
    made = reading.Readers(Limits(**getattr(request, "param", {})))
    yield made
    made.close()


def test_slices_and_masks_are_those_of_the_files(readers, folder, tmp_path_factory):
    with readers.reading(lambda: False) as upload:
        (scan,) = upload.open_scans([str(folder)])
        assert (scan.name, scan.kind, scan.error) == (str(folder), "pictures", None)
        assert [pathlib.Path(slice_.name).name for slice_ in scan.slices] == (
            ["0.png", "1.png", "2.png"]
        )
        for number in (2, 0, 1):
            np.testing.assert_array_equal(scan.slices[number].read(), pixels(number))
        masks = [blob(H, W, (12, 20), (6, 5)), blob(H, W, (14, 24), (6, 5))]
        found = Prediction(
            height=H,
            width=W,
            class_logits=np.zeros(0, np.float32),
            class_probabilities=np.zeros(0, np.float32),
            predicted_class=None,
            boxes=np.zeros((2, 4), np.float32),
            scores=np.array([0.9, 0.8], np.float32),
            labels=np.array([2, 1], np.int32),
            masks=[rle.encode(mask) for mask in masks],
        )
        predictions = zip(scan.slices, (found, None, found), strict=True)
        slices = [SliceResult(slice_.name, None, made) for slice_, made in predictions]
        result = ScanResult(scan.name, scan.kind, {}, [], slices, None)
        out = tmp_path_factory.mktemp("masks")
        paths = upload.write_masks(result, 0, "png", out)
        with pytest.raises(ScanError, match="is not DICOM"):
            upload.write_masks(result, 0, "dicom-seg", out)
    expected = np.where(masks[0], 2, np.where(masks[1], 1, 0))
    assert [path.name for path in paths] == ["00000_0.png", "00002_2.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), expected)


def test_a_process_that_dies_costs_one_slice(readers, folder):
    with readers.reading(lambda: False) as upload:
        (scan,) = upload.open_scans([str(folder)])
        for number in range(2):
            upload._process._process.kill()
            with pytest.raises(ScanError, match="took too much memory, or is damaged"):
                scan.slices[number].read()
            np.testing.assert_array_equal(scan.slices[2].read(), pixels(2))
        upload._process._process.kill()
        for message in ("took too much memory", "other parts of the upload"):
            with pytest.raises(ScanError, match=message):
                scan.slices[0].read()


@pytest.mark.parametrize("readers", [{"read_seconds": 0}], indirect=True)
def test_time_is_limited(readers, folder):
    with (
        readers.reading(lambda: False) as upload,
        pytest.raises(ScanError, match="takes longer to read than 0 s"),
    ):
        upload.open_scans([str(folder)])


def test_a_job_that_is_removed_is_not_waited_for(readers, folder):
    with (
        readers.reading(lambda: True) as upload,
        pytest.raises(ScanError, match="was stopped"),
    ):
        upload.open_scans([str(folder)])


@pytest.mark.parametrize("readers", [{"read_mib": 310}], indirect=True)
def test_memory_is_limited(readers, tmp_path):
    Image.new("RGB", (4096, 4096)).save(tmp_path / "b.jpg")  # 48 MiB, several times over
    Image.fromarray(pixels(0)).save(tmp_path / "a.png")
    with readers.reading(lambda: False) as upload:
        (scan,) = upload.open_scans([str(tmp_path)])
        for _ in range(2):
            np.testing.assert_array_equal(scan.slices[0].read(), pixels(0))
            with pytest.raises(ScanError, match=r"(?i)memory"):
                scan.slices[1].read()
        np.testing.assert_array_equal(scan.slices[0].read(), pixels(0))
    # Without the limit it is read.
    unbounded = reader.Reader(InputOptions())
    unbounded.open([str(tmp_path)])
    assert unbounded.read(0, 1)[0] == {"shape": (4096, 4096, 3)}


def test_answers_are_data_alone(folder):
    """Whatever happens is told as JSON; messages of bugs, which may quote headers, are not."""
    made = reader.Reader(InputOptions())
    assert "scans" in json.loads(made.answer({"call": "open", "paths": [str(folder)]}))
    line, _, body = made.answer({"call": "read", "scan": 0, "index": 1}).partition(b"\n")
    assert json.loads(line) == {"shape": [H, W]}
    assert body == pixels(1).tobytes()
    (folder / "1.png").write_bytes(b"\x89PNG damaged")
    answer = json.loads(made.answer({"call": "read", "scan": 0, "index": 1}))
    assert "cannot be read as a picture" in answer["error"]
    bug = json.loads(made.answer({"call": "read", "scan": 7, "index": "SECRET"}))["bug"]
    assert bug.startswith("IndexError in reader.py, line ")
    assert "SECRET" not in bug
