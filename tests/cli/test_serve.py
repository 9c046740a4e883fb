"""The program `serve`, as a user starts it: a slice in, the prediction of `predict` out."""

import io
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra ssm-jax[serve] is not installed")
pytest.importorskip("python_multipart", reason="the extra ssm-jax[serve] is not installed")
pytest.importorskip("httpx2", reason="a client of the server")

import httpx2

from ssm_jax.checkpoints import save_model
from ssm_jax.config import ModelConfig
from ssm_jax.predictor import Predictor
from tests.helpers.programs import ROOT
from tests.helpers.tiny import get_config, random_variables

pytestmark = pytest.mark.usefixtures("quickly_compiled")
THRESHOLDS = {"score_threshold": 0.1, "nms_threshold": 0.3}


def start(*flags):
    """Starts the program on a free port."""
    return subprocess.Popen(
        [sys.executable, "-m", "ssm_jax", "serve", "--port=0", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worked_on(client, files):
    """Uploads files of these contents; the status when that is over."""
    sent = client.post("/scans", files=[("file", (name, x)) for name, x in files.items()])
    assert sent.status_code == 202, sent.text
    until = time.monotonic() + 60
    while True:
        status = client.get(f"/scans/{sent.json()['id']}").json()
        if status["state"] in ("done", "failed"):
            return status
        assert time.monotonic() < until, status
        time.sleep(0.05)


@pytest.mark.slow
def test_a_slice_gives_what_the_model_predicts(tmp_path):
    config = ModelConfig.from_mapping(get_config().model.to_dict())
    variables = random_variables(config)
    save_model(tmp_path / "model", config, variables)
    flags = [f"--{name}={value}" for name, value in THRESHOLDS.items()]
    process = start(f"--checkpoint={tmp_path / 'model'}", "--rule=vote", *flags)
    try:
        told = (re.match(r"open (http://127\.0\.0\.1:\d+) ", line) for line in process.stdout)
        address = next(filter(None, told), None)
        assert address, "the server ended"
        image = np.random.default_rng(0).integers(0, 256, (70, 50), np.uint8)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        with httpx2.Client(base_url=address[1], timeout=60) as client:
            status = worked_on(client, {"slice.png": file.getvalue(), "bad.nii": b"no volume"})
            assert status["state"] == "done", status
            base = f"/scans/{status['id']}"
            assert "slice.png" in client.get(f"{base}/report.html").text
            found = json.loads(client.get(f"{base}/predictions.json").text)
            status = worked_on(client, {"bad.nii": b"no volume"})
            assert status["state"] == "failed"
            assert "bad.nii" in status["error"]
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    (entry, unread), (scan,) = found["slices"], found["scans"]
    assert unread["file"] == "bad.nii"
    assert scan["summary"]["rule"] == "vote"
    assert any("bad.nii" in warning for warning in scan["warnings"])
    expected = Predictor(config, variables, **THRESHOLDS)(image)
    np.testing.assert_allclose(entry["class_logits"], expected.class_logits, rtol=1e-4, atol=1e-5)
    assert len(entry["detections"]) == len(expected.boxes) > 0
    boxes = [detection["box"] for detection in entry["detections"]]
    np.testing.assert_allclose(boxes, expected.boxes, atol=0.01)


def test_mistakes_take_one_line(tmp_path):
    process = start(f"--checkpoint={tmp_path / 'nothing'}")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("error: ")
    assert "nothing" in output
    assert "Traceback" not in output
