"""Synthetic recordings as MCAP. In: a :class:`Synthesis`. Out: a file with a JSON message a sample and topic; times in Unix ns.

The file is what mcap's own writer makes of the same messages, but whole chunks are put together at once: times, record
headers and indexes by numpy, numbers by Python's shortest representation that reads back to the same bits. The bytes depend on
plan and seed alone.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import zstandard
from mcap.opcode import Opcode
from numpy.typing import NDArray

from streams.errors import PlanError
from streams.synth import ORDER, TOPICS, Synthesis
from streams.synth_file import Body, McapFile

#: Samples in a chunk: about 2 MB of JSON, a few hundred kB compressed.
CHUNK_SAMPLES = 2048
_LEVEL = 1
_HEADER = np.dtype(
    [("op", "u1"), ("length", "<u8"), ("channel", "<u2"), ("sequence", "<u4"), ("log", "<u8"), ("publish", "<u8")]
)
_INDEX = np.dtype([("log", "<u8"), ("offset", "<u8")])
Progress = Callable[[int, int], None]


def write_mcap(made: Synthesis, path: str | Path, progress: Progress | None = None) -> None:
    """Write a synthetic recording; the file appears whole or not at all.

    Parameters
    ----------
    made : Synthesis
        The recording.
    path : str or Path
        ``X.mcap``; a file of this name is replaced.
    progress : callable, optional
        Is given the number of samples written and of all.

    Raises
    ------
    PlanError
        If the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        try:
            with partial.open("wb") as out:
                _write(made, out, progress or (lambda done, of: None))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise PlanError(f"cannot be written ({error.strerror or error})", target) from None


def mcap_bytes(made: Synthesis) -> bytes:
    """The same file in memory."""
    out = io.BytesIO()
    _write(made, out, lambda done, of: None)
    return out.getvalue()


def _write(made: Synthesis, out: IO[bytes], progress: Progress) -> None:
    file = McapFile(out)
    total = len(made.times_ns)
    starts = range(0, total, CHUNK_SAMPLES)
    # Compression leaves Python's lock: while one chunk is compressed, the next one's numbers are written out.
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for start in starts:
            records, times = _messages(made, start, min(start + CHUNK_SAMPLES, total), file.definitions(start == 0))
            packing = pool.submit(_packed, records, times)
            if waiting is not None:
                file.chunk(waiting.result())
                progress(start, total)
            waiting = packing
        if waiting is not None:
            file.chunk(waiting.result())
    file.metadata("synthetic", {"generated_by": "kymo synth", "seed": str(made.seed)})
    file.finish()
    progress(total, total)


def _packed(records: bytes, times: dict[int, NDArray[np.void]]) -> Body:
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(records)
    return Body(packed, len(records), zlib.crc32(records), times)


def _messages(made: Synthesis, start: int, end: int, before: bytes) -> tuple[bytes, dict[int, NDArray[np.void]]]:
    """Message records of samples `start` to `end`, behind the records `before`, and where each of them stands."""
    parts: list[list[str]] = []
    lengths = np.zeros((end - start, len(ORDER)), np.int64)
    raw = slice(*np.searchsorted(made.raw_index, [start, end]).tolist())
    rows = {"truth": slice(start, end), "raw": raw}
    whole = raw.stop - raw.start == end - start
    for column, topic in enumerate(ORDER):
        kind = topic.rpartition("_")[2]
        times = (made.raw_times_ns if kind == "raw" else made.times_ns)[rows[kind]]
        texts = _texts(topic, times.tolist(), made.topics[topic][rows[kind]])
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        records = [head + text for head, text in zip(_heads(topic, times, sizes), texts, strict=True)]
        if kind == "raw" and not whole:
            places = made.raw_index[raw] - start
            lengths[places, column] = sizes + _HEADER.itemsize
            spread = [""] * (end - start)
            for place, record in zip(places.tolist(), records, strict=True):
                spread[place] = record
            records = spread
        else:
            lengths[:, column] = sizes + _HEADER.itemsize
        parts.append(records)
    body = before + "".join(chain.from_iterable(zip(*parts, strict=True))).encode("latin-1")
    ends = len(before) + np.cumsum(lengths).reshape(lengths.shape)
    found: dict[int, NDArray[np.void]] = {}
    for column, topic in enumerate(ORDER):
        kind = topic.rpartition("_")[2]
        there = lengths[:, column] > 0
        index = np.empty(int(there.sum()), _INDEX)
        index["log"] = (made.raw_times_ns if kind == "raw" else made.times_ns)[rows[kind]]
        index["offset"] = (ends - lengths)[there, column]
        if len(index):
            found[TOPICS.index(topic) + 1] = index
    return body, found


def _texts(topic: str, times: list[int], values: NDArray[np.float64]) -> list[str]:
    """JSON of each sample, as the standard library would write it."""
    if not times:
        return []
    before, between = f'{{"id": "{topic}", "timestamp": ', ', "values": ['
    rows = _rows(values) if topic != "pose_truth" else _pose_rows(values)
    return [f"{before}{time}{between}{row}]}}" for time, row in zip(times, rows, strict=True)]


def _rows(values: NDArray[np.float64]) -> list[str]:
    # Of a list of lists, Python writes every number in C, the shortest that reads back to the same bits.
    return repr(values.tolist())[2:-2].split("], [")


def _pose_rows(values: NDArray[np.float64]) -> Iterator[str]:
    """Origin and, where nothing moves, position are the same all the time: they are written out once."""
    fixed = 6 if (values[:, :6] == values[0, :6]).all() else 3
    same = _rows(values[:1, :fixed])[0]
    return (f"{same}, {row}" for row in _rows(values[:, fixed:]))


def _heads(topic: str, times: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[str]:
    """Record headers as text whose letters are bytes."""
    heads = np.zeros(len(times), _HEADER)
    heads["op"], heads["channel"] = Opcode.MESSAGE, TOPICS.index(topic) + 1
    heads["length"] = sizes + (_HEADER.itemsize - 9)
    heads["log"] = heads["publish"] = times
    text, size = heads.tobytes().decode("latin-1"), _HEADER.itemsize
    return [text[place : place + size] for place in range(0, len(text), size)]
