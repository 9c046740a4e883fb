"""Data: phantoms made from a seed or folders of slices, prepared once, as batches of arrays."""

import importlib
from typing import Any

from ssm_jax.data.errors import DataError

_LAZY = {
    "Datasets": "ssm_jax.data.datasets",
    "open_datasets": "ssm_jax.data.datasets",
    "TrainBatches": "ssm_jax.data.batches",
    "iterate_slices": "ssm_jax.data.batches",
    "make_train_iterator": "ssm_jax.data.batches",
}
__all__ = ["DataError", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    """Imports the loading machinery only where it is used: phantom workers start without it."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
