"""The whole inference of a model as ONNX operators, part by part as in `ssm_jax.models`.

Feature maps are [b, C, h, w], as ONNX has them. BN layers are folded into the convolutions before
them, and the three equal channels of a slice into the first convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from ssm_jax.config import ModelConfig
from ssm_jax.interop.onnx.graph import BOOL, FLOAT, INT32, INT64, Graph, Kernel, Value, Weights
from ssm_jax.interop.portable import ExportSettings
from ssm_jax.models import layers, resnet
from ssm_jax.models.roi_heads import BOX_BINS, MASK_BINS
from ssm_jax.models.ssm import LESION
from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops import images as image_ops
from ssm_jax.ops import roi_batch
from ssm_jax.ops.anchors import cell_anchors
from ssm_jax.ops.masks import MASK_SIZE
from ssm_jax.predictor import PADDING_MULTIPLE

Tree = Mapping[str, Any]
LEAST = -0.5  # scores lie above, and boxes that take no part have OUT
OUT = -1.0


class Size(NamedTuple):
    """Height and width of the slices without padding, int64 [1]."""

    height: Value
    width: Value


class Proposals(NamedTuple):
    """Boxes [b, P, 4] and which of them are valid, bool [b, P]."""

    boxes: Value
    valid: Value


class BoxOutputs(NamedTuple):
    """Softmax scores [b, P, K] and deltas [b, P, K, 4] of a box branch."""

    scores: Value
    deltas: Value


class Detections(NamedTuple):
    """The outputs of these names, see `models.inference.Predictions`."""

    boxes: Value
    scores: Value
    labels: Value
    valid: Value


def build(config: ModelConfig, variables: Tree, settings: ExportSettings) -> onnx.ModelProto:
    """The graph of a model; see `file.write` for the arguments, the inputs and the outputs."""
    thresholds = (settings.score_threshold, settings.nms_threshold)
    graph = Graph()
    variables = jax.tree.map(np.asarray, dict(variables))
    params, stats = variables["params"], variables["batch_stats"]
    kind = {"uint8": onnx.TensorProto.UINT8, "float32": FLOAT}[settings.input_type]
    images = graph.input("images", kind, ["b", "h", "w"])
    pixels, size = gray_and_inside(graph, images, settings.input_type)
    with graph.part("backbone"):
        features = backbone(graph, config, params["backbone"], stats["backbone"], pixels)
    with graph.part("fpn"):
        features = fpn(graph, params["fpn"], features)
    with graph.part("rpn"):
        objectness, deltas = rpn_head(graph, params["rpn"], features)
        anchors = grid_anchors(graph, config, features)
        proposals = propose(graph, config, objectness, deltas, anchors, size)
    with graph.part("branches"):
        pooled = align(graph, config, features, proposals.boxes, BOX_BINS)
        segmented = box_branch(graph, params["segmentation_branch"], pooled, proposals)
        classified = segmented
        if config.branches == 2:
            classified = box_branch(graph, params["classification_branch"], pooled, proposals)
    if config.image_classes:
        with graph.part("module_s"):
            rows = select_rois(graph, config, classified, proposals, size)
            logits = module_s(graph, params["module_s"], rows)
        graph.output("class_logits", logits, FLOAT, ["b", config.image_classes])
    with graph.part("detections"):
        found = detect(graph, config, segmented, proposals, size, *thresholds)
    slots: list[int | str] = ["b", config.max_detections]
    graph.output("boxes", found.boxes, FLOAT, [*slots, 4])
    graph.output("scores", found.scores, FLOAT, slots)
    graph.output("labels", found.labels, INT32, slots)
    graph.output("valid", found.valid, BOOL, slots)
    if settings.masks:
        with graph.part("mask_head"):
            probabilities = predict_masks(graph, config, params["mask_head"], features, found)
        shape = [*slots, MASK_SIZE, MASK_SIZE]
        graph.output("mask_probabilities", probabilities, FLOAT, shape)
    return graph.model("ssm")


def gray_and_inside(graph: Graph, images: Value, input_type: str) -> tuple[Value, Size]:
    """`ops.images.gray_and_inside`: [b, 2, H, W].

    Returns:
      The two maps, H and W multiples of 32; and the size without padding.
    """
    size = Size(graph.side(images, 1), graph.side(images, 2))
    gray = graph.cast(graph.expand_dims(images, 1), FLOAT)
    if input_type == "uint8":
        gray = gray / 255.0
    inside = graph.op("Expand", np.ones((1, 1, 1, 1), np.float32), graph.op("Shape", gray))
    both = graph.concat([gray, inside], axis=1)
    multiple = np.array([PADDING_MULTIPLE])
    missing = [graph.op("Mod", side * -1, multiple) for side in size]  # of the divisor's sign
    pads = graph.concat([np.zeros(6, np.int64), *missing], axis=0)
    return graph.op("Pad", both, pads, 0.0), size


def folded(kernel: Weights, norm: Tree, stats: Tree) -> tuple[Kernel, Weights]:
    """Kernel and bias of a convolution with its BN layer."""
    factor = norm["scale"] / np.sqrt(np.float64(stats["var"]) + layers.BatchNorm.epsilon)
    return oihw(kernel * factor), np.asarray(norm["bias"] - stats["mean"] * factor, np.float32)


def oihw(kernel: Weights) -> Kernel:
    """A kernel [height, width, in, out] in ONNX's order of axes."""
    return np.asarray(kernel, np.float32).transpose(3, 2, 0, 1)


def backbone(graph: Graph, config: ModelConfig, params: Tree, stats: Tree, x: Value) -> Value:
    """`models.resnet.ResNet`."""
    kernel = np.asarray(image_ops.fold_normalization(jnp.asarray(params["conv1"]["kernel"])))
    kernel, bias = folded(kernel, params["bn1"], stats["bn1"])
    x = graph.relu(graph.conv(x, kernel, bias, stride=2))
    x = graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage in range(config.blocks):
        for index in range(resnet.DEPTHS[config.backbone][stage]):
            name, stride = f"layer{stage + 1}_{index}", 2 if stage > 0 and index == 0 else 1
            with graph.part(name):
                x = basic_block(graph, params[name], stats[name], x, stride)
    return x


def basic_block(graph: Graph, params: Tree, stats: Tree, x: Value, stride: int) -> Value:
    """`models.resnet.BasicBlock`."""

    def conv(x: Value, name: str, norm: str, stride: int) -> Value:
        kernel, bias = folded(params[name]["kernel"], params[norm], stats[norm])
        return graph.conv(x, kernel, bias, stride=stride)

    shortcut = x
    if "downsample_conv" in params:
        shortcut = conv(x, "downsample_conv", "downsample_bn", stride)
    x = graph.relu(conv(x, "conv1", "bn1", stride))
    return graph.relu(conv(x, "conv2", "bn2", 1) + shortcut)


def conv(graph: Graph, params: Tree, x: Value) -> Value:
    """A convolution with a bias."""
    return graph.conv(x, oihw(params["kernel"]), params["bias"])


def fpn(graph: Graph, params: Tree, x: Value) -> Value:
    """`models.fpn.FPN`."""
    return conv(graph, params["layer"], conv(graph, params["inner"], x))


def rpn_head(graph: Graph, params: Tree, features: Value) -> tuple[Value, Value]:
    """`models.rpn.RPNHead`: objectness [b, N] and deltas [b, N, 4]."""
    x = graph.relu(conv(graph, params["conv"], features))

    def by_anchor(name: str, *sides: int) -> Value:
        y = graph.op("Transpose", conv(graph, params[name], x), perm=[0, 2, 3, 1])
        return graph.reshape(y, [0, -1, *sides])

    return by_anchor("objectness"), by_anchor("deltas", 4)


def grid_anchors(graph: Graph, config: ModelConfig, features: Value) -> Value:
    """`ops.anchors.grid_anchors` of a feature map: [N, 4]."""
    cell = cell_anchors(config.anchor_sizes, config.anchor_ratios)
    rows, columns = (
        graph.cast(graph.count(graph.side(features, axis)), FLOAT) * float(config.stride)
        for axis in (2, 3)
    )
    moved = graph.expand_dims(rows, 1, 2, 3) * np.array([0, 1, 0, 1], np.float32)
    moved = moved + graph.expand_dims(columns, 0, 2, 3) * np.array([1, 0, 1, 0], np.float32)
    return graph.reshape(moved + cell, [-1, 4])


def decode(graph: Graph, deltas: Value, references: Value, weights: box_ops.Weights) -> Value:
    """`ops.boxes.decode`."""
    left, top, right, bottom = graph.split(references, -1, 4)
    dx, dy, dw, dh = graph.split(deltas / np.array(weights, np.float32), -1, 4)

    def ends(start: Value, end: Value, shift: Value, log_ratio: Value) -> tuple[Value, Value]:
        length = end - start
        center = shift * length + (start + length * 0.5)
        bounded = graph.op("Min", log_ratio, box_ops.MAX_LOG_RATIO)
        half = graph.op("Exp", bounded) * length * 0.5
        return center - half, center + half

    (left, right), (top, bottom) = ends(left, right, dx, dw), ends(top, bottom, dy, dh)
    return graph.concat([left, top, right, bottom], axis=-1)


def clip_to_image(graph: Graph, boxes: Value, size: Size) -> Value:
    """`ops.boxes.clip_to_image`."""
    limits = graph.concat([size.width, size.height] * 2, axis=0)
    return graph.op("Min", graph.op("Max", boxes, 0.0), graph.cast(limits, FLOAT))


def propose(
    graph: Graph,
    config: ModelConfig,
    objectness: Value,
    deltas: Value,
    anchors: Value,
    size: Size,
) -> Proposals:
    """`models.rpn.propose`."""
    before = graph.op("Min", np.array([config.rpn_pre_nms]), graph.side(objectness, 1))
    logits, top = graph.top(objectness, before)
    references = graph.op("Gather", anchors, top)
    boxes = decode(graph, graph.take(deltas, top), references, box_ops.RPN_WEIGHTS)
    boxes = clip_to_image(graph, boxes, size)
    threshold, count = config.rpn_nms_threshold, config.rpn_post_nms
    lowest = float(np.finfo(np.float32).min)
    kept, valid = graph.nms(boxes, logits, threshold, count, lowest)
    return Proposals(graph.take(boxes, kept), valid)


def align(graph: Graph, config: ModelConfig, features: Value, boxes: Value, bins: int) -> Value:
    """`models.ssm.align`: RoI features of all boxes [b, N, 4] of every image."""
    image = graph.expand_dims(graph.count(graph.side(boxes, 0)), 1)
    images = graph.op("Expand", image, graph.concat([np.array([1]), graph.side(boxes, 1)], axis=0))
    boxes, images = graph.reshape(boxes, [-1, 4]), graph.reshape(images, [-1])
    return graph.roi_align(features, boxes, images, bins, 1 / config.stride)


def box_branch(graph: Graph, params: Tree, pooled: Value, proposals: Proposals) -> BoxOutputs:
    """`models.roi_heads.BoxBranch` on the RoI features of all proposals."""

    def dense(x: Value, name: str, kernel: Weights | None = None) -> Value:
        kernel = params[name]["kernel"] if kernel is None else kernel
        with graph.part(name):
            return graph.dense(x, kernel, params[name]["bias"])

    kernel = params["fc6"]["kernel"].reshape(BOX_BINS, BOX_BINS, -1, params["fc6"]["bias"].size)
    kernel = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])  # channels come first here
    x = graph.relu(dense(graph.op("Flatten", pooled), "fc6", kernel))
    x = graph.relu(dense(x, "fc7"))
    images, count = (graph.side(proposals.boxes, axis) for axis in (0, 1))
    classes = params["logits"]["bias"].size
    scores = graph.op("Softmax", dense(x, "logits"), axis=-1)
    scores = graph.reshape(scores, [images, count, classes])
    deltas = graph.reshape(dense(x, "deltas"), [images, count, classes, 4])
    return BoxOutputs(scores, deltas)


def select_rois(
    graph: Graph,
    config: ModelConfig,
    outputs: BoxOutputs,
    proposals: Proposals,
    size: Size,
) -> Value:
    """`ops.roi_batch.select` of every image: rows [b, S, 5]."""
    score = graph.op("Gather", outputs.scores, LESION, axis=2)
    deltas = graph.op("Gather", outputs.deltas, LESION, axis=2)
    decoded = decode(graph, deltas, proposals.boxes, box_ops.ROI_WEIGHTS)
    decoded = clip_to_image(graph, decoded, size)
    left, top, right, bottom = graph.split(decoded, -1, 4)
    area = graph.op("Squeeze", (right - left) * (bottom - top), np.array([2]))
    ranking = graph.where(proposals.valid & (area > roi_batch.MIN_AREA), score, OUT)
    rows, threshold = config.selection_size, config.selection_nms_threshold
    ranked, kept = graph.nms(decoded, ranking, threshold, rows, LEAST)
    count = graph.op("ReduceSum", graph.cast(kept, INT64), np.array([1]))  # [b, 1]

    order = np.int64(roi_batch.starting_order(jax.random.key(0), rows))
    starts = graph.cast(count - 1 > order, INT64)
    stretched = graph.op("CumSum", starts, 1) - 1
    stretched = graph.where(count < rows, stretched, np.arange(rows)[None])
    indices = graph.op("GatherElements", ranked, stretched, axis=1)
    encoded = graph.concat([graph.expand_dims(score, 2), deltas], axis=2)
    found = graph.expand_dims(count > 0, 2)
    return graph.where(found, graph.take(encoded, indices), 0.0)


def module_s(graph: Graph, params: Tree, rows: Value) -> Value:
    """`models.module_s.ModuleS`: class logits [b, K]."""
    x = graph.op("Flatten", rows)
    for name in ("fc1", "fc2"):
        x = graph.relu(graph.dense(x, params[name]["kernel"], params[name]["bias"]))
    return graph.dense(x, params["logits"]["kernel"], params["logits"]["bias"])


def detect(
    graph: Graph,
    config: ModelConfig,
    outputs: BoxOutputs,
    proposals: Proposals,
    size: Size,
    score_threshold: float,
    nms_threshold: float,
) -> Detections:
    """`models.inference.detect`."""
    deltas = graph.cut(outputs.deltas, 2, 1, config.num_classes)
    references = graph.expand_dims(proposals.boxes, 2)
    decoded = decode(graph, deltas, references, box_ops.ROI_WEIGHTS)
    decoded = graph.reshape(clip_to_image(graph, decoded, size), [0, -1, 4])
    own = graph.cut(outputs.scores, 2, 1, config.num_classes)
    candidates = graph.expand_dims(proposals.valid, 2) & (own > score_threshold)
    ranking = graph.reshape(graph.where(candidates, own, OUT), [0, -1])
    lesion = np.tile(np.arange(1, config.num_classes), config.rpn_post_nms)
    apart = decoded
    if config.num_classes > 2:  # classes moved apart by more than the image do not meet in one NMS
        longest = graph.cast(graph.op("Max", size.height, size.width), FLOAT)
        apart = decoded + (longest + 1.0) * (lesion - 1).astype(np.float32)[:, None]
    kept, used = graph.nms(apart, ranking, nms_threshold, config.max_detections, LEAST)
    boxes = graph.where(graph.expand_dims(used, 2), graph.take(decoded, kept), 0.0)
    scores = graph.where(used, graph.op("GatherElements", ranking, kept, axis=1), 0.0)
    labels = graph.where(used, graph.op("Gather", lesion, kept), 0)
    return Detections(boxes, scores, graph.cast(labels, INT32), used)


def predict_masks(
    graph: Graph, config: ModelConfig, params: Tree, features: Value, found: Detections
) -> Value:
    """`models.inference.predict_masks`: probabilities [b, D, 28, 28] of the masks in use."""
    places = graph.op("Transpose", graph.op("NonZero", found.valid))  # [n, 2]: image and slot
    images = graph.op("Gather", places, 0, axis=1)
    boxes = graph.op("GatherND", found.boxes, places)
    x = graph.roi_align(features, boxes, images, MASK_BINS, 1 / config.stride)
    x = graph.relu(conv(graph, params["conv"], x))
    # The four cells that one becomes stay four groups of channels until only logits are left.
    kernel = params["upsample"]["kernel"].transpose(0, 1, 3, 2)  # [2, 2, out, in]
    kernel = kernel.reshape(-1, kernel.shape[-1])[..., None, None]
    x = graph.relu(graph.conv(x, kernel, np.tile(params["upsample"]["bias"], 4)))
    kernel, bias = params["logits"]["kernel"].T[..., None, None], params["logits"]["bias"]
    x = graph.conv(x, np.tile(kernel, (4, 1, 1, 1)), np.tile(bias, 4), group=4)
    x = graph.op("DepthToSpace", x, blocksize=2, mode="DCR")
    own = graph.expand_dims(graph.op("GatherND", graph.cast(found.labels, INT64), places), 1)
    probabilities = graph.op("Sigmoid", graph.op("GatherND", x, own, batch_dims=1))
    size = MASK_SIZE
    nothing = graph.full([graph.side(found.valid, 0), config.max_detections, size, size], 0.0)
    return graph.op("ScatterND", nothing, places, probabilities)
