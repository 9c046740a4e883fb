"""The builder `ct_classes`: a folder of slices whose names start with their class."""

from __future__ import annotations

import pathlib

from ssm_jax.data import folders, images
from ssm_jax.data.indexed import SPLITS, IndexedBuilder
from ssm_jax.data.lesion_seg import FolderConfig, folder_config


class CtClasses(IndexedBuilder):
    """CT slices in three classes, from <root>/<split>/<class>_<patient>_<scan>_<slice>.png.

    The class is 0 normal, 1 common pneumonia or 2 COVID-19.
    """

    part = "cls"

    @staticmethod
    def config_of(root: str, train_split: str = "train", test_split: str = "test") -> FolderConfig:
        """The builder's config for a folder; see `folder_config`."""
        return folder_config(root, train_split, test_split)

    @property
    def channels(self) -> int:
        """Channels of the slices, 1 or 3: those of the first training slice."""
        return self.builder_config.channels

    def split_sizes(self):
        """Checks all files before anything is written; raises DataError."""
        config = self.builder_config
        self._files = {
            split: folders.check_classes(pathlib.Path(config.root) / folder, config.channels)
            for split, folder in zip(SPLITS, config.splits, strict=True)
        }
        return {split: len(files) for split, files in self._files.items()}

    def examples(self, split, start, stop):
        """Slices of a checked split, with the bytes of the files where they need no recoding."""
        for file in self._files[split][start:stop]:
            data, height, width = images.read_slice(file.path.read_bytes(), self.channels)
            yield {
                "file": file.name,
                "image": data,
                "height": height,
                "width": width,
                "channels": self.channels,
                "label": file.label,
            }
