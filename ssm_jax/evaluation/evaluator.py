"""Collects predictions and truth slice by slice and turns them into one flat dict of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from ssm_jax.classes import PAPER
from ssm_jax.data.patients import clusters, segmentation_patient
from ssm_jax.evaluation import calibration, classification, coco, infection, per_image_ap, roc
from ssm_jax.ops import rle as rle_lib

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

    from ssm_jax.predictor import Prediction

SUMMARY = ("ap50", "ap", "coco_segm_AP50", "infection_dice", "accuracy", "f1_weighted")
# In the summary after another figure: that of the last class, which is what a model is to find.
SUMMARY_OF_CLASS = {"accuracy": "sensitivity_", "f1_weighted": "auc_"}


class Evaluator:
    """Accumulates the figures of a test set; no full-size mask outlives the call that brings it.

    Attributes:
      per_image: one float64 [10] a segmentation slice: its AP at IoU 0.50, 0.55, ..., 0.95.
      pixels: one int64 [3] a segmentation slice, see `infection.cumulative_counts`.
      seg_files: the file names of these slices.
      recorder: truth and predictions in COCO format (`coco.CocoRecorder`).
      labels, predicted: true and predicted class of each classification slice.
      probabilities: class probabilities [K] of these slices; None where none were given.
      cls_files: their file names.
      seg_folders: the folders of the segmentation slices; "" where there is one alone.
      cls_folders: the folders of the classification slices.
    """

    def __init__(
        self,
        image_classes: Sequence[str] = classification.IMAGE_CLASSES,
        lesion_classes: Mapping[int, str] | None = None,
        class_shares: Sequence[float] | None = None,
    ):
        """Sets up an empty accumulator.

        Args:
          image_classes: names of the image classes, as they appear in the metric names.
          lesion_classes: lesion class (>= 1) -> name; default {1: "lesion"}, as the paper's.
          class_shares: weights of the classes in "f1_weighted"; None: their shares in the slices
            evaluated.
        """
        self.image_classes = tuple(image_classes)
        self.class_shares = class_shares
        self.recorder = coco.CocoRecorder(lesion_classes or PAPER.lesion_titles)
        self.per_image: list[np.ndarray] = []
        self.pixels: list[np.ndarray] = []
        self.seg_files: list[str] = []
        self.labels: list[int] = []
        self.predicted: list[int] = []
        self.probabilities: list[np.ndarray | None] = []
        self.cls_files: list[str] = []
        self.seg_folders: list[str] = []
        self.cls_folders: list[str] = []
        self._coco_runs: dict[str, COCOeval] = {}

    def add_segmentation(
        self,
        prediction: Prediction,
        truth_instances: np.ndarray,
        truth_boxes: np.ndarray,
        truth_labels: np.ndarray | None = None,
        file_name: str = "",
        folder: str = "",
        truth_lesion: np.ndarray | None = None,
    ) -> Float64[np.ndarray, "10"]:
        """Adds the detections in one slice.

        Args:
          prediction: with masks; everything in pixels of the original slice.
          truth_instances: uint8 [H, W] at the original size; 0 background, k + 1 = object k.
          truth_boxes: [M, 4] XYXY pixels of the original slice, without padding.
          truth_labels: int [M], lesion classes; default all 1.
          file_name: kept with the figures.
          folder: has figures of its own; "": none.
          truth_lesion: [H, W], not 0 on all lesions, those too small to be an object included;
            None: the objects alone.

        Returns:
          The slice's AP at IoU 0.50, 0.55, ..., 0.95.

        Raises:
          ValueError: no masks, another size than the truth, or a label map that does not hold
            exactly the objects of the boxes.
        """
        where = f"{file_name}: " if file_name else ""
        truth_instances = np.asarray(truth_instances)
        truth_boxes = np.asarray(truth_boxes).reshape(-1, 4)
        if truth_labels is None:
            truth_labels = np.ones(len(truth_boxes), np.int64)
        if prediction.masks is None:
            raise ValueError(f"{where}the prediction has no masks; predict with masks=True")
        size = (prediction.height, prediction.width)
        if truth_instances.shape != size:
            raise ValueError(
                f"{where}the prediction is for {size[0]}x{size[1]} pixels, the truth has the "
                f"shape {list(truth_instances.shape)}"
            )
        try:
            truth_masks = rle_lib.encode_instances(truth_instances, len(truth_boxes))
        except ValueError as error:
            raise ValueError(f"{where}{error}") from error
        figures = per_image_ap.average_precisions(
            rle_lib.pairwise_iou(prediction.masks, truth_masks),
            prediction.scores,
            prediction.labels,
            truth_labels,
        )
        lesion = rle_lib.encode(truth_instances if truth_lesion is None else truth_lesion)
        self.pixels.append(infection.pixel_counts(prediction.masks, lesion))
        image_id = self.recorder.add_image(*size, file_name)
        self.recorder.add_truth(image_id, truth_masks, truth_boxes, truth_labels)
        self.recorder.add_detections(
            image_id, prediction.masks, prediction.boxes, prediction.scores, prediction.labels
        )
        self._coco_runs.clear()
        self.per_image.append(figures)
        self.seg_files.append(file_name)
        self.seg_folders.append(folder)
        return figures

    def add_classification(
        self,
        output: int | np.ndarray,
        label: int,
        probabilities: np.ndarray | None = None,
        file_name: str = "",
        folder: str = "",
    ) -> None:
        """Adds the class of one slice.

        Args:
          output: the predicted class, or the class logits or probabilities [K], of which the
            largest counts (ties: the lower class).
          label: the true class.
          probabilities: float [K], for calibration and AUC; without those of all slices there are
            none.
          file_name: kept with the figures.
          folder: has figures of its own; "": none.

        Raises:
          ValueError: a class that does not exist, or another number of logits or probabilities.
        """
        output, classes = np.asarray(output), len(self.image_classes)
        if output.ndim > 0 and output.shape != (classes,):
            raise ValueError(f"{classes} class logits are needed, not {list(output.shape)}")
        if probabilities is not None and np.shape(probabilities) != (classes,):
            raise ValueError(
                f"{classes} class probabilities are needed, not {list(np.shape(probabilities))}"
            )
        predicted = int(output.argmax()) if output.ndim else int(output)
        classification.confusion_matrix([label], [predicted], classes)  # checks both
        self.labels.append(int(label))
        self.predicted.append(predicted)
        self.probabilities.append(None if probabilities is None else np.asarray(probabilities))
        self.cls_files.append(file_name)
        self.cls_folders.append(folder)

    def confusion(self) -> Int64[np.ndarray, "K K"]:
        """Confusion matrix so far, rows truth."""
        return classification.confusion_matrix(self.labels, self.predicted, len(self.image_classes))

    def coco_run(self, kind: str) -> COCOeval:
        """pycocotools on the segmentation slices so far, run once: see `coco.run`."""
        if kind not in self._coco_runs:
            self._coco_runs[kind] = self.recorder.run(kind)
        return self._coco_runs[kind]

    def reliability(self) -> calibration.Reliability | None:
        """How far confidence and accuracy agree; None without the probabilities of all slices."""
        probabilities = self.all_probabilities()
        if probabilities is None:
            return None
        return calibration.reliability(probabilities, np.asarray(self.labels))

    def all_probabilities(self) -> Float[np.ndarray, "N K"] | None:
        """Class probabilities of all slices; None where some are not known, or no slice."""
        known = [p for p in self.probabilities if p is not None]
        return np.stack(known) if known and len(known) == len(self.labels) else None

    def metrics(self) -> dict[str, Any]:
        """All figures of what was added so far, under flat names.

        Segmentation (left out without segmentation slices): "ap50", "ap75", "ap" (per-image AP),
        `infection.FIGURES` (means over patients, or over slices where file names do not tell
        patients), "coco_segm_<figure>" and "coco_bbox_<figure>" for the twelve `coco.FIGURES`,
        "seg_slices", "seg_patients" (where file names tell), "objects", "detections".
        Classification (left out without classification slices): what
        `classification.classification_metrics` gives, "cls_slices", and, where the class
        probabilities are known, "ece" and what `roc.class_aucs` gives. For every folder that was
        named "<folder>/<figure>": the same but those of COCO, "objects", "detections" and "ece".
        Figures that nothing defines are NaN (`files.json_ready` makes them null).
        """
        metrics: dict[str, Any] = {}
        if self.per_image:
            metrics |= self._segmentation_metrics(range(len(self.per_image)))
            for kind in coco.KINDS:
                figures = coco.figures(self.coco_run(kind))
                metrics |= {f"coco_{kind}_{name}": value for name, value in figures.items()}
            metrics["objects"] = len(self.recorder.truth["annotations"])
            metrics["detections"] = len(self.recorder.detections)
        if self.labels:
            metrics |= self._classification_metrics(range(len(self.labels)))
            reliability = self.reliability()
            if reliability is not None:
                metrics["ece"] = reliability.ece
        for folder in dict.fromkeys((*self.seg_folders, *self.cls_folders)):
            if folder:
                seg = [k for k, name in enumerate(self.seg_folders) if name == folder]
                cls = [k for k, name in enumerate(self.cls_folders) if name == folder]
                figures = self._segmentation_metrics(seg) if seg else {}
                figures |= self._classification_metrics(cls) if cls else {}
                metrics |= {f"{folder}/{name}": value for name, value in figures.items()}
        return metrics

    def _segmentation_metrics(self, chosen: Sequence[int]) -> dict[str, Any]:
        """Figures of some segmentation slices, without those of COCO."""
        patients, known = clusters([segmentation_patient(self.seg_files[k]) for k in chosen])
        pixels = np.stack([self.pixels[k] for k in chosen])
        means = infection.mean_figures(pixels, patients)
        return {
            **per_image_ap.summarize([self.per_image[k] for k in chosen]),
            **{name: float(value) for name, value in means.items()},
            "seg_slices": len(chosen),
            **({"seg_patients": int(patients.max()) + 1} if known else {}),
        }

    def _classification_metrics(self, chosen: Sequence[int]) -> dict[str, Any]:
        """Figures of some classification slices, without the calibration."""
        labels, predicted = (
            [values[k] for k in chosen] for values in (self.labels, self.predicted)
        )
        names, probabilities = self.image_classes, self.all_probabilities()
        confusion = classification.confusion_matrix(labels, predicted, len(names))
        metrics = classification.classification_metrics(confusion, names, self.class_shares)
        if probabilities is not None:
            areas = roc.class_aucs(probabilities[list(chosen)], np.asarray(labels), names)
            metrics |= {name: float(area[0]) for name, area in areas.items()}
        return metrics | {"cls_slices": len(chosen)}


def ranking_figures(image_classes: Sequence[str]) -> list[str]:
    """Names of the figures that a model of these image classes can be ranked by, larger better."""
    names = ["ap50", "ap75", "ap", *infection.FIGURES[:2]]
    names += [f"coco_{kind}_{figure}" for kind in coco.KINDS for figure in coco.FIGURES]
    if image_classes:
        names += classification.stacked_metrics(np.eye(len(image_classes)), image_classes)
        names += roc.names_of(image_classes)
    return names


def summary(metrics: Mapping[str, Any]) -> str:
    """The main figures in one line."""
    shown = []
    for name in SUMMARY:
        shown.append(name)
        of_class = SUMMARY_OF_CLASS.get(name)
        shown += [figure for figure in metrics if of_class and figure.startswith(of_class)][-1:]
    return ", ".join(
        f"{name} {metrics[name]:.3f}" for name in shown if metrics.get(name) is not None
    )
