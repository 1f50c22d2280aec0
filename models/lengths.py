"""How large the samples of a recording are, beside those that a model learned from. In: a raw stream, a recipe. Out: by sensor
typical lengths; a sentence where one is far from all that was learned.

Three axes of a sensor (``x``, ``y``, ``z`` or 1, 2, 3 of one name and unit) count together, as a vector whose length does not depend
on how it is worn. Where windows' means were about as long in all that was learned, as gravity and the earth's field are, whatever
somebody does, another length is another unit, or an offset that is or is not taken off. What is near nothing at rest differs with
what is done by as much as units do: so it is doubted only where it is far above all that was learned. No alarm is raised by
people, places and rest; a network answers numbers of another unit as surely as any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from kymo.processors.recipe.load import Recipe
from kymo.streams.chunk import Chunk
from kymo.streams.errors import FormatError
from kymo.streams.recording import StreamData
from kymo.streams.units import factor

#: By sensor, of what was learned from: lowest and highest length of windows' means, highest root of the mean square.
Lengths = dict[str, list[float]]
#: How far outside a mean may lie where those learned lie within the second factor; how far above the highest root of the mean
#: square other vectors, and single channels: people and places differ by less, units by more.
_MARGIN, _STEADY, _VECTOR, _SINGLE = 2.5, 3.0, 15.0, 500.0
_MEDIANS, _FIRST_WINDOWS = (0.5, 0.5), 5
_RATIOS = {9.80665: "g and m/s²", 57.29578: "degrees and radians", 1000.0: "thousandths", 1e6: "millionths"}


def sensors_of(channels: Sequence[str], units: Sequence[str]) -> dict[str, list[int]]:
    """Which channels are the three axes of one sensor; others stand alone.

    Examples
    --------
    >>> sensors_of(["ax", "ay", "az", "temperature"], [])
    {'ax, ay, az': [0, 1, 2], 'temperature': [3]}
    """
    place = {(name, units[i] if units else ""): i for i, name in enumerate(channels)}
    found: dict[int, list[int]] = {}
    for name, unit in place:
        for at, first in enumerate(name):
            along = [place.get((name[:at] + chr(ord(first) + n) + name[at + 1 :], unit), -1) for n in range(4)]
            # Of 1, 2, 3, 4 nobody knows which are axes.
            if first in "xX1" and min(along[:3]) >= 0 and (first != "1" or along[3] < 0):
                found.update(dict.fromkeys(along[:3], along[:3]))
    sensors = [found.get(i, [i]) for i in range(len(channels))]
    return {", ".join(channels[i] for i in numbers): numbers for numbers in sensors}


def lengths_of(stream: StreamData, recipe: Recipe, shares: Sequence[float] = (0.05, 0.95, 0.95)) -> Lengths:
    """Quantiles over a recording's windows by sensor, in the recipe's units: the last of the root of the mean square, others of the
    mean's length. Nothing where samples are no plain numbers, or have no rate by which to count windows."""
    fmt = stream.header.format
    source = recipe.input_of(fmt.stream) or recipe.inputs[0]
    if not fmt.rate or fmt.shape != (len(fmt.channels),) or np.dtype(stream.data.dtype).kind not in "fiu":
        return {}
    channels, units = source.channels or fmt.channels, source.units
    try:
        at = [fmt.channels.index(channel) for channel in channels]
        pairs = zip(at, units, strict=True) if units and fmt.units else ()
        scale = np.array([factor(fmt.units[i], unit) for i, unit in pairs] or [1.0] * len(at))
    except (ValueError, FormatError):
        return {}
    samples = stream.data[:, at].astype(np.float64) * scale
    samples = samples[np.isfinite(samples).all(1)]
    count = max(1, len(samples) // _window_samples(fmt.stream, recipe))
    windows = np.array_split(samples, count) if len(samples) else []
    names = sensors_of(channels, units or [fmt.units[i] for i in at if fmt.units])
    found, prefix = Lengths(), "" if recipe.join is None else f"{source.stream} "
    for name, numbers in names.items() if windows else ():
        means = [np.linalg.norm(window[:, numbers].mean(0)) for window in windows]
        roots = [np.sqrt(np.square(window[:, numbers]).sum(1).mean()) for window in windows]
        found[prefix + name] = [
            *np.quantile(means, shares[:-1]).tolist(),
            float(np.quantile(roots, shares[-1])),
        ]
    return found


def _window_samples(stream: str, recipe: Recipe) -> int:
    """How many samples of a raw stream a window covers, about."""
    source = recipe.input_of(stream) or recipe.inputs[0]
    return max(1, round(recipe.window_length * source.rate_hz / recipe.rate_hz))


def widen(lengths: Lengths, found: Mapping[str, Sequence[float]]) -> None:
    for name, (low, high, most) in found.items():
        before = lengths.get(name, (low, high, most))
        lengths[name] = [min(before[0], low), max(before[1], high), max(before[2], most)]


def doubt(learned: Mapping[str, Sequence[float]], stream: StreamData, recipe: Recipe) -> str:
    """Why a recording is unlike all that was learned from, in a sentence; empty where it is not, or nothing is known."""
    return _doubt(learned, lengths_of(stream, recipe, _MEDIANS)) if learned else ""


class FirstSamples:
    """Listens to the first windows of a live session, until it can be told whether they are like what was learned."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[Chunk]] = {}  # by stream, of the window that is not whole yet
        self._windows: dict[str, list[Lengths]] = {}
        self._told: set[str] = set()  # streams of which no more needs to be heard

    def doubt(self, learned: Mapping[str, Sequence[float]], chunk: Chunk, recipe: Recipe) -> str | None:
        """As :func:`doubt` of all that was heard, the session's next chunk included; None while that is too little of some input."""
        if not learned:
            return ""
        if chunk.stream not in self._told and self._is_enough(chunk, recipe):
            windows = self._windows.pop(chunk.stream)
            sensors = {name for window in windows for name in window}
            medians = {n: np.median([w[n] for w in windows if n in w], axis=0).tolist() for n in sensors}
            if why := _doubt(learned, medians):
                return why
            self._told.add(chunk.stream)
        return "" if len(self._told) >= len(recipe.inputs) else None

    def _is_enough(self, chunk: Chunk, recipe: Recipe) -> bool:
        """Take a chunk; whether there are windows enough of its stream."""
        chunks, windows = self._chunks.setdefault(chunk.stream, []), self._windows.setdefault(chunk.stream, [])
        if (
            chunks and chunks[-1].header != chunk.header
        ):  # other units or channels: another sensor, for all that is known
            chunks.clear()
        chunks.append(chunk)
        if sum(part.count for part in chunks) < _window_samples(chunk.stream, recipe) and not chunk.end:
            return False
        stream = StreamData(chunk.header, np.concatenate([part.data for part in chunks]))
        windows.append(lengths_of(stream, recipe, _MEDIANS))
        chunks.clear()
        return len(windows) >= _FIRST_WINDOWS or chunk.end


def _doubt(learned: Mapping[str, Sequence[float]], lengths: Lengths) -> str:
    for name, (mean, root) in lengths.items():
        if len(bounds := learned.get(name, ())) != 3:
            continue
        (low, high, most), margin, vector = bounds, _MARGIN, ", " in name
        length = mean
        if not vector or high > _STEADY * low:
            low, high, length, margin = 0.0, most, root, _VECTOR if vector else _SINGLE
        if low / margin <= length <= high * margin:
            continue
        less, more = sorted((length, low if length < low else high))
        times = more / less if less else inf
        hint = next((f", as between {what}" for size, what in _RATIOS.items() if size / 1.6 < times < size * 1.6), "")
        return (
            f"{name} of about {length:.3g}, but the model learned from {low:.3g} to {high:.3g}{hint}: its answers are doubtful; "
            f"compare the units, and say them in [[input]] units"
        )
    return ""
