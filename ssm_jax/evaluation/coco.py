"""COCO average precision: pycocotools' `segm` and `bbox`, twelve figures each.

Everything up to the figures is the COCO JSON format, so that other tools can read what is written:
truth is an instances file, predictions are a results file. Boxes are [x, y, width, height] there;
`xyxy_to_xywh` is the one place where they are converted.

Results of the kind "segm" carry no box and those of "bbox" no mask. With both in one list
pycocotools takes the area of the box for that of the mask, which moves detections between the
small, medium and large classes; a list of one kind gives the same figures here and in
`COCO.loadRes`.
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssm_jax.ops import rle as rle_lib

KINDS = ("segm", "bbox")
# In the order of COCOeval.stats. AP: IoU 0.50:0.05:0.95; s, m, l: areas below 32^2, 96^2, above;
# AR1, AR10, AR100: recall with that many detections an image.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_FIELDS = {"segm": "segmentation", "bbox": "bbox"}


def xyxy_to_xywh(boxes: ArrayLike) -> Float64[np.ndarray, "N 4"]:
    """Corners (x1, y1, x2, y2) of N boxes to corner and size (x, y, w, h)."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


class CocoRecorder:
    """Collects truth and predictions image by image, masks as run lengths only.

    Attributes:
      truth: a COCO instances dict ("images", "annotations", "categories"), all plain values.
      detections: COCO results with "bbox" and "segmentation" (None without masks); see `results`.
    """

    def __init__(self, categories: Mapping[int, str]):
        """Args: categories: class number (>= 1) -> name, all that can occur."""
        self.truth: dict[str, Any] = {
            "info": {},
            "images": [],
            "annotations": [],
            "categories": [{"id": int(k), "name": name} for k, name in categories.items()],
        }
        self.detections: list[dict[str, Any]] = []

    def add_image(self, height: int, width: int, file_name: str = "") -> int:
        """Starts an image of height x width pixels; returns its id (1, 2, ...)."""
        image_id = len(self.truth["images"]) + 1
        self.truth["images"].append(
            {"id": image_id, "height": int(height), "width": int(width), "file_name": file_name}
        )
        return image_id

    def add_truth(
        self, image_id: int, masks: Sequence[rle_lib.Rle], boxes: ArrayLike, labels: Iterable
    ) -> None:
        """Adds ground-truth objects; their area is that of the mask.

        Args:
          image_id: from `add_image`.
          masks: G encodings.
          boxes: [G, 4] XYXY pixels.
          labels: int [G].
        """
        annotations = self.truth["annotations"]
        for mask, box, label in zip(masks, xyxy_to_xywh(boxes), labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label),
                    "segmentation": dict(mask),
                    "bbox": box.tolist(),
                    "area": rle_lib.area(mask),
                    "iscrowd": 0,
                }
            )

    def add_detections(
        self,
        image_id: int,
        masks: Sequence[rle_lib.Rle] | None,
        boxes: ArrayLike,
        scores: Sequence | np.ndarray,
        labels: Iterable,
    ) -> None:
        """Adds predictions of an image.

        Args:
          image_id: from `add_image`.
          masks: P encodings, or None.
          boxes: [P, 4] XYXY pixels.
          scores: float [P].
          labels: int [P].
        """
        shown = [None] * len(scores) if masks is None else masks
        rows = zip(shown, xyxy_to_xywh(boxes), scores, labels, strict=True)
        for mask, box, score, label in rows:
            self.detections.append(
                {
                    "image_id": image_id,
                    "category_id": int(label),
                    "score": float(score),
                    "bbox": box.tolist(),
                    "segmentation": None if mask is None else dict(mask),
                }
            )

    def results(self, kind: str) -> list[dict[str, Any]]:
        """The predictions as a COCO results list of one kind.

        Raises:
          ValueError: unknown kind, or "segm" with predictions that have no mask.
        """
        field = _field(kind)
        if any(detection[field] is None for detection in self.detections):
            raise ValueError("there are predictions without a mask: only `bbox` can be evaluated")
        names = ("image_id", "category_id", "score", field)
        return [{name: detection[name] for name in names} for detection in self.detections]

    def run(self, kind: str) -> COCOeval:
        """pycocotools on all that was added: see the function `run`."""
        return run(self.truth, self.results(kind), kind)

    def evaluate(self, kind: str) -> dict[str, float]:
        """The twelve figures of all that was added: see the function `evaluate`."""
        return figures(self.run(kind))


def evaluate(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str
) -> dict[str, float]:
    """Twelve COCO figures: `figures` of `run`, with its arguments and errors."""
    return figures(run(truth, results, kind))


def figures(evaluated: COCOeval) -> dict[str, float]:
    """The figures that pycocotools summarizes.

    Args:
      evaluated: from `run`.

    Returns:
      `FIGURES` -> number in [0, 1], or NaN where pycocotools says -1: no ground truth (of that
      size) to measure on.
    """
    return {
        name: float(value) if value >= 0 else float("nan")
        for name, value in zip(FIGURES, evaluated.stats, strict=True)
    }


def precision_curves(evaluated: COCOeval) -> Float64[np.ndarray, "10 101"]:
    """Interpolated precision over recall, objects of all sizes, up to 100 detections an image.

    Args:
      evaluated: from `run`.

    Returns:
      A row for each IoU threshold 0.50, 0.55, ..., 0.95, a column for each
      recall 0, 0.01, ..., 1; the mean over the classes that have objects. NaN without objects.
    """
    precision = evaluated.eval["precision"][:, :, :, 0, -1]  # [10, 101, K]
    present = precision[0, 0] >= 0
    if not present.any():
        return np.full(precision.shape[:2], np.nan)
    return precision[:, :, present].mean(axis=2)


def run(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str) -> COCOeval:
    """Runs pycocotools.

    Args:
      truth: a COCO instances dict; masks as compressed run lengths.
      results: a COCO results list, possibly empty; each with the field of its kind.
      kind: "segm" or "bbox".

    Returns:
      A COCOeval that has evaluated, accumulated and summarized.

    Raises:
      ValueError: unknown kind, or a result of an image that the truth does not have.
    """
    field = _field(kind)
    known = {image["id"] for image in truth["images"]}
    strangers = sorted({result["image_id"] for result in results} - known)
    if strangers:
        raise ValueError(f"results for images that the truth does not have: {strangers[:5]}")
    detections = []
    for index, result in enumerate(results):
        shape = result[field]
        area = rle_lib.area(shape) if kind == "segm" else shape[2] * shape[3]
        detections.append({**result, "id": index + 1, "area": area, "iscrowd": 0})
    evaluator = _QuietEval(
        _as_coco(truth, truth["annotations"]), _as_coco(truth, detections), iouType=kind
    )
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator


def _field(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not possible; choose from {KINDS}")
    return _FIELDS[kind]


def _as_coco(truth: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> COCO:
    """A COCO index over copies of the annotations (the evaluation writes into them)."""
    coco = _QuietCoco()
    coco.dataset = {**truth, "annotations": [dict(annotation) for annotation in annotations]}
    coco.createIndex()
    return coco


def _silent(cls: type) -> type:
    """A subclass whose inherited functions see a `print` that does nothing.

    pycocotools reports its progress with bare prints. Redirecting stdout would also swallow what
    other threads print meanwhile, so each function gets globals of its own instead.
    """
    functions = {
        name: types.FunctionType(
            function.__code__,
            {**function.__globals__, "print": lambda *args, **kwargs: None},
            name,
            function.__defaults__,
            function.__closure__,
        )
        for name, function in vars(cls).items()
        if isinstance(function, types.FunctionType)
    }
    return type(f"Quiet{cls.__name__}", (cls,), functions)


_QuietCoco = _silent(COCO)
_QuietEval = _silent(COCOeval)
