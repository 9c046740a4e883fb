"""Which slices are of one patient, as far as file names tell."""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

_CLASS_NAME = re.compile(r"(\d+_[^_]+)_[^_]+_[^_]+")  # <class>_<patient>_<scan>_<slice>
_SCAN_NAME = re.compile(r"(.+)_\d+")  # <scan>_<slice>


def classification_patient(file: str) -> str | None:
    """The patient of `<class>_<patient>_<scan>_<slice>.png`, "<class>_<patient>"; None otherwise.

    The class belongs to the name: sets number the patients of each class on their own.
    """
    return _named(_CLASS_NAME, file)


def segmentation_patient(file: str) -> str | None:
    """The scan of `<scan>_<slice>.jpg`, which stands for its patient; None for other names."""
    return _named(_SCAN_NAME, file)


def _named(form: re.Pattern, file: str) -> str | None:
    """The first group of a name, after the folder that the file is in: patients are its own."""
    path = pathlib.PurePath(file)
    match = form.fullmatch(path.stem)
    return str(path.with_name(match[1])) if match else None


# By part of the data.
PATIENT_OF: Mapping[str, Callable[[str], str | None]] = {
    "seg": segmentation_patient,
    "cls": classification_patient,
}


def clusters(patients: Sequence[str | None]) -> tuple[Int64[np.ndarray, "{len(patients)}"], bool]:
    """Numbers the patients.

    Args:
      patients: of N slices; None where a name does not tell.

    Returns:
      The same number for slices of one patient, from 0 without gaps; and whether these
      are patients. If a single one is unknown, every slice counts as a unit of its own.
    """
    if any(patient is None for patient in patients):
        return np.arange(len(patients)), False
    numbers = np.unique(np.array(patients, str), return_inverse=True)[1]
    return numbers.astype(np.int64), True
