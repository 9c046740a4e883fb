"""What is done with an upload: scans are opened, predicted, reported, and their files written."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssm_jax.report.scan import scan_report
from ssm_jax.scans.result import ScanResult
from ssm_jax.serve.jobs import Job

LOG = logging.getLogger(__name__)
REPORT, PREDICTIONS = "report.html", "predictions.json"
MASKS = {  # by kind of the scan
    "pictures": ("png",),
    "dicom": ("nifti", "dicom-seg"),
    "nifti": ("nifti",),
}
_TITLES = {"png": "Masks as PNG", "nifti": "Masks as NIfTI", "dicom-seg": "Masks as DICOM SEG"}


@dataclasses.dataclass(frozen=True)
class Model:
    """The one model of a server, as functions.

    Attributes:
      open_scans: paths -> scans; ValueError for what cannot be read.
      predict_scan: (scan, progress) -> ScanResult, where progress(done, total) is called meanwhile.
      write_masks: (result, scan, kind, folder) -> paths, kind "nifti", "dicom-seg" or "png".
      to_json: results -> what predictions.json holds.
      facts: of the model, label and value for people.
      score_threshold: that detections are found with.
    """

    open_scans: Callable[[list[str]], Sequence[Any]]
    predict_scan: Callable[[Any, Callable[[int, int], None]], ScanResult]
    write_masks: Callable[[ScanResult, Any, str, pathlib.Path], list[pathlib.Path]]
    to_json: Callable[[Sequence[ScanResult]], Any]
    facts: Mapping[str, str]
    score_threshold: float


def predict_upload(model: Model, job: Job) -> dict[str, pathlib.Path]:
    """Predicts all scans of an upload.

    Args:
      model: the model.
      job: with its uploaded files; told of the progress.

    Returns:
      The files by the names they are offered under: report, predictions, masks in zips.

    Raises:
      ValueError: what is wrong with the upload, for people.
      CanceledError: the job was removed.
    """
    text = _texts(job)
    paths = sorted(job.names)
    # One file is read as what it is, several as a folder: the slices of a series belong together.
    sources = [str(paths[0])] if len(paths) == 1 else [str(job.uploads)]
    try:
        scans = model.open_scans(sources)
    except (ValueError, OSError) as error:
        raise ValueError(text(str(error))) from error
    if not scans:
        raise ValueError("there is no scan in what was uploaded")
    job.outputs.mkdir()
    job.scans = len(scans)
    results, masks = [], {}
    for number, scan in enumerate(scans, 1):
        job.scan = number
        job.progress(0, 0)
        result = model.predict_scan(scan, job.progress)
        written, notes = _masks(model, job, result, scan, number)
        for kind, files in written.items():
            masks.setdefault(kind, []).extend(files)
        results.append(_for_people(result, text, notes))
    return _write(model, job, results, masks)


def _masks(
    model: Model, job: Job, result: ScanResult, scan: Any, number: int
) -> tuple[dict[str, list[pathlib.Path]], list[str]]:
    """Mask files of one scan by kind, and what is to be said of those that were not written."""
    written, notes = {}, []
    if not any(s.prediction and s.prediction.masks for s in result.slices):
        return written, notes
    for kind in MASKS[result.kind]:
        folder = job.outputs / "masks" / kind / f"scan_{number}"
        folder.mkdir(parents=True)
        try:
            written[kind] = model.write_masks(result, scan, kind, folder)
        except (ValueError, OSError, ImportError) as error:
            notes.append(f"{_TITLES[kind]} could not be written: {error}")
            LOG.warning("%s", notes[-1])
    return written, notes


def _write(
    model: Model,
    job: Job,
    results: Sequence[ScanResult],
    masks: Mapping[str, Sequence[pathlib.Path]],
) -> dict[str, pathlib.Path]:
    """Writes everything that can be fetched."""
    files = {REPORT: job.outputs / REPORT, PREDICTIONS: job.outputs / PREDICTIONS}
    links = {"Predictions (JSON)": PREDICTIONS}
    content = json.dumps(model.to_json(results), indent=1)
    files[PREDICTIONS].write_text(content, encoding="utf-8")
    for kind, paths in masks.items():
        name = f"masks-{kind}.zip"
        files[name] = job.outputs / name
        with zipfile.ZipFile(files[name], "w", zipfile.ZIP_DEFLATED) as archive:
            for path in paths:
                archive.write(path, path.relative_to(job.outputs / "masks" / kind))
        links[f"{_TITLES[kind]} (zip)"] = name
    links["Another scan"] = f"../../#{job.id}"
    page = scan_report(results, model.facts, model.score_threshold, links)
    files[REPORT].write_text(page, encoding="utf-8")
    return files


def _texts(job: Job) -> Callable[[str], str]:
    """A function that puts the user's names into a text where our paths stand."""
    pairs = [(str(path), name) for path, name in job.names.items()]
    pairs += [(str(job.uploads), job.label)]
    pairs += [(path.name, name) for path, name in job.names.items()]

    def replaced(text: str) -> str:
        for path, name in pairs:
            text = text.replace(path, name)
        return text

    return replaced


def _for_people(result: ScanResult, text: Callable[[str], str], notes: Sequence[str]) -> ScanResult:
    """A result with the user's names in it."""
    slices = [
        dataclasses.replace(s, name=text(s.name), error=None if s.error is None else text(s.error))
        for s in result.slices
    ]
    return dataclasses.replace(
        result,
        name=text(result.name),
        facts={label: text(value) for label, value in result.facts.items()},
        warnings=[text(line) for line in (*result.warnings, *notes)],
        slices=slices,
    )
