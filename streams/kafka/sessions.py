"""Sessions in the topics. In: what was sent. Out: which sessions there are; end marks of one; times in Unix ns.

A session is known by its record on ``kymo.sessions``, which a writer may leave out, and by its chunks. They stand in whatever
partitions whoever sends them chose, so all are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from streams.chunk import Chunk, Header
from streams.codec import ChunkCodec
from streams.errors import ChunkError, MessageError, SourceError
from streams.kafka.read import Record, read_records, read_topics
from streams.replay.publish import Publisher
from streams.sessions import plain_name, read_session
from streams.settings import Settings
from streams.topics import CHUNK_TOPICS, Names

Progress = Callable[[int, int], None]


def announced(settings: Settings, on_odd: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, Any]]:
    """Records of ``kymo.sessions`` by session, in the order in which they were last sent; `on_odd` is told, in words, of one
    that is none, which is passed over."""
    topic, found = Names(settings.prefix).of("sessions"), dict[str, dict[str, Any]]()
    for record in read_records(settings, topic):
        try:
            name = plain_name((record.key or b"").decode(errors="replace"))
            value = None if record.value is None else read_session(record.value)
        except MessageError as error:
            on_odd(f"{topic}, partition {record.partition}, offset {record.offset}: {error}")
            continue
        found.pop(name, None)
        if value is not None:
            found[name] = value
    return found


def seen(settings: Settings, on_progress: Progress = lambda _done, _of: None) -> dict[str, dict[str, Any]]:
    """What raw chunks tell of their sessions, in members of a record of ``kymo.sessions``; reads all of them."""
    found: dict[str, dict[str, Any]] = {}
    open_streams: dict[str, set[str]] = {}
    for _, chunk in raw_chunks(settings, None, on_progress):
        row = found.setdefault(chunk.session, {"start_ns": chunk.start_ns, "end_ns": chunk.start_ns, "streams": []})
        if {"stream": chunk.stream} not in row["streams"]:
            row["streams"].append({"stream": chunk.stream})
            open_streams.setdefault(chunk.session, set()).add(chunk.stream)
        row["start_ns"] = min(row["start_ns"], chunk.start_ns)
        row["end_ns"] = max(row["end_ns"], _end_ns(chunk))
        if chunk.end:
            open_streams[chunk.session].discard(chunk.stream)
    for session, row in found.items():
        row["replayed"] = {"complete": not open_streams[session]}
    return found


def raw_chunks(
    settings: Settings, session: str | None, on_progress: Progress = lambda _done, _of: None
) -> Iterator[tuple[Record, Chunk]]:
    """Raw chunks with their records, of one session or of all, whichever partition they stand in; what is none is left out."""
    names, codec = Names(settings.prefix), ChunkCodec()
    for r in read_topics(settings, [names.of(name) for name in CHUNK_TOPICS], on_progress):
        if session is not None and r.key not in (None, session.encode()):
            continue
        try:
            chunk = codec.decode(r.value or b"")
        except ChunkError:
            continue
        if not chunk.header.chain and r.key in (None, chunk.session.encode()) and session in (None, chunk.session):
            yield r, chunk


def _end_ns(chunk: Chunk) -> int:
    if chunk.times_ns is not None:
        return int(chunk.times_ns[-1]) if len(chunk.times_ns) else chunk.start_ns
    return chunk.header.time_ns(chunk.end_index)


def end_session(settings: Settings, session: str, on_progress: Progress = lambda _done, _of: None) -> list[str]:
    """Send the end mark of every stream of a session that has none yet, to the partition where the stream is."""
    names, codec = Names(settings.prefix), ChunkCodec()
    newest: dict[str, Header] = {}
    ends: dict[Header, tuple[int, int]] = {}
    ended: set[Header] = set()
    for r, chunk in raw_chunks(settings, session, on_progress):
        if r.key is None:  # no worker takes it
            continue
        newest[chunk.stream] = chunk.header
        ends[chunk.header] = max((chunk.end_index, r.partition), ends.get(chunk.header, (0, 0)))
        if chunk.end:
            ended.add(chunk.header)
    if not newest:
        raise SourceError(
            f"no stream of a session {session} in {names.prefix}.*; `kymo sessions list` shows those there are"
        )
    todo = {stream: header for stream, header in newest.items() if header not in ended}
    with Publisher(settings, names) as publisher:
        for stream, header in todo.items():
            at, partition = ends[header]
            topic = names.for_stream(stream).removeprefix(names.prefix + ".")
            publisher.send(topic, session, codec.encode(_end_mark(header, at)), partition=partition)
        publisher.flush()
    return sorted(todo)


def _end_mark(header: Header, at: int) -> Chunk:
    import numpy as np

    fmt = header.format
    if fmt.dtype == "jpeg":
        return Chunk(header, at, np.empty(0, object), None, True)
    times = None if fmt.rate else np.empty(0, np.int64)
    return Chunk(header, at, np.empty((0, *fmt.shape), np.dtype(fmt.dtype)), times, True)
