"""Where recorded reference tensors and small real CT sets lie; markers that skip without them."""

import pathlib

import pytest

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"
REFERENCE = SHARED / "reference"
DATA = SHARED / "data"

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"recorded reference tensors not found at {REFERENCE}"
)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real CT slices not found at {DATA}")
