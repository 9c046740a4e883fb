"""The page where scans are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ssm_jax
from ssm_jax.report.page import Section, page, parts


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
    form = parts("upload.html").upload(_size(limit), limit, files, suffixes)
    sections = [Section("upload", "Upload", form)]
    if known:
        sections.append(Section("model", "Model", parts("macros.html").facts(known)))
    lead = "Lesions and class of chest CT slices"
    footer = f"ssm_jax {ssm_jax.__version__}. Not a medical device."
    return page(
        "CT scans",
        lead,
        sections,
        footer,
        styles=["upload.css"],
        scripts=["upload.js"],
        connects=True,
    )


def _size(limit: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if limit >= unit:
            return f"{limit / unit:.4g} {name}"
    return f"{limit} bytes"
