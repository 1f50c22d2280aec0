"""``kymo plot``. In: recordings. Out: a page (HTML) that stands alone, a figure and tables of each session, or a picture (PNG) of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kymo.lab.look.curves import COLUMNS, MOST_BANDS, MOST_CHANNELS, Band, Panel, bands_of, cut, panel_of
from kymo.lab.look.live import SCRIPT, STYLE, columns_for, live_plot
from kymo.models.reports import html as h
from kymo.processors.recipe.load import load_recipe
from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import keys_of_labels_json, read_labels_json
from kymo.streams.readers import label_keys, read
from kymo.streams.recording import LabelOptions, ReadOptions, Recording
from kymo.streams.words import NS

if TYPE_CHECKING:
    from kymo.models.reports.plots import Drawing

_MOST_SESSIONS, _MOST_STREAMS, _MOST_ROWS = 20, 32, 100


def plot_files(
    paths: Sequence[str], recipe: str | None, out: Path | None, choice: dict[str, Any]
) -> tuple[Path, list[dict[str, Any]]]:
    """Draw recordings into a file; where it is, and what is known of those that are shown."""
    if choice["key"] or choice["labels"]:
        options = load_recipe(recipe).read_options() if recipe else ReadOptions()
        if choice["key"]:
            options = replace(options, label_key=None if choice["labels"] else choice["key"])
        recordings = read(paths, options)
    else:
        recordings = read_labelled(paths, recipe)
    if choice["labels"]:
        recordings = _labelled(recordings, choice["labels"], choice["key"])
    # One more than are shown, so that it can be said.
    parts = list(islice(choose(recordings, choice), _MOST_SESSIONS + 1))
    target = out or Path(f"{_stem(paths[0])}.html")
    return target, _write(target, parts, ", ".join(map(_name, paths)))


def read_labelled(paths: Sequence[str], recipe: str | None) -> Iterator[Recording]:
    """Recordings as a recipe reads them; without one, with the labels of all keys that are there."""
    if recipe:
        return read(paths, load_recipe(recipe).read_options())
    return read(paths, ReadOptions(more_labels=tuple(LabelOptions(key=key) for key in label_keys(paths))))


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _stem(path: str) -> str:
    name = _name(path).replace(":", "-").strip("/")
    return name.rpartition(".")[0] or name.strip(".") or "plot"


def _labelled(recordings: Iterator[Recording], path: Path, key: str | None) -> Iterator[Recording]:
    """The one recording with the labels of a file."""
    for number, recording in enumerate(recordings):
        if number:
            raise SourceError("labels one recording, and several are named; name one", path)
        keys = [key] if key else keys_of_labels_json(path)
        labels = [label for name in keys for label in read_labels_json(path, name, session=recording.session)]
        if not any(label.end_ns > recording.start_ns and label.start_ns < recording.end_ns for label in labels):
            raise SourceError(f"no label lies within session {recording.session}; is its clock another one?", path)
        yield replace(recording, labels=[*recording.labels, *labels])


def choose(recordings: Iterator[Recording], choice: dict[str, Any]) -> Iterator[tuple[int, Recording]]:
    """What is asked for of each recording, with the start of the whole, Unix ns."""
    sessions = []
    for recording in recordings:
        sessions.append(recording.session)
        if choice["session"] not in (None, recording.session):
            continue
        streams = {stream.header.format.stream: stream for stream in recording.streams}
        if missing := [name for name in choice["streams"] if name not in streams]:
            raise SourceError(f"session {recording.session} has no stream `{missing[0]}`, only {', '.join(streams)}")
        part = replace(
            recording,
            streams=[s for s in recording.streams if s.header.format.stream in (choice["streams"] or streams)],
        )
        if choice["start_s"] or choice["duration_s"]:
            part = cut(part, choice["start_s"], choice["duration_s"])
        yield recording.start_ns, part
    if choice["session"] is not None and choice["session"] not in sessions:
        raise SourceError(f"no session `{choice['session']}`; there are {', '.join(sessions[:20]) or 'none'}")


def _write(target: Path, parts: list[tuple[int, Recording]], title: str) -> list[dict[str, Any]]:
    filled = [
        (start_ns, recording) for start_ns, recording in parts if any(stream.count for stream in recording.streams)
    ]
    if not filled:
        raise SourceError(f"{title}: nothing to draw, no stream has a sample there; look at --start and --stream")
    first, notes = filled[:_MOST_SESSIONS], []
    if len(filled) > _MOST_SESSIONS:
        notes = [f"Only the first {_MOST_SESSIONS} sessions are shown; name another with --session."]
    if target.suffix.lower() == ".png":
        if len(filled) > 1:
            names = ", ".join(recording.session for _, recording in filled[:5])
            raise SourceError(f"{title}: a PNG shows one session; name one with --session ({names} …), or write HTML")
        data = plot_recording(filled[0][1], origin_ns=filled[0][0])[0].png
    else:
        classes = sorted({label.label for _, recording in first for label in recording.labels})
        columns = _columns_of([recording for _, recording in first])
        sections = [
            (recording.session, plot_recording(recording, f"r{i}", start_ns, classes, columns)[1])
            for i, (start_ns, recording) in enumerate(first)
        ]
        data = plot_page(title, sections, notes).encode()
    try:
        target.write_bytes(data)
    except OSError as error:
        raise SourceError(f"{target}: cannot be written ({error.strerror}); choose another place with --out") from None
    return [facts(recording) for _, recording in first]


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


def _columns_of(recordings: Sequence[Recording]) -> int:
    """How many columns each curve of a page of these recordings may have."""
    return columns_for(
        sum(len(s.header.format.channels[:MOST_CHANNELS]) for recording in recordings for s in recording.streams)
    )


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
