"""Made-up scans with hostile names: what the report of scans and the server's tests show."""

import numpy as np

from ssm_jax.classes import unnamed
from ssm_jax.ops import rle
from ssm_jax.predictor import Prediction, softmax
from ssm_jax.scans.result import ScanResult, ScanSummary, SliceResult
from tests.helpers.fake_predictions import blob, box_of
from tests.helpers.report_tools import HOSTILE

SCORES = (0.95, 0.8, 0.65)  # of the detections of every slice that has some
HEIGHT, WIDTH = 96, 128


def lesions(index, height=HEIGHT, width=WIDTH):
    """Three masks that wander from slice to slice."""
    centers = [(30 + index % 20, 30), (60, 40 + index % 50), (40, 100)]
    return [blob(height, width, center, (12, 9)) for center in centers]


def prediction(index, height=HEIGHT, width=WIDTH, classes=3, masks=True):
    """Of one slice; every third has no lesion."""
    found = [] if index % 3 == 2 else lesions(index, height, width)
    logits = np.cos(index / 9 + np.arange(classes)).astype(np.float32) * 2
    boxes = np.array([box_of(mask) for mask in found], np.float32).reshape(-1, 4)
    return Prediction(
        height=height,
        width=width,
        class_logits=logits,
        class_probabilities=softmax(logits),
        predicted_class=int(logits.argmax()) if classes else None,
        boxes=boxes,
        scores=np.array(SCORES[: len(found)], np.float32),
        labels=np.array([1, 2, 1][: len(found)], np.int32),
        masks=[rle.encode(mask) for mask in found] if masks else None,
        classes=unnamed(classes, 2),
    )


def picture(index, height=HEIGHT, width=WIDTH):
    """uint8 [height, width]: a body with two lungs, brighter from slice to slice."""
    image = np.full((height, width), 10, np.uint8)
    image[blob(height, width, (height / 2, width / 2), (height / 2.2, width / 2.2))] = 160
    for side in (0.32, 0.68):
        image[blob(height, width, (height / 2, width * side), (height / 3.2, width / 7))] = 40
    return image + np.uint8(index % 60)


def scan(count=30, unread=(7,), classes=3, name=HOSTILE, masks=True):
    """A scan of `count` slices, some of which could not be read."""
    slices = []
    for k in range(count):
        label = f"slice_{k}.dcm" if k else HOSTILE
        if k in unread:
            slices.append(SliceResult(label, None, None, f"damaged: {HOSTILE}"))
        else:
            made = prediction(k, classes=classes, masks=masks)
            slices.append(SliceResult(label, picture(k), made, position=2.5 * k))
    read = [s.prediction for s in slices if s.prediction is not None]
    summary = None
    if read:
        shares = np.mean([p.class_probabilities for p in read], axis=0)
        own = [p.predicted_class for p in read if p.predicted_class is not None]
        summary = ScanSummary(
            rule="mean",
            class_probabilities=shares,
            predicted_class=int(shares.argmax()) if classes else None,
            slices_per_class=np.bincount(own, minlength=classes),
            lesion_ml=12.345,
            lung_share=0.0678,
            telling=[k for k in (12, 3, 4) if k < count and k not in unread],
        )
    facts = {"Modality": "CT", "Spacing": "0.7 × 0.7 × 2.5 mm", "Description": HOSTILE}
    warnings = ["1 gap of 5.0 mm", f"assumed: {HOSTILE}"]
    return ScanResult(name, "dicom", facts, warnings, slices, summary, unnamed(classes, 2))
