"""Checks a data set and makes a folder of it that `ssm-jax train` takes.

Everything is checked before anything is written, and all that is found is listed, ten of a kind on
the terminal and all in DATA_DIR/<name>.report.json. With an error nothing is prepared. The prepared
folder DATA_DIR/<name> has links to the downloaded files where the disk allows it, so that it takes
no space. Run twice, the program does nothing; ended half-way, it goes on checking where it was, and
never leaves half a folder.

Sets of your own, with any classes:

  coco: pictures and COCO files with outlines (polygons or run lengths) of objects: a single one, or
    one a split, found by names such as instances_val.json, or named by the list flags. Image
    classes are "label" of its images, or those of a table, --labels.
  nnunet: a raw data set of nnU-Net (dataset.json, imagesTr, labelsTr), of volumes or pictures. A
    case is a patient.
  volumes: images/<case> and labels/<case>, NIfTI volumes or DICOM series with NIfTI labels or DICOM
    segmentations; or a table with the columns image and label, --labels.
  csv: pictures and a table with the columns file and label, and perhaps patient and split.
  class_folders: <split>/<class>/<picture>, or <class>/<picture>.

Slices of volumes are what `ssm-jax predict` makes of them with the same --window, --values and
--rescale. The prepared folder has classes.json, which names the classes for the run, and
sources.csv, which says where every picture comes from. The report and the terminal suggest sizes of
anchors for the objects that were seen.

Published sets:

  cncb_seg: CNCB-NCOV lesion segmentation, image/<scan>/<n>.jpg with mask/<scan>/<n>.png, or
    flattened (imgs/<scan>_<n>.jpg, masks/<scan>_<n>.png). Lists: <scan>_<n>.jpg a line.
  covidx_ct: COVIDx-CT-1, 2 or 3, images in one folder. Lists: <file> <class> <box, 4 numbers> a
    line; without list flags, {train,val,test}_COVIDx*CT*.txt of the source folder are taken.
  ct_classes: lists of <class>_<patient>_<scan>_<slice>.png, class 0 normal, 1 common pneumonia,
    2 COVID-19; images with these names, with COVIDx-CT's, or as CNCB ships them. Lists of this and
    of COVIDx-CT's form can be mixed.
  ictcf: iCTCF. Lists: <class>_<id>.jpg a line; images <class>_<id>.jpg or <id>.jpg.

Examples:

    ssm-jax prepare-data --dataset=cncb_seg --source=ct_lesion_seg --data_dir=DATA \\
        --train_list=train_split_segmentation.txt --test_list=test_split_segmentation.txt
    ssm-jax prepare-data --dataset=covidx_ct --source=COVIDx-CT --data_dir=DATA
    ssm-jax prepare-data --dataset=ct_classes --source=COVIDx-CT --data_dir=DATA \\
        --train_list=train_split_classification.txt --test_list=COVIDx-CT/test_COVIDx_CT-1.txt
    ssm-jax prepare-data --dataset=coco --source=nuts --labels=nuts/kinds.csv --data_dir=DATA
    ssm-jax prepare-data --dataset=nnunet --source=Dataset042_Lung --lesion=tumor --data_dir=DATA
    ssm-jax train --config=scratch_r18 \\
        --config.data.seg_dir=DATA/cncb_seg --config.data.cls_dir=DATA/ct_classes

What is looked for:

"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
import sys

from ssm_jax.classes import PAPER
from ssm_jax.data import findings
from ssm_jax.data.published import covid_classes, prepare
from ssm_jax.prepare.options import ReadOptions
from ssm_jax.scans.options import InputOptions

__doc__ += findings.describe_kinds()  # the end of --help


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `prepare-data`.

    Attributes:
      train_list: List of the slices of the train split; of coco its COCO file.
      val_list: List of the slices of the val split; of coco its COCO file.
      test_list: List of the slices of the test split; of coco its COCO file.
      class_order: Classes 0, 1, 2 of COVIDx-CT lines, with commas.
      allow_patient_overlap: Prepare even if patients are in more than one split.
      allow_split_duplicates: Prepare even if pictures are in more than one split.
      options: How a data set is prepared.
      own: Sets of your own.
      reading: How volumes and pictures of more than 8 bits are read.
    """

    train_list: pathlib.Path | None = None
    val_list: pathlib.Path | None = None
    test_list: pathlib.Path | None = None
    class_order: str = ",".join(PAPER.names)
    allow_patient_overlap: bool = False
    allow_split_duplicates: bool = False
    options: prepare.Options = dataclasses.field(metadata={"omit": ("lists", "order", "tolerated")})
    own: ReadOptions
    reading: InputOptions = dataclasses.field(metadata={"omit": ("identity",)})

    def all_options(self) -> prepare.Options:
        """The options with the lists, the order of classes and the kinds that are tolerated.

        Raises:
          ValueError: values that make no sense.
        """
        name = self.options.name
        if name and not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"--name={name} has to be a plain folder name: letters, digits, . _ -")
        lists = {"train": self.train_list, "val": self.val_list, "test": self.test_list}
        tolerated = {
            "patient_overlap": self.allow_patient_overlap,
            "split_duplicate": self.allow_split_duplicates,
        }
        return dataclasses.replace(
            self.options,
            lists={split: path for split, path in lists.items() if path},
            order=covid_classes.class_order(self.class_order.split(",")),
            tolerated=tuple(kind for kind, allowed in tolerated.items() if allowed),
        )


def describe(report: dict) -> list[str]:
    """The contents of a set, as lines for the terminal.

    Args:
      report: see `prepare.Result`.
    """
    lines = [f"{report['dataset']} in {report['source']}"]
    lines += [f"  {name}: {text}" for name, text in report.get("facts", {}).items()]
    parts = report.get("parts") or {"": report["splits"]}
    for part, splits in parts.items():
        title = {"seg": "pictures with objects, ", "cls": "pictures with a class, "}.get(part, "")
        lines += [f"  {title}{split}: {_contents(counts)}" for split, counts in splits.items()]
    if not report["patients_known"]:
        known = "is not known" if "parts" in report else "is not published"
        lines.append(f"  whose slices they are {known}: splits may share patients")
    if report.get("anchors"):
        lines += _anchors(report["anchors"])
    return lines


def _contents(counts: dict) -> str:
    """The contents of a split."""
    parts = [f"{counts['slices']} slices"]
    if "patients" in counts:
        parts.append(f"{counts['patients']} patients")
    if "classes" in counts:
        parts.append(", ".join(f"{n} {name}" for name, n in counts["classes"].items()))
    else:
        parts.append(f"{counts['with_lesions']} with lesions")
        values = ", ".join(f"{v} in {n}" for v, n in counts["mask_values"].items())
        parts.append(f"mask values {values} masks")
    sizes = list(counts["sizes"].items())
    shown = ", ".join(f"{size} ({n})" for size, n in sizes[:3])
    parts.append(f"sizes {shown}" + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""))
    return "; ".join(parts)


def _anchors(found: dict) -> list[str]:
    """How many objects have an anchor, and the flags for better ones, as lines."""
    size = found["image_size"]
    lines = [
        f"  anchors at an IoU of 0.5 or more, of {found['objects']} objects in pictures of {size} "
        "pixels (--config.model.image_size):"
    ]
    for blocks, one in found["blocks"].items():
        old, new = (",".join(f"{size:g}" for size in one[k]) for k in ("sizes", "suggested"))
        lines.append(
            f"    {one['share']:.0%} with the sizes {old}, {one['suggested_share']:.0%} with "
            f"--config.model.anchor_sizes='({new},)' --config.model.blocks={blocks}"
        )
    return lines


def main(flags: Flags) -> None:
    """The program."""
    options = flags.all_options()
    if options.dataset in prepare.DATASETS:
        result = prepare.prepare(options)
    else:
        from ssm_jax.prepare import prepare as own_sets

        result = own_sets.prepare(options, flags.own, flags.reading)
    print("\n".join(describe(result.report)))
    for title in ("warnings", "errors"):
        if result.report[title]:
            print(f"{title}:", *findings.lines(result.report[title]), sep="\n  - ")
    print(f"report: {result.report_file}", flush=True)
    if result.report["errors"]:
        count = sum(kind["count"] for kind in result.report["errors"].values())
        sys.exit(f"error: {count} defects, listed above; nothing was prepared")
    if result.done_before:
        print(f"{result.tree} was prepared before from the same files: nothing to do")
    if not options.check_only:
        print("for ssm-jax train:", *train_flags(result))


def train_flags(result: prepare.Result) -> list[str]:
    """Flags of `ssm-jax train` for a prepared folder."""
    report, tree = result.report, shlex.quote(str(result.tree))
    parts = report.get("parts") or {"seg" if report["dataset"] == "cncb_seg" else "cls": {}}
    given = [f"--config.data.{part}_dir={tree}" for part in parts]
    if "parts" in report and all("test" not in splits for splits in parts.values()):
        given.append("--config.data.test_split=val")
    if "parts" in report and "cls" not in parts:  # a model of objects alone has no accuracy
        given.append("--config.checkpoint.best_metric=ap")
    return given
