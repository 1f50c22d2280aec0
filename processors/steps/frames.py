"""Steps that turn overlapping frames of a signal into columns, each column once. In: Chunks of a signal. Out: Chunks of columns.

Columns stand on a grid fixed to index 0: column ``j`` covers samples ``[j*step, j*step + length)``. They leave in chunks whose borders
lie at ``chunk_phase + k * chunk_frames``, so that neither the cutting of the input nor a restart can change an output; a recipe sets
both to its window's hop and end, so that a window is complete with its last sample and every kernel call has one and the same shape.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np

from kymo.processors.spec import Spec, Stage, StreamStage
from kymo.processors.steps.spectral import load_libraries
from kymo.streams.chunk import Array, Chunk, Format, Header
from kymo.streams.schema import Count

_LONGEST_S = Fraction(1, 10)  # a chunk of columns for windows of any kind


@dataclass(frozen=True)
class FramedSpec(Spec):
    """A step from frames to columns. Subclasses give the frame's length and step, the kernel and the output's format."""

    chunk_frames: Count = 1  # columns a chunk
    chunk_phase: int = 0  # where chunk borders stand: ``chunk_phase + k * chunk_frames``

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
        """Make columns ``(m, *output.shape)``, new, in any memory order, of consecutive samples.

        These are ``(channels, n)`` of the input, C order, not to be written to; n = (m - 1) * frame_step + frame_length.
        """

    def build(self) -> Stage:
        return FrameStage(self)

    def input_index(self, index: int) -> int:
        """First sample of column `index`."""
        return index * self.frame_step

    def shared(self, fmt: Format) -> FramedSpec:
        """Columns leave at fixed places, soon: whichever window one is the last of waits for the others of its chunk."""
        columns = int(self.output({fmt.stream: fmt}).rate * _LONGEST_S)
        return replace(self, chunk_frames=max(1, columns), chunk_phase=0)

    @property
    def block_samples(self) -> int:
        """Samples that a chunk of columns rests on."""
        return (self.chunk_frames - 1) * self.frame_step + self.frame_length

    def memory_bytes(self, fmt: Format) -> int:
        """The samples of the block of columns under way."""
        return self.block_samples * fmt.shape[-1] * np.dtype(fmt.dtype).itemsize

    def apply(self, data: Array, fmt: Format) -> Array:
        """All whole columns of ``(n, channels)``, the first one at its first sample."""
        count = (len(data) - self.frame_length) // self.frame_step + 1
        if count < 1:
            out = self.output({fmt.stream: fmt})
            return np.empty((0, *out.shape), out.dtype)
        used = (count - 1) * self.frame_step + self.frame_length
        return self.kernel(np.ascontiguousarray(data[:used].T), fmt)


class FrameStage(StreamStage):
    """Stage of a :class:`FramedSpec`: the samples of the block of columns under way."""

    numbers: ClassVar[tuple[str, ...]] = ("next", "border", "end")
    arrays: ClassVar[tuple[str, ...]] = ("block",)

    def __init__(self, spec: FramedSpec) -> None:
        super().__init__(spec)
        load_libraries()
        self.spec: FramedSpec = spec
        self._step, self._length, self._chunk = spec.frame_step, spec.frame_length, spec.chunk_frames
        self._width = spec.block_samples
        self._block: Array = np.empty((0, 0))  # (channels, width): samples of the block that ends at border `_border`
        self._border = 0
        self._end = 0  # index one past the last sample taken

    def push(self, item: Chunk) -> list[Chunk]:
        """Take samples; give the blocks of columns that became whole."""
        out: list[Chunk] = []
        if not item.count:
            return out
        if self._is_other(item.header) or item.first_index != self._end:
            out = self.flush()
            self._begin(item.header, item.first_index)
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

    def _begin(self, header: Header, first: int) -> None:
        """Begin a run of samples."""
        if header is not self._header:
            self._bind(header)
        # Zeros where samples are missing: the kernel then always sees a whole block, so each column comes out the same to the bit.
        self._block = np.zeros((header.format.shape[-1], self._width), header.format.dtype)
        self._next = -(-first // self._step)
        phase = self.spec.chunk_phase
        self._border = phase + ((self._next - phase) // self._chunk + 1) * self._chunk
        self._end = first

    def _advance(self) -> None:
        """Move on to the next block, keeping the samples that both need."""
        hop = self._chunk * self._step
        if self._width > hop:
            self._block[:, : self._width - hop] = self._block[:, hop:]  # numpy minds the overlap
        self._next = self._border
        self._border += self._chunk

    def _columns(self, stop: int) -> Chunk:
        assert self._header is not None
        first = self._border - self._chunk
        columns = self.spec.kernel(self._block, self._header.format)[self._next - first : stop - first]
        return Chunk(self._out, self._next, columns)

    def flush(self) -> list[Chunk]:
        """The whole columns of the block under way."""
        stop = (self._end - self._length) // self._step + 1
        if self._header is None or stop <= self._next:
            return []
        at = self._end - (self._border - self._chunk) * self._step
        self._block[:, max(at, 0) :] = 0
        out = [self._columns(stop)]
        self._next = stop
        return out
