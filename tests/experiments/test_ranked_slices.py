"""Slices by rank, and the picture of them."""

import numpy as np
import pytest

from experiments import ranked_slices
from experiments.ranked_slices import Flags, main, picture, ranked, slice_values
from ssm_jax.checkpoints import save_model
from ssm_jax.config import ModelConfig
from ssm_jax.evaluation import Evaluator
from ssm_jax.evaluation.predicted_slices import PredictedSlice
from tests.helpers.data_tools import lesion_mask, noise, save
from tests.helpers.fake_predictions import blob, box_of, label_map, prediction
from tests.helpers.tiny import get_config, random_variables

SIDE = 64


def test_slices_are_chosen_by_rank_alone():
    values = np.array([0.5, 1.0, 0.2, 0.9, 0.0, 0.2])
    with_lesions = np.array([True, False, True, True, False, True])
    assert ranked(values, with_lesions) == {"best": 3, "median": 2, "worst": 5}
    with pytest.raises(ValueError, match="2 slices with lesions are too few"):
        ranked(values, np.array([True, True, False, False, False, False]))


def test_figures_of_single_slices():
    evaluator, truth = Evaluator(), blob(SIDE, SIDE, (30, 30), (9, 9))
    for shift in (0, 2, 40):
        found = prediction([np.roll(truth, shift, 1)], [0.9], SIDE, SIDE)
        evaluator.add_segmentation(found, label_map([truth], SIDE, SIDE), [box_of(truth)])
    shared = (truth & np.roll(truth, 2, 1)).sum()
    np.testing.assert_allclose(slice_values(evaluator, "dice"), [1, shared / truth.sum(), 0])
    assert slice_values(evaluator, "ap50").tolist() == [1, 1, 0]
    assert 0 < slice_values(evaluator, "ap")[1] < 1


def test_the_picture_shows_slice_truth_and_prediction():
    mask = blob(SIDE, SIDE, (30, 30), (9, 9))
    image = np.full((SIDE, SIDE), 100, np.uint8)
    found = prediction([mask], [0.9], SIDE, SIDE)
    shown = PredictedSlice("seg", "a.png", image, found, label_map([mask], SIDE, SIDE))
    drawn = np.asarray(picture([("best: a.png", shown), ("worst: a.png", shown)], 100))
    gap, title = ranked_slices._GAP, ranked_slices._TITLE
    assert drawn.shape == (2 * (100 + 2 * title), 3 * (100 + gap) + gap, 3)
    for row in range(2):
        top = row * (100 + 2 * title) + title
        panels = [drawn[top : top + 100, gap + k * (100 + gap) :][:, :100] for k in range(3)]
        assert (panels[0] == 100).all()
        assert all((panel != 100).any() for panel in panels[1:])
        assert (drawn[top - title : top] < 128).any()


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
def test_the_program(tmp_path, capsys):
    config = get_config()
    model = ModelConfig.from_mapping(config.model.to_dict())
    save_model(tmp_path / "model", model, random_variables(model))
    for k in range(4):
        boxes = ((8, 8, 20 + 5 * k, 24),) if k else ()
        save(tmp_path / "data" / "held" / "imgs" / f"p_{k}.png", noise(k, SIDE, SIDE))
        save(tmp_path / "data" / "held" / "masks" / f"p_{k}.png", lesion_mask(SIDE, SIDE, boxes))
    flags = {"split": "held", "seg_dir": str(tmp_path / "data"), "data_dir": str(tmp_path / "all")}
    main(Flags(checkpoint=str(tmp_path / "model"), output=tmp_path / "out" / "a.png", **flags))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["best", "median", "worst"]
    assert not any("p_0.png" in line for line in lines)
    assert (tmp_path / "out" / "a.png").stat().st_size > 1000
