"""Calibration by hand, and against counting."""

import numpy as np
import pytest

from ssm_jax.evaluation import Evaluator, calibration


def test_by_hand():
    probabilities = np.array(
        [[0.9, 0.1], [0.1, 0.9], [0.95, 0.05], [0.6, 0.4], [0.45, 0.55], [0.5, 0.5]]
    )
    labels = [0, 0, 0, 0, 0, 1]
    found = calibration.reliability(probabilities, labels, bins=5)
    np.testing.assert_allclose(found.edges, [0, 0.2, 0.4, 0.6, 0.8, 1])
    # 0.6, 0.55 and 0.5 (a tie: class 0) are in (0.4, 0.6]; one of the three is right.
    assert found.count.tolist() == [0, 0, 3, 0, 3]
    np.testing.assert_allclose(found.confidence[[2, 4]], [0.55, (0.9 + 0.9 + 0.95) / 3])
    np.testing.assert_allclose(found.accuracy[[2, 4]], [1 / 3, 2 / 3])
    assert np.isnan(found.accuracy[[0, 1, 3]]).all()
    assert found.ece == pytest.approx(0.5 * (0.55 - 1 / 3) + 0.5 * (2.75 / 3 - 2 / 3))


def test_equals_counting():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.4] * 3, 300).astype(np.float32)
    labels = rng.integers(0, 3, 300)
    found = calibration.reliability(probabilities, labels)
    ece = 0
    for low in range(calibration.BINS):
        member = [k for k in range(300) if low / 15 < max(probabilities[k]) <= (low + 1) / 15]
        assert found.count[low] == len(member)
        if member:
            right = np.mean([probabilities[k].argmax() == labels[k] for k in member])
            sure = np.mean([max(probabilities[k].astype(float)) for k in member])
            assert found.accuracy[low] == pytest.approx(right)
            assert found.confidence[low] == pytest.approx(sure)
            ece += len(member) / 300 * abs(right - sure)
    assert found.ece == pytest.approx(ece)


def test_perfect_calibration_has_no_error():
    sure = calibration.reliability(np.eye(3)[[0, 1, 2, 1]], [0, 1, 2, 1])
    assert sure.ece == 0
    half = calibration.reliability([[0.5, 0.5]] * 4, [0, 1, 0, 1])
    assert half.ece == 0


def test_no_slices_and_wrong_input():
    empty = calibration.reliability(np.zeros((0, 3)), [])
    assert np.isnan(empty.ece)
    assert empty.count.sum() == 0
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        calibration.reliability(np.zeros((2, 3)), [0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        calibration.reliability([[2.0, -1.0]], [0])
    with pytest.raises(ValueError, match="bins=0"):
        calibration.reliability([[1.0, 0.0]], [0], bins=0)


def test_the_evaluator_reports_it_where_probabilities_are_known():
    evaluator = Evaluator()
    evaluator.add_classification([2.0, 1.0, 0.0], 0, [0.6, 0.3, 0.1], file_name="a.png")
    assert evaluator.metrics()["ece"] == pytest.approx(0.4)
    assert evaluator.cls_files == ["a.png"]
    evaluator.add_classification(1, 1)
    assert "ece" not in evaluator.metrics()
    with pytest.raises(ValueError, match="3 class probabilities"):
        evaluator.add_classification(1, 1, [0.5, 0.5])
