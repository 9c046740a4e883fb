"""Checks of annotated types and shapes of arrays: while tests run, and in the programs they start.

`python -m tests.helpers.annotations MODULE FLAGS` runs a module as a program with these checks.
"""

import runpy
import sys

from jaxtyping import install_import_hook

TRAINING = ("losses", "state", "steps", "targets")
EVALUATION = (
    *("bootstrap", "calibration", "classification", "coco", "coco_resampling", "infection"),
    *("intervals", "per_image_ap", "roc"),
)
PACKAGES = (
    "ssm_jax.ops",
    "ssm_jax.models",
    *(f"ssm_jax.training.{name}" for name in TRAINING),
    *(f"ssm_jax.evaluation.{name}" for name in EVALUATION),
)


def check():
    """From now on every function of PACKAGES that is imported checks what it takes and returns."""
    # An int is a float, as type checkers have it.
    conf = "beartype.BeartypeConf(is_pep484_tower=True)"
    install_import_hook(PACKAGES, f"beartype.beartype(conf={conf})")


if __name__ == "__main__":
    check()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
