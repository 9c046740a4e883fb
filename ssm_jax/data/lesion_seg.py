"""The builder `ct_lesion_seg`: a folder of slices with lesion masks."""

from __future__ import annotations

import numpy as np

from ssm_jax.data import folders, images
from ssm_jax.data.folder_builder import FolderBuilder


class CtLesionSeg(FolderBuilder):
    """CT slices with lesion masks, from <root>/<split>/{imgs,masks}.

    Slices are PNG or JPEG files in 8 bits, masks PNG files of the same name with the values
    0 background, 1 lung, 2 ground glass, 3 consolidation.
    """

    part = "seg"
    subfolders = ("imgs", "masks")
    check = staticmethod(folders.check_segmentation)

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
                **file.areas,
            }
