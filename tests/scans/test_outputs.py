"""Files and JSON of a scan: pictures of masks, names, and what the model is told."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("highdicom", reason="the extra ssm-jax[medical] is not installed")

from ssm_jax.scans.masks import file_name, write_masks
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import ScanError
from ssm_jax.scans.output import to_json, without_folders
from ssm_jax.scans.predict import predict_scan
from ssm_jax.scans.result import renamed
from tests.helpers.dicom_tools import SPACING, BrightSpots, Series, windowed
from tests.helpers.scan_masks import HU, LESIONS, predicted


def test_png_masks_are_as_shown(tmp_path):
    Series("transposed").write(tmp_path / "s", HU)
    scan, result = predicted(tmp_path / "s")
    paths = write_masks(result, scan, "png", tmp_path)
    labels = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(labels, LESIONS)


def test_what_a_source_cannot_give(tmp_path):
    Image.fromarray(windowed(HU[0])).save(tmp_path / "a.png")
    scan, result = predicted(tmp_path / "a.png")
    for kind in ("nifti", "dicom-seg"):
        with pytest.raises(ScanError, match=r"does not tell|not DICOM"):
            write_masks(result, scan, kind, tmp_path)


def test_progress_batches_and_pixels_kept_or_not(tmp_path):
    Series().write(tmp_path / "s", HU)
    (scan,) = open_scans([str(tmp_path / "s")])
    model, seen, drawn = BrightSpots(4), [], []
    result = predict_scan(
        model,
        scan,
        progress=lambda done, total: seen.append((done, total)),
        keep_images=False,
        shown=lambda index, image, prediction: drawn.append((index, image.shape)),
    )
    assert model.batches == [4, 2]
    assert seen == [(0, 6), (4, 6), (6, 6)]
    assert drawn == [(k, (40, 48)) for k in range(6)]
    assert all(slice_.image is None for slice_ in result.slices)


def test_json_of_scans(tmp_path):
    paths = Series().write(tmp_path / "s", HU)
    paths[2].write_bytes(paths[2].read_bytes()[:-500])
    scans = open_scans([str(tmp_path / "s"), str(tmp_path / "none")])
    result = predict_scan(BrightSpots(), scans[0])
    content = json.loads(json.dumps(to_json([result], scans[1:])))
    assert [entry["file"] for entry in content["slices"][:6]] == [str(p) for p in paths.values()]
    assert content["slices"][2].keys() == {"file", "scan", "position", "error"}
    assert content["slices"][6] == {"file": str(tmp_path / "none"), "error": "no such file"}
    (scan,) = content["scans"]
    assert (scan["slices"], scan["unread"]) == (6, 1)
    assert scan["summary"]["telling"][0] == str(paths[5])
    assert scan["summary"]["predicted_class_name"] == "covid"


@pytest.mark.parametrize("orientation", ["plain", "transposed"])
def test_the_model_is_told_the_shape_of_pixels(tmp_path, orientation):
    Series(orientation).write(tmp_path / "s", HU)
    (scan,) = open_scans([str(tmp_path / "s")])
    model = BrightSpots()
    predict_scan(model, scan)
    np.testing.assert_allclose(model.aspects, [SPACING[1] / SPACING[2]] * 6)
    square = {"PixelSpacing": [0.7, 0.7000001]}
    Series(orientation).write(tmp_path / "q", HU, **square)
    (scan,) = open_scans([str(tmp_path / "q")])
    assert [slice_.aspect for slice_ in scan.slices] == [1.0] * 6
    bare = {"PixelSpacing": None, "PixelAspectRatio": [2, 1]}
    Series("plain").write(tmp_path / "r", HU, **bare)
    (scan,) = open_scans([str(tmp_path / "r")])
    assert [slice_.aspect for slice_ in scan.slices] == [2.0] * 6


def test_names_for_files_and_texts(tmp_path):
    for name in ("n" * 300, "Ω" * 300, "𝐀" * 300, "a\udce9\nb", "../x", ""):
        made = file_name(7, f"{name}.png")
        assert made.startswith("00007_")
        (tmp_path / made).write_text("")
        assert (tmp_path / made).parent == tmp_path
    (tmp_path / "p1").mkdir()
    inputs = [str(tmp_path / "p1"), str(tmp_path / "p2" / "*.png"), "here/x.png"]
    short = without_folders(inputs)
    assert short(f"{tmp_path}/p1/a.dcm: broken") == "p1/a.dcm: broken"
    assert short("here/x.png") == "here/x.png"
    assert without_folders(["/a/x.png", "/b/c/y.png"])("/b/c/y.png") == "y.png"
    Series().write(tmp_path / "p1", HU)
    _, result = predicted(tmp_path / "p1")
    other = renamed(result, short)
    assert other.name == "p1"
    assert str(tmp_path) not in str([other.facts, other.warnings, *(s.name for s in other.slices)])
