"""Areas under ROC curves against counting all pairs."""

import numpy as np
import pytest

from ssm_jax.evaluation import Evaluator, bootstrap, roc
from ssm_jax.evaluation.intervals import intervals


def pairs_won(scores, positive):
    """The share of pairs in which the slice of the class scores higher; half of an equal one."""
    won = [
        (a > b) + (a == b) / 2
        for a, own in zip(scores, positive, strict=True)
        for b, other in zip(scores, positive, strict=True)
        if own and not other
    ]
    return np.mean(won) if won else np.nan


@pytest.mark.parametrize("digits", [1, 6])  # many equal scores, and none
def test_areas_of_samples_equal_the_share_of_pairs(digits):
    rng = np.random.default_rng(digits)
    scores, positive = rng.random(40).round(digits), rng.random(40) < 0.4
    np.testing.assert_allclose(roc.auc(scores, positive), [pairs_won(scores, positive)])
    drawn = bootstrap.draw(40, samples=15, seed=1)
    areas = roc.auc(scores, positive, drawn)
    for counts, area in zip(drawn, areas, strict=True):
        repeated = np.repeat(np.arange(40), counts)
        assert area == pytest.approx(pairs_won(scores[repeated], positive[repeated]))


def test_areas_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    scores, positive, drawn = rng.random(30), rng.random(30) < 0.5, bootstrap.draw(30, samples=9)
    whole = roc.auc(scores, positive, drawn)
    monkeypatch.setattr(roc, "_CHUNK", 60)
    np.testing.assert_array_equal(roc.auc(scores, positive, drawn), whole)


def test_known_areas():
    assert roc.auc([0.1, 0.2, 0.8], [False, False, True]) == 1
    assert roc.auc([0.9, 0.8, 0.1], [False, False, True]) == 0
    assert roc.auc([0.5, 0.5], [False, True]) == 0.5
    assert np.isnan(roc.auc([0.5, 0.6], [True, True])).all()
    assert np.isnan(roc.auc([], [])).all()


@pytest.mark.parametrize("classes", [("control", "covid"), ("normal", "cp", "covid")])
def test_areas_of_an_evaluator(classes):
    rng, evaluator = np.random.default_rng(1), Evaluator(image_classes=classes)
    probabilities = rng.dirichlet(np.ones(len(classes)), 30)
    labels = rng.integers(0, len(classes), 30)
    for k, (row, label) in enumerate(zip(probabilities, labels, strict=True)):
        evaluator.add_classification(
            row, label, row, f"{label}_p{k // 2}_1_{k}.png", folder="ab"[k % 2]
        )
    metrics, drawn = evaluator.metrics(), intervals(evaluator, samples=40).figures
    for k, name in enumerate(classes):
        if len(classes) == 2 and k == 0:
            assert "auc_control" not in metrics
            continue
        expected = pairs_won(probabilities[:, k], labels == k)
        assert metrics[f"auc_{name}"] == pytest.approx(expected)
        assert drawn[f"auc_{name}"][0] < expected < drawn[f"auc_{name}"][1]
        half = slice(1, None, 2)
        expected = pairs_won(probabilities[half, k], labels[half] == k)
        assert metrics[f"b/auc_{name}"] == pytest.approx(expected)
    evaluator.add_classification(0, 0)  # of unknown probabilities
    assert not any(name.startswith("auc") for name in evaluator.metrics())
