"""An ONNX model as a function of a batch, or of a stream. In: windows, (n, *shape). Out: logits, (n, labels), equal bytes in any batch.

Matrix kernels choose their way by the size of the batch, so a row's last bits can depend on how many others stand
beside it. Which batches are safe is tried, not assumed: a `rule` says how windows are put together (:data:`RULES`). Vector
kernels begin at the next border of a vector, so last bits can depend on the place in memory, too: every input is aligned.

A stateful model goes on where it stopped. Its graph takes one hop of samples and the state before it, and gives the state behind it.
Samples of a hop that is not whole yet wait in the state too, so that every run of the graph sees the same numbers however the stream was
cut: the outputs are the same, to the byte, as those of one pass over the recording.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from kymo.streams.budget import BATCH
from kymo.streams.chunk import Array, Window, sample_time_ns
from kymo.streams.errors import BundleError

# Some builds report usage to their maker unless told not to.
ort.disable_telemetry_events()
#: From the cheapest to the safest: as they come; always 8, the rest zeros; one at a time.
RULES = ("any", "padded:8", "single")
#: More are run in several batches: beyond it nothing gets faster, while memory grows and falls out of the caches.
MAX_BATCH = 16
_NUMBERS = 2**20  # that are drawn at once
_ALIGNMENT = 64  # bytes: the widest vector, and a cache line
STATE, NEXT_STATE = "state", "next_state"  # of a stateful graph
_REMEMBERED = "state"  # by which a session's memory has the state


class OnnxModel:
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
        return self._rule

    @rule.setter
    def rule(self, rule: str) -> None:
        kind, _, size = rule.partition(":")
        if kind not in ("any", "padded", "single") or (kind == "padded") != size.isdigit():
            raise BundleError(f"batch rule {rule!r}: expected any, padded:N or single; train the bundle again")
        self._rule, self._padded = rule, kind == "padded"
        self._size = {"any": MAX_BATCH, "single": 1}.get(kind) or max(1, int(size))

    def run(self, batch: Array) -> Array:
        size = self._size if self._padded else min(self._size, most_together(batch.shape[1:], batch.dtype))
        parts = [self._run(batch[i : i + size]) for i in range(0, len(batch), size)]
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
            fits = not self._padded or self._size <= most_together(shape, dtype)
            if fits and self.invariant(shape, dtype):
                return rule
        raise BundleError(
            f"{self._name}: the same window gives other numbers each time, even alone; a model must not draw random numbers (such as by "
            "dropout that is still on): export it again for inference"
        )

    def invariant(self, shape: Sequence[int], dtype: str) -> bool:
        """Whether random windows give the same bytes in every batch that :meth:`run` may be given.

        Tried with every size from 1 to :data:`MAX_BATCH` (more, or more bytes, are run as several batches), each window at other places
        and beside others than before. A large network takes long for it, and a promoted one waits for it: no more is tried than tells.
        """
        random, most = np.random.default_rng(0), most_together(shape, dtype)
        windows = random_windows(random, 2 * most if most > 1 else 1, shape, dtype)
        windows[::3] *= 10  # some that are loud: scales differ in practice
        alone = np.concatenate([self.run(windows[i : i + 1]) for i in range(len(windows))])
        for n in range(1, most + 1):
            order = random.permutation(len(windows))[:n]
            if self.run(np.ascontiguousarray(windows[order])).tobytes() != alone[order].tobytes():
                return False
        return True


@dataclass(frozen=True, slots=True, eq=False)
class StreamState:
    hidden: NDArray[np.float32]  # ``(size,)`` float32: the network's own memory
    pending: NDArray[np.float32]  # ``(m, *shape)`` float32, m below a hop: samples that wait for the rest of their hop
    hops: int = 0  # hops that went through; the last output is of the samples before ``hops * hop``


class StatefulModel:
    """A loaded stateful model, for any number of sessions.

    The state goes from a window to the next one. Behind a gap, and wherever nothing is remembered (at a session's begin, behind an
    exchange of bundles), and behind a window with a number that is not finite, it begins anew, at zeros; and so it does with a window in
    which, behind the one before it, something begins (the step `anew`). It has no end: what a window gives rests on all windows before
    it, so that a worker may forget them only when a snapshot holds the state.
    """

    #: Windows go through one at a time: what one gives may not depend on which others are there.
    rule = "single"

    def __init__(
        self,
        model: Path | bytes,
        input_name: str = "windows",
        output_name: str = "logits",
        every: int = 0,  # raw samples from a window to the next; 0 for as many as it has
    ) -> None:
        self.session, self._every = load_session(model), every
        self._input, self._outputs = input_name, [output_name, NEXT_STATE]
        inputs = {value.name: value.shape for value in self.session.get_inputs()}
        outputs = {value.name: value.shape for value in self.session.get_outputs()}
        if set(inputs) != {input_name, STATE} or set(outputs) != set(self._outputs):
            raise BundleError(
                f"takes {', '.join(inputs)} and gives {', '.join(outputs)}, expected a stateful model: `{input_name}` "
                f"and `{STATE}` to `{output_name}` and `{NEXT_STATE}`; export it with export_stateful"
            )
        _, self.hop, *shape = inputs[input_name]
        self.shape: tuple[int, ...] = tuple(shape)  # of one sample
        self.size: int = inputs[STATE][1]  # numbers that it remembers of a session
        self.columns: int = outputs[output_name][1]  # numbers an output has

    def start(self) -> StreamState:
        return StreamState(np.zeros(self.size, np.float32), np.zeros((0, *self.shape), np.float32))

    def step(self, state: StreamState, samples: Array) -> tuple[StreamState, NDArray[np.float32]]:
        if samples.shape[1:] != self.shape or state.hidden.shape != (self.size,):
            raise BundleError(
                f"samples of {samples.shape[1:]} and a state of {state.hidden.shape}, expected {self.shape} and "
                f"({self.size},); begin the session again with this model"
            )
        waiting = np.concatenate([state.pending, samples.astype(np.float32, copy=False)])
        hidden, count = state.hidden[np.newaxis], len(waiting) // self.hop
        logits = np.empty((count, self.columns), np.float32)
        for i in range(count):
            piece = waiting[i * self.hop : (i + 1) * self.hop][np.newaxis]  # (1, hop, *shape)
            columns, hidden = self.session.run(self._outputs, {self._input: aligned(piece), STATE: aligned(hidden)})
            logits[i] = columns[0]
        return StreamState(hidden[0].copy(), waiting[count * self.hop :].copy(), state.hops + count), logits

    def settle(self, shape: Sequence[int], dtype: str) -> str:
        """How windows are put together: one at a time."""
        return self.rule

    def run(self, batch: Array) -> Array:
        """Logits ``(n, columns)`` of windows ``(n, *shape)``, each as if it were a session's first."""
        return np.concatenate([self.step(self.start(), window)[1] for window in batch])

    def go_on(self, windows: Sequence[Window], batch: Array, memories: Sequence[dict[str, Any]]) -> Array:
        """Logits of windows, one hop each, that go on where their sessions stand; what is remembered of those is brought up to date."""
        logits = np.empty((len(windows), self.columns), np.float32)
        for i, (window, memory) in enumerate(zip(windows, memories, strict=True)):
            state, columns = self.step(self._recall(window, memory), batch[i])
            logits[i] = columns[0]
            if np.isfinite(state.hidden).all():
                hidden = base64.b64encode(state.hidden.tobytes()).decode()
                memory[_REMEMBERED] = [*next_place(window, self._every), hidden]
            else:  # a number that is none would stay in it for ever
                memory.pop(_REMEMBERED, None)
        return logits

    def _recall(self, window: Window, memory: dict[str, Any]) -> StreamState:
        fresh = self.start()
        if _REMEMBERED not in memory:
            return fresh
        next_index, next_ns, hidden = memory[_REMEMBERED]
        if (window.start_index, window.start_ns) != (next_index, next_ns) or begins_anew(window, self._every):
            return fresh
        return StreamState(np.frombuffer(base64.b64decode(hidden), np.float32), fresh.pending)


def next_place(window: Window, every: int) -> tuple[int, int]:
    """Where the window behind this one begins, by number and by time, if windows begin every so many samples; 0: where this one ends."""
    if not every:
        return window.end_index, window.end_ns
    header, index = window.header, window.start_index + every
    return index, sample_time_ns(header.origin_ns, header.format.rate * header.format.step, index)


def begins_anew(window: Window, every: int) -> bool:
    """Whether something begins in a window that did not begin in the one before."""
    return window.anew >= (window.end_index - every if every else window.start_index)


def most_together(shape: Sequence[int], dtype: Any) -> int:
    window = math.prod(shape) * int(np.dtype(dtype).itemsize)
    return max(1, min(MAX_BATCH, BATCH // max(1, window)))


def random_windows(random: np.random.Generator, count: int, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Windows of normal noise, made piece by piece: as float64 large ones would be several times as large at once."""
    windows = np.empty((count, *shape), dtype)
    numbers = windows.reshape(-1)
    for start in range(0, len(numbers), _NUMBERS):
        piece = numbers[start : start + _NUMBERS]
        piece[:] = random.standard_normal(len(piece)).astype(dtype)
    return windows


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
