"""The builder `ct_classes`: a folder of slices whose names start with their class."""

from __future__ import annotations

from ssm_jax.data import folders, images
from ssm_jax.data.folder_builder import FolderBuilder


class CtClasses(FolderBuilder):
    """CT slices in three classes, from <root>/<split>/<class>_<patient>_<scan>_<slice>.png.

    The class is 0 normal, 1 common pneumonia or 2 COVID-19.
    """

    part = "cls"
    check = staticmethod(folders.check_classes)

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
