"""Finds lesions and the class of CT slices and whole scans with a trained model.

Takes DICOM (files, series, many frames), NIfTI, PNG, JPEG and TIFF: files, folders, patterns and
zips. Writes `predictions.json` into the output folder, an object of two lists:

slices: one object a slice: file, scan (its place in the other list), position (millimeters along
the patient), height, width, class_logits, class_probabilities, predicted_class (0 normal, 1 common
pneumonia, 2 COVID-19; of two classes 0 normal, 1 COVID-19; null if the model only segments),
predicted_class_name (normal, cp, covid or null), and detections, each with box (x1, y1, x2, y2 in
pixels of the slice as shown), score, label (lesion class: 1; of two 1 ground glass, 2
consolidation) and mask (COCO run-length encoding). One that cannot be read has error instead, and
the program then exits with 1.

scans: one object a scan: name, kind, facts, warnings (what was assumed or is missing), and summary:
class_probabilities by --rule, slices_per_class, lesion_ml, lung_share and the most telling slices.

DICOM and NIfTI need the extra ssm-jax[medical]. Not a medical device.

Examples:

    ssm-jax predict --checkpoint=runs/demo --inputs=slice.png --output_dir=out
    ssm-jax predict --checkpoint=runs/demo --inputs=series/ --output_dir=out \\
        --masks=nifti --masks=dicom-seg --report=report.html
    ssm-jax predict --checkpoint=runs/demo --output_dir=out --masks=none \\
        --inputs=a.png --inputs='scans/*.nii.gz'
"""

import pathlib
import sys

import numpy as np
from absl import flags

from ssm_jax.cli import common, model_flags, processes
from ssm_jax.scans.options import VALUES
from ssm_jax.scans.summary import RULES, RULES_HELP

flags.adopt_module_key_flags(processes)
flags.adopt_module_key_flags(model_flags)
_INPUTS = flags.DEFINE_multi_string(
    "inputs",
    None,
    "File, folder (searched with its subfolders), pattern or zip. Repeat the flag, or list more "
    "paths after it. Each DICOM series and each volume is a scan; pictures of one folder are one.",
    required=True,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder for everything that is written; created.", required=True
)
_MASKS = flags.DEFINE_multi_enum(
    "masks",
    ["json"],
    ["none", "json", "nifti", "dicom-seg", "png"],
    "Masks to write besides those in predictions.json (json: no others), in masks/: a label volume "
    "in the source's geometry, a DICOM segmentation of the source series, or a picture a slice. "
    "Repeat the flag for several. none: predict no masks, which is faster.",
)
_OVERLAYS = flags.DEFINE_bool(
    "overlays", False, "Whether to draw a picture of each slice's prediction, in overlays/."
)
_REPORT = flags.DEFINE_string(
    "report",
    None,
    "Name of an HTML page to write: a viewer of all slices, the summary and the facts, in one "
    "file. In the output folder, unless it is an absolute path.",
)
_RULE = flags.DEFINE_enum("rule", "mean", RULES, RULES_HELP)
_LUNG_MASK = flags.DEFINE_string(
    "lung_mask",
    None,
    "NIfTI volume, not 0 in the lung, in the coordinates of the scan: gives the lesions' share of "
    "the lung. For one scan only.",
)
_WINDOW = flags.DEFINE_list(
    "window", ["-600", "1500"], "CT window, Hounsfield units: center,width."
)
_VALUES = flags.DEFINE_enum(
    "values",
    "auto",
    VALUES,
    "What stored numbers are. hu: Hounsfield units after the header's rescale. range: already "
    "windowed, so that their whole range is spread. auto: decided from header and values.",
)
_RESCALE = flags.DEFINE_list(
    "rescale", None, "slope,intercept to Hounsfield units in place of the header's."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Slices a call. Default: 1 on a CPU, 8 a device on accelerators.",
    lower_bound=1,
)


def input_options():
    """The flags that say how inputs are read, as `InputOptions`.

    Raises:
      ScanError: one makes no sense.
    """
    from ssm_jax.scans.options import InputOptions

    center, width = _numbers("window", _WINDOW.value)
    rescale = _numbers("rescale", _RESCALE.value) if _RESCALE.value else None
    return InputOptions(center, width, _VALUES.value, rescale)


def _numbers(name: str, values: list[str]) -> tuple[float, float]:
    try:
        first, second = map(float, values)
    except ValueError:
        given = ",".join(values)
        raise ValueError(f"--{name} takes two numbers with a comma, not {given!r}") from None
    return first, second


class Overlays:
    """Draws a picture of each prediction; its number keeps apart equal names of folders."""

    def __init__(self, folder: pathlib.Path):
        """Takes the folder, which is created with the first picture."""
        self._folder = folder
        self._count = 0

    def of(self, scan):
        """The callback for `predict_scan` of the next scan."""
        first = self._count
        self._count += len(scan.slices)

        def draw(index: int, image: np.ndarray, prediction) -> None:
            from ssm_jax import classes, visualize

            self._folder.mkdir(parents=True, exist_ok=True)
            path = pathlib.PurePath(scan.slices[index].name)
            names = classes.long_names(len(prediction.class_logits))
            picture = visualize.overlay(image, prediction, class_names=names, title=path.name)
            picture.save(self._folder / f"{first + index:05d}_{path.stem}.png")

        return draw


def predict_all(predictor, scans: list, output: pathlib.Path, kinds: list[str]) -> list:
    """Predicts scans one after another and writes their masks.

    Args:
      predictor: the model.
      scans: that can be read.
      output: the output folder.
      kinds: of mask files.

    Returns:
      One ScanResult a scan.

    Raises:
      ScanError: a lung mask that does not fit.
    """
    import jax
    from tqdm import tqdm

    from ssm_jax.scans.predict import LungMask, predict_scan

    lung = LungMask.load(_LUNG_MASK.value) if _LUNG_MASK.value else None
    if lung is not None and len(scans) != 1:
        raise ValueError(f"--lung_mask is for one scan, but the inputs hold {len(scans)}")
    overlays = Overlays(output / "overlays")
    results = []
    quiet = True if jax.process_index() else None  # None: unless it is a terminal
    with tqdm(total=sum(len(s.slices) for s in scans), unit="slice", disable=quiet) as bar:
        for number, scan in enumerate(scans, 1):
            before = bar.n
            results.append(
                predict_scan(
                    predictor,
                    scan,
                    rule=_RULE.value,
                    progress=lambda done, total, before=before: bar.update(before + done - bar.n),
                    lung=lung,
                    keep_images=bool(_REPORT.value),
                    shown=overlays.of(scan) if _OVERLAYS.value else None,
                )
            )
            if jax.process_index() == 0:
                folder = output / "masks"
                folder = folder if len(scans) == 1 else folder / f"scan_{number}"
                write_mask_files(results, scan, kinds, folder)
    return results


def write_mask_files(results: list, scan, kinds: list[str], folder: pathlib.Path) -> None:
    """Writes the masks of the last result; what a kind cannot hold becomes a warning of it."""
    from ssm_jax.scans.masks import write_masks
    from ssm_jax.scans.options import ScanError

    for kind in kinds:
        place = folder / "png" if kind == "png" else folder
        place.mkdir(parents=True, exist_ok=True)
        try:
            write_masks(results[-1], scan, kind, place)
        except ScanError as error:
            results[-1].warnings.append(f"no masks as {kind}: {error}")


def main(argv: list[str]) -> None:
    """The program."""
    common.set_up_logging()
    kinds = [kind for kind in dict.fromkeys(_MASKS.value) if kind not in ("none", "json")]
    with common.one_line_errors(ValueError, OSError):
        processes.join()
        if "none" in _MASKS.value and len(set(_MASKS.value)) > 1:
            raise ValueError("--masks=none leaves no other --masks")
        options = input_options()
        output = pathlib.Path(_OUTPUT_DIR.value)
        output.mkdir(parents=True, exist_ok=True)
        common.use_compilation_cache()
        import jax

        from ssm_jax.files import write_json, write_text_atomically
        from ssm_jax.scans.open import open_scans
        from ssm_jax.scans.output import to_json

        predictor, facts = model_flags.load_predictor(
            masks="none" not in _MASKS.value,
            # A CPU gains nothing from batches; an accelerator does.
            batch_size=_BATCH_SIZE.value
            or jax.local_device_count() * (1 if jax.default_backend() == "cpu" else 8),
        )
        scans = open_scans([*_INPUTS.value, *argv[1:]], options)
        failed = [scan for scan in scans if scan.error]
        scans = [scan for scan in scans if not scan.error]
        results = predict_all(predictor, scans, output, kinds)
        if jax.process_index():
            return  # the first process has all results, and writes them
        content = to_json(results, failed)
        write_json(output / "predictions.json", content)
        if _REPORT.value:
            from ssm_jax.report.scan import scan_report

            page = scan_report(results, facts, predictor.score_threshold)
            write_text_atomically(output / _REPORT.value, page)
    tell(results, content["slices"], output)


def tell(results: list, entries: list[dict], output: pathlib.Path) -> None:
    """Prints what was found and what went wrong; exits with 1 if something could not be read."""
    from ssm_jax.classes import long_names

    for result in results:
        if result.kind != "pictures" and result.summary is not None:
            shares = result.summary.class_probabilities
            names = long_names(len(shares))
            parts = [f"{n} {s:.3f}" for n, s in zip(names, shares, strict=True)]
            if result.summary.lesion_ml is not None:
                parts.append(f"lesions {result.summary.lesion_ml:.1f} ml")
            print(f"{result.name}: {', '.join(parts)}")
        for warning in result.warnings:
            print(f"warning: {result.name}: {warning}", file=sys.stderr)
    failed = [entry for entry in entries if "error" in entry]
    print(f"{len(entries) - len(failed)} of {len(entries)} slices -> {output / 'predictions.json'}")
    for entry in failed:
        print(f"{entry['file']}: {entry['error']}", file=sys.stderr)
    if failed:
        sys.exit(1)
