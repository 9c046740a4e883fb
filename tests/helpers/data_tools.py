"""What the tests of the data part share: a small config, and folders of made-up slices."""

import pathlib

import numpy as np
from PIL import Image

from ssm_jax.config import default_config


def small_config(data_dir, **overrides):
    """default_config() with a phantom of a few slices of 64 pixels; overrides are dotted names."""
    config = default_config()
    config.model.image_size, config.model.max_size = 64, 128
    config.data.data_dir = str(data_dir)
    config.data.min_area = 256  # 4 pixels of these
    config.data.phantom.update(size=64, seg_train=7, seg_test=3, cls_train=9, cls_test=4)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
    return config


def save(path: pathlib.Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def lesion_mask(height, width, boxes=((8, 8, 20, 24),), value=2):
    """uint8 [height, width]: lung everywhere, rectangles (x1, y1, x2, y2) of lesion."""
    mask = np.ones((height, width), np.uint8)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = value
    return mask


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def seg_folder(root: pathlib.Path, sizes=((64, 64),) * 3, channels=1, suffix=".png"):
    """A segmentation folder, one training slice a size and two square test slices."""
    shape = (3,) if channels == 3 else ()
    for k, (height, width) in enumerate(sizes):
        save(root / "train" / "imgs" / f"a_{k}{suffix}", noise(k, height, width, *shape))
        save(root / "train" / "masks" / f"a_{k}.png", lesion_mask(height, width))
    for k in range(2):
        save(root / "test" / "imgs" / f"b_{k}{suffix}", noise(90 + k, 64, 64, *shape))
        save(root / "test" / "masks" / f"b_{k}.png", lesion_mask(64, 64))
    return root


def cls_folder(root: pathlib.Path, sizes=((64, 64),) * 3, channels=1):
    """A classification folder, one training slice a size and three square test slices."""
    shape = (3,) if channels == 3 else ()
    for k, (height, width) in enumerate(sizes):
        save(root / "train" / f"{k % 3}_p{k}_1_{k:04d}.png", noise(k, height, width, *shape))
    for k in range(3):
        save(root / "test" / f"{k}_q{k}_1_0001.png", noise(50 + k, 64, 64, *shape))
    return root
