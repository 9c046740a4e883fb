"""Finds lesions and the class of CT slices and whole scans with a trained model.

Takes DICOM (files, series, many frames), NIfTI, PNG, JPEG and TIFF: files, folders, patterns and
zips. Without --checkpoint it is the model that comes with the package. Writes `predictions.json`
into the output folder, an object of the model's classes (image and lesion classes, each with name,
title and more) and two lists:

slices: one object a slice: file, scan (its place in the other list), position (millimeters along
the patient), height, width, class_logits, class_probabilities, predicted_class (its place among the
image classes, from 0) and predicted_class_name, both null if the model only segments, and
detections, each with box (x1, y1, x2, y2 in pixels of the slice as shown), score, label (its place
among the lesion classes, from 1), label_name and mask (COCO run-length encoding). One that cannot
be read has error instead, and the program then exits with 1.

scans: one object a scan: name, kind, facts, warnings (what was assumed or is missing), and summary:
class_probabilities by --rule, slices_per_class, lesion_ml, lung_share, body_share (of the lesions'
volume inside of the body) and the most telling slices.

And of the model that comes with the package an object, model: name, limits and license.

Files are readable by their owner alone. Of absolute inputs the folder that they share is not named.

DICOM and NIfTI need the extra ssm-jax[medical]. Not a medical device.

Examples:

    ssm-jax predict --inputs=scan.nii.gz --output_dir=out
    ssm-jax predict --checkpoint=runs/demo --inputs=slice.png --output_dir=out
    ssm-jax predict --checkpoint=runs/demo --inputs=series/ --output_dir=out \\
        --masks=nifti --masks=dicom-seg --report=report.html
    ssm-jax predict --checkpoint=runs/demo --output_dir=out --masks=none \\
        --inputs=a.png --inputs='scans/*.nii.gz'
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator

import numpy as np

from ssm_jax.cli import common
from ssm_jax.cli.model import Loaded, ModelFlags, SummaryFlags
from ssm_jax.cli.processes import ProcessFlags, join
from ssm_jax.scans.options import InputOptions, ScanError, guarded, visible

MASKS = ("none", "json", "nifti", "dicom-seg", "png")
ENGINES = ("jax", "onnxruntime", "openvino")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(SummaryFlags):
    """Flags of `predict`.

    Attributes:
      inputs: File, folder (searched with its subfolders), pattern or zip. Repeat the flag, or list
        more paths after it. Each DICOM series and each volume is a scan; pictures of one folder are
        one.
      output_dir: Folder for everything that is written; created.
      masks: Masks to write besides those in predictions.json (json: no others), in masks/: a label
        volume in the source's geometry, a DICOM segmentation of the source series, or a picture a
        slice. Repeat the flag for several. none: predict no masks, which is faster.
      overlays: Draw a picture of each slice's prediction, in overlays/.
      report: Name of an HTML page to write: a viewer of all slices, the summary and the facts, in
        one file. In the output folder, unless it is an absolute path.
      lung_mask: NIfTI volume, not 0 in the lung, in the coordinates of the scan: gives the lesions'
        share of the lung. For one scan only.
      batch_size: Slices a call. Default: 1 on a CPU, 8 a device on accelerators.
      engine: What runs the network; onnxruntime needs the extra ssm-jax[onnx], openvino the extra
        ssm-jax[openvino], and both run on the CPU.
      exported: ONNX file of the checkpoint for the engine to run, from ssm-jax export. Default: the
        command makes one for itself.
      model: Which model.
      reading: How inputs are read.
      processes: Several processes that are one job.
    """

    inputs: tuple[str, ...] = dataclasses.field(metadata={"positional": True})
    output_dir: pathlib.Path
    masks: tuple[str, ...] = dataclasses.field(default=("json",), metadata={"choices": MASKS})
    overlays: bool = False
    report: str | None = None
    lung_mask: str | None = None
    batch_size: int | None = dataclasses.field(default=None, metadata={"least": 1})
    engine: str = dataclasses.field(default="jax", metadata={"choices": ENGINES})
    exported: pathlib.Path | None = None
    model: ModelFlags
    reading: InputOptions
    processes: ProcessFlags

    def kinds(self) -> list[str]:
        """The kinds of mask files to write.

        Raises:
          ValueError: none are asked for, and some.
        """
        if "none" in self.masks and len(set(self.masks)) > 1:
            raise ValueError("--masks=none leaves no other --masks")
        return [kind for kind in dict.fromkeys(self.masks) if kind not in ("none", "json")]


class Overlays:
    """Draws a picture of each prediction; its number keeps apart equal names of folders.

    Attributes:
      failed: why pictures could not be drawn or written, a line each.
    """

    def __init__(self, folder: pathlib.Path):
        """Takes the folder, which is created with the first picture."""
        self._folder = folder
        self._count = 0
        self.failed: list[str] = []

    def of(self, scan):
        """The callback for `predict_scan` of the next scan."""
        first = self._count
        self._count += len(scan.slices)

        def draw(index: int, image: np.ndarray, prediction) -> None:
            from ssm_jax import visualize
            from ssm_jax.scans.masks import file_name

            name = pathlib.PurePath(scan.slices[index].name).name
            try:
                with guarded("no overlay"):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    title = visible(name)
                    picture = visualize.overlay(image, prediction, title=title)
                    picture.save(self._folder / file_name(first + index, name))
            except ScanError as error:
                self.failed.append(f"{visible(name)}: {error}")

        return draw


def predict_all(predictor, scans: list, flags: Flags) -> list:
    """Predicts scans one after another and writes their masks.

    Args:
      predictor: the model.
      scans: that can be read; one that cannot be predicted gets its `error`.
      flags: of the command.

    Returns:
      One ScanResult a scan without an error.

    Raises:
      ScanError: a lung mask that does not fit.
    """
    import jax

    from ssm_jax.scans.predict import LungMask, predict_scan

    lung = LungMask.load(flags.lung_mask) if flags.lung_mask else None
    if lung is not None and len(scans) != 1:
        raise ValueError(f"--lung_mask is for one scan, but the inputs hold {len(scans)}")
    overlays = Overlays(flags.output_dir / "overlays")
    results = []
    with common.slices_bar(sum(len(s.slices) for s in scans), jax.process_index() > 0) as bar:
        for number, scan in enumerate(scans, 1):

            def advance(done: int, total: int, before: int = bar.n) -> None:
                bar.update(before + done - bar.n)

            try:
                with guarded("cannot be predicted"):
                    result = predict_scan(
                        predictor,
                        scan,
                        rule=flags.rule,
                        progress=advance,
                        lung=lung,
                        keep_images=bool(flags.report),
                        shown=overlays.of(scan) if flags.overlays else None,
                    )
            except ScanError as error:
                if lung is not None or jax.process_count() > 1:
                    raise  # the one scan there is, or one that the others wait for
                scan.error = str(error)
                continue
            result.warnings.extend(overlays.failed)
            overlays.failed.clear()
            results.append(result)
            if jax.process_index() == 0:
                folder = flags.output_dir / "masks"
                folder = folder if len(scans) == 1 else folder / f"scan_{number}"
                write_mask_files(results, scan, flags.kinds(), folder)
    return results


def write_mask_files(results: list, scan, kinds: list[str], folder: pathlib.Path) -> None:
    """Writes the masks of the last result; what a kind cannot hold becomes a warning of it."""
    from ssm_jax.scans.masks import write_masks

    for kind in kinds:
        place = folder / "png" if kind == "png" else folder
        try:
            with guarded("they cannot be written"):
                place.mkdir(parents=True, exist_ok=True)
                write_masks(results[-1], scan, kind, place)
        except ScanError as error:
            results[-1].warnings.append(f"no masks as {kind}: {error}")


def main(flags: Flags) -> None:
    """The program."""
    with private_files():
        predict(flags)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Makes files that are written meanwhile readable by nobody else: they tell of patients."""
    old = os.umask(0o077)
    os.umask(old | 0o077)
    try:
        yield
    finally:
        os.umask(old)


def predict(flags: Flags) -> None:
    """Predicts all inputs and writes what was found."""
    join(flags.processes)
    output = flags.output_dir
    flags.kinds()  # refuses what cannot be, before minutes of work
    if flags.exported and flags.engine == "jax":
        raise ValueError("--exported is for --engine=onnxruntime and --engine=openvino")
    output.mkdir(parents=True, exist_ok=True)
    common.start_jax()
    import jax

    from ssm_jax.files import write_json, write_text_atomically
    from ssm_jax.scans.open import open_scans
    from ssm_jax.scans.output import to_json, without_folders
    from ssm_jax.scans.result import renamed

    model = Loaded(flags.model)
    model.tell()
    opened = open_scans([*flags.inputs], flags.reading)
    scans = [scan for scan in opened if not scan.error]
    # A CPU gains nothing from batches; an accelerator does.
    batch_size = jax.local_device_count() * (1 if jax.default_backend() == "cpu" else 8)
    if flags.batch_size:  # no larger than a scan, for it is filled up
        batch_size = min(flags.batch_size, max((len(scan.slices) for scan in scans), default=1))
    masks = "none" not in flags.masks
    engine = None if flags.engine == "jax" else model.engine(flags.engine, flags.exported, masks)
    predictor = model.predictor(masks=masks, batch_size=batch_size, engine=engine)
    results = predict_all(predictor, scans, flags)
    if jax.process_index():
        return  # the first process has all results, and writes them
    short = str if flags.reading.identity else without_folders(flags.inputs)
    failed = [
        dataclasses.replace(scan, name=short(scan.name), error=short(scan.error))
        for scan in opened
        if scan.error
    ]
    results = [renamed(result, short) for result in results]
    content = to_json(results, failed)
    if model.box is not None:
        content["model"] = dataclasses.asdict(model.box)
    write_json(output / "predictions.json", content)
    if flags.report:
        from ssm_jax.report.scan import scan_report

        facts = model.facts() | ({"Computed on": f"CPU with {engine.version}"} if engine else {})
        page = scan_report(results, facts, predictor.score_threshold)
        write_text_atomically(output / flags.report, page)
    tell(results, content["slices"], output)


def tell(results: list, entries: list[dict], output: pathlib.Path) -> None:
    """Prints what was found and what went wrong; exits with 1 if something could not be read."""
    for result in results:
        if result.kind != "pictures" and result.summary is not None:
            shares = result.summary.class_probabilities
            titles = result.classes.titles
            parts = [f"{n} {s:.3f}" for n, s in zip(titles, shares, strict=True)]
            if result.summary.lesion_ml is not None:
                parts.append(f"lesions {result.summary.lesion_ml:.1f} ml")
            print(f"{visible(result.name)}: {', '.join(parts)}")
        for warning in result.warnings:
            print(f"warning: {visible(result.name)}: {visible(warning)}", file=sys.stderr)
    failed = [entry for entry in entries if "error" in entry]
    print(f"{len(entries) - len(failed)} of {len(entries)} slices -> {output / 'predictions.json'}")
    for entry in failed:
        print(visible(f"{entry['file']}: {entry['error']}"), file=sys.stderr)
    if failed:
        sys.exit(1)
