"""How inputs are read: the CT window, what may be assumed of values, and limits of size."""

from __future__ import annotations

import dataclasses
import importlib
import types

VALUES = ("auto", "hu", "range")


class ScanError(ValueError):
    """An input that cannot be used; the message is one line: what is wrong, where, what to do."""


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """How inputs are read.

    Attributes:
      window_center: of the CT window, Hounsfield units.
      window_width: of the CT window, Hounsfield units.
      values: what numbers mean: "hu": Hounsfield units, after the header's rescale slope and
        intercept; "range": already windowed, so their whole range is spread over 8 bits; "auto":
        decided from header and values, with a warning where the header does not say so.
      rescale: (slope, intercept) in place of the header's; implies Hounsfield units.
      max_file_mib: a file, a zip's member or a decoded volume may be this large, MiB.
      max_zip_mib: what all members of a zip may unpack to together, MiB.
      max_zip_members: members a zip may have.
      max_pixels: pixels of one slice.

    Raises:
      ScanError: a window without width, other `values`, a slope of 0, or a limit below 1.
    """

    window_center: float = -600.0
    window_width: float = 1500.0
    values: str = "auto"
    rescale: tuple[float, float] | None = None
    max_file_mib: int = 1024
    max_zip_mib: int = 16 * 1024
    max_zip_members: int = 50_000
    max_pixels: int = 4096 * 4096

    def __post_init__(self):
        if not self.window_width > 0:
            raise ScanError(f"the width of a CT window must be positive, not {self.window_width}")
        if self.values not in VALUES:
            raise ScanError(f"values must be one of {', '.join(VALUES)}, not {self.values!r}")
        if self.rescale is not None and (len(self.rescale) != 2 or self.rescale[0] == 0):
            raise ScanError(f"rescale must be a slope (not 0) and an intercept, not {self.rescale}")
        for name in ("max_file_mib", "max_zip_mib", "max_zip_members", "max_pixels"):
            if getattr(self, name) < 1:
                raise ScanError(f"{name} must be at least 1, not {getattr(self, name)}")


def medical_library(name: str) -> types.ModuleType:
    """Imports a module of the extra `medical`.

    Args:
      name: such as "pydicom".

    Raises:
      ScanError: not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ScanError(
            f"this needs {package}, which is not installed: pip install 'ssm-jax[medical]'"
        ) from error
