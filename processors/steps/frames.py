"""Steps that turn overlapping frames of a signal into columns, each column once. In: Chunks of a signal. Out: Chunks of columns.

Columns stand on a grid fixed to index 0: column ``j`` covers samples ``[j*step, j*step + length)``. They leave in chunks whose borders
lie at ``chunk_phase + k * chunk_frames``, so that neither the cutting of the input nor a restart can change an output; a recipe sets
both to its window's hop and end, so that a window is complete with its last sample and every kernel call has one and the same shape.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from kymo.processors.spec import Spec, Stage, derived_header, pack, unpack
from kymo.processors.steps.spectral import load_libraries
from kymo.streams.chunk import Array, Chunk, Format, Header
from kymo.streams.errors import FormatError
from kymo.streams.schema import Count


@dataclass(frozen=True)
class FramedSpec(Spec):
    """A step from frames to columns. Subclasses give the frame's length and step, the kernel and the output's format.

    Parameters
    ----------
    chunk_frames : int
        Columns a chunk.
    chunk_phase : int
        Where chunk borders stand: ``chunk_phase + k * chunk_frames``.
    """

    chunk_frames: Count = 1
    chunk_phase: int = 0

    @property
    @abstractmethod
    def frame_length(self) -> int:
        """Samples a column covers."""

    @property
    @abstractmethod
    def frame_step(self) -> int:
        """Samples from one column to the next."""

    @abstractmethod
    def kernel(self, samples: Array, fmt: Format) -> Array:
        """Columns of consecutive samples.

        Parameters
        ----------
        samples : ndarray
            ``(channels, n)``, C order, n = (m - 1) * frame_step + frame_length. Not to be written to.
        fmt : Format
            Of the input.

        Returns
        -------
        ndarray
            ``(m, *output.shape)``, in any memory order, new.
        """

    def build(self) -> Stage:
        """A Stage for one session."""
        return FrameStage(self)

    def input_index(self, index: int) -> int:
        """First sample of column `index`."""
        return index * self.frame_step

    def memory_bytes(self, fmt: Format) -> int:
        """The samples of the block of columns under way."""
        width = (self.chunk_frames - 1) * self.frame_step + self.frame_length
        return width * fmt.shape[-1] * np.dtype(fmt.dtype).itemsize

    def apply(self, data: Array, fmt: Format) -> Array:
        """All whole columns of ``(n, channels)``, the first one at its first sample."""
        count = (len(data) - self.frame_length) // self.frame_step + 1
        if count < 1:
            out = self.output({fmt.stream: fmt})
            return np.empty((0, *out.shape), out.dtype)
        used = (count - 1) * self.frame_step + self.frame_length
        return self.kernel(np.ascontiguousarray(data[:used].T), fmt)


def framed_format(spec: FramedSpec, fmt: Format, bins: int, unit: Any) -> Format:
    """Format of columns ``(bins, channels)`` made from frames of a signal."""
    if len(fmt.shape) != 1 or fmt.dtype not in ("float32", "float64"):
        raise FormatError(
            f"{spec.name}: samples of `{fmt.stream}` are {fmt.dtype}{fmt.shape}, "
            f"expected one float32 or float64 a channel"
        )
    if not fmt.rate:
        raise FormatError(f"{spec.name}: `{fmt.stream}` has no fixed rate; put `resample` before it")
    _, dot, place = fmt.stream.partition(".")
    span = ceil((spec.frame_length - 1) * fmt.step) + fmt.span
    return replace(
        fmt,
        stream=f"spectrogram{dot}{place}",
        units=tuple(unit(u) for u in fmt.units),
        rate=fmt.rate / spec.frame_step,
        shape=(bins, len(fmt.channels)),
        step=fmt.step * spec.frame_step,
        span=span,
        rows=None,
    )


class FrameStage(Stage):
    """Stage of a :class:`FramedSpec`: the samples of the block of columns under way."""

    def __init__(self, spec: FramedSpec) -> None:
        super().__init__()
        load_libraries()
        self.spec = spec
        self._step, self._length, self._chunk = spec.frame_step, spec.frame_length, spec.chunk_frames
        self._in: Header | None = None
        self._out: Header | None = None
        self._width = (self._chunk - 1) * self._step + self._length
        self._block: Array = np.empty((0, 0))  # (channels, width): samples of the block that ends at border `_border`
        self._next = 0  # first column not yet given
        self._border = 0
        self._end = 0  # index one past the last sample taken

    def push(self, item: Chunk) -> list[Chunk]:
        """Take samples; give the blocks of columns that became whole."""
        out: list[Chunk] = []
        if not item.count:
            return out
        if item.header is not self._in and item.header == self._in:
            self._in = item.header  # the same header as another object, as after a restart
        if item.header is not self._in or item.first_index != self._end:
            out = self._start(item)
        start = 0
        while True:
            block_end = (self._border - 1) * self._step + self._length
            stop = min(item.count, start + block_end - self._end)
            if stop > start:
                self._put(item.data[start:stop])
                start = stop
            if self._end < block_end:
                return out
            out.append(self._columns(self._border))
            self._advance()

    def _put(self, samples: Array) -> None:
        at = self._end - (self._border - self._chunk) * self._step
        self._end += len(samples)
        if at < 0:  # frames with room between them: these samples belong to none
            samples, at = samples[-at:], 0
        self._block[:, at : at + len(samples)] = samples.T

    def _start(self, item: Chunk) -> list[Chunk]:
        """Begin a run of samples at `item`, giving what the run before it left."""
        last_columns = self.flush()
        if item.header is not self._in:
            self._in, self._out = item.header, derived_header(item.header, self.spec)
        fmt = item.header.format
        # Zeros where samples are missing: the kernel then always sees a whole block, so each column comes out the same to the bit.
        self._block = np.zeros((fmt.shape[-1], self._width), fmt.dtype)
        self._next = -(-item.first_index // self.spec.frame_step)
        chunk, phase = self.spec.chunk_frames, self.spec.chunk_phase
        self._border = phase + ((self._next - phase) // chunk + 1) * chunk
        self._end = item.first_index
        return last_columns

    def _advance(self) -> None:
        """Move on to the next block, keeping the samples that both need."""
        hop = self._chunk * self._step
        if self._width > hop:
            self._block[:, : self._width - hop] = self._block[:, hop:]  # numpy minds the overlap
        self._next = self._border
        self._border += self._chunk

    def _columns(self, stop: int) -> Chunk:
        assert self._in is not None
        assert self._out is not None
        first = self._border - self._chunk
        columns = self.spec.kernel(self._block, self._in.format)[self._next - first : stop - first]
        return Chunk(self._out, self._next, columns)

    def flush(self) -> list[Chunk]:
        """The whole columns of the block under way."""
        if self._in is None:
            return []
        stop = (self._end - self.spec.frame_length) // self.spec.frame_step + 1
        if stop <= self._next:
            return []
        at = self._end - (self._border - self.spec.chunk_frames) * self.spec.frame_step
        self._block[:, max(at, 0) :] = 0
        out = [self._columns(stop)]
        self._next = stop
        return out

    @property
    def needs_from(self) -> dict[str, int]:
        """First sample of the next column."""
        return {} if self._in is None else {self._in.format.stream: self._next * self.spec.frame_step}

    def snapshot(self) -> bytes:
        """See :meth:`Stage.snapshot`."""
        meta = {"header": self._in, "next": self._next, "border": self._border, "end": self._end}
        return pack(meta, {"block": self._block})

    def restore(self, snapshot: bytes) -> None:
        """See :meth:`Stage.restore`."""
        meta, arrays = unpack(snapshot)
        self._in, self._next, self._border, self._end = meta["header"], meta["next"], meta["border"], meta["end"]
        self._out = None if self._in is None else derived_header(self._in, self.spec)
        self._block = arrays["block"]
