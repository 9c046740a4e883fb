"""DICOM series: files grouped, ordered by where they lie, and what is wrong with them said."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from ssm_jax.scans.dicom_frames import Frame, facts_of, frames_of
from ssm_jax.scans.dicom_pixels import Pixels
from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import InputOptions, ScanError, medical_library, visible
from ssm_jax.scans.source import (
    Scan,
    Slice,
    Turn,
    aspect_of,
    few,
    refuse,
    tissue_level,
    values_for_people,
)
from ssm_jax.scans.window import Reading, Source, decide, spread

_SAMPLES = (0.25, 0.5, 0.75)  # of the way through the stack
_SAME = 1e-2  # millimeters that positions of one place differ at most
_GAP = 1.5  # usual distances from which a distance is a gap
_UNEVEN = 0.1  # of the usual distance by which distances may differ
_TILTED = 0.5  # degrees between a stack and the normal of its slices
_NAMED = 3  # gaps that a warning names


@dataclasses.dataclass(frozen=True)
class DicomStack:
    """Facts of a stack of frames that mask files need.

    Attributes:
      frames: in the order of the slices; None for a file that could not be read.
      planar: whether every frame's place is known.
    """

    frames: list[Frame | None]
    planar: bool


@dataclasses.dataclass
class _Read:
    """Frames of all files, by the stack they belong to, and the files without frames."""

    groups: dict[tuple, list[Frame]] = dataclasses.field(default_factory=dict)
    unread: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    repeated: list[str] = dataclasses.field(default_factory=list)


def open_dicom(path: str, blobs: Sequence[Blob], options: InputOptions) -> list[Scan]:
    """Makes scans of DICOM files.

    A scan is what shares SeriesInstanceUID, orientation and size, with one frame a place; a file of
    many frames is a scan, too. Slices are ordered along the normal, from the feet up; without
    positions by InstanceNumber. Axial slices are turned to the radiological view.

    Args:
      path: as the user gave it.
      blobs: the files.
      options: window and limits.

    Returns:
      Scans, the largest first. Files that cannot be read are slices at the end of the largest, or
      scans with an error where none can be read.

    Raises:
      ScanError: pydicom is missing, or no file holds an image.
    """
    medical_library("pydicom")
    read = _read_all(blobs)
    if not read.groups:
        if not read.unread:
            raise ScanError(_nothing(read.others))
        return [Scan(name, "dicom", error=why) for name, why in read.unread]
    stacks = [stack for frames in read.groups.values() for stack in _one_a_place(frames)]
    stacks.sort(key=len, reverse=True)
    parts = collections.Counter(frames[0].about.series for frames in stacks)
    scans = []
    for number, frames in enumerate(stacks, 1):
        name = path if len(stacks) == 1 else f"{path} (scan {number} of {len(stacks)})"
        scans.append(_scan(name, frames, parts[frames[0].about.series], options))
    first = scans[0]
    if read.others:
        count = len(read.others)
        first.warnings.append(
            f"left out: {count} DICOM files without an image ({few(read.others)})"
        )
    if read.repeated:
        first.warnings.append(
            f"left out: {len(read.repeated)} duplicates of files ({few(read.repeated)})"
        )
    for name, why in read.unread:
        first.slices.append(Slice(name, functools.partial(refuse, why)))
        first.origin.frames.append(None)
    if read.unread:
        names = few([name for name, _ in read.unread])
        first.warnings.append(f"{len(read.unread)} files cannot be read as DICOM ({names})")
    return scans


def _read_all(blobs: Sequence[Blob]) -> _Read:
    """The frames of files, each instance once."""
    read, seen = _Read(), set()
    for blob in blobs:
        try:
            frames = frames_of(blob)
        except ScanError as error:
            read.unread.append((blob.name, str(error)))
            continue
        if frames == []:
            read.others.append(blob.name)
        for frame in frames or []:
            uid = (frame.about.instance or blob.name, frame.number)
            if uid in seen:
                read.repeated.append(blob.name)
                continue
            seen.add(uid)
            read.groups.setdefault(_key(frame), []).append(frame)
    return read


def _nothing(others: Sequence[str]) -> str:
    """Why there is no scan."""
    if others:
        return f"holds no image ({len(others)} DICOM files of other kinds)"
    return "is a DICOMDIR, which only lists files; give the folder of the files"


def _key(frame: Frame) -> tuple:
    """Equal for frames of one stack."""
    file = frame.blob.name if frame.number is not None else None
    plane = frame.plane
    place = (plane.orientation, *np.round(plane.spacing, 3).tolist()) if plane else None
    return frame.about.series, file, place, frame.shape, frame.about.projection


def _one_a_place(frames: list[Frame]) -> list[list[Frame]]:
    """Orders frames, and takes apart those that lie in the same place (phases of a scan)."""
    if any(frame.plane is None for frame in frames):
        return [sorted(frames, key=lambda f: (f.about.number, f.number or 0, f.blob.name))]
    frames = sorted(frames, key=lambda f: (f.placed.position, f.about.number, f.blob.name))
    stacks: list[list[Frame]] = []
    level, last = 0, None
    for frame in frames:
        place = frame.placed.position
        level = level + 1 if last is not None and place - last < _SAME else 0
        last = place if level == 0 else last
        if level == len(stacks):
            stacks.append([])
        stacks[level].append(frame)
    return stacks


def _scan(name: str, frames: list[Frame], parts: int, options: InputOptions) -> Scan:
    planar = all(frame.plane is not None for frame in frames)
    warnings = _warnings(frames, planar, parts)
    frames, notes = _with_common_rescale(frames)
    sources = {id(f.header): Pixels(f.blob, f.number is not None) for f in frames}
    samples = []
    for share in _SAMPLES[1:2] if len(frames) == 1 else _SAMPLES:
        frame = frames[int(share * len(frames))]
        try:
            sample = sources[id(frame.header)].frame(frame.number or 0, options)
        except ScanError:
            continue
        if sample.ndim == 2:
            samples.append((sample, frame.stored))
    (stored, _), *_ = collections.Counter(f.stored for f in frames).most_common(1)
    source = Source(_kind(frames), frames[len(frames) // 2].about.window)
    reading, assumed = decide(samples, stored, source, options)
    slices = []
    for frame in frames:
        turn = frame.plane.turn if frame.plane else Turn()
        read = functools.partial(_read, sources[id(frame.header)], frame, turn, reading, options)
        place = frame.plane.affine(*frame.shape) if frame.plane else None
        position = frame.placed.position if frame.plane else None
        pixel = frame.pixel[::-1] if turn.transpose else frame.pixel
        slices.append(
            Slice(frame.name, read, position, frame.about.number, turn, place, aspect_of(*pixel))
        )
    spacing = _spacing(frames) if planar else None

    def release() -> None:
        for pixels in sources.values():
            pixels.release()

    facts = _facts(frames, spacing, stored, options)
    facts["Values"] = values_for_people(reading.hu, options)
    return Scan(
        name,
        "dicom",
        facts,
        warnings + notes + assumed,
        slices,
        spacing,
        origin=DicomStack(list(frames), planar),
        tissue=tissue_level(reading.hu, options),
        release=release,
    )


def _kind(frames: list[Frame]) -> str:
    """The range of possible values, see `Source`."""
    if frames[0].about.projection:
        return "projection"
    return {"CT": "ct", "": "unknown"}.get(_usual_modality(frames), "other")


def _warnings(frames: list[Frame], planar: bool, parts: int) -> list[str]:
    """Oddities of the places and the kinds of slices."""
    warnings = []
    if parts > 1:
        warnings.append(
            f"the series was taken apart into {parts} scans: its slices differ in orientation, "
            "spacing or size, or several lie in one place"
        )
    if planar:
        warnings += _distance_warnings(frames)
        if not frames[0].placed.axial:
            warnings.append("the slices are not axial; the model has learned from axial ones only")
    elif len(frames) > 1:
        warnings.append("the headers tell no positions: slices are in the order of InstanceNumber")
    modality = _usual_modality(frames)
    if modality not in ("", "CT"):
        warnings.append(f"the modality is {modality}, not CT; the model has learned from CT only")
    return warnings


def _rescale(frame: Frame) -> tuple[float, float] | None:
    """Slope and intercept; None where the header has none."""
    return (frame.stored.slope, frame.stored.intercept) if frame.stored.rescaled else None


def _with_common_rescale(frames: list[Frame]) -> tuple[list[Frame], list[str]]:
    """Frames of which none lacks the rescale that all others share, and what is to be said of it.

    A scanner stores all slices of a series alike; one without a rescale has lost it.
    """
    known = collections.Counter(map(_rescale, frames))
    told = [rescale for rescale in known if rescale]
    usual = known.most_common(1)[0][0]
    odd = few([frame.name for frame in frames if _rescale(frame) != usual])
    if len(told) == 1 and usual and known[None]:
        slope, intercept = usual
        mended = [
            frame if frame.stored.rescaled else dataclasses.replace(frame, stored=stored)
            for frame in frames
            for stored in [
                dataclasses.replace(frame.stored, slope=slope, intercept=intercept, rescaled=True)
            ]
        ]
        return mended, [
            f"{known[None]} of {len(frames)} slices have no rescale ({odd}); taken was that of the "
            f"others, slope {slope:g} and intercept {intercept:g}"
        ]
    if len(known) > 1 and _usual_modality(frames) == "CT":
        return frames, [
            f"the headers name {len(known)} rescales to Hounsfield units, each taken for its own "
            f"slices; unlike most are {odd}"
        ]
    return frames, []


def _usual_modality(frames: list[Frame]) -> str:
    return collections.Counter(frame.about.modality for frame in frames).most_common(1)[0][0]


def _read(
    pixels: Pixels, frame: Frame, turn: Turn, reading: Reading, options: InputOptions
) -> np.ndarray:
    """uint8 of a slice as shown: [H, W], or [H, W, 3] of a color image."""
    values = pixels.frame(frame.number or 0, options)
    if values.ndim == 3:
        shown = spread(values, frame.stored.low, frame.stored.high)
        return np.stack([turn.apply(shown[..., k]) for k in range(shown.shape[2])], axis=-1)
    return turn.apply(reading.to_uint8(values, frame.stored, options))


def _distances(frames: list[Frame]) -> list[float]:
    places = [frame.placed.position for frame in frames]
    return [after - before for before, after in itertools.pairwise(places)]


def _distance_warnings(frames: list[Frame]) -> list[str]:
    """Oddities of the distances between slices."""
    warnings = []
    if len(frames) > 1:
        way = frames[-1].placed.origin - frames[0].placed.origin
        along = abs(way @ frames[0].placed.normal) / np.linalg.norm(way)
        tilt = np.degrees(np.arccos(min(along, 1.0)))
        if tilt > _TILTED:
            warnings.append(
                f"the gantry was tilted by {tilt:.1f} degrees: each slice lies shifted against the "
                "one before; NIfTI and DICOM SEG masks move by whole pixels onto an upright grid"
            )
    distances = _distances(frames)
    if len(distances) < 2:
        return warnings
    usual = statistics.median(distances)
    gaps = [(d, a) for d, a in zip(distances, frames, strict=False) if d > _GAP * usual]
    if gaps:
        places = ", ".join(f"{d:.3g} mm after {visible(a.name)}" for d, a in gaps[:_NAMED])
        more = f" and {len(gaps) - _NAMED} more" if len(gaps) > _NAMED else ""
        warnings.append(f"slices are missing: usually {usual:.3g} mm apart, but {places}{more}")
    elif max(distances) - min(distances) > _UNEVEN * usual:
        warnings.append(
            f"slices lie {min(distances):.3g} to {max(distances):.3g} mm apart; the volume of "
            "lesions takes each by its own distances"
        )
    return warnings


def _spacing(frames: list[Frame]) -> tuple[float, float, float] | None:
    """Millimeters between slices (usual), rows and columns as shown."""
    plane = frames[0].placed
    rows, columns = plane.spacing[::-1] if plane.turn.transpose else plane.spacing
    distances = _distances(frames)
    if distances:
        return statistics.median(distances), rows, columns
    thickness = frames[0].about.thickness
    return (thickness, rows, columns) if thickness else None


def _facts(frames: list[Frame], spacing, stored, options: InputOptions) -> dict[str, str]:
    facts = {"Source": "DICOM" if frames[0].number is None else "DICOM of many frames"}
    facts |= facts_of(frames[0].header, options.identity)
    facts["Slices"] = f"{len(frames)} of {frames[0].shape[0]} x {frames[0].shape[1]} pixels"
    if spacing:
        facts["Spacing"] = " x ".join(f"{length:.3g}" for length in spacing) + " mm"
    facts["Rescale"] = (
        f"slope {stored.slope:g}, intercept {stored.intercept:g}" if stored.rescaled else "none"
    )
    return facts
