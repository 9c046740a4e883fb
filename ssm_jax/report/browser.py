"""A page that runs an exported model in the browser: model and engine lie in the page itself."""

from __future__ import annotations

import base64
import pathlib
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

import ssm_jax
from ssm_jax.class_set import ClassSet
from ssm_jax.report.page import Section, page, parts
from ssm_jax.visualize import lesion_colors

# Of the npm package onnxruntime-web: the script, and the engine that it loads.
SCRIPT, ENGINE = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"


def read_runtime(folder: pathlib.Path) -> dict[str, bytes]:
    """Reads the engine.

    Args:
      folder: `dist` of the npm package onnxruntime-web, or the package's folder.

    Returns:
      The files SCRIPT and ENGINE by name.

    Raises:
      ValueError: they are not there.
    """
    for place in (folder, folder / "dist"):
        if (place / SCRIPT).is_file() and (place / ENGINE).is_file():
            return {name: (place / name).read_bytes() for name in (SCRIPT, ENGINE)}
    raise ValueError(
        f"{folder} has no {SCRIPT} and {ENGINE}; `npm install onnxruntime-web` puts them into "
        "node_modules/onnxruntime-web/dist"
    )


def browser_page(
    title: str,
    model: bytes,
    facts: Mapping[str, Any],
    classes: ClassSet,
    runtime: Mapping[str, bytes],
    known: Mapping[str, str],
) -> str:
    """The text of the page.

    Args:
      title: of the page.
      model: an ONNX file that takes float32 slices.
      facts: its metadata, see `interop.onnx.file.write`.
      classes: of the model.
      runtime: from `read_runtime`.
      known: of the model, label and value for people.
    """
    settings = {
        "image_size": facts["model"]["image_size"],
        "max_size": facts["model"]["max_size"],
        "score_threshold": facts["score_threshold"],
        "image_classes": list(classes.titles),
        "lesion_classes": list(classes.lesion_titles.values()),
        "colors": [list(color) for color in lesion_colors(classes)],
    }
    encoded = (_base64(data) for data in (runtime[SCRIPT], runtime[ENGINE], model))
    sections = [Section("slice", "Slice", parts("browser.html").browser(settings, *encoded))]
    if known:
        sections.append(Section("model", "Model", parts("macros.html").facts(known)))
    return page(
        title,
        f"Lesions{' and class' if classes.titles else ''} of a CT slice, found by your own browser",
        sections,
        f"ssm_jax {ssm_jax.__version__}. Not a medical device.",
        styles=["upload.css", "browser.css"],
        scripts=["browser.js"],
        runs=["blob:", "'wasm-unsafe-eval'"],
    )


def _base64(data: bytes) -> Markup:
    return Markup(base64.b64encode(data).decode())
