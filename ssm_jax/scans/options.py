"""How inputs are read: the CT window, what may be assumed of values, and limits of size."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import types
import warnings
from collections.abc import Iterator

VALUES = ("auto", "hu", "range")
# How class probabilities of slices become those of a scan, see `ssm_jax.scans.summary`.
RULES = ("mean", "vote", "telling")
MIB = 1 << 20
# Deflate reaches 1032; CT slices reach 20 where most is air.
_MAX_RATIO, _RATIO_FROM = 200, 16 * MIB
_MOST_HU = 1e6  # of a window's center and width, and of a rescale


class ScanError(ValueError):
    """An input that cannot be used; the message is one line: what is wrong, where, what to do."""


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """How inputs are read.

    Attributes:
      window: CT window, Hounsfield units: center and width. With --values=hu also that of pictures
        of more than 8 bits.
      values: Meaning of stored numbers. hu: Hounsfield units, after the header's rescale slope and
        intercept. range: already windowed, so that their whole range is spread over 8 bits. auto:
        decided from header and values, with a warning where the header does not say so.
      rescale: Slope and intercept to Hounsfield units, in place of the header's.
      identity: Name the patient, dates, descriptions and UIDs among the facts of a scan, and give
        full paths; without, neither report nor predictions.json does.
      max_file_mib: A file, a zip's member or a decoded volume may be this large, MiB.
      max_zip_mib: All members of a zip may unpack to this much together, MiB.
      max_zip_members: Members that a zip may have.
      max_pixels: Pixels that one slice may have.

    Raises:
      ScanError: a window without width, other `values`, a slope of 0, a number that is not finite
        or beyond a million, or a limit below 1.
    """

    window: tuple[float, float] = (-600.0, 1500.0)
    values: str = dataclasses.field(default="auto", metadata={"choices": VALUES})
    rescale: tuple[float, float] | None = None
    identity: bool = False
    max_file_mib: int = 1024
    max_zip_mib: int = 16 * 1024
    max_zip_members: int = 50_000
    max_pixels: int = 4096 * 4096

    def __post_init__(self):
        center, width = self.window
        if not width > 0:
            raise ScanError(f"the width of a CT window must be positive, not {width}")
        if not max(abs(center), width) <= _MOST_HU:
            raise ScanError(
                f"center and width of a CT window must be Hounsfield units, not {center}, {width}"
            )
        if self.values not in VALUES:
            raise ScanError(f"values must be one of {', '.join(VALUES)}, not {self.values!r}")
        if self.rescale is not None and not _is_rescale(self.rescale):
            raise ScanError(f"rescale must be a slope (not 0) and an intercept, not {self.rescale}")
        for name in ("max_file_mib", "max_zip_mib", "max_zip_members", "max_pixels"):
            if getattr(self, name) < 1:
                raise ScanError(f"{name} must be at least 1, not {getattr(self, name)}")


def _is_rescale(values: tuple[float, ...]) -> bool:
    return len(values) == 2 and values[0] != 0 and all(abs(value) <= _MOST_HU for value in values)


def check_unpacked(size: float, packed: int, kind: str) -> None:
    """Refuses a compressed file that unpacks to more than images do.

    Args:
      size: bytes that it unpacks to.
      packed: bytes that it takes.
      kind: of the compression, for people.

    Raises:
      ScanError: it is a bomb.
    """
    if size > max(_RATIO_FROM, _MAX_RATIO * packed):
        raise ScanError(f"is compressed beyond what images are: refused as a {kind} bomb")


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turns whatever goes wrong with an input into a ScanError, so that it stops no other input.

    Damaged files make libraries raise almost anything, memory and recursion errors included.

    Args:
      what: the beginning of the message, such as "cannot be read".
    """
    try:
        yield
    except ScanError:
        raise
    except Exception as error:
        raise ScanError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of an exception, in one line of bounded length."""
    return visible(" ".join(str(error).split()))[:300] or type(error).__name__


def visible(text: str) -> str:
    """A text for people, in which control characters and undecodable bytes are escaped."""
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def quiet_libraries() -> None:
    """Hides what libraries log and warn of damaged files: it quotes headers, which name patients.

    What matters of it is said by the errors and warnings of scans.
    """
    for name in ("pydicom", "nibabel.global", "highdicom", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    for name in ("pydicom", "nibabel", "highdicom", "PIL"):
        warnings.filterwarnings("ignore", module=rf"{name}\b")


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
