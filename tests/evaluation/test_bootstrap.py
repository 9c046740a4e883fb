"""Bootstrap intervals against plain loops, pycocotools on repeated images, and known coverage."""

import copy

import numpy as np
import pytest

from ssm_jax.data import patients
from ssm_jax.evaluation import Evaluator, bootstrap, classification, coco, per_image_ap
from ssm_jax.evaluation.coco_resampling import resampled_figures
from ssm_jax.evaluation.intervals import intervals
from tests.evaluation.test_coco import random_recorder
from tests.helpers.fake_predictions import blob, box_of, label_map, prediction

H, W = 40, 60


def test_draws_are_samples_with_replacement():
    drawn = bootstrap.draw(7, samples=5000, seed=3)
    assert drawn.shape == (5000, 7)
    assert (drawn.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(drawn, bootstrap.draw(7, samples=5000, seed=3))
    assert (drawn != bootstrap.draw(7, samples=5000, seed=4)).any()
    # Mean 1, and the variance of a multinomial, 1 - 1 / 7.
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(drawn.var(axis=0), 6 / 7, atol=0.08)
    with pytest.raises(ValueError, match="nothing to draw"):
        bootstrap.draw(0)


def test_the_interval_is_a_percentile_and_leaves_undefined_samples_out():
    values = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert bootstrap.interval(values) == pytest.approx((25, 975))
    assert bootstrap.interval(values, level=0.5) == pytest.approx((250, 750))
    assert bootstrap.interval(np.append(values, [np.nan] * 50)) == pytest.approx((25, 975))
    assert np.isnan(bootstrap.interval(np.full(3, np.nan))).all()


def repeated(units, counts):
    """Indices of the slices of a sample, one by one."""
    return [
        k
        for unit, count in enumerate(counts)
        for _ in range(count)
        for k in np.flatnonzero(units == unit)
    ]


def test_resampled_figures_equal_a_plain_loop():
    rng = np.random.default_rng(1)
    units = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    values = rng.random((len(units), 3))
    labels, predicted = rng.integers(0, 3, (2, len(units)))
    drawn = bootstrap.draw(5, samples=40, seed=0)
    means = bootstrap.resampled_means(values, units, drawn)
    confusions = bootstrap.resampled_confusions(labels, predicted, 3, units, drawn)
    stacked = classification.stacked_metrics(confusions, classification.IMAGE_CLASSES)
    for row, counts in enumerate(drawn):
        slices = repeated(units, counts)
        np.testing.assert_allclose(means[row], values[slices].mean(axis=0))
        confusion = classification.confusion_matrix(labels[slices], predicted[slices])
        np.testing.assert_array_equal(confusions[row], confusion)
        expected = classification.classification_metrics(confusion)
        del expected["confusion"]
        np.testing.assert_equal({k: v[row] for k, v in stacked.items()}, expected)


def repeated_images(recorder, weights):
    """Truth and results with every image as often as its weight says, under ids of its own."""
    truth = {**recorder.truth, "images": [], "annotations": []}
    results = {kind: [] for kind in coco.KINDS}
    for image, count in zip(recorder.truth["images"], weights, strict=True):
        for _ in range(count):
            number = len(truth["images"]) + 1
            truth["images"].append({**image, "id": number})
            for annotation in recorder.truth["annotations"]:
                if annotation["image_id"] == image["id"]:
                    entry = {"id": len(truth["annotations"]) + 1, "image_id": number}
                    truth["annotations"].append({**copy.deepcopy(annotation), **entry})
            for kind in coco.KINDS:
                own = [r for r in recorder.results(kind) if r["image_id"] == image["id"]]
                results[kind] += [{**r, "image_id": number} for r in own]
    return truth, results


@pytest.mark.parametrize("seed", range(3))
def test_coco_figures_equal_pycocotools_on_repeated_images(seed):
    recorder = random_recorder(seed)
    ranks = np.random.default_rng(seed).permutation(len(recorder.detections))
    for detection, rank in zip(recorder.detections, ranks, strict=True):
        detection["score"] = 0.9 - 0.01 * rank  # no ties
    weights = bootstrap.draw(6, samples=12, seed=seed)
    weights[0] = 1  # the set itself
    resampled = {kind: resampled_figures(recorder.run(kind), weights) for kind in coco.KINDS}
    for row, counts in enumerate(weights):
        truth, results = repeated_images(recorder, counts)
        for kind in coco.KINDS:
            expected = coco.evaluate(truth, results[kind], kind)
            for name, values in resampled[kind].items():
                np.testing.assert_allclose(values[row], expected[name], rtol=1e-9, err_msg=name)
    assert len(np.unique(resampled["segm"]["AP"])) > 6


def test_coco_figures_of_samples_without_objects_or_detections():
    recorder = coco.CocoRecorder({1: "lesion", 2: "never seen"})
    mask = blob(H, W, (20, 30), (9, 9))
    shapes = ([coco.rle_lib.encode(mask)], np.array([box_of(mask)]))
    recorder.add_truth(recorder.add_image(H, W), *shapes, [1])
    recorder.add_image(H, W)  # nothing
    third = recorder.add_image(H, W)
    run = recorder.run("segm")
    weights = np.array([[1, 1, 0], [0, 2, 0], [2, 0, 1]])
    np.testing.assert_array_equal(resampled_figures(run, weights)["AP"], [0, np.nan, 0])
    recorder.add_detections(1, *shapes, [0.9], [1])
    recorder.add_detections(third, *shapes, [0.95], [1])  # ranks above the right one
    figures = resampled_figures(recorder.run("segm"), weights)
    np.testing.assert_allclose(figures["AP50"], [1, np.nan, 2 / 3])
    with pytest.raises(ValueError, match="weights of 2 images for 3"):
        resampled_figures(run, weights[:, :2])


def test_intervals_of_a_mean_cover_it_as_often_as_they_say():
    """200 sets of 60 patients with 1 to 5 equal slices each; slices as units cover too rarely."""
    rng = np.random.default_rng(0)
    covered = {"patients": 0, "slices": 0}
    for seed in range(200):
        sizes = rng.integers(1, 6, 60)
        units = np.repeat(np.arange(60), sizes)
        values = np.repeat(rng.random(60) < 0.6, sizes).astype(float)[:, None]
        for name, numbers in (("patients", units), ("slices", np.arange(len(units)))):
            drawn = bootstrap.draw(int(numbers.max()) + 1, samples=400, seed=seed)
            low, high = bootstrap.interval(bootstrap.resampled_means(values, numbers, drawn)[:, 0])
            covered[name] += low <= 0.6 <= high
    # A binomial of 200 at 0.95 is above 181 and below 198 in 99% of the cases.
    assert 181 <= covered["patients"] <= 198
    assert covered["slices"] < 165


def test_patients_of_file_names():
    assert patients.classification_patient("2_96_1328_0035.png") == "2_96"
    assert patients.classification_patient("2_96_1328.png") is None
    assert patients.segmentation_patient("1328_7.jpg") == "1328"
    assert patients.segmentation_patient("a_b_007.png") == "a_b"
    assert patients.segmentation_patient("slice7.png") is None
    assert patients.segmentation_patient("hospital/a_7.png") == "hospital/a"
    assert patients.classification_patient("hospital/2_96_1328_0035.png") == "hospital/2_96"
    numbers, known = patients.clusters(["b", "a", "b", "c"])
    assert known
    assert numbers.tolist() == [1, 0, 1, 2]
    numbers, known = patients.clusters(["b", None, "b"])
    assert not known
    assert numbers.tolist() == [0, 1, 2]


def filled(seg_files, cls_files, seed=0):
    rng = np.random.default_rng(seed)
    evaluator = Evaluator()
    for file in seg_files:
        masks = [blob(H, W, (20, 15), (8, 8)), blob(H, W, (20, 45), (8, 8))]
        found = [np.roll(mask, rng.integers(0, 5), 0) for mask in masks]
        truth = label_map(masks, H, W), np.array([box_of(mask) for mask in masks])
        evaluator.add_segmentation(prediction(found, rng.random(2), H, W), *truth, file_name=file)
    for file in cls_files:
        evaluator.add_classification(rng.random(3), int(file[0]), file_name=file)
    return evaluator


def test_intervals_of_an_evaluator_equal_a_plain_loop():
    seg_files = [f"{scan}_{k}.png" for scan in "abcde" for k in range(2)]
    cls_files = [f"{k % 3}_p{k // 2}_1_{k}.png" for k in range(20)]
    evaluator = filled(seg_files, cls_files)
    found = intervals(evaluator, samples=60, seed=5)
    assert found.units == {
        "seg": {"kind": "patients", "count": 5},
        "cls": {"kind": "patients", "count": 20},  # <class>_<patient>: no two slices share both
    }
    units = np.repeat(np.arange(5), 2)
    summaries = [
        per_image_ap.summarize([evaluator.per_image[k] for k in repeated(units, counts)])
        for counts in bootstrap.draw(5, samples=60, seed=5)
    ]
    for name in ("ap50", "ap75", "ap"):
        expected = np.percentile([s[name] for s in summaries], [2.5, 97.5])
        np.testing.assert_allclose(found.figures[name], expected)
    metrics = evaluator.metrics()
    assert {"coco_segm_AP", "coco_bbox_AP75", "accuracy", "f1_macro"} <= set(found.figures)
    assert found.figures["ap"][0] < metrics["ap"] < found.figures["ap"][1]
    assert found.figures["accuracy"][0] < metrics["accuracy"] < found.figures["accuracy"][1]
    by_slice = intervals(evaluator, samples=60, seed=5, unit="slices")
    assert by_slice.units["seg"] == {"kind": "slices", "count": 10}
    with pytest.raises(ValueError, match="choose from"):
        intervals(evaluator, unit="voxels")


def test_one_patient_has_no_interval():
    evaluator = filled(["a_1.png", "a_2.png"], ["0_p_1_1.png", "1_p_1_2.png"])
    found = intervals(evaluator, samples=20)
    assert np.isnan(found.figures["ap"]).all()
    assert not np.isnan(found.figures["accuracy"]).any()
    assert intervals(Evaluator()).figures == {}
