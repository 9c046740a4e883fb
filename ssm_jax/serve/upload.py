"""The page where scans are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ssm_jax
from ssm_jax.report.html import element, join
from ssm_jax.report.page import Section, facts, page, resource

# It asks its own server only.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)


def upload_page(
    limit: int, files: int, suffixes: Sequence[str], known: Mapping[str, str] | None = None
) -> str:
    """The text of the page.

    Args:
      limit: bytes of an upload at most.
      files: of an upload at most.
      suffixes: of files that are read.
      known: of the model, label and value for people.
    """
    what = (
        "A slice (PNG, JPEG, TIFF or DICOM), a DICOM series as a zip or as all its files, or a "
        f"NIfTI volume; at most {_size(limit)}."
    )
    field = element(
        "input",
        type="file",
        id="file",
        multiple=True,
        accept=",".join(suffixes),
        aria_describedby="what",
    )
    drop = element(
        "div",
        element("p", element("strong", "Drop a scan here"), ", or choose files:"),
        element("p", element("label", "Files ", for_="file"), field),
        element("p", what, id="what", class_="hint"),
        id="drop",
        data_limit=limit,
        data_files=files,
    )
    buttons = [
        element("a", "Open the result", id="open", href="#", hidden=True),
        element("button", "Delete it from the server", id="delete", type="button", hidden=True),
    ]
    progress = element(
        "div",
        element("h3", id="label"),
        element("p", id="state", role="status"),
        element("progress", id="bar", max=1),
        element("p", buttons, class_="buttons"),
        id="progress",
        hidden=True,
    )
    error = element("p", id="error", role="alert", hidden=True)
    note = element(
        "p",
        "What you upload goes to this server only, and is deleted as soon as it was predicted.",
        class_="hint",
    )
    noscript = element("noscript", element("p", "This page needs its script to upload files."))
    sections = [Section("upload", "Upload", join(drop, error, progress, note, noscript))]
    if known:
        sections.append(Section("model", "Model", facts(known)))
    style = resource("upload.css", __package__)
    script = resource("upload.js", __package__)
    footer = f"ssm_jax {ssm_jax.__version__}. Not a medical device."
    lead = "Lesions and class of chest CT slices"
    return page("CT scans", lead, sections, footer, style, script, _POLICY)


def _size(limit: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if limit >= unit:
            return f"{limit / unit:.4g} {name}"
    return f"{limit} bytes"
