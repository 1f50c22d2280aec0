"""``kymo prepare clocks``. In: recordings of devices whose clocks were never set together. Out: what is to be added to the times of each,
how sure that is, and the line for the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kymo.lab.output import Progress
from kymo.lab.prepare.alignment import align_streams
from kymo.lab.prepare.lines import UNKNOWN_DRIFT, Alignment, Lines, to_json
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.processors.recipe.toml import Document
from kymo.streams.errors import RecipeError, SourceError
from kymo.streams.files import read_text, write_whole
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData
from kymo.streams.words import NS, some

#: Session, then stream.
Sessions = dict[str, dict[str, StreamData]]


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """What one stream's clock is behind by in one session."""

    session: str
    stream: str
    reference: str
    alignment: Alignment
    span_s: float  # how long both are
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON object; NaN as null, without curves."""
        numbers = to_json(asdict(replace(self.alignment, curves=None)))
        del numbers["curves"]
        names = {"session": self.session, "stream": self.stream, "reference": self.reference, "note": self.note}
        return names | {"sure": self.alignment.sure} | numbers

    @property
    def words(self) -> str:
        """Say what was found, or why nothing is sure."""
        found = self.alignment
        if not found.sure:
            return f"not sure: {found.why}"
        text = f"{found.offset_s:+.4f} s ± {found.offset_uncertainty_s:.4f} s, by {found.method} ({found.why})"
        if math.isnan(found.drift_uncertainty_ppm):
            most_s = UNKNOWN_DRIFT * self.span_s / 2
            return f"{text}; drift not measured: at the ends perhaps {most_s:.4f} s more or less"
        moves_s = found.drift_ppm * 1e-6 * self.span_s
        text += f"; drift {found.drift_ppm:+.1f} ± {found.drift_uncertainty_ppm:.1f} ppm"
        if abs(found.drift_ppm) <= found.drift_uncertainty_ppm:
            return f"{text}, which may be none"
        return f"{text}: {moves_s:+.4f} s from start to end, of which one offset is the middle"


def read_sessions(paths: Sequence[str], recipe: Recipe | None) -> Sessions:
    """Streams by session: a recipe's inputs, or whatever there is; files with one each are one session."""
    sessions: Sessions = {}
    for recording in _recordings(paths, recipe):
        streams = sessions.setdefault(recording.session, {})
        for stream in recording.streams:
            name = stream.header.format.stream
            table = recipe.input_of(name) if recipe else None
            known = table.stream if table else recording.session if len(recording.streams) == 1 else name
            if known in streams:
                raise SourceError(
                    f"session {recording.session} has `{known}` twice; name the files of one session", recording.path
                )
            streams[known] = stream
    single = {name: stream for streams in sessions.values() for name, stream in streams.items()}
    if len(single) == len(sessions) > 1 and all(len(streams) == 1 for streams in sessions.values()):
        sessions = {next(iter(sessions)): single}
    several = {session: streams for session, streams in sessions.items() if len(streams) > 1}
    if not several:
        text = f"{some(list(sessions), 4)}: one stream alone, expected two or more to compare; name the files of one session"
        raise SourceError(text, paths[0])
    return several


def _recordings(paths: Sequence[str], recipe: Recipe | None) -> Iterator[Recording]:
    """Recordings by clocks of which nothing is known: none is left out because its times are others."""
    if recipe is None:
        for path in paths:
            yield from read([path])
        return
    options = recipe.read_options()
    inputs = tuple(replace(source, offset_ns=None) for source in options.inputs)
    yield from read(paths, replace(options, inputs=inputs, label_key=None, more_labels=()))


def find_offsets(sessions: Sessions, reference: str, within_s: float, on_stream: Progress) -> list[ClockOffset]:
    """Compare every stream with the reference, or with the first where there is no such name."""
    offsets = list[ClockOffset]()
    todo = sum(len(streams) - 1 for streams in sessions.values())
    for session, streams in sessions.items():
        against = reference if reference in streams else next(iter(streams))
        base_ns = streams[against].start_ns
        first = Lines.of(streams[against], base_ns)
        for name, stream in streams.items():
            if name == against:
                continue
            centre_s, note = 0.0, ""
            span_s = (stream.end_ns - stream.start_ns) / NS
            if min(stream.end_ns, streams[against].end_ns) - max(stream.start_ns, base_ns) <= 0:
                centre_s = (base_ns - stream.start_ns) / NS
                note = f"their times share nothing: looked for within {within_s:g} s of where both begin together"
            try:
                found = align_streams(first, Lines.of(stream, base_ns), centre_s, within_s)
            except SourceError as error:  # it holds pictures
                found = Alignment("none", str(error))
            offsets.append(ClockOffset(session, name, against, found, span_s, note))
            on_stream(len(offsets), todo)
    return offsets


def common_offsets(offsets: Sequence[ClockOffset], recipe: Recipe | None) -> dict[str, float | str]:
    """By stream what its ``offset_ms`` is, beside that of what it was compared with, or why there is no single one."""
    common: dict[str, float | str] = {}
    known_ms = {table.stream: table.offset_ms for table in recipe.inputs} if recipe is not None else {}
    for name in dict.fromkeys(offset.stream for offset in offsets):
        found = [offset.alignment for offset in offsets if offset.stream == name and offset.alignment.sure]
        if not found:
            common[name] = "not sure"
            continue
        weights = [1 / max(item.offset_uncertainty_s, 1e-6) ** 2 for item in found]
        mean_s = sum(weight * item.offset_s for weight, item in zip(weights, found, strict=True)) / sum(weights)
        apart = max(abs(item.offset_s - mean_s) - 1.5 * item.offset_uncertainty_s for item in found)
        if apart > 0:
            low, high = (pick(item.offset_s for item in found) for pick in (min, max))
            common[name] = f"{low:+.3f} to {high:+.3f} s: another one in each session, and a recipe has one for all"
            continue
        reference = next(offset.reference for offset in offsets if offset.stream == name)
        common[name] = round(1000 * mean_s + known_ms.get(reference, 0), 1 if sum(weights) > 1e6 else 0)
    return common


def write_offsets(recipe: Recipe, offsets: dict[str, float]) -> list[str]:
    """Put ``offset_ms`` into a recipe's file; what was changed, in words."""
    if recipe.path is None:
        raise RecipeError("the recipe has no file to write to")
    changes = []
    text = read_text(recipe.path, RecipeError)
    for i, table in enumerate(recipe.inputs):
        if table.stream not in offsets:
            continue
        document, lines = Document(text, recipe.path), text.split("\n")
        known = "offset_ms" in document.values["input"][i]
        at = document.line(("input", i, "offset_ms" if known else "stream"))
        assert at is not None
        line = f"offset_ms = {offsets[table.stream]:g}"
        _, sign, comment = lines[at - 1].partition("#")
        lines[at - 1 : at] = [line + f"  {sign}{comment}" * bool(sign)] if known else [lines[at - 1], line]
        text = "\n".join(lines)
        changes.append(f"{recipe.path}:{at + (not known)}: {table.stream}: {line}, was {table.offset_ms:g}")
    parse_recipe(text, recipe.path)
    write_whole(recipe.path, text.encode())
    return changes
