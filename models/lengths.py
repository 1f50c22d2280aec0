"""How large the samples of a recording are, beside those that a model learned from. In: a raw stream, a recipe. Out: by sensor a
typical length; a sentence where it is far from all that was learned.

The axes of a sensor (``x``, ``y``, ``z`` of one name and unit) count together, as a vector whose length does not depend on how it is worn.
A recording's length is the median over its windows of the root of the mean square. Other units (g for m/s², counts for µT), or an
offset that is or is not taken off, change it by more than people do; a network answers such numbers as surely as any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from kymo.processors.recipe.load import Recipe
from kymo.streams.errors import FormatError
from kymo.streams.recording import StreamData
from kymo.streams.units import factor

#: By sensor, lowest and highest of what was learned from.
Lengths = dict[str, list[float]]
#: How far outside a length may lie, as a factor: people and places differ, units differ by more.
_MARGIN = 2.5
# x, y or z by itself, behind the letter of a quantity, or as a capital behind small letters: acc_x, ax, gFx, gyroX.
_AXIS = re.compile("(?<![a-zA-Z])[xyzXYZ](?![a-zA-Z])|(?<=[agmAGMF])[xyz](?![a-zA-Z])|(?<=[a-z])[XYZ](?![a-zA-Z])")
_RATIOS = {9.80665: "g and m/s²", 57.29578: "degrees and radians", 1000.0: "thousandths", 1e6: "millionths"}


def sensors_of(channels: Sequence[str], units: Sequence[str]) -> dict[str, list[int]]:
    """Which channels are axes of one sensor.

    Examples
    --------
    >>> sensors_of(["ax", "ay", "az", "temperature"], [])
    {'ax, ay, az': [0, 1, 2], 'temperature': [3]}
    """
    found: dict[tuple[str, str], list[int]] = {}
    for i, channel in enumerate(channels):
        name = _AXIS.sub("*", channel)
        found.setdefault((name, units[i] if units else ""), []).append(i)
    return {", ".join(channels[i] for i in numbers): numbers for numbers in found.values()}


def lengths_of(stream: StreamData, recipe: Recipe) -> dict[str, float]:
    """A recording's length by sensor, in the recipe's units; nothing where samples are no plain numbers."""
    fmt, source = stream.header.format, recipe.inputs[0]
    if fmt.shape != (len(fmt.channels),) or np.dtype(stream.data.dtype).kind not in "fiu":
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
    windows = np.array_split(samples, max(1, len(samples) // recipe.window_length)) if len(samples) else []
    names = sensors_of(channels, units or [fmt.units[i] for i in at if fmt.units])
    return {
        name: float(np.median([np.sqrt(np.square(window[:, numbers]).sum(1).mean()) for window in windows]))
        for name, numbers in names.items()
        if windows
    }


def widen(lengths: Lengths, found: Mapping[str, float]) -> None:
    """Take a recording that is learned from into account."""
    for name, length in found.items():
        low, high = lengths.get(name, (length, length))
        lengths[name] = [min(low, length), max(high, length)]


def doubt(learned: Mapping[str, Sequence[float]], stream: StreamData, recipe: Recipe) -> str:
    """Why a recording is unlike all that was learned from, in a sentence; empty where it is not, or nothing is known."""
    for name, length in lengths_of(stream, recipe).items() if learned else ():
        low, high = learned.get(name, (0.0, float("inf")))
        if low / _MARGIN <= length <= high * _MARGIN:
            continue
        ratio = length / low if length < low else length / high
        times = max(ratio, 1 / ratio) if ratio else float("inf")
        hint = next((f", as between {what}" for size, what in _RATIOS.items() if size / 1.6 < times < size * 1.6), "")
        return (
            f"{name} of about {length:.3g}, but the model learned from {low:.3g} to {high:.3g}{hint}: its answers are doubtful; "
            f"compare the units, and say them in [[input]] units"
        )
    return ""
