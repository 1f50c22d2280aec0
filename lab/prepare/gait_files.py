"""Synthetic two-foot recordings as files. In: a plan (who, how fast, where, which faults, a seed). Out:
``Raw/SENSOR001/S01_T1_2.5_tread.csv`` and so on, as `kymo prepare running` reads them, and ``truth.json``.

One file a foot; columns ``t`` (s since the sensor's own start), ax ay az (m/s²), gx gy gz (rad/s), ``foot``,
``subject_id``, ``trial_id``, ``speed`` (m/s), ``tread or overground``, ``seconds_10k``, ``score_10k``, ``usabledata``.
``truth.json`` holds what was done to each file: clock, spikes, gaps, repeated and unusable rows, by row of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.prepare.gait import FEET, RANGE, SURFACES, Floats, Run, Runner, make_runner
from streams.errors import SourceError

RATE_HZ = 500
CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
_TAPS_S = (1.0, 1.35, 1.85)  # uneven, so that they cannot be matched the wrong way
_CELLS = "%.3f" + ",%.4f" * 6


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the recordings."""

    offset_s: float = 0.6  # the right sensor starts up to so much earlier or later than the left
    drift_ppm: float = 60.0  # the right sensor's clock runs slower or faster by up to so much
    taps: bool = True  # whether both sensors are knocked together three times before and after the run
    # of a file: single wrong samples in one channel; lost runs of 2 to 20 rows; rows written twice
    spikes_per_minute: float = 20.0
    gaps_per_minute: float = 2.0
    repeats_per_minute: float = 2.0
    loose_s: float = 0.0  # for so long in each file the sensor is loose, and the rows are marked as not usable


NO_FAULTS = Faults(0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class GaitPlan:
    """Which recordings to make."""

    subjects: int = 6  # number of runners, at least 1
    speeds: tuple[float, ...] = (2.5, 3.0, 3.5)
    surfaces: tuple[str, ...] = SURFACES  # of ``treadmill`` and ``overground``
    trials: int = 1  # recordings of each runner, speed and surface
    run_s: float = 60.0  # seconds of running, and of standing before and after it
    stand_s: float = 3.0
    seed: int = 0  # same seed, same bytes
    faults: Faults = Faults()  # what is wrong with them

    def __post_init__(self) -> None:
        checks = {
            "subjects": 1 <= self.subjects <= 499,
            "trials": self.trials >= 1,
            "run_s": 4 <= self.run_s <= 3600,
            "stand_s": 3 <= self.stand_s <= 60,
            "speeds": bool(self.speeds) and all(1.5 <= v <= 6 for v in self.speeds),
            "surfaces": bool(self.surfaces) and set(self.surfaces) <= set(SURFACES),
            "offset_s": 0 <= self.faults.offset_s <= 0.8,
            "loose_s": 0 <= self.faults.loose_s <= self.run_s / 2,
        }
        for name, right in checks.items():
            if not right:
                value = getattr(self, name, getattr(self.faults, name, None))
                raise SourceError(f"gait: {name} = {value!r} is out of range; see `kymo prepare gait --help`")


def write_gait(out: Path, plan: GaitPlan, on_file: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Make the recordings of a plan."""
    truths = []
    for number, speed, surface, trial in trials_of(plan):
        runner = make_runner(number, plan.seed)
        for side, foot in enumerate(FEET):
            name = f"{runner.name}_T{trial}_{speed:g}_{'tread' if surface == 'treadmill' else surface}.csv"
            path = out / "Raw" / f"SENSOR{2 * number - 1 + side:03d}" / name
            seed = [plan.seed, number, round(speed * 100), SURFACES.index(surface), trial]
            text, truth = _file(plan, runner, (speed, surface, trial), foot, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            truths.append({"file": f"{path.parent.name}/{path.name}", "foot": foot, **truth})
            on_file()
    note = "synthetic: made by kymo prepare gait, not measured on anyone"
    document = {"note": note, "plan": asdict(plan), "files": truths}
    (out / "truth.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return truths


def trials_of(plan: GaitPlan) -> list[tuple[int, float, str, int]]:
    """Runner's number, speed, surface and trial of each recording of a plan."""
    return [
        (number, speed, surface, trial)
        for number in range(1, plan.subjects + 1)
        for surface in plan.surfaces
        for speed in plan.speeds
        for trial in range(1, plan.trials + 1)
    ]


def _file(
    plan: GaitPlan, runner: Runner, trial: tuple[float, str, int], foot: str, seed: list[int]
) -> tuple[str, dict[str, Any]]:
    """One foot's file and the truth about it. Both feet share the run and the clocks, which follow from `seed`."""
    speed, surface, number = trial
    faults = plan.faults
    shared = np.random.default_rng(seed)
    offset, drift = (float(x) for x in shared.uniform(-1, 1, 2) * (faults.offset_s, faults.drift_ppm * 1e-6))
    whole = 2 * plan.stand_s + plan.run_s
    taps = (*_TAPS_S, *(whole - t for t in _TAPS_S)) if faults.taps else ()
    run = Run(runner, speed, surface, plan.stand_s, plan.run_s, taps, int(shared.integers(2**31)))
    random = np.random.default_rng([*seed, 1 + FEET.index(foot)])
    own = np.arange(round(whole * RATE_HZ)) / RATE_HZ
    real = own if foot == "left" else offset + (1 + drift) * own
    data = run.measure(foot, real)
    data += np.repeat([0.1, 0.01], 3) * random.standard_normal(6)  # bias
    data += np.repeat([0.15, 0.02], 3) * random.standard_normal(data.shape)
    limits = np.repeat(RANGE, 3)
    data = np.clip(data, -limits, limits)
    strikes = run.strikes_s
    usable = (real >= strikes[0][0]) & (real < min(strikes[0][-1], strikes[1][-1]))
    truth: dict[str, Any] = {"clock": {"offset_s": offset, "drift_ppm": drift * 1e6} if foot == "right" else None}
    rows = _damage(data, usable, faults, random, truth)
    truth |= {"rows": len(rows), "unusable_rows": int((~usable[rows]).sum())}
    surface_word = "tread" if surface == "treadmill" else surface
    tail = f",{foot},{runner.name},T{number},{speed:g},{surface_word},{runner.seconds_10k:.0f},{runner.score_10k:.1f},"
    head = f"t,{','.join(CHANNELS)},foot,subject_id,trial_id,speed,tread or overground,seconds_10k,score_10k,usabledata"
    table = np.column_stack([own, data])[rows].tolist()
    ends = [tail + flag for flag in ("0", "1")]
    lines = [_CELLS % tuple(row) + ends[use] for row, use in zip(table, usable[rows].tolist(), strict=True)]
    return "\n".join([head, *lines]) + "\n", truth


def _damage(
    data: Floats, usable: NDArray[np.bool_], faults: Faults, random: np.random.Generator, truth: dict[str, Any]
) -> NDArray[np.int64]:
    """Put the faults in; gives the samples that are written, in order. Rows in `truth` count as an editor does."""
    minutes = len(data) / RATE_HZ / 60
    loose = int(faults.loose_s * RATE_HZ)
    if loose:
        first = int(random.integers(np.argmax(usable), np.flatnonzero(usable)[-1] - loose))
        data[first : first + loose] = 0.0
        usable[first : first + loose] = False
    spikes = _places(len(data), round(faults.spikes_per_minute * minutes), 12, random)
    channels = random.integers(0, 6, len(spikes))
    size = random.uniform(0.6, 1.0, len(spikes)) * np.where(random.random(len(spikes)) < 0.5, -1, 1)
    limits = np.repeat(RANGE, 3)
    for at, channel, share in zip(spikes, channels, size, strict=True):
        # Away from the value that it replaces, as a flipped bit is: a spike at its own value would be none.
        data[at, channel] = -np.copysign(share, data[at, channel]) * limits[channel]
    keep = np.ones(len(data), bool)
    for first in _places(len(data), round(faults.gaps_per_minute * minutes), 60, random):
        keep[first : first + int(random.integers(2, 21))] = False
    written = np.flatnonzero(keep)
    repeats = written[_places(len(written), round(faults.repeats_per_minute * minutes), 3, random)]
    rows: NDArray[np.int64] = np.sort(np.concatenate([written, repeats]))
    row_of = np.searchsorted(rows, np.arange(len(data)))  # first row that holds a sample
    jumps = np.flatnonzero(np.diff(rows) > 1)
    truth["gaps"] = [{"before_row": int(i) + 3, "samples": int(rows[i + 1] - rows[i] - 1)} for i in jumps]
    truth["repeated_rows"] = (np.flatnonzero(np.diff(rows) == 0) + 3).tolist()
    truth["spikes"] = [
        {"row": int(row_of[at]) + 2, "channel": CHANNELS[channel]}
        for at, channel in zip(spikes, channels, strict=True)
        if keep[at]
    ]
    return rows


def _places(length: int, count: int, apart: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Sorted places at least `apart` from each other and from the ends."""
    slots = length // apart - 2
    if slots < 1 or count < 1:
        return np.zeros(0, np.int64)
    chosen = np.sort(random.choice(slots, min(count, slots), replace=False))
    return np.asarray((chosen + 1) * apart + random.integers(0, max(1, apart // 2), len(chosen)), np.int64)
