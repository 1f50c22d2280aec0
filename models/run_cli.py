"""``kymo run``. In: a recipe and paths. Out: events as JSON Lines; what was repaired or left out on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import click
from mcap.writer import CompressionType, Writer

from kymo.streams.archive.segment import chunk_schema
from kymo.streams.chunk import Chunk, Header, Window
from kymo.streams.codec import CHUNK_SCHEMA, ChunkCodec
from kymo.streams.errors import KymoError
from kymo.streams.events import Event
from kymo.streams.files import whole_file
from kymo.streams.readers.words import grouped
from kymo.streams.recording import Recording
from kymo.streams.topics import Names

if TYPE_CHECKING:
    from kymo.models.predict import BatchClassifier

_RAW_CHUNK_S = 1
_NAMES = Names()
_SHOWN = 20  # lines of one kind on stderr before the rest is only counted


@click.command("run")
@click.argument("recipe", metavar="RECIPE")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--bundle", metavar="V", help="A bundle's folder or name, instead of the recipe's own.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="F", help="Write events to this file.")
@click.option(
    "--write-derived",
    "derived",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT.mcap",
    help="Write the raw streams, and each window as the model sees it (a spectrogram, most often), to this MCAP file.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as JSON (with --out on stdout, else on stderr)."
)
def run_command(
    recipe: str, paths: tuple[str, ...], bundle: str | None, out: Path | None, derived: Path | None, as_json: bool
) -> None:
    """Classify files without a broker: the same events as online, as JSON Lines.

    Example: kymo run basicmotions basicmotions:test --out events.jsonl
    """
    from kymo.models.bundle import check_model, load_bundle
    from kymo.models.predict import Classifier
    from kymo.models.run import Report, check_matched, run
    from kymo.processors.recipe.load import load_recipe
    from kymo.streams.readers import read

    loaded = load_recipe(recipe)
    check_model(loaded)
    report, started = Report(), time.perf_counter()
    classifier = Classifier.for_recipe(load_bundle(bundle or loaded.name), loaded)
    recordings = read(paths, loaded.read_options())
    with contextlib.ExitStack() as stack:
        if derived is None:
            events = run(loaded, recordings, classifier, report=report)
        else:
            seen = stack.enter_context(DerivedFile(derived, classifier))
            events = run(loaded, seen.recordings(recordings), seen, report=report)
        file = stack.enter_context(_target(out))
        for event in _progress(events, report):
            file.write(event.to_json().decode() + "\n")
    report.counts.update(classifier.counts)
    summary = {
        "recordings": report.recordings,
        "matched": report.matched,
        "events": report.events,
        "unknown": report.unknown,
        "counts": {name: n for name, n in sorted(report.counts.items()) if n},
        "unmatched": report.unmatched,
        "silent": report.silent,
        "repairs": report.repairs,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False), err=out is None or str(out) == "-")
    else:
        _tell([f"recipe: {note}" for note in loaded.notes], summary)
    check_matched(loaded, report)


@contextlib.contextmanager
def _target(out: Path | None) -> Iterator[IO[str]]:
    """Where events go; a file appears under its name only once it is whole."""
    if out is None or str(out) == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        with whole_file(out) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise KymoError(f"{out}: cannot be written ({error.strerror or error})") from None


def _progress(events: Iterable[Event], report: Any) -> Iterator[Event]:
    """The same events, with a line on stderr that counts them where that is a terminal and stdout is not."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield from events
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as status:
        for event in events:
            yield event
            if report.events % 50 == 1:
                status.update(f"{report.recordings} recordings, {report.events} events")


def _tell(recipe_notes: list[str], summary: dict[str, Any]) -> None:
    repairs = [(session, note) for session, notes in summary["repairs"].items() for note in notes]
    groups = [
        recipe_notes,
        grouped(repairs),
        grouped((name, f"not taken: {why}") for name, why in summary["unmatched"].items()),
        grouped((name, f"no event: {why}") for name, why in summary["silent"].items()),
    ]
    for lines in groups:
        for line in lines[:_SHOWN]:
            click.echo(line, err=True)
        if len(lines) > _SHOWN:
            click.echo(f"… and {len(lines) - _SHOWN} more like these", err=True)
    counts = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in summary["counts"].items())
    click.echo(
        f"{summary['matched']} of {summary['recordings']} recordings taken, {summary['events']} events "
        f"({summary['unknown']} unknown) in {summary['seconds']:.1f} s{'; ' if counts else ''}{counts}",
        err=True,
    )


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
