"""Plain NumPy versions of the detection operators, as loops: what the operators are tested by."""

import math

import numpy as np

MAX_LOG_RATIO = math.log(1000 / 16)


def area(box):
    """Area of one XYXY box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a, b):
    """Intersection over union of two XYXY boxes, 0 where the union is empty."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    intersection = width * height
    union = area(a) + area(b) - intersection
    return intersection / union if union > 0 else 0.0


def pairwise_iou(a, b):
    """IoU of every box of a with every box of b: [N, M] float64."""
    result = np.zeros((len(a), len(b)))
    for i, first in enumerate(np.asarray(a, np.float64).tolist()):
        for j, second in enumerate(np.asarray(b, np.float64).tolist()):
            result[i, j] = iou(first, second)
    return result


def encode(boxes, references, weights):
    """Deltas (dx, dy, dw, dh) that lead from references to boxes; float64."""
    rows = []
    for box, reference in zip(
        np.asarray(boxes, np.float64), np.asarray(references, np.float64), strict=True
    ):
        width, height = reference[2] - reference[0], reference[3] - reference[1]
        dx = ((box[0] + box[2]) / 2 - (reference[0] + reference[2]) / 2) / width
        dy = ((box[1] + box[3]) / 2 - (reference[1] + reference[3]) / 2) / height
        dw, dh = math.log((box[2] - box[0]) / width), math.log((box[3] - box[1]) / height)
        rows.append([w * d for w, d in zip(weights, (dx, dy, dw, dh), strict=True)])
    return np.array(rows)


def decode(deltas, references, weights):
    """Boxes that deltas lead to from references; float64."""
    rows = []
    for delta, reference in zip(
        np.asarray(deltas, np.float64), np.asarray(references, np.float64), strict=True
    ):
        dx, dy, dw, dh = (d / w for d, w in zip(delta, weights, strict=True))
        width, height = reference[2] - reference[0], reference[3] - reference[1]
        x = (reference[0] + reference[2]) / 2 + dx * width
        y = (reference[1] + reference[3]) / 2 + dy * height
        half_width = width * math.exp(min(dw, MAX_LOG_RATIO)) / 2
        half_height = height * math.exp(min(dh, MAX_LOG_RATIO)) / 2
        rows.append([x - half_width, y - half_height, x + half_width, y + half_height])
    return np.array(rows)


def nms(boxes, scores, threshold, valid=None):
    """Greedy suppression, one box at a time; returns the list of all kept indices, best first."""
    boxes = np.asarray(boxes, np.float64).tolist()
    candidates = np.flatnonzero(np.ones(len(boxes), bool) if valid is None else valid)
    kept = []
    for i in sorted(candidates.tolist(), key=lambda i: (-float(scores[i]), i)):
        if not any(iou(boxes[j], boxes[i]) > threshold for j in kept):
            kept.append(i)
    return kept


def _axis_taps(position, length):
    """The cells that linear interpolation reads, with their weights; none when too far outside."""
    if position < -1 or position > length:
        return []
    position = max(position, 0.0)
    low = int(position)
    if low >= length - 1:
        return [(length - 1, 1.0)]
    fraction = position - low
    return [(low, 1 - fraction), (low + 1, fraction)]


def roi_taps(box, shape, output_size, spatial_scale, sampling_ratio):
    """Yields (bin y, bin x, row, column, weight) of every cell that the RoI's bins read.

    A sampling ratio of 0 means adaptive: ceil(RoI side / output_size) samples a bin.
    """
    x1, y1, x2, y2 = (float(v) * spatial_scale for v in box)
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    bin_width, bin_height = width / output_size, height / output_size
    count_y = sampling_ratio or math.ceil(np.float32(height) / np.float32(output_size))
    count_x = sampling_ratio or math.ceil(np.float32(width) / np.float32(output_size))
    for py in range(output_size):
        for px in range(output_size):
            for sy in range(count_y):
                y = y1 + py * bin_height + (sy + 0.5) * bin_height / count_y
                for sx in range(count_x):
                    x = x1 + px * bin_width + (sx + 0.5) * bin_width / count_x
                    for row, weight_y in _axis_taps(y, shape[0]):
                        for column, weight_x in _axis_taps(x, shape[1]):
                            yield py, px, row, column, weight_y * weight_x / (count_y * count_x)


def roi_align(features, boxes, output_size, spatial_scale, sampling_ratio=2):
    """RoIAlign of features [H, W, C] without the half-pixel shift: [N, P, P, C] float64."""
    features = np.asarray(features, np.float64)
    result = np.zeros((len(boxes), output_size, output_size, features.shape[2]))
    for n, box in enumerate(boxes):
        taps = roi_taps(box, features.shape, output_size, spatial_scale, sampling_ratio)
        for py, px, row, column, weight in taps:
            result[n, py, px] += weight * features[row, column]
    return result


def roi_align_transpose(cotangent, shape, boxes, output_size, spatial_scale, sampling_ratio=2):
    """Gradient of <cotangent, roi_align(features)> with respect to features of the given shape."""
    result = np.zeros(shape)
    for n, box in enumerate(boxes):
        taps = roi_taps(box, shape, output_size, spatial_scale, sampling_ratio)
        for py, px, row, column, weight in taps:
            result[row, column] += weight * np.asarray(cotangent[n, py, px], np.float64)
    return result


def match(overlaps, valid, high, low, low_quality):
    """The matcher over IoUs [N, M]: (index [N], label [N]); the index counts where label is 1."""
    columns = np.flatnonzero(valid)
    index, label = np.zeros(len(overlaps), int), np.zeros(len(overlaps), int)
    if len(columns) == 0:
        return index, label
    best_of_column = {j: max(overlaps[i, j] for i in range(len(overlaps))) for j in columns}
    for i, row in enumerate(overlaps):
        index[i] = max(columns, key=lambda j: (row[j], -j))
        best = row[index[i]]
        label[i] = 1 if best >= high else 0 if best < low else -1
        if low_quality and any(row[j] == best_of_column[j] for j in columns):
            label[i] = 1
    return index, label


def _resize_taps(length_out, length_in):
    """Rows of linear interpolation (half-pixel centers, clamped): [length_out, length_in]."""
    weights = np.zeros((length_out, length_in))
    for i in range(length_out):
        position = max((i + 0.5) * length_in / length_out - 0.5, 0.0)
        low = min(int(position), length_in - 1)
        high = min(low + 1, length_in - 1)
        weights[i, low] += 1 - (position - low)
        weights[i, high] += position - low
    return weights


def pasted_corners(box, size=28):
    """The four corners of a box grown by (size + 2) / size, before truncation; float64."""
    x1, y1, x2, y2 = (float(v) for v in box)
    grow = (size + 2) / size / 2
    half_width, half_height = (x2 - x1) * grow, (y2 - y1) * grow
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return np.array([x - half_width, y - half_height, x + half_width, y + half_height])


def paste(probabilities, box, height, width):
    """A 28x28 mask pasted into an image: [height, width] float64."""
    size = probabilities.shape[0]
    left, top, right, bottom = (int(v) for v in pasted_corners(box, size))  # toward zero
    box_width, box_height = max(right - left + 1, 1), max(bottom - top + 1, 1)
    padded = np.zeros((size + 2, size + 2))
    padded[1:-1, 1:-1] = probabilities
    resized = _resize_taps(box_height, size + 2) @ padded @ _resize_taps(box_width, size + 2).T
    image = np.zeros((height, width))
    for y in range(max(top, 0), min(top + box_height, height)):
        for x in range(max(left, 0), min(left + box_width, width)):
            image[y, x] = resized[y - top, x - left]
    return image
