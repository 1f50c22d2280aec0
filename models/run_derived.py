"""What the model saw, beside the raw data. In: recordings and their windows as they pass. Out: an MCAP file of Chunks, times in Unix ns.

The raw streams stand in it as they are, so that the file is a recording like any other; each window behind all steps (a spectrogram, most
often) is a Chunk of its own, of the stream and the chain that made it. Its origin is the window's start: neighbouring windows overlap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from mcap.writer import CompressionType, Writer

from models.predict import BatchClassifier
from streams.archive.segment import CHUNK_SCHEMA, chunk_schema
from streams.chunk import Chunk, Header, Window
from streams.codec import ChunkCodec
from streams.errors import KymoError
from streams.events import Event
from streams.files import whole_file
from streams.recording import Recording
from streams.topics import Names

_RAW_CHUNK_S = 1
_NAMES = Names()


class DerivedFile:
    """A file that appears whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, contextlib.ExitStack()
        self._codec, self._channels, self._number = ChunkCodec(), dict[str, int](), 0
        self.windows = 0

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

    def window(self, window: Window) -> None:
        """Write a window as the model is given it."""
        fmt = replace(window.header.format, rows=None)
        header = Header(window.header.session, window.start_ns, fmt, window.header.chain)
        self._add(_NAMES.of("spectrogram"), Chunk(header, 0, window.data), window.start_ns)
        self.windows += 1

    def _add(self, topic: str, chunk: Chunk, at_ns: int) -> None:
        if topic not in self._channels:
            self._channels[topic] = self._writer.register_channel(topic, "protobuf", self._schema)
        self._number += 1
        with self._named():
            at = max(at_ns, 0)  # MCAP knows no time before 1970
            self._writer.add_message(self._channels[topic], at, self._codec.encode(chunk), at, self._number)


class Watched:
    """A classifier whose windows are written."""

    def __init__(self, classifier: BatchClassifier, file: DerivedFile) -> None:
        self._classifier, self._file, self.bundle = classifier, file, classifier.bundle

    def classify(self, windows: Sequence[Window], memories: Sequence[dict[str, Any]] | None = None) -> list[Event]:
        """The classifier's own events."""
        for window in windows:
            self._file.window(window)
        return self._classifier.classify(windows, memories)
