"""Writes a trained model as one file that runs without this package: JAX, ONNX, browser.

The first two take images, any number of slices at a time, and return class_logits, boxes, scores,
labels, valid and mask_probabilities. The page "Export" of the documentation has a script for each.

jax: a zip of program.bin (a jax.export artifact with the weights inside, for CPU, CUDA and TPU) and
metadata.json (the model's configuration, classes and thresholds, and what inputs and outputs mean).
Images are [b, S, S], where S is the model's image size.

onnx: standard operators of opset 17, with the same facts in the file's metadata. Images are
[b, h, w], resized so that the short side is S. Needs the extra ssm-jax[onnx].

browser: an HTML file with the ONNX model and its engine inside. A browser opens it from a disk,
takes pictures of slices (PNG, JPEG) and shows their lesions; nothing is sent anywhere. The engine
is the npm package onnxruntime-web (`npm install onnxruntime-web`). Needs the extra ssm-jax[onnx].

Examples:

    ssm-jax export --checkpoint=runs/demo --output=model.zip
    ssm-jax export --checkpoint=runs/demo --output=model.zip --score_threshold=0.5 \\
        --nomasks
    ssm-jax export --checkpoint=runs/demo --output=model.onnx --format=onnx
    ssm-jax export --checkpoint=runs/demo --output=small.onnx --format=onnx \\
        --quantize=int8 --calibrate=slices/
    ssm-jax export --checkpoint=runs/demo --output=lesions.html --format=browser \\
        --onnxruntime_web=node_modules/onnxruntime-web
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from ssm_jax.cli import common
from ssm_jax.cli.model import Loaded, ModelFlags

if TYPE_CHECKING:
    from ssm_jax.config import ModelConfig

CALIBRATION = 64  # slices at most
FORMATS = ("jax", "onnx", "browser")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `export`.

    Attributes:
      output: The file; must not exist.
      format: Who runs the file: JAX, engines that read ONNX, or a browser.
      masks: Whether the program predicts masks.
      input_type: Gray values that the program takes: 0 to 255 (uint8) or 0 to 1 (float32). Not for
        --format=browser.
      quantize: Precision of the large layers: none (32 bits), or int8, a smaller file whose
        predictions differ: measure it on your own slices first.
      calibrate: Slices that show --quantize=int8 the ranges of values: a file, folder, pattern or
        zip as predict takes them. At most 64 of them are taken, evenly.
      onnxruntime_web: Folder of the npm package of this name, for --format=browser.
      model: Which model.
    """

    output: pathlib.Path
    format: str = dataclasses.field(default="jax", metadata={"choices": FORMATS})
    masks: bool = True
    input_type: str = dataclasses.field(default="uint8", metadata={"choices": ("uint8", "float32")})
    quantize: str = dataclasses.field(default="none", metadata={"choices": ("none", "int8")})
    calibrate: str | None = None
    onnxruntime_web: pathlib.Path | None = None
    model: ModelFlags

    def __post_init__(self):
        if self.quantize != "none" and self.format == "jax":
            raise ValueError("--quantize is for --format=onnx and --format=browser")
        if (self.quantize != "none") != (self.calibrate is not None):
            raise ValueError("--quantize=int8 and --calibrate=PATH go together; give both or none")
        if (self.format == "browser") != (self.onnxruntime_web is not None):
            raise ValueError(
                "--format=browser and --onnxruntime_web=node_modules/onnxruntime-web go together "
                "(`npm install onnxruntime-web` makes that folder)"
            )


def main(flags: Flags) -> None:
    """The program."""
    output = flags.output
    common.require_absent(output)
    common.start_jax()
    model = Loaded(flags.model)
    model.tell()
    if flags.format == "onnx":
        write_onnx(output, model, flags, flags.input_type)
        told = f"images [b, h, w] {flags.input_type}"
    elif flags.onnxruntime_web is not None:
        write_page(output, model, flags, flags.onnxruntime_web)
        told = "open it"
    else:
        from ssm_jax.interop import portable

        output.parent.mkdir(parents=True, exist_ok=True)
        settings = model.export_settings(flags.masks, flags.input_type)
        facts = portable.write(output, model.config, model.variables, settings)
        shape = ", ".join(map(str, facts["inputs"]["images"]["shape"]))
        told = f"images [{shape}] {flags.input_type}"
    print(f"{model.info.path} -> {output} ({output.stat().st_size / 1e6:.1f} MB; {told})")


def write_onnx(
    output: pathlib.Path, model: Loaded, flags: Flags, input_type: str
) -> dict[str, Any]:
    """Writes the ONNX file; returns its metadata."""
    with common.needs_extra("onnx"):
        from ssm_jax.interop.onnx import file

    settings = model.export_settings(flags.masks, input_type)
    calibration: list[np.ndarray] = []
    if flags.calibrate is not None:
        calibration = slices_for(model.config, flags.calibrate, input_type)
    output.parent.mkdir(parents=True, exist_ok=True)
    return file.write(output, model.config, model.variables, settings, calibration)


def write_page(
    output: pathlib.Path, model: Loaded, flags: Flags, onnxruntime_web: pathlib.Path
) -> None:
    """Writes the page that runs the model in a browser."""
    from ssm_jax import files
    from ssm_jax.report import browser

    runtime = browser.read_runtime(onnxruntime_web)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        facts = write_onnx(path, model, flags, "float32")
        data = path.read_bytes()
    known = {label: text for label, text in model.facts().items() if label != "Computed on"}
    page = browser.browser_page("CT slices", data, facts, model.info.classes, runtime, known)
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_text_atomically(output, page)


def slices_for(model_config: ModelConfig, inputs: str, input_type: str) -> list[np.ndarray]:
    """Slices as a model takes them: [h, w] each, of an input type.

    Raises:
      ValueError: none can be read.
    """
    from ssm_jax.predictor import prepare
    from ssm_jax.scans.open import open_scans
    from ssm_jax.scans.options import guarded

    scans = [scan for scan in open_scans([inputs]) if not scan.error]
    slices = [slice_ for scan in scans for slice_ in scan.slices]
    if not slices:
        raise ValueError(f"--calibrate={inputs}: no slice there can be read")
    evenly = np.linspace(0, len(slices) - 1, min(len(slices), CALIBRATION)).astype(int)
    found = []
    for slice_ in (slices[index] for index in evenly):
        with guarded(f"--calibrate: {slice_.name} cannot be read"):
            shown = slice_.read()
        sizes = (model_config.image_size, model_config.max_size)
        gray = prepare(shown, *sizes, slice_.aspect)[..., 0]
        gray = gray if gray.dtype == np.uint8 else gray * 255
        found.append(np.rint(gray).astype(np.uint8) if input_type == "uint8" else gray / 255)
    return [np.asarray(gray, input_type) for gray in found]
