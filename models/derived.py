"""What a model sees, as a file. In: recordings and windows, as they pass. Out: an MCAP file of Chunks."""

from __future__ import annotations

import contextlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from mcap.writer import CompressionType, Writer
from numpy.typing import NDArray

from kymo.models.predict import BatchClassifier
from kymo.streams.archive.export import SCHEMAS, TEXT, TIME, json_channel, png, stamp, text_of
from kymo.streams.archive.segment import chunk_schema
from kymo.streams.chunk import Array, Chunk, Header, Window
from kymo.streams.codec import CHUNK_SCHEMA, ChunkCodec
from kymo.streams.errors import KymoError
from kymo.streams.events import Event
from kymo.streams.files import whole_file
from kymo.streams.recording import Recording
from kymo.streams.topics import Names

_RAW_CHUNK_S = 1
_NAMES = Names()


_CLASSIFICATION = {
    "timestamp": TIME,
    "session": TEXT,
    "label": TEXT,
    "head": TEXT,
    "predicted_class_id": {"type": "integer"},
    "probability": {"type": "number"},
    "probabilities": {"type": "object"},
}
_LEAST_PIXELS = 256


class DerivedFile:
    """A classifier that writes what its model sees: an MCAP file of Chunks, times in Unix ns, which appears whole or not at all.

    The raw streams stand in it as they are, so that the file is a recording like any other; each window behind all steps (a spectrogram,
    most often) is a Chunk of its own, of the stream and the chain that made it. Its origin is the window's start: neighbouring windows
    overlap. For viewers, a window of several bins is a picture on ``spectrogram``, too, and each event a message on ``classification``,
    both at the window's end.
    """

    def __init__(self, path: Path, classifier: BatchClassifier) -> None:
        self._path, self._stack = path, contextlib.ExitStack()
        self._codec, self._channels, self._number = ChunkCodec(), dict[str, int](), 0
        self._classifier, self.bundle = classifier, classifier.bundle

    def __enter__(self) -> DerivedFile:
        with self._named():
            unfinished = self._stack.enter_context(whole_file(self._path))
            file = self._stack.enter_context(unfinished.open("wb"))
        self._writer = Writer(file, compression=CompressionType.ZSTD)
        self._writer.start(profile="", library="kymo run")
        self._schema = self._writer.register_schema(CHUNK_SCHEMA, "protobuf", chunk_schema())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._named():
            if error is not None:
                self._stack.__exit__(kind, error, trace)
                return
            with self._stack:
                self._writer.finish()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KymoError(f"{self._path}: cannot be written ({error.strerror or error})") from None

    def recordings(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """The same recordings, their raw streams written as they pass, side by side in time."""
        for recording in recordings:
            parts = []
            for stream in recording.streams:
                rate = stream.header.format.rate
                if not stream.header.chain:
                    parts.append(stream.chunks(max(1, round(rate * _RAW_CHUNK_S)) if rate else 1000))
            for chunk in heapq.merge(*parts, key=lambda chunk: chunk.start_ns):
                self._add(_NAMES.for_stream(chunk.stream), chunk, chunk.start_ns)
            yield recording

    def classify(self, windows: Sequence[Window], memories: Sequence[dict[str, Any]] | None = None) -> list[Event]:
        """The classifier's own events of windows, which are written as the model is given them."""
        for window in windows:
            header = window.header
            fmt = replace(header.format, rows=None)
            chunk = Chunk(Header(header.session, window.start_ns, fmt, header.chain), 0, window.data)
            self._add(_NAMES.of("spectrogram"), chunk, window.start_ns)
            if window.data.ndim == 3:
                picture = {"frame_id": header.session, "data": text_of(png(picture_of(window.data))), "format": "png"}
                self._add_json("spectrogram", "foxglove.CompressedImage", picture, window.end_ns)
        events = self._classifier.classify(windows, memories)
        for event in events:
            said = max(event.probabilities, key=event.probabilities.__getitem__, default="")
            number = self.bundle.labels.index(said) if said in self.bundle.labels else -1
            members = {"session": event.session, "label": event.label, "head": event.head, "predicted_class_id": number}
            members |= {"probability": event.probability, "probabilities": event.probabilities}
            self._add_json("classification", "classification", members, event.end_ns)
        return events

    def _add(self, topic: str, chunk: Chunk, at_ns: int) -> None:
        if topic not in self._channels:
            self._channels[topic] = self._writer.register_channel(topic, "protobuf", self._schema)
        self._write(topic, self._codec.encode(chunk), at_ns)

    def _add_json(self, topic: str, schema: str, members: dict[str, Any], at_ns: int) -> None:
        if topic not in self._channels:
            self._channels[topic] = json_channel(self._writer, topic, schema, SCHEMAS.get(schema, _CLASSIFICATION))
        self._write(topic, json.dumps({"timestamp": stamp(at_ns)} | members).encode(), at_ns)

    def _write(self, topic: str, data: bytes, at_ns: int) -> None:
        self._number += 1
        with self._named():
            at = max(at_ns, 0)  # MCAP knows no time before 1970
            self._writer.add_message(self._channels[topic], at, data, at, self._number)


def picture_of(window: Array) -> NDArray[np.uint8]:
    """A window ``(time, bins, channels)`` as grey pixels: time to the right, bins upwards, channels one below the other, black to white."""
    tiles = window.astype(np.float64).transpose(2, 1, 0)[:, ::-1].reshape(-1, len(window))  # (channels x bins, time)
    shown = np.nan_to_num(tiles, posinf=0.0, neginf=0.0)
    low, high = shown.min(), shown.max()
    grey: NDArray[np.uint8] = np.rint((shown - low) * (255.0 / (high - low) if high > low else 0.0)).astype(np.uint8)
    times = -(-_LEAST_PIXELS // max(1, *grey.shape))
    return grey.repeat(times, axis=0).repeat(times, axis=1)
