"""Prediction of slices of any size, with boxes and masks in their own pixels."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from ssm_jax import sharding
from ssm_jax.class_set import ClassSet
from ssm_jax.classes import PAPER, unnamed
from ssm_jax.config import ModelConfig, default_config
from ssm_jax.models.inference import Predictions, make_classify_fn, make_predict_fn
from ssm_jax.ops.masks import encode_masks
from ssm_jax.ops.resizing import resize_bilinear, resized_shape

if TYPE_CHECKING:
    from ssm_jax.checkpoints import CheckpointInfo

PADDING_MULTIPLE = 32  # sides of a canvas are multiples of it
# Another engine than JAX: images [B, H, W, C] and sizes [B, 2] as `make_predict_fn` takes them, but
# not filled up to a batch size -> outputs on the host.
Engine = Callable[[np.ndarray, np.ndarray], Predictions]


@dataclasses.dataclass(frozen=True)
class RoIRows:
    """The ranked RoI batch that module S read of one slice.

    Attributes:
      rows: [S, 5] float32 (score, tx, ty, tw, th); scores do not increase. Where fewer than S
        boxes survived NMS, boxes are repeated in neighboring rows.
      boxes: [S, 4] float32, the same boxes decoded, XYXY in pixels of the slice as given.
      count: distinct boxes; 0: there was none, and all rows are zero.
    """

    rows: np.ndarray
    boxes: np.ndarray
    count: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The class and the lesions of one slice; boxes and masks are in pixels of the slice as given.

    Attributes:
      height, width: of the slice, pixels.
      class_logits: [K] float32, one per image class; none if the model only segments.
      class_probabilities: [K] float32, their softmax.
      predicted_class: index of the largest logit; None if the model only segments.
      boxes: [n, 4] float32, XYXY.
      scores: [n] float32 in [0, 1], decreasing.
      labels: [n] int32, lesion class from 1.
      masks: n COCO run-length encodings {"size": [height, width], "counts": str}; None if masks
        were not asked for.
      roi_batch: the input of module S; None if it was not asked for.
      classes: of the model, which name image and lesion classes.
    """

    height: int
    width: int
    class_logits: np.ndarray
    class_probabilities: np.ndarray
    predicted_class: int | None
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] | None
    roi_batch: RoIRows | None = None
    classes: ClassSet = PAPER

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON can hold it: `height`, `width`, `class_logits`,
        `class_probabilities`, `predicted_class`, `predicted_class_name`, and `detections`, a list
        of `box`, `score`, `label`, `label_name` and (if predicted) `mask`.
        """
        predicted, names = self.predicted_class, self.classes.names
        lesions = self.classes.lesion_names
        detections: list[dict[str, Any]] = [
            {
                "box": box.tolist(),
                "score": float(score),
                "label": int(label),
                "label_name": lesions[int(label)],
            }
            for box, score, label in zip(self.boxes, self.scores, self.labels, strict=True)
        ]
        if self.masks is not None:
            for detection, mask in zip(detections, self.masks, strict=True):
                detection["mask"] = mask
        return {
            "height": self.height,
            "width": self.width,
            "class_logits": self.class_logits.tolist(),
            "class_probabilities": self.class_probabilities.tolist(),
            "predicted_class": predicted,
            "predicted_class_name": None if predicted is None else names[predicted],
            "detections": detections,
        }


class Predictor:
    """A model ready to be called on slices.

    Slices are resized as in training (short side to the model's image size, long side bounded),
    batched by the size of their padded canvas, and predicted by one jitted call a batch; the first
    slice of each canvas size waits for a compilation. A batch is spread over as many devices of
    this process as it can be split over evenly.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        variables: Mapping[str, Any],
        score_threshold: float = 0.75,
        nms_threshold: float = 0.5,
        masks: bool = True,
        batch_size: int = 1,
        roi_batch: bool = False,
        classes: ClassSet | None = None,
        engine: Engine | None = None,
    ):
        """Takes a model.

        Args:
          model_config: the model.
          variables: {"params": ..., "batch_stats": ...}.
          score_threshold: detections have a larger score, in [0, 1].
          nms_threshold: IoU above which the lower-scored box is dropped, in [0, 1].
          masks: whether to predict masks.
          batch_size: slices a call; smaller batches are filled up, to compile only once.
          roi_batch: whether predictions hold the input of module S.
          classes: of the model; None: see `classes.unnamed`.
          engine: runs the same model with the same thresholds and masks in place of JAX, which
            `class_logits` uses all the same.

        Raises:
          ValueError: a threshold outside [0, 1], a batch size below 1, classes that are more or
            fewer than the model's, or an engine that is asked for the input of module S.
        """
        check_thresholds(score_threshold, nms_threshold)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        counts = model_config.image_classes, model_config.num_classes - 1
        self.classes = unnamed(*counts) if classes is None else classes
        if counts != (len(self.classes.image), len(self.classes.lesion)):
            raise ValueError(
                f"the model has {counts[0]} image and {counts[1]} lesion classes, and "
                f"{len(self.classes.image)} and {len(self.classes.lesion)} are named"
            )
        self.model_config = model_config
        self._mesh = sharding.local_mesh(batch_size)
        variables = dict(variables)
        if self._mesh is None:
            self.variables = jax.device_put(variables)
        else:
            self.variables = sharding.replicate(variables, self._mesh)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.masks = masks
        self.batch_size = batch_size
        if engine and roi_batch:
            raise ValueError("only JAX gives the input of module S; leave the engine out")
        self._engine = engine
        self._predict = _predict_fn(model_config, masks, roi_batch, self._mesh)

    def __call__(self, image: np.ndarray) -> Prediction:
        """Predicts one slice; see `predict_batch`."""
        return self.predict_batch([image])[0]

    def predict_batch(
        self, images: Sequence[np.ndarray], aspects: Sequence[float] | None = None
    ) -> list[Prediction]:
        """Predicts slices of any sizes.

        Args:
          images: each [H, W] or [H, W, 3]; uint8, or float in [0, 1].
          aspects: of each slice, height of a pixel over its width; None: pixels are square.

        Returns:
          One Prediction a slice, in the order given.

        Raises:
          ValueError: another shape or type, no pixels, or values outside [0, 1].
        """
        results: dict[int, Prediction] = {}
        thresholds = (self.score_threshold, self.nms_threshold)
        if self._engine:
            batches = self._run(images, self._engine, aspects=aspects)
        else:
            predict = functools.partial(self._predict, self.variables)
            batches = self._run(images, predict, *thresholds, aspects=aspects)
        for indices, sizes, outputs in batches:
            for row, index in enumerate(indices):
                original = np.shape(images[index])[:2]
                found = _in_original_pixels(outputs, row, sizes[row], original, self.classes)
                results[index] = found
        return [results[index] for index in range(len(images))]

    def class_logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Class logits alone, [N, K] float32: `predict_batch` without the work on lesions."""
        classify = functools.partial(_classify_fn(self.model_config, self._mesh), self.variables)
        logits = np.zeros((len(images), self.model_config.image_classes), np.float32)
        for indices, _, outputs in self._run(images, classify):
            logits[indices] = outputs[: len(indices)]
        return logits

    def _run(self, images, function, *args, aspects=None):
        """Yields (indices into `images`, resized sizes [B, 2], outputs on the host) a batch."""
        config = self.model_config
        prepared = [
            prepare(image, config.image_size, config.max_size, aspect)
            for image, aspect in zip(images, aspects or [1.0] * len(images), strict=True)
        ]
        alike: dict[tuple, list[int]] = {}
        for index, image in enumerate(prepared):
            key = (*_canvas(image.shape), image.shape[2], image.dtype)
            alike.setdefault(key, []).append(index)
        pending = None
        for (*shape, dtype), members in alike.items():
            for start in range(0, len(members), self.batch_size):
                indices = members[start : start + self.batch_size]
                size = len(indices) if function is self._engine else self.batch_size
                batch = np.zeros((size, *shape), dtype)
                sizes = np.full((size, 2), PADDING_MULTIPLE, np.int32)
                for row, index in enumerate(indices):
                    height, width = prepared[index].shape[:2]
                    batch[row, :height, :width] = prepared[index]
                    sizes[row] = height, width
                outputs = function(batch, sizes, *args)
                if pending:  # the device has work while the host looks at the batch before
                    yield *pending[:2], jax.device_get(pending[2])
                pending = indices, sizes, outputs
        if pending:
            yield *pending[:2], jax.device_get(pending[2])


def load(
    path: str | os.PathLike | None = None,
    score_threshold: float | None = None,
    nms_threshold: float | None = None,
    masks: bool = True,
    batch_size: int = 1,
) -> Predictor:
    """The model of a checkpoint, or the one that comes with the package, ready to be called.

    Args:
      path: a run's working directory (its best checkpoint, or else the latest), its folder of
        checkpoints, or the folder of one step. None: the model that comes with the package;
        `ssm_jax.box.facts()` tells its limits.
      score_threshold: detections have a larger score; None: see `thresholds`.
      nms_threshold: IoU above which the lower-scored box is dropped; None: see `thresholds`.
      masks: whether to predict masks.
      batch_size: slices a call.

    Returns:
      A Predictor: `predictor(image) -> Prediction` with image [H, W] or [H, W, 3], uint8 or float
      in [0, 1].

    Raises:
      CheckpointError: no checkpoint there, not ours, or damaged.
      ValueError: a threshold outside [0, 1].
    """
    from ssm_jax.box import open_model

    model_config, variables, info = open_model(path)
    of_run = thresholds(info)
    score = of_run[0] if score_threshold is None else score_threshold
    nms = of_run[1] if nms_threshold is None else nms_threshold
    return Predictor(model_config, variables, score, nms, masks, batch_size, classes=info.classes)


def thresholds(info: "CheckpointInfo") -> tuple[float, float]:
    """Score and NMS threshold that a model was evaluated with: those its figures hold for.

    Where the run chose its score threshold on training slices, it is that of the evaluation which
    the checkpoint holds.

    Args:
      info: of the checkpoint. Thresholds of imported weights are the default configuration's.
    """
    settings = (info.config or default_config())["eval"]
    score = (info.metrics or {}).get("score_threshold", settings["score_threshold"])
    return score, settings["nms_threshold"]


def check_thresholds(score_threshold: float, nms_threshold: float) -> None:
    """Raises ValueError, which names the threshold, where one lies outside [0, 1]."""
    for name, value in (("score", score_threshold), ("nms", nms_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}_threshold must lie in [0, 1], not {value}")


def prepare(image: np.ndarray, image_size: int, max_size: int, aspect: float = 1.0) -> np.ndarray:
    """Checks a slice and resizes it for the model.

    Args:
      image: [H, W] or [H, W, 3], uint8 or float in [0, 1].
      image_size: pixels of the resized short side.
      max_size: bound of the resized long side, pixels.
      aspect: height of a pixel over its width; those of the result are square.

    Returns:
      [h, w, C] with the channels that the slice has, 1 or 3: uint8 where that is what came and
      nothing was to be resized, or else float32 in [0, 1].

    Raises:
      ValueError: what is wrong with the slice.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise ValueError(f"a slice must be [H, W] or [H, W, 3], not {list(image.shape)}")
    if image.size == 0:
        raise ValueError(f"a slice needs pixels, this one has the shape {list(image.shape)}")
    image = image[..., None] if image.ndim == 2 else image
    height, width = image.shape[:2]
    resized = resized_shape(height * aspect, width, image_size, max_size)
    same = resized == (height, width)
    if image.dtype == np.uint8:
        if same:
            return image
        values = image.astype(np.float32) / 255
    elif np.issubdtype(image.dtype, np.floating):
        values = image.astype(np.float32)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"a float slice must lie in [0, 1], this one spans [{low:g}, {high:g}]; apply a CT "
                "window and rescale it first"
            )
    else:
        raise ValueError(f"a slice must be uint8 or float in [0, 1], not {image.dtype}")
    return values if same else resize_bilinear(values, *resized)


@functools.lru_cache
def _predict_fn(model_config: ModelConfig, masks: bool, roi_batch: bool, mesh: Mesh | None):
    """One jitted function a model, whatever weights it gets: compiled once a process."""
    predict = make_predict_fn(model_config, masks=masks, roi_batch=roi_batch)
    return sharding.jit_inference(predict, mesh)


@functools.lru_cache
def _classify_fn(model_config: ModelConfig, mesh: Mesh | None):
    """One jitted function a model that predicts the class alone, whatever weights it gets."""
    return sharding.jit_inference(make_classify_fn(model_config), mesh)


def _canvas(shape: Sequence[int]) -> tuple[int, ...]:
    """Height and width of a slice padded to multiples of 32."""
    return tuple(-(-side // PADDING_MULTIPLE) * PADDING_MULTIPLE for side in shape[:2])


def _in_original_pixels(
    outputs: Any, row: int, resized: np.ndarray, original: tuple[int, ...], classes: ClassSet
) -> Prediction:
    """One slice of a batch, with boxes scaled back and masks pasted.

    Args:
      outputs: Predictions of the batch, of NumPy arrays.
      row: the slice in the batch.
      resized: its height and width for the model, pixels.
      original: its height and width as given, pixels.
      classes: of the model.
    """
    height, width = original
    used = outputs.valid[row]
    scale = np.array([width, height, width, height]) / resized[[1, 0, 1, 0]]
    boxes = (outputs.boxes[row][used] * scale).astype(np.float32)
    masks = None
    if outputs.mask_probabilities is not None:
        masks = encode_masks(outputs.mask_probabilities[row][used], boxes, height, width)
    roi_batch = None
    if (read := outputs.roi_batch) is not None:
        roi_boxes = (read.boxes[row] * scale).astype(np.float32)
        roi_batch = RoIRows(read.rows[row], roi_boxes, int(read.count[row]))
    logits = outputs.class_logits[row]
    return Prediction(
        height=height,
        width=width,
        class_logits=logits,
        class_probabilities=softmax(logits),
        predicted_class=int(logits.argmax()) if len(logits) else None,
        boxes=boxes,
        scores=outputs.scores[row][used],
        labels=outputs.labels[row][used],
        masks=masks,
        roi_batch=roi_batch,
        classes=classes,
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities from logits [..., K]."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
