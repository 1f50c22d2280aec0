"""What of a recording is hardly so. In: its streams. Out: doubts in words: units that seem to be others, numbers that no body has, clocks
that differ by whole hours, streams that end early. Nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kymo.streams.errors import FormatError
from kymo.streams.recording import Recording, StreamData
from kymo.streams.units import factor
from kymo.streams.words import NS, OUR_DAYS_S

_DATED_NS = OUR_DAYS_S[0] * NS
_HOUR_NS, _NEAR_NS = 3600 * NS, 60 * NS
_EARLY_S, _EARLY = 10, 0.02  # so much sooner one of several streams ends, in seconds and as a share of the longest
_STILL = 0.5  # so many steps of a pulse wave are none where the sensor saw nothing


class _Body(NamedTuple):
    """What a signal of a body is like."""

    unit: str
    low: float  # what it is at least, and at most
    high: float
    others: tuple[tuple[float, float, str], ...]  # where the middle of it lies in units that others use
    least: float = float("-inf")  # below that its middle is none of a sensor that is worn


#: By kind of stream. Of an acceleration it is the length.
_BODIES = {
    # Kleckner et al. (2018): no valid data outside 0.05 to 60 µS; single samples below are said as little.
    "eda": _Body("uS", 0, 60, ((1e-9, 1e-4, "S"), (60, 1e3, "kΩ or nS"), (1e3, 1e7, "nS or Ω")), 0.05),
    "temperature": _Body("°C", 10, 45, ((60, 115, "°F"), (270, 330, "K"), (1000, 4500, "1/100 °C"))),
    "hr": _Body("bpm", 25, 240, ((0.4, 4, "Hz"), (250, 3000, "ms between beats"))),
    "ibi": _Body("s", 0.25, 3, ((250, 3000, "ms"), (25, 240, "beats/min"))),
    "pupil": _Body("mm", 1, 10, ((10, 1e4, "px or units of the tracker"), (5e-4, 0.02, "m"))),
    "acc": _Body("g", 0, 20, ((7, 13, "m/s^2"), (40, 90, "1/64 g"), (700, 1300, "mg")), 0.3),
}


def doubts(recording: Recording) -> list[str]:
    """Doubts of all streams of a recording."""
    streams = [stream for stream in recording.streams if stream.count and stream.data.dtype.kind in "fi"]
    of_each = [
        f"{stream.header.format.stream}: {doubt}, doubtful" for stream in streams for doubt in _of_numbers(stream)
    ]
    return of_each + [f"{doubt}, doubtful" for doubt in _of_times(streams)]


def _of_numbers(stream: StreamData) -> Iterator[str]:
    fmt = stream.header.format
    kind = fmt.stream.partition(".")[0]
    if kind == "bvp" and np.mean(np.diff(stream.data, axis=0) == 0) > _STILL:
        yield "it mostly stands still, as where the sensor sees no pulse"
    body, unit = _BODIES.get(kind), (fmt.units or ("",))[0]
    if not body or len({*fmt.units}) > 1 or (unit == "" and kind in ("acc", "pupil")):
        return
    try:
        size = factor(unit, body.unit)
    except FormatError:
        yield f"it is in {unit}, where {body.unit} is usual, and not converted"
        return
    samples = stream.data.astype(np.float64) * size
    values: NDArray[np.float64] = np.linalg.norm(samples, axis=1) if kind == "acc" else samples.ravel()
    values = values[np.isfinite(values)]
    middle = float(np.median(values)) if len(values) else body.low
    if other := next((name for low, high, name in body.others if low <= middle < high), ""):
        yield f"its middle is {middle:.4g} {body.unit}, as where it is in {other}"
        return
    if middle < body.least:
        yield f"its middle is {middle:.4g} {body.unit}, as of a sensor that is not worn"
    outside = (values < body.low) | (values > body.high)
    if outside.any():
        first, share = float(values[np.argmax(outside)]), float(np.mean(outside))
        yield f"{int(outside.sum())} numbers ({share:.1%}) beyond {body.low:g} to {body.high:g} {body.unit}, such as {first:.4g}"


def _of_times(streams: list[StreamData]) -> Iterator[str]:
    regular = [stream for stream in streams if stream.header.format.rate and stream.start_ns > _DATED_NS]
    if len(regular) < 2:
        return
    longest = max(regular, key=lambda stream: stream.duration_s)
    starts = Counter(stream.start_ns // _NEAR_NS for stream in regular)
    usual = next(stream for stream in regular if stream.start_ns // _NEAR_NS == starts.most_common(1)[0][0])
    for stream in regular:
        name, early_s = stream.header.format.stream, (longest.end_ns - stream.end_ns) / NS
        if hours := hours_between(stream.start_ns, usual.start_ns):
            yield f"{name} begins {hours:+d} h from {usual.header.format.stream}, as where one clock is local"
        elif early_s > max(_EARLY_S, _EARLY * longest.duration_s):
            yield f"{name} ends {early_s:.0f} s before {longest.header.format.stream}"


def hours_between(start_ns: int, other_ns: int) -> int:
    """Whole hours between two times that differ by these up to a minute, else 0."""
    hours = round((start_ns - other_ns) / _HOUR_NS)
    return hours if abs(hours) < 24 and abs(start_ns - other_ns - hours * _HOUR_NS) <= _NEAR_NS else 0
