"""From a run's checkpoint to the file of the box and its model card."""

import numpy as np
import pytest

from experiments.box import Flags, figures, limits, main
from ssm_jax import box
from ssm_jax.checkpoints import save_model
from ssm_jax.config import ModelConfig
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import TrainState
from tests.helpers.report_tools import sample
from tests.helpers.tiny import get_config, random_variables

METRICS = {
    "score_threshold": 0.21,
    "infection_dice": 0.7123,
    "seg_patients": 4,
    "accuracy": 0.8456,
    "test/infection_dice": 0.654,
    "hospital/infection_dice": None,
}


def test_the_file_and_its_card(tmp_path, monkeypatch):
    config = get_config()
    config.data.seg_dir = "/home/somebody/data"
    model = ModelConfig.from_mapping(config.model.to_dict())
    variables, zero = random_variables(model), np.float32(0)
    state = TrainState(np.int32(9), **variables, opt_state={}, best_seg_loss=zero, key=zero)
    with RunCheckpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state, config.to_dict(), {}, metrics=METRICS, seconds=600.0)
    failures = tmp_path / "failures.md"
    failures.write_text("Small lesions at the back are missed.\n")
    output = tmp_path / "out" / "model.npz"
    main(Flags(checkpoint=str(tmp_path / "run"), output=output, name="Tiny", failures=failures))
    monkeypatch.setattr(box, "FILE", output)
    assert box.load_model()[0] == model
    assert box.facts() == box.Facts("Tiny", limits(model), "CC BY-NC-SA 4.0")
    text = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| Infection Dice, mean over patients | 0.712 | – | 0.654 |" in text
    assert "| Accuracy of the image class | 0.846 | – | – |" in text
    assert "| Patients with lesion masks | 4 | – | – |" in text
    for part in (
        *limits(model),
        "Small lesions",
        "9 iterations (10 minutes)",
        "CC BY-NC-SA 4.0",
        "0.21",
    ):
        assert part in text
    assert "- `model.image_size`: 64" in text and "`model.max_size`: 128" in text
    assert "somebody" not in text and "`train.weight_decay`" not in text


def test_figures_of_an_evaluation_of_its_own():
    """With their intervals."""
    result = sample()[0]
    low, high = result["intervals"]["figures"]["infection_dice"]
    shown = f"{result['infection_dice']:.3f} [{low:.3f}, {high:.3f}]"
    assert f"| Infection Dice, mean over patients | {shown} |" in figures(result)


def test_weights_without_an_evaluation(tmp_path):
    model = ModelConfig.from_mapping(get_config().model.to_dict())
    save_model(tmp_path, model, random_variables(model))
    with pytest.raises(ValueError, match="holds no evaluation of a run"):
        main(Flags(checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match="is no output folder of ssm-jax evaluate"):
        main(Flags(checkpoint=str(tmp_path), evaluation=tmp_path))
