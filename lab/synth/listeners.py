"""SIMULATED listeners, nobody's recordings. In: rates of the skin's responses and the heart. Out: signals, and files of a wristband.

Responses of the skin and pulse waves are neurokit2's; slow changes, noise, skin temperature and pupils are drawn here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.streams.chunk import Array
from kymo.streams.errors import FormatError, KymoError

RATES = {"eda": 4, "bvp": 64, "temperature": 4, "pupil": 60}  # samples per second
_FILES = {"eda": "EDA.csv", "bvp": "BVP.csv", "temperature": "TEMP.csv"}
_RESPONSE_S = 9


@dataclass(frozen=True)
class Part:
    """A stretch of a recording; `scr_per_min` are responses of the skin, `heart_rate` beats per minute."""

    seconds: float
    scr_per_min: float = 6.0
    heart_rate: float = 70.0
    label: str = ""


def simulate(
    seconds: float,
    seed: int,
    scr_per_min: float = 6.0,
    heart_rate: float = 70.0,
    level: float = 2.0,
    noise: float = 0.01,
) -> dict[str, Array]:
    """One part alone; see :func:`simulate_parts`."""
    return simulate_parts([Part(seconds, scr_per_min, heart_rate)], seed, level, noise)


def simulate_parts(parts: Sequence[Part], seed: int, level: float = 2.0, noise: float = 0.01) -> dict[str, Array]:
    """Signals of a simulated listener, by stream, each ``(n,)`` at its rate of :data:`RATES`.

    Parameters
    ----------
    parts : sequence of Part
        One behind the other.
    level : float
        Of the skin's conductance, µS; a response is a tenth to a half of it.
    noise : float
        Standard deviation, as a share of a usual response, beat or change.

    Returns
    -------
    dict of array
        ``eda`` (µS), ``bvp`` (no unit), ``temperature`` (°C) and ``pupil`` (mm, NaN in blinks).
    """
    if not parts or min(min(p.seconds, p.scr_per_min, p.heart_rate) for p in parts) <= 0 or level <= 0 or noise < 0:
        raise FormatError(
            "a simulated listener needs parts with seconds and rates above 0, a level above 0 and noise from 0"
        )
    seconds = sum(part.seconds for part in parts)
    draws = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]
    skin, heart, warmth, eye = draws
    pulse = np.concatenate([_pulse(part, heart) for part in parts])
    signals = {
        "eda": level * (1 + _slow(seconds, 4, skin, 0.1)) + _responses(parts, level, skin),
        "bvp": 50 * (pulse - pulse.mean()),
        "temperature": 33 + _slow(seconds, 4, warmth, 0.4),
        "pupil": 3.5 + _slow(seconds, 60, eye, 0.3),
    }
    sizes = {"eda": 0.3 * level, "bvp": 50.0, "temperature": 0.4, "pupil": 0.3}
    for stream, draw in zip(signals, draws, strict=True):
        signals[stream] += noise * sizes[stream] * draw.normal(size=len(signals[stream]))
    for start_s in _times(seconds, 12, eye):
        signals["pupil"][int(60 * start_s) : int(60 * (start_s + eye.uniform(0.1, 0.25)))] = np.nan
    signals["eda"] = np.maximum(signals["eda"], 0.01)
    return signals


def write_e4(
    folder: Path | str, signals: Mapping[str, Array], parts: Sequence[Part] = (), start_s: int = 1_600_000_000
) -> None:
    """Write signals as a wristband's folder, with a tag where a part begins, its labels (`state`) beside it, and that it is SIMULATED."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for stream, name in _FILES.items():
        rows = [f"{start_s:.6f}", f"{RATES[stream]:.6f}", *(f"{value:.6f}" for value in signals[stream])]
        (path / name).write_text("\n".join(rows) + "\n")
    times_s = [start_s, *(start_s + np.cumsum([part.seconds for part in parts]))]
    (path / "tags.csv").write_text("".join(f"{time_s:.2f}\n" for time_s in times_s[: len(parts)]))
    events = [
        {"startTime": _time(a), "endTime": _time(b), "metadata": {"state": part.label}}
        for a, b, part in zip(times_s, times_s[1:], parts, strict=False)
    ]
    if any(part.label for part in parts):
        path.with_name(f"{path.name}.labels.json").write_text(json.dumps({"events": events}))
    (path / "info.txt").write_text("SIMULATED by kymo.lab.synth.listeners with neurokit2: nobody's recording.\n")


def _time(time_s: float) -> dict[str, int]:
    return {"sec": int(time_s), "nsec": int(time_s % 1 * 1e9)}


def _neurokit() -> Any:
    try:
        import neurokit2
    except ImportError:
        raise KymoError(
            "listeners are simulated with neurokit2, which is not installed: pip install 'kymo-streams[physio]'"
        ) from None
    return neurokit2


def _times(seconds: float, per_min: float, draw: np.random.Generator) -> NDArray[np.float64]:
    """When something happens that comes `per_min` times a minute on average, at least 1 s apart: neither even nor by mere chance."""
    mean_s = 60 / per_min
    gaps_s = np.maximum(draw.gamma(4, mean_s / 4, int(2 * seconds / mean_s) + 10), min(1, mean_s))
    times_s: NDArray[np.float64] = np.cumsum(gaps_s) - gaps_s[0] * draw.random()
    return times_s[times_s < seconds]


def _responses(parts: Sequence[Part], level: float, draw: np.random.Generator) -> NDArray[np.float64]:
    """Responses of the skin, µS at 4 Hz: ``(n,)``."""
    begin_s, rows = 0.0, np.zeros(int(4 * sum(part.seconds for part in parts)) + 4 * _RESPONSE_S)
    simulate_eda = _neurokit().eda_simulate
    for part in parts:
        for time_s in begin_s + _times(part.seconds, part.scr_per_min, draw):
            one = simulate_eda(
                _RESPONSE_S, sampling_rate=4, noise=0, scr_number=1, drift=0, random_state=int(draw.integers(2**31))
            )
            first = int(4 * time_s)
            rows[first : first + len(one)] += level * draw.uniform(0.1, 0.5) * (one - 1)
        begin_s += part.seconds
    return rows[: -4 * _RESPONSE_S]


def _pulse(part: Part, draw: np.random.Generator) -> Array:
    """Pulse waves at 64 Hz: ``(n,)``."""
    wave: Array = _neurokit().ppg_simulate(
        duration=part.seconds,
        sampling_rate=64,
        heart_rate=part.heart_rate,
        frequency_modulation=0.1,
        ibi_randomness=0.05,
        motion_amplitude=0,
        powerline_amplitude=0,
        burst_amplitude=0,
        random_state=int(draw.integers(2**31)),
    )
    return wave[: int(64 * part.seconds)]


def _slow(seconds: float, rate_hz: int, draw: np.random.Generator, size: float) -> NDArray[np.float64]:
    """A change over minutes, of about `size`: ``(n,)``."""
    times_s = np.arange(int(seconds * rate_hz)) / rate_hz
    waves = [np.sin(2 * np.pi * (times_s / draw.uniform(60, 600) + draw.random())) for _ in range(3)]
    change: NDArray[np.float64] = size / 3 * np.sum(waves, axis=0)
    return change
