"""When a run trains, evaluates and saves."""

from __future__ import annotations

import dataclasses

import ml_collections


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a run does what; steps are iterations done.

    Attributes:
      total: iterations of the run.
      batch_size: pairs of slices an iteration.
      epoch_slices: classification slices of an epoch; segmentation slices where these are all.
      evaluation_interval: iterations between evaluations; 0: at the end of every epoch.
      checkpoint_interval: iterations between checkpoints; 0: only where evaluated and at the end.
      classification_from: iterations of segmentation alone, before both steps are taken.
      segmentation_every: iterations from one segmentation step to the next after that; 0: none.
    """

    total: int
    batch_size: int
    epoch_slices: int
    evaluation_interval: int
    checkpoint_interval: int
    classification_from: int
    segmentation_every: int = 1

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, epoch_slices: int) -> Plan:
        """The plan of a configuration, given the number of slices of an epoch."""
        train = config.train
        total = train.max_steps or -(-train.epochs * epoch_slices // train.batch_size)
        return cls(
            total=total,
            batch_size=train.batch_size,
            epoch_slices=epoch_slices,
            evaluation_interval=config.eval.every_steps,
            checkpoint_interval=config.checkpoint.every_steps,
            classification_from=train.classification_from if config.model.image_classes else total,
            segmentation_every=train.segmentation_every,
        )

    def classifies(self, step: int) -> bool:
        """Whether the iteration after so many takes a classification step."""
        return step >= self.classification_from

    def segments(self, step: int) -> bool:
        """Whether the iteration after so many takes a segmentation step."""
        if not self.classifies(step):
            return True
        every = self.segmentation_every
        return every > 0 and (step - self.classification_from) % every == 0

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated after so many iterations."""
        if step == 0 or step == self.total:
            return step > 0
        if self.evaluation_interval:
            return step % self.evaluation_interval == 0
        return self._epochs(step) > self._epochs(step - 1)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after so many iterations."""
        regular = self.checkpoint_interval and step % self.checkpoint_interval == 0
        return bool(regular) or step == self.total or self.evaluates(step)

    def _epochs(self, step: int) -> int:
        return step * self.batch_size // self.epoch_slices
