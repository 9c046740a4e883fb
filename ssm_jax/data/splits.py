"""A split by patient, the same on every machine: nobody is in two splits."""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from ssm_jax.data.errors import DataError


def split_by_patient(patients: Sequence[str], shares: Sequence[float], seed: int = 0) -> np.ndarray:
    """Gives every patient, with all slices, to one of several splits.

    Patients come in an order that their names and the seed alone determine, each to the split that
    lacks most slices of its share. Every split with a share gets a patient. The order of the slices
    does not matter.

    Args:
      patients: of N slices; whatever must stay together, such as a document.
      shares: of the splits in the slices, such as (0.8, 0.1, 0.1); they add up to 1.
      seed: of the order.

    Returns:
      int64 [N], the number of the split of every slice.

    Raises:
      DataError: shares that are none, or fewer patients than splits.
    """
    if not (all(0 <= share <= 1 for share in shares) and math.isclose(sum(shares), 1)):
        raise DataError(f"the shares of a split, {_listed(shares)}, have to be from 0, together 1")
    counts = collections.Counter(patients)
    lacking = np.array(shares) * len(patients)
    unfilled = {k for k, share in enumerate(shares) if share}
    if len(counts) < len(unfilled):
        raise DataError(
            f"{len(counts)} patients are too few for {len(unfilled)} splits: a patient is in one"
        )
    of_patient: dict[str, int] = {}
    for patient in sorted(counts, key=lambda name: _place(name, seed)):
        left = len(counts) - len(of_patient)
        allowed = sorted(unfilled) if left == len(unfilled) else np.flatnonzero(shares).tolist()
        chosen = max(allowed, key=lambda k: lacking[k])
        of_patient[patient] = chosen
        lacking[chosen] -= counts[patient]
        unfilled.discard(chosen)
    return np.array([of_patient[patient] for patient in patients], np.int64)


def _place(patient: str, seed: int) -> str:
    """Orders patients at random; the same for a name and a seed wherever it is asked."""
    return hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest()


def _listed(shares: Sequence[float]) -> str:
    return ",".join(f"{share:g}" for share in shares)
