"""Infection figures against plain loops over pixels, patients and bootstrap samples."""

import numpy as np
import pytest

from ssm_jax.evaluation import Evaluator, bootstrap, infection
from ssm_jax.evaluation.intervals import intervals
from ssm_jax.ops import rle
from tests.helpers.fake_predictions import box_of, prediction

H, W = 23, 31


def random_slice(rng):
    """Masks [P, H, W] and a truth [H, W], overlapping at random; both are empty now and then."""
    masks = rng.random((rng.integers(0, 4), H, W)) < 0.2
    return masks, (rng.random((H, W)) < 0.3) & (rng.random() < 0.7)


def plain_figures(slices):
    """Dice, sensitivity and volume error of one patient, pixel by pixel."""
    both = predicted = true = 0
    for masks, truth in slices:
        for y in range(H):
            for x in range(W):
                found = any(mask[y, x] for mask in masks)
                both += found and truth[y, x]
                predicted += found
                true += truth[y, x]
    dice = 2 * both / (predicted + true) if predicted + true else 1
    if not true:
        return dice, np.nan, np.nan
    return dice, both / true, abs(predicted - true) / true


def test_counts_equal_those_of_pixels():
    rng = np.random.default_rng(0)
    for _ in range(12):
        masks, truth = random_slice(rng)
        encoded = [rle.encode(mask) for mask in masks]
        counts = infection.cumulative_counts(encoded, rle.encode(truth))
        for k in range(len(masks) + 1):
            union = masks[:k].any(axis=0)
            assert counts[k].tolist() == [(union & truth).sum(), union.sum(), truth.sum()]
        np.testing.assert_array_equal(
            infection.pixel_counts(encoded[::-1], rle.encode(truth)), counts[-1]
        )


@pytest.fixture(scope="module")
def made():
    """An evaluator of five patients with one to three slices each, and their slices."""
    rng, evaluator, slices = np.random.default_rng(3), Evaluator(), {}
    for patient, count in zip("abcde", (1, 3, 2, 1, 2), strict=True):
        slices[patient] = [random_slice(rng) for _ in range(count)]
        for k, (masks, truth) in enumerate(slices[patient]):
            large = truth & (rng.random((H, W)) < 0.5)  # objects; the rest is too small for one
            boxes = [box_of(large)] if large.any() else []
            found = prediction(masks, rng.random(len(masks)), H, W)
            evaluator.add_segmentation(
                found,
                large.astype(np.uint8),
                boxes,
                file_name=f"{patient}_{k}.png",
                truth_lesion=truth,
            )
    return evaluator, slices


def test_figures_of_patients_equal_a_plain_loop(made):
    evaluator, slices = made
    by_patient = np.array([plain_figures(own) for own in slices.values()])
    assert np.isnan(by_patient).any() and not np.isnan(by_patient).all(axis=0).any()
    metrics = evaluator.metrics()
    assert metrics["seg_patients"] == 5
    expected = np.nanmean(by_patient, axis=0)
    for name, value in zip(infection.FIGURES, expected, strict=True):
        assert metrics[name] == pytest.approx(value)
    found = intervals(evaluator, samples=50, seed=2)
    samples = [
        np.nanmean(np.repeat(by_patient, counts, axis=0), axis=0)
        for counts in bootstrap.draw(5, samples=50, seed=2)
    ]
    ends = np.nanpercentile(samples, [2.5, 97.5], axis=0)
    for k, name in enumerate(infection.FIGURES):
        np.testing.assert_allclose(found.figures[name], ends[:, k])
    by_slice = intervals(evaluator, samples=50, unit="slices")
    assert "infection_dice" not in by_slice.figures and "ap" in by_slice.figures


def test_slices_of_unknown_patients_count_alone(made):
    evaluator = Evaluator()
    slices = [one for own in made[1].values() for one in own]
    for masks, truth in slices:
        found = prediction(masks, np.ones(len(masks)), H, W)
        evaluator.add_segmentation(
            found, np.zeros((H, W), np.uint8), [], file_name="slice", truth_lesion=truth
        )
    metrics = evaluator.metrics()
    assert "seg_patients" not in metrics
    expected = np.nanmean([plain_figures([one]) for one in slices], axis=0)
    assert metrics["infection_dice"] == pytest.approx(expected[0])
    assert "infection_dice" in intervals(evaluator, samples=20, unit="slices").figures


def test_what_nothing_defines():
    nothing = infection.patient_figures(np.zeros((1, 3)))
    np.testing.assert_array_equal(nothing, [[1, np.nan, np.nan]])
    false = infection.patient_figures(np.array([0, 7, 0]))
    np.testing.assert_array_equal(false, [0, np.nan, np.nan])
    means = infection.mean_figures(np.zeros((2, 3), int), np.array([0, 1]))
    assert means["infection_dice"] == 1 and np.isnan(means["infection_sensitivity"])
