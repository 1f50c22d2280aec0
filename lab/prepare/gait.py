"""Recordings of two feet that run, made up. In: a plan (who, how fast, where, which faults, a seed). Out:
``Raw/SENSOR001/S01_T1_2.5_tread.csv`` and so on, as `kymo prepare running` reads them, and ``truth.json``.

One file a foot; columns ``t`` (s since the sensor's own start), ax ay az (m/s²), gx gy gz (rad/s), ``foot``,
``subject_id``, ``trial_id``, ``speed`` (m/s), ``tread or overground``, ``seconds_10k``, ``score_10k``, ``usabledata``.
``truth.json`` holds what was done to each file: clock, spikes, gaps, repeated and unusable rows, by row of the file.

SYNTHETIC. No public copy of two-foot running recordings with speeds, surfaces and 10 km times exists, so this stands in
for them in tests and tutorials; what a model reaches on it says nothing about people. Numbers and their sources:

- Stride rate: 77, 79 and 80 strides a minute at 2.4, 2.6 and 2.9 m/s (van Oeveren et al., PLoS ONE 12 (2017) e0184273);
  the line through the first and the last of them, ``77 + 6 (v - 2.4)``, is carried on to 3.5 m/s.
- Stance: 36 % of a stride at 2.7 m/s (contact of 271 to 282 ms, 1.28 to 1.31 strides a second; Karamanidis and
  Arampatzis, J. Exp. Biol. 208 (2005) 3907-3923); 4 percent points less for each m/s more are assumed.
- A treadmill lowers the foot's angle at contact by 9.8° and makes contact 5 ms longer (Van Hooren et al., Sports Med. 50
  (2020) 785-813, a meta-analysis, which finds most else alike).
- The shock of contact is a damped oscillation with 12 to 20 Hz as its main content (Shorten and Winslow, Int. J. Sport
  Biomech. 8 (1992) 288-304). Its peak of 7 g at 3 m/s and its growth with speed are chosen to lie within what sensors of
  the usual ±16 g record at a runner's shank; a tenth less on a treadmill is assumed.
- Swing: the foot's mean forward speed is the runner's, it stands still in stance, and its speed in swing is a raised
  cosine, which fixes the acceleration: ``v / (1 - d)² · 2π / T · sin(2π s)`` with stance share d, stride time T.
- Variation from stride to stride stays below 2.5 % in time and near 7 % in the shock; overground is assumed to vary more.

Everything else (differences between runners, sensor mounting, noise) is a plausible choice of ours.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kymo.lab.output import Progress
from kymo.lab.prepare.clean import RATE_HZ
from kymo.lab.prepare.raw import CHANNELS
from kymo.streams.errors import SourceError

GRAVITY = 9.80665  # m/s²
#: Full scale of the sensors: ±16 g and ±2000 °/s.
_RANGE = (16 * GRAVITY, math.radians(2000))
SURFACES = ("treadmill", "overground")
FEET = ("left", "right")
_TAPS_S = (1.0, 1.35, 1.85)  # uneven, so that they cannot be matched the wrong way
_CELLS = "%.3f" + ",%.4f" * 6

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Runner:
    """What stays with a person."""

    name: str
    tempo: float  # own stride rate, as a multiple of the usual one at that speed
    stance: float  # added to the share of stance
    shock_g: float  # peak of the shock at 3 m/s, in g
    lift_m: float  # how high the foot is lifted, m
    asymmetry: float  # difference of the two step times, as a share of their mean
    mount_rad: Floats  # ``(2, 3)``: how the sensor on each foot is turned, rotation vector
    seconds_10k: float  # time over 10 km, s

    @property
    def score_10k(self) -> float:
        """100 for 10 km in 30 minutes, in inverse proportion to the time."""
        return 100 * 1800 / self.seconds_10k


def make_runner(number: int, seed: int) -> Runner:
    """Runner `number` of the population of a seed; the same whatever the number of runners."""
    random = np.random.default_rng([seed, number])
    fitness = random.standard_normal()
    return Runner(
        name=f"S{number:02d}",
        tempo=1 + 0.035 * random.standard_normal(),
        stance=-0.01 * fitness + 0.008 * random.standard_normal(),
        shock_g=float(np.clip(7 + random.standard_normal(), 4.5, 9.5)),
        lift_m=float(np.clip(0.22 + 0.03 * random.standard_normal(), 0.12, 0.32)),
        asymmetry=float(np.clip(0.01 * random.standard_normal(), -0.02, 0.02)),
        mount_rad=np.radians(6) * random.standard_normal((2, 3)),
        seconds_10k=float(np.clip(3000 - 300 * fitness, 1900, 4200)),
    )


@dataclass(frozen=True)
class GaitRun:
    """One run of one runner: standing, running, standing again."""

    runner: Runner
    speed: float
    surface: str  # one of :data:`SURFACES`
    start_s: float = 3.0  # when the first foot strikes, and for how long it goes on
    run_s: float = 30.0
    taps_s: tuple[float, ...] = ()  # when both sensors were knocked together
    seed: int = 0  # of what varies from stride to stride

    @property
    def stride_s(self) -> float:
        """Mean time of a stride, s."""
        return 60 / ((77 + 6 * (self.speed - 2.4)) * self.runner.tempo)

    @property
    def stance(self) -> float:
        """Share of stance in a stride."""
        longer = 0.005 / self.stride_s if self.surface == "treadmill" else 0.0
        return 0.36 - 0.04 * (self.speed - 2.7) + self.runner.stance + longer

    @cached_property
    def strikes_s(self) -> tuple[Floats, Floats]:
        """When the left and the right foot strike the ground, s; in turns, the left one first."""
        random = np.random.default_rng([self.seed, 1])
        steps = int(self.run_s / self.stride_s * 2)
        spread = 0.012 if self.surface == "treadmill" else 0.018
        slow = np.zeros(steps)
        for i in range(1, steps):  # tempo wanders: a first-order process with a memory of about ten steps
            slow[i] = 0.9 * slow[i - 1] + spread * math.sqrt(1 - 0.9**2) * random.standard_normal()
        uneven = np.where(np.arange(steps) % 2 == 0, 1, -1) * self.runner.asymmetry / 2
        lengths = self.stride_s / 2 * (1 + uneven + slow + 0.4 * spread * random.standard_normal(steps))
        times = self.start_s + np.concatenate(([0.0], np.cumsum(lengths)))
        return times[0::2], times[1::2]

    def measure(self, foot: str, times_s: Floats) -> Floats:
        """What the sensor of a foot measures, without noise."""
        from scipy.spatial.transform import Rotation

        side = FEET.index(foot)
        turn = Rotation.from_rotvec(self.runner.mount_rad[side]).as_matrix()
        pitch = self._pitch(side, times_s)
        force = self._force(side, times_s)  # (n, 3), in the ground's axes
        cos, sin = np.cos(pitch), np.sin(pitch)
        acceleration = np.column_stack(
            [cos * force[:, 0] - sin * force[:, 2], force[:, 1], sin * force[:, 0] + cos * force[:, 2]]
        )
        h = 5e-4  # s
        rate = (self._pitch(side, times_s + h) - self._pitch(side, times_s - h)) / (2 * h)
        roll = (self._roll(side, times_s + h) - self._roll(side, times_s - h)) / (2 * h)
        mirror = 1 if foot == "left" else -1
        spin = np.column_stack([mirror * roll, rate, -0.4 * mirror * roll])
        return np.hstack([acceleration @ turn, spin @ turn])

    def _phase(self, side: int, times_s: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
        """Stride, phase 0 to 1 within it, and how much it counts (0 when standing, smooth at both ends)."""
        strikes = self.strikes_s[side]
        stride = np.clip(np.searchsorted(strikes, times_s, side="right") - 1, 0, len(strikes) - 2)
        length = strikes[stride + 1] - strikes[stride]
        phase = np.clip((times_s - strikes[stride]) / length, 0, 1)
        rise = np.clip((times_s - strikes[0]) / 0.3, 0, 1)
        fall = np.clip((strikes[-1] - times_s) / 0.3, 0, 1)
        return stride.astype(np.int64), phase, (1 - np.cos(np.pi * rise)) * (1 - np.cos(np.pi * fall)) / 4

    def _pitch(self, side: int, times_s: Floats) -> Floats:
        """Angle of the sole to the ground, rad; toes up is positive."""
        _, phase, weight = self._phase(side, times_s)
        angle: Floats = weight * np.radians(self._pitch_curve(phase))
        return angle

    @cached_property
    def _pitch_curve(self) -> Any:
        from scipy.interpolate import PchipInterpolator

        d = self.stance
        contact = 18.0 - (9.8 if self.surface == "treadmill" else 0.0)
        knots = [0.0, 0.25 * d, 0.6 * d, d, d + 0.3 * (1 - d), d + 0.75 * (1 - d), 0.96, 1.0]
        swing = -70 - 8 * (self.speed - 3)
        angles = [contact, 0.0, -3.0, -42.0, swing, 4.0, contact + 2, contact]
        return PchipInterpolator(
            [k - 1 for k in knots[:-1]] + knots + [k + 1 for k in knots[1:]], angles[:-1] + angles + angles[1:]
        )

    def _roll(self, side: int, times_s: Floats) -> Floats:
        """Inversion of the foot, rad: tilted out at contact, flat in stance."""
        _, phase, weight = self._phase(side, times_s)
        angle: Floats = weight * np.radians(7) * np.cos(2 * np.pi * phase)
        return angle

    def _force(self, side: int, times_s: Floats) -> Floats:
        """Acceleration less gravity in the ground's axes, ``(n, 3)`` in m/s²."""
        stride, phase, weight = self._phase(side, times_s)
        d, period = self.stance, self.stride_s
        swing = np.where(phase > d, (phase - d) / (1 - d), 0.0)
        swing_s = (1 - d) * period
        peak = self.speed / (1 - d) * 2 * np.pi / swing_s
        out = np.zeros((len(times_s), 3))
        out[:, 0] = weight * peak * np.sin(2 * np.pi * swing)
        lifted = 2 * np.pi**2 * self.runner.lift_m / swing_s**2 * np.cos(2 * np.pi * swing)
        # The foot leaves the ground and lands with no step in acceleration: faded in and out over a tenth of the swing.
        edge = np.clip(np.minimum(swing, 1 - swing) / 0.1, 0, 1)
        out[:, 2] = GRAVITY + weight * np.where(phase > d, lifted, 0.0) * edge
        shock = self._shock(side, stride, times_s)
        out += np.outer(shock, [-0.4, 0.1 * (1 if side == 0 else -1), 1.0])
        push = weight * 8 * (self.speed / 3) * np.exp(-(((phase - 0.85 * d) / (0.1 * d)) ** 2))
        out[:, 0] += push
        for tap in self.taps_s:
            since = times_s - tap
            pulse = np.where((since > 0) & (since < 0.008), np.sin(np.pi * since / 0.008), 0.0)
            out[:, 2] += 60 * pulse
        return out

    def _shock(self, side: int, stride: NDArray[np.int64], times_s: Floats) -> Floats:
        """Vertical shock of the contacts, m/s²: a damped oscillation of 16 Hz after each strike."""
        strikes = self.strikes_s[side]
        random = np.random.default_rng([self.seed, 2 + side])
        vary = np.exp(0.07 * random.standard_normal(len(strikes)))
        usual = self.runner.shock_g * GRAVITY * (self.speed / 3) ** 1.3 * (0.9 if self.surface == "treadmill" else 1.0)
        since = times_s - strikes[stride]
        after = np.clip(since, 0, None)
        shape = np.exp(-after / 0.018) * np.sin(2 * np.pi * 16 * after) / 0.48563  # its largest value is 1
        return np.where((since > 0) & (times_s < strikes[-1]), usual * vary[stride] * shape, 0.0)


@dataclass(frozen=True, slots=True)
class Faults:
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


def write_gait(out: Path, plan: GaitPlan, progress: Progress = lambda done, of: None) -> list[dict[str, Any]]:
    """Make the recordings of a plan: a file for each foot of each runner, surface, speed and trial."""
    truths: list[dict[str, Any]] = []
    trials = product(range(1, plan.subjects + 1), plan.surfaces, plan.speeds, range(1, plan.trials + 1))
    count = 2 * plan.subjects * len(plan.surfaces) * len(plan.speeds) * plan.trials
    for number, surface, speed, trial in trials:
        runner = make_runner(number, plan.seed)
        for side, foot in enumerate(FEET):
            name = f"{runner.name}_T{trial}_{speed:g}_{'tread' if surface == 'treadmill' else surface}.csv"
            path = out / "Raw" / f"SENSOR{2 * number - 1 + side:03d}" / name
            seed = [plan.seed, number, round(speed * 100), SURFACES.index(surface), trial]
            text, truth = _file(plan, runner, (speed, surface, trial), foot, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            truths.append({"file": f"{path.parent.name}/{path.name}", "foot": foot, **truth})
            progress(len(truths), count)
    note = "synthetic: made by kymo prepare gait, not measured on anyone"
    document = {"note": note, "plan": asdict(plan), "files": truths}
    (out / "truth.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return truths


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
    run = GaitRun(runner, speed, surface, plan.stand_s, plan.run_s, taps, int(shared.integers(2**31)))
    random = np.random.default_rng([*seed, 1 + FEET.index(foot)])
    sensor_s = np.arange(round(whole * RATE_HZ)) / RATE_HZ
    real_s = sensor_s if foot == "left" else offset + (1 + drift) * sensor_s
    data = run.measure(foot, real_s)
    data += np.repeat([0.1, 0.01], 3) * random.standard_normal(6)  # bias
    data += np.repeat([0.15, 0.02], 3) * random.standard_normal(data.shape)
    limits = np.repeat(_RANGE, 3)
    data = np.clip(data, -limits, limits)
    strikes = run.strikes_s
    usable = (real_s >= strikes[0][0]) & (real_s < min(strikes[0][-1], strikes[1][-1]))
    truth: dict[str, Any] = {"clock": {"offset_s": offset, "drift_ppm": drift * 1e6} if foot == "right" else None}
    rows = _damage(data, usable, faults, random, truth)
    truth |= {"rows": len(rows), "unusable_rows": int((~usable[rows]).sum())}
    surface_word = "tread" if surface == "treadmill" else surface
    tail = f",{foot},{runner.name},T{number},{speed:g},{surface_word},{runner.seconds_10k:.0f},{runner.score_10k:.1f},"
    head = f"t,{','.join(CHANNELS)},foot,subject_id,trial_id,speed,tread or overground,seconds_10k,score_10k,usabledata"
    table = np.column_stack([sensor_s, data])[rows].tolist()
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
    limits = np.repeat(_RANGE, 3)
    for at, channel, share in zip(spikes, channels, size, strict=True):
        # Away from the value that it replaces, as a flipped bit is: a spike at its own value would be none.
        data[at, channel] = -np.copysign(share, data[at, channel]) * limits[channel]
    keep = np.ones(len(data), bool)
    for first in _places(len(data), round(faults.gaps_per_minute * minutes), 60, random):
        keep[first : first + int(random.integers(2, 21))] = False
    samples = np.flatnonzero(keep)
    repeats = samples[_places(len(samples), round(faults.repeats_per_minute * minutes), 3, random)]
    rows: NDArray[np.int64] = np.sort(np.concatenate([samples, repeats]))
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
    slot = np.sort(random.choice(slots, min(count, slots), replace=False))
    return np.asarray((slot + 1) * apart + random.integers(0, max(1, apart // 2), len(slot)), np.int64)
