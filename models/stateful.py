"""A stateful bundle's model for windows of any sessions. In: windows, each of one hop, and what is remembered of their
sessions. Out: logits; the memories, brought up to date.

The state goes from a window to the one that begins where it ended. Behind a gap, and wherever nothing is remembered (at a
session's begin, behind an exchange of bundles), and behind a window with a number that is not finite, it begins anew, at
zeros. It has no end: what a window gives rests on all
windows before it, so that a worker may forget them only when a snapshot holds the state.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from models.onnx_stateful import StatefulModel, StreamState
from streams.chunk import Array, Window
from streams.errors import BundleError

if TYPE_CHECKING:
    from models.bundle import Bundle

_STATE = "state"


def follows(window: Window, end_index: int, end_ns: int) -> bool:
    """Whether a window begins where the one before it has ended, by number and by time."""
    return window.start_index == end_index and window.start_ns == end_ns


class WindowModel:
    """The model of a stateful bundle."""

    #: Windows go through one at a time: what one gives may not depend on which others are there.
    rule = "single"

    def __init__(self, bundle: Bundle) -> None:
        self._model = StatefulModel(bundle.model_path, bundle.input, bundle.output)
        size, shape = len(self._model.start().hidden), (self._model.hop, *self._model.shape)
        if (size, shape) != (bundle.state, bundle.shape):
            raise BundleError(
                f"{bundle.model_path}: takes windows of {shape} and a state of {size}, its manifest says {bundle.shape} "
                f"and {bundle.state}; train the bundle again"
            )

    def settle(self, shape: Sequence[int], dtype: str) -> str:
        """How windows are put together: one at a time."""
        return self.rule

    def run(self, batch: Array) -> Array:
        """Logits ``(n, columns)`` of windows ``(n, *shape)``, each as if it were a session's first."""
        return np.concatenate([self._model.step(self._model.start(), window)[1] for window in batch])

    def go_on(self, windows: Sequence[Window], batch: Array, memories: Sequence[dict[str, Any]]) -> Array:
        """Logits of windows that go on where their sessions stand."""
        logits = np.empty((len(windows), self._model.columns), np.float32)
        for i, (window, memory) in enumerate(zip(windows, memories, strict=True)):
            state, found = self._model.step(self._recall(window, memory), batch[i])
            logits[i] = found[0]
            if np.isfinite(state.hidden).all():
                hidden = base64.b64encode(state.hidden.tobytes()).decode()
                memory[_STATE] = [window.end_index, window.end_ns, hidden]
            else:  # a number that is none would stay in it for ever
                memory.pop(_STATE, None)
        return logits

    def _recall(self, window: Window, memory: dict[str, Any]) -> StreamState:
        """The state that a window goes on from."""
        fresh = self._model.start()
        if _STATE not in memory:
            return fresh
        end_index, end_ns, hidden = memory[_STATE]
        if not follows(window, end_index, end_ns):
            return fresh
        return StreamState(np.frombuffer(base64.b64decode(hidden), np.float32), fresh.pending)
