"""The nuclei of the Data Science Bowl as a COCO file that prepare-data takes."""

import numpy as np
from PIL import Image

from experiments import nuclei
from tests.helpers.data_tools import noise, save
from tests.helpers.own_sets import items, run, write_json


def test_a_nucleus_a_mask_and_no_picture_with_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(nuclei, "MOST", 3)
    source = tmp_path / "stage1_train"
    for k in range(4):
        save(source / f"p{k}/images/p{k}.png", noise(k, 32, 40, 4))
        for number in range(k + 1):
            mask = np.zeros((32, 40), np.uint8)
            mask[8:16, 8 * number : 8 * number + 8] = 255  # they touch
            save(source / f"p{k}/masks/{number}.png", mask)
    write_json(source / "nuclei.json", nuclei.coco_of(source))
    result = run(tmp_path, "coco", source, split=(0.5, 0, 0.5))
    assert result.report["errors"] == {}
    assert len(items(result.report, "unlisted")) == 11
    found = [np.asarray(Image.open(p)).max() for p in result.tree.glob("*/instances/*.png")]
    assert sorted(found) == [1, 2, 3]
