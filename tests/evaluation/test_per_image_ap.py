"""Per-image AP against an oracle written from its definition: loops, pixels and fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_jax.evaluation import per_image_ap
from ssm_jax.ops import rle

PERCENTS = range(50, 100, 5)


def oracle_iou(a, b):
    both = either = 0
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            both += bool(a[y, x] and b[y, x])
            either += bool(a[y, x] or b[y, x])
    return Fraction(both, either) if either else Fraction(0)


def oracle_ap(iou, scores, labels, truth_labels, threshold):
    """iou: nested lists of Fraction [P][G]; threshold: Fraction."""
    predicted, objects = len(scores), len(truth_labels)
    if not predicted and not objects:
        return Fraction(1)
    if not predicted or not objects:
        return Fraction(0)
    ranking = sorted(range(predicted), key=lambda p: (-scores[p], p))
    taken = set()
    for g in range(objects):
        best = None
        for p in ranking:
            if labels[p] != truth_labels[g] or not iou[p][g] > threshold:
                continue
            if best is None or iou[p][g] > iou[best][g]:
                best = p
        if best is not None:
            taken.add(best)
    curve = []  # (recall, precision) after each rank
    for rank in range(1, predicted + 1):
        true = sum(p in taken for p in ranking[:rank])
        curve.append((Fraction(true, objects), Fraction(true, rank)))
    # The interpolated precision is constant between multiples of 1 / objects.
    area = Fraction(0)
    for k in range(1, objects + 1):
        reached = [precision for recall, precision in curve if recall >= Fraction(k, objects)]
        area += (max(reached) if reached else 0) * Fraction(1, objects)
    return area


def rectangles(rng, count, size=9):
    masks = np.zeros((count, size, size), bool)
    for mask in masks:
        (y0, y1), (x0, x1) = (np.sort(rng.integers(0, size + 1, 2)) for _ in range(2))
        mask[y0:y1, x0:x1] = True
    return masks


def random_case(seed):
    rng = np.random.default_rng(seed)
    truths = rectangles(rng, rng.integers(0, 6))
    predictions = rectangles(rng, rng.integers(0, 8))
    for p in range(len(predictions)):  # most predictions are a truth, shifted or copied
        if len(truths) and rng.random() < 0.75:
            shift = rng.integers(-1, 2, 2) * (rng.random() < 0.6)
            predictions[p] = np.roll(truths[rng.integers(len(truths))], shift, (0, 1))
    classes = rng.integers(1, 3)
    return {
        "predictions": predictions,
        "truths": truths,
        "scores": rng.choice([0.25, 0.5, 0.75, 1.0], len(predictions)),  # many ties
        "labels": rng.integers(1, classes + 1, len(predictions)),
        "truth_labels": rng.integers(1, classes + 1, len(truths)),
    }


def test_equals_the_oracle_on_200_random_images():
    seen, empties = set(), set()
    for seed in range(200):
        case = random_case(seed)
        exact = [[oracle_iou(p, g) for g in case["truths"]] for p in case["predictions"]]
        rest = (case["scores"], case["labels"], case["truth_labels"])
        expected = [float(oracle_ap(exact, *rest, Fraction(t, 100))) for t in PERCENTS]
        iou = rle.pairwise_iou(
            *([rle.encode(m) for m in case[k]] for k in ("predictions", "truths"))
        )
        assert iou.shape == (len(case["predictions"]), len(case["truths"]))
        actual = per_image_ap.average_precisions(iou, *rest)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12, err_msg=f"case {seed}")
        seen.update(np.round(expected, 6))
        empties.add((len(case["predictions"]) > 0, len(case["truths"]) > 0))
    assert len(seen) > 30  # the cases are not trivial
    assert len(empties) == 4  # with and without predictions, with and without objects


def average_precision(*case, threshold):
    """At one threshold."""
    (figure,) = per_image_ap.average_precisions(*case, (threshold,))
    return figure


@st.composite
def matrices(draw):
    predicted, objects = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    twentieths = st.integers(0, 20)  # so that IoUs fall exactly on thresholds

    def entries(values, count):
        return draw(st.lists(values, min_size=count, max_size=count))

    iou = [entries(twentieths, objects) for _ in range(predicted)]
    classes = st.integers(1, 2)
    scores = entries(st.integers(0, 3), predicted)
    return iou, scores, entries(classes, predicted), entries(classes, objects)


@given(matrices(), st.sampled_from(PERCENTS))
def test_equals_the_oracle_on_any_iou_matrix(case, percent):
    twentieths, scores, labels, truth_labels = case
    exact = [[Fraction(n, 20) for n in row] for row in twentieths]
    iou = np.array(twentieths, float).reshape(len(scores), len(truth_labels)) / 20
    actual = average_precision(iou, scores, labels, truth_labels, threshold=percent / 100)
    expected = oracle_ap(exact, scores, labels, truth_labels, Fraction(percent, 100))
    assert actual == pytest.approx(float(expected), abs=1e-12)
    assert 0 <= actual <= 1


def test_hand_computed():
    # Ranks: hit, miss, hit; three objects: 1/3 * 1 + 1/3 * 2/3.
    iou = np.array([[0.9, 0, 0], [0, 0.4, 0], [0, 0.8, 0]])
    figures = per_image_ap.average_precisions(iou, [0.9, 0.8, 0.7], [1, 1, 1], [1, 1, 1])
    assert figures[0] == pytest.approx(1 / 3 + 2 / 9)
    assert figures[6] == pytest.approx(1 / 3 * (1 + 0))  # 0.80 is not above 0.80
    assert figures[5] == pytest.approx(1 / 3 + 2 / 9)
    assert figures[9] == 0


def test_a_prediction_taken_twice_counts_once():
    assert average_precision([[0.6, 0.7]], [1.0], [1], [1, 1], threshold=0.5) == 0.5


def test_an_object_takes_the_best_overlap_not_the_best_score():
    # The first-ranked prediction overlaps enough, but the second overlaps more.
    iou = [[0.6], [0.9]]
    assert average_precision(iou, [0.9, 0.8], [1, 1], [1], threshold=0.5) == 0.5
    # Of another class, the second does not count.
    assert average_precision(iou, [0.9, 0.8], [1, 2], [1], threshold=0.5) == 1.0


@pytest.mark.parametrize(("predicted", "objects", "value"), [(0, 0, 1), (2, 0, 0), (0, 2, 0)])
def test_empty(predicted, objects, value):
    figures = per_image_ap.average_precisions(
        np.zeros((predicted, objects)), np.ones(predicted), np.ones(predicted), np.ones(objects)
    )
    assert figures.tolist() == [value] * 10


def test_summary_is_the_mean_over_images():
    rows = [np.linspace(1, 0.1, 10), np.zeros(10), np.ones(10)]
    summary = per_image_ap.summarize(rows)
    assert summary["ap50"] == pytest.approx(2 / 3)
    assert summary["ap75"] == pytest.approx(1.5 / 3)
    assert summary["ap"] == pytest.approx(1.55 / 3)
    assert all(np.isnan(value) for value in per_image_ap.summarize([]).values())


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        per_image_ap.average_precisions(np.zeros((1, 2)), [1.0, 0.5], [1, 1], [1])
    with pytest.raises(ValueError, match="scores and labels"):
        per_image_ap.average_precisions(np.zeros((2, 1)), [1.0, 0.5], [1], [1])
    with pytest.raises(ValueError, match="10 figures an image"):
        per_image_ap.summarize([np.zeros(3)])
