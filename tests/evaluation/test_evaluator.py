"""The accumulator: the same figures as its parts, clear errors, JSON without NaN."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ssm_jax.evaluation import Evaluator, classification
from ssm_jax.files import json_ready
from ssm_jax.ops import rle
from tests.helpers.fake_predictions import blob, box_of, label_map, prediction

H, W = 60, 90


def two_objects():
    return [blob(H, W, (20, 25), (12, 15)), blob(H, W, (40, 65), (9, 14))]


def test_segmentation_figures():
    masks = two_objects()
    truth = label_map(masks, H, W), np.array([box_of(mask) for mask in masks])
    evaluator = Evaluator()
    perfect = evaluator.add_segmentation(prediction(masks, [0.9, 0.8], H, W), *truth)
    assert perfect.tolist() == [1] * 10
    half = evaluator.add_segmentation(prediction(masks[:1], [0.9], H, W), *truth, file_name="b.png")
    assert half.tolist() == [0.5] * 10
    nothing = prediction([], [], H, W)
    none = evaluator.add_segmentation(nothing, *truth)
    assert none.tolist() == [0] * 10
    clean = evaluator.add_segmentation(nothing, np.zeros((H, W), np.uint8), np.zeros((0, 4)))
    assert clean.tolist() == [1] * 10
    metrics = evaluator.metrics()
    assert metrics["ap50"] == metrics["ap75"] == metrics["ap"] == pytest.approx(2.5 / 4)
    # 3 of 6 objects found without an error: precision 1 up to recall 0.5.
    assert metrics["coco_segm_AP"] == metrics["coco_bbox_AP50"] == pytest.approx(51 / 101)
    assert metrics["coco_segm_AR100"] == pytest.approx(0.5)
    assert (metrics["seg_slices"], metrics["objects"], metrics["detections"]) == (4, 6, 3)
    assert sum(name.startswith("coco_") for name in metrics) == 24
    assert "accuracy" not in metrics
    assert evaluator.seg_files == ["", "b.png", "", ""]
    assert [i["file_name"] for i in evaluator.recorder.truth["images"]] == evaluator.seg_files


def test_lesion_classes_must_agree():
    masks = two_objects()
    truth = label_map(masks, H, W), np.array([box_of(mask) for mask in masks])
    evaluator = Evaluator(lesion_classes={1: "ground glass", 2: "consolidation"})
    swapped = prediction(masks, [0.9, 0.8], H, W, labels=[1, 1])
    figures = evaluator.add_segmentation(swapped, *truth, truth_labels=np.array([1, 2]))
    assert figures.tolist() == [0.5] * 10
    assert evaluator.metrics()["coco_segm_AP"] == pytest.approx(0.5)  # 1 and 0 in two classes


def test_segmentation_errors_name_the_file():
    masks = two_objects()
    instances, boxes = label_map(masks, H, W), np.array([box_of(mask) for mask in masks])
    good, evaluator = prediction(masks, [0.9, 0.8], H, W), Evaluator()
    with pytest.raises(ValueError, match=r"a\.png: the prediction is for 60x90 .* \[60, 80\]"):
        evaluator.add_segmentation(good, instances[:, :80], boxes, file_name="a.png")
    with pytest.raises(
        ValueError, match=r"a\.png: the label map holds the objects \[1, 2\], but 3"
    ):
        padded = np.concatenate([boxes, np.zeros((1, 4))])
        evaluator.add_segmentation(good, instances, padded, file_name="a.png")
    good.masks = None
    with pytest.raises(ValueError, match="no masks"):
        evaluator.add_segmentation(good, instances, boxes)
    assert evaluator.metrics() == {}


def test_classification_figures():
    evaluator = Evaluator(class_shares=(1, 1, 2))
    outputs = [(0, 0), (np.int64(2), 0), (np.array([0.1, 3.0, -1.0]), 1), (2, 2), (1, 2)]
    for output, label in outputs:
        evaluator.add_classification(output, label)
    expected = np.array([[1, 0, 1], [0, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(evaluator.confusion(), expected)
    metrics = evaluator.metrics()
    assert metrics.pop("cls_slices") == 5
    assert metrics == classification.classification_metrics(expected, shares=(1, 1, 2))
    with pytest.raises(ValueError, match="3 class logits"):
        evaluator.add_classification(np.zeros(2), 0)
    with pytest.raises(ValueError, match="label 3"):
        evaluator.add_classification(0, 3)
    assert len(evaluator.labels) == len(evaluator.predicted) == 5


def test_two_image_classes():
    evaluator = Evaluator(image_classes=("control", "covid"))
    for output, label in [(0, 0), (1, 1), (0, 1)]:
        evaluator.add_classification(output, label)
    metrics = evaluator.metrics()
    assert metrics["sensitivity_covid"] == 0.5
    assert "f1_weighted_paper" not in metrics


def test_metrics_as_json():
    evaluator = Evaluator()
    evaluator.add_segmentation(
        prediction([], [], H, W), np.zeros((H, W), np.uint8), np.zeros((0, 4))
    )
    evaluator.add_classification(0, 0)
    metrics = json_ready({**evaluator.metrics(), "array": np.float32([1, np.inf])})
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["coco_segm_AP"] is None
    assert metrics["sensitivity_covid"] is None
    assert metrics["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert metrics["array"] == [1.0, None]


def test_run_lengths():
    rng = np.random.default_rng(0)
    masks = rng.random((5, 13, 17)) < 0.4
    masks[4] = False
    encoded = [rle.encode(mask) for mask in masks]
    for mask, entry in zip(masks, encoded, strict=True):
        assert json.loads(json.dumps(entry)) == entry
        np.testing.assert_array_equal(rle.decode(entry), mask)
        np.testing.assert_array_equal(coco_mask.decode(entry), mask)
        assert rle.area(entry) == mask.sum()
    union = (masks[:, None] | masks).sum((2, 3))
    expected = (masks[:, None] & masks).sum((2, 3)) / np.maximum(union, 1)
    np.testing.assert_allclose(rle.pairwise_iou(encoded, encoded), expected)
    assert rle.pairwise_iou([], encoded).shape == (0, 5)
    with pytest.raises(ValueError, match="different sizes"):
        rle.pairwise_iou(encoded, [rle.encode(masks[0, :5])])
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        rle.encode(masks)


def test_folders_have_figures_of_their_own():
    """The figures of a folder are those of an evaluator that sees nothing else."""
    rng = np.random.default_rng(0)
    whole, alone = Evaluator(), {"a": Evaluator(), "b": Evaluator()}
    truth = np.zeros((H, W), np.uint8)
    truth[2:12, 3:9] = 1
    for k in range(6):
        folder = "ab"[k % 2]
        found = truth if rng.random() < 0.5 else np.roll(truth, 4, axis=1)
        arguments = (prediction([found > 0], [0.9], H, W), truth, [[3, 2, 9, 12]])
        whole.add_segmentation(*arguments, folder=folder)
        alone[folder].add_segmentation(*arguments)
    for label in rng.integers(0, 3, 20):
        output = int(rng.integers(0, 3))
        whole.add_classification(output, label, folder="b")
        alone["b"].add_classification(output, label)
    metrics = whole.metrics()
    assert "a/accuracy" not in metrics and metrics["b/cls_slices"] == 20
    assert metrics["a/ap50"] != metrics["b/ap50"] or metrics["a/ap"] != metrics["b/ap"]
    for folder, evaluator in alone.items():
        expected = evaluator.metrics()
        for name, value in metrics.items():
            if name.startswith(f"{folder}/"):
                np.testing.assert_equal(value, expected[name.removeprefix(f"{folder}/")])
    assert {name for name in metrics if "/" not in name} >= {"ap50", "accuracy"}
