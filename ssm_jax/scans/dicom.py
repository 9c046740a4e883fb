"""DICOM series: files grouped, ordered by where they lie, and what is wrong with them said."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from ssm_jax.scans.dicom_frames import Frame, Pixels, frames_of, read_header
from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import InputOptions, ScanError, medical_library
from ssm_jax.scans.source import Scan, Slice, Turn, values_for_people
from ssm_jax.scans.window import Reading, decide, spread

_SAMPLES = (0.25, 0.5, 0.75)  # of the way through the stack
_SAME = 1e-2  # millimeters that positions of one place differ at most
_GAP = 1.5  # usual distances from which a distance is a gap
_NAMED = 3  # files that a warning names


@dataclasses.dataclass(frozen=True)
class DicomStack:
    """What mask files need of a stack of frames.

    Attributes:
      frames: in the order of the slices; None for a file that could not be read.
      planar: whether every frame's place is known.
    """

    frames: list[Frame | None]
    planar: bool


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
      Scans, the largest first. Files that cannot be read are slices at the end of the largest.

    Raises:
      ScanError: pydicom is missing, or no file is a DICOM image.
    """
    medical_library("pydicom")
    groups: dict[tuple, list[Frame]] = {}
    unread: list[tuple[Blob, str]] = []
    others, seen, repeated = 0, set(), []
    for blob in blobs:
        try:
            frames = frames_of(blob, read_header(blob))
        except ScanError as error:
            if len(blobs) == 1:
                raise
            unread.append((blob, str(error)))
            continue
        others += not frames
        for frame in frames:
            uid = (str(frame.header.get("SOPInstanceUID", blob.name)), frame.number)
            if uid in seen:
                repeated.append(blob.name)
                continue
            seen.add(uid)
            groups.setdefault(_key(frame), []).append(frame)
    if not groups:
        raise ScanError(_nothing(unread, others))
    stacks = [stack for frames in groups.values() for stack in _one_a_place(frames)]
    stacks.sort(key=len, reverse=True)
    parts = {}
    for frames in stacks:
        parts[_series(frames[0])] = parts.get(_series(frames[0]), 0) + 1
    scans = []
    for number, frames in enumerate(stacks, 1):
        name = path if len(stacks) == 1 else f"{path} (scan {number} of {len(stacks)})"
        scans.append(_scan(name, frames, parts[_series(frames[0])], options))
    first = scans[0]
    if others:
        first.warnings.append(f"left out: {others} DICOM files without an image")
    if repeated:
        first.warnings.append(f"left out: {len(repeated)} duplicates of files ({_few(repeated)})")
    for blob, why in unread:
        first.slices.append(Slice(blob.name, functools.partial(_refuse, why)))
        first.origin.frames.append(None)
    if unread:
        names = _few([blob.name for blob, _ in unread])
        first.warnings.append(f"{len(unread)} files cannot be read as DICOM ({names})")
    return scans


def _key(frame: Frame) -> tuple:
    """Equal for frames of one stack."""
    file = frame.blob.name if frame.number is not None else None
    orientation = frame.plane.orientation if frame.plane else None
    return _series(frame), file, orientation, frame.shape


def _series(frame: Frame) -> str:
    return str(frame.header.get("SeriesInstanceUID", ""))


def _one_a_place(frames: list[Frame]) -> list[list[Frame]]:
    """Orders frames, and takes apart those that lie in the same place (phases of a scan)."""
    if any(frame.plane is None for frame in frames):
        return [sorted(frames, key=lambda f: (_instance(f), f.number or 0, f.blob.name))]
    frames = sorted(frames, key=lambda f: (f.plane.position, _instance(f), f.blob.name))
    stacks: list[list[Frame]] = []
    level, last = 0, None
    for frame in frames:
        place = frame.plane.position
        level = level + 1 if last is not None and place - last < _SAME else 0
        last = place if level == 0 else last
        if level == len(stacks):
            stacks.append([])
        stacks[level].append(frame)
    return stacks


def _instance(frame: Frame) -> int:
    try:
        return int(frame.header.get("InstanceNumber") or 0)
    except (ValueError, TypeError):
        return 0


def _scan(name: str, frames: list[Frame], parts: int, options: InputOptions) -> Scan:
    header = frames[0].header
    planar = all(frame.plane is not None for frame in frames)
    warnings = []
    if parts > 1:
        warnings.append(
            f"the series was taken apart into {parts} scans: its slices differ in orientation or "
            "size, or several lie in one place"
        )
    if planar:
        warnings += _gaps(frames)
        if not frames[0].plane.axial:
            warnings.append("the slices are not axial; the model has learned from axial ones only")
    elif len(frames) > 1:
        warnings.append("the headers tell no positions: slices are in the order of InstanceNumber")
    modality = header.get("Modality")
    if modality and modality != "CT":
        warnings.append(f"the modality is {modality}, not CT; the model has learned from CT only")
    if "ModalityLUTSequence" in header:
        warnings.append("the header has a table of values (Modality LUT), which was not applied")
    sources = {id(f.header): Pixels(f.blob, f.number is not None) for f in frames}
    samples = []
    for share in _SAMPLES[1:2] if len(frames) == 1 else _SAMPLES:
        frame = frames[int(share * len(frames))]
        try:
            sample = sources[id(frame.header)].frame(frame.number or 0, options)
        except ScanError:
            continue
        if sample.ndim == 2:
            samples.append(sample)
    declared, other = modality == "CT", modality not in (None, "", "CT")
    reading, assumed = decide(samples, frames[0].stored, declared, options, other)
    slices = []
    for frame in frames:
        turn = frame.plane.turn if frame.plane else Turn()
        pixels = sources[id(frame.header)]
        read = functools.partial(_read, pixels, frame, turn, reading, options)
        place = frame.plane.affine(*frame.shape) if frame.plane else None
        position = frame.plane.position if frame.plane else None
        slices.append(Slice(frame.name, read, position, _instance(frame), turn, place))
    spacing = _spacing(frames) if planar else None

    def release() -> None:
        for pixels in sources.values():
            pixels.release()

    facts = _facts(frames, spacing, values_for_people(reading.hu, options))
    origin = DicomStack(list(frames), planar)
    return Scan(name, "dicom", facts, warnings + assumed, slices, spacing, origin, release)


def _read(
    pixels: Pixels, frame: Frame, turn: Turn, reading: Reading, options: InputOptions
) -> np.ndarray:
    """uint8 of a slice as shown: [H, W], or [H, W, 3] of a color image."""
    values = pixels.frame(frame.number or 0, options)
    if values.ndim == 3:
        shown = spread(values, frame.stored.low, frame.stored.high)
        return np.stack([turn.apply(shown[..., k]) for k in range(shown.shape[2])], axis=-1)
    return turn.apply(reading.to_uint8(values, frame.stored, options))


def _refuse(why: str) -> np.ndarray:
    raise ScanError(why)


def _distances(frames: list[Frame]) -> list[float]:
    places = [frame.plane.position for frame in frames]
    return [after - before for before, after in itertools.pairwise(places)]


def _gaps(frames: list[Frame]) -> list[str]:
    """A warning of distances that are larger than usual."""
    distances = _distances(frames)
    if len(distances) < 2:
        return []
    usual = statistics.median(distances)
    gaps = [(d, a) for d, a in zip(distances, frames, strict=False) if d > _GAP * usual]
    if not gaps:
        return []
    places = ", ".join(f"{d:.3g} mm after {a.name}" for d, a in gaps[:_NAMED])
    more = f" and {len(gaps) - _NAMED} more" if len(gaps) > _NAMED else ""
    return [f"slices are missing: usually {usual:.3g} mm apart, but {places}{more}"]


def _spacing(frames: list[Frame]) -> tuple[float, float, float] | None:
    """Millimeters between slices (usual), rows and columns as shown."""
    plane = frames[0].plane
    rows, columns = plane.spacing[::-1] if plane.turn.transpose else plane.spacing
    distances = _distances(frames)
    if distances:
        return statistics.median(distances), rows, columns
    thickness = frames[0].header.get("SliceThickness")
    try:
        return (float(thickness), rows, columns) if float(thickness) > 0 else None
    except (TypeError, ValueError):
        return None


def _facts(frames: list[Frame], spacing, values: str) -> dict[str, str]:
    header = frames[0].header
    facts = {"Source": "DICOM" if frames[0].number is None else "DICOM of many frames"}
    for label, keyword in (
        ("Modality", "Modality"),
        ("Series", "SeriesDescription"),
        ("Study date", "StudyDate"),
        ("Scanner", "ManufacturerModelName"),
        ("Kernel", "ConvolutionKernel"),
        ("Series UID", "SeriesInstanceUID"),
    ):
        value = header.get(keyword)
        if value:
            facts[label] = " ".join(str(value).split())[:200]
    facts["Slices"] = f"{len(frames)} of {frames[0].shape[0]} x {frames[0].shape[1]} pixels"
    if spacing:
        facts["Spacing"] = " x ".join(f"{length:.3g}" for length in spacing) + " mm"
    stored = frames[0].stored
    facts["Rescale"] = (
        f"slope {stored.slope:g}, intercept {stored.intercept:g}" if stored.rescaled else "none"
    )
    facts["Values"] = values
    return facts


def _few(names: Sequence[str]) -> str:
    """Some of many names."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _nothing(unread: Sequence[tuple[Blob, str]], others: int) -> str:
    """Why there is no scan."""
    if unread:
        return f"no DICOM file could be read; of {len(unread)} the first: {unread[0][1]}"
    return f"holds no image ({others} DICOM files of other kinds)"
