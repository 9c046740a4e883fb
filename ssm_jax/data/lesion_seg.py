"""The builder `ct_lesion_seg`: a folder of slices with lesion masks."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from ssm_jax.data import folders, images
from ssm_jax.data.indexed import SPLITS, IndexedBuilder


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """Where a set comes from; make it with `folder_config`, which names it after the content.

    root: the folder. splits: names of the subfolders for training and test. channels: 1 or 3.
    """

    root: str = ""
    splits: tuple[str, str] = SPLITS
    channels: int = 1


def folder_config(
    root: str, train_split: str, test_split: str, images_folder: str = "", masks_folder: str = ""
) -> FolderConfig:
    """Names a folder by its listing, so that a changed folder is prepared again.

    Args:
      root: folder with one subfolder a split.
      train_split, test_split: names of these subfolders.
      images_folder, masks_folder: subfolders of a split that hold slices and masks, if any.

    Raises:
      DataError: a folder is missing or empty.
    """
    top = pathlib.Path(root).expanduser().resolve()
    splits = (train_split, test_split)
    listed = [folders.list_images(top / split / images_folder) for split in splits]
    holding = [top / split / name for split in splits for name in {images_folder, masks_folder}]
    key = folders.folder_key(sorted(holding), f"{top} {splits}")
    channels = folders.channels_of(listed[0])
    return FolderConfig(name=f"{top.name}-{key}", root=str(top), splits=splits, channels=channels)


class CtLesionSeg(IndexedBuilder):
    """CT slices with lesion masks, from <root>/<split>/{imgs,masks}.

    Slices are PNG or JPEG files in 8 bits, masks PNG files of the same name with the values
    0 background, 1 lung, 2 ground glass, 3 consolidation.
    """

    part = "seg"

    @staticmethod
    def config_of(root: str, train_split: str = "train", test_split: str = "test") -> FolderConfig:
        """The builder's config for a folder; see `folder_config`."""
        return folder_config(root, train_split, test_split, "imgs", "masks")

    @property
    def channels(self) -> int:
        """Channels of the slices, 1 or 3: those of the first training slice."""
        return self.builder_config.channels

    def split_sizes(self):
        """Checks all files before anything is written; raises DataError."""
        config = self.builder_config
        self._files = {
            split: folders.check_segmentation(pathlib.Path(config.root) / folder, config.channels)
            for split, folder in zip(SPLITS, config.splits, strict=True)
        }
        return {split: len(files) for split, files in self._files.items()}

    def examples(self, split, start, stop):
        """Slices of a checked split, with the bytes of the files where they need no recoding."""
        for file in self._files[split][start:stop]:
            data, height, width = images.read_slice(file.path.read_bytes(), self.channels)
            mask = images.read_mask(file.mask.read_bytes()).astype(np.uint8)
            yield {
                "file": file.name,
                "image": data,
                "mask": images.encode(mask, level=6),
                "height": height,
                "width": width,
                "channels": self.channels,
                "areas": list(file.areas),
            }
