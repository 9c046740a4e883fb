"""COCO AP on bootstrap samples, without matching detections anew.

Detections are matched image by image, so drawing an image twice draws its matches twice: with each
detection weighted by how often its image was drawn, the cumulated precision and recall are those
that pycocotools finds on a data set that holds the image so many times. (Of detections with equal
scores, copies of one stay together here; pycocotools goes image by image.)
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Integer
from pycocotools.cocoeval import COCOeval

_FIGURES = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # of the ten thresholds
_CHUNK = 4_000_000  # numbers held at once, by detections and samples


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """The detections of a class by decreasing score, and the objects they should find.

    Attributes:
      image: index of each detection's image.
      hit: whether it found an object, at every threshold.
      objects: of each image.
    """

    image: Integer[np.ndarray, "D"]
    hit: Bool[np.ndarray, "T D"]
    objects: Integer[np.ndarray, "I"]


def resampled_figures(
    evaluated: COCOeval, weights: Integer[np.ndarray, "R I"]
) -> dict[str, Float64[np.ndarray, "R"]]:
    """AP, AP50 and AP75 (objects of all sizes) of many samples of the images.

    Args:
      evaluated: from `coco.run`.
      weights: how often each of the I images (by increasing id) is in each sample.

    Returns:
      "AP", "AP50" and "AP75" of every sample; NaN for a sample without objects.

    Raises:
      ValueError: weights of another number of images.
    """
    images = len(evaluated.params.imgIds)
    if weights.shape[1] != images:
        raise ValueError(f"weights of {weights.shape[1]} images for {images}")
    recalls = evaluated.params.recThrs
    classes = [_ranked(evaluated, k) for k in range(len(evaluated.params.catIds))]
    thresholds = len(evaluated.params.iouThrs)
    mean_precision = np.full((len(classes), thresholds, len(weights)), np.nan)
    for k, ranked in enumerate(classes):
        chunk = max(1, _CHUNK // max(len(ranked.image), 1))
        for start in range(0, len(weights), chunk):
            part = slice(start, start + chunk)
            mean_precision[k, :, part] = _mean_precision(ranked, weights[part], recalls)
    return {name: _mean(mean_precision[:, rows]) for name, rows in _FIGURES.items()}


def _ranked(evaluated: COCOeval, k: int) -> _Ranked:
    """Class number k of what pycocotools matched: first area range, most detections an image."""
    images, areas = len(evaluated.params.imgIds), len(evaluated.params.areaRng)
    start, most = k * areas * images, evaluated.params.maxDets[-1]
    found = evaluated.evalImgs[start : start + images]
    objects = np.array([0 if e is None else len(e["gtIds"]) for e in found], int)
    parts = [(i, e) for i, e in enumerate(found) if e is not None and len(e["dtIds"])]
    if not parts:
        return _Ranked(
            np.zeros(0, int), np.zeros((len(evaluated.params.iouThrs), 0), bool), objects
        )
    scores = np.concatenate([e["dtScores"][:most] for _, e in parts])
    image = np.concatenate([np.full(len(e["dtScores"][:most]), i) for i, e in parts])
    hit = np.concatenate([e["dtMatches"][:, :most] > 0 for _, e in parts], axis=1)
    order = np.argsort(-scores, kind="mergesort")  # as pycocotools breaks ties
    return _Ranked(image[order], hit[:, order], objects)


def _mean_precision(
    ranked: _Ranked, weights: Integer[np.ndarray, "R I"], recalls: Float64[np.ndarray, "r"]
) -> Float64[np.ndarray, "T R"]:
    """Mean interpolated precision; NaN for samples without objects."""
    objects = weights @ ranked.objects  # [R]
    mean = np.where(objects > 0, 0.0, np.nan) * np.ones((len(ranked.hit), 1))
    if not len(ranked.image):
        return mean
    drawn = weights[:, ranked.image].astype(np.float64)  # [R, D]
    counted = np.cumsum(drawn, axis=1)
    for t, hit in enumerate(ranked.hit):
        true = np.cumsum(drawn * hit, axis=1)
        precision = true / (counted + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        envelope = np.pad(envelope, ((0, 0), (0, 1)))  # 0 beyond the last recall
        for row in np.flatnonzero(objects):
            reached = np.searchsorted(true[row] / objects[row], recalls, side="left")
            mean[t, row] = envelope[row, reached].mean()
    return mean


def _mean(figures: Float64[np.ndarray, "K T R"]) -> Float64[np.ndarray, "R"]:
    """Mean over thresholds and the classes that have objects."""
    known = ~np.isnan(figures)
    total, count = np.nansum(figures, axis=(0, 1)), known.sum(axis=(0, 1))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
