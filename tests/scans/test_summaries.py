"""Summaries of a scan by hand: class, volume, share of the lung and of the body."""

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra ssm-jax[medical] is not installed")

import nibabel

from ssm_jax.ops import rle
from ssm_jax.predictor import Prediction, softmax
from ssm_jax.scans.body import body_mask
from ssm_jax.scans.masks import label_map
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import ScanError
from ssm_jax.scans.predict import LungMask, predict_scan
from ssm_jax.scans.summary import summarize, thicknesses
from tests.helpers.dicom_tools import BRIGHT, SPACING, BrightSpots, Series, windowed
from tests.helpers.scan_masks import HU, LESIONS, predicted
from tests.scans.test_inputs import TO_RAS


def prediction(probabilities, scores=()):
    logits = np.log(np.array(probabilities, np.float32))
    count = len(scores)
    masks = [rle.encode(np.eye(4)[:: 1 - 2 * k]) for k in range(count)]
    predicted_class = int(logits.argmax()) if len(logits) else None
    found = (np.zeros((count, 4)), np.array(scores), np.arange(1, count + 1), masks)
    return Prediction(4, 4, logits, softmax(logits), predicted_class, *found)


def test_of_overlapping_masks_the_higher_score_shows():
    labels = label_map(prediction([1, 1, 1], [0.9, 0.8]))
    expected = 2 * np.eye(4)[::-1]
    expected[np.eye(4) > 0] = 1
    np.testing.assert_array_equal(labels, expected)


def test_summaries_by_hand():
    slices = [
        prediction([0.7, 0.2, 0.1]),
        None,
        prediction([0.1, 0.6, 0.3]),
        prediction([0.2, 0.1, 0.7]),
        *[prediction([0.9, 0.05, 0.05])] * 4,
    ]
    areas = [5, 0, 10, 20, 0, 0, 3, 0]
    mean = summarize(slices, areas, "mean", voxel_ml=[0.5] * 8)
    np.testing.assert_allclose(mean.class_probabilities, [4.6 / 7, 1.1 / 7, 1.3 / 7], rtol=1e-5)
    assert mean.predicted_class == 0
    assert mean.slices_per_class.tolist() == [5, 1, 1]
    assert mean.lesion_ml == 19.0
    assert mean.telling == [2, 3, 0, 6, 4]  # of equal probabilities the larger lesion first
    vote = summarize(slices, areas, "vote")
    np.testing.assert_allclose(vote.class_probabilities, [5 / 7, 1 / 7, 1 / 7], rtol=1e-5)
    assert vote.lesion_ml is None
    telling = summarize(slices, areas, "telling", in_lung=(3, 12))
    np.testing.assert_allclose(telling.class_probabilities, [2.8 / 5, 1.0 / 5, 1.2 / 5], rtol=1e-5)
    assert telling.lung_share == 0.25
    assert summarize([None], [0]) is None
    with pytest.raises(ValueError, match="mean, vote, telling"):
        summarize(slices, areas, "median")


def test_a_model_that_only_segments():
    summary = summarize([prediction([]), prediction([], [0.5])], [0, 4])
    assert summary.class_probabilities.shape == (0,)
    assert summary.predicted_class is None
    assert summary.telling == [1, 0]


def test_volume_and_share_of_the_lung(tmp_path):
    Series("transposed and flipped").write(tmp_path / "s", HU)
    lung = np.zeros_like(HU, bool)
    lung[:, 8:-8, 26:-8] = True
    # The lung mask has its own axes: the scan's and the mask's meet in patient coordinates only.
    data, affine = lung.transpose(2, 1, 0)[::-1], TO_RAS.copy()
    affine[:3, 3] += affine[:3, 0] * (data.shape[0] - 1)
    affine[:3, 0] *= -1
    nibabel.save(nibabel.Nifti1Image(data.astype(np.uint8), affine), tmp_path / "lung.nii.gz")
    (scan,) = open_scans([str(tmp_path / "s")])
    mask = LungMask.load(str(tmp_path / "lung.nii.gz"))
    summary = predict_scan(BrightSpots(), scan, lung=mask).summary
    assert summary.lung_share == pytest.approx((LESIONS & lung).sum() / lung.sum())
    assert summary.lesion_ml == pytest.approx(LESIONS.sum() * np.prod(SPACING) / 1000)
    far = LungMask(mask.voxels, mask.to_voxel + np.array([0, 0, 0, 1e4]))
    with pytest.raises(ScanError, match="elsewhere"):
        predict_scan(BrightSpots(), scan, lung=far)


def test_thickness_by_hand():
    np.testing.assert_allclose(thicknesses([0, 2, 3, 7], 9), [2, 1.5, 2.5, 4])
    np.testing.assert_allclose(thicknesses([0, None, 3, None], 9), [3, 0, 3, 0])
    np.testing.assert_allclose(thicknesses([None, 5], 9), [0, 9])


def test_the_volume_of_uneven_slices_takes_each_by_its_own(tmp_path):
    Series().write(tmp_path / "s", HU, places=[0, 1, 2, 5])
    _, result = predicted(tmp_path / "s")
    areas, reach = LESIONS[[0, 1, 2, 5]].sum((1, 2)), np.array([2.5, 2.5, 5, 7.5])
    ml = areas @ reach * SPACING[1] * SPACING[2] / 1000
    assert result.summary.lesion_ml == pytest.approx(ml)
    assert any("slices are missing" in line for line in result.warnings)


def test_lesions_on_the_table_are_told(tmp_path):
    large = np.kron(
        np.where(windowed(HU) > BRIGHT, 120, np.where(HU > -300, -100, HU)), np.ones((1, 3, 3))
    )
    hu = np.full((6, 150, 144), -1000.0)
    hu[:, :120] = large
    for row in (130, 140):
        hu[:, row : row + 4, 2:-2] = 130  # the table: as bright as a lesion
    Series().write(tmp_path / "s", hu)
    _, result = predicted(tmp_path / "s")
    inside = (large > 0).sum() / (hu > 0).sum()
    assert result.summary.body_share == pytest.approx(inside, abs=0.01)
    assert any("lie outside of the body" in line for line in result.warnings)
    Series().write(tmp_path / "t", large)
    _, result = predicted(tmp_path / "t")
    assert result.summary.body_share > 0.99  # corners are round
    assert not result.warnings


def test_a_body_by_hand():
    image = np.zeros((40, 40), np.uint8)
    image[5:30, 5:35] = 200
    expected = image > 0
    image[10:25, 12:28] = 20  # lungs
    image[34:36] = 220  # a thin table
    found = body_mask(image, 178)
    assert not (found & ~expected).any()
    assert (expected & ~found).sum() <= 4 * 3  # at the corners
    np.testing.assert_array_equal(body_mask(np.dstack([image] * 3), 178), found)
    assert not body_mask(np.zeros((9, 9), np.uint8), 178).any()
