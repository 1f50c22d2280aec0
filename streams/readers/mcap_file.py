"""MCAP files. In: own Chunk messages (Protobuf), or JSON messages with `values`, one a sample. Out: Recordings, times
in Unix ns.

Each JSON topic is a stream of its name, unless an input names channels such as ``acc_raw.x``: then the topics are put
side by side. Messages of other kinds are counted as not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from mcap.records import Channel, Message, Schema
from numpy.typing import NDArray

from streams.chunk import Array, Chunk, Header
from streams.codec import ChunkCodec
from streams.errors import ChunkError, MessageError, SourceError
from streams.labels.cover import current_labels
from streams.labels.labels import Label
from streams.messages import read_json
from streams.readers.files import File
from streams.readers.layout import missing
from streams.readers.mcap_scan import Scan
from streams.readers.topics import Topic, topic_streams
from streams.readers.words import brief, many
from streams.recording import ReadOptions, Recording, StreamData
from streams.sessions import checked_session

CHUNK_SCHEMA = "kymo.Chunk"


def read_mcap(file: File, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of an MCAP file: one for each session of own chunks, one for all JSON topics."""
    content = Content(file.path, asked=_asked(options))
    with file.open() as raw:
        scan = Scan(raw, file.path)
        for schema, channel, message in scan.messages():
            content.take(schema, channel, message)
    notes = [*scan.notes, *content.notes()]
    # What a segment of an archive says of its offsets is nothing that a session should know.
    metadata = {name: text for name, text in scan.metadata.items() if not name.startswith("kymo.archive.")}
    if not content.chunks and not content.topics:
        raise SourceError("; ".join(["holds no Chunk messages and no JSON messages with `values`", *notes]), file.path)
    yield from own_sessions(content, options, metadata, file.path, notes)
    if content.topics and not (content.chunks and options.inputs):
        session = options.session_name or file.session
        streams, found = topic_streams(content.topics, session, options, file.path)
        labels = content.labels.get(session, [])
        yield Recording(session, streams, labels, None, dict(metadata), file.path, [*notes, *found])


def _asked(options: ReadOptions) -> set[str] | None:
    """Streams that the recipe's inputs name, themselves or by ``stream.channel``; None where there are no inputs."""
    if not options.inputs:
        return None
    channels = {name.rpartition(".")[0] for item in options.inputs for name in item.channels}
    return channels | {item.stream for item in options.inputs} | {str(options.stream_name)}


class Content:
    """Sorts messages by what they are."""

    def __init__(self, path: str, *, as_arrived: bool = False, asked: set[str] | None = None) -> None:
        self._path, self._codec, self._asked = path, ChunkCodec(), asked
        self._ends: dict[Header, int] | None = {} if as_arrived else None
        self.chunks: dict[Header, list[Chunk]] = {}  # raw chunks by their header
        self.topics: dict[str, Topic] = {}  # JSON topics with `values`
        self.labels: dict[str, list[Label]] = {}  # labels and session metadata by session
        self.records: dict[str, dict[str, Any]] = {}
        self._unread: Counter[str] = Counter()

    def take(self, schema: Schema | None, channel: Channel, message: Message) -> None:
        """One message."""
        if schema is not None and schema.name == CHUNK_SCHEMA and channel.message_encoding == "protobuf":
            self.take_chunk(channel.topic, bytes(message.data))
        elif channel.message_encoding == "json":
            self._json(schema, channel, message)
        else:
            self._unread[f"{channel.message_encoding or 'unnamed encoding'} on {channel.topic}"] += 1

    def notes(self) -> list[str]:
        """What was not read."""
        return [f"{many(count, 'message')} not read: {brief(what)}" for what, count in sorted(self._unread.items())]

    def take_chunk(self, topic: str, raw: bytes) -> None:
        """A Chunk message."""
        try:
            chunk = self._codec.decode(raw)
        except ChunkError as error:
            self._unread[f"{error.reason} Chunk on {topic}"] += 1
            return
        if chunk.header.chain:
            self._unread[f"derived stream {chunk.stream}, made again from the raw one"] += 1
        elif self._ends is not None and chunk.end_index <= self._ends.get(chunk.header, -1):
            self._unread[f"late or repeated chunk of {chunk.stream}, as a worker leaves it out"] += 1
        else:
            if self._ends is not None:
                self._ends[chunk.header] = chunk.end_index
            self.chunks.setdefault(chunk.header, []).append(chunk)

    def _json(self, schema: Schema | None, channel: Channel, message: Message) -> None:
        known = self.topics.get(channel.topic)
        if known is not None and self._asked is not None and known.stream not in self._asked:
            return  # most of the time that a file takes goes into its JSON
        try:
            value = read_json(message.data, numbers=False)
        except MessageError:
            self._unread[f"broken JSON on {channel.topic}"] += 1
            return
        if isinstance(value, dict) and isinstance(value.get("values"), list):
            if known is None:
                known = self.topics[channel.topic] = Topic(channel.topic, schema.data if schema else b"", self._path)
            known.add(value, message.log_time)
        elif not self.take_json(channel.topic, value):
            self._unread[f"JSON without `values` on {channel.topic}"] += 1

    def take_json(self, topic: str, value: Any) -> bool:
        """A label or a session's metadata; false if it is something else."""
        if not isinstance(value, dict):
            return False
        if topic.endswith(".labels") and {"session", "start_ns", "label"} <= value.keys():
            label = Label.from_json(value)
            self.labels.setdefault(label.session, []).append(label)
        elif topic.endswith(".sessions") and isinstance(value.get("session"), str):
            try:
                self.records[value["session"]] = checked_session(value)
            except MessageError:
                return False
        else:
            return False
        return True


def own_sessions(
    content: Content, options: ReadOptions, metadata: dict[str, str], path: str, notes: list[str]
) -> Iterator[Recording]:
    """Sessions of own chunks, in the order of their first chunk."""
    sessions: dict[str, list[Header]] = {}
    for header in content.chunks:
        if options.stream_name in (None, header.format.stream):
            sessions.setdefault(header.session, []).append(header)
    if content.chunks and not sessions and not content.topics:
        names = list(dict.fromkeys(header.format.stream for header in content.chunks))
        raise missing(str(options.stream_name), names, path, "stream")
    for name, headers in sessions.items():
        found = list(notes)
        session = name if options.session_name is None else options.session_name
        if options.session_name is not None and len(sessions) > 1:
            session = f"{options.session_name}-{name}"
        streams = [_joined(_named(header, session), content.chunks.pop(header), found) for header in headers]
        record = content.records.get(name, {})
        extra = record.get("metadata")
        known = dict(metadata) | ({str(k): str(v) for k, v in extra.items()} if isinstance(extra, dict) else {})
        known |= {key: str(record[key]) for key in ("device", "placement", "axes") if record.get(key)}
        subject = record.get("subject")
        labels = current_labels(content.labels.get(name, []))
        yield Recording(session, streams, labels, subject if isinstance(subject, str) else None, known, path, found)


def _named(header: Header, session: str) -> Header:
    return header if header.session == session else Header(session, header.origin_ns, header.format, header.chain)


def _joined(header: Header, chunks: list[Chunk], notes: list[str]) -> StreamData:
    """One stream of its chunks: in order, each sample once."""
    parts: list[tuple[Array, NDArray[np.int64], NDArray[np.int64] | None]] = []  # samples, numbers, times
    end, gaps, missing, repeated = -1, 0, 0, 0
    for chunk in sorted(chunks, key=lambda chunk: (chunk.first_index, chunk.end_index)):
        skip = min(max(end - chunk.first_index, 0), chunk.count) if end >= 0 else 0
        repeated += skip
        if 0 <= end < chunk.first_index:
            gaps, missing = gaps + 1, missing + chunk.first_index - end
        times = None if chunk.times_ns is None else chunk.times_ns[skip:]
        parts.append((chunk.data[skip:], np.arange(chunk.first_index + skip, chunk.end_index), times))
        end = max(end, chunk.end_index)
    stream = header.format.stream
    if gaps:
        notes.append(f"{stream}: {many(gaps, 'gap')}, {many(missing, 'sample')} missing")
    if repeated:
        notes.append(f"{stream}: {many(repeated, 'repeated sample')}, the first of each is kept")
    clocked = all(times is not None for _, _, times in parts)
    times_ns = np.concatenate([times for _, _, times in parts if times is not None]) if clocked else None
    return StreamData.from_indexes(
        header, np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), times_ns
    )
