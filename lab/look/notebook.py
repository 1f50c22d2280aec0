"""Plots for notebooks. In: a recording, files, or a synthesis. Out: a picture of one session, which Jupyter shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kymo.lab.look.plot import choose, plot_page, plot_recording, read_labelled
from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import interval
from kymo.streams.recording import Recording, StreamData

if TYPE_CHECKING:
    from kymo.lab.synth.simulate import Synthesis

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


@dataclass(frozen=True)
class Plot:
    """One session as a picture.

    Attributes
    ----------
    recording : Recording
        What is drawn.
    png : bytes
        The picture.
    """

    recording: Recording = field(repr=False)
    png: bytes = field(repr=False)
    section: str = field(repr=False)  # of a page

    def _repr_png_(self) -> bytes:
        return self.png

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the picture (``X.png``), or a page that zooms (``X.html``).

        Parameters
        ----------
        path : path
            A file.

        Raises
        ------
        SourceError
            If the name ends otherwise, or the file cannot be written.
        """
        target = Path(path)
        data = {
            ".png": self.png,
            ".html": plot_page(self.recording.session, [(self.recording.session, self.section)]).encode(),
        }
        if target.suffix.lower() not in data:
            raise SourceError("a plot is written as X.png or X.html", target)
        try:
            target.write_bytes(data[target.suffix.lower()])
        except OSError as error:
            raise SourceError(f"cannot be written ({error.strerror})", target) from None
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
    choice = {"session": session, "streams": tuple(streams), "start_s": start_s, "duration_s": duration_s}
    if isinstance(source, str | PathLike):
        recordings = read_labelled((fspath(source),), recipe)
    elif isinstance(source, Sequence):
        recordings = read_labelled(tuple(fspath(path) for path in source), recipe)
    else:
        recordings = iter((source if isinstance(source, Recording) else recording_of(source),))
    for origin_ns, part in choose(recordings, choice):
        if any(stream.count for stream in part.streams):
            drawing, section = plot_recording(part, origin_ns=origin_ns)
            return Plot(part, drawing.png, section)
    raise SourceError("nothing to draw, no stream has a sample there; look at session, streams and start_s")


def recording_of(synthesis: Synthesis) -> Recording:
    """Make a recording of a synthesis: a stream a topic, labels the levels of its segments' distortion."""
    streams = []
    for topic, values in synthesis.topics.items():
        raw = topic.endswith("_raw")
        indexes = synthesis.raw_index if raw else np.arange(len(values))
        names = ("x", "y", "z") if values.shape[1] == 3 else tuple(str(i) for i in range(values.shape[1]))
        fmt = signal_format(topic, names, Fraction(synthesis.plan.sample_rate), "float64")
        streams.append(StreamData.from_indexes(Header("synthetic", int(synthesis.times_ns[0]), fmt), values, indexes))
    labels = [
        interval(session="synthetic", set="mag_distortion", start_ns=start, end_ns=end, label=segment.level)
        for segment, (start, end) in zip(synthesis.plan.segments, synthesis.plan.spans, strict=True)
    ]
    return Recording("synthetic", streams, labels)
