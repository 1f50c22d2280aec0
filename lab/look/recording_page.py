"""The page of a plot. In: recordings. Out: HTML that stands alone: a figure and tables of each session."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lab.look.draw import recording_figure, tints_of
from lab.look.live import columns_for, live_plot
from lab.look.plot import COLUMNS, MOST_BANDS, MOST_CHANNELS, Band, Panel, bands_of, panel_of
from lab.look.script import SCRIPT
from lab.look.script import STYLE as LIVE_STYLE
from models.reports import html as h
from models.reports.html import Column
from models.reports.plots import Drawing
from streams.chunk import NS
from streams.recording import Recording

MOST_STREAMS, MOST_ROWS = 32, 100


def plot_recording(
    recording: Recording,  # with at least one sample
    name: str = "recording",  # keeps the figure apart from others of the page
    origin_ns: int | None = None,  # Unix time that seconds count from, ns; by default the recording's start
    classes: Sequence[str] = (),  # all classes of the page, so that each has one tint
    columns: int = COLUMNS,  # of a curve that can be zoomed: up to twice as many samples are drawn as they are
) -> tuple[Drawing, str]:
    """A recording's figure, and its section of a page."""
    start_ns = recording.start_ns if origin_ns is None else origin_ns
    streams = [stream for stream in recording.streams if stream.count]
    panels = [panel_of(stream, start_ns) for stream in streams[:MOST_STREAMS]]
    bands = bands_of(recording.labels, start_ns)
    drawing = recording_figure(name, panels, bands, classes)
    words = _words(recording, panels, bands)
    made = [h.figure(drawing.svg, words, wide=True)]
    tints = tints_of(classes or [band.label for found in bands.values() for band in found])
    live = live_plot(panels, bands, tints, words, (start_ns, columns))
    if live:  # pictures stay as they are; curves are for browsers without scripts
        still = made[0] if any(panel.pictures for panel in panels) else f"<noscript>{made[0]}</noscript>"
        made = [live, still]
    made += [h.paragraph(f"{len(streams) - len(panels)} more streams are not drawn.", "note")] * (
        len(streams) > len(panels)
    )
    made += [_streams_table(recording), _numbers_table(panels)]
    made += [_labels_table(name, found) for name, found in bands.items()]
    if recording.notes:
        made.append(h.details(f"{len(recording.notes)} notes of reading", h.listed(recording.notes[:MOST_ROWS])))
    return drawing, "".join(made)


def plot_page(title: str, sections: Sequence[tuple[str, str]], notes: Iterable[str] = ()) -> str:
    """The page of several recordings, each with its name and its section."""
    lead = "".join(h.paragraph(note, "note") for note in notes)
    foot = "Made by Kymo. Every column of a curve shows its smallest and its largest number."
    return h.page(title, lead, sections, foot, (SCRIPT, LIVE_STYLE))


def columns_of(recordings: Sequence[Recording]) -> int:
    """How many columns each curve of a page of these recordings may have."""
    return columns_for(sum(len(s.header.format.channels[:MOST_CHANNELS]) for one in recordings for s in one.streams))


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
    classes = sorted({band.label for found in bands.values() for band in found})
    labelled = f"; labels {', '.join(classes[:20])}" if classes else "; no labels"
    duration = h.duration((recording.end_ns - recording.start_ns) / NS)
    return f"Session {recording.session} over {duration}: {names}{labelled}."


def _streams_table(recording: Recording) -> str:
    columns = [
        Column("stream"),
        *(Column(n, "n") for n in ("rate (Hz)", "samples", "duration", "gaps")),
        Column("channels"),
    ]
    rows = []
    for stream in recording.streams[:MOST_ROWS]:
        fmt = stream.header.format
        rate = f"{float(fmt.rate):g}" if fmt.rate else "irregular"
        shown = ", ".join(fmt.channels[:MOST_CHANNELS])
        more = len(fmt.channels) - MOST_CHANNELS
        named = shown + (f" and {more} more" if more > 0 else "")
        rows.append(
            (fmt.stream, rate, f"{stream.count:,}", h.duration(stream.duration_s), f"{len(stream.pieces) - 1:,}", named)
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
            named = f"{panel.stream.header.format.stream} {curve.name}"
            numbers = [
                f"{value:.4g}" if math.isfinite(value) else h.NOTHING for value in (curve.low, curve.mean, curve.high)
            ]
            rows.append((named, curve.unit or h.NOTHING, *numbers, f"{curve.not_finite:,}"))
    columns = [Column("channel"), Column("unit"), *(Column(n, "n") for n in ("least", "mean", "most", "not finite"))]
    return h.details("Numbers of the channels", h.table("Channels", columns, rows)) if rows else ""


def _labels_table(name: str, bands: Sequence[Band]) -> str:
    shown = bands[:MOST_ROWS]
    caption = f"Labels `{name}`: {h.counted(len(bands), 'band')}" + (
        f", {len(shown)} shown" if len(shown) < len(bands) else ""
    )
    caption += f"; the figure has the first {MOST_BANDS}" if len(bands) > MOST_BANDS else ""
    columns = [Column("label"), Column("from (s)", "n"), Column("to (s)", "n")]
    rows = [(band.label, f"{band.start_s:.3f}", f"{band.end_s:.3f}") for band in shown]
    return h.details(f"Labels `{name}` ({len(bands):,})", h.table(caption, columns, rows))
