"""The tutorial on data of one's own, as it stands, on a small set and with a tiny model."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra ssm-jax[medical] is not installed")

import highdicom
from PIL import ImageDraw

from ssm_jax import __main__ as program
from tests.helpers import own_sets
from tests.helpers.dicom_tools import Series, chest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "your_data.md"
OBJECTS = ("nut", "bolt")
TINY = f"--config={ROOT / 'tests/helpers/tiny.py'}"
FLAGS = {  # that make it small: the tutorial is about the steps, not about a model that works
    "train": [
        "--config.train.max_steps=2",
        "--config.eval.every_steps=2",
        "--config.log.every_steps=1",
    ],
    "evaluate": ["--bootstrap_samples=20", "--score_threshold=0"],
    "predict": ["--score_threshold=0"],
}


def commands():
    """The commands of the tutorial, as lists of words."""
    text = PAGE.read_text(encoding="utf-8")
    part = text.partition("<!-- tutorial -->")[2].partition("<!-- end of tutorial -->")[0]
    block = re.search(r"```bash\n(.*?)```", part, re.DOTALL)[1].replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in block.splitlines()]


def drawn_texts(patch):
    """Collects all that pictures have written on them."""
    texts, draw = [], ImageDraw.ImageDraw.text

    def text(self, place, content, *args, **kwargs):
        texts.append(content)
        return draw(self, place, content, *args, **kwargs)

    patch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


@pytest.mark.slow
def test_the_tutorial(tmp_path, monkeypatch, capsys, quickly_compiled):
    monkeypatch.chdir(tmp_path)
    own_sets.coco_set(tmp_path / "parts")
    written = commands()
    assert [words[0] for words in written] == ["prepare-data", "train", "evaluate", "predict"]
    texts = drawn_texts(monkeypatch)
    for name, *words in written:
        words = [TINY if word.startswith("--config=") else word for word in words]
        if name == "train":
            words.append(f"--config.data.data_dir={tmp_path / 'cache'}")
        program.run([name, *words, *FLAGS.get(name, [])])
    assert "--config.data.seg_dir=" in capsys.readouterr().out, (
        "the first command says how to go on"
    )

    metrics = json.loads((tmp_path / "out/evaluation/metrics.json").read_text())
    names = [name.replace(" ", "_") for name in sorted(own_sets.KINDS)]
    assert {f"sensitivity_{name}" for name in names} <= set(metrics)
    truth = json.loads((tmp_path / "out/evaluation/truth.json").read_text())
    assert [one["name"] for one in truth["categories"]] == list(OBJECTS)
    page = (tmp_path / "out/evaluation/report.html").read_text(encoding="utf-8")
    assert all(name in page for name in own_sets.KINDS)

    predicted = json.loads((tmp_path / "out/predicted/predictions.json").read_text())
    assert [one["title"] for one in predicted["classes"]["image"]] == sorted(own_sets.KINDS)
    assert [one["title"] for one in predicted["classes"]["lesion"]] == list(OBJECTS)
    assert len(predicted["slices"]) == 20
    assert {one["predicted_class_name"] for one in predicted["slices"]} <= set(names)
    found = {d["label_name"] for one in predicted["slices"] for d in one["detections"]}
    assert found and found <= set(OBJECTS)
    page = (tmp_path / "out/predicted/report.html").read_text(encoding="utf-8")
    assert all(name in page for name in (*own_sets.KINDS, *OBJECTS))
    legend = " | ".join(texts)
    assert all(name in legend for name in (*own_sets.KINDS, *OBJECTS))

    Series().write(tmp_path / "series", chest(2, 64, 64))
    words = ["--checkpoint=runs/parts", "--inputs=series", "--output_dir=out/series"]
    program.run(["predict", *words, "--masks=dicom-seg", "--score_threshold=0"])
    segments = highdicom.seg.segread(tmp_path / "out/series/masks/lesions.dcm")
    labels = [segments.get_segment_description(k).segment_label for k in segments.segment_numbers]
    assert labels == list(OBJECTS)
    assert np.any(segments.pixel_array)
