"""A small chest with lesions that a fake model finds, for tests of masks and summaries."""

import nibabel
import numpy as np

from ssm_jax.scans.open import open_scans
from ssm_jax.scans.predict import predict_scan
from tests.helpers.dicom_tools import BRIGHT, BrightSpots, Series, chest, save, windowed

HU = chest()
LESIONS = windowed(HU) > BRIGHT  # [Z, H, W] as shown


def predicted(path):
    """The only scan of a path, and its prediction."""
    (scan,) = open_scans([str(path)])
    return scan, predict_scan(BrightSpots(), scan)


def in_ras(path):
    """Places (RAS, to the hundredth of a millimeter) of the voxels that are marked."""
    image = nibabel.load(path)
    voxels = np.argwhere(np.asarray(image.dataobj) > 0)
    places = voxels @ image.affine[:3, :3].T + image.affine[:3, 3]
    return {tuple(place) for place in np.round(places, 2) + 0.0}


def tilted(folder, degrees=20, orientation="plain"):
    """A series whose slices are tilted against the way the table moves."""
    series, angle = Series(orientation), np.radians(degrees)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    folder.mkdir()
    for z, hu in enumerate(HU):
        dataset = series.dataset(hu, z)
        directions = np.reshape(dataset.ImageOrientationPatient, (2, 3)) @ turn.T
        place = turn @ [*dataset.ImagePositionPatient[:2], 0] + [0, 0, -100 + 2.5 * z]
        dataset.ImageOrientationPatient = np.round(directions.ravel(), 8).tolist()
        dataset.ImagePositionPatient = np.round(place, 6).tolist()
        save(dataset, folder / f"{z}.dcm")
