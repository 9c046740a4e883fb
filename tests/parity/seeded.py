"""States of a model and synthetic slices that a seed makes, the same on every machine.

The author's code and ours start from them, so that recordings need no weights. Everything is drawn
from `numpy.random.RandomState`, whose streams are frozen, and from its uniform distribution alone,
which no mathematical library rounds. Names of weights are those of the reference's state dict.
"""

import zlib
from collections.abc import Mapping

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

# Standard deviation of a layer's outputs, for inputs of about 1: the scores of boxes and pixels
# differ clearly, and boxes move by a fraction of their size.
GAINS = {
    "rpn.head.cls_logits": 1.5,
    "rpn.head.bbox_pred": 0.04,
    "box_predictor.bbox_pred": 1.0,
    "box_predictor_s2.bbox_pred": 1.0,
    "box_predictor.cls_score": 2.0,
    "box_predictor_s2.cls_score": 2.0,
    "mask_fcn_logits": 3.0,
}


def stream(seed: int, name: str) -> np.random.RandomState:
    """A generator of its own for each name."""
    return np.random.RandomState([seed, zlib.crc32(name.encode())])


def uniform(seed: int, name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Float32 numbers between two bounds."""
    values = stream(seed, name).random_sample(shape)
    return (low + (high - low) * values).astype(np.float32)


def weights(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """A state dict of plausible scale: activations stay about 1 through all layers.

    Args:
      shapes: of every entry of the reference's state dict, by name.
      seed: of the draw.

    Returns:
      Arrays by name, float32 (update counts of BN layers int64).
    """
    return {name: _entry(name, tuple(shape), seed) for name, shape in shapes.items()}


def _entry(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    layer, kind = name.rsplit(".", 1)
    if kind == "num_batches_tracked":
        return np.asarray(stream(seed, name).randint(10, 1000), np.int64)
    if kind == "running_var":
        return uniform(seed, name, shape, 0.7, 1.6)
    if kind in ("bias", "running_mean"):
        return uniform(seed, name, shape, -0.2, 0.2)
    if len(shape) == 1:  # scale of a BN layer; the second of a block adds little to the shortcut
        high = 0.7 if layer.endswith("bn2") else 1.3
        return uniform(seed, name, shape, high - 0.5, high)
    transposed = layer.endswith("conv5_mask")  # one tap an output, inputs first
    fan_in = shape[0] if transposed else np.prod(shape[1:])
    gain = next((g for ending, g in GAINS.items() if layer.endswith(ending)), np.sqrt(2))
    bound = gain * np.sqrt(3 / fan_in)
    drawn = uniform(seed, name, shape, -bound, bound)
    inputs = drawn if transposed else drawn.swapaxes(0, 1)
    if layer == "rpn.head.cls_logits":  # anchors of a cell agree, so that proposals overlap
        drawn[1:] = 0.4 * drawn[1:] + 0.9 * drawn[0]
    half = len(inputs) // 2
    if half > 1:  # what all inputs have in common (they come out of ReLUs) cancels
        inputs[half:] = -inputs[:half]
    return drawn


def slice_with_lesions(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A body with two lungs and bright lesions in them, under noise.

    Args:
      seed: of the draw.
      height: pixels.
      width: pixels.

    Returns:
      The slice, uint8 [height, width], and the label map of its lesions, uint8 [height, width]
      (0: none, k: the k-th).
    """
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]

    def ellipse(center_y, center_x, radius_y, radius_x):
        return ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 <= 1

    level = np.where(ellipse(height / 2, width / 2, 0.46 * height, 0.47 * width), 150, 10)
    lungs = np.zeros((height, width), bool)
    for side in (0.3, 0.7):
        lungs |= ellipse(height / 2, side * width, 0.34 * height, 0.16 * width)
    level[lungs] = 40
    instances = np.zeros((height, width), np.uint8)
    for label in range(1, 4):  # about as large as anchors, and about where anchors are
        at_y = 16 * rng.randint(1, height // 16) + 4 * rng.random_sample() - 2
        at_x = 16 * rng.randint(1, width // 16) + 4 * rng.random_sample() - 2
        length = (16, 32)[rng.randint(2)] * (0.9 + 0.2 * rng.random_sample())
        stretch = (0.7, 1.0, 1.2)[rng.randint(3)]
        lesion = ellipse(at_y, at_x, length * stretch / 2, length / stretch / 2) & (instances == 0)
        instances[lesion] = label
        level[lesion] = 110
    noisy = level + rng.randint(-40, 41, level.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), instances


def boxes_of(instances: np.ndarray) -> np.ndarray:
    """The box (min x, min y, max x + 1, max y + 1) of each lesion: [n, 4] float32."""
    boxes = []
    for label in range(1, instances.max() + 1):
        y, x = np.nonzero(instances == label)
        boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def is_stepped(name: str) -> bool:
    """Whether the optimizer ever steps an entry of the state dict."""
    statistic = name.rsplit(".", 1)[1] in ("running_mean", "running_var", "num_batches_tracked")
    return not statistic and "_s2." not in name


def step_count(name: str, seed: int) -> int:
    """Steps that a parameter has taken: its own number for backbone, module S and the rest."""
    group = name.split(".")[0]
    group = group if group in ("backbone", "s2new") else "segmentation"
    return int(stream(seed, f"steps of {group}").randint(3, 60))


def moments(
    shapes: Shapes, scales: Mapping[str, float], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Adam's moments after `step_count` steps of gradients of given size.

    None of the second moments is near zero: a step is then a smooth function of its gradient,
    whereas a first step has the length of the learning rate whatever the gradient, and turns
    around with its sign.

    Args:
      shapes: of every entry of the state dict, by name.
      scales: root mean square of the gradient of each parameter that is stepped.
      seed: of the draw.

    Returns:
      First and second moments by name, float32.
    """
    first, second = {}, {}
    for name, scale in scales.items():
        count = step_count(name, seed)
        low, high = -scale * (1 - 0.9**count), scale * (1 - 0.9**count)
        first[name] = uniform(seed, f"first {name}", shapes[name], low, high)
        size = scale**2 * (1 - 0.999**count)
        second[name] = uniform(seed, f"second {name}", shapes[name], 0.25 * size, 2 * size)
    return first, second
