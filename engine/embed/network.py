"""A small trained network as ONNX: made of its weights, checked, and run by onnxruntime.

Always true
  - Two graphs of the same weights: `forward`, vectors of length `share`, and `gradient`, how the inputs move a vector
    in a given direction: explanations need no torch.
  - The same input gives the same bytes in any batch: one thread, and every row is summed in the same order.
  - A graph that comes from outside is taken only if it is what we would make of its weights (`prove`): running it reads
    no file, calls nothing, and costs what ours cost.

    scaled [n, inputs] -> Clip -> Gemm, Relu -> Gemm, Relu -> Gemm -> L2 norm 1 -> x share -> vectors [n, width]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.embed.base import F32
from engine.errors import ModelError

OPSET = 18
IR_VERSION = 9
SEEN_MAX = 2.0  # robust deviations: beyond, a network would extend what it learned to where it saw nothing
LENGTH_MIN = 1e-6  # shorter outputs are not made longer: the way back stays finite


class Layer(NamedTuple):
    """y = x W' + b. weights: float32 [outputs, inputs]; bias: float32 [outputs]."""

    weights: F32
    bias: F32


class Network:
    """forward, gradient: the two graphs as bytes. Loaded at the first use."""

    def __init__(self, forward: bytes, gradient: bytes, inputs: int, width: int) -> None:
        self.forward, self.gradient, self.inputs, self.width = forward, gradient, inputs, width

    def vectors(self, scaled: NDArray[np.float64]) -> F32:
        """float32 [n, width] of scaled events, float64 [n, inputs]."""
        if not len(scaled):
            return np.empty((0, self.width), np.float32)
        (out,) = self._forward.run(None, {"scaled": scaled.astype(np.float32)})
        return np.asarray(out)

    def pulled(self, scaled: NDArray[np.float64], direction: NDArray[np.float64]) -> F32:
        """float32 [n, inputs]: how the inputs of n scaled events move a vector along `direction`, float64 [width]."""
        along = np.tile(direction.astype(np.float32), (len(scaled), 1))
        (out,) = self._gradient.run(None, {"scaled": scaled.astype(np.float32), "direction": along})
        return np.asarray(out)

    def prove(self) -> None:
        """Raises ModelError unless both graphs are what `graphs` makes of the weights in them, and run."""
        given = [_parsed(graph) for graph in (self.forward, self.gradient)]
        expected = [_parsed(graph) for graph in graphs(*_weights(given[0]))]
        for model, ours in zip(given, expected, strict=True):
            if model.graph != ours.graph or model.opset_import != ours.opset_import or model.functions:
                raise ModelError("a network is not of the form that ours have: other operators, shapes or parts")
        blank = np.zeros((1, self.inputs))
        self.vectors(blank)
        self.pulled(blank, np.ones(self.width))

    @cached_property
    def _forward(self) -> Any:
        return _session(self.forward, {"scaled": self.inputs}, self.width)

    @cached_property
    def _gradient(self) -> Any:
        return _session(self.gradient, {"scaled": self.inputs, "direction": self.width}, self.inputs)


def _session(graph: bytes, inputs: dict[str, int], width: int) -> Any:
    """Raises ModelError where the graph does not load, or is not of these shapes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = {i.name: i.shape[1] for i in session.get_inputs()}
        (gives,) = [out.shape[1] for out in session.get_outputs()]
    except Exception as e:  # onnxruntime raises many classes, all derived from Exception
        raise ModelError(f"a network does not load: {str(e)[:200]}") from e
    if found != inputs or gives != width:
        raise ModelError(f"a network takes {found} and gives {gives}, not {inputs} and {width}")
    return session


def _parsed(graph: bytes) -> Any:
    """Raises ModelError for what is not ONNX, or keeps weights in another file."""
    import onnx

    try:
        model = onnx.load_model_from_string(graph)
    except Exception as e:  # protobuf's own classes
        raise ModelError(f"a network is not ONNX: {str(e)[:200]}") from e
    if any(t.external_data or t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ModelError("a network keeps weights in another file; only what is inside is taken")
    return model


def _weights(model: Any) -> tuple[list[Layer], float]:
    """The layers and the share that a graph of ours was made of. Raises ModelError."""
    from onnx import numpy_helper

    try:
        tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        count = sum(name.startswith("weights_") for name in tensors)
        layers = [Layer(tensors[f"weights_{i}"], tensors[f"bias_{i}"]) for i in range(count)]
        share = float(tensors["share"])
    except Exception as e:  # numpy's and onnx's own classes
        raise ModelError(f"a network is not of the form that ours have: {str(e)[:200]}") from e
    if not layers or any(w.ndim != 2 or b.shape != w.shape[:1] for w, b in layers):
        raise ModelError("a network is not of the form that ours have: its layers are no matrices with a bias")
    if not np.isfinite(share) or not all(np.isfinite(w).all() and np.isfinite(b).all() for w, b in layers):
        raise ModelError("a network has weights that are not finite")
    return layers, share


def graphs(layers: Sequence[Layer], share: float) -> tuple[bytes, bytes]:
    """forward and gradient of these layers. The same weights give the same bytes."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [t for i, layer in enumerate(layers) for t in (
        numpy_helper.from_array(np.ascontiguousarray(layer.weights, np.float32), f"weights_{i}"),
        numpy_helper.from_array(np.ascontiguousarray(layer.bias, np.float32), f"bias_{i}"),
    )]  # fmt: skip
    constants = [
        numpy_helper.from_array(np.array(share, np.float32), "share"),
        numpy_helper.from_array(np.array(LENGTH_MIN, np.float32), "length_min"),
        numpy_helper.from_array(np.array(-SEEN_MAX, np.float32), "seen_min"),
        numpy_helper.from_array(np.array(SEEN_MAX, np.float32), "seen_max"),
        numpy_helper.from_array(np.array([1], np.int64), "by_row"),
    ]
    forward, last = [helper.make_node("Clip", ["scaled", "seen_min", "seen_max"], ["seen"])], "seen"
    for i in range(len(layers)):
        forward.append(helper.make_node("Gemm", [last, f"weights_{i}", f"bias_{i}"], [f"sum_{i}"], transB=1))
        last = f"sum_{i}"
        if i < len(layers) - 1:
            forward.append(helper.make_node("Relu", [last], [f"active_{i}"]))
            last = f"active_{i}"
    forward += [
        helper.make_node("ReduceL2", [last, "by_row"], ["length_any"], keepdims=1),
        helper.make_node("Max", ["length_any", "length_min"], ["length"]),
        helper.make_node("Div", [last, "length"], ["unit"]),
        helper.make_node("Mul", ["unit", "share"], ["vectors"]),
    ]
    # d(direction . share o/|o|)/do = share (direction - unit (unit . direction)) / |o|, then back through the layers
    backward = [
        helper.make_node("Mul", ["unit", "direction"], ["along_each"]),
        helper.make_node("ReduceSum", ["along_each", "by_row"], ["along"], keepdims=1),
        helper.make_node("Mul", ["unit", "along"], ["kept"]),
        helper.make_node("Sub", ["direction", "kept"], ["turned"]),
        helper.make_node("Mul", ["turned", "share"], ["turned_share"]),
        helper.make_node("Div", ["turned_share", "length"], [f"back_{len(layers) - 1}"]),
    ]
    for i in range(len(layers) - 1, -1, -1):
        out = f"through_{i - 1}" if i else "through"
        backward.append(helper.make_node("MatMul", [f"back_{i}", f"weights_{i}"], [out]))
        if i:
            backward += [
                helper.make_node("Sign", [f"active_{i - 1}"], [f"open_{i - 1}"]),
                helper.make_node("Mul", [out, f"open_{i - 1}"], [f"back_{i - 1}"]),
            ]
    backward += [
        helper.make_node("Abs", ["scaled"], ["size"]),
        helper.make_node("Sub", ["seen_max", "size"], ["room"]),
        helper.make_node("Relu", ["room"], ["room_left"]),
        helper.make_node("Sign", ["room_left"], ["inside"]),
        helper.make_node("Mul", ["through", "inside"], ["gradient"]),
    ]
    inputs, width = layers[0].weights.shape[1], len(layers[-1].bias)

    def value(name: str, columns: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["events", columns])

    def model(name: str, nodes: list[Any], takes: list[Any], gives: Any) -> bytes:
        graph = helper.make_graph(nodes, name, takes, [gives], [*weights, *constants])
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="flowkin"
        )
        return bytes(made.SerializeToString(deterministic=True))

    return (
        model("forward", forward, [value("scaled", inputs)], value("vectors", width)),
        model(
            "gradient", forward[:-1] + backward,
            [value("scaled", inputs), value("direction", width)], value("gradient", inputs),
        ),
    )  # fmt: skip
