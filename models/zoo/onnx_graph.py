"""ONNX graphs, written node by node, and architectures that are one. In: operations, names of values, numbers. Out: ONNX bytes, the same
for the same graph.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kymo.models.onnx_model import OnnxModel
from kymo.models.zoo import Epoch, Samples
from kymo.streams.chunk import Array

OPSET, IR_VERSION = 18, 10


class Graph:
    """An ONNX graph in the making; values and constants are numbered in the order in which they are made."""

    def __init__(self, letter: str = "v") -> None:  # with which the names of values begin
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._letter = letter

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def node(self, kind: str, inputs: Sequence[Any], output: str = "", **attributes: Any) -> str:
        """Add a node with one output and give its name. An input is a name, or numbers that become a constant of their own dtype."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output = output or f"{self._letter}{len(self.nodes)}"
        self.node_of(kind, names, [output], **attributes)
        return output

    def node_of(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node with several outputs; an empty name is one that nobody needs."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), **attributes))

    def dense(self, value: str, kernel: Array, bias: Array | None, output: str = "") -> str:
        """Turn ``(n, inputs, …)`` into ``(n, outputs, …)`` by `kernel` ``(inputs, outputs)``; the axes behind stay."""
        weights = [kernel.T[:, :, None, None]] if bias is None else [kernel.T[:, :, None, None], bias]
        return self.node("Conv", [value, *weights], output)

    def model(self, inputs: Mapping[str, Sequence[Any]], outputs: Mapping[str, Sequence[Any]]) -> bytes:
        """Give ONNX bytes; inputs and outputs are float32, with their shapes."""
        from onnx import TensorProto, checker, helper

        def values(shapes: Mapping[str, Sequence[Any]]) -> list[Any]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(s)) for name, s in shapes.items()]

        graph = helper.make_graph(self.nodes, "model", values(inputs), values(outputs), self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        checker.check_model(proto, full_check=True)
        return clean_onnx(proto)


def clean_onnx(proto: Any) -> bytes:
    """Take off what exporters add for debugging, source paths, stack traces, their version, and give the bytes.

    Equal models then have equal bytes, wherever they were exported.
    """
    proto.producer_name = proto.producer_version = proto.doc_string = ""
    graph = proto.graph
    graph.name, graph.doc_string = "model", ""
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


class GraphArchitecture:
    """Learns at once from raw windows, and predicts by the very graph that it exports."""

    layout: ClassVar[str] = "channels_first"
    packages: ClassVar[tuple[str, ...]] = ("onnx",)
    takes: ClassVar[str] = "raw"
    at_once: ClassVar[bool] = True
    shape: tuple[int, int]  # ``(channels, time)`` of the windows
    labels: int
    columns: int  # of the output

    @abstractmethod
    def write(self, graph: Graph, input_name: str, output_name: str) -> None:
        """Add all nodes."""

    def export(self, path: Path, input_name: str, output_name: str) -> None:
        path.write_bytes(self._graph(input_name, output_name))

    def _graph(self, input_name: str, output_name: str) -> bytes:
        graph = Graph("t")
        self.write(graph, input_name, output_name)
        return graph.model({input_name: ("n", *self.shape)}, {output_name: ("n", self.columns)})

    def predict(self, windows: Array) -> Array:
        return OnnxModel(self._graph("windows", "out"), "windows", "out").run(np.asarray(windows, np.float32))

    def only_epoch(self, loss: float, validation: Samples | None) -> Epoch:
        """Give the numbers of a fit that learns at once."""
        epoch: Epoch = {"epoch": 1, "loss": loss}
        if validation is None:
            return epoch
        logits = self.predict(validation.windows)[:, : self.labels].astype(np.float64)
        right = float((logits.argmax(1) == validation.classes).mean())
        return epoch | {"validation_loss": cross_entropy(logits, validation.classes), "validation_accuracy": right}


def cross_entropy(
    logits: NDArray[np.float64], classes: NDArray[np.int64], weights: NDArray[np.float64] | None = None
) -> float:
    """Average over samples, each with its class's weight if there are weights."""
    top = logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(classes)), classes]
    return float(np.average(losses, weights=None if weights is None else weights[classes]))
