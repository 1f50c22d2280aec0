"""Random plans to train and test with. In: how many, which classes, what kind of sensor. Out: plans, recordings, labels, experiments.

Motion and distortion come from random numbers of their own. Every plan has the same number of segments of each class, and for each
length the same number of each class, in an order that is drawn; so neither how a device moves nor how long a segment lasts says
anything about its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kymo.lab.output import Progress, write_json, writing
from kymo.lab.synth.files import experiment_of, labels_of
from kymo.lab.synth.mcap_file import write_mcap
from kymo.lab.synth.plan import DRAWN, LEVELS, STRENGTHS
from kymo.lab.synth.simulate import Synthesis, simulate
from kymo.streams.errors import PlanError
from kymo.streams.schema import Amount, Count, Positive, SchemaError, check

_MOST_PLANS = 100_000
Random = np.random.Generator


@dataclass(frozen=True, slots=True)
class RandomPlans:
    """What random plans are like."""

    classes: tuple[str, ...] = LEVELS  # which of none, low and high, at least one
    rounds: Count = 4  # segments of each class in a plan
    shortest_s: Positive = 6.0  # between the two a segment's length is drawn, evenly, to the tenth of a second
    longest_s: Positive = 12.0
    rate_hz: Positive = 100.0
    most_turn_degrees: Amount = 180.0  # roll, pitch and yaw of a segment are drawn evenly between minus and plus this
    field_microtesla: Positive = 50.0  # strength of the undisturbed field
    # length of the vector ``world_*`` as a share of the field; its direction is drawn evenly on the sphere. Of it, low has 20 %
    distortion: Amount = 0.3
    # draw ``magnetic_distortion`` instead, as the published training plans do: 0.2 to 1.0 for low, 1.5 to 2.5 for high
    strengths: bool = False
    mag_noise_microtesla: Amount = 0.4  # standard deviation of a magnetometer's sample, an axis
    acc_noise: Amount = 1.5e-4  # white noise, g/√Hz
    gyro_noise: Amount = 1.7e-4  # white noise, rad/s/√Hz
    dip_degrees: Amount = 0.0  # of the field

    def __post_init__(self) -> None:
        wrong = [name for name in self.classes if name not in LEVELS]
        if not self.classes or wrong or len(set(self.classes)) < len(self.classes):
            raise PlanError(
                f"classes are {', '.join(self.classes) or 'none at all'}; expected some of {', '.join(LEVELS)}"
            )
        try:
            check(self)
        except SchemaError as error:
            raise PlanError(str(error).replace("`", "")) from None
        if self.longest_s < self.shortest_s:
            raise PlanError(
                f"longest_s is {self.longest_s:g}, expected at least shortest_s, which is {self.shortest_s:g}"
            )


def random_plan(like: RandomPlans, number: int, seed: int = 0) -> dict[str, Any]:
    """One plan, as JSON."""
    sources = np.random.SeedSequence([seed, number]).spawn(3)
    motion, distortion, order = (np.random.Generator(np.random.PCG64(source)) for source in sources)
    start = _on_sphere(motion, 4)
    durations = [round(float(motion.uniform(like.shortest_s, like.longest_s)), 1) for _ in range(like.rounds)]
    kinds = [(duration, level) for duration in durations for level in like.classes]
    segments = []
    for which, place in enumerate(order.permutation(len(kinds))):
        turn = motion.uniform(-like.most_turn_degrees, like.most_turn_degrees, 3)
        segments.append(_segment(which, kinds[place], turn, _distorted(like, kinds[place][1], distortion)))
    return {"initialization": _initialization(like, start), "segments": segments}


def _distorted(like: RandomPlans, level: str, random: Random) -> dict[str, Any]:
    """The members of a segment that say its distortion."""
    if like.strengths:
        return {"magnetic_distortion": float(random.uniform(*DRAWN[level])), "mag_distortion": {"level": level}}
    vector = like.distortion * _on_sphere(random, 3)
    world = {f"world_{axis}": float(value) for axis, value in zip("xyz", vector, strict=True)}
    return {
        "magnetic_distortion": STRENGTHS[level],
        "mag_distortion": {"level": level} | (world if level != "none" else {}),
    }


def _segment(number: int, kind: tuple[float, str], turn: Any, distorted: dict[str, Any]) -> dict[str, Any]:
    duration_s, level = kind
    return {
        "name": f"segment{number + 1}-{level}",
        "duration_s": duration_s,
        "rotation_rpy_degrees": {
            name: float(angle) for name, angle in zip(("roll", "pitch", "yaw"), np.round(turn, 3), strict=True)
        },
        **distorted,
    }


def _initialization(like: RandomPlans, start: Any) -> dict[str, Any]:
    bandwidth = like.rate_hz**0.5  # a sample's deviation is the density times the root of the rate
    mag = like.mag_noise_microtesla / like.field_microtesla / bandwidth
    members: dict[str, Any] = {
        "pose": {
            "origin": {"lat": 0.0, "lng": 0.0, "height": 0.0},
            "position": {"x": 0.0, "y": 0.0, "z": 0.0},
            "rotation": dict(zip("wxyz", map(float, start), strict=True)),
        },
        "start_time_ns": 0,
        "sample_rate": like.rate_hz,
        "mag": {"noise": {"white": mag}},
        "acc": {"noise": {"white": like.acc_noise}},
        "gyro": {"noise": {"white": like.gyro_noise}},
    }
    return members | ({"magnetic_field": {"dip_degrees": like.dip_degrees}} if like.dip_degrees else {})


def _on_sphere(random: Random, size: int) -> Any:
    """A direction drawn evenly: normal numbers know no direction."""
    vector = random.standard_normal(size)
    return vector / np.sqrt((vector * vector).sum())


def random_recordings(count: int, like: RandomPlans, seed: int = 0) -> Iterator[tuple[str, dict[str, Any], Synthesis]]:
    """Name, plan and recording of each of `count` random plans, without a file."""
    if not 1 <= count <= _MOST_PLANS:
        raise PlanError(f"the number of plans is {count}, expected 1 to {_MOST_PLANS:,}")
    for number in range(count):
        plan = random_plan(like, number, seed)
        yield f"random-{seed}-{number:04d}", plan, simulate(plan, seed=_noise_seed(seed, number))


def _noise_seed(seed: int, number: int) -> int:
    """Another one for each recording, beside the plan's own random numbers."""
    return int(np.random.SeedSequence([seed, number, 1]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def synth_random(
    count: int,
    out: str | Path,
    like: RandomPlans | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Draw plans and write their recordings.

    Parameters
    ----------
    count : int
        How many.
    out : str or Path
        A folder that is empty or not there yet. Each recording NAME gets ``NAME/NAME.mcap`` with ``NAME.labels.json`` and
        ``NAME.plan.json`` beside it, and ``NAME.experiment.json`` in the folder itself.
    like : RandomPlans, optional
        What the plans are like.
    seed : int
        The same seed gives the same bytes.
    progress : callable, optional
        Is given the number of recordings written and of all.

    Returns
    -------
    list of Path
        The experiments.

    Raises
    ------
    PlanError
        If the folder holds something, or cannot be written.
    """
    folder = Path(out)
    experiments = []
    with writing(folder, PlanError):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise PlanError("holds something already; name an empty folder", folder)
    for name, plan, recording in random_recordings(count, like or RandomPlans(), seed):
        home, labels = folder / name, f"{name}/{name}.labels.json"
        home.mkdir()
        write_json(home / f"{name}.plan.json", plan, PlanError)
        write_json(folder / labels, labels_of(recording, labels), PlanError)
        write_mcap(recording, home / f"{name}.mcap")
        experiments.append(folder / f"{name}.experiment.json")
        write_json(experiments[-1], experiment_of(recording, name, name, [labels]), PlanError)
        if progress is not None:
            progress(len(experiments), count)
    return experiments


def classes_of(texts: Sequence[str]) -> tuple[str, ...]:
    """Classes in the order none, low, high, whatever order they are named in; unknown ones stay where they are refused."""
    return tuple(sorted(dict.fromkeys(texts), key=lambda name: LEVELS.index(name) if name in LEVELS else len(LEVELS)))
