"""Draws training batches as a run gets them, which shows what augmentation does.

    python -m experiments.augmentation_picture --config=configs/demo.py --output=batches.png \\
        --config.data.augment.flip=0.5 --config.data.augment.rotate=10

A row is a batch: its segmentation slices with the contours of their lesions, then its
classification slices.
"""

import numpy as np
from absl import app, flags
from ml_collections import config_flags
from PIL import Image

from ssm_jax.visualize import contour

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration of the run.")
_OUTPUT = flags.DEFINE_string("output", "batches.png", "Picture to write.")
_BATCHES = flags.DEFINE_integer("batches", 4, "Rows.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Slices of either kind in a row.", 1)

_GREEN = (80, 235, 120)
_GAP = 4


def cells(batch: dict) -> list[np.ndarray]:
    """The slices of a batch, uint8 [H, W, 3], without padding."""
    drawn = []
    for part in ("seg", "cls"):
        arrays = batch.get(part, {"image": []})
        for row, image in enumerate(arrays["image"]):
            height, width = arrays["image_size"][row]
            pixels = np.asarray(image)[:height, :width]
            if pixels.dtype != np.uint8:
                pixels = np.rint(255 * pixels).astype(np.uint8)
            pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels.copy()
            if part == "seg":
                instances = arrays["instances"][row][:height, :width]
                for number in range(1, instances.max() + 1):
                    pixels[contour(instances == number)] = _GREEN
            drawn.append(pixels)
    return drawn


def picture(batches: list[dict]) -> Image.Image:
    """All batches, a row each."""
    rows = [cells(batch) for batch in batches]
    height = max(cell.shape[0] for row in rows for cell in row) + _GAP
    width = max(cell.shape[1] for row in rows for cell in row) + _GAP
    canvas = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            canvas.paste(Image.fromarray(cell), (x * width, y * height))
    return canvas


def main(argv: list[str]) -> None:
    """The program."""
    del argv
    from ssm_jax.config import validate
    from ssm_jax.data import TrainBatches, open_datasets

    config = _CONFIG.value
    validate(config)
    batches = TrainBatches(open_datasets(config), config.seed, _BATCH_SIZE.value)
    picture([batches[step] for step in range(_BATCHES.value)]).save(_OUTPUT.value)
    print(_OUTPUT.value)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
