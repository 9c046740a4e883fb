"""The single-shot model: parameters, and the passes that training and inference are made of."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PRNGKeyArray, Shaped, UInt8

from ssm_jax import sharding
from ssm_jax.config import ModelConfig
from ssm_jax.models import rpn
from ssm_jax.models.fpn import FPN
from ssm_jax.models.module_s import ModuleS
from ssm_jax.models.resnet import ResNet
from ssm_jax.models.roi_heads import BOX_BINS, MASK_BINS, BoxBranch, BoxOutputs, MaskHead
from ssm_jax.models.rpn import Proposals, RPNHead
from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops import roi_batch
from ssm_jax.ops.anchors import cell_anchors, grid_anchors
from ssm_jax.ops.images import gray_and_inside, normalize
from ssm_jax.ops.roi_chunks import map_rois, roi_align_batch

MASK_CHUNK = 8  # RoIs that the mask head reads at a time on a CPU
# RoIs that it reads at once on an accelerator: the least of these that holds those in use, or all.
MASK_BATCHES = (8, 32, 128, 512, 2048)
LESION = 1  # the class whose scores and deltas module S reads (of two: ground glass)

Variables = Mapping[str, Any]
T = TypeVar("T")


class SingleShotModel(nn.Module):
    """The parameters of the model, one submodule a stage (paper, figure 2).

    Each method runs one stage; the functions of this module chain them.

    Attributes:
      config: shapes everything.
    """

    config: ModelConfig

    def setup(self):
        """Creates the stages; parameter names follow from the attribute names."""
        config = self.config
        # None: layers compute in float32, the type of their parameters.
        dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
        per_example = config.bn_statistics == "example"
        backbone = (config.backbone, config.blocks, config.bn_momentum, per_example)
        self.backbone = ResNet(*backbone, dtype)
        self.fpn = FPN(dtype)
        self.rpn = RPNHead(len(config.anchor_sizes) * len(config.anchor_ratios), dtype)
        self.segmentation_branch = BoxBranch(config.num_classes, dtype)
        if config.branches == 2:
            self.classification_branch = BoxBranch(config.num_classes, dtype)
        self.mask_head = MaskHead(config.num_classes, dtype)
        if config.image_classes:
            self.module_s = ModuleS(config.image_classes, dtype)

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Touches every parameter once, for initialization; returns class logits of no meaning."""
        sizes = jnp.full((images.shape[0], 2), images.shape[1], jnp.int32)
        features = self.extract(images, sizes, train=False)
        self.score_anchors(features)
        self.segment_boxes(jnp.zeros((1, BOX_BINS, BOX_BINS, features.shape[-1])))
        self.classify_boxes(jnp.zeros((1, BOX_BINS, BOX_BINS, features.shape[-1])))
        self.predict_masks(jnp.zeros((1, MASK_BINS, MASK_BINS, features.shape[-1])))
        return self.read_class(jnp.zeros((images.shape[0], self.config.selection_size, 5)))

    def extract(
        self,
        images: UInt8[Array, "B H W C"] | Float[Array, "B H W C"],
        image_sizes: Int32[Array, "B 2"],
        train: bool,
        example_mask: Bool[Array, "B"] | None = None,
    ) -> Float[Array, "B h w 256"]:
        """Features of slices; see `ops.images.normalize` and `ResNet` for the arguments."""
        gray = images.shape[-1] == 1
        pixels = (gray_and_inside if gray else normalize)(images, image_sizes)
        return self.fpn(self.backbone(pixels, train, example_mask))

    def score_anchors(
        self, features: Float[Array, "B h w 256"]
    ) -> tuple[Float[Array, "B N"], Float[Array, "B N 4"]]:
        """Objectness and deltas of all anchors."""
        return self.rpn(features)

    def segment_boxes(self, roi_features: Float[Array, "N 7 7 256"]) -> BoxOutputs:
        """Outputs of the segmentation branch."""
        return self.segmentation_branch(roi_features)

    def classify_boxes(self, roi_features: Float[Array, "N 7 7 256"]) -> BoxOutputs:
        """Outputs of the branch that module S reads."""
        branch = self.classification_branch if self.config.branches == 2 else None
        return (branch or self.segmentation_branch)(roi_features)

    def predict_masks(self, roi_features: Float[Array, "N 14 14 256"]) -> Float[Array, "N 28 28 K"]:
        """Mask logits of every class."""
        return self.mask_head(roi_features)

    def read_class(self, rows: Float[Array, "B R 5"]) -> Float[Array, "B K"]:
        """Class logits from RoI batches; of no class (K = 0) without module S."""
        if not self.config.image_classes:
            return jnp.zeros((rows.shape[0], 0))
        return self.module_s(rows)


def init_variables(config: ModelConfig, key: PRNGKeyArray) -> dict[str, Any]:
    """Random parameters and fresh batch statistics: {"params": ..., "batch_stats": ...}.

    Both are nested dicts of float32 arrays (and of the int32 update count of each BN layer).
    """
    variables = jax.jit(SingleShotModel(config).init)(key, jnp.zeros((1, 64, 64, 1)))
    return {name: variables[name] for name in ("params", "batch_stats")}


@functools.lru_cache
def variable_shapes(config: ModelConfig) -> dict[str, Any]:
    """The shapes and types of `init_variables`, without computing it."""
    return jax.eval_shape(functools.partial(init_variables, config), jax.random.key(0))


def stage(config: ModelConfig, variables: Variables, method: str, *args, **kwargs) -> Any:
    """Runs one stage of the model, a method of `SingleShotModel`, on its inputs."""
    return SingleShotModel(config).apply(variables, *args, method=method, **kwargs)


@functools.lru_cache
def anchors_for(config: ModelConfig, feature_size: tuple[int, int]) -> Float32[np.ndarray, "N 4"]:
    """All anchors of a feature map of this (height, width), pixels."""
    cell = cell_anchors(config.anchor_sizes, config.anchor_ratios)
    return grid_anchors(cell, feature_size, config.stride)


def proposals_from(
    config: ModelConfig,
    variables: Variables,
    features: Float[Array, "B h w 256"],
    image_sizes: Int32[Array, "B 2"],
) -> Proposals:
    """Proposals from features by the RPN head, without gradient."""
    objectness, deltas = stage(config, variables, "score_anchors", features)
    anchors = jnp.asarray(anchors_for(config, features.shape[1:3]))
    return propose(config, objectness, deltas, anchors, image_sizes)


def propose(
    config: ModelConfig,
    objectness: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    anchors: Float[Array, "N 4"],
    image_sizes: Int32[Array, "B 2"],
) -> Proposals:
    """`rpn.propose`, by every device for its images."""

    def of_images(anchors, objectness, deltas, image_sizes):
        return rpn.propose(config, objectness, deltas, anchors, image_sizes)

    specs = (sharding.REPLICATED, *(sharding.SPLIT,) * 3)
    return sharding.per_device(of_images, specs)(anchors, objectness, deltas, image_sizes)


def align(
    config: ModelConfig, features: Float[Array, "B h w C"], boxes: Float[Array, "B N 4"], bins: int
) -> Float[Array, "B*N {bins} {bins} C"]:
    """RoIAlign of every image, by every device for its images."""

    def of_images(features, boxes):
        return roi_align_batch(features, boxes, bins, 1 / config.stride)

    return sharding.per_device(of_images)(features, boxes)


def read_boxes(
    config: ModelConfig,
    variables: Variables,
    features: Float[Array, "B h w C"],
    boxes: Float[Array, "B N 4"],
    branches: tuple[str, ...] = ("classify_boxes", "segment_boxes"),
) -> tuple[BoxOutputs, ...]:
    """RoIAlign and box branches of all boxes, for use without gradient.

    The branches read the RoI features of a few boxes at a time, which are never all kept.

    Args:
      config: the model.
      variables: of the model.
      features: of each image.
      boxes: pixels.
      branches: names of the stages that read the RoI features.

    Returns:
      The BoxOutputs of each branch, of B * N boxes.
    """

    def of_images(variables, features, boxes):
        def read(pooled):
            return tuple(stage(config, variables, branch, pooled) for branch in branches)

        return map_rois(read, features, boxes, BOX_BINS, 1 / config.stride)

    specs = (sharding.REPLICATED, sharding.SPLIT, sharding.SPLIT)
    return sharding.per_device(of_images, specs)(variables, features, boxes)


def select_rois(
    config: ModelConfig,
    outputs: BoxOutputs,
    proposals: Proposals,
    image_sizes: Int32[Array, "B 2"],
    keys: Key[Array, "B"],
) -> roi_batch.RoIBatch:
    """RoIBatchSelection of every image.

    Args:
      config: `selection_size` and `selection_nms_threshold` are read.
      outputs: of the classification branch on all B * P proposals.
      proposals: those proposals.
      image_sizes: (height, width), pixels.
      keys: of the stretching, one an image.

    Returns:
      RoIBatch with a leading axis B.
    """
    shape = proposals.valid.shape
    scores = jax.nn.softmax(outputs.logits)[:, LESION].reshape(shape)
    deltas = outputs.deltas[:, LESION].reshape(*shape, 4)

    def one(key, scores, deltas, boxes, valid, image_size):
        decoded = box_ops.decode(deltas, boxes, box_ops.ROI_WEIGHTS)
        decoded = box_ops.clip_to_image(decoded, image_size)
        size, threshold = config.selection_size, config.selection_nms_threshold
        return roi_batch.select(key, scores, deltas, decoded, valid, size, threshold)

    arrays = (scores, deltas, proposals.boxes, proposals.valid, image_sizes)
    return sharding.per_device(jax.vmap(one))(keys, *arrays)


def for_masks_in_use(
    counts: Int[Array, "B"], body: Callable[[Any, Array, Array], Any], init: Any
) -> Any:
    """A loop over the RoIs that have a mask, MASK_CHUNK of one image at a time.

    The first RoIs of each image are those in use, and only they are visited, so that few of them
    cost little. Under `vmap` all images would go as long as the longest. It has no gradient.

    Args:
      counts: RoIs in use of each image.
      body: (state, image index, first RoI of the chunk) -> state.
      init: the first state, a pytree of arrays.

    Returns:
      The last state.
    """
    chunks = -(-counts // MASK_CHUNK)
    ends = jnp.cumsum(chunks)

    def step(index, state):
        image = (ends <= index).sum().astype(jnp.int32)
        chunk = index - (ends[image] - chunks[image])
        return body(state, image, chunk * MASK_CHUNK)

    return lax.fori_loop(0, ends[-1], step, init)


def with_masks_in_use(in_use: Bool[Array, "B N"], function: Callable[[Int32[Array, "n"]], T]) -> T:
    """Calls a function with the RoIs that have a mask, those of all images together.

    It is compiled once for each number in MASK_BATCHES, so that few RoIs cost little. What
    `for_masks_in_use` does on a CPU, this does on accelerators.

    Args:
      in_use: RoIs that have a mask.
      function: of numbers of RoIs, counted through all images: those in use, then others that fill
        up; returns arrays whose shapes do not depend on how many these are.

    Returns:
      What the function returns.
    """
    images, slots = in_use.shape
    # The number of images is a symbol in programs for any batch size; then there is at least one.
    known = images * slots if isinstance(images, int) else slots
    sizes = [*(size for size in MASK_BATCHES if size < known), images * slots]
    first = jnp.argsort(~in_use.reshape(-1), stable=True).astype(jnp.int32)
    too_small = sum((jnp.sum(in_use) > size for size in sizes[:-1]), start=jnp.zeros((), jnp.int32))
    return lax.switch(too_small, [lambda s=size: function(first[:s]) for size in sizes])


def pad_to_chunks(array: Shaped[Array, "B N *n"]) -> Shaped[Array, "B M *n"]:
    """The entries of every image, padded by zeros to a multiple of MASK_CHUNK."""
    return jnp.pad(
        array, ((0, 0), (0, -array.shape[1] % MASK_CHUNK), *((0, 0),) * (array.ndim - 2))
    )


def chunk_of(
    array: Shaped[Array, "B N *n"], image: Int32[Array, ""], start: Int32[Array, ""]
) -> Shaped[Array, "chunk *n"]:
    """MASK_CHUNK entries of one image, from `start` on."""
    return lax.dynamic_slice_in_dim(array[image], start, MASK_CHUNK)
