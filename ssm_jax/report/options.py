"""How a checkpoint is evaluated."""

from __future__ import annotations

import dataclasses
from typing import Any

from ssm_jax.possible import THRESHOLD_RULES


def _field(default: Any, **metadata: Any) -> Any:
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes:
      split: test, train, or the name of another subfolder of the data.
      seg_dir: Segmentation slices: <seg_dir>/<split>/{imgs,masks}. Default: those of the run, or
        the phantom.
      cls_dir: Classification slices: <cls_dir>/<split>/<class>_<patient>_<scan>_<slice>.png.
        Default: those of the run, or the phantom.
      data_dir: Where prepared data are kept. Default: as the run has it.
      score_threshold: Detections have a larger score. Default: as the run has it.
      choose_threshold: Chooses the score threshold on training slices: the one where this figure is
        largest. none: as --score_threshold.
      threshold_slices: Training slices that it is chosen on, evenly spread; 0: all.
      nms_threshold: Of two detections with a larger IoU the lower-scored one is dropped. Default:
        as the run has it.
      parts: "seg", "cls" or both.
      max_slices: Slices of each part, evenly spread; 0: all.
      batch_size: Slices predicted at once; 0: 1 on a CPU, 8 elsewhere.
      samples: Samples behind the 95% intervals; 0: none.
      seed: Of the bootstrap, and of slices drawn for the report.
      unit: Drawn by the bootstrap; slices too where file names do not tell patients.
      overlays: Slices of each group (best, worst, random) in the report; 0: none.
    """

    split: str = "test"
    seg_dir: str = ""
    cls_dir: str = ""
    data_dir: str = ""
    score_threshold: float | None = _field(None, least=0, most=1)
    choose_threshold: str = _field("none", choices=THRESHOLD_RULES)
    threshold_slices: int = _field(0, least=0)
    nms_threshold: float | None = _field(None, least=0, most=1)
    parts: tuple[str, ...] = ("seg", "cls")
    max_slices: int = _field(0, least=0)
    batch_size: int = _field(0, least=0)
    samples: int = _field(1000, least=0)
    seed: int = 0
    unit: str = _field("patients", choices=("patients", "slices"))
    overlays: int = _field(4, least=0)
