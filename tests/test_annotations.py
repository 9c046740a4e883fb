"""Arrays of a wrong shape or type are refused while tests run, and only then."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from ssm_jax.evaluation import classification, roc
from ssm_jax.models.fpn import FPN
from ssm_jax.ops import anchors, boxes
from tests.helpers.programs import ROOT


@pytest.mark.parametrize(
    "call",
    [
        lambda: boxes.area(jnp.zeros((3, 5))),  # boxes have four coordinates
        lambda: boxes.area(jnp.zeros((3, 4), int)),  # that are not integers
        lambda: boxes.encode(jnp.zeros((3, 4)), jnp.zeros((2, 4)), boxes.ROI_WEIGHTS),
        lambda: jax.jit(boxes.pairwise_iou)(np.zeros((3, 4)), np.zeros(4)),
        lambda: anchors.grid_anchors(np.zeros((3, 4)), (2, 2), 16),  # float64
        lambda: FPN().init(jax.random.key(0), jnp.zeros((8, 8, 3))),  # no axis of images
        lambda: roc.class_aucs(np.zeros((3, 2)), np.zeros(4, int), ("a", "b")),  # a label too many
        lambda: classification.accuracy(np.zeros((3, 2), int)),  # not as many columns as rows
    ],
)
def test_wrong_shapes_and_types_fail(call):
    with pytest.raises(TypeCheckError, match="whilst checking the parameters"):
        call()


def test_results_are_checked_too(monkeypatch):
    monkeypatch.setattr(anchors.np, "stack", lambda *args, **kwargs: np.zeros((1, 3)))
    with pytest.raises(TypeCheckError, match="whilst checking the return value"):
        anchors.cell_anchors((8.0,), (1.0,))


def test_users_pay_nothing():
    program = "import ssm_jax.ops.boxes as b, sys; print(hasattr(b.area, '__wrapped__'))"
    program += "; print('beartype' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
