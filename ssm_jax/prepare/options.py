"""How sets of one's own are read."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from ssm_jax.data.errors import DataError


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Sets of your own: coco, nnunet, volumes, csv, class_folders.

    Attributes:
      labels: CSV file with the columns file and label, and perhaps patient and split. Of csv the
        set itself; of coco image classes, where images of the JSON files have no "label"; of
        volumes the pairs, with the column image in place of file.
      lesion: Name of a lesion class to take, a category of coco or a label of nnunet and volumes;
        may be repeated, and sets the order. The others are background. Default: all.
      image_class: Name of an image class; may be repeated, and sets the order. Any other name in
        the data is an error. Default: those that occur, by name.
      label_name: Of volumes with NIfTI labels, VALUE=NAME of a label; may be repeated.
      channel: Of nnunet with several channels, the name or number of the one to take.
      patient: Regular expression that finds the patient in the name of a picture, as its first
        group, where the data do not tell. Without one every picture counts as another patient.
      split: Shares of train, val and test in a set without splits; patients stay together.
      seed: Of that split.
      lesions_only: Leave out slices of volumes without a lesion.
      image_size: Pixels of the short side that the model will resize to; anchors are told for it.

    Raises:
      ValueError: values that make no sense.
    """

    labels: pathlib.Path | None = None
    lesion: tuple[str, ...] = ()
    image_class: tuple[str, ...] = ()
    label_name: tuple[str, ...] = ()
    channel: str = ""
    patient: str = ""
    split: tuple[float, float, float] = dataclasses.field(
        default=(0.8, 0.1, 0.1), metadata={"least": 0, "most": 1}
    )
    seed: int = dataclasses.field(default=0, metadata={"least": 0})
    lesions_only: bool = False
    image_size: int = dataclasses.field(default=512, metadata={"least": 32, "most": 4096})

    def __post_init__(self):
        for flag, names in (("lesion", self.lesion), ("image_class", self.image_class)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(f"--{flag}={twice[0]} is given twice")
        try:
            groups = re.compile(self.patient).groups
        except re.error as error:
            raise DataError(f"--patient={self.patient} is no regular expression: {error}") from None
        if self.patient and groups < 1:
            raise DataError(
                f"--patient={self.patient} has no group; put what is the patient in parentheses"
            )

    def patient_of(self, name: str) -> str | None:
        """The patient that the name of a picture tells; None where there is no expression for it.

        Raises:
          DataError: it tells none.
        """
        if not self.patient:
            return None
        match = re.search(self.patient, name)
        if match is None or not match[1]:
            raise DataError(f"{name} (--patient={self.patient} finds nobody in it)")
        return match[1]
