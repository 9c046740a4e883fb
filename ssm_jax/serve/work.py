"""Work on an upload: scans are opened, predicted, reported, and their files written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ssm_jax.report.scan import scan_report
from ssm_jax.scans.result import ScanResult, renamed
from ssm_jax.scans.source import Scan, few
from ssm_jax.serve.jobs import Job
from ssm_jax.serve.receive import FOLDER

REPORT, PREDICTIONS = "report.html", "predictions.json"
MASKS = {  # by kind of the scan
    "pictures": ("png",),
    "dicom": ("nifti", "dicom-seg"),
    "nifti": ("nifti",),
}
_TITLES = {"png": "Masks as PNG", "nifti": "Masks as NIfTI", "dicom-seg": "Masks as DICOM SEG"}


class Reading(Protocol):
    """Reads one upload; a context manager. See `ssm_jax.serve.reading.Reading`."""

    def open_scans(self, paths: list[str]) -> list[Scan]:
        """The scans that paths mean."""

    def write_masks(
        self, result: ScanResult, number: int, kind: str, folder: pathlib.Path
    ) -> list[pathlib.Path]:
        """Files of masks of a scan by its number."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The one model of a server, as functions.

    Attributes:
      reading: whether to stop -> context of a `Reading`.
      predict_scan: (scan, progress) -> ScanResult, where progress(done, total) is called meanwhile.
      to_json: (results, scans that could not be read) -> content of predictions.json.
      facts: of the model, label and value for people.
      score_threshold: that detections are found with.
    """

    reading: Callable[[Callable[[], bool]], contextlib.AbstractContextManager[Reading]]
    predict_scan: Callable[[Scan, Callable[[int, int], None]], ScanResult]
    to_json: Callable[[Sequence[ScanResult], Sequence[Scan]], Any]
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
    job.outputs.mkdir()
    results: list[ScanResult] = []
    masks: dict[str, list[pathlib.Path]] = {}
    with model.reading(lambda: job.canceled) as reading:
        try:
            scans = reading.open_scans(_sources(job))
        except (ValueError, OSError) as error:
            raise ValueError(text(str(error))) from error
        failed = [scan for scan in scans if scan.error]
        if len(failed) == len(scans):
            errors = [f"{scan.name}: {scan.error}" for scan in failed]
            raise ValueError(text("; ".join(errors)) or "there is no scan in what was uploaded")
        job.scans = len(scans) - len(failed)
        for number, scan in enumerate(scans):
            if scan.error:
                continue
            job.scan += 1
            job.progress(0, 0)
            result = model.predict_scan(scan, job.progress)
            written = _masks(reading, job, result, number)
            for kind, files in written.items():
                masks.setdefault(kind, []).extend(files)
            results.append(renamed(result, text))
    failed = [dataclasses.replace(s, name=text(s.name), error=text(s.error or "")) for s in failed]
    results[0].warnings.extend(f"{scan.name}: {scan.error}" for scan in failed)
    if job.left_out:
        names = few(job.left_out)
        results[0].warnings.append(f"left out: files of kinds that are not read ({names})")
    return _write(model, job, results, failed, masks)


def _sources(job: Job) -> list[str]:
    """The paths to open: zips each by itself, other files together if there are several."""
    zips = [path for path in job.names if path.suffix == ".zip"]
    others = [path for path in job.names if path.suffix != ".zip"]
    if len(others) > 1:
        others = [others[0].parent]  # the slices of a series belong together
    return [str(path) for path in (*others, *sorted(zips))]


def _masks(
    reading: Reading, job: Job, result: ScanResult, number: int
) -> dict[str, list[pathlib.Path]]:
    """Mask files of one scan by kind; of those that cannot be written the result warns."""
    written: dict[str, list[pathlib.Path]] = {}
    if not any(s.prediction and s.prediction.masks for s in result.slices):
        return written
    for kind in MASKS[result.kind]:
        folder = job.outputs / "masks" / kind / f"scan_{number + 1}"
        folder.mkdir(parents=True)
        try:
            written[kind] = reading.write_masks(result, number, kind, folder)
        except ValueError as error:
            result.warnings.append(f"{_TITLES[kind]} could not be written: {error}")
    return written


def _write(
    model: Model,
    job: Job,
    results: Sequence[ScanResult],
    failed: Sequence[Scan],
    masks: Mapping[str, Sequence[pathlib.Path]],
) -> dict[str, pathlib.Path]:
    """Writes everything that can be fetched."""
    files = {REPORT: job.outputs / REPORT, PREDICTIONS: job.outputs / PREDICTIONS}
    links = {"Predictions (JSON)": PREDICTIONS}
    content = json.dumps(model.to_json(results, failed), indent=1)
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
    pairs = {str(path): name for path, name in job.names.items()}
    pairs |= {path.name: name for path, name in job.names.items()}
    pairs |= {str(job.uploads / FOLDER): job.label, str(job.uploads): job.label}
    longest_first = sorted(map(re.escape, pairs), key=len, reverse=True)
    ours = re.compile("|".join(longest_first))
    return lambda text: ours.sub(lambda found: pairs[found[0]], text)
