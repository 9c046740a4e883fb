"""A small made-up chest as DICOM files, in whatever orientation scanners store it."""

import dataclasses

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from ssm_jax.classes import PAPER
from ssm_jax.ops import rle
from ssm_jax.predictor import Prediction, softmax

SPACING = (2.5, 0.8, 0.7)  # between slices, rows and columns, millimeters
ORIGIN = (-20.0, -30.0, -100.0)  # of the first pixel of the lowest slice, LPS millimeters
BRIGHT = 200  # gray level above which the fake model sees a lesion


def chest(slices=6, height=40, width=48):
    """Hounsfield units [Z, H, W], from the feet up, in the radiological view; no symmetry."""
    rng = np.random.default_rng(0)
    hu = np.full((slices, height, width), -1000.0)
    hu[:, 4:-4, 4:-4] = 40
    hu[:, 8:-8, 8:20] = -850
    hu[:, 8:-8, 26:-8] = -800
    for z in range(slices):
        hu[z, 10 : 13 + z, 28 : 31 + z % 7] = 120  # a dense patch that grows, patient's left front
    return np.rint(hu + rng.normal(0, 5, hu.shape))


def windowed(hu, center=-600, width=1500):
    """The 8 bits of a CT window, by its definition."""
    share = (hu - (center - width / 2)) / width
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


# Name: (stored from shown, ImageOrientationPatient, corners (column, row) where storage starts)
ORIENTATIONS = {
    "plain": (lambda a: a, (1, 0, 0, 0, 1, 0), (0, 0)),
    "flipped columns": (lambda a: a[:, ::-1], (-1, 0, 0, 0, 1, 0), (-1, 0)),
    "flipped rows": (lambda a: a[::-1], (1, 0, 0, 0, -1, 0), (0, -1)),
    "turned": (lambda a: a[::-1, ::-1], (-1, 0, 0, 0, -1, 0), (-1, -1)),
    "transposed": (lambda a: a.T, (0, 1, 0, 1, 0, 0), (0, 0)),
    "transposed and flipped": (lambda a: a.T[::-1], (0, 1, 0, -1, 0, 0), (-1, 0)),
}


@dataclasses.dataclass
class Series:
    """How files are made.

    Attributes:
      orientation: one of `ORIENTATIONS`.
      uid: SeriesInstanceUID.
      study: StudyInstanceUID.
    """

    orientation: str = "plain"
    uid: str = dataclasses.field(default_factory=generate_uid)
    study: str = dataclasses.field(default_factory=generate_uid)

    def dataset(self, hu, z, **elements):
        """One slice, [H, W] Hounsfield units as shown, at the z-th place."""
        to_stored, orientation, corner = ORIENTATIONS[self.orientation]
        height, width = hu.shape
        transposed = self.orientation.startswith("transposed")
        x = ORIGIN[0] + (width - 1) * SPACING[2] * (corner[0] == -1)
        y = ORIGIN[1] + (height - 1) * SPACING[1] * (corner[1] == -1)
        values = np.ascontiguousarray(to_stored(hu) + 1024).astype(np.uint16)
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.SeriesInstanceUID, ds.StudyInstanceUID = self.uid, self.study
        ds.FrameOfReferenceUID = "1.2.3.4"
        ds.Modality, ds.PatientID, ds.PatientName = "CT", "p", "Made^Up"
        ds.PatientBirthDate = ds.PatientSex = ds.StudyID = ds.AccessionNumber = ""
        ds.StudyDate, ds.StudyTime, ds.SeriesNumber = "20200101", "120000", 1
        ds.ReferringPhysicianName = ds.PositionReferenceIndicator = ds.Manufacturer = ""
        ds.InstanceNumber = 1000 - z
        ds.ImageOrientationPatient = list(orientation)
        ds.ImagePositionPatient = [x, y, ORIGIN[2] + z * SPACING[0]]
        ds.PixelSpacing = list(SPACING[:0:-1] if transposed else SPACING[1:])
        ds.SliceThickness = SPACING[0]
        ds.Rows, ds.Columns = values.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = values.tobytes()
        for keyword, value in elements.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
        return ds

    def write(self, folder, hu, places=None, **elements):
        """A file a slice, with names that say nothing of the order; their paths by place."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for z in range(len(hu)) if places is None else places:
            paths[z] = folder / f"{(z * 37 + 11) % 101:03d}_{z % 3}.dcm"
            save(self.dataset(hu[z], z, **elements), paths[z])
        return paths


def save(ds, path):
    """Writes a data set as a DICOM file."""
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


def multi_frame(hu, order):
    """One enhanced CT file; frame k is the slice at place order[k]."""
    ds = Series().dataset(hu[0], 0)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = EnhancedCTImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        delattr(ds, keyword)
    ds.NumberOfFrames = len(order)
    ds.PixelData = b"".join((hu[z] + 1024).astype(np.uint16).tobytes() for z in order)
    shared, orientation, measures, values = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = list(SPACING[1:]), SPACING[0]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for z in order:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + z * SPACING[0]]
        group.PlanePositionSequence = Sequence([place])
        frames.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return ds


class BrightSpots:
    """A model that takes what is brighter than `BRIGHT` for a lesion, and for COVID-19."""

    classes = PAPER

    def __init__(self, batch_size=4):
        """Takes the slices of a call; `batches` notes how many came, `aspects` of which shape."""
        self.batch_size, self.batches, self.aspects = batch_size, [], []

    def predict_batch(self, images, aspects=None):
        """One prediction an image; the logits are (0, 0, share of bright pixels in percent)."""
        self.batches.append(len(images))
        self.aspects += aspects or []
        return [self.predict(image) for image in images]

    def predict(self, image):
        """Of one slice."""
        gray = image if image.ndim == 2 else image[..., 0]
        mask = gray > BRIGHT
        found = int(mask.any())
        logits = np.array([0, 0, 100 * mask.mean()], np.float32)
        return Prediction(
            height=image.shape[0],
            width=image.shape[1],
            class_logits=logits,
            class_probabilities=softmax(logits),
            predicted_class=int(logits.argmax()),
            boxes=np.zeros((found, 4), np.float32),
            scores=np.full(found, 0.9, np.float32),
            labels=np.ones(found, np.int32),
            masks=[rle.encode(mask)] * found,
        )
