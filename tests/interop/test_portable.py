"""The exported model, run by the documented script where this package cannot be imported."""

import json
import os
import re
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from jax import export
from PIL import Image

from ssm_jax.checkpoints import save_model
from ssm_jax.classes import paper
from ssm_jax.config import ModelConfig
from ssm_jax.interop import portable
from ssm_jax.interop.portable import ExportSettings
from ssm_jax.models.inference import make_predict_fn
from ssm_jax.predictor import prepare
from tests.helpers.programs import ROOT, run
from tests.helpers.tiny import get_config, random_variables

# So many proposals on so large a map that RoIAlign takes its path of windows on a CPU.
SIZE = 128
MODEL = {
    **get_config().model.to_dict(),
    "image_size": SIZE,
    "rpn_pre_nms": 160,
    "rpn_post_nms": 80,
}
THRESHOLDS = (0.3, 0.4)
# Runs a script with arguments and keeps the arrays of its dict `found`.
DRIVER = """
import runpy, sys
import numpy as np

for name in ("ssm_jax", "flax"):
    sys.modules[name] = None
script, target, *sys.argv[1:] = sys.argv[1:]
try:
    import ssm_jax
except ImportError:
    np.savez(target, **runpy.run_path(script, run_name="__main__")["found"])
"""


@pytest.fixture(scope="module")
def model():
    """Configuration and variables."""
    config = ModelConfig.from_mapping(MODEL)
    return config, random_variables(config)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The file that the program writes of it."""
    folder = tmp_path_factory.mktemp("portable")
    save_model(folder / "model", *model)
    score, nms = THRESHOLDS
    thresholds = (f"--score_threshold={score}", f"--nms_threshold={nms}")
    output = folder / "out" / "model.zip"
    done = run("export", f"--checkpoint={folder / 'model'}", f"--output={output}", *thresholds)
    assert done.returncode == 0, done.stderr
    assert f"-> {output} (" in done.stdout
    assert f"images [b, {SIZE}, {SIZE}] uint8" in done.stdout
    return output


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_readme_script_gives_the_bits_of_predict(model, exported, tmp_path, count):
    images = np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE), np.uint8)
    files = [tmp_path / f"{index}.png" for index in range(count)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    (script,) = (
        code
        for code in re.findall(
            r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL
        )
        if "export.deserialize" in code
    )
    (tmp_path / "script.py").write_text(script)
    paths = [tmp_path / "script.py", tmp_path / "found.npz", exported, *files]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, paths)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "COVID-19" in done.stdout

    config, variables = model
    prepared = np.stack([prepare(image, config.image_size, config.max_size) for image in images])
    sizes = np.full((count, 2), SIZE, np.int32)
    expected = make_predict_fn(config)(variables, prepared, sizes, *THRESHOLDS)
    assert expected.valid.sum() > count
    with np.load(tmp_path / "found.npz") as found:
        assert set(found.files) == set(portable.OUTPUTS)
        for name in found.files:
            value = np.asarray(getattr(expected, name))
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_metadata(exported):
    with zipfile.ZipFile(exported) as file:
        assert sorted(file.namelist()) == ["metadata.json", "program.bin"]
        facts = json.loads(file.read("metadata.json"))
        program = export.deserialize(bytearray(file.read("program.bin")))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert facts["platforms"] == ["cpu", "cuda", "tpu"]
    assert ModelConfig.from_mapping(facts["model"]) == ModelConfig.from_mapping(MODEL)
    assert (facts["score_threshold"], facts["nms_threshold"]) == THRESHOLDS
    assert facts["image_classes"] == ["Normal", "Common pneumonia", "COVID-19"]
    assert facts["lesion_classes"] == {"1": "lesion"}
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["inputs"]["images"]["shape"] == ["b", SIZE, SIZE]
    shapes = {name: (x["shape"], x["dtype"]) for name, x in facts["outputs"].items()}
    assert shapes == {
        "class_logits": (["b", 3], "float32"),
        "boxes": (["b", 8, 4], "float32"),
        "scores": (["b", 8], "float32"),
        "labels": (["b", 8], "int32"),
        "valid": (["b", 8], "bool"),
        "mask_probabilities": (["b", 8, 28, 28], "float32"),
    }


def test_other_inputs_and_no_masks(model):
    program = portable.export_program(*model, ExportSettings(masks=False, input_type="float32"))
    assert str(program.in_avals[0].dtype) == "float32"
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    assert set(outputs) == set(portable.OUTPUTS) - {"mask_probabilities"}
    with pytest.raises(ValueError, match="score_threshold must lie in"):
        ExportSettings(score_threshold=1.5)
    with pytest.raises(ValueError, match="input_type must be one of uint8, float32, not 'int8'"):
        ExportSettings(input_type="int8")


def test_lesion_classes_and_step_are_told(model, tmp_path):
    settings = ExportSettings(masks=False, step=7, classes=paper(mask_type="ggo"))
    facts = portable.write(tmp_path / "m", *model, settings)
    assert facts["lesion_classes"] == {1: "ground glass"}
    assert facts["step"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("output", "part"), [("there", "there exists; delete it"), ("new", "nothing: no such folder")]
)
def test_errors_take_one_line(tmp_path, output, part):
    (tmp_path / "there").write_text("mine")
    flags = (f"--checkpoint={tmp_path / 'nothing'}", f"--output={tmp_path / output}")
    done = run("export", *flags)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "new").exists()
