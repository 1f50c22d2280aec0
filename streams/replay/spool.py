"""Recordings that are more than memory should hold. In: Recordings, one at a time. Out: the same, their samples in a file.

The file has no name and is gone with the process. It is mapped: what of it is in memory the system decides, and can take back.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate, pairwise
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
            arrays = [
                [(s.data, np.empty(0) if s.times_ns is None else s.times_ns) for s in r.streams] for r in recordings
            ]
            places = [[(self._put(data, begin), self._put(times, begin)) for data, times in of] for of in arrays]
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
            replace(r, streams=[_mapped(s, *of_stream, block) for s, of_stream in zip(r.streams, of, strict=True)])
            for r, of in zip(recordings, places, strict=True)
        ]

    def _put(self, array: Any, origin: int) -> list[int]:
        """Write samples, or times; where their parts begin and end, behind `origin` in the file."""
        assert self._file is not None
        parts = list(map(bytes, array)) if array.dtype == object else [np.ascontiguousarray(array).data]
        begin = self._pad(_ALIGNED) - origin
        self._file.writelines(parts)
        return list(accumulate((memoryview(part).nbytes for part in parts), initial=begin))

    def _pad(self, step: int) -> int:
        assert self._file is not None
        at = self._file.tell()
        self._file.write(bytes(-at % step))
        return at + -at % step


def _size(stream: StreamData) -> int:
    frames = stream.header.format.dtype == "jpeg"
    times = 0 if stream.times_ns is None else stream.times_ns.nbytes
    return times + (sum(map(len, stream.data)) if frames else stream.data.nbytes)


def _mapped(stream: StreamData, samples: list[int], stamps: list[int], block: Any) -> StreamData:
    """The stream with its samples (and times) from `block`, where their parts begin and end there."""
    data: Array
    if stream.header.format.dtype == "jpeg":
        data = np.empty(stream.count, object)
        for i, (begin, end) in enumerate(pairwise(samples)):
            data[i] = block[begin:end]
    else:
        data = np.frombuffer(block, stream.data.dtype, stream.data.size, samples[0]).reshape(stream.data.shape)
    times = stream.times_ns
    times = None if times is None else np.frombuffer(block, times.dtype, len(times), stamps[0])
    rows = accumulate((len(piece) for _, piece in stream.pieces), initial=0)
    pieces = [(first, data[row : row + len(piece)]) for (first, piece), row in zip(stream.pieces, rows, strict=False)]
    return StreamData(stream.header, data, times, stream.first_index, pieces)
