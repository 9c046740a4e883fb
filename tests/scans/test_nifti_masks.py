"""NIfTI masks lie on the voxels of their source, wherever these lie."""

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra ssm-jax[medical] is not installed")

import nibabel

from ssm_jax.scans.masks import grid, write_masks
from ssm_jax.scans.options import ScanError
from tests.helpers.dicom_tools import BRIGHT, ORIENTATIONS, SPACING, Series, chest, save, windowed
from tests.helpers.scan_masks import HU, LESIONS, in_ras, predicted, tilted
from tests.scans.test_inputs import TO_RAS, volume


def expected_ras(lesions=LESIONS):
    slices, rows, columns = np.nonzero(lesions)
    places = np.stack([columns, rows, slices], axis=1) @ TO_RAS[:3, :3].T + TO_RAS[:3, 3]
    return {tuple(place) for place in np.round(places, 2) + 0.0}


@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), ()), ((2, 0, 1), (0, 2)), ((1, 0, 2), ())]
)
def test_nifti_masks_lie_on_the_voxels_of_their_source(tmp_path, order, flips):
    data, affine = volume(tmp_path / "v.nii.gz", order, flips)
    scan, result = predicted(tmp_path / "v.nii.gz")
    (path,) = write_masks(result, scan, "nifti", tmp_path)
    image = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), windowed(data) > BRIGHT)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    source = nibabel.load(tmp_path / "v.nii.gz")
    assert image.header.get_zooms() == pytest.approx(source.header.get_zooms(), abs=1e-4)
    assert nibabel.aff2axcodes(image.affine) == nibabel.aff2axcodes(source.affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_nifti_masks_of_dicom_lie_where_the_lesions_are(tmp_path, orientation):
    Series(orientation).write(tmp_path / "s", HU)
    scan, result = predicted(tmp_path / "s")
    (path,) = write_masks(result, scan, "nifti", tmp_path)
    assert in_ras(path) == expected_ras()
    assert nibabel.load(path).header.get_zooms()[2] == pytest.approx(SPACING[0])


def test_places_without_a_slice_stay_empty(tmp_path):
    Series().write(tmp_path / "s", HU, places=[0, 1, 3, 5])
    scan, result = predicted(tmp_path / "s")
    (path,) = write_masks(result, scan, "nifti", tmp_path)
    assert nibabel.load(path).shape[2] == 6
    lesions = LESIONS.copy()
    lesions[[2, 4]] = False
    assert in_ras(path) == expected_ras(lesions)


def test_a_grid_by_hand():
    assert grid(np.array([3.0]), 2.0) == (2.0, [0])
    step, places = grid(np.array([0, 2.5, 5.001, 12.5]), 1.0)
    assert step == pytest.approx(2.5)
    assert places.tolist() == [0, 1, 2, 5]
    step, places = grid(np.array([0, 2.0, 5.0]), 1.0)
    assert (step, places.tolist()) == (1.0, [0, 2, 5])
    with pytest.raises(ScanError, match="uneven"):
        grid(np.array([0, 1, 2.37, 3.11]), 1.0)


@pytest.mark.parametrize(
    ("degrees", "orientation"), [(20, "plain"), (-30, "transposed and flipped")]
)
def test_masks_of_a_tilted_gantry_lie_where_its_slices_do(tmp_path, degrees, orientation):
    tilted(tmp_path / "s", degrees, orientation)
    scan, result = predicted(tmp_path / "s")
    assert any(f"tilted by {abs(degrees)}.0 degrees" in line for line in scan.warnings)
    assert scan.spacing[0] == pytest.approx(2.5 * np.cos(np.radians(degrees)))
    (path,) = write_masks(result, scan, "nifti", tmp_path)
    image = nibabel.load(path)
    sides = nibabel.affines.voxel_sizes(image.affine)
    axes = image.affine[:3, :3] / sides
    # Axes at right angles, told alike by both forms: what readers of every kind place alike.
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(image.get_qform(coded=True)[0], image.get_sform(), atol=1e-4)
    # Each voxel, by a plain computation, has the label of the pixel in its plane that is nearest.
    marked = np.asarray(image.dataobj)
    expected = np.zeros(marked.shape, bool)
    voxels = np.argwhere(marked >= 0)
    places = np.column_stack([voxels, np.ones(len(voxels))]) @ image.affine.T
    for slice_, lesions in zip(scan.slices, LESIONS, strict=True):
        columns, rows, beside, _ = np.linalg.inv(slice_.affine) @ places.T
        columns, rows = np.rint(columns).astype(int), np.rint(rows).astype(int)
        inside = (np.abs(beside) < sides[2] / 2) & (columns >= 0) & (rows >= 0)
        inside &= (columns < lesions.shape[1]) & (rows < lesions.shape[0])
        assert np.abs(beside[inside]).max() < 1e-3  # the planes are those of the slices
        labels = lesions[rows[inside], columns[inside]]
        expected[tuple(voxels[inside].T)] = labels
    np.testing.assert_array_equal(marked, expected)
    assert marked.sum() == LESIONS.sum()  # and no pixel is lost
    assert marked.shape[2] == len(HU)


@pytest.mark.parametrize("kind", ["nifti", "dicom-seg"])
def test_a_slice_far_beside_the_others_makes_no_giant_volume(tmp_path, kind):
    series = Series()
    (tmp_path / "s").mkdir()
    for z, hu in enumerate(HU):
        place = [90_000.0 if z == 3 else 0.0, 0.0, 2.5 * z]
        elements = {"ImagePositionPatient": place, "PixelSpacing": [0.03, 0.03]}
        save(series.dataset(hu, z, **elements), tmp_path / "s" / f"{z}.dcm")
    scan, result = predicted(tmp_path / "s")
    with pytest.raises(ScanError, match="too far apart"):
        write_masks(result, scan, kind, tmp_path)


def test_a_volume_longer_than_nifti_1_can_tell(tmp_path):
    from ssm_jax.scans.nifti import nifti_in_place

    nifti_in_place(tmp_path / "a.nii.gz", np.ones((40_000, 2, 1), np.uint8), np.eye(4))
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (40_000, 2, 1)


def test_a_slice_far_away_makes_no_giant_volume(tmp_path):
    series = Series()
    (tmp_path / "s").mkdir()
    big = np.kron(chest(3), np.ones((1, 20, 20)))
    for z, place in enumerate((0, 1, 2000)):
        elements = {"ImagePositionPatient": [0, 0, place]}
        save(series.dataset(big[z], z, **elements), tmp_path / "s" / f"{z}.dcm")
    scan, result = predicted(tmp_path / "s")
    with pytest.raises(ScanError, match="too far apart"):
        write_masks(result, scan, "nifti", tmp_path)
