"""Checks a published data set and makes a folder of it that `experiments.main` takes.

Everything is checked before anything is written, and all that is found is listed, ten of a kind on
the terminal and all in DATA_DIR/<name>.report.json. With an error nothing is prepared. The prepared
folder DATA_DIR/<name> has links to the downloaded files where the disk allows it, so that it takes
no space. Run twice, the program does nothing; ended half-way, it goes on checking where it was, and
never leaves half a folder.

Data sets:

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
    python -m experiments.main --config=configs/scratch_r18.py \\
        --config.data.seg_dir=DATA/cncb_seg --config.data.cls_dir=DATA/ct_classes

What is looked for:

"""

import os
import pathlib
import re
import shlex
import sys

from absl import flags

from ssm_jax.classes import SHORT_NAMES
from ssm_jax.cli import common
from ssm_jax.data import findings
from ssm_jax.data.published import covid_classes, prepare, standard_tree

__doc__ += findings.describe_kinds()  # the usage message of --help

_DATASET = flags.DEFINE_enum("dataset", None, prepare.DATASETS, "What it is.", required=True)
_SOURCE = flags.DEFINE_string("source", None, "Folder of the downloaded data.", required=True)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder that receives the prepared folder and the report.", required=True
)
_NAME = flags.DEFINE_string("name", "", "Name of the prepared folder; default: the data set's.")
_LISTS = {
    split: flags.DEFINE_string(f"{split}_list", "", f"List of the slices of the {split} split.")
    for split in ("train", "val", "test")
}
_CLASS_ORDER = flags.DEFINE_list(
    "class_order", list(SHORT_NAMES), "What classes 0, 1, 2 of COVIDx-CT lines are."
)
_PATIENTS = flags.DEFINE_bool(
    "allow_patient_overlap", False, "Prepare even if patients are in more than one split."
)
_DUPLICATES = flags.DEFINE_bool(
    "allow_split_duplicates", False, "Prepare even if pictures are in more than one split."
)
_MIN_AREA = flags.DEFINE_integer(
    "min_area", 100, "Pixels that a lesion exceeds, as config.data.min_area.", lower_bound=0
)
_LINK = flags.DEFINE_enum(
    "link", "auto", standard_tree.LINKS, "How files get there; auto: hard links, or else copies."
)
_THREADS = flags.DEFINE_integer(
    "threads", min(8, os.cpu_count() or 1), "Files read at a time.", lower_bound=1
)
_CHECK_ONLY = flags.DEFINE_bool("check_only", False, "Check and report, prepare nothing.")


def options_from_flags() -> prepare.Options:
    """What the command line asks for.

    Raises:
      ValueError: values that make no sense.
    """
    name = _NAME.value
    if name and not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"--name={name} has to be a plain folder name: letters, digits, . _ -")
    tolerated = {"patient_overlap": _PATIENTS.value, "split_duplicate": _DUPLICATES.value}
    return prepare.Options(
        dataset=_DATASET.value,
        source=pathlib.Path(_SOURCE.value),
        data_dir=pathlib.Path(_DATA_DIR.value),
        name=name,
        lists={split: pathlib.Path(f.value) for split, f in _LISTS.items() if f.value},
        order=covid_classes.class_order(_CLASS_ORDER.value),
        min_area=_MIN_AREA.value,
        link=_LINK.value,
        threads=_THREADS.value,
        tolerated=tuple(kind for kind, allowed in tolerated.items() if allowed),
        check_only=_CHECK_ONLY.value,
    )


def describe(report: dict) -> list[str]:
    """What a set has, as lines for the terminal.

    Args:
      report: see `prepare.Result`.
    """
    lines = [f"{report['dataset']} in {report['source']}"]
    for split, counts in report["splits"].items():
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
        lines.append(f"  {split}: " + "; ".join(parts))
    if not report["patients_known"]:
        lines.append("  whose slices they are is not published: splits may share patients")
    return lines


def main(argv: list[str]) -> None:
    """The program."""
    common.start(argv)
    with common.one_line_errors(ValueError, OSError, KeyboardInterrupt):
        options = options_from_flags()
        result = prepare.prepare(options)
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
        part = "seg" if options.dataset == "cncb_seg" else "cls"
        print(f"for experiments.main: --config.data.{part}_dir={shlex.quote(str(result.tree))}")
