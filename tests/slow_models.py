"""Models that take as long as is wanted. In: weights and milliseconds a window. Out: ONNX, and the quick twin's equal numbers.

A window whose mean square lies within `band` costs so many turns of a loop; others, such as those that a model is tried with when it is
loaded, cost nothing. The loop's result is multiplied by zero.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from kymo.streams.chunk import Array

_WIDE = np.linalg.qr(np.random.default_rng(0).standard_normal((160, 160)))[0].astype(np.float32)


def slow_onnx(weights: Array, shape: Sequence[int], band: tuple[float, float], ms: float = 0.0) -> bytes:
    """Logits = means of each channel over time and bins, times ``weights`` (channels, labels); `shape` is channels last."""
    return _onnx(weights, tuple(shape), band, round(ms / _turn_ms()) if ms else 0)


def _onnx(weights: Array, shape: tuple[int, ...], band: tuple[float, float], turns: int) -> bytes:
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["windows", "inner"], ["means"], keepdims=0),
        node("MatMul", ["means", "weights"], ["quick"]),
        node("Mul", ["windows", "windows"], ["squares"]),
        node("ReduceMean", ["squares", "all"], ["level"], keepdims=0),
        node("Greater", ["level", "low"], ["above"]),
        node("Less", ["level", "high"], ["below"]),
        node("And", ["above", "below"], ["within"]),
        node("Cast", ["within"], ["ones"], to=TensorProto.INT64),
        node("ReduceSum", ["ones"], ["count"], keepdims=0),
        node("Mul", ["count", "turns"], ["trips"]),
        node("Loop", ["trips", "true", "wide"], ["last"], body=_turn()),
        node("ReduceMax", ["last"], ["top"], keepdims=0),
        node("Mul", ["top", "zero"], ["nothing"]),
        node("Add", ["quick", "nothing"], ["logits"]),
    ]
    constants = {
        "inner": np.arange(1, len(shape)),
        "all": np.arange(1, len(shape) + 1),
        "weights": weights.astype(np.float32),
        "low": np.float32(band[0]),
        "high": np.float32(band[1]),
        "turns": np.int64(turns),
        "true": np.array(True),
        "wide": _WIDE,
        "zero": np.float32(0),
    }
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _turn() -> Any:
    """One turn: a product of matrices."""
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("MatMul", ["before", "wide"], ["after"]), helper.make_node("Identity", ["going"], ["goes"])],
        "turn",
        [
            info("i", TensorProto.INT64, []),
            info("going", TensorProto.BOOL, []),
            info("before", TensorProto.FLOAT, _WIDE.shape),
        ],
        [info("goes", TensorProto.BOOL, []), info("after", TensorProto.FLOAT, _WIDE.shape)],
    )


@cache
def _turn_ms(turns: int = 400) -> float:
    """Milliseconds that one turn takes here, at best."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = _onnx(np.ones((2, 2)), (16, 2), (0, 99), turns)
    session, windows = onnxruntime.InferenceSession(graph, options), np.ones((1, 16, 2), np.float32)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        session.run(None, {"windows": windows})
        best = min(best, time.perf_counter() - started)
    return best / turns * 1000
