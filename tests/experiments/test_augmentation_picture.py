"""The picture of training batches."""

import numpy as np

from experiments.augmentation_picture import cells, picture
from ssm_jax.data import TrainBatches, open_datasets
from ssm_jax.visualize import contour
from tests.helpers.data_tools import small_config


def test_a_row_a_batch_with_the_contours_of_lesions(tmp_path):
    config = small_config(tmp_path)
    config.data.augment.flip = 1.0
    batches = [TrainBatches(open_datasets(config), 0, 2)[step] for step in range(3)]
    drawn = picture(batches)
    assert drawn.size == (4 * 68, 3 * 68)
    for row, batch in enumerate(batches):
        for column, cell in enumerate(cells(batch)):
            shown = np.asarray(drawn)[row * 68 : row * 68 + 64, column * 68 : column * 68 + 64]
            np.testing.assert_array_equal(shown, cell)
            part, k = ("seg", column) if column < 2 else ("cls", column - 2)
            rim = np.zeros((64, 64), bool)
            for number in range(1, 256 if part == "seg" else 1):
                rim |= contour(batch["seg"]["instances"][k] == number)
            assert (cell[rim] == (80, 235, 120)).all()
            np.testing.assert_array_equal(cell[~rim][:, 0], batch[part]["image"][k][~rim][:, 0])
    assert any(batch["seg"]["valid"].any() for batch in batches)
