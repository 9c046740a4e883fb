"""Finds lesions and the class of CT slices with a trained model.

Takes PNG and JPEG files, and folders of them. Writes `predictions.json` into the output folder: a
list with one object an input: file, height, width, class_logits, class_probabilities,
predicted_class (0 normal, 1 common pneumonia, 2 COVID-19; of two classes 0 normal, 1 COVID-19; null
if the model only segments), predicted_class_name (normal, cp, covid or null), and detections, each
with box (x1, y1, x2, y2 in pixels of the input), score, label (lesion class: 1; of two 1 ground
glass, 2 consolidation) and mask (COCO run-length encoding). An input that cannot be read has file
and error instead, and the program then exits with 1.

Examples:

    python -m experiments.predict --checkpoint=runs/demo --inputs=slice.png --output_dir=out
    python -m experiments.predict --checkpoint=runs/demo --inputs=scans/ --output_dir=out \\
        --score_threshold=0.5 --overlays
    python -m experiments.predict --checkpoint=runs/demo --output_dir=out --nomasks \\
        --inputs=a.png --inputs=b.png
"""

import pathlib
import sys

import numpy as np
from absl import app, flags
from PIL import Image

from experiments import common

SUFFIXES = (".png", ".jpg", ".jpeg")

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    common.CHECKPOINT_HELP,
    required=True,
)
_INPUTS = flags.DEFINE_multi_string(
    "inputs",
    None,
    "PNG or JPEG file, or a folder that is searched with its subfolders. Repeat the flag, or list "
    "more paths after it.",
    required=True,
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder for predictions.json; created.", required=True
)
_SCORE_THRESHOLD = flags.DEFINE_float(
    "score_threshold", 0.75, "Detections have a larger score.", lower_bound=0, upper_bound=1
)
_NMS_THRESHOLD = flags.DEFINE_float(
    "nms_threshold",
    0.5,
    "Of two detections with a larger IoU the lower-scored one is dropped.",
    lower_bound=0,
    upper_bound=1,
)
_MASKS = flags.DEFINE_bool("masks", True, "Whether to predict masks.")
_OVERLAYS = flags.DEFINE_bool(
    "overlays", False, "Whether to draw a picture of each prediction, in overlays/."
)


def find_inputs(paths: list[str]) -> list[str]:
    """The files that paths mean: folders become their PNG and JPEG files, sorted, recursively.

    A folder without any stays in the list, to be reported like a file that cannot be read.
    """
    files = []
    for path in _separated(paths):
        folder = pathlib.Path(path)
        if folder.is_dir():
            found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
            files += [str(p) for p in found] or [path]
        else:
            files.append(path)
    return files


def _separated(paths: list[str]) -> list[str]:
    """Takes lists with commas apart, but not names with commas."""
    whole = [[path] if pathlib.Path(path).exists() else path.split(",") for path in paths]
    return [path for part in whole for path in part]


def read_slice(path: str) -> np.ndarray:
    """Reads a picture: uint8 [H, W] if it is grey, else [H, W, 3].

    Raises:
      ValueError: a folder without pictures, not a picture, damaged, or of more than 8 bits.
    """
    if pathlib.Path(path).is_dir():
        raise ValueError("the folder holds no PNG or JPEG file")
    if not pathlib.Path(path).exists():
        raise ValueError("no such file")
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits a pixel; apply a CT window and save 8 bits")
            grey = image.mode in ("1", "L", "LA")
            return np.asarray(image.convert("L" if grey else "RGB"))
    # A damaged file makes Pillow raise almost anything.
    except Exception as error:
        raise ValueError(f"cannot be read as a picture: {error}") from error


def predict_files(predictor, files: list[str], overlays: pathlib.Path | None) -> list[dict]:
    """Predicts files one batch after another.

    Args:
      predictor: from `ssm_jax.load`.
      files: paths.
      overlays: folder for pictures, or None.

    Returns:
      One dict a file, as in predictions.json.
    """
    from tqdm import tqdm

    entries = []
    with tqdm(total=len(files), unit="slice", disable=None) as progress:
        for start in range(0, len(files), predictor.batch_size):
            chunk = files[start : start + predictor.batch_size]
            slices, errors = {}, {}
            for file in chunk:
                try:
                    slices[file] = read_slice(file)
                except ValueError as error:
                    errors[file] = str(error)
            predictions = dict(
                zip(slices, predictor.predict_batch(list(slices.values())), strict=True)
            )
            for file in chunk:
                if file in errors:
                    entries.append({"file": file, "error": errors[file]})
                    continue
                entries.append({"file": file, **predictions[file].to_dict()})
                if overlays is not None:
                    draw(overlays, len(entries) - 1, file, slices[file], predictions[file])
            progress.update(len(chunk))
    return entries


def draw(folder: pathlib.Path, index: int, file: str, image: np.ndarray, prediction) -> None:
    """Saves a picture of one prediction; the index keeps apart equal names of different folders."""
    from ssm_jax import classes, visualize

    folder.mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(file)
    names = classes.long_names(len(prediction.class_logits))
    picture = visualize.overlay(image, prediction, class_names=names, title=path.name)
    picture.save(folder / f"{index:05d}_{path.stem}.png")


def main(argv: list[str]) -> None:
    """The program."""
    common.set_up_logging()
    import jax

    import ssm_jax
    from ssm_jax.training.metrics import write_json

    files = find_inputs([*_INPUTS.value, *argv[1:]])
    output = pathlib.Path(_OUTPUT_DIR.value)
    with common.one_line_errors(ValueError, OSError):
        output.mkdir(parents=True, exist_ok=True)
        common.use_compilation_cache()
        predictor = ssm_jax.load(
            _CHECKPOINT.value,
            score_threshold=_SCORE_THRESHOLD.value,
            nms_threshold=_NMS_THRESHOLD.value,
            masks=_MASKS.value,
            # A CPU gains nothing from batches; an accelerator does, where there is more to do.
            batch_size=1 if jax.default_backend() == "cpu" else min(8, max(len(files), 1)),
        )
    entries = predict_files(predictor, files, output / "overlays" if _OVERLAYS.value else None)
    write_json(output / "predictions.json", entries)
    failed = [entry for entry in entries if "error" in entry]
    print(f"{len(entries) - len(failed)} of {len(entries)} inputs -> {output / 'predictions.json'}")
    for entry in failed:
        print(f"{entry['file']}: {entry['error']}", file=sys.stderr)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
