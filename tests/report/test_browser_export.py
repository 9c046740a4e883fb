"""The page that runs a model: its arithmetic against ours, and itself with a made-up engine."""

import base64
import importlib.resources
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ssm_jax.classes import PAPER
from ssm_jax.config import ModelConfig
from ssm_jax.interop import portable
from ssm_jax.ops.masks import paste
from ssm_jax.ops.resizing import resize_bilinear, resized_shape
from ssm_jax.report import browser as browser_lib
from tests.helpers import browsers

HEIGHT, WIDTH = 32, 48
# Takes a slice whose short side is 64 pixels and finds one lesion, of the right half of the slice.
RUNTIME = """
export const env = { wasm: {} };
export class Tensor {
  constructor(type, data, dims) { Object.assign(this, { type, data, dims }); }
}
const made = (dims, data) => ({ dims, data });
export const InferenceSession = {
  async create(model) {
    const said = String.fromCharCode(...model, ...env.wasm.wasmBinary);
    if (said !== "MODELENGINE") throw new Error(said);
    return {
      async run({ images }) {
        if (String(images.dims) !== "1,64,96" || images.type !== "float32")
          throw new Error(String(images.dims));
        if (images.data.some((value) => Math.abs(value - 0.2) > 1e-6)) throw new Error("values");
        return {
          class_logits: made([1, 3], Float32Array.of(0, 0, Math.log(2))),
          boxes: made([1, 2, 4], Float32Array.of(48, 0, 96, 64, 0, 0, 0, 0)),
          scores: made([1, 2], Float32Array.of(0.875, 0)),
          labels: made([1, 2], Int32Array.of(1, 0)),
          valid: made([1, 2], Uint8Array.of(1, 0)),
          mask_probabilities: made([1, 2, 28, 28], new Float32Array(1568).fill(1)),
        };
      },
    };
  },
};
"""


def made_page():
    facts = portable.model_facts(
        ModelConfig(image_size=64), portable.ExportSettings(score_threshold=0.5)
    )
    runtime = {browser_lib.SCRIPT: RUNTIME.encode(), browser_lib.ENGINE: b"ENGINE"}
    return browser_lib.browser_page(
        "Slices", b"MODEL", facts, PAPER, runtime, {"Limits": "<b>many</b>"}
    )


def in_node(expression, given):
    """What an expression of the page's functions `f` and of `given` is, by Node."""
    script = importlib.resources.files("ssm_jax.report") / "templates" / "browser.js"
    program = (
        f"const f = require({json.dumps(str(script))});"
        'const given = JSON.parse(require("fs").readFileSync(0, "utf8"));'
        f"console.log(JSON.stringify({expression}))"
    )
    command = ["node", "-e", program]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@needs_node
def test_gray_values_are_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 4), np.uint8)
    expected = np.asarray(Image.fromarray(pixels[..., :3]).convert("L")) / 255
    found = in_node("Array.from(f.gray(Uint8ClampedArray.from(given)))", pixels.ravel().tolist())
    np.testing.assert_allclose(found, expected.ravel(), atol=1e-7)


@needs_node
def test_a_slice_is_resized_as_before_our_own_predictions():
    rng = np.random.default_rng(1)
    shapes = rng.integers(1, 2000, (200, 2)).tolist()
    expected = [list(resized_shape(height, width, 512, 1024)) for height, width in shapes]
    assert in_node("given.map(([h, w]) => f.resizedShape(h, w, 512, 1024))", shapes) == expected
    values = rng.random((9, 13)).astype(np.float32)
    for shape in ((9, 13), (20, 30), (5, 6), (1, 40)):
        given = [values.ravel().tolist(), values.shape, shape]
        found = in_node("Array.from(f.resize(...given))", given)
        expected = resize_bilinear(values[..., None], *shape).ravel()
        np.testing.assert_allclose(found, expected, atol=1e-6)


@needs_node
def test_a_mask_covers_the_pixels_that_it_covers_in_our_own_predictions():
    rng = np.random.default_rng(2)
    corners = rng.uniform(-20, 90, (40, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    masks = np.asarray(
        [
            np.asarray(Image.fromarray(rng.random((6, 6), np.float32)).resize((28, 28), 3))
            for _ in boxes
        ]
    )
    flat = masks.reshape(len(boxes), -1).tolist()
    given = [[mask, 28, box, 70, 80] for mask, box in zip(flat, boxes.tolist(), strict=True)]
    found = in_node("given.map((one) => f.lesionPixels(...one))", given)
    assert sum(map(bool, found)) > 20
    for mask, box, pixels in zip(masks, boxes, found, strict=True):
        canvas = np.zeros((70, 80), bool)
        place, resized = paste(mask, box, 70, 80)
        canvas[place] = resized > 0.5
        assert pixels == np.flatnonzero(canvas).tolist()


def test_everything_is_in_the_page_and_it_may_ask_nobody():
    text = made_page()
    for data in (b"MODEL", b"ENGINE", RUNTIME.encode()):
        assert f">{base64.b64encode(data).decode()}</script>" in text
    (policy,) = re.findall('Content-Security-Policy" content="([^"]+)"', text)
    assert "default-src 'none'" in policy.replace("&#39;", "'")
    assert "connect-src" not in policy
    assert "&lt;b&gt;many&lt;/b&gt;" in text


def test_a_folder_without_the_engine_is_told(tmp_path):
    with pytest.raises(ValueError, match="npm install onnxruntime-web"):
        browser_lib.read_runtime(tmp_path)
    (tmp_path / "dist").mkdir()
    for name in (browser_lib.SCRIPT, browser_lib.ENGINE):
        (tmp_path / "dist" / name).write_bytes(name.encode())
    for folder in (tmp_path, tmp_path / "dist"):
        found = browser_lib.read_runtime(folder)
        assert found == {name: name.encode() for name in found}


@browsers.needed
def test_the_page_shows_what_the_model_finds(tmp_path):
    path = tmp_path / "slices.html"
    path.write_text(made_page(), encoding="utf-8")
    Image.new("L", (WIDTH, HEIGHT), 51).save(tmp_path / "slice.png")
    (tmp_path / "no.png").write_text("no picture")
    with browsers.launched() as browser:
        page = browsers.opened(browser, path)
        page.wait_for_selector("#state:has-text('ready')")
        page.set_input_files("#file", tmp_path / "slice.png")
        page.wait_for_selector("#lesions:visible")
        told = page.inner_text("#told")
        assert told.startswith("1 lesion with a score above 0.5 · Normal 0.250")
        assert "COVID-19 0.500" in told
        cells = page.locator("#lesions tbody").inner_text().split()
        assert (cells[0], cells[1], cells[-1]) == ("1", "0.875", str(HEIGHT * WIDTH // 2))
        seen = page.evaluate(
            "[10, 36].map(x => [...document.getElementById('picture').getContext('2d')"
            ".getImageData(x, 16, 1, 1).data])"
        )
        assert seen[0] == [51, 51, 51, 255]
        assert seen[1] != seen[0]
        page.set_input_files("#file", tmp_path / "no.png")
        page.wait_for_selector("#error:visible")
        assert "no.png is no picture" in page.inner_text("#error")
        assert page.said == []
        asked = [url for url in page.asked if not url.startswith(("data:", "blob:"))]
        assert asked == [path.as_uri()]
