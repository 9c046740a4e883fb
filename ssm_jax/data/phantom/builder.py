"""The builder `ct_phantom`: slices drawn from a seed, for segmentation and classification."""

from __future__ import annotations

import dataclasses
import itertools

import tensorflow_datasets as tfds

from ssm_jax.data.folders import progress
from ssm_jax.data.indexed import IndexedBuilder
from ssm_jax.data.phantom.drawing import encoded_slices
from ssm_jax.data.phantom.slices import GENERATOR_VERSION

PROCESSES = 2


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
    """A phantom set; make it with `CtPhantom.config_of`, which names it after its parameters.

    Attributes:
      part: "seg" or "cls".
      seed: of the whole set.
      size: pixels of either side.
      train: slices for training.
      test: slices for the evaluation.
    """

    part: str = "seg"
    seed: int = 0
    size: int = 512
    train: int = 0
    test: int = 0


class CtPhantom(IndexedBuilder):
    """Chest-CT-like slices made procedurally from a seed: no data of patients.

    Two parts: "seg", slices with lesion masks; "cls", slices in three classes in equal shares. The
    test slices are other patients than the training slices, and the parts share none.
    """

    @staticmethod
    def config_of(part: str, seed: int, size: int, train: int, test: int) -> PhantomConfig:
        """The builder's config for a set of these parameters; see `PhantomConfig`."""
        name = f"{part}-v{GENERATOR_VERSION}-{size}px-{train}-{test}-seed{seed}"
        return PhantomConfig(name=name, part=part, seed=seed, size=size, train=train, test=test)

    @property
    def part(self) -> str:
        """ "seg" or "cls"."""
        return self.builder_config.part

    @property
    def channels(self) -> int:
        """Phantoms are gray."""
        return 1

    def split_sizes(self):
        """Slices of both splits."""
        return {"train": self.builder_config.train, "test": self.builder_config.test}

    def estimated_bytes(self):
        """A byte a pixel: a compressed slice takes less, its mask nearly nothing."""
        return sum(self.split_sizes().values()) * self.builder_config.size**2

    def examples(self, split, start, stop):
        """Slices drawn while they are asked for; the calls go through a split in order."""
        config, total = self.builder_config, self.split_sizes()[split]
        if start == 0:
            drawn = encoded_slices(config.seed, config.part, split, config.size, total, PROCESSES)
            self._drawn = progress(drawn, total, f"making the phantom ({config.part}, {split})")
        yield from itertools.islice(self._drawn, stop - start)
        if stop == total:
            next(self._drawn, None)  # ends the processes and the progress bar
