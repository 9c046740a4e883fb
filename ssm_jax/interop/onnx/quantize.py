"""Large layers in 8 bits: static quantization by the ranges that calibration slices show."""

from __future__ import annotations

import logging
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnxruntime import quantization

# The last layers of the RPN and of the mask head rank boxes and draw outlines: they stay in float.
PARTS = (
    *("backbone/", "fpn/", "rpn/Conv_0", "rpn/Relu_0", "branches/fc6/"),
    *(f"mask_head/{kind}_{index}" for kind in ("Conv", "Relu") for index in (0, 1)),
)
OPERATORS = ("Conv", "Gemm", "Relu", "MaxPool", "Add")  # layers, and what lies between two


def quantized(model: onnx.ModelProto, slices: Sequence[np.ndarray]) -> onnx.ModelProto:
    """A model whose convolutions, and first layers of the box branches, take 8 bits.

    Weights have a scale for each output channel, activations one for each tensor, between their
    least and their largest value on the slices. Weights keep one bit less, for processors without
    instructions of their own for such products add pairs of them in 16 bits.

    Args:
      model: of `model.build`.
      slices: each [h, w], what the model takes.
    """
    nodes = [
        node.name
        for node in model.graph.node
        if node.op_type in OPERATORS and node.name.startswith(PARTS)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        former = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it advises steps that this graph has no use for
        try:
            quantization.quantize_static(
                model,
                path,
                _Slices(slices),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATORS),
                nodes_to_quantize=nodes,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        finally:
            logging.root.setLevel(former)
        return onnx.load_model(str(path))


class _Slices(quantization.CalibrationDataReader):
    """Feeds slices one at a time."""

    def __init__(self, slices: Sequence[np.ndarray]):
        """Takes them."""
        self._feeds: Iterator[dict[str, np.ndarray]] = iter({"images": x[None]} for x in slices)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input; None at the end."""
        return next(self._feeds, None)
