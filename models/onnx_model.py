"""An ONNX model as a function of a batch. In: windows, (n, *shape). Out: logits, (n, labels), equal bytes in any batch.

Matrix kernels choose their way by the size of the batch, so a row's last bits can depend on how many others stand
beside it. Which batches are safe is tried, not assumed: a `rule` says how windows are put together (:data:`RULES`). Vector
kernels begin at the next border of a vector, so last bits can depend on the place in memory, too: every input is aligned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from streams.chunk import Array
from streams.errors import BundleError

# Some builds report usage to their maker unless told not to.
ort.disable_telemetry_events()
#: From the cheapest to the safest: as they come; always 8, the rest zeros; one at a time.
RULES = ("any", "padded:8", "single")
#: More are run in several batches: beyond it nothing gets faster, while memory grows and falls out of the caches.
MAX_BATCH = 16
_TRIED = range(1, MAX_BATCH + 1)
_WINDOWS_TRIED = 32
_ALIGNMENT = 64  # bytes: the widest vector, and a cache line


class OnnxModel:
    """A loaded ONNX model."""

    def __init__(self, model: Path | bytes, input_name: str, output_name: str, rule: str = "any") -> None:
        self.session = load_session(model)
        self._input, self._outputs = input_name, [output_name]
        self._name = str(model) if isinstance(model, Path) else "the model"
        inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = [value.name for value in self.session.get_outputs()]
        if list(inputs) != [input_name] or output_name not in outputs:
            raise BundleError(
                f"{self._name}: takes {', '.join(inputs)} and gives {', '.join(outputs)}, expected `{input_name}` and "
                f"`{output_name}`; train the bundle again"
            )
        self.shape = tuple(inputs[input_name].shape[1:])
        self.rule = rule

    @property
    def rule(self) -> str:
        """How windows are put together."""
        return self._rule

    @rule.setter
    def rule(self, rule: str) -> None:
        kind, _, size = rule.partition(":")
        if kind not in ("any", "padded", "single") or (kind == "padded") != size.isdigit():
            raise BundleError(f"batch rule {rule!r}: expected any, padded:N or single; train the bundle again")
        self._rule, self._padded = rule, kind == "padded"
        self._size = {"any": MAX_BATCH, "single": 1}.get(kind) or max(1, int(size))

    def run(self, batch: Array) -> Array:
        """Logits of each window."""
        parts = [self._run(batch[i : i + self._size]) for i in range(0, len(batch), self._size)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, batch: Array) -> Array:
        count = len(batch)
        if self._padded and count < self._size:
            full = np.zeros((self._size, *batch.shape[1:]), batch.dtype)  # (size, *shape)
            full[:count] = batch
            batch = full
        try:
            logits: Array = self.session.run(self._outputs, {self._input: aligned(batch)})[0]
        except Exception as error:  # ONNX Runtime's own classes share no public base
            reason = str(error).splitlines()[0][:200]
            raise BundleError(
                f"{self._name}: cannot take windows of {batch.shape[1:]} {batch.dtype} ({reason})"
            ) from None
        return logits[:count]

    def settle(self, shape: Sequence[int], dtype: str) -> str:
        """Take the cheapest rule, from the present one on, under which no row depends on the others; give it."""
        allowed = [self.rule, *RULES[RULES.index(self.rule) + 1 :]] if self.rule in RULES else [self.rule, "single"]
        for rule in allowed:
            self.rule = rule
            if self.invariant(shape, dtype):
                return rule
        raise BundleError(
            f"{self._name}: the same window gives other numbers each time, even alone; a model must not draw random numbers (such as by "
            "dropout that is still on): export it again for inference"
        )

    def invariant(self, shape: Sequence[int], dtype: str) -> bool:
        """Whether random windows give the same bytes in every batch that :meth:`run` may be given.

        Tried with every size from 1 to :data:`MAX_BATCH` (more are run as several batches), each window at other places and beside
        others than before. A large network takes long for it, and a promoted one waits for it: no more is tried than tells.
        """
        random = np.random.default_rng(0)
        windows = random.standard_normal((_WINDOWS_TRIED, *shape)).astype(dtype)  # (32, *shape)
        windows[::3] *= 10  # some that are loud: scales differ in practice
        alone = np.concatenate([self.run(windows[i : i + 1]) for i in range(_WINDOWS_TRIED)])
        for n in _TRIED:
            order = random.permutation(_WINDOWS_TRIED)[:n]
            if self.run(np.ascontiguousarray(windows[order])).tobytes() != alone[order].tobytes():
                return False
        return True


def aligned_empty(shape: Sequence[int], dtype: Any) -> Array:
    """A new array that begins at a multiple of 64 bytes."""
    kind, count = np.dtype(dtype), math.prod(shape)
    room = np.empty(count * kind.itemsize + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    out: Array = room[start : start + count * kind.itemsize].view(kind).reshape(shape)
    return out


def aligned(batch: Array) -> Array:
    """The same numbers, in C order, from a multiple of 64 bytes on; itself where it is so already."""
    if batch.flags.c_contiguous and batch.ctypes.data % _ALIGNMENT == 0:
        return batch
    out = aligned_empty(batch.shape, batch.dtype)
    out[...] = batch
    return out


def load_session(model: Path | bytes) -> Any:
    """An ONNX Runtime session on one thread of the processor, which keeps no memory between two runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Arena and memory pattern keep the largest batch of every size for ever; without them a run costs no more.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        source = str(model) if isinstance(model, Path) else model
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes share no public base
        name = model if isinstance(model, Path) else "the model"
        raise BundleError(f"{name}: no model that ONNX Runtime can load ({str(error).splitlines()[0][:200]})") from None
