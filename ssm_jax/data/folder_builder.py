"""What the builders of slices in a folder have in common."""

from __future__ import annotations

import dataclasses
import pathlib

import tensorflow_datasets as tfds

from ssm_jax.data import folders
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
      train_split: name of the subfolder to train on.
      test_split: name of the subfolder to evaluate on.
      images_folder: subfolder of a split that holds its slices, if not the split itself.
      masks_folder: subfolder of a split that holds its masks, if any.

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


class FolderBuilder(IndexedBuilder):
    """Slices from the subfolders of a folder, one a split.

    Attributes:
      subfolders: of a split, that hold its slices and its masks; empty if the split itself does.
    """

    subfolders: tuple[str, ...] = ()

    @classmethod
    def config_of(
        cls, root: str, train_split: str = "train", test_split: str = "test"
    ) -> FolderConfig:
        """The builder's config for a folder; see `folder_config`."""
        return folder_config(root, train_split, test_split, *cls.subfolders)

    @staticmethod
    def check(folder: pathlib.Path, channels: int) -> list:
        """Checks all files of a split; returns them, or raises DataError."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Channels of the slices, 1 or 3: those of the first training slice."""
        return self.builder_config.channels

    def split_sizes(self):
        """Checks all files before anything is written; raises DataError."""
        root = pathlib.Path(self.builder_config.root)
        self._files = {
            split: self.check(root / folder, self.channels)
            for split, folder in zip(SPLITS, self.builder_config.splits, strict=True)
        }
        return {split: len(files) for split, files in self._files.items()}
