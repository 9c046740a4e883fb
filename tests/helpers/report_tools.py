"""A report without a model: an evaluation made up from a seed, with hostile file names."""

import numpy as np

from ssm_jax.evaluation import Evaluator
from ssm_jax.evaluation.predicted_slices import PredictedSlice
from ssm_jax.files import json_ready
from ssm_jax.predictor import RoIRows, softmax
from ssm_jax.report import evaluate
from tests.helpers.fake_predictions import blob, box_of, label_map, prediction

H, W = 48, 64
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>_1.png'


def roi_rows(rng, count):
    """128 rows of `count` distinct boxes."""
    if not count:
        return RoIRows(np.zeros((128, 5), np.float32), np.zeros((128, 4), np.float32), 0)
    lengths = np.full(count, 128 // count)
    lengths[0] += 128 - lengths.sum()
    rows = np.column_stack([np.sort(rng.random(count))[::-1], rng.normal(0, 1, (count, 4))])
    corners = rng.uniform(0, 30, (count, 2))
    boxes = np.column_stack([corners, corners + rng.uniform(1, 18, (count, 2))])
    shaped = (np.repeat(part.astype(np.float32), lengths, axis=0) for part in (rows, boxes))
    return RoIRows(*shaped, count)


def filled(seed=0, seg=8, cls=24, classes=("normal", "cp", "covid")):
    """An Evaluator and the slices of a report."""
    rng = np.random.default_rng(seed)
    evaluator, slices = Evaluator(classes), []
    for k in range(seg):
        masks = [blob(H, W, (24, 16), (9, 8)), blob(H, W, (24, 48), (9, 8))]
        found = [np.roll(mask, rng.integers(0, 4), 1) for mask in masks]
        made = prediction(found, np.sort(rng.random(2))[::-1], H, W, logits=rng.normal(0, 1, 3))
        made.roi_batch = roi_rows(rng, [0, 1, 40, 128][k % 4])
        file, instances = (HOSTILE, f"scan{k}_1.png")[k > 0], label_map(masks, H, W)
        boxes = np.array([box_of(mask) for mask in masks])
        figures = evaluator.add_segmentation(made, instances, boxes, file_name=file)
        image = rng.integers(0, 200, (H, W), np.uint8)
        group = ("best", "worst", "random")[k % 3]
        truth = {"instances": instances, "figures": figures}
        slices.append(PredictedSlice("seg", file, image, made, group=group, **truth))
    for k in range(cls):
        label, logits = k % len(classes), rng.normal(0, 2, len(classes)).astype(np.float32)
        file = f"{label}_p{k}_1_{k}.png"
        evaluator.add_classification(logits, label, softmax(logits), file)
        if k < 3:
            made = prediction([], [], H, W, logits=logits)
            made.roi_batch = roi_rows(rng, 20)
            image = rng.integers(0, 200, (H, W, 3), np.uint8)
            group = ("best", "worst", "random")[k]
            slices.append(PredictedSlice("cls", file, image, made, label=label, group=group))
    return evaluator, slices


def sample(seed=0, system="SSMS", seg=8, cls=24, **changes):
    """Content of a metrics.json, and slices."""
    evaluator, slices = filled(seed, seg, cls)
    model = {
        "name": "SSMˢ (ResNet18+FPN)**",
        "system": system,
        "backbone": "resnet18",
        "blocks": 3,
        "branches": 2,
        "image_classes": 3,
        "image_size": 512,
        "parameters": 8267759,
        "trainable_segmentation": 6000000,
        "trainable_classification": 4031043,
        "checkpoint": "/home/somebody/runs/<b>first & last/9",
        "step": 150000,
        "training_minutes": 341.5,
    }
    common = {"folder": "/data/<i>", "source": "/data/<i>", "split": "test", "sizes": ["512×512"]}
    common |= {"patients": None, "training_slices": 650}
    data = {
        "seg": {
            **common,
            "slices": seg,
            "of": 100,
            "objects": 16,
            "slices_without_objects": 0,
            "min_area": 100,
        },
        "cls": {**common, "slices": cls, "of": cls, "classes": [8, 8, 8], "patients": 24},
    }
    options = evaluate.Options(samples=50)
    result = {
        "format": evaluate.FORMAT,
        "version": evaluate.VERSION,
        **evaluate.all_figures(evaluator, options),
        "score_threshold": 0.75,
        "nms_threshold": 0.5,
        "model": model | changes,
        "data": {part: entry for part, entry in data.items() if entry["slices"]},
        "run": {
            "command": "ssm-jax evaluate --output_dir='a<b>'",
            "date": "2020-12-01T12:00:00+00:00",
            "seconds": 12.5,
            "device": "cpu",
            "versions": {"ssm_jax": "0.1.0", "python": "3.11"},
        },
    }
    return json_ready(result), slices
