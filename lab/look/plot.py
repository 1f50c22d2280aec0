"""``kymo plot``, and plots for notebooks. In: recordings, files, or a synthesis. Out: a page (HTML) that stands alone, a figure and tables
of each session, or a picture (PNG) of one, which Jupyter shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kymo.lab.look.curves import COLUMNS, MOST_BANDS, MOST_CHANNELS, Band, Panel, bands_of, panel_of
from kymo.lab.look.film import KINDS as FILMS
from kymo.lab.look.film import frames_of, write_film
from kymo.lab.look.live import SCRIPT, STYLE, columns_for, live_plot
from kymo.lab.output import writing
from kymo.models.reports import html as h
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import LabelsJson, interval
from kymo.streams.readers import label_keys, read
from kymo.streams.recording import LabelOptions, ReadOptions, Recording, StreamData
from kymo.streams.replay.schedule import cut
from kymo.streams.words import NS

if TYPE_CHECKING:
    from kymo.lab.synth.simulate import Synthesis
    from kymo.models.reports.plots import Drawing

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
_MOST_SESSIONS, _MOST_STREAMS, _MOST_ROWS = 20, 32, 100


@dataclass(frozen=True)
class Excerpt:
    """What is shown of recordings."""

    session: str | None = None  # that one; by default all
    streams: Sequence[str] = ()  # those; by default all
    start_s: float = 0.0
    duration_s: float | None = None  # by default to the end
    film_hz: float | None = None  # frames a second of a film; by default as many as there are

    def of(self, recordings: Iterable[Recording]) -> Iterator[tuple[int, Recording]]:
        """That part of each recording, if it holds a sample, with the start of the whole, Unix ns."""
        sessions = []
        for recording in recordings:
            sessions.append(recording.session)
            if self.session in (None, recording.session):
                part = self._of_one(recording)
                if part is not None and any(stream.count for stream in part.streams):
                    yield recording.start_ns, part
        if self.session is not None and self.session not in sessions:
            raise SourceError(f"no session `{self.session}`; there are {', '.join(sessions[:20]) or 'none'}")

    def _of_one(self, recording: Recording) -> Recording | None:
        streams = {stream.header.format.stream: stream for stream in recording.streams}
        if missing := [name for name in self.streams if name not in streams]:
            raise SourceError(f"session {recording.session} has no stream `{missing[0]}`, only {', '.join(streams)}")
        wanted = [s for s in recording.streams if s.header.format.stream in (self.streams or streams)]
        whole = replace(recording, streams=wanted)
        part = cut(whole, self.start_s, self.duration_s)
        if part is whole or part is None:
            return part
        begin = whole.start_ns + round(self.start_s * NS)
        end = whole.end_ns + 1 if self.duration_s is None else begin + round(self.duration_s * NS)
        labels = [label for label in part.labels if label.end_ns > begin and label.start_ns < end]
        return replace(part, streams=[stream for stream in part.streams if stream.count], labels=labels)


@dataclass(frozen=True)
class Plot:
    """One session as a picture."""

    recording: Recording = field(repr=False)  # what is drawn
    png: bytes = field(repr=False)  # the picture
    section: str = field(repr=False)  # of a page

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the picture (``X.png``), or a page that zooms (``X.html``); a SourceError where the name ends otherwise."""
        target, title = Path(path), self.recording.session
        if target.suffix.lower() not in (".png", ".html"):
            raise SourceError("a plot is written as X.png or X.html", target)
        page = target.suffix.lower() == ".html"
        with writing(target):
            target.write_bytes(plot_page(title, [(title, self.section)]).encode() if page else self.png)
        return target


def plot(
    source: Recording | Synthesis | Paths,
    *,
    recipe: str | None = None,
    session: str | None = None,
    streams: Sequence[str] = (),
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Plot:
    """Draw a session: its streams over time, labels shaded.

    Parameters
    ----------
    source : Recording, Synthesis or path
        What :func:`kymo.read` or :func:`kymo.simulate` gives, or files.
    recipe : str, optional
        For files: says which columns, units and labels to read.
    session : str, optional
        For files with several: which one; else the first.
    streams : sequence of str
        Only these.
    start_s, duration_s : float
        Which part.

    Raises
    ------
    SourceError
        If there is nothing to draw.
    """
    recordings: Iterable[Recording]
    if isinstance(source, str | PathLike | Sequence):
        paths = [source] if isinstance(source, str | PathLike) else source
        recordings = _labelled([fspath(path) for path in paths], recipe)
    else:
        recordings = [source if isinstance(source, Recording) else recording_of(source)]
    part = next(Excerpt(session, streams, start_s, duration_s).of(recordings), None)
    if part is None:
        raise SourceError("nothing to draw, no stream has a sample there; look at session, streams and start_s")
    drawing, section = plot_recording(part[1], origin_ns=part[0])
    return Plot(part[1], drawing.png, section)


def recording_of(synthesis: Synthesis) -> Recording:
    """Make a recording of a synthesis: a stream a topic, labels the levels of its segments' distortion."""
    streams, plan = [], synthesis.plan
    for topic, values in synthesis.topics.items():
        indexes = synthesis.raw_index if topic.endswith("_raw") else np.arange(len(values))
        names = ("x", "y", "z") if values.shape[1] == 3 else tuple(str(i) for i in range(values.shape[1]))
        fmt = signal_format(topic, names, Fraction(plan.sample_rate), "float64")
        streams.append(StreamData.from_indexes(Header("synthetic", int(synthesis.times_ns[0]), fmt), values, indexes))
    labels = [
        interval(session="synthetic", set="mag_distortion", start_ns=start, end_ns=end, label=segment.level)
        for segment, (start, end) in zip(plan.segments, plan.spans, strict=True)
    ]
    return Recording("synthetic", streams, labels)


def plot_files(
    paths: Sequence[str], recipe: str | None, out: Path | None, labels: Path | None, key: str | None, part: Excerpt
) -> tuple[Path, list[dict[str, Any]]]:
    """Draw recordings into a file; where it is, and what is known of those that are shown."""
    recordings = _labelled(paths, recipe, labels, key)
    title, target = ", ".join(map(_name, paths)), out or Path(f"{_stem(paths[0])}.html")
    # One more than are shown, so that it can be said.
    parts = list(islice(part.of(recordings), _MOST_SESSIONS + 1))
    if not parts:
        raise SourceError(f"{title}: nothing to draw, no stream has a sample there; look at --start and --stream")
    if (kind := target.suffix.lower()) != ".html" and len(parts) > 1:
        names, what = ", ".join(recording.session for _, recording in parts[:5]), "film" if kind in FILMS else "PNG"
        raise SourceError(f"{title}: a {what} shows one session; name one with --session ({names} …), or write HTML")
    if kind in FILMS:
        fmt, frames = frames_of(parts[0][1], load_recipe(recipe) if recipe else None)
        count = write_film(target, frames, part.film_hz or float(fmt.rate))
        return target, [{**facts(parts[0][1]), "frames": count}]
    if kind == ".png":
        data = plot_recording(parts[0][1], origin_ns=parts[0][0])[0].png
    else:
        data = _page(parts[:_MOST_SESSIONS], title, len(parts) > _MOST_SESSIONS).encode()
    with writing(target):
        target.write_bytes(data)
    return target, [facts(recording) for _, recording in parts[:_MOST_SESSIONS]]


def _labelled(
    paths: Sequence[str], recipe: str | None, file: Path | None = None, key: str | None = None
) -> Iterator[Recording]:
    """Recordings as a recipe reads them, with their labels: those of a file, of a key, or of all keys that are there."""
    options = load_recipe(recipe).read_options() if recipe else ReadOptions()
    if key and not file:
        options = replace(options, label_key=key)
    elif not recipe and not file:
        options = replace(options, more_labels=tuple(LabelOptions(key=name) for name in label_keys(paths)))
    elif key:
        options = replace(options, label_key=None)
    recordings = read(paths, options)
    return recordings if file is None else _labelled_by(recordings, file, key)


def _labelled_by(recordings: Iterator[Recording], path: Path, key: str | None) -> Iterator[Recording]:
    """The one recording with the labels of a file."""
    for number, recording in enumerate(recordings):
        if number:
            raise SourceError("labels one recording, and several are named; name one", path)
        content = LabelsJson(path)
        keys = [key] if key else content.keys
        labels = [label for name in keys for label in content.labels(name, session=recording.session)]
        if not any(label.end_ns > recording.start_ns and label.start_ns < recording.end_ns for label in labels):
            raise SourceError(f"no label lies within session {recording.session}; is its clock another one?", path)
        yield replace(recording, labels=[*recording.labels, *labels])


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _stem(path: str) -> str:
    name = _name(path).replace(":", "-").strip("/")
    return name.rpartition(".")[0] or name.strip(".") or "plot"


def _page(parts: Sequence[tuple[int, Recording]], title: str, more: bool) -> str:
    """A page of several sessions: a class has one tint throughout, and curves share what a page may weigh."""
    classes = sorted({label.label for _, recording in parts for label in recording.labels})
    streams = [stream for _, recording in parts for stream in recording.streams]
    columns = columns_for(sum(len(stream.header.format.channels[:MOST_CHANNELS]) for stream in streams))
    sections = [
        (recording.session, plot_recording(recording, f"r{i}", start_ns, classes, columns)[1])
        for i, (start_ns, recording) in enumerate(parts)
    ]
    notes = [f"Only the first {_MOST_SESSIONS} sessions are shown; name another with --session."] if more else []
    return plot_page(title, sections, notes)


def plot_recording(
    recording: Recording,  # with at least one sample
    name: str = "recording",  # keeps the figure apart from others of the page
    origin_ns: int | None = None,  # Unix time that seconds count from, ns; by default the recording's start
    classes: Sequence[str] = (),  # all classes of the page, so that each has one tint
    columns: int = COLUMNS,  # of a curve that can be zoomed: up to twice as many samples are drawn as they are
) -> tuple[Drawing, str]:
    """A recording's figure, and its section of a page."""
    from kymo.lab.look.draw import recording_figure, tints_of

    start_ns = recording.start_ns if origin_ns is None else origin_ns
    streams = [stream for stream in recording.streams if stream.count]
    panels = [panel_of(stream, start_ns) for stream in streams[:_MOST_STREAMS]]
    bands = bands_of(recording.labels, start_ns)
    drawing = recording_figure(name, panels, bands, classes)
    words = _words(recording, panels, bands)
    pieces = [h.figure(drawing.svg, words, wide=True)]
    tints = tints_of(classes or [band.label for intervals in bands.values() for band in intervals])
    live = live_plot(panels, bands, tints, words, start_ns, columns)
    if live:  # pictures stay as they are; curves are for browsers without scripts
        still = pieces[0] if any(panel.pictures for panel in panels) else f"<noscript>{pieces[0]}</noscript>"
        pieces = [live, still]
    pieces += [h.paragraph(f"{len(streams) - len(panels)} more streams are not drawn.", "note")] * (
        len(streams) > len(panels)
    )
    pieces += [_streams_table(recording), _numbers_table(panels)]
    pieces += [_labels_table(name, intervals) for name, intervals in bands.items()]
    if recording.notes:
        pieces.append(h.details(f"{len(recording.notes)} notes of reading", h.listed(recording.notes[:_MOST_ROWS])))
    return drawing, "".join(pieces)


def plot_page(title: str, sections: Sequence[tuple[str, str]], notes: Iterable[str] = ()) -> str:
    """The page of several recordings, each with its name and its section."""
    lead = "".join(h.paragraph(note, "note") for note in notes)
    foot = "Made by Kymo. Every column of a curve shows its smallest and its largest number."
    return h.page(title, lead, sections, foot, (SCRIPT, STYLE))


def facts(recording: Recording) -> dict[str, Any]:
    """What a plot shows, as JSON: sizes, rates and gaps of each stream, counts of labels."""
    return {
        "session": recording.session,
        "subject": recording.subject,
        "path": recording.path,
        "start_ns": recording.start_ns,
        "duration_s": (recording.end_ns - recording.start_ns) / NS,
        "streams": [
            {
                "stream": stream.header.format.stream,
                "samples": stream.count,
                "rate_hz": float(stream.header.format.rate),
                "duration_s": stream.duration_s,
                "gaps": len(stream.pieces) - 1,
                "channels": list(stream.header.format.channels),
            }
            for stream in recording.streams
        ],
        "labels": len(recording.labels),
    }


def _words(recording: Recording, panels: Sequence[Panel], bands: Mapping[str, Sequence[Band]]) -> str:
    """The figure for those who do not see it."""
    names = ", ".join(panel.stream.header.format.stream for panel in panels)
    classes = sorted({band.label for intervals in bands.values() for band in intervals})
    labelled = f"; labels {', '.join(classes[:20])}" if classes else "; no labels"
    duration = h.duration((recording.end_ns - recording.start_ns) / NS)
    return f"Session {recording.session} over {duration}: {names}{labelled}."


def _streams_table(recording: Recording) -> str:
    columns = {"stream": "", **h.numbers("rate (Hz)", "samples", "duration", "gaps"), "channels": ""}
    rows = []
    for stream in recording.streams[:_MOST_ROWS]:
        fmt = stream.header.format
        rate = f"{float(fmt.rate):g}" if fmt.rate else "irregular"
        channels = ", ".join(fmt.channels[:MOST_CHANNELS])
        more = len(fmt.channels) - MOST_CHANNELS
        names = channels + (f" and {more} more" if more > 0 else "")
        rows.append(
            (fmt.stream, rate, f"{stream.count:,}", h.duration(stream.duration_s), f"{len(stream.pieces) - 1:,}", names)
        )
    start = f"Starts at {datetime.fromtimestamp(recording.start_ns / NS, UTC).isoformat(timespec='milliseconds')}."
    if 0 <= recording.start_ns < 86_400 * NS:
        start = "Its times have no date."
    who = f"Subject {recording.subject}. " if recording.subject else ""
    return h.paragraph(f"{who}{start}", "soft") + h.table("Streams", columns, rows)


def _numbers_table(panels: Sequence[Panel]) -> str:
    rows = []
    for panel in panels:
        for curve in panel.curves:
            name = f"{panel.stream.header.format.stream} {curve.name}"
            numbers = [
                f"{value:.4g}" if math.isfinite(value) else h.NOTHING for value in (curve.low, curve.mean, curve.high)
            ]
            rows.append((name, curve.unit or h.NOTHING, *numbers, f"{curve.not_finite:,}"))
    columns = {"channel": "", "unit": "", **h.numbers("least", "mean", "most", "not finite")}
    return h.details("Numbers of the channels", h.table("Channels", columns, rows)) if rows else ""


def _labels_table(name: str, bands: Sequence[Band]) -> str:
    first = bands[:_MOST_ROWS]
    caption = f"Labels `{name}`: {h.counted(len(bands), 'band')}" + (
        f", {len(first)} shown" if len(first) < len(bands) else ""
    )
    caption += f"; the figure has the first {MOST_BANDS}" if len(bands) > MOST_BANDS else ""
    columns = {"label": "", **h.numbers("from (s)", "to (s)")}
    rows = [(band.label, f"{band.start_s:.3f}", f"{band.end_s:.3f}") for band in first]
    return h.details(f"Labels `{name}` ({len(bands):,})", h.table(caption, columns, rows))
