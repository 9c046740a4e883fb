"""Single-shot lesion segmentation and classification of chest CT slices in JAX.

import ssm_jax
predictor = ssm_jax.load("runs/demo")
prediction = predictor(image)  # [H, W] or [H, W, 3], uint8 or float in [0, 1]
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor", "__version__", "load"]

_LAZY = dict.fromkeys(("Prediction", "Predictor", "load"), "ssm_jax.predictor")


def __getattr__(name: str) -> Any:
    """Imports JAX and the model only when they are asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
