"""MCAP files. In: own Chunk messages (Protobuf), or other programs' JSON and Protobuf messages, one a sample. Out: Recordings, times
in Unix ns.

Each topic of another program is a stream of its name, unless an input names channels such as ``acc_raw.x``: then the topics are put
side by side. Messages of other kinds are counted as not read.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mcap.records import Channel, Message, Schema
from numpy.typing import NDArray

from kymo.streams.chunk import Array, Chunk, Header
from kymo.streams.codec import CHUNK_SCHEMA, ChunkCodec
from kymo.streams.errors import ChunkError, FormatError, MessageError, SourceError
from kymo.streams.labels.labels import Label, current_labels
from kymo.streams.messages import read_json
from kymo.streams.readers import grid
from kymo.streams.readers.columns import no_such_name, requested_inputs
from kymo.streams.readers.files import File
from kymo.streams.readers.mcap_scan import Scan
from kymo.streams.readers.mcap_topics import ProtobufSchemas, TopicSamples, is_sample
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData
from kymo.streams.sessions import OWN_METADATA, checked_session
from kymo.streams.topics import TABLE
from kymo.streams.units import factor
from kymo.streams.words import NS, brief, many

#: Topics of an archive whose JSON is no sample, whatever numbers it has.
_RECORDS = {topic.name for topic in TABLE if not topic.carries.startswith("Chunk")}


def read_mcap(file: File, options: ReadOptions) -> Iterator[Recording]:
    """Recordings of an MCAP file: one for each session of own chunks, one for all JSON topics."""
    requested = None  # streams that the recipe's inputs name, themselves or by ``stream.channel``
    if options.inputs:
        parts = [name.split(".") for item in options.inputs for name in item.channels]
        requested = {".".join(words[:i]) for words in parts for i in range(1, len(words))}
        requested |= {item.stream for item in options.inputs} | {str(options.stream_name)}
    content = SortedMessages(file.path, requested=requested)
    with file.open() as raw:
        scan = Scan(raw, file.path)
        for schema, channel, message in scan.messages():
            content.add(schema, channel, message)
    notes = [*scan.notes, *content.notes()]
    # What a segment of an archive says of its offsets is nothing that a session should know.
    metadata = {name: text for name, text in scan.metadata.items() if not name.startswith("kymo.archive.")}
    if not content.chunks and not content.topics:
        raise SourceError("; ".join(["holds no Chunk messages and no messages with numbers", *notes]), file.path)
    yield from chunk_sessions(content, options, metadata, file.path, notes)
    if content.topics and not (content.chunks and options.inputs):
        session = options.session_name or file.session
        for name, topic in content.topics.items():
            # Raw numbers of another size than the measurement that stands beside them are counts.
            truth = content.topics.get(f"{name.removesuffix('_raw')}_truth") if name.endswith("_raw") else None
            sizes = [float(np.linalg.norm(samples.first)) for samples in (topic, truth) if samples]
            counts = len(sizes) > 1 and min(sizes) > 0 and not 0.5 < sizes[0] / sizes[1] < 2
            topic.unit = metadata.get(f"units.{name}", "counts" if counts else "")
        sure = metadata.get("units.timestamp") == "ns"
        streams, stream_notes = _topic_streams(content.topics, session, options, file.path, sure)
        labels = content.labels.get(session, [])
        yield Recording(session, streams, labels, None, dict(metadata), file.path, [*notes, *stream_notes])


class SortedMessages:
    def __init__(self, path: str, *, as_arrived: bool = False, requested: set[str] | None = None) -> None:
        self._path, self._codec, self._requested = path, ChunkCodec(), requested
        self._protobuf = ProtobufSchemas()
        self._ends: dict[Header, int] | None = {} if as_arrived else None
        self.chunks: dict[Header, list[Chunk]] = {}  # raw chunks by their header
        self.topics: dict[str, TopicSamples] = {}  # those of other programs
        self.labels: dict[str, list[Label]] = {}  # by session
        self.records: dict[str, dict[str, Any]] = {}  # what is known of each session
        self._unread: Counter[str] = Counter()

    def add(self, schema: Schema | None, channel: Channel, message: Message) -> None:
        if schema is not None and schema.name == CHUNK_SCHEMA and channel.message_encoding == "protobuf":
            self.add_chunk(channel.topic, bytes(message.data))
        elif channel.message_encoding in ("json", "protobuf"):
            self._add_sample(schema, channel, message)
        else:
            self._unread[f"{channel.message_encoding or 'unnamed encoding'} on {channel.topic}"] += 1

    def notes(self) -> list[str]:
        return [f"{many(count, 'message')} not read: {brief(kind)}" for kind, count in sorted(self._unread.items())]

    def add_chunk(self, topic: str, raw: bytes) -> None:
        try:
            chunk = self._codec.decode(raw)
        except ChunkError as error:
            self._unread[f"{error.reason} Chunk on {topic}"] += 1
            return
        if chunk.header.chain:
            self._unread[f"derived stream {chunk.stream}, made again from the raw one"] += 1
            return
        if self._ends is not None:
            end = self._ends.get(chunk.header, -1)
            if chunk.end_index <= end:
                if chunk.count:
                    self._unread[f"late or repeated chunk of {chunk.stream}, as a worker leaves it out"] += 1
                if chunk.complete_ns is None:
                    return
                chunk = replace(chunk, first_index=end, data=chunk.data[:0], times_ns=np.empty(0, np.int64))
            self._ends[chunk.header] = chunk.end_index
        self.chunks.setdefault(chunk.header, []).append(chunk)

    def _add_sample(self, schema: Schema | None, channel: Channel, message: Message) -> None:
        topic = self.topics.get(channel.topic)
        if topic is not None and self._requested is not None and topic.stream not in self._requested:
            return  # most of the time that a file takes goes into its JSON
        json = channel.message_encoding == "json"
        value: Any = None
        try:
            if json:
                value = read_json(message.data, numbers=False)
            elif schema is not None:
                value = self._protobuf.decode(schema, message.data)
        except MessageError:
            self._unread[f"broken JSON on {channel.topic}"] += 1
            return
        # In an archive, channels are named by the session, too.
        carried = channel.metadata.get("topic", channel.topic)
        if topic is not None:
            sample = topic.takes(value)
        elif json and self.add_record(carried, value):
            return
        else:
            sample = carried.rpartition(".")[2] not in _RECORDS and is_sample(value, schema)
        if not sample:
            self._unread[f"{'JSON without numbers' if json else 'protobuf'} on {channel.topic}"] += 1
            return
        if topic is None:
            topic = self.topics[channel.topic] = TopicSamples(channel.topic, schema, self._path)
        topic.add(value, message)

    def add_record(self, topic: str, value: Any) -> bool:
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


def chunk_sessions(
    content: SortedMessages, options: ReadOptions, metadata: dict[str, str], path: str, notes: list[str]
) -> Iterator[Recording]:
    """Sessions of own chunks, in the order of their first chunk."""
    sessions: dict[str, list[Header]] = {}
    for header in content.chunks:
        if options.stream_name in (None, header.format.stream):
            sessions.setdefault(header.session, []).append(header)
    if content.chunks and not sessions and not content.topics:
        names = list(dict.fromkeys(header.format.stream for header in content.chunks))
        raise no_such_name(str(options.stream_name), names, path, "stream")
    for name, headers in sessions.items():
        session_notes = list(notes)
        session = options.session_name if options.session_name is not None else name
        if options.session_name is not None and len(sessions) > 1:
            session = f"{options.session_name}-{name}"
        streams = [_joined(header, session, content.chunks.pop(header), session_notes) for header in headers]
        record = content.records.get(name, {})
        known = dict(metadata) | {str(key): str(value) for key, value in record.get("metadata", {}).items()}
        known |= {key: str(record[key]) for key in OWN_METADATA if record.get(key)}
        labels = current_labels(content.labels.get(name, []))
        yield Recording(session, streams, labels, record.get("subject"), known, path, session_notes)


def _joined(header: Header, session: str, chunks: list[Chunk], notes: list[str]) -> StreamData:
    """One stream of its chunks: in order, each sample once; of an irregular one, as online, nothing from before an earlier time or mark."""
    samples, numbers, times, floors = list[Array](), list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[int]()
    end_index, gaps, missing, repeated, reached_ns = -1, 0, 0, 0, -(2**63)
    for chunk in sorted(chunks, key=lambda chunk: (chunk.first_index, chunk.end_index)):
        skip = min(max(end_index - chunk.first_index, 0), chunk.count) if end_index >= 0 else 0
        repeated += skip
        if 0 <= end_index < chunk.first_index:
            gaps, missing = gaps + 1, missing + chunk.first_index - end_index
        samples.append(chunk.data[skip:])
        numbers.append(np.arange(chunk.first_index + skip, chunk.end_index))
        if chunk.times_ns is not None:
            times.append(chunk.times_ns[skip:])
            floors += [reached_ns] * len(times[-1])
            reached_ns = reached_ns if chunk.complete_ns is None else max(reached_ns, chunk.complete_ns)
        end_index = max(end_index, chunk.end_index)
    stream = header.format.stream
    if gaps:
        notes.append(f"{stream}: {many(gaps, 'gap')}, {many(missing, 'sample')} missing")
    if repeated:
        notes.append(f"{stream}: {many(repeated, 'repeated sample')}, the first of each is kept")
    header, data, indexes = replace(header, session=session), np.concatenate(samples), np.concatenate(numbers)
    if len(times) != len(samples):
        return StreamData.from_indexes(header, data, indexes)
    times_ns = np.concatenate(times)
    in_order = times_ns >= np.maximum(np.maximum.accumulate(times_ns), np.array(floors, np.int64))
    if not in_order.all():
        notes.append(f"{stream}: {many(int((~in_order).sum()), 'sample')} left out, their times go back")
    return StreamData.from_indexes(header, data[in_order], indexes[in_order], times_ns[in_order])


def _topic_streams(
    topics: Mapping[str, TopicSamples], session: str, options: ReadOptions, path: str, sure: bool
) -> tuple[list[StreamData], list[str]]:
    """Streams of topics, as the recipe asks for them; without a recipe one a topic. Whether times are `sure` to be ns, the file says."""
    by_stream = {topic.stream: topic for topic in topics.values()}
    full_names = {
        f"{name}.{channel}": (topic, channel) for name, topic in by_stream.items() for channel in topic.channels
    }
    inputs = requested_inputs(options, path)
    streams, notes, errors = list[StreamData](), list[str](), list[SourceError]()
    for item in inputs or tuple(InputOptions(name) for name in by_stream):
        # Of each channel its topic, its name there, and its name in the stream.
        if any(_topic_of(name, by_stream) for name in item.channels):
            sources = [(*full_names[name], name) for name in item.channels if name in full_names]
            known, kind = list(full_names), "channel"
        elif topic := by_stream.get(item.stream):
            known, kind = list(topic.channels), f"channel of {item.stream}"
            sources = [(topic, name, name) for name in item.channels or known if name in known]
        else:
            notes.append(f"no topic of stream `{item.stream}`: read without it")
            continue
        for name in item.channels:
            if name not in known:
                raise no_such_name(name, known, path, kind)
        try:
            for topic in dict.fromkeys(topic for topic, _, _ in sources):
                notes += [f"{topic.stream}: {note}" for note in topic.settle(item.rate_hz, sure)]
            stream, stream_notes = _stream(item, sources, session, path)
        except SourceError as error:
            if inputs:
                raise
            errors.append(error)  # nobody asked for this topic
            continue
        streams.append(stream)
        notes += [f"{item.stream}: {note}" for note in stream_notes]
    if errors and not streams:
        raise errors[0]
    if not streams:
        first = inputs[0]
        name = first.channels[0] if first.channels and "." in first.channels[0] else first.stream
        raise no_such_name(name, [*full_names, *by_stream], path, "topic or channel")
    return streams, notes + [f"left out: {error.message}" for error in errors]


def _topic_of(name: str, by_stream: Mapping[str, TopicSamples]) -> str:
    """The topic that a channel's full name begins with, either of which may have dots; empty where none has that name."""
    at = len(name)
    while (at := name.rfind(".", 0, at)) > 0:
        if name[:at] in by_stream:
            return name[:at]
    return ""


def _stream(
    item: InputOptions, sources: list[tuple[TopicSamples, str, str]], session: str, path: str
) -> tuple[StreamData, list[str]]:
    topics = list(dict.fromkeys(topic for topic, _, _ in sources))
    samples = [(topic.stream, topic.times_ns, topic.values) for topic in topics]
    if all(np.array_equal(samples[0][1], times) for _, times, _ in samples[1:]):
        samples = [(item.stream, samples[0][1], np.hstack([values for _, _, values in samples]))]
    elif item.rate_hz == 0:
        raise SourceError(f"{item.stream}: the topics of an irregular stream need equal times", path)
    values: Any
    fitted, values = _side_by_side(item, samples, path)
    widths = np.cumsum([0, *(len(topic.channels) for topic in topics)]).tolist()
    columns = [widths[topics.index(topic)] + topic.channels.index(channel) for topic, channel, _ in sources]
    file_units = tuple(topic.unit for topic, _, _ in sources)
    sizes, units = _converted(file_units, item.takes or file_units) if any(file_units) else (1.0, item.units)
    data = np.ascontiguousarray(values[:, columns] * sizes)
    notes = [*fitted.notes]
    for topic in dict.fromkeys(
        topic for (topic, _, _), unit in zip(sources, item.takes, strict=False) if unit == "field"
    ):
        # What has no known unit and is taken for a field, whose length is 1, may be of quite another length.
        lengths: NDArray[np.float64] = np.linalg.norm(topic.values, axis=1)
        length = float(np.median(lengths[np.isfinite(lengths)])) if np.isfinite(lengths).any() else 1.0
        if not topic.unit and not 0.1 < length < 10:
            notes.append(
                f"{topic.stream} is {length:.3g} long, and is taken for a field of length 1 (50 µT): if it is in µT or counts, "
                "say [[input]] units and change the step `scale`"
            )
    bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
    if len(bad):
        first = int(fitted.indexes[bad[0]])
        notes.append(f"{many(len(bad), 'sample')} with missing values, first at index {first}")
    item = replace(item, channels=tuple(name for _, _, name in sources), units=units)
    times = None if fitted.rate else samples[0][1][fitted.rows]
    every = replace(fitted, rows=np.arange(len(data)))
    return every.stream(session, item, data, times), notes


def _side_by_side(
    item: InputOptions, samples: Sequence[tuple[str, NDArray[np.int64], Array]], path: str
) -> tuple[grid.Grid, Array]:
    """Names, times and values of topics on the first one's grid, and their values; a sample that one of them lacks is NaN there."""
    grids: list[grid.Grid] = []
    for name, times, values in samples:
        row_numbers = grid.RowNumbers(path, np.arange(1, len(times) + 1), "message", name)
        grids.append(grid.fit(times, values, grids[0].rate if grids else item.rate_hz, row_numbers))
    if len(grids) == 1:
        return grids[0], samples[0][2][grids[0].rows]
    rate = grids[0].rate
    shifts = [round((fitted.origin_ns - grids[0].origin_ns) * rate / NS) for fitted in grids]
    numbers = [fitted.indexes + shift - min(shifts) for fitted, shift in zip(grids, shifts, strict=True)]
    every = np.unique(np.concatenate(numbers))
    shared = int(np.sum(sum(np.isin(every, of_topic) for of_topic in numbers) == len(numbers)))
    names = ", ".join(name for name, _, _ in samples)
    if 2 * shared < len(every):
        share = f"only {shared} of {len(every)} samples are in all of {names}"
        raise SourceError(f"{item.stream}: {share}; take them as streams of their own", path)
    blocks = [np.full((len(every), values.shape[1]), np.nan) for _, _, values in samples]
    for block, of_topic, fitted, (_, _, values) in zip(blocks, numbers, grids, samples, strict=True):
        block[np.searchsorted(every, of_topic)] = values[fitted.rows]
    notes = [note for fitted in grids for note in fitted.notes]
    notes.append(f"times of {names} differ: put on one grid at {float(rate):g} Hz")
    origin_ns = grids[shifts.index(min(shifts))].origin_ns
    return grid.Grid(rate, origin_ns, np.arange(len(every)), every - every[0], notes), np.hstack(blocks)


def _converted(units: tuple[str, ...], targets: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """What channels are multiplied with to be in the target units, and their units then: what cannot be converted stays."""
    sizes, after = np.ones(len(units)), list(units)
    for i, (unit, target) in enumerate(zip(units, targets, strict=True)):
        with contextlib.suppress(FormatError):
            sizes[i], after[i] = factor(unit, target), target or unit
    return sizes, tuple(after)
