"""How inputs are read: the CT window, what may be assumed of values, and limits of size."""

from __future__ import annotations

import dataclasses
import importlib
import types

VALUES = ("auto", "hu", "range")
# How class probabilities of slices become those of a scan, see `ssm_jax.scans.summary`.
RULES = ("mean", "vote", "telling")


class ScanError(ValueError):
    """An input that cannot be used; the message is one line: what is wrong, where, what to do."""


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """How inputs are read.

    Attributes:
      window_center: Of the CT window, Hounsfield units.
      window_width: Of the CT window, Hounsfield units.
      values: Meaning of stored numbers. hu: Hounsfield units, after the header's rescale slope and
        intercept. range: already windowed, so that their whole range is spread over 8 bits. auto:
        decided from header and values, with a warning where the header does not say so.
      rescale: Slope and intercept to Hounsfield units, in place of the header's.
      max_file_mib: A file, a zip's member or a decoded volume may be this large, MiB.
      max_zip_mib: All members of a zip may unpack to this much together, MiB.
      max_zip_members: Members that a zip may have.
      max_pixels: Pixels that one slice may have.

    Raises:
      ScanError: a window without width, other `values`, a slope of 0, or a limit below 1.
    """

    window_center: float = -600.0
    window_width: float = 1500.0
    values: str = dataclasses.field(default="auto", metadata={"choices": VALUES})
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
