"""The builder `ct_phantom`: slices drawn from a seed, for segmentation and classification."""

from __future__ import annotations

import dataclasses

import tensorflow_datasets as tfds

from ssm_jax.data.folders import progress
from ssm_jax.data.indexed import IndexedBuilder
from ssm_jax.data.phantom.slices import GENERATOR_VERSION
from ssm_jax.data.phantom.worker import encoded_slices

PROCESSES = 2


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
    """A phantom set; make it with `CtPhantom.config_of`, which names it after its parameters.

    part: "seg" or "cls". seed: of the whole set. size: pixels of either side. train, test: slices.
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
        """The builder's config for a set of these parameters."""
        name = f"{part}-v{GENERATOR_VERSION}-{size}px-{train}-{test}-seed{seed}"
        return PhantomConfig(name=name, part=part, seed=seed, size=size, train=train, test=test)

    @property
    def part(self) -> str:
        """ "seg" or "cls"."""
        return self.builder_config.part

    @property
    def channels(self) -> int:
        """Phantoms are grey."""
        return 1

    def split_sizes(self):
        """Slices of both splits."""
        return {"train": self.builder_config.train, "test": self.builder_config.test}

    def examples(self, split, start, stop):
        """Slices made by several processes."""
        config = self.builder_config
        if start == 0:
            total = self.split_sizes()[split]
            self._made = progress(
                encoded_slices(config.seed, config.part, split, 0, total, config.size, PROCESSES),
                total,
                f"making the phantom ({config.part}, {split})",
            )
        for _ in range(start, stop):
            yield next(self._made)
        if stop == self.split_sizes()[split]:
            next(self._made, None)  # ends the workers and the progress bar
