"""The programs `import_reference` and `predict`, as a user runs them."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from ssm_jax.checkpoints import save_model
from ssm_jax.cli.predict import private_files
from ssm_jax.config import ModelConfig
from ssm_jax.ops import rle
from tests.helpers.programs import run
from tests.helpers.shared import REFERENCE, needs_reference
from tests.helpers.tiny import get_config, random_variables

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def entries_of(folder):
    return json.loads((folder / "predictions.json").read_text())["slices"]


@needs_reference
@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "slices"),
    [
        ("weights_r18_3.npz", ("2_015", "2_2_1_0030", "4_020")),
        ("model_r18_2_legacy.pth", ("r18_2_2_015",)),
    ],
)
def test_recorded_class_logits_through_the_command_line(tmp_path, weights, slices):
    weights = REFERENCE / weights
    done = run("import_reference", f"--weights={weights}", f"--output={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr
    recordings = [REFERENCE / f"eval_{name}.npz" for name in slices]
    thresholds = {float(np.load(path)["score_threshold"]) for path in recordings}
    assert len(thresholds) == 1
    (tmp_path / "slices").mkdir()
    expected = []
    for path in recordings:
        recorded = np.load(path)
        Image.fromarray(recorded["image"]).save(tmp_path / "slices" / f"{path.stem}.png")
        expected.append(recorded["class_logits"])
    done = run(
        "predict",
        f"--checkpoint={tmp_path / 'model'}",
        f"--inputs={tmp_path / 'slices'}",
        f"--output_dir={tmp_path / 'out'}",
        f"--score_threshold={thresholds.pop()}",
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    entries = entries_of(tmp_path / "out")
    assert [pathlib.Path(e["file"]).stem for e in entries] == [p.stem for p in recordings]
    logits = np.array([e["class_logits"] for e in entries])
    assert np.abs(logits - expected).max() < 1e-2
    for entry, path in zip(entries, recordings, strict=True):
        recorded = np.load(path)
        detections = entry["detections"]
        assert abs(len(detections) - len(recorded["det_scores"])) <= 1
        count = min(len(detections), 3)
        scores = [d["score"] for d in detections[:count]]
        np.testing.assert_allclose(scores, recorded["det_scores"][:count], atol=1e-3)
        boxes = [d["box"] for d in detections[:count]]
        np.testing.assert_allclose(boxes, recorded["det_boxes"][:count], atol=0.1)
        # A recorded mask and ours may differ in pixels whose probability is next to one half.
        masks = np.unpackbits(recorded["out_masks"], axis=-1)[..., :512].astype(bool)
        ours = rle.decode(detections[0]["mask"]).astype(bool)
        union = (ours | masks[0]).sum()
        assert union == 0 or (ours & masks[0]).sum() / union > 0.99


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model of random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = ModelConfig.from_mapping(get_config().model.to_dict())
    save_model(folder, config, random_variables(config))
    return folder


@pytest.fixture
def folder(tmp_path):
    """Slices of several kinds, and a file that is none."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "slices"
    (folder / "deeper").mkdir(parents=True)
    wide = rng.integers(0, 256, (40, 100), np.uint8)
    Image.fromarray(wide).save(folder / "wide.png")
    color = rng.integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(color).save(folder / "deeper" / "color.JPG")
    Image.fromarray(np.dstack([color, color[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(wide.astype(np.uint16) * 100).save(folder / "deep.png")
    (folder / "cut.png").write_bytes((folder / "wide.png").read_bytes()[:500])
    (folder / "notes.txt").write_text("no slice")
    return folder


def call(checkpoint, output, *inputs, **others):
    """Runs the program; a list repeats its flag."""
    flags = {"checkpoint": checkpoint, "output_dir": output, "score_threshold": 0.05, **others}
    listed = {k: v if isinstance(v, list) else [v] for k, v in flags.items()}
    given = [f"--{name}={value}" for name, values in listed.items() for value in values]
    return run("predict", *given, f"--inputs={inputs[0]}", *inputs[1:])


def test_a_folder_with_unreadable_files(checkpoint, folder, tmp_path):
    shown = call(checkpoint, tmp_path / "out", folder, overlays=True)
    assert shown.returncode == 1
    entries = entries_of(tmp_path / "out")
    names = [str(pathlib.Path(e["file"]).relative_to(folder.name)) for e in entries]
    assert names == ["alpha.png", "cut.png", "deep.png", "deeper/color.JPG", "wide.png"]
    by_name = dict(zip(names, entries, strict=True))
    assert by_name["cut.png"].keys() == {"file", "scan", "position", "error"}
    assert by_name["deep.png"]["detections"]
    assert "4 of 5 slices" in shown.stdout
    assert "more than 8 bits" in shown.stderr
    assert "cut.png" in shown.stderr
    wide = by_name["wide.png"]
    assert wide.keys() == {
        *("file", "scan", "position", "height", "width", "class_logits", "class_probabilities"),
        *("predicted_class", "predicted_class_name", "detections"),
    }
    assert (wide["height"], wide["width"]) == (40, 100)
    assert sum(wide["class_probabilities"]) == pytest.approx(1)
    assert wide["predicted_class"] == int(np.argmax(wide["class_logits"]))
    assert wide["predicted_class_name"] == ("normal", "cp", "covid")[wide["predicted_class"]]
    assert wide["detections"]
    for detection in wide["detections"]:
        assert detection.keys() == {"box", "score", "label", "label_name", "mask"}
        assert detection["label"] == 1
        x1, y1, x2, y2 = detection["box"]
        assert 0 <= x1 <= x2 <= 100
        assert 0 <= y1 <= y2 <= 40
        assert 0.05 < detection["score"] <= 1
        assert isinstance(detection["mask"]["counts"], str)
        assert rle.decode(detection["mask"]).shape == (40, 100)
    assert len(list((tmp_path / "out" / "overlays").glob("*.png"))) == 4


def test_without_masks(checkpoint, folder, tmp_path):
    assert call(checkpoint, tmp_path / "out", folder / "wide.png", masks="none").returncode == 0
    (entry,) = entries_of(tmp_path / "out")
    assert entry["detections"]
    assert all(d.keys() == {"box", "score", "label", "label_name"} for d in entry["detections"])


def test_a_batch_is_no_larger_than_a_scan(checkpoint, folder, tmp_path):
    done = call(checkpoint, tmp_path / "out", folder / "wide.png", batch_size=100_000)
    assert done.returncode == 0, done.stderr


def test_several_inputs_keep_their_order(checkpoint, folder, tmp_path):
    wide, color = folder / "wide.png", folder / "deeper" / "color.JPG"
    empty = tmp_path / "empty"
    empty.mkdir()
    done = call(checkpoint, tmp_path / "out", wide, empty, "nowhere.png", f"{color},{wide}")
    assert done.returncode == 1
    entries = entries_of(tmp_path / "out")
    files = [e["file"] for e in entries]
    names = ["wide.png", "deeper/color.JPG", "wide.png"]
    assert files == [*(f"slices/{name}" for name in names), "empty", "nowhere.png"]
    assert entries[3]["error"].startswith("the folder holds no DICOM")
    assert entries[4]["error"] == "no such file"
    assert entries[0] == entries[2]


def test_a_name_with_a_comma_is_one_file(checkpoint, folder, tmp_path):
    (folder / "wide.png").rename(folder / "a,b.png")
    assert call(checkpoint, tmp_path / "out", folder / "a,b.png").returncode == 0
    assert [e["file"] for e in entries_of(tmp_path / "out")] == ["a,b.png"]


def test_a_series_with_masks_report_and_summary(checkpoint, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="the extra ssm-jax[medical] is not installed")
    from tests.helpers.dicom_tools import Series, chest, windowed

    hu = chest(5, 64, 64)
    paths = Series().write(tmp_path / "series", hu, PixelSpacing=[0.8, 0.8])
    (tmp_path / "pictures").mkdir()
    for z, path in paths.items():
        Image.fromarray(windowed(hu[z])).save(tmp_path / "pictures" / f"{z}_{path.stem}.png")
    kinds = ["nifti", "dicom-seg", "png"]
    out = tmp_path / "out"
    settings = {"masks": kinds, "report": "report.html", "batch_size": 2, "rule": "telling"}
    done = call(checkpoint, out, tmp_path / "series", **settings)
    assert done.returncode == 0, done.stderr
    assert "Common pneumonia" in done.stdout
    entries = entries_of(out)
    assert [e["file"] for e in entries] == [f"series/{path.name}" for path in paths.values()]
    for path in (out, out / "masks" / "png", out / "predictions.json", out / "report.html"):
        assert path.stat().st_mode & 0o077 == 0  # nobody else reads of patients
    assert str(tmp_path) not in (out / "predictions.json").read_text()
    assert nibabel.load(out / "masks" / "lesions.nii.gz").shape == (64, 64, 5)
    assert (out / "masks" / "lesions.dcm").exists()
    assert len(list((out / "masks" / "png").glob("*.png"))) == 5
    report = (out / "report.html").read_text()
    assert "Not a medical device" in report
    (scan,) = json.loads((out / "predictions.json").read_text())["scans"]
    assert scan["summary"]["rule"] == "telling"
    # Pictures of the same slices with the same window give the same logits.
    assert call(checkpoint, tmp_path / "out2", tmp_path / "pictures", batch_size=2).returncode == 0
    logits = [
        [e["class_logits"] for e in group] for group in (entries, entries_of(tmp_path / "out2"))
    ]
    np.testing.assert_allclose(*logits, atol=1e-4)


@pytest.mark.parametrize(("usual", "mode"), [(0o022, 0o600), (0o477, 0o200)])
def test_what_is_written_is_private(tmp_path, usual, mode):
    """A user's own mask may forbid more."""
    before = os.umask(usual)
    try:
        with private_files():
            (tmp_path / "written").touch()
        assert os.umask(usual) == usual
    finally:
        os.umask(before)
    assert (tmp_path / "written").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": "1"}, "--window=1: give 2 numbers with a comma between"),
        ({"window": "0,-5"}, "must be positive"),
        ({"window": "nan,1500"}, "--window=nan,1500: it has to be finite"),
        ({"rescale": "a,b"}, "--rescale=a,b: give a number, with commas"),
        ({"rescale": "1,inf"}, "--rescale=1,inf: it has to be finite"),
        ({"score_threshold": "nan"}, "it has to be finite and at least 0 and at most 1"),
        ({"masks": ["none", "png"]}, "--masks=none leaves no other"),
        ({"masks": "nifty"}, "choose from none, json, nifti, dicom-seg, png; did you mean nifti?"),
        ({"lung_mask": "nowhere.nii"}, "lung mask nowhere.nii cannot be read"),
    ],
)
def test_flags_that_make_no_sense(checkpoint, folder, tmp_path, settings, message):
    done = call(checkpoint, tmp_path / "out", folder / "wide.png", **settings)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_missing_checkpoint_is_one_line(folder, tmp_path):
    done = call(tmp_path / "nowhere", tmp_path / "out", folder / "wide.png")
    assert "no checkpoint at" in done.stderr
    assert done.stderr.count("\n") == 1


def test_import_reports_wrong_weights_without_a_traceback(tmp_path):
    np.savez(tmp_path / "weights.npz", **{"backbone.body.conv1.weight": np.zeros((2, 2))})
    output = tmp_path / "model"
    done = run("import_reference", f"--weights={tmp_path / 'weights.npz'}", f"--output={output}")
    assert done.returncode == 1
    assert "missing: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
