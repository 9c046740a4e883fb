"""The model in the box: a small one, written and read, used without a checkpoint."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import ssm_jax
from ssm_jax import box
from ssm_jax.checkpoints import CheckpointError, CheckpointInfo
from ssm_jax.classes import PAPER
from ssm_jax.cli import evaluate, predict
from ssm_jax.cli.common import set_up_logging
from ssm_jax.cli.flags import parse
from ssm_jax.cli.model import Loaded, ModelFlags
from ssm_jax.config import ModelConfig
from ssm_jax.predictor import Predictor
from ssm_jax.training import initialize
from tests.helpers.data_tools import noise, save, seg_folder
from tests.helpers.tiny import get_config, random_variables

pytestmark = pytest.mark.usefixtures("quickly_compiled")
LIMITS = ("Few patients.", "Pictures of publications.")


def told(path):
    config = get_config()
    config.data.seg_dir = config.data.data_dir = "/home/somebody/data"
    config.init_from = "/home/somebody/runs"
    model = ModelConfig.from_mapping(config.model.to_dict())
    metrics = {"score_threshold": 0.07, "infection_dice": 0.5}
    return model, CheckpointInfo(path, 12, metrics, config.to_dict(), PAPER, 60.0)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    """A file like that of the box, in its place; and the weights that went in."""
    path = tmp_path_factory.mktemp("box") / "model.npz"
    model, info = told(path)
    variables = random_variables(model)
    size = box.write(path, model, variables, info, "a tiny model", LIMITS)
    assert size == path.stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box, "FILE", path)
        yield path, model, variables


def test_weights_come_back_but_for_rounding(boxed):
    _, model, variables = boxed
    found, read, info = box.load_model()
    assert found == model
    assert jax.tree.structure(read) == jax.tree.structure(variables)
    for old, new in zip(jax.tree.leaves(variables), jax.tree.leaves(read), strict=True):
        assert new.dtype == old.dtype
        if old.ndim < 2:
            np.testing.assert_array_equal(new, old)
        else:  # 11 bits of float16
            np.testing.assert_allclose(new, old, rtol=2**-11, atol=1e-7)
    assert (info.step, info.seconds, info.metrics["infection_dice"]) == (12, 60.0, 0.5)
    assert info.config["train"]["max_steps"] == 6
    assert b"somebody" not in json.dumps(info.config).encode()
    assert box.facts() == box.Facts("a tiny model", LIMITS, "CC BY-NC-SA 4.0")


def test_a_run_can_start_from_it(boxed):
    """Other classes than its own, too: all that fits is taken."""
    config = get_config()
    config.init_from = "box"
    taken, seconds = initialize.initial_weights(config, boxed[1])
    _, read, _ = box.load_model()
    jax.tree.map(np.testing.assert_array_equal, taken, read)
    assert seconds == 60


def test_it_predicts_as_its_weights_do(boxed):
    _, model, variables = boxed
    predictor = ssm_jax.load()
    assert predictor.score_threshold == 0.07  # of its evaluation
    image = noise(0, 64, 64)
    exact = Predictor(model, variables, 0.07)(image)
    found = predictor(image)
    np.testing.assert_allclose(found.class_logits, exact.class_logits, rtol=0.05, atol=0.05)


def test_predict_without_a_checkpoint_tells_its_limits(boxed, tmp_path, capsys):
    save(tmp_path / "slice.png", noise(1, 64, 64))
    arguments = [f"--inputs={tmp_path / 'slice.png'}", f"--output_dir={tmp_path / 'out'}"]
    set_up_logging()
    predict.main(parse(predict.Flags, [*arguments, "--report=report.html"]))
    printed = capsys.readouterr().err
    assert "note: no --checkpoint is given" in printed
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["model"] == json.loads(json.dumps(dataclasses.asdict(box.facts())))
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for text in (*LIMITS, "CC BY-NC-SA 4.0"):
        assert text in printed and text in report
    facts = Loaded(ModelFlags()).facts()
    assert (facts["Model"], facts["Score threshold"]) == ("a tiny model", "0.07")


def test_evaluate_without_a_checkpoint_takes_it(boxed, tmp_path, capsys):
    flags = [f"--output_dir={tmp_path / 'out'}", "--bootstrap_samples=0", "--overlays=0"]
    flags.append("--part=segmentation")
    with pytest.raises(ValueError, match="name their folder by --seg_dir"):
        evaluate.main(parse(evaluate.Flags, flags))
    assert not (tmp_path / "out").exists()
    slices = seg_folder(tmp_path / "seg")
    evaluate.main(parse(evaluate.Flags, [*flags, f"--seg_dir={slices}"]))
    assert "note: Few patients." in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["score_threshold"] == 0.07  # of its evaluation
    assert content["model"]["step"] == 12
    assert content["data"]["seg"]["training_slices"] is None


def test_what_cannot_be_written(tmp_path, monkeypatch):
    model, info = told(tmp_path)
    weights = {"params": {"kernel": np.full((2, 2), 1e5, np.float32)}, "batch_stats": {}}
    with pytest.raises(ValueError, match=r"params/kernel holds a weight that is not finite"):
        box.write(tmp_path / "a.npz", model, weights, info, "a", LIMITS)
    weights["params"]["kernel"] = np.zeros((2, 2), np.float32)
    monkeypatch.setattr(box, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="choose a smaller backbone"):
        box.write(tmp_path / "a.npz", model, weights, info, "a", LIMITS)
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_read(boxed, tmp_path, monkeypatch):
    path, model, _ = boxed
    monkeypatch.setattr(box, "FILE", tmp_path / "model.npz")
    with pytest.raises(CheckpointError, match=r"comes without a model.*give a checkpoint"):
        ssm_jax.load()
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"nothing", data[:2000] + b"\0" * 50 + data[2050:]):
        box.FILE.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            box.load_model()
    np.savez(box.FILE, facts=np.array('{"format": "another"}'))
    with pytest.raises(CheckpointError, match="not a model file of this version"):
        box.facts()
    other = random_variables(dataclasses.replace(model, branches=1))
    box.write(box.FILE, model, other, told(tmp_path)[1], "another", LIMITS)
    with pytest.raises(CheckpointError, match="other weights than its model has"):
        box.load_model()
