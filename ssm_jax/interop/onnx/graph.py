"""A graph of ONNX operators that is written like arithmetic on arrays."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8  # the one that came with this operator set: older runtimes refuse later ones
FLOAT, INT32, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
)
Kernel = Float32[np.ndarray, "out in height width"]
Weights = Float32[np.ndarray, "..."]


class Value:
    """A tensor of a graph; operators between it and others, or constants, add nodes."""

    def __init__(self, graph: Graph, name: str):
        """Takes the graph and the name of the tensor in it."""
        self.graph, self.name = graph, name

    def __add__(self, other: Any) -> Value:
        return self.graph.op("Add", self, other)

    def __sub__(self, other: Any) -> Value:
        return self.graph.op("Sub", self, other)

    def __mul__(self, other: Any) -> Value:
        return self.graph.op("Mul", self, other)

    def __truediv__(self, other: Any) -> Value:
        return self.graph.op("Div", self, other)

    def __lt__(self, other: Any) -> Value:
        return self.graph.op("Less", self, other)

    def __gt__(self, other: Any) -> Value:
        return self.graph.op("Greater", self, other)

    def __and__(self, other: Value) -> Value:
        return self.graph.op("And", self, other)


class Graph:
    """Nodes and constants in the order in which they are added.

    Nodes are named by their part of the model, their operator and its number there.

    Constants are NumPy arrays or Python numbers; whole numbers become int64, others float32.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._part = ""
        self._named: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Names of nodes that are added meanwhile begin with `name` and a slash."""
        self._part, before = f"{self._part}{name}/", self._part
        try:
            yield
        finally:
            self._part = before

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> Value:
        """Adds an input of the model; sides that are texts are free."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return Value(self, name)

    def output(self, name: str, value: Value, kind: int, shape: Sequence[int | str]) -> None:
        """Makes a value an output of the model, under a name of its own."""
        self._nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def model(self, name: str) -> onnx.ModelProto:
        """The whole graph as a model."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._constants.values())
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)

    def constant(self, value: Any) -> Value:
        """A constant tensor."""
        array = np.asarray(value)
        if array.dtype.kind == "i" and array.dtype != np.int32:
            array = array.astype(np.int64)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32)
        name = f"{self._part}constant_{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return Value(self, name)

    def several(self, kind: str, *inputs: Any, count: int, **attributes: Any) -> list[Value]:
        """Adds an operator of `count` outputs."""
        names = [x.name if isinstance(x, Value) else self.constant(x).name for x in inputs]
        kind_in_part = f"{self._part}{kind}"
        name = f"{kind_in_part}_{self._named[kind_in_part]}"
        self._named[kind_in_part] += 1
        outputs = [f"{name}:{index}" for index in range(count)]
        self._nodes.append(helper.make_node(kind, names, outputs, name=name, **attributes))
        return [Value(self, output) for output in outputs]

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Value:
        """Adds an operator of one output."""
        (value,) = self.several(kind, *inputs, count=1, **attributes)
        return value

    # Shapes.

    def side(self, value: Value, axis: int) -> Value:
        """The length of an axis: int64 [1]."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def concat(self, values: Sequence[Any], axis: int) -> Value:
        """Values one after another along an axis."""
        return self.op("Concat", *values, axis=axis)

    def reshape(self, value: Value, shape: Sequence[int | Value]) -> Value:
        """Another shape; sides are numbers (-1: what is left) or int64 [1]."""
        return self.op("Reshape", value, self._shape(shape))

    def full(self, shape: Sequence[int | Value], fill: float | int) -> Value:
        """One number in all places: float32 or int64."""
        kind = np.float32 if isinstance(fill, float) else np.int64
        value = numpy_helper.from_array(np.array([fill], kind))
        return self.op("ConstantOfShape", self._shape(shape), value=value)

    def count(self, end: Value) -> Value:
        """The whole numbers from 0 below `end`, int64 [1]."""
        return self.op("Range", 0, self.op("Squeeze", end), 1)

    def _shape(self, sides: Sequence[int | Value]) -> Value:
        if not any(isinstance(side, Value) for side in sides):
            return self.constant(np.array(sides, np.int64))
        return self.concat([s if isinstance(s, Value) else np.array([s]) for s in sides], axis=0)

    def expand_dims(self, value: Value, *axes: int) -> Value:
        """Adds axes of length 1."""
        return self.op("Unsqueeze", value, np.array(axes))

    def cut(self, value: Value, axis: int, start: int, end: int) -> Value:
        """A part of an axis."""
        return self.op("Slice", value, np.array([start]), np.array([end]), np.array([axis]))

    def split(self, value: Value, axis: int, count: int) -> list[Value]:
        """Cuts an axis into parts of length 1."""
        return self.several("Split", value, np.ones(count, np.int64), count=count, axis=axis)

    def cast(self, value: Value, kind: int) -> Value:
        """Another type."""
        return self.op("Cast", value, to=kind)

    # Layers.

    def conv(
        self, x: Value, kernel: Kernel, bias: Weights, stride: int = 1, group: int = 1
    ) -> Value:
        """A square convolution padded by half its kernel, of [b, in, h, w]."""
        pads, strides = [kernel.shape[2] // 2] * 4, [stride] * 2
        return self.op("Conv", x, kernel, bias, strides=strides, pads=pads, group=group)

    def dense(self, x: Value, kernel: Weights, bias: Weights) -> Value:
        """A linear layer [in, out] of [n, in]."""
        return self.op("Gemm", x, kernel, bias)

    def relu(self, x: Value) -> Value:
        """The positive part."""
        return self.op("Relu", x)

    def roi_align(
        self, features: Value, boxes: Value, images: Value, bins: int, scale: float
    ) -> Value:
        """RoIAlign as `ops.roi_align`: [n, C, bins, bins] of boxes [n, 4] of given images [n]."""
        return self.op(
            "RoiAlign",
            features,
            boxes,
            images,
            mode="avg",
            output_height=bins,
            output_width=bins,
            sampling_ratio=2,
            spatial_scale=scale,
            # The name of what is not shifted by half a pixel.
            coordinate_transformation_mode="output_half_pixel",
        )

    # Choosing.

    def where(self, condition: Value, value: Any, other: Any) -> Value:
        """`value` where the condition holds, else `other`."""
        return self.op("Where", condition, value, other)

    def take(self, value: Value, indices: Value) -> Value:
        """Rows of every image: value [b, N, *] at indices [b, k] -> [b, k, *]."""
        return self.op("GatherND", value, self.expand_dims(indices, 2), batch_dims=1)

    def top(self, values: Value, count: Value | np.ndarray) -> list[Value]:
        """The largest values [b, k] of each image and their indices; lower ones first of equals."""
        return self.several("TopK", values, count, count=2, axis=1)

    def nms(
        self, boxes: Value, scores: Value, iou_threshold: float, count: int, lowest: float
    ) -> tuple[Value, Value]:
        """Greedy NMS as `ops.nms.nms`.

        The operator does not say in what order it gives the survivors, so they are ranked here.

        Args:
          boxes: [b, N, 4].
          scores: [b, N].
          iou_threshold: in [0, 1].
          count: the best so many survivors are kept, k.
          lowest: boxes of no larger score take no part.

        Returns:
          Indices [b, k] by decreasing score, 0 in unused slots; and the slots in use, bool [b, k].
        """
        limits = [np.array([x], np.float32) for x in (iou_threshold, lowest)]
        by_class = self.expand_dims(scores, 1)
        found = self.op("NonMaxSuppression", boxes, by_class, np.array([count]), *limits)
        places = self.op("Gather", found, np.array([0, 2]), axis=1)  # image and box
        width = self.side(scores, 1) + np.array([count])  # there may be fewer boxes than slots
        nothing = self.full([self.side(scores, 0), width], -np.inf)
        alive = self.op("ScatterND", nothing, places, self.op("GatherND", scores, places))
        values, indices = self.top(alive, np.array([count]))
        used = values > -np.inf
        return self.where(used, indices, 0), used
