"""Lesion masks as a DICOM segmentation that refers to the files of its series."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import ssm_jax
from ssm_jax.class_set import ClassSet, Code
from ssm_jax.classes import LESION_CODE, METHOD
from ssm_jax.scans.dicom_frames import Frame
from ssm_jax.scans.dicom_header import whole
from ssm_jax.scans.options import ScanError, medical_library, one_line
from ssm_jax.scans.source import Scan
from ssm_jax.scans.upright import upright

# What a segmentation repeats of its source; a source of which it is gone, or damaged, has it empty.
_OF_THE_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_OPTIONAL = (
    *(
        "StudyDescription",
        "PatientAge",
        "PatientSize",
        "PatientWeight",
        "PositionReferenceIndicator",
    ),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def dicom_seg(
    path: pathlib.Path, scan: Scan, labels: Mapping[int, np.ndarray], classes: ClassSet
) -> None:
    """Writes a DICOM segmentation, with a segment for each lesion class.

    It has the pixels of its source. The slices of a tilted gantry alone are on an upright grid:
    readers that make a volume of the frames put sheared ones in a wrong place.

    Args:
      path: of the file to write.
      scan: of DICOM.
      labels: of each slice that was predicted, by its index: [rows, columns] uint8 as stored.
      classes: of the model.

    Raises:
      ScanError: highdicom is missing, or what the source lacks for it.
    """
    highdicom = medical_library("highdicom")
    medical_library("highdicom.seg")
    frames: list[Frame | None] = scan.origin.frames
    known = [(k, frame) for k, frame in enumerate(frames) if frame is not None]
    many = known[0][1].number is not None
    used = [(k, frame) for k, frame in known if many or k in labels]
    if many:  # the file's own order
        used.sort(key=lambda pair: pair[1].number or 0)
    empty = np.zeros(known[0][1].shape, np.uint8)
    volume = np.stack([labels.get(k, empty) for k, _ in used])
    try:
        located, volume, moved = _upright([frame for _, frame in used], volume)
        sources = _sources(located, scan.spacing)
        segmentation = _segmentation(highdicom, sources, volume, classes)
        if moved:
            _note_moved(segmentation)
        segmentation.save_as(path)
    # Headers lack what the standard asks for in many ways.
    except Exception as error:
        path.unlink(missing_ok=True)
        raise ScanError(
            f"{scan.name}: its headers do not allow a DICOM SEG ({one_line(error)}); use "
            "--masks=nifti or png"
        ) from error


def _upright(
    frames: Sequence[Frame], labels: np.ndarray
) -> tuple[Sequence[Frame], np.ndarray, bool]:
    """Frames and their [N, rows, columns] labels on an upright grid, and whether any moved."""
    if any(frame.plane is None for frame in frames):
        raise ScanError("they do not tell where slices lie")
    stand = upright([frame.placed for frame in frames], frames[0].shape)
    if stand.straight:
        return frames, labels, False
    moved = [
        dataclasses.replace(
            frame,
            about=dataclasses.replace(frame.about, shape=stand.shape),
            plane=dataclasses.replace(frame.placed, origin=origin),
        )
        for frame, origin in zip(frames, stand.origins, strict=True)
    ]
    return moved, np.stack([stand.place(k, part) for k, part in enumerate(labels)]), True


def _note_moved(segmentation: Any) -> None:
    """Says that the pixels of a segmentation are not those of its source."""
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for source in derivation.SourceImageSequence:
                source.SpatialLocationsPreserved = "NO"


def _sources(frames: Sequence[Frame], spacing: tuple[float, float, float] | None) -> list[Any]:
    """Headers of the source, of what a segmentation needs and in the way in which it needs it.

    Many are not as the standard has them; what is known of a frame is taken from it instead.
    """
    pydicom = medical_library("pydicom")
    if frames[0].number is not None:
        count = whole(frames[0].header, "NumberOfFrames", 1)
        if [frame.number for frame in frames] != list(range(count)):
            raise ScanError("the file holds frames of several stacks")
    reference = frames[0].header.get("FrameOfReferenceUID") or pydicom.uid.generate_uid()
    thickness = frames[0].about.thickness or (spacing[0] if spacing else 1.0)
    if frames[0].number is None:
        sources = [_source(pydicom, frame, reference) for frame in frames]
        for source, frame in zip(sources, frames, strict=True):
            # Directions of a stack are the same but for rounding.
            _put(source, _orientation(pydicom, frames[0]), _measures(pydicom, frames[0], thickness))
            _put(source, _position(pydicom, frame))
        return sources
    source = _source(pydicom, frames[0], reference)
    shared, groups = pydicom.Dataset(), []
    shared.PlaneOrientationSequence = [_orientation(pydicom, frames[0])]
    shared.PixelMeasuresSequence = [_measures(pydicom, frames[0], thickness)]
    for frame in frames:
        groups.append(pydicom.Dataset())
        groups[-1].PlanePositionSequence = [_position(pydicom, frame)]
    source.SharedFunctionalGroupsSequence = [shared]
    source.PerFrameFunctionalGroupsSequence = groups
    source.NumberOfFrames = len(frames)
    return [source]


def _source(pydicom, frame: Frame, reference: str) -> Any:
    """Attributes of patient, study and file."""
    source, header = pydicom.Dataset(), frame.header
    source.FrameOfReferenceUID = reference
    source.Modality = frame.about.modality or "CT"
    source.Rows, source.Columns = frame.shape
    for keyword in _REQUIRED:
        if not header.get(keyword):
            raise ScanError(f"they lack {keyword}")
        setattr(source, keyword, header[keyword].value)
    for keyword in _OF_THE_STUDY:
        setattr(source, keyword, "")
    for keyword in (*_OF_THE_STUDY, *_OPTIONAL):
        # A damaged element, and one that may not be written, is as empty as a missing one.
        with contextlib.suppress(Exception):
            if keyword in header:
                element, valuerep = header[keyword], pydicom.valuerep
                valuerep.validate_value(element.VR, str(element.value), pydicom.config.RAISE)
                setattr(source, keyword, element.value)
    if source.PatientSex not in ("M", "F", "O"):
        source.PatientSex = ""
    source.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, whatever the texts were in
    return source


def _put(source: Any, *groups: Any) -> None:
    for group in groups:
        source.update(group)


def _orientation(pydicom, frame: Frame) -> Any:
    group = pydicom.Dataset()
    directions = (*frame.placed.along_row, *frame.placed.along_column)
    group.ImageOrientationPatient = _decimals(pydicom, directions)
    return group


def _measures(pydicom, frame: Frame, thickness: float) -> Any:
    group = pydicom.Dataset()
    group.PixelSpacing = _decimals(pydicom, frame.placed.spacing)
    (group.SliceThickness,) = _decimals(pydicom, [thickness])
    return group


def _position(pydicom, frame: Frame) -> Any:
    group = pydicom.Dataset()
    group.ImagePositionPatient = _decimals(pydicom, frame.placed.origin)
    return group


def _decimals(pydicom, values) -> list[Any]:
    """Numbers as decimal strings, which have 16 characters."""
    return [pydicom.valuerep.DSfloat(float(value), auto_format=True) for value in values]


def _concept(codes: Any, code: Code) -> Any:
    return codes(code.value, code.scheme, code.meaning)


def _segmentation(highdicom, sources: list, labels: np.ndarray, classes: ClassSet):
    """highdicom's Segmentation of [N, rows, columns] labels."""
    codes = highdicom.sr.CodedConcept
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="ssm_jax",
        version=ssm_jax.__version__,
        family=codes("123109", "DCM", "Artificial Intelligence"),
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=lesion.title,
            segmented_property_category=codes(
                "49755003", "SCT", "Morphologically Abnormal Structure"
            ),
            segmented_property_type=_concept(codes, lesion.code or LESION_CODE),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, lesion in enumerate(classes.lesion, 1)
    ]
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=labels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=9000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="ssm_jax",
        manufacturer_model_name=METHOD,
        software_versions=ssm_jax.__version__,
        device_serial_number="0",
        series_description="Lesions found by ssm_jax; not a medical device",
        omit_empty_frames=True,
    )
