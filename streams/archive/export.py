"""An archive for other programs. In: Recordings. Out: files; times in Unix ns.

CSV and Parquet, one file a session and stream: ``t_ns``, the channels (of samples with several axes ``channel[i]``), one column a label
set where there are labels, ``session`` and, where known, ``subject``. CSV numbers read back to the same float32 or float64.

MCAP as Foxglove and Lichtblick show it, one file a session: topics are ``/stream``. A signal's message is
``{"timestamp": {"sec", "nsec"}, channel: number, …}``, so that ``/imu.ax`` plots; samples with several axes hold lists (``/pose.x[3]``).
Video is ``foxglove.CompressedImage`` or ``foxglove.RawImage``, labels are ``foxglove.Log`` on ``/labels``, at their starts. Events stand on
``/events/RECIPE`` (``/HEAD`` for a further head), at their windows' starts: ``/events/walk.label`` shows as states, ``.probability`` plots.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import merge
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import CompressionType, Writer
from numpy.typing import NDArray

from kymo.streams.archive.segment import disk_error
from kymo.streams.chunk import Array, Format
from kymo.streams.errors import ArchiveError
from kymo.streams.events import EVENT_SCHEMA, Event
from kymo.streams.files import whole_file
from kymo.streams.labels.labels import Label
from kymo.streams.recording import Recording, StreamData
from kymo.streams.words import NS

_ROWS = 20_000
_MOST_COLUMNS = 10_000
Tell = Callable[[str], None]
_ENCODINGS = {1: "mono8", 3: "rgb8", 4: "rgba8"}
_INFO = 2
Timed = tuple[int, int, bytes]  # Unix ns, channel, message
TEXT, _WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}
TIME = {
    "type": "object",
    "title": "time",
    "properties": {"sec": _WHOLE, "nsec": _WHOLE | {"maximum": 999_999_999}},
}
_BYTES = {"type": "string", "contentEncoding": "base64"}
#: Members of Foxglove's own schemas: https://docs.foxglove.dev/docs/sdk/schemas.
SCHEMAS: dict[str, dict[str, Any]] = {
    "foxglove.CompressedImage": {"timestamp": TIME, "frame_id": TEXT, "data": _BYTES, "format": TEXT},
    "foxglove.RawImage": {
        "timestamp": TIME,
        "frame_id": TEXT,
        "width": _WHOLE,
        "height": _WHOLE,
        "encoding": TEXT,
        "step": _WHOLE,
        "data": _BYTES,
    },
    "foxglove.Log": {
        "timestamp": TIME,
        "level": {"title": "LogLevel", "oneOf": [{"title": "INFO", "const": 2}]},
        "message": TEXT,
        "name": TEXT,
        "file": TEXT,
        "line": _WHOLE,
    },
}


def export_recordings(
    recordings: Iterable[Recording],
    fmt: str,
    out: Path,
    tell: Tell = lambda _: None,
    events_of: Callable[[str], list[Event]] = lambda _: [],  # a session's
) -> Iterator[tuple[str, list[Path]]]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for recording in recordings:
            stem = file_stem(recording.session)
            if fmt == "foxglove":
                path = out / f"{stem}.mcap"
                with whole_file(path) as unfinished:
                    _write_foxglove(unfinished, recording, events_of(recording.session))
                yield recording.session, [path]
            else:
                yield recording.session, list(_tables(recording, fmt, out / stem, tell))
    except OSError as error:
        raise disk_error(out, error) from None


def file_stem(session: str) -> str:
    """A session's name as a file's; another name never gives the same.

    >>> file_stem("P07-walk@3"), file_stem("a/b")
    ('P07-walk@3', 'a_b-c14cddc0')
    """
    plain = re.sub(r"[^\w@.=+-]", "_", session).lstrip(".")[:150]
    return plain if plain == session else f"{plain}-{hashlib.sha256(session.encode()).hexdigest()[:8]}"


def label_columns(labels: Iterable[Label], times_ns: NDArray[np.int64]) -> dict[str, list[str]]:
    """The class of every sample, empty where there is none, by label set; ``label`` is the column of the only set."""
    out: dict[str, list[str]] = {}
    for label in labels:
        column = out.setdefault(label.set, [""] * len(times_ns))
        a, b = np.searchsorted(times_ns, [label.start_ns, label.end_ns]).tolist()
        column[a:b] = [label.label] * (b - a)
    return {f"label.{name}" if len(out) > 1 else "label": column for name, column in out.items()}


def _tables(recording: Recording, fmt: str, folder: Path, tell: Tell) -> Iterator[Path]:
    write = {"csv": _write_csv, "parquet": _write_parquet}[fmt]
    counts = Counter[str]()
    for stream in recording.streams:
        form = stream.header.format
        if form.dtype == "jpeg" or int(np.prod(form.shape)) > _MOST_COLUMNS:
            tell(f"{recording.session}: {form.stream} is left out, its samples are pictures; take --format foxglove")
            continue
        counts[form.stream] += 1
        number = f".{counts[form.stream]}" if counts[form.stream] > 1 else ""  # the source set its clock anew
        columns = _columns(recording, stream)
        folder.mkdir(exist_ok=True)
        path = folder / f"{file_stem(form.stream)}{number}.{fmt}"
        with whole_file(path) as unfinished:
            write(unfinished, columns)
        yield path


def _columns(recording: Recording, stream: StreamData) -> dict[str, Any]:
    form, times = stream.header.format, sample_times(stream)
    flat: Array = stream.data.reshape(stream.count, -1)
    out: dict[str, Any] = {"t_ns": times}
    for i, (*axes, channel) in enumerate(product(*map(range, form.shape))):
        out[form.channels[channel] + "".join(f"[{axis}]" for axis in axes)] = flat[:, i]
    out |= label_columns(recording.labels, times)
    out["session"] = [recording.session] * stream.count
    if recording.subject is not None:
        out["subject"] = [recording.subject] * stream.count
    return out


def _write_csv(path: Path, columns: dict[str, Any]) -> None:
    count = len(columns["t_ns"])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for first in range(0, count, _ROWS):
            # The shortest text that reads back to the same number of its own dtype.
            part = [_texts(values[first : first + _ROWS]) for values in columns.values()]
            writer.writerows(zip(*part, strict=True))


def _texts(values: Any) -> list[str]:
    if not isinstance(values, np.ndarray):
        return list(values)
    texts: list[str] = values.astype(str).tolist()
    return ["" if text == "nan" else text for text in texts] if values.dtype.kind == "f" else texts


def _write_parquet(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {
        name: pa.array(values) if isinstance(values, np.ndarray) else pa.array(values, pa.string()).dictionary_encode()
        for name, values in columns.items()
    }
    parquet.write_table(pa.table(arrays), path, compression="zstd")


def check_format(fmt: str) -> None:
    """Raise early what an export would need."""
    if fmt == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise ArchiveError(
                "Parquet is written with pyarrow, which is not installed: pip install 'kymo-streams[parquet]'"
            ) from None


def _write_foxglove(path: Path, recording: Recording, events: list[Event]) -> None:
    """Write one session; its messages stand in time order."""
    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType.ZSTD)
        writer.start(profile="", library="kymo archive export")
        metadata = {"session": recording.session, "subject": recording.subject or ""} | recording.metadata
        writer.add_metadata(f"session {recording.session}", {name: str(text) for name, text in metadata.items()})
        parts = [_messages(writer, stream) for stream in recording.streams]
        if recording.labels:
            parts.append(_logs(writer, recording.labels))
        if events:
            parts.append(_events(writer, events))
        for number, (log_ns, channel, data) in enumerate(merge(*parts, key=lambda item: item[0])):
            at = max(log_ns, 0)
            writer.add_message(channel, at, data, at, number & 0xFFFFFFFF)
        writer.finish()  # type: ignore[no-untyped-call]


def sample_times(stream: StreamData) -> NDArray[np.int64]:
    """Unix time of every sample, ns, ``(n,)``."""
    if stream.times_ns is not None:
        return stream.times_ns
    rate, origin = stream.header.format.rate, stream.header.origin_ns
    parts = [np.empty(0, np.int64)]
    for first, piece in stream.pieces:
        end = first + len(piece)
        fits = max(abs(first), end) * NS * rate.denominator < 2**62
        numbers = np.arange(first, end, dtype=np.int64 if fits else object)  # the product may not fit into 64 bits
        parts.append((origin + numbers * (NS * rate.denominator) // rate.numerator).astype(np.int64))
    return np.concatenate(parts)


def _messages(writer: Writer, stream: StreamData) -> Iterator[Timed]:
    fmt = stream.header.format
    schema, properties, make = _kind(fmt)
    channel = json_channel(writer, f"/{fmt.stream}", schema, properties)
    times = sample_times(stream).tolist()
    for first in range(0, len(times), 1000):
        members = make(stream.data[first : first + 1000])
        for at, sample in zip(times[first : first + 1000], members, strict=True):
            yield at, channel, json.dumps({"timestamp": stamp(at)} | sample, separators=(",", ":")).encode()


def _kind(fmt: Format) -> tuple[str, dict[str, Any], Callable[[Array], Iterable[dict[str, Any]]]]:
    """Schema's name, its properties, and what makes messages of samples, but for their times."""
    members: dict[str, Any] = {"frame_id": fmt.stream}
    if fmt.dtype == "jpeg":
        name, members = "foxglove.CompressedImage", members | {"format": "jpeg"}
    elif fmt.dtype == "uint8" and len(fmt.shape) == 3 and fmt.shape[2] in _ENCODINGS:
        height, width, depth = fmt.shape
        name, size = "foxglove.RawImage", {"width": width, "height": height, "step": width * depth}
        members |= size | {"encoding": _ENCODINGS[depth]}
    else:
        number: dict[str, Any] = {"type": "number"}
        for _ in fmt.shape[:-1]:
            number = {"type": "array", "items": number}
        units = dict(zip(fmt.channels, fmt.units, strict=False))
        described = {c: number | ({"description": units[c]} if units.get(c) else {}) for c in fmt.channels}
        return f"kymo.{fmt.stream}", {"timestamp": TIME} | described, lambda samples: _numbers(samples, fmt)
    return name, SCHEMAS[name], lambda frames: (members | {"data": text_of(bytes(frame))} for frame in frames)


def _numbers(samples: Array, fmt: Format) -> Iterator[dict[str, Any]]:
    """Samples by channel; null where one is no number, which JSON has no word for."""
    values = np.moveaxis(samples, -1, 1).astype(object)
    values[~np.isfinite(np.moveaxis(samples, -1, 1))] = None
    for sample in values.tolist():
        yield dict(zip(fmt.channels, sample, strict=True))


def _logs(writer: Writer, labels: list[Label]) -> Iterator[Timed]:
    name = "foxglove.Log"
    channel = json_channel(writer, "/labels", name, SCHEMAS[name])
    for label in sorted(labels, key=lambda label: label.start_ns):
        text = f"{label.label} for {(label.end_ns - label.start_ns) / NS:g} s"
        members = {"timestamp": stamp(label.start_ns), "level": _INFO, "message": text}
        members |= {"name": label.set, "file": label.author, "line": 0}
        yield label.start_ns, channel, json.dumps(members).encode()


def _events(writer: Writer, events: list[Event]) -> Iterator[Timed]:
    properties = {"timestamp": TIME} | EVENT_SCHEMA["properties"]
    topics = {event.id: f"/events/{event.recipe}{'/' * bool(event.head)}{event.head}" for event in events}
    channels = {topic: json_channel(writer, topic, "kymo.Event", properties) for topic in sorted(set(topics.values()))}
    for event in sorted(events, key=lambda event: (event.start_ns, event.id)):
        members = {"timestamp": stamp(event.start_ns)} | event.to_dict()
        yield event.start_ns, channels[topics[event.id]], json.dumps(members).encode()


def json_channel(writer: Writer, topic: str, schema: str, properties: Mapping[str, Any]) -> int:
    text = json.dumps({"title": schema, "type": "object", "properties": properties}).encode()
    number: int = writer.register_channel(topic, "json", writer.register_schema(schema, "jsonschema", text))
    return number


def stamp(at_ns: int) -> dict[str, int]:
    """A time as these schemas have it; they know none before 1970."""
    at = max(at_ns, 0)
    return {"sec": at // NS, "nsec": at % NS}


def text_of(data: bytes) -> str:
    """Bytes as JSON has them."""
    return base64.b64encode(data).decode()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A grey picture ``(height, width)`` as PNG."""
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter, 0 for none
    rows[:, 1:] = pixels
    parts = [b"\x89PNG\r\n\x1a\n"]
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)
