"""Small sets in the formats that people have, made up by the tests of `ssm_jax.prepare`."""

import csv
import json
import pathlib

import numpy as np
from pycocotools import mask as coco_mask

from ssm_jax.data.published.prepare import Options
from ssm_jax.prepare.options import ReadOptions
from ssm_jax.prepare.prepare import prepare
from ssm_jax.scans.options import InputOptions
from tests.helpers.data_tools import noise, save

SIZE = 64
KINDS = ("blank", "one nut", "two nuts", "bolts", "both")  # image classes of the COCO set


def run(tmp_path, dataset, source, reading=None, lists=None, tolerated=(), **flags):
    """Prepares in this process into tmp_path/data; the flags are those of the program."""
    common = {k: flags.pop(k) for k in ("name", "min_area", "link", "check_only") if k in flags}
    options = Options(
        dataset=dataset,
        source=source,
        data_dir=tmp_path / "data",
        lists=lists or {},
        tolerated=tolerated,
        **({"min_area": 0, "link": "copy", "threads": 1} | common),
    )
    return prepare(options, ReadOptions(**flags), reading or InputOptions())


def polygon(x1, y1, x2, y2):
    """A rectangle as COCO has it."""
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def coco_set(root: pathlib.Path, count=20, size=SIZE):
    """RGB pictures of nuts and bolts, some of which touch; returns the content of the JSON."""
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "nut"}, {"id": 9, "name": "bolt"}],
    }
    for k in range(count):
        kind = k % len(KINDS)
        nuts = {1: [(8, 8, 24, 24)], 2: [(8, 8, 24, 24), (24, 8, 40, 24)], 4: [(8, 40, 20, 56)]}
        bolts = {3: [(40, 30, 60, 40)], 4: [(36, 36, 48, 60)]}
        pixels = noise(k, size, size, 3) // 4
        shapes = [(7, box, (200, 60, 40)) for box in nuts.get(kind, [])]
        shapes += [(9, box, (40, 90, 220)) for box in bolts.get(kind, [])]
        for category, (x1, y1, x2, y2), color in shapes:
            pixels[y1:y2, x1:x2] = color
            shape = polygon(x1, y1, x2, y2)
            if category == 9:
                mask = np.zeros((size, size), np.uint8, order="F")
                mask[y1:y2, x1:x2] = 1
                encoded = coco_mask.encode(mask)
                shape = {"size": [size, size], "counts": encoded["counts"].decode()}
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 100 + k,
                    "category_id": category,
                    "segmentation": shape,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
        name = f"box{k // 2}_{k}.png"
        save(root / "images" / name, pixels)
        content["images"].append({"id": 100 + k, "file_name": name, "height": size, "width": size})
    write_json(root / "annotations.json", content)
    rows = [(entry["file_name"], KINDS[k % 5]) for k, entry in enumerate(content["images"])]
    write_csv(root / "kinds.csv", ("file", "label"), rows)
    return content


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_csv(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def items(report, kind):
    """Items of a kind of finding, be it an error or a warning."""
    found = (report["errors"] | report["warnings"]).get(kind, {"items": []})
    return found["items"]
