"""The builders of folders: slices with masks, or with an image class in their names."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssm_jax.class_set import ClassSet, LesionClass
from ssm_jax.classes import PAPER_DATA
from ssm_jax.data import folders, images
from ssm_jax.data.errors import DataError
from ssm_jax.data.findings import Findings
from ssm_jax.data.indexed import SPLITS, IndexedBuilder
from ssm_jax.data.inspection import (
    NUMBERS,
    Inspected,
    Inspector,
    Slice,
    check_files,
    file_stamp,
)
from ssm_jax.data.objects import PAPER_GROUPS, Values, area_field
from ssm_jax.data.patients import PATIENT_OF
from ssm_jax.data.splits import split_by_patient

THREADS = 2  # that check the files of a folder
_CLASS_FILE = re.compile(r"(?P<number>\d+)_[^_]+_[^_]+_[^_]+")


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """Names the folder of a set; make it with `FolderBuilder.config_of`.

    Attributes:
      root: the folder.
      splits: names of the subfolders for training and test, or for training alone.
      channels: 1 or 3.
      dev_share: without a subfolder for tests, the share of the training slices that is kept for
        the evaluation, by patient.
      dev_seed: of the choice of these patients.
      classes: all that slices and masks can be of.
      groups: mask values that make objects together.
      numbered: whether objects have numbers of their own, beside masks.
    """

    root: str = ""
    splits: tuple[str, ...] = SPLITS
    channels: int = 1
    dev_share: float = 0.0
    dev_seed: int = 0
    classes: ClassSet = PAPER_DATA
    groups: tuple[Values, ...] = PAPER_GROUPS
    numbered: bool = False


class FolderBuilder(IndexedBuilder):
    """Slices from the subfolders of a folder, one a split.

    Attributes:
      subfolders: of a split, that hold its slices and its masks; empty if the split itself does.
    """

    subfolders: tuple[str, ...] = ()

    @classmethod
    def config_of(
        cls,
        root: str,
        train_split: str = "train",
        test_split: str = "test",
        dev_share: float = 0.0,
        dev_seed: int = 0,
        classes: ClassSet = PAPER_DATA,
        lesions: Sequence[LesionClass] = (),
    ) -> FolderConfig:
        """Names a folder by its listing, so that a changed folder is prepared again.

        Args:
          root: folder with one subfolder a split.
          train_split: name of the subfolder for training.
          test_split: name of the subfolder for the evaluation.
          dev_share: see `FolderConfig`; 0: the subfolder for the evaluation has to be there.
          dev_seed: see `FolderConfig`.
          classes: all that slices and masks can be of, see `class_files.folder_classes`.
          lesions: classes of a model, where they are not those.

        Raises:
          DataError: a folder is missing or empty.
        """
        top = pathlib.Path(root).expanduser().resolve()
        splits: tuple[str, ...] = (train_split, test_split)
        if dev_share and not (top / test_split).is_dir():
            splits = (train_split,)
        pictures, *_ = cls.subfolders or ("",)
        listed = [folders.list_images(top / split / pictures) for split in splits]
        holding = [top / split / name for split in splits for name in cls.subfolders or ("",)]
        numbers = [top / split / NUMBERS for split in splits]
        numbered = bool(cls.subfolders) and any(folder.is_dir() for folder in numbers)
        holding += numbers if numbered else []
        # The paper's lesion classes are all in one preparation, as they always were.
        usual = PAPER_GROUPS if classes.lesion == PAPER_DATA.lesion else ()
        own = (lesion.values for lesion in (*classes.lesion, *lesions))
        groups = tuple(dict.fromkeys((*usual, *own)))
        key = folders.folder_key(sorted(holding), cls.salt(f"{top} {splits}", classes, groups))
        channels = folders.channels_of(listed[0])
        name = f"{top.name}-{key}"
        return FolderConfig(
            name=name,
            root=str(top),
            splits=splits,
            channels=channels,
            dev_share=dev_share,
            dev_seed=dev_seed,
            classes=classes,
            groups=groups,
            numbered=numbered,
        )

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that records are written of."""
        return SPLITS[: len(self.builder_config.splits)]

    def rows(self, split):
        """Where the folder has no test slices, patients of the training slices stand in for them.

        Raises:
          DataError: names of slices that do not tell patients.
        """
        if split in self.split_names and len(self.split_names) > 1:
            return super().rows(split)
        config, (only,) = self.builder_config, self.split_names
        files = self.info.metadata[only]["file"]
        patients = {file: PATIENT_OF[self.part](file) for file in files}
        known = [patient for patient in patients.values() if patient is not None]
        if len(known) < len(files):
            unknown = next(file for file, patient in patients.items() if patient is None)
            raise DataError(
                f"{config.root} has no test slices, and the name {unknown} "
                "does not tell its patient, so that config.data.dev_share cannot keep patients "
                "apart; rename the slices, or make a folder of test slices"
            )
        shares = (1 - config.dev_share, config.dev_share)
        chosen = split_by_patient(known, shares, config.dev_seed)
        return only, np.flatnonzero(chosen == SPLITS.index(split)).tolist()

    @classmethod
    def salt(cls, text: str, classes: ClassSet, groups: tuple[Values, ...]) -> str:
        """`text`, and what of classes changes a preparation where they are not the paper's."""

        def read(of: ClassSet, together: tuple[Values, ...]) -> list:
            return [sorted(of.values), together] if cls.subfolders else sorted(of.numbers)

        known = read(classes, groups)
        return text if known == read(PAPER_DATA, PAPER_GROUPS) else f"{text} {known}"

    @property
    def classes(self) -> ClassSet:
        """All that slices and masks of the folder can be of."""
        return self.builder_config.classes

    @property
    def groups(self) -> Sequence[Values]:
        """Mask values that make objects together."""
        return self.builder_config.groups

    @property
    def numbered(self) -> bool:
        """Whether there are folders with the numbers of objects."""
        return self.builder_config.numbered

    @property
    def channels(self) -> int:
        """Channels of the slices, 1 or 3: those of the first training slice."""
        return self.builder_config.channels

    def split_sizes(self):
        """Checks all files before anything is written; raises DataError."""
        root = pathlib.Path(self.builder_config.root)
        inspector = Inspector(self.channels, THREADS, groups=self.groups)
        findings = Findings(classes=self.classes)
        self._found = {}
        for split, folder in zip(self.split_names, self.builder_config.splits, strict=True):
            slices = self.slices_of(root / folder, findings)
            self._found[split] = inspector.inspect(slices)
            check_files(self._found[split], findings)
        findings.raise_if_any_error(str(root))
        return {split: len(found) for split, found in self._found.items()}

    def estimated_bytes(self):
        """Bytes of the files, most of which are kept as they are."""
        items = [found.item for part in self._found.values() for found in part]
        paths = [path for item in items for path in (item.path, item.mask, item.numbers) if path]
        return sum(file_stamp(path)[0] for path in paths)

    @staticmethod
    def slices_of(folder: pathlib.Path, findings: Findings) -> list[Slice]:
        """The slices of a split by name; notes what their names tell to be wrong for its classes.

        Raises:
          DataError: a folder is missing or empty.
        """
        raise NotImplementedError

    def examples(self, split, start, stop):
        """Slices of a checked split, with the bytes of the files where they need no recoding."""
        for found in self._found[split][start:stop]:
            data, height, width = images.read_slice(found.item.path.read_bytes(), self.channels)
            yield {
                "file": found.item.name,
                "image": data,
                "height": height,
                "width": width,
                "channels": self.channels,
                **self.truth(found),
            }

    def truth(self, found: Inspected) -> dict[str, Any]:
        """The features of a slice besides the picture."""
        raise NotImplementedError


class CtLesionSeg(FolderBuilder):
    """CT slices with lesion masks, from <root>/<split>/{imgs,masks}, and perhaps instances.

    Slices are PNG or JPEG files in 8 bits, masks PNG files of the same name with the values of the
    set's classes. PNG files of the same name in instances, of 8 or 16 bits, have the number of the
    object of each pixel, 0 outside; without that folder objects are components of the mask.
    """

    part = "seg"
    subfolders = ("imgs", "masks")

    @staticmethod
    def slices_of(folder, findings):
        """Slices of imgs with the masks, and the numbers of objects, of the same name."""
        masks = folder / "masks"
        if not masks.is_dir():
            raise DataError(f"there is no folder {masks}; masks go beside imgs, as PNG files")
        numbered = any((split / NUMBERS).is_dir() for split in folder.parent.iterdir())
        slices = []
        for path in folders.list_images(folder / "imgs"):
            mask, numbers = (folder / kind / f"{path.stem}.png" for kind in ("masks", NUMBERS))
            item = Slice(
                folder.name,
                path.name,
                path.name,
                path,
                mask if mask.is_file() else None,
                numbers=numbers if numbers.is_file() else None,
            )
            if item.mask is None:
                findings.add("missing_mask", item.where)
            elif numbered and item.numbers is None:
                findings.add("missing_numbers", item.where)
            slices.append(item)
        return slices

    def truth(self, found):
        """The mask, the areas of its objects, and their numbers where they have some."""
        mask = images.read_mask(found.item.mask.read_bytes()).astype(np.uint8)
        areas = {name: found.mask[name] for name in map(area_field, self.groups)}
        own = {"mask": images.encode(mask, level=6), **areas}
        if self.numbered:
            numbers = images.read_numbers(found.item.numbers.read_bytes(), mask)
            own["numbers"] = images.encode(numbers.astype(np.uint16), level=6)
        return own


class CtClasses(FolderBuilder):
    """CT slices with a class, from <root>/<split>/<class>_<patient>_<scan>_<slice>.png.

    The class is the number of one of the set's classes.
    """

    part = "cls"

    @staticmethod
    def slices_of(folder, findings):
        """Slices whose names start with their class."""
        slices, numbers = [], {str(number): number for number in findings.classes.numbers}
        for path in folders.list_images(folder):
            match = _CLASS_FILE.fullmatch(path.stem)
            label = numbers.get(match["number"]) if match else None
            item = Slice(folder.name, path.name, path.name, path, label=label)
            if label is None:
                findings.add("unknown_class" if match else "bad_name", item.where)
            slices.append(item)
        return slices

    def truth(self, found):
        """The class."""
        return {"label": found.item.label}
