"""Exported ONNX files, run by engines: against recordings of the author's code and against JAX."""

import base64
import json
import re
import subprocess
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from ssm_jax.checkpoints import save_model
from ssm_jax.classes import paper
from ssm_jax.config import ModelConfig
from ssm_jax.interop import portable, reference_names
from ssm_jax.interop.onnx import engines, file
from ssm_jax.interop.portable import ExportSettings
from ssm_jax.models.inference import make_predict_fn
from ssm_jax.ops import roi_batch
from ssm_jax.ops.masks import encode_masks
from ssm_jax.predictor import Predictor
from ssm_jax.report import browser
from tests.helpers.programs import run
from tests.helpers.tiny import get_config
from tests.parity import seeded
from tests.parity.comparing import recording
from tests.parity.test_inference import (
    PIXELS,
    assert_same_masks,
    config_of,
    slice_of,
    thresholds_of,
    variables_of,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")

TOLERANCE = 1e-4
# Runs a file on an .npy of images, where no other library than these two can be imported.
ALONE = """
import sys
sys.modules["ssm_jax"] = sys.modules["jax"] = sys.modules["onnx"] = None
import numpy, onnxruntime
model, images, target = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
found = session.run(names, {"images": numpy.load(images)})
numpy.savez(target, **dict(zip(names, found, strict=True)))
print(session.get_modelmeta().custom_metadata_map["image_classes"])
"""
TINY = {**get_config().model.to_dict(), "rpn_pre_nms": 100}
# Two lesion classes, fewer survivors than there are slots, and fewer boxes than rows of module S.
FEW = {
    **TINY,
    "branches": 1,
    "num_classes": 3,
    "rpn_nms_threshold": 0.2,
    "rpn_post_nms": 150,
    "selection_size": 64,
    "max_detections": 128,
}
THRESHOLDS = (0.3, 0.4)


def seeded_model(values):
    """A configuration, and weights of a plausible scale."""
    config = ModelConfig.from_mapping(values)
    weights = seeded.weights(reference_names.reference_shapes(config), 3)
    return config, reference_names.to_variables(weights, config)


def slices_of(count, height, width):
    return np.stack([seeded.slice_with_lesions(i, height, width)[0] for i in range(count)])


def outputs_of(path, images):
    """What ONNX Runtime makes of a file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


@pytest.mark.parametrize(
    ("variant", "branches"),
    [
        ("r18_2", 1),
        ("r18_3", 2),
        ("r34_2", 2),
        *(pytest.param(variant, 2, marks=pytest.mark.slow) for variant in ("r18_2", "r34_3")),
    ],
)
def test_the_authors_predictions(variant, branches, tmp_path):
    recorded = recording(f"forward_{variant}")
    config = config_of(recorded, variant, branches)
    path = tmp_path / "model.onnx"
    variables = variables_of(config, int(recorded["weights_seed"]))
    file.write(path, config, variables, ExportSettings(*thresholds_of(recorded)))
    found = outputs_of(path, slice_of(recorded)[None])
    assert set(found) == set(portable.OUTPUTS)
    logits = recorded[f"class_logits_{branches}"]
    np.testing.assert_allclose(found["class_logits"][0], logits, atol=TOLERANCE)
    count = len(recorded["out_boxes"])
    assert count > 4
    assert (found["valid"][0] == (np.arange(config.max_detections) < count)).all()
    assert (found["labels"][0] == found["valid"][0]).all()
    boxes = found["boxes"][0, :count]
    assert np.abs(boxes - recorded["out_boxes"]).max() <= PIXELS
    np.testing.assert_allclose(found["scores"][0, :count], recorded["out_scores"], atol=1e-5)
    if branches == 2:
        masks = found["mask_probabilities"][0, :count]
        assert_same_masks(encode_masks(masks, boxes, *recorded["size"].tolist()), recorded)


@pytest.mark.parametrize("name", engines.ENGINES)
def test_an_engine_in_the_predictor(name, tmp_path):
    pytest.importorskip(name)
    recorded = recording("forward_resized")
    config = config_of(recorded, "r18_3")
    variables = variables_of(config, int(recorded["weights_seed"]))
    path = tmp_path / "model.onnx"
    settings = ExportSettings(*thresholds_of(recorded), input_type="float32")
    file.write(path, config, variables, settings)
    engine = engines.Engine(name, path)
    predictor = Predictor(config, variables, *thresholds_of(recorded), batch_size=4, engine=engine)
    other = slices_of(1, 96, 100)[0]
    found, smaller, again = predictor.predict_batch([slice_of(recorded), other, other])
    np.testing.assert_allclose(found.class_logits, recorded["class_logits_2"], atol=TOLERANCE)
    assert np.abs(found.boxes - recorded["out_boxes"]).max() <= PIXELS
    np.testing.assert_allclose(found.scores, recorded["out_scores"], atol=1e-5)
    assert_same_masks(found.masks, recorded)
    np.testing.assert_allclose(again.boxes, smaller.boxes, atol=PIXELS)
    assert len(smaller.boxes)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Configuration, variables and file of a model of two lesion classes."""
    path = tmp_path_factory.mktemp("onnx") / "few.onnx"
    model = seeded_model(FEW)
    settings = ExportSettings(*THRESHOLDS, step=7, classes=paper(mask_type="both"))
    file.write(path, *model, settings)
    return *model, path


def test_outputs_are_those_of_jax(few):
    config, variables, path = few
    images = slices_of(2, 64, 70)
    canvas = np.pad(images, ((0, 0), (0, 0), (0, 26)))[..., None]
    sizes = np.array([[64, 70]] * 2, np.int32)
    expected = make_predict_fn(config, roi_batch=True)(variables, canvas, sizes, *THRESHOLDS)
    distinct = expected.roi_batch.count
    assert ((distinct > 1) & (distinct < config.selection_size)).all()  # rows are stretched
    assert set(np.unique(expected.labels)) == {0, 1, 2}
    found = outputs_of(path, images)
    assert set(found) == set(portable.OUTPUTS)
    for name, values in found.items():
        wanted = np.asarray(getattr(expected, name))
        assert (values.shape, values.dtype) == (wanted.shape, wanted.dtype)
        tolerance = TOLERANCE * max(np.abs(wanted).max(), 1) if values.dtype == np.float32 else 0
        np.testing.assert_allclose(values, wanted, atol=tolerance, rtol=0, err_msg=name)


def test_a_file_runs_without_this_package(few, tmp_path):
    *_, path = few
    np.save(tmp_path / "images.npy", slices_of(3, 64, 64))
    arguments = [path, tmp_path / "images.npy", tmp_path / "found.npz"]
    command = [sys.executable, "-c", ALONE, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["Normal", "Common pneumonia", "COVID-19"]
    expected = outputs_of(path, slices_of(3, 64, 64))
    with np.load(tmp_path / "found.npz") as found:
        assert found["valid"].any()
        for name in found.files:
            np.testing.assert_array_equal(found[name], expected[name])


def test_a_file_tells_what_it_is(few):
    config, _, path = few
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    facts = file.read_facts(path)
    assert ModelConfig.from_mapping(facts["model"]) == config
    assert (facts["score_threshold"], facts["nms_threshold"]) == THRESHOLDS
    assert facts["lesion_classes"] == {"1": "ground glass", "2": "consolidation"}
    assert facts["step"] == 7
    assert facts["convolutions"] == "float32"
    assert set(facts["outputs"]) == set(portable.OUTPUTS)


def test_a_model_of_lesions_alone_without_masks(tmp_path):
    config, variables = seeded_model({**TINY, "branches": 1, "image_classes": 0})
    settings = ExportSettings(masks=False, input_type="float32")
    file.write(tmp_path / "m.onnx", config, variables, settings)
    found = outputs_of(tmp_path / "m.onnx", np.float32(slices_of(1, 64, 64) / 255))
    assert set(found) == {"boxes", "scores", "labels", "valid"}
    engine = engines.Engine("onnxruntime", tmp_path / "m.onnx")
    predictor = Predictor(config, variables, masks=False, engine=engine)
    assert predictor(slices_of(1, 64, 64)[0]).predicted_class is None


@pytest.mark.slow
def test_large_layers_in_8_bits(few, tmp_path):
    config, variables, path = few
    images = slices_of(8, 64, 64)
    small = tmp_path / "small.onnx"
    file.write(small, config, variables, ExportSettings(*THRESHOLDS), list(images[:6]))
    assert file.read_facts(small)["convolutions"] == "int8"
    assert small.stat().st_size < 0.7 * path.stat().st_size
    model = onnx.load(small)
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    kernels = {node.input[1] for node in nodes if node.op_type == "Conv"}
    first = {node.input[1] for node in nodes if node.name.startswith("branches/fc6/")}
    eight_bits = {x.name for x in model.graph.initializer if x.data_type == onnx.TensorProto.INT8}
    dequantized = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in eight_bits
    }
    assert len(kernels - dequantized) == 3  # the last of the RPN (two) and of the mask head
    assert len(first) == config.branches and first <= dequantized
    exact, rough = outputs_of(path, images), outputs_of(small, images)
    assert np.abs(exact["class_logits"] - rough["class_logits"]).max() > 0
    best = exact["scores"][:, 0] - rough["scores"][:, 0]
    assert np.abs(best).mean() < 0.1


@pytest.mark.parametrize(("count", "size"), [(1, 8), (5, 8), (8, 8), (0, 8), (1, 1), (2, 2)])
def test_rows_that_start_a_box(count, size):
    starts = np.asarray(roi_batch.starting_order(jax.random.key(0), size)) < count - 1
    assert starts.shape == (size,)
    assert starts[0]
    assert not starts[1:].any() or not starts[-1]
    assert starts.sum() == max(min(count, size - 1), 1)


def test_commands(few, tmp_path):
    config, variables, _ = few
    checkpoint, output = tmp_path / "model", tmp_path / "out" / "model.onnx"
    save_model(checkpoint, config, variables)
    for index, image in enumerate(slices_of(2, 64, 64)):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / f"{index}.png")
    given = (f"--checkpoint={checkpoint}", "--score_threshold=0.3", "--nms_threshold=0.4")
    quantized = ("--quantize=int8", f"--calibrate={tmp_path / 'in'}", "--input_type=float32")
    done = run("export", *given, f"--output={output}", "--format=onnx", *quantized)
    assert done.returncode == 0, done.stderr
    assert "images [b, h, w] float32" in done.stdout

    predict = (*given, f"--inputs={tmp_path / 'in'}", "--engine=onnxruntime")
    for name, more in (("made", ()), ("given", (f"--exported={output}",))):
        done = run("predict", *predict, *more, f"--output_dir={tmp_path / name}", "--report=r.html")
        assert done.returncode == 0, done.stderr
        assert f"onnxruntime {onnxruntime.__version__}" in (tmp_path / name / "r.html").read_text()
    made, exported = (
        json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("made", "given")
    )
    assert made != exported  # the one in 8 bits ran
    assert all(entry["detections"] for entry in made["slices"])

    for more, told in (
        (("--engine=jax", f"--exported={output}"), "--exported is for"),
        ((f"--exported={output}", "--score_threshold=0.6"), "score_threshold=0.3, and 0.6 is"),
        ((f"--exported={tmp_path / 'in' / '0.png'}",), "is no ONNX file"),
    ):
        done = run("predict", *predict, *more, f"--output_dir={tmp_path / 'no'}")
        assert done.returncode == 1
        assert told in done.stderr.splitlines()[-1]


def test_export_for_a_browser(few, tmp_path):
    config, variables, _ = few
    save_model(tmp_path / "model", config, variables)
    output, runtime = tmp_path / "out" / "page.html", tmp_path / "package"
    given = (f"--checkpoint={tmp_path / 'model'}", f"--output={output}", "--format=browser")
    done = run("export", *given, f"--onnxruntime_web={runtime}")
    assert done.returncode == 1
    assert f"{runtime} has no" in done.stderr
    missing = (*given[:2], "--format=onnx", "--quantize=int8", f"--calibrate={tmp_path / 'none'}")
    assert run("export", *missing).returncode == 1
    assert not output.parent.exists()  # what fails leaves no folder
    runtime.mkdir()
    for name in (browser.SCRIPT, browser.ENGINE):
        (runtime / name).write_bytes(b"engine")
    done = run("export", *given, f"--onnxruntime_web={runtime}")
    assert done.returncode == 0, done.stderr
    (encoded,) = re.findall('id="model">([^<]+)<', output.read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(base64.b64decode(encoded))
    assert [(x.name, x.type) for x in session.get_inputs()] == [("images", "tensor(float)")]


def test_what_export_refuses(tmp_path):
    given = (f"--checkpoint={tmp_path}", f"--output={tmp_path / 'm.onnx'}")
    for more, told in (
        (("--quantize=int8",), "--quantize is for --format=onnx"),
        (("--quantize=int8", "--format=onnx"), "go together"),
        (("--calibrate=x", "--format=onnx"), "go together"),
        (("--format=browser",), "npm install onnxruntime-web"),
        (("--onnxruntime_web=x", "--format=onnx"), "go together"),
    ):
        done = run("export", *given, *more)
        assert done.returncode == 1
        assert told in done.stderr


def test_what_an_engine_refuses(few, tmp_path):
    *_, path = few
    engine = engines.Engine("onnxruntime", path)
    colored = slices_of(3, 64, 64).transpose(1, 2, 0)[None]
    with pytest.raises(ValueError, match="takes gray slices"):
        engine(colored, np.array([[64, 64]], np.int32))
    with pytest.raises(ValueError, match="--input_type=float32"):
        engine(np.full((1, 64, 64, 1), 0.5, np.float32), np.array([[64, 64]], np.int32))
    with pytest.raises(ValueError, match="of another model"):
        engines.check_fits(engine.facts, ModelConfig(), True, {})
    other = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="not from ssm-jax export"):
        engines.Engine("onnxruntime", tmp_path / "other.onnx")


def test_a_missing_library_is_told_by_its_extra(monkeypatch, few, tmp_path):
    config, variables, _ = few
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'ssm-jax\[openvino\]'"):
        engines.engine_library("openvino")
    save_model(tmp_path / "model", config, variables)
    for name in [name for name in sys.modules if name.startswith("ssm_jax.interop.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    given = (f"--checkpoint={tmp_path / 'model'}", f"--output={tmp_path / 'm.onnx'}")
    done = run("export", *given, "--format=onnx")
    assert done.returncode == 1
    assert "onnx is not installed; this needs: pip install 'ssm-jax[onnx]'" in done.stderr
