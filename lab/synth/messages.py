"""Synthetic recordings as MCAP. In: a :class:`Synthesis`. Out: a file with a JSON message a sample and topic; times in Unix ns.

The file is what mcap's own writer makes of the same messages, but whole chunks are put together at once: times, record
headers and indexes by numpy, numbers by msgspec. The bytes depend on plan and seed alone.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import zstandard
from mcap.opcode import Opcode
from numpy.typing import NDArray

from lab.synth.container import Body, McapFile
from lab.synth.simulate import ORDER, TOPICS, Synthesis
from streams.errors import PlanError
from streams.files import whole_file

#: Samples in a chunk: about 2 MB of JSON, a few hundred kB compressed.
CHUNK_SAMPLES = 2048
_LEVEL = 1
_HEADER = [("op", "u1"), ("length", "<u8"), ("channel", "<u2"), ("sequence", "<u4"), ("log", "<u8"), ("publish", "<u8")]
_BETWEEN, _BEHIND = b', "values": [', b"]}"
_INDEX = np.dtype([("log", "<u8"), ("offset", "<u8")])
Progress = Callable[[int, int], None]


def write_mcap(made: Synthesis, path: str | Path, progress: Progress | None = None) -> None:
    """Write a synthetic recording; the file appears whole or not at all."""
    target = Path(path)
    try:
        with whole_file(target) as unfinished, unfinished.open("wb") as out:
            _write(made, out, progress or (lambda done, of: None))
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
    count = end - start
    raw = slice(*np.searchsorted(made.raw_index, [start, end]).tolist())
    lengths = np.zeros((count, len(ORDER)), np.int64)
    pieces: list[Iterable[bytes]] = []
    places: dict[str, NDArray[np.intp] | slice] = {"truth": slice(None), "raw": slice(None)}
    if raw.stop - raw.start < count:
        places["raw"] = made.raw_index[raw] - start
    times = {"truth": made.times_ns[start:end], "raw": made.raw_times_ns[raw]}
    digits = {kind: _numbers(values) for kind, values in times.items()}
    for column, topic in enumerate(ORDER):
        kind = topic.rpartition("_")[2]
        rows = _rows(made.topics[topic][start:end] if kind == "truth" else made.topics[topic][raw])
        sizes = np.fromiter(map(len, rows), np.int64, len(rows)) + np.fromiter(
            map(len, digits[kind]), np.int64, len(rows)
        )
        heads, size = _heads(topic, times[kind], sizes)
        parts: tuple[Iterable[bytes], ...] = (heads, digits[kind], repeat(_BETWEEN), rows, repeat(_BEHIND))
        if kind == "raw" and len(rows) < count:
            parts = tuple(_spread(part, places["raw"], count) for part in parts)
        pieces += parts
        lengths[places[kind], column] = sizes + size
    body = before + b"".join(chain.from_iterable(zip(*pieces, strict=False)))  # repeat() has no end
    starts = (len(before) + np.cumsum(lengths)).reshape(lengths.shape) - lengths
    found = {}
    for column, topic in enumerate(ORDER):
        kind = topic.rpartition("_")[2]
        index = np.empty(len(times[kind]), _INDEX)
        index["log"], index["offset"] = times[kind], starts[places[kind], column]
        if len(index):
            found[TOPICS.index(topic) + 1] = index
    return body, found


def _numbers(values: NDArray[Any]) -> list[bytes]:
    """Whole numbers as text."""
    return msgspec.json.encode(values.tolist())[1:-1].split(b",") if len(values) else []


def _rows(values: NDArray[np.float64]) -> list[bytes]:
    """Numbers of each row, separated by commas: of each the shortest text that reads back to the same bits."""
    return msgspec.json.encode(values.tolist())[2:-2].split(b"],[") if len(values) else []


def _heads(topic: str, times: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[list[bytes], int]:
    """Record headers, each with the message's text up to its time; and the length of all that is no number."""
    first = f'{{"id": "{topic}", "timestamp": '.encode()
    heads = np.zeros(len(times), [*_HEADER, ("first", f"S{len(first)}")])
    same = heads.itemsize + len(_BETWEEN) + len(_BEHIND)
    heads["op"], heads["channel"], heads["first"] = Opcode.MESSAGE, TOPICS.index(topic) + 1, first
    heads["length"] = sizes + (same - 9)  # the operation and this length itself do not count
    heads["log"] = heads["publish"] = times
    data, size = heads.tobytes(), heads.itemsize
    return [data[place : place + size] for place in range(0, len(data), size)], same


def _spread(parts: Iterable[bytes], places: Any, count: int) -> list[bytes]:
    """Parts at their places among `count`, nothing in between."""
    out = [b""] * count
    for place, part in zip(places.tolist(), parts, strict=False):
        out[place] = part
    return out
