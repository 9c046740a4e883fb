"""A whole scan through the model: batches of slices, read ahead, and their summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ssm_jax import sharding
from ssm_jax.predictor import Prediction, Predictor
from ssm_jax.scans.body import body_mask
from ssm_jax.scans.masks import label_map
from ssm_jax.scans.options import ScanError, guarded
from ssm_jax.scans.placed import PlacedVolume
from ssm_jax.scans.result import ScanResult, SliceResult
from ssm_jax.scans.source import Scan, Slice
from ssm_jax.scans.summary import summarize, thicknesses

A = TypeVar("A")
B = TypeVar("B")
_IN_BODY = 0.9  # share of the lesions' volume below which there is a warning
Shown = Callable[[int, np.ndarray, Prediction], None]


class LungMask(PlacedVolume):
    """A lung mask in patient coordinates; its voxels are bool."""

    @classmethod
    def load(cls, path: str, what: str = "the lung mask") -> LungMask:
        """Reads a NIfTI volume whose voxels other than 0 are lung.

        Raises:
          ScanError: nibabel is missing, or this is no such volume.
        """
        volume = super().load(path, what)
        voxels = volume.voxels != 0
        if voxels.ndim != 3 or not voxels.any():
            raise ScanError(f"{what} {path} must be one volume, with voxels other than 0")
        return cls(voxels, volume.to_voxel)


def predict_scan(
    predictor: Predictor,
    scan: Scan,
    *,
    rule: str = "mean",
    progress: Callable[[int, int], None] | None = None,
    lung: LungMask | None = None,
    keep_images: bool = True,
    shown: Shown | None = None,
) -> ScanResult:
    """Predicts the slices of a scan.

    While the masks of a batch are summed up the model works on the next, and the one after that is
    read. A slice that cannot be read is told in its result and stops nothing. Of several processes
    each predicts its share of the batches, and all get all results.

    Args:
      predictor: the model.
      scan: from `open_scans`.
      rule: of the summary, one of `summary.RULES`.
      progress: called with the slices done and those of the scan, first with 0.
      lung: for the share of the lung; the scan must know where it lies.
      keep_images: whether results hold the slices' pixels; without, memory does not grow with them.
      shown: called with index, pixels and prediction of each slice that this process read.

    Returns:
      The slices' results, in order, and their summary.

    Raises:
      ScanError: the scan cannot be read at all, or a lung mask that does not meet it.
    """
    if scan.error:
        raise ScanError(f"{scan.name}: {scan.error}")
    if lung is not None and any(s.affine is None for s in scan.slices if s.position is not None):
        raise ScanError(f"{scan.name}: a lung mask needs a scan that knows where its slices lie")
    found: dict[int, tuple[SliceResult, np.ndarray]] = {}
    total, size = len(scan.slices), predictor.batch_size
    process, processes = jax.process_index(), jax.process_count()
    report = progress or (lambda done, total: None)
    report(0, total)
    starts = range(process * size, total, processes * size)

    def predict(batch):
        read = [(image, slice_.aspect) for slice_, image, _ in batch if image is not None]
        images, aspects = [image for image, _ in read], [aspect for _, aspect in read]
        return batch, iter(predictor.predict_batch(images, aspects=aspects))

    chunks = [scan.slices[start : start + size] for start in starts]
    batches = _ahead(predict, _ahead(_read_all, chunks))
    for start, (batch, predictions) in zip(starts, batches, strict=True):
        for index, (slice_, image, error) in enumerate(batch, start):
            if image is None:
                result = SliceResult(slice_.name, None, None, error, slice_.position)
                found[index] = result, np.zeros(len(_Counts._fields), int)
                continue
            prediction = next(predictions)
            if shown is not None:
                shown(index, image, prediction)
            kept = image if keep_images else None
            result = SliceResult(slice_.name, kept, prediction, None, slice_.position)
            found[index] = result, np.array(_count(slice_, image, prediction, scan, lung))
        report(min(len(found) * processes, total), total)
    scan.release()
    for part in sharding.gather(found):
        found |= part
    results = [found[index][0] for index in range(total)]
    counts = _Counts(*np.array([found[index][1] for index in range(total)]).reshape(total, -1).T)
    together = _together(scan, results, counts, rule, lung is not None)
    return dataclasses.replace(together, classes=predictor.classes)


class _Counts(NamedTuple):
    """Pixels of a slice, or [N] of all slices."""

    lesion: Any
    lesion_in_body: Any
    lesion_in_lung: Any
    lung: Any


def _count(
    slice_: Slice, image: np.ndarray, prediction: Prediction, scan: Scan, lung: LungMask | None
) -> _Counts:
    """Counts the pixels of one slice that was predicted."""
    lesions = label_map(prediction) > 0
    lesion = in_body = int(np.count_nonzero(lesions))
    in_lung = of_lung = 0
    if scan.tissue is not None and lesion:
        in_body = int(np.count_nonzero(lesions & body_mask(image, scan.tissue)))
    if lung is not None and slice_.affine is not None:
        within = lung.of_slice(slice_, *lesions.shape)
        in_lung, of_lung = (int(np.count_nonzero(x)) for x in (lesions & within, within))
    return _Counts(lesion, in_body, in_lung, of_lung)


def _together(
    scan: Scan, results: list[SliceResult], counts: _Counts, rule: str, has_lung: bool
) -> ScanResult:
    """The result of a scan from those of its slices."""
    if has_lung and not counts.lung.sum():
        raise ScanError(f"{scan.name}: the lung mask lies elsewhere: no pixel of the scan is in it")
    voxel_ml, weights = None, np.ones(len(results))
    if scan.spacing:
        apart, *pixel = scan.spacing
        places = [result.position if result.prediction else None for result in results]
        weights = thicknesses(places, apart)
        voxel_ml = weights * np.prod(pixel) / 1000
    summary = summarize(
        [result.prediction for result in results],
        counts.lesion.tolist(),
        rule,
        voxel_ml,
        in_lung=(counts.lesion_in_lung @ weights, counts.lung @ weights) if has_lung else None,
        in_body=counts.lesion_in_body if scan.tissue is not None else None,
    )
    warnings = list(scan.warnings)
    in_body = None if summary is None else summary.body_share
    if in_body is not None and in_body < _IN_BODY:
        warnings.append(
            f"{1 - in_body:.0%} of the lesions by volume lie outside of the body, where "
            "there are none (the table, or what lies on it?); look at them"
        )
    return ScanResult(scan.name, scan.kind, dict(scan.facts), warnings, results, summary)


def _ahead(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yields what a function gives for each item, at work on the next one in a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[B] | None = None
        for item in items:
            ready, waiting = waiting, pool.submit(function, item)
            if ready is not None:
                yield ready.result()
        if waiting is not None:
            yield waiting.result()


def _read_all(slices: list[Slice]) -> list[tuple[Slice, np.ndarray | None, str | None]]:
    """The pixels of slices, or else why there are none."""
    batch: list[tuple[Slice, np.ndarray | None, str | None]] = []
    for slice_ in slices:
        # Whatever a damaged file does, the other slices are still predicted.
        try:
            with guarded("cannot be read"):
                image = slice_.read()
                if image.size == 0 or image.shape[2:] not in ((), (3,)):
                    raise ScanError(f"has the shape {list(image.shape)}, which is none of a slice")
            batch.append((slice_, image, None))
        except ScanError as error:
            batch.append((slice_, None, str(error)))
    return batch
