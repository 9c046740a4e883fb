"""The chosen score threshold against an evaluation at every threshold."""

import types

import numpy as np
import pytest

from ssm_jax.data.sources import SegmentationExample
from ssm_jax.evaluation import Evaluator
from ssm_jax.evaluation.predicted_slices import Loading, Stopped
from ssm_jax.evaluation.thresholds import GRID, choose_threshold
from tests.helpers.fake_predictions import blob, box_of, label_map, prediction

H, W = 24, 32


def example(rng, k):
    masks = [blob(H, W, (12, 8), (5, 4)), blob(H, W, (12, 24), (4, 4))][: rng.integers(0, 3)]
    boxes = np.array([box_of(mask) for mask in masks], np.float32).reshape(-1, 4)
    instances = label_map(masks, H, W)
    lesion = np.uint8(instances > 0)
    lesion[0, :3] = 1  # too small to be an object
    image = np.full((H, W, 1), k, np.uint8)  # names the slice
    return SegmentationExample(
        f"p{k // 2}_{k}.png", image, instances, boxes, np.ones(len(boxes), np.int32), lesion
    )


class FakePredictor:
    """Knows the lesions about, and adds false ones of lower scores."""

    def __init__(self, rng, examples, threshold):
        self.score_threshold, self.found = threshold, []
        for one in examples:
            masks = [np.roll(one.instances == k + 1, rng.integers(-1, 2), 1) for k in range(2)]
            masks = [mask for mask in masks if mask.any()]
            scores = rng.uniform(0.3, 1, len(masks)).tolist()
            for _ in range(rng.integers(0, 3)):
                masks.append(blob(H, W, rng.integers(4, 20, 2), (3, 3)))
                scores.append(rng.uniform(0, 0.6))
            order = np.argsort(scores)[::-1]
            self.found.append([(masks[k], scores[k]) for k in order])

    def predict_batch(self, images):
        found = []
        for image in images:
            kept = [(m, s) for m, s in self.found[image[0, 0]] if s > self.score_threshold]
            found.append(prediction([m for m, _ in kept], [s for _, s in kept], H, W))
        return found


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(5)
    examples = [example(rng, k) for k in range(9)]
    return examples, FakePredictor(rng, examples, GRID[0])


@pytest.mark.parametrize("criterion", ["infection_dice", "ap50"])
def test_it_is_the_best_of_evaluations_at_every_threshold(made, criterion):
    examples, predictor = made
    chosen = choose_threshold(examples, predictor, criterion, Loading(batch_size=2))
    values = []
    for threshold in GRID:
        at = types.SimpleNamespace(score_threshold=threshold, found=predictor.found)
        evaluator = Evaluator()
        for one in examples:
            (found,) = FakePredictor.predict_batch(at, [one.image[..., 0]])
            evaluator.add_segmentation(
                found, one.instances, one.boxes, file_name=one.file, truth_lesion=one.lesion
            )
        values.append(evaluator.metrics()[criterion])
    assert len(set(values)) > 5
    assert chosen.value == pytest.approx(max(values))
    assert values[GRID.index(chosen.score_threshold)] == max(values)
    best = [t for t, value in zip(GRID, values, strict=True) if value == max(values)]
    assert chosen.score_threshold == best[len(best) // 2]
    assert (chosen.criterion, chosen.slices) == (criterion, 9)
    assert criterion in str(chosen) and "9 training slices" in str(chosen)


def test_some_of_the_slices_a_stop_and_another_threshold(made):
    examples, predictor = made
    few = choose_threshold(examples, predictor, "ap50", Loading(max_slices=4))
    assert few.slices == 4
    with pytest.raises(Stopped):
        choose_threshold(examples, predictor, "ap50", Loading(), stop=True)
    with pytest.raises(ValueError, match="score threshold has to be"):
        choose_threshold(examples, FakePredictor(None, [], 0.5), "ap50", Loading())
