"""Recordings that are more than memory should hold. In: Recordings, one at a time. Out: the same, their samples in a file.

The file has no name and is gone with the process. It is mapped: what of it is in memory the system decides, and can take back.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from kymo.streams.chunk import Array
from kymo.streams.errors import SourceError
from kymo.streams.recording import Recording, StreamData
from kymo.streams.topics import MIB

_ALIGNED = 64  # bytes


class Spool:
    """Keeps recordings."""

    def __init__(self, folder: Path, most_bytes: int = 64 * MIB) -> None:
        self._folder, self._most = folder, most_bytes
        self._file: IO[bytes] | None = None

    def keep(self, recordings: Iterable[Recording]) -> list[Recording]:
        """All recordings, in their order; no more of them than fits is in memory at once."""
        spooled: list[Recording] = []
        waiting, size = 0, 0
        for recording in recordings:
            spooled.append(recording)
            size += sum(_size(stream) for stream in recording.streams)
            if size > self._most:
                spooled[waiting:] = self._write(spooled[waiting:])
                waiting, size = len(spooled), 0
        return spooled

    def _write(self, recordings: list[Recording]) -> list[Recording]:
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (it lives as long as its maps)
            begin = self._pad(mmap.ALLOCATIONGRANULARITY)
            places = [[self._place(stream) for stream in recording.streams] for recording in recordings]
            self._file.flush()
            size = self._file.tell() - begin
        except OSError as error:
            raise SourceError(
                f"the recordings do not fit into memory, and cannot be put there ({error.strerror or error}); "
                "make room, set KYMO_HOME to another disk, or name fewer recordings",
                self._folder,
            ) from None
        block = memoryview(mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ, offset=begin)) if size else b""
        return [
            replace(r, streams=[_mapped(s, at - begin, block) for s, at in zip(r.streams, starts, strict=True)])
            for r, starts in zip(recordings, places, strict=True)
        ]

    def _place(self, stream: StreamData) -> int:
        """Write a stream's samples, then its times; where they begin in the file."""
        assert self._file is not None
        begin = self._pad(_ALIGNED)
        if stream.header.format.dtype == "jpeg":
            self._file.writelines(bytes(frame) for frame in stream.data)
        else:
            self._file.write(np.ascontiguousarray(stream.data).data)
        if stream.times_ns is not None:
            self._pad(_ALIGNED)
            self._file.write(np.ascontiguousarray(stream.times_ns).data)
        return begin

    def _pad(self, step: int) -> int:
        assert self._file is not None
        at = self._file.tell()
        self._file.write(bytes(-at % step))
        return at + -at % step


def _size(stream: StreamData) -> int:
    return _data_size(stream) + (stream.times_ns.nbytes if stream.times_ns is not None else 0)


def _data_size(stream: StreamData) -> int:
    return sum(map(len, stream.data)) if stream.header.format.dtype == "jpeg" else stream.data.nbytes


def _mapped(stream: StreamData, at: int, block: Any) -> StreamData:
    """The stream with its samples (and times) from `block`, where they begin at `at`."""
    size = _data_size(stream)
    data: Array
    if stream.header.format.dtype == "jpeg":
        data, begin = np.empty(stream.count, object), at
        for i, frame in enumerate(stream.data):
            data[i] = block[begin : begin + len(frame)]
            begin += len(frame)
    else:
        data = np.frombuffer(block, stream.data.dtype, stream.data.size, at).reshape(stream.data.shape)
    times = stream.times_ns
    if times is not None:
        times = np.frombuffer(block, times.dtype, len(times), at + size + -(at + size) % _ALIGNED)
    pieces, row = [], 0
    for first, samples in stream.pieces:
        pieces.append((first, data[row : row + len(samples)]))
        row += len(samples)
    return StreamData(stream.header, data, times, stream.first_index, pieces)
