"""Inference: each stage, and whole paths from a slice in memory to lesions in its own pixels."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import models
from benchmarks.timing import UNIT, Case, compiled_case, flop_of, gemm_case
from ssm_jax.models import inference, ssm
from ssm_jax.models.roi_heads import BOX_BINS
from ssm_jax.ops.images import normalize
from ssm_jax.ops.masks import encode_masks
from ssm_jax.ops.roi_chunks import roi_align_batch
from ssm_jax.predictor import Predictor

DETECTIONS = 16
BATCHES = (4, 16)


def stage_cases() -> list[Case]:
    """The unit, the yardstick, and the stages of one slice through R18**, 16 of its lesions."""
    config = models.model_config()
    variables = models.variables(config)
    image, size = models.slices(1), models.sizes(1)

    def run(method: str, **fixed) -> Callable:
        return lambda variables, *args: ssm.stage(config, variables, method, *args, **fixed)

    def propose(variables, objectness, deltas, size):
        anchors = jnp.asarray(ssm.anchors_for(config, (config.image_size // config.stride,) * 2))
        return ssm.propose(config, objectness, deltas, anchors, size)

    def heads(variables, pooled):
        return [ssm.stage(config, variables, f"{x}_boxes", pooled) for x in ("classify", "segment")]

    def read(variables, features, boxes):
        return ssm.read_boxes(config, variables, features, boxes)

    def select(outputs, proposals, size):
        keys = jnp.broadcast_to(jax.random.key(0), size.shape[:1])
        return ssm.select_rois(config, outputs, proposals, size, keys)

    def detect(outputs, proposals, size, threshold):
        return inference.detect(config, outputs, proposals, size, threshold, 0.5)

    def masks(variables, features, predictions):
        return inference.predict_masks(config, variables, features, predictions)

    extract = run("extract", train=False)
    features = jax.jit(extract)(variables, image, size)
    scored = jax.jit(run("score_anchors"))(variables, features)
    proposals = jax.jit(propose)(variables, *scored, size)
    pooled = roi_align_batch(features, proposals.boxes, BOX_BINS, 1 / config.stride)
    classified, segmented = jax.jit(read)(variables, features, proposals.boxes)
    selection = jax.jit(select)(classified, proposals, size)
    threshold = np.float32(threshold_for(Predictor(config, variables, 0), image[0], DETECTIONS))
    found = jax.jit(detect)(segmented, proposals, size, threshold)
    predictions = inference.Predictions(jnp.zeros((1, 3)), *found)
    probabilities = jax.jit(masks)(variables, features, predictions)
    predictions = predictions.replace(mask_probabilities=probabilities)
    on_host = jax.device_get(predictions)
    used = on_host.valid[0]

    def paste():
        masks = on_host.mask_probabilities[0][used]
        encode_masks(masks, on_host.boxes[0][used], models.SIZE, models.SIZE)

    wide = models.model_config("r18_2")
    cells = wide.image_size // wide.stride
    map_of_r18_2 = jnp.asarray(np.random.default_rng(0).random((1, cells, cells, 256), np.float32))

    def align(config):
        return lambda features, boxes: roi_align_batch(features, boxes, BOX_BINS, 1 / config.stride)

    boxes = proposals.boxes
    return [
        gemm_case(),
        compiled_case(UNIT, extract, variables, image, size, note="the unit"),
        compiled_case("normalize", normalize, image, size),
        compiled_case("RPN head", run("score_anchors"), variables, features),
        compiled_case("proposals (decode, NMS)", propose, variables, *scored, size),
        compiled_case("RoIAlign, 1000 boxes, stride 16", align(config), features, boxes),
        compiled_case("RoIAlign, 1000 boxes, stride 8", align(wide), map_of_r18_2, boxes),
        compiled_case("both box heads, 1000 boxes", heads, variables, pooled),
        compiled_case("RoIAlign and box heads in one", read, variables, features, boxes),
        compiled_case("RoI batch selection", select, classified, proposals, size),
        compiled_case("module S", run("read_class"), variables, selection.rows),
        compiled_case("detections (NMS)", detect, segmented, proposals, size, threshold),
        compiled_case(
            f"mask head, {used.sum()} detections",
            masks,
            variables,
            features,
            predictions,
            trips=-(-int(used.sum()) // ssm.MASK_CHUNK),
        ),
        Case(f"paste and encode, {used.sum()} masks", paste),
        Case("transfer to the host", lambda: jax.device_get(jax.tree.map(jnp.array, predictions))),
    ]


def path_cases() -> list[Case]:
    """Whole paths: uint8 slices in, predictions in pixels of the slices out."""
    cases = []
    for variant in ("r18_3", "r18_2", "r34_3"):
        config = models.model_config(variant)
        predictor = Predictor(config, models.variables(config), 0)
        name = models.NAMES[variant]
        cases.append(path_case(f"{name}: class alone", predictor, 1, None))
        counts = (0, DETECTIONS, config.max_detections) if variant == "r18_3" else (DETECTIONS,)
        cases += [
            path_case(f"{name}: class, boxes, masks of {count}", predictor, 1, count)
            for count in counts
        ]
    config = models.model_config()
    for size in BATCHES:
        predictor = Predictor(config, models.variables(config), 0, batch_size=size)
        name = f"R18**: class, boxes, masks of {DETECTIONS}, batch {size}"
        cases.append(path_case(name, predictor, size, DETECTIONS))
        cases.append(path_case(f"R18**: class alone, batch {size}", predictor, size, None))
    return cases


def threshold_for(predictor: Predictor, image: np.ndarray, count: int) -> float:
    """The score threshold at which a slice has so many detections: NMS goes by score, so that a
    threshold takes the last ones away and nothing else.

    Args:
      predictor: with a threshold of 0 and the most detections.
      image: [H, W, 1] uint8.
      count: detections wanted; what the slice gives at most is the most there can be.
    """
    scores = predictor(image[..., 0]).scores
    if count >= len(scores):
        return 0.0
    return float(scores[0] + 1) / 2 if count == 0 else float(scores[count - 1] + scores[count]) / 2


def path_case(name: str, predictor: Predictor, size: int, count: int | None) -> Case:
    """The whole path on `size` slices of `count` detections each; None: the class alone."""
    config, variables = predictor.model_config, predictor.variables
    # One slice many times: each then has as many detections as that one.
    images = [models.slices(1)[0][..., 0]] * size
    shapes = (models.slices(1).repeat(size, 0), models.sizes(size))
    if count is None:
        function = inference.make_classify_fn(config)
        flop = flop_of(function, variables, *shapes)
        return Case(name, lambda: predictor.class_logits(images), flop, size)
    threshold = threshold_for(predictor, models.slices(1)[0], count)
    own = Predictor(config, variables, threshold, batch_size=size)
    found = len(own.predict_batch(images)[0].scores)
    trips = size * -(-found // ssm.MASK_CHUNK)
    flop = flop_of(inference.make_predict_fn(config), variables, *shapes, trips=trips)
    note = "" if found == count else f"{found} detections"
    return Case(name, lambda: own.predict_batch(images), flop, size, note=note)
