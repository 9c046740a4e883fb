"""Training at batch size 1: both steps, a whole iteration, and the input pipeline alone."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import models
from benchmarks.timing import UNIT, Case, compiled_case, gemm_case
from ssm_jax.config import ModelConfig, paper_config
from ssm_jax.data.batches import make_train_iterator
from ssm_jax.data.datasets import open_datasets
from ssm_jax.models import convolution, ssm, winograd
from ssm_jax.training.state import state_from_variables
from ssm_jax.training.steps import make_steps

# Objects of the slice, as rows and columns of equal boxes: each of them is one positive RoI.
OBJECTS = {8: (2, 4), 32: (4, 8), 128: (8, 16)}
SLOTS = 32  # of a slice's objects, or as many as it has
PIPELINE_BATCHES = 40


class Trainer:
    """The steps of a model compiled for batches of a size, and the state they pass on."""

    def __init__(
        self,
        batch_size: int = 1,
        counts: tuple[int, ...] = (8, 32),
        model: ModelConfig | None = None,
    ):
        """Compiles both steps.

        Args:
          batch_size: slices.
          counts: keys of OBJECTS, the positives of a slice.
          model: None: R18**.
        """
        config = paper_config("r18_3")
        config.train.learning_rate = (
            0.0  # a model that learns finds more positives, which take longer
        )
        self.model = model or models.model_config()
        # Copies: the steps take the state for their own.
        variables = jax.tree.map(jnp.copy, models.variables(self.model))
        self.state = state_from_variables(variables, jax.random.key(0))
        images, sizes = models.slices(batch_size), models.sizes(batch_size)
        self.batches = {
            count: jax.device_put(_segmentation_batch(images, sizes, *OBJECTS[count]))
            for count in counts
        }
        labels = np.arange(batch_size, dtype=np.int32) % 3
        self.classification_batch = jax.device_put(
            {"image": images, "image_size": sizes, "label": labels}
        )
        self.compile_s, self.steps = [], []
        for step, batch in zip(
            make_steps(self.model, config.train),
            (self.batches[counts[0]], self.classification_batch),
            strict=True,
        ):
            start = time.perf_counter()
            self.steps.append(step.lower(self.state, batch).compile())
            self.compile_s.append(time.perf_counter() - start)

    def segment(self, objects: int) -> dict:
        """A segmentation step; waits for it."""
        self.state, metrics = self.steps[0](self.state, self.batches[objects])
        return jax.block_until_ready(metrics)

    def classify(self) -> dict:
        """A classification step; waits for it."""
        self.state, metrics = self.steps[1](self.state, self.classification_batch)
        return jax.block_until_ready(metrics)

    def iterate(self, objects: int) -> None:
        """A whole iteration: the second step waits for the first on the device alone."""
        self.state, _ = self.steps[0](self.state, self.batches[objects])
        self.classify()


def step_cases() -> list[Case]:
    """Gradients of kernels, the steps at 8, 32 and 128 positives, and whole iterations."""
    trainer, crowded = Trainer(), Trainer(counts=(128,))
    config = trainer.model
    extract = compiled_case(
        UNIT,
        lambda variables, *args: ssm.stage(config, variables, "extract", *args, train=False),
        models.variables(config),
        models.slices(1),
        models.sizes(1),
        note="the unit",
    )
    cases = [gemm_case(), extract, *convolution_cases()]
    for count in OBJECTS:
        owner = trainer if count in trainer.batches else crowded
        positives = int(owner.segment(count)["positives"])
        name = f"segmentation step, {count} positives"
        note = "" if positives == count else f"{positives} positives"
        run = bound(owner.segment, count)
        cases.append(Case(name, run, compile_s=owner.compile_s[0], note=note))
    cases.append(Case("classification step", trainer.classify, compile_s=trainer.compile_s[1]))
    cases += [Case(f"iteration, {n} positives", bound(trainer.iterate, n)) for n in (8, 32)]
    return [*cases, pipeline_case()]


def convolution_cases() -> list[Case]:
    """3x3 convolutions of the backbone for one slice, and gradients of their kernels."""

    def by_compiler(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def gradient_by_compiler(x, gradient):
        kernel = jnp.zeros((3, 3, x.shape[-1], gradient.shape[-1]))
        return jax.linear_transpose(lambda kernel: by_compiler(x, kernel), kernel)(gradient)

    def gradient_by_products(x, gradient):
        return convolution.kernel_gradient(x, gradient, 3, 1, 1)

    forward = {"by the compiler": by_compiler, "by Winograd's algorithm": winograd.convolve}
    backward = {
        "by the compiler": gradient_by_compiler,
        "by products": gradient_by_products,
        "by Winograd's algorithm": winograd.kernel_gradient,
    }
    cases = []
    for cells, channels in ((128, 64), (64, 128), (32, 256)):
        rng = np.random.default_rng(0)
        x, gradient = rng.standard_normal((2, 1, cells, cells, channels), np.float32)
        kernel = rng.standard_normal((3, 3, channels, channels), np.float32)
        for what, ways, other in (
            ("3x3 convolution", forward, kernel),
            ("gradient of a kernel", backward, gradient),
        ):
            for way, run in ways.items():
                cases.append(compiled_case(f"{what}, {channels} channels, {way}", run, x, other))
    return cases


def pipeline_case() -> Case:
    """The input pipeline alone, on prepared phantom slices: one pair of slices a batch."""
    config = paper_config("r18_3")
    folder = tempfile.mkdtemp(prefix="ssm_jax_benchmark_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config.data.data_dir = folder
    config.data.prefetch = 1  # its threads would decode on while the next case runs
    config.data.phantom.update(seg_train=24, seg_test=2, cls_train=24, cls_test=3)
    batches = make_train_iterator(open_datasets(config), config)

    def run():
        for _ in range(PIPELINE_BATCHES):
            next(batches)

    name = f"input pipeline, {PIPELINE_BATCHES} pairs of slices"
    return Case(name, run, images=PIPELINE_BATCHES)


def bound(function, *args):
    """A call with its arguments, to be made later."""
    return lambda: function(*args)


def _segmentation_batch(images, sizes, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Slices with rows * columns objects each: rectangles, in slots for the most there are."""
    most = max(SLOTS, rows * columns)
    boxes = np.zeros((most, 4), np.float32)
    instances = np.zeros((models.SIZE, models.SIZE), np.uint8)
    height, width = models.SIZE // rows, models.SIZE // columns
    for index in range(rows * columns):
        top, left = index // columns * height, index % columns * width
        bottom, right = top + height * 3 // 4, left + width * 3 // 4
        boxes[index] = left, top, right, bottom
        instances[top : bottom + 1, left : right + 1] = index + 1
    count = len(images)
    return {
        "image": images,
        "image_size": sizes,
        "instances": np.stack([instances] * count),
        "boxes": np.stack([boxes] * count),
        "labels": np.ones((count, most), np.int32),
        "valid": np.stack([np.arange(most) < rows * columns] * count),
    }
