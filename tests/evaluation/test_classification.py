"""Classification metrics against the author's confusion matrix and plain counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_jax.evaluation import classification as c

# Confusion matrix of SSM^S (ResNet-18, three blocks) in the author's README; rows are the truth.
AUTHOR = np.array([[9322, 123, 5], [174, 7139, 82], [27, 277, 4042]])


def pairs(matrix):
    truth, predicted = np.indices(matrix.shape)
    return np.repeat(truth.ravel(), matrix.ravel()), np.repeat(predicted.ravel(), matrix.ravel())


def test_the_authors_matrix_gives_the_figures_of_table_3():
    np.testing.assert_array_equal(c.confusion_matrix(*pairs(AUTHOR)), AUTHOR)
    metrics = c.classification_metrics(AUTHOR)
    # The paper cuts its sensitivities after two digits: 4042 / 4346 is 93.005%.
    for name, printed in (("normal", 98.64), ("cp", 96.53), ("covid", 93.00)):
        assert np.floor(10000 * metrics[f"sensitivity_{name}"]) / 100 == printed
    assert metrics["sensitivity_covid"] == 4042 / 4346
    assert f"{100 * metrics['accuracy']:.2f}" == "96.75"
    assert f"{metrics['f1_weighted_paper']:.4f}" == "0.9676"
    assert f"{metrics['f1_weighted']:.4f}" == "0.9675"  # exact shares of the test split
    assert f"{metrics['f1_macro']:.4f}" == "0.9642"
    assert metrics["confusion"] == AUTHOR.tolist()
    with_shares = c.classification_metrics(AUTHOR, shares=c.PAPER_SHARES)
    assert with_shares["f1_weighted"] == metrics["f1_weighted_paper"]


def counted(labels, predicted, classes):
    """Sensitivity and F1 of each class by counting; None where undefined."""
    recall, f1 = [], []
    for k in range(classes):
        true = sum(a == k and b == k for a, b in zip(labels, predicted, strict=True))
        precision = true / predicted.count(k) if k in predicted else None
        recall.append(true / labels.count(k) if k in labels else None)
        if precision is None and recall[-1] is None:
            f1.append(None)
        elif not precision or not recall[-1]:
            f1.append(0.0)
        else:
            f1.append(2 * precision * recall[-1] / (precision + recall[-1]))
    return recall, f1


@given(st.data(), st.integers(2, 4))
def test_equals_counting(data, classes):
    number = st.integers(0, classes - 1)
    drawn = data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=12))
    labels, predicted = [a for a, _ in drawn], [b for _, b in drawn]
    names = [f"class{k}" for k in range(classes)]
    metrics = c.classification_metrics(c.confusion_matrix(labels, predicted, classes), names)
    recall, f1 = counted(labels, predicted, classes)
    for prefix, values in (("sensitivity", recall), ("f1", f1)):
        expected = [np.nan if value is None else value for value in values]
        actual = [metrics[f"{prefix}_{name}"] for name in names]
        np.testing.assert_allclose(actual, expected, atol=1e-12)
    right = sum(a == b for a, b in drawn)
    assert metrics["accuracy"] == pytest.approx(right / len(drawn))
    defined = [value for value in f1 if value is not None]
    assert metrics["f1_macro"] == pytest.approx(sum(defined) / len(defined))
    share = [labels.count(k) / len(labels) for k in range(classes)]
    weighted = sum(s * value for s, value in zip(share, f1, strict=True) if value is not None)
    assert metrics["f1_weighted"] == pytest.approx(weighted)


def test_a_class_that_does_not_occur_is_left_out():
    metrics = c.classification_metrics(c.confusion_matrix([0, 0, 2], [0, 2, 2]))
    assert np.isnan(metrics["sensitivity_cp"])
    assert np.isnan(metrics["f1_cp"])
    assert metrics["f1_macro"] == pytest.approx(2 / 3)
    assert metrics["f1_weighted_paper"] == pytest.approx(2 / 3)
    predicted_only = c.classification_metrics(c.confusion_matrix([0, 0], [0, 1]))
    assert predicted_only["f1_cp"] == 0
    assert predicted_only["f1_macro"] == pytest.approx(1 / 3)


def test_fixed_shares_weigh_the_classes():
    matrix = np.array([[8, 2], [1, 3]])
    f1 = c.f1_scores(matrix)
    assert c.weighted_f1(matrix, (3, 1)) == pytest.approx((3 * f1[0] + f1[1]) / 4)
    assert c.weighted_f1(matrix) == pytest.approx((10 * f1[0] + 4 * f1[1]) / 14)


def test_an_empty_matrix_is_undefined_without_warnings(recwarn):
    metrics = c.classification_metrics(np.zeros((3, 3), int))
    assert all(np.isnan(v) for name, v in metrics.items() if name != "confusion")
    assert not recwarn.list


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="label 3 is none of the classes 0 to 2"):
        c.confusion_matrix([0, 3], [0, 1])
    with pytest.raises(ValueError, match="prediction -1"):
        c.confusion_matrix([0], [-1])
    with pytest.raises(ValueError, match=r"\[2\] and \[1\]"):
        c.confusion_matrix([0, 1], [0])
    with pytest.raises(ValueError, match="shares"):
        c.weighted_f1(AUTHOR, (0.5, 0.5))
    with pytest.raises(ValueError, match="class names"):
        c.classification_metrics(AUTHOR, ("a", "b"))
