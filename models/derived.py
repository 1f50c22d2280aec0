"""What a model sees, as a file. In: recordings and windows, as they pass. Out: an MCAP file of Chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from mcap.writer import CompressionType, Writer

from kymo.models.predict import BatchClassifier
from kymo.streams.archive.segment import chunk_schema
from kymo.streams.chunk import Chunk, Header, Window
from kymo.streams.codec import CHUNK_SCHEMA, ChunkCodec
from kymo.streams.errors import KymoError
from kymo.streams.events import Event
from kymo.streams.files import whole_file
from kymo.streams.recording import Recording
from kymo.streams.topics import Names

_RAW_CHUNK_S = 1
_NAMES = Names()


class DerivedFile:
    """A classifier that writes what its model sees: an MCAP file of Chunks, times in Unix ns, which appears whole or not at all.

    The raw streams stand in it as they are, so that the file is a recording like any other; each window behind all steps (a spectrogram,
    most often) is a Chunk of its own, of the stream and the chain that made it. Its origin is the window's start: neighbouring windows
    overlap.
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
        """The same recordings, their raw streams written as they pass."""
        for recording in recordings:
            for stream in recording.streams:
                if not stream.header.chain:
                    rate = stream.header.format.rate
                    for chunk in stream.chunks(max(1, round(rate * _RAW_CHUNK_S)) if rate else 1000):
                        self._add(_NAMES.for_stream(chunk.stream), chunk, chunk.start_ns)
            yield recording

    def classify(self, windows: Sequence[Window], memories: Sequence[dict[str, Any]] | None = None) -> list[Event]:
        """The classifier's own events of windows, which are written as the model is given them."""
        for window in windows:
            header = window.header
            fmt = replace(header.format, rows=None)
            chunk = Chunk(Header(header.session, window.start_ns, fmt, header.chain), 0, window.data)
            self._add(_NAMES.of("spectrogram"), chunk, window.start_ns)
        return self._classifier.classify(windows, memories)

    def _add(self, topic: str, chunk: Chunk, at_ns: int) -> None:
        if topic not in self._channels:
            self._channels[topic] = self._writer.register_channel(topic, "protobuf", self._schema)
        self._number += 1
        with self._named():
            at = max(at_ns, 0)  # MCAP knows no time before 1970
            self._writer.add_message(self._channels[topic], at, self._codec.encode(chunk), at, self._number)
