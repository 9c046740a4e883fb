"""COCO figures against pycocotools run on the written JSON, and by hand."""

import copy
import sys
import threading
import time

import numpy as np
import pytest
from pycocotools import cocoeval
from pycocotools.coco import COCO

from ssm_jax.evaluation import coco
from ssm_jax.files import write_json
from ssm_jax.ops import rle
from tests.helpers.fake_predictions import blob, box_of

SIZE = 128


def random_recorder(seed, images=6):
    """Ellipses of all three COCO sizes, predictions that are shifted or stray, two classes."""
    rng = np.random.default_rng(seed)
    recorder = coco.CocoRecorder({1: "ground glass", 2: "consolidation"})

    def ellipse(largest):
        return blob(SIZE, SIZE, rng.uniform(20, 108, 2), rng.uniform(3, largest, 2))

    for _ in range(images):
        image_id = recorder.add_image(SIZE, SIZE)
        truths = [ellipse(rng.choice([10, 40, 75])) for _ in range(rng.integers(0, 5))]
        predictions = [np.roll(t, rng.integers(-4, 5, 2), (0, 1)) for t in truths]
        predictions += [ellipse(40) for _ in range(rng.integers(0, 4))]
        labels = rng.integers(1, 3, len(truths))
        recorder.add_truth(
            image_id, [rle.encode(t) for t in truths], [box_of(t) for t in truths], labels
        )
        boxes = np.array([box_of(p) for p in predictions], np.float32).reshape(-1, 4)
        recorder.add_detections(
            image_id,
            [rle.encode(p) for p in predictions],
            boxes + rng.normal(0, 1, boxes.shape).astype(np.float32),
            rng.choice([0.3, 0.5, 0.7, 0.9], len(predictions)),
            np.concatenate([labels, rng.integers(1, 3, len(predictions) - len(labels))]),
        )
    return recorder


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", coco.KINDS)
def test_equals_pycocotools_on_the_written_files(tmp_path, seed, kind):
    recorder = random_recorder(seed)
    before = copy.deepcopy((recorder.truth, recorder.detections))
    figures = recorder.evaluate(kind)
    assert (recorder.truth, recorder.detections) == before
    write_json(tmp_path / "truth.json", recorder.truth)
    write_json(tmp_path / "deep" / "results.json", recorder.results(kind))
    truth = COCO(str(tmp_path / "truth.json"))
    results = truth.loadRes(str(tmp_path / "deep" / "results.json"))
    direct = cocoeval.COCOeval(truth, results, kind)
    direct.evaluate()
    direct.accumulate()
    direct.summarize()
    expected = {k: v if v >= 0 else np.nan for k, v in zip(coco.FIGURES, direct.stats, strict=True)}
    np.testing.assert_equal(figures, expected)
    assert 0.05 < figures["AP50"] < 0.999


def test_hand_computed():
    """Two 40x40 objects; a perfect detection, a stray one, and one with an IoU of 0.6."""
    masks = np.zeros((4, 100, 100), bool)
    masks[0, :40, :40] = True
    masks[1, 50:90, 50:90] = True
    masks[2, 60:90, 10:40] = True  # stray
    masks[3, 50:90, 60:100] = True  # 30 * 40 of 50 * 40 pixels shared with masks[1]
    boxes = [box_of(mask) for mask in masks]
    recorder = coco.CocoRecorder({1: "lesion"})
    image_id = recorder.add_image(100, 100)
    encoded = [rle.encode(mask) for mask in masks]
    recorder.add_truth(image_id, encoded[:2], boxes[:2], [1, 1])
    recorder.add_detections(
        image_id,
        [encoded[k] for k in (0, 2, 3)],
        [boxes[k] for k in (0, 2, 3)],
        [0.9, 0.8, 0.7],
        [1] * 3,
    )
    for kind in coco.KINDS:
        figures = recorder.evaluate(kind)
        # 101 recall points: 51 of them (0 to 0.50) at precision 1, the others at 2/3 or 0.
        low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
        assert figures["AP50"] == pytest.approx(low)
        assert figures["AP75"] == pytest.approx(high)
        assert figures["AP"] == pytest.approx((3 * low + 7 * high) / 10)  # IoU 0.6 counts at 0.60
        # The stray one is small (30 * 30) and does not count among the medium ones.
        assert figures["APm"] == pytest.approx((3 * 1 + 7 * high) / 10)
        assert np.isnan(figures["APs"])
        assert np.isnan(figures["ARl"])
        assert figures["AR1"] == pytest.approx(0.5)
        assert figures["AR100"] == pytest.approx((3 * 1 + 7 * 0.5) / 10)
    assert recorder.truth["annotations"][1]["bbox"] == [50, 50, 40, 40]
    assert recorder.truth["annotations"][1]["area"] == 1600


def test_no_predictions_score_zero_and_no_truth_is_undefined():
    recorder = coco.CocoRecorder({1: "lesion"})
    image_id = recorder.add_image(SIZE, SIZE)
    mask = blob(SIZE, SIZE, (60, 60), (20, 20))
    recorder.add_truth(image_id, [rle.encode(mask)], [box_of(mask)], [1])
    # The area is that of the mask, not of its box.
    assert recorder.truth["annotations"][0]["area"] == mask.sum() < 41 * 41
    for kind in coco.KINDS:
        figures = recorder.evaluate(kind)
        assert figures["AP"] == figures["AR100"] == 0
        assert np.isnan(figures["APl"])
    empty = coco.CocoRecorder({1: "lesion"})
    image_id = empty.add_image(SIZE, SIZE)
    empty.add_detections(image_id, [rle.encode(mask)], [box_of(mask)], [0.9], [1])
    for kind in coco.KINDS:
        assert all(np.isnan(value) for value in empty.evaluate(kind).values())
        assert all(np.isnan(v) for v in coco.CocoRecorder({1: "x"}).evaluate(kind).values())


def test_prints_nothing_and_leaves_stdout_and_pycocotools_alone(capsys, monkeypatch):
    recorder = random_recorder(0)
    stdout, stop, lines = sys.stdout, threading.Event(), 0

    def chatter():
        nonlocal lines
        while not stop.is_set():
            print("other thread")
            lines += 1
            time.sleep(0.001)

    thread = threading.Thread(target=chatter)
    thread.start()
    recorder.evaluate("segm")
    stop.set()
    thread.join()
    assert sys.stdout is stdout
    assert "print" not in vars(cocoeval)
    output = capsys.readouterr()
    assert output.out == "other thread\n" * lines
    assert not output.err
    COCO().createIndex()  # the real class still prints
    assert "creating index" in capsys.readouterr().out


def test_bad_input_is_refused():
    recorder = random_recorder(0)
    with pytest.raises(ValueError, match="choose from"):
        recorder.evaluate("keypoints")
    with pytest.raises(ValueError, match=r"truth does not have: \[99\]"):
        coco.evaluate(recorder.truth, [{**recorder.results("bbox")[0], "image_id": 99}], "bbox")
    image_id = recorder.add_image(SIZE, SIZE)
    recorder.add_detections(image_id, None, [[0, 0, 5, 5]], [0.5], [1])
    with pytest.raises(ValueError, match="without a mask"):
        recorder.evaluate("segm")
    assert recorder.evaluate("bbox")["AP"] > 0
