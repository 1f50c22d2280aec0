"""MCAP topics as arrays, and cut into windows of time. In: a file whose messages are JSON with ``values``, one a sample. Out:
arrays by topic, exactly as the file has them; times in ns.

Nothing is repaired, numbered or resampled here; :func:`kymo.streams.readers.read` does that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import MessageError, SourceError
from kymo.streams.messages import read_json
from kymo.streams.readers.columns import no_such_name
from kymo.streams.readers.files import find
from kymo.streams.readers.mcap_scan import Scan
from kymo.streams.readers.mcap_topics import TopicSamples, is_sample
from kymo.streams.words import NS

SUFFIXES = (".mcap",)
#: A step of more than so many usual ones lacks a sample.
GAP = 1.5
_IMU = re.compile(r"(?<![a-z])(acc|gyr|mag|imu)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class TopicArray:
    """A topic's samples."""

    topic: str  # as the file has it
    # names of the columns: the schema's titles, else x, y, z for three, w, x, y, z for four, else v0, v1 …
    channels: tuple[str, ...]
    # ``(n,)``, in order: each message's ``timestamp``, else the time at which it was logged
    times_ns: NDArray[np.int64]
    values: NDArray[np.float64]  # ``(n, channels)``; null is NaN. ``(0, 0)`` for a topic without messages

    def __len__(self) -> int:
        return len(self.times_ns)

    @property
    def step_ns(self) -> float:
        """Usual time from a sample to the next: the median of those above 0; 0 with fewer than two times."""
        steps = np.diff(self.times_ns)
        steps = steps[steps > 0]
        return float(np.median(steps)) if len(steps) else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ImuWindow:
    """What lies in ``[start_ns, end_ns)``."""

    index: int  # its number; windows without any sample are left out, so numbers may jump
    start_ns: int
    end_ns: int
    topics: Mapping[str, TopicArray]  # every topic that was asked for; views of the whole, some perhaps empty


def topic_arrays(path: str | Path, topics: Sequence[str] | None = None) -> dict[str, TopicArray]:
    """Arrays of the JSON topics of an MCAP file.

    Parameters
    ----------
    path : str or Path
        File or fsspec URL.
    topics : sequence of str, optional
        Which; all by default, those without messages too.

    Returns
    -------
    dict of str to TopicArray
        In the order of their first messages.

    Raises
    ------
    SourceError
        If it is no MCAP, a topic is not there, or messages of a topic do not belong together.
    """
    (file,) = find([path], SUFFIXES, ())
    by_topic: dict[str, TopicSamples] = {}
    with file.open() as raw:
        scan = Scan(raw, str(path))
        for schema, channel, message in scan.messages():
            if channel.message_encoding != "json" or (topics is not None and channel.topic not in topics):
                continue
            value, known = _parsed(message.data), by_topic.get(channel.topic)
            if known.takes(value) if known else is_sample(value, schema):
                known = by_topic[channel.topic] = known or TopicSamples(channel.topic, schema, str(path))
                known.add(value, message)
    arrays = {}
    for name, samples in by_topic.items():
        order = np.argsort(samples.times_ns, kind="stable")
        values = np.asarray(samples.values, np.float64)[order]
        arrays[name] = TopicArray(name, samples.channels, samples.times_ns[order], values)
    declared = {channel.topic: channel for channel, _ in scan.channels.values()}
    for name, channel in declared.items():
        if channel.message_encoding == "json" if topics is None else name in topics:
            arrays.setdefault(name, TopicArray(name, (), np.empty(0, np.int64), np.empty((0, 0))))
    if absent := [name for name in topics or () if name not in arrays]:
        raise no_such_name(absent[0], sorted(declared), str(path), "topic")
    return arrays


def _parsed(data: bytes) -> Any:
    try:
        return read_json(data, numbers=False)
    except MessageError:
        return None


def extract_imu_windows(
    path: str | Path,
    window_size_ns: int = NS,
    step_size_ns: int | None = None,
    *,
    topics: Sequence[str] | None = None,
    partial: bool = False,
) -> Iterator[ImuWindow]:
    """Windows of an MCAP file, one behind the other, or overlapping.

    Window k covers ``[start + k * step, start + k * step + size)``, where `start` is the earliest sample of the topics: a sample
    on an edge belongs to the later window. The last window is whole if some topic's last sample lies at most 1.5 of its usual
    steps before the window's end.

    Parameters
    ----------
    path : str or Path
        File or fsspec URL.
    window_size_ns : int
        Above 0; 1 s by default.
    step_size_ns : int, optional
        From a window's start to the next one's, above 0; by default the window's size.
    topics : sequence of str, optional
        Which; by default those whose name has a word that begins with ``acc``, ``gyr``, ``mag`` or ``imu`` and that have messages.
        Beside topics ``…_raw``, those of ``…_truth`` are left out.
    partial : bool
        Give windows at the end too that are not whole.

    Yields
    ------
    ImuWindow
        In order; one without any sample is left out.

    Raises
    ------
    ValueError
        If `window_size_ns` or `step_size_ns` is no whole number above 0.
    SourceError
        As for :func:`topic_arrays`, or if there is no such topic.
    """
    step = window_size_ns if step_size_ns is None else step_size_ns
    for name, size in (("window_size_ns", window_size_ns), ("step_size_ns", step)):
        if size < 1 or size != int(size):
            raise ValueError(f"{name} is {size}, expected a whole number above 0")
    arrays = topic_arrays(path, topics)
    if topics is None:
        imu = {name: array for name, array in arrays.items() if len(array) and _IMU.search(name)}
        if not imu:
            names = ", ".join(arrays) or "none"
            raise SourceError(f"no topic of an IMU (acc…, gyr…, mag…, imu…); there are: {names}; name some", path)
        with_raw = any(name.endswith("_raw") for name in imu)
        arrays = {name: array for name, array in imu.items() if not (with_raw and name.endswith("_truth"))}
    return _windows(arrays, int(window_size_ns), int(step), partial)


def _windows(arrays: Mapping[str, TopicArray], size: int, step: int, partial: bool) -> Iterator[ImuWindow]:
    filled = [array for array in arrays.values() if len(array)]
    if not filled:
        return
    start = min(int(array.times_ns[0]) for array in filled)
    since = np.unique(np.concatenate([array.times_ns - start for array in filled]))
    latest = since // step  # of the windows that a sample may be in
    earlier = np.concatenate([latest[since - (latest - k) * step < size] - k for k in range(-(-size // step))])
    numbers = np.unique(earlier[earlier >= 0]).tolist()
    reach = max(int(array.times_ns[-1]) + int(GAP * array.step_ns) for array in filled)
    for k in numbers:
        begin, end = start + k * step, start + k * step + size
        if end > reach and not partial:  # those behind it end later
            return
        cut = {}
        for name, array in arrays.items():
            a, b = np.searchsorted(array.times_ns, [begin, end])
            cut[name] = TopicArray(array.topic, array.channels, array.times_ns[a:b], array.values[a:b])
        yield ImuWindow(k, begin, end, cut)
