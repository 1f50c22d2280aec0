"""An ONNX model that goes on where it stopped. In: a stream's samples, in pieces. Out: an output each hop; its state.

The graph takes one hop of samples and the state before it, and gives the state behind it. Samples of a hop that is not
whole yet wait in the state too, so that every run of the graph sees the same numbers however the stream was cut: the
outputs are the same, to the byte, as those of one pass over the recording.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.onnx_model import aligned, load_session
from streams.chunk import Array
from streams.errors import BundleError, MessageError
from streams.messages import read_object

STATE, NEXT_STATE = "state", "next_state"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, eq=False)
class StreamState:
    """What a stateful model remembers of one session."""

    hidden: NDArray[np.float32]  # ``(size,)`` float32: the network's own memory
    pending: NDArray[np.float32]  # ``(m, *shape)`` float32, m below a hop: samples that wait for the rest of their hop
    hops: int = 0  # hops that went through; the last output is of the samples before ``hops * hop``

    def snapshot(self) -> bytes:
        """All of it, as bytes that depend on nothing else."""
        header = json.dumps({"hops": self.hops, "size": len(self.hidden), "pending": self.pending.shape}).encode()
        return _LENGTH.pack(len(header)) + header + self.hidden.tobytes() + self.pending.tobytes()

    @staticmethod
    def restore(data: bytes) -> StreamState:
        """The state of a snapshot."""
        try:
            (length,) = _LENGTH.unpack_from(data)
            header = read_object(data[4 : 4 + length])
            numbers = np.frombuffer(data, "<f4", offset=4 + length)
            size = int(header["size"])
            return StreamState(
                numbers[:size].copy(), numbers[size:].reshape(header["pending"]).copy(), int(header["hops"])
            )
        except (MessageError, struct.error, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"no snapshot of a stateful model ({error}); begin the session again") from None


class StatefulModel:
    """A loaded stateful model, for any number of sessions."""

    def __init__(self, model: Path | bytes, input_name: str = "windows", output_name: str = "logits") -> None:
        self.session = load_session(model)
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
        self._size: int = inputs[STATE][1]
        self.columns: int = outputs[output_name][1]  # numbers an output has

    def start(self) -> StreamState:
        """The state at a session's begin."""
        return StreamState(np.zeros(self._size, np.float32), np.zeros((0, *self.shape), np.float32))

    def step(self, state: StreamState, samples: Array) -> tuple[StreamState, NDArray[np.float32]]:
        """Go on with some samples."""
        if samples.shape[1:] != self.shape or state.hidden.shape != (self._size,):
            raise BundleError(
                f"samples of {samples.shape[1:]} and a state of {state.hidden.shape}, expected {self.shape} and "
                f"({self._size},); begin the session again with this model"
            )
        waiting = np.concatenate([state.pending, samples.astype(np.float32, copy=False)])
        hidden, count = state.hidden[np.newaxis], len(waiting) // self.hop
        logits = np.empty((count, self.columns), np.float32)
        for i in range(count):
            piece = waiting[i * self.hop : (i + 1) * self.hop][np.newaxis]  # (1, hop, *shape)
            found, hidden = self.session.run(self._outputs, {self._input: aligned(piece), STATE: aligned(hidden)})
            logits[i] = found[0]
        return StreamState(hidden[0].copy(), waiting[count * self.hop :].copy(), state.hops + count), logits
