"""Random plans: balanced, reproducible, with labels and experiments; and their motion says nothing about the class."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, kstest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kymo.lab.synth.files import NAMES
from kymo.lab.synth.plan import LEVELS, load_plan
from kymo.lab.synth.random_plans import RandomPlans, random_plan, random_recordings, synth_random
from kymo.lab.synth.simulate import Synthesis
from kymo.streams.errors import PlanError
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions

SMALL = RandomPlans(rounds=1, shortest_s=1.0, longest_s=2.0)
Floats = NDArray[np.float64]


def test_plans_are_balanced_in_number_and_in_time() -> None:
    for number in range(5):
        segments = random_plan(RandomPlans(rounds=3), number)["segments"]
        levels = [segment["mag_distortion"]["level"] for segment in segments]
        assert Counter(levels) == dict.fromkeys(LEVELS, 3)
        by_level = {
            level: sorted(s["duration_s"] for s in segments if s["mag_distortion"]["level"] == level)
            for level in LEVELS
        }
        assert by_level["none"] == by_level["low"] == by_level["high"]


def test_the_order_of_classes_is_drawn() -> None:
    orders = {
        tuple(s["mag_distortion"]["level"] for s in random_plan(RandomPlans(rounds=2), number)["segments"])
        for number in range(30)
    }
    assert len(orders) > 15
    assert len({order[0] for order in orders}) == 3


def test_distortions_are_as_long_as_asked_and_point_anywhere() -> None:
    vectors, fields = [], []
    for _, _, made in random_recordings(100, RandomPlans(rounds=2, shortest_s=0.1, longest_s=0.1), seed=3):
        for segment in made.plan.segments:
            if segment.level != "none":
                vectors.append(np.array(segment.distortion) / (0.2 if segment.level == "low" else 1.0))
            fields.append(np.linalg.norm(np.array(made.plan.field) + segment.distortion))
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(lengths, 0.3, rtol=1e-12)
    # Of directions that are even on the sphere, every coordinate is even between -1 and 1 (Archimedes).
    for axis in range(3):
        assert kstest(np.array(vectors)[:, axis] / 0.3, "uniform", args=(-1, 2)).pvalue > 0.001


def test_strengths_are_drawn_as_in_the_published_training_plans() -> None:
    segments = [s for n in range(60) for s in random_plan(RandomPlans(rounds=2, strengths=True), n)["segments"]]
    assert all(set(segment["mag_distortion"]) == {"level"} for segment in segments)
    for level, (least, most) in {"none": (0.0, 0.0), "low": (0.2, 1.0), "high": (1.5, 2.5)}.items():
        drawn = [s["magnetic_distortion"] for s in segments if s["mag_distortion"]["level"] == level]
        assert least <= min(drawn) <= least + 0.05
        assert most - 0.05 <= max(drawn) <= most
    for _, _, made in random_recordings(2, RandomPlans(rounds=1, strengths=True), seed=2):
        planned = [(s["mag_distortion"]["level"], s["magnetic_distortion"]) for s in made.plan.planned]
        assert [(s.level, s.distortion[0]) for s in made.plan.segments] == planned


def test_a_magnetometers_sample_is_as_noisy_as_asked() -> None:
    (_, _, made), *_ = random_recordings(1, RandomPlans(rate_hz=50.0))
    error = made.topics["mag_raw"] - made.topics["mag_truth"]
    assert 50.0 * error.std(axis=0) == pytest.approx(0.4, rel=0.05)
    assert 50.0 * error.std() == pytest.approx(0.4, rel=0.03)


def windows(made: Synthesis, topics: tuple[str, ...]) -> tuple[list[Floats], list[int]]:
    """Each 1 s wholly inside a segment, and its class."""
    data = np.concatenate([made.topics[topic] for topic in topics], axis=1)
    found, classes, first = [], [], 0
    for segment, count in zip(made.plan.segments, made.plan.counts, strict=True):
        for start in range(first, first + count - 100 + 1, 100):
            found.append(data[start : start + 100])
            classes.append(LEVELS.index(segment.level))
        first += count
    return found, classes


def features(window: Floats) -> Floats:
    """What a classifier could go by: means, spreads, steps, products of channels, lengths of vectors and their angles, spectra."""
    vectors = [window[:, i : i + 3] for i in range(0, window.shape[1], 3)]
    spectrum = np.log(np.abs(np.fft.rfft(window - window.mean(axis=0), axis=0))[1:20:3] + 1e-9)
    parts = [window.mean(axis=0), np.log(window.std(axis=0) + 1e-9), np.abs(np.diff(window, axis=0)).mean(axis=0)]
    parts += [(window.T @ window)[np.triu_indices(window.shape[1])] / len(window), spectrum.ravel()]
    together = [(a * b).sum(axis=1) for i, a in enumerate(vectors) for b in vectors[: i + 1]]
    return np.concatenate([*parts, *([value.mean(), value.std()] for value in together)])


def accuracy(topics: tuple[str, ...]) -> tuple[float, int]:
    """Of a forest and of a linear classifier, the better: learned on 60 plans, judged on 40 others."""
    like = RandomPlans(rounds=2, shortest_s=2.0, longest_s=4.0)
    sides: tuple[tuple[list[Floats], list[int]], ...] = (([], []), ([], []))
    for number, (_, _, made) in enumerate(random_recordings(100, like, seed=11)):
        found, classes = windows(made, topics)
        sides[number >= 60][0].extend(map(features, found))
        sides[number >= 60][1].extend(classes)
    (train, known), (test, expected) = ((np.array(x), np.array(y)) for x, y in sides)
    forest = RandomForestClassifier(100, max_features=0.3, random_state=0).fit(train, known)
    linear = make_pipeline(StandardScaler(), RidgeClassifier(10.0)).fit(train, known)
    return max(float(model.score(test, expected)) for model in (forest, linear)), len(expected)


def test_motion_does_not_give_the_class_away() -> None:
    right, count = accuracy(("acc_raw", "gyro_raw"))
    # 1 s of the same segment are not independent: three or so of them count as one; two classifiers are tried.
    assert right < binom.ppf(0.999, count // 3, 1 / 3) / (count // 3)


def test_the_same_classifiers_find_it_with_the_magnetometer() -> None:
    assert accuracy(("acc_raw", "gyro_raw", "mag_raw"))[0] > 0.9


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_recordings_come_with_plan_labels_and_experiment(tmp_path: Path) -> None:
    experiments = synth_random(2, tmp_path / "out", SMALL, seed=5)
    assert [path.name for path in experiments] == [f"random-5-000{i}.experiment.json" for i in range(2)]
    experiment = json.loads(experiments[1].read_text())
    plan: Any = json.loads((tmp_path / "out/random-5-0001/random-5-0001.plan.json").read_text())
    seconds = sum(load_plan(tmp_path / "out/random-5-0001/random-5-0001.plan.json").counts) / 100
    assert experiment == {
        "dirname": "random-5-0001",
        "labelFiles": [{"filePath": "random-5-0001/random-5-0001.labels.json"}],
        "description": "Synthetic dataset: random-5-0001",
        "segments": plan["segments"],
        "metadata": {
            "generated_by": "kymo synth",
            "sample_rate": 100,
            "total_duration_s": pytest.approx(seconds),
            "classification_type": "mag_distortion",
            "distortion_levels": ["none", "low", "high"],
        },
    }


def test_kymo_reads_recordings_and_labels_as_they_were_made(tmp_path: Path) -> None:
    synth_random(2, tmp_path, SMALL, seed=5)
    options = ReadOptions(label_key="mag_distortion", label_names=NAMES)
    recordings = list(read([tmp_path], options))
    again = list(random_recordings(2, SMALL, seed=5))
    assert [recording.session for recording in recordings] == [name for name, _, _ in again]
    for recording, (_, _, made) in zip(recordings, again, strict=True):
        ends = np.cumsum(made.plan.counts) * 10**7
        assert [(label.start_ns, label.end_ns, label.label) for label in recording.labels] == [
            (start, end, segment.level)
            for start, end, segment in zip([0, *ends[:-1].tolist()], ends.tolist(), made.plan.segments, strict=True)
        ]
        streams = {stream.header.format.stream: stream for stream in recording.streams}
        assert (streams["mag_raw"].data == made.topics["mag_raw"]).all()


def test_the_same_seed_gives_the_same_bytes_and_another_other_plans(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synth_random(2, tmp_path / name, SMALL, seed=seed)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    a, c = (random_plan(SMALL, 0, seed) for seed in (1, 2))
    assert a["segments"][0]["rotation_rpy_degrees"] != c["segments"][0]["rotation_rpy_degrees"]
    assert len({json.dumps(random_plan(SMALL, number)) for number in range(20)}) == 20


def test_fewer_recordings_are_the_first_of_more() -> None:
    few, more = ([plan for _, plan, _ in random_recordings(count, SMALL)] for count in (2, 4))
    assert more[:2] == few


@pytest.mark.parametrize("classes", [("none", "high"), ("low",), ("high", "none")])
def test_some_classes(classes: tuple[str, ...]) -> None:
    plan = random_plan(RandomPlans(classes=classes, rounds=2), 0)
    assert Counter(s["mag_distortion"]["level"] for s in plan["segments"]) == dict.fromkeys(classes, 2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"classes": ()}, "classes are none at all"),
        ({"classes": ("none", "medium")}, "classes are none, medium; expected some of none, low, high"),
        ({"classes": ("none", "none")}, "classes are none, none"),
        ({"rounds": 0}, "rounds is 0"),
        ({"distortion": -0.1}, "distortion is -0.1"),
        ({"rate_hz": float("nan")}, "rate_hz is nan"),
        ({"shortest_s": 3.0, "longest_s": 2.0}, "longest_s is 2, expected at least shortest_s"),
    ],
)
def test_impossible_wishes_name_the_parameter(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as error:
        RandomPlans(**parameters)
    assert str(error.value).startswith(message)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(PlanError, match="holds something already; name an empty folder"):
        synth_random(1, tmp_path, SMALL)
    with pytest.raises(PlanError, match="cannot be written"):
        synth_random(1, tmp_path / "mine.txt" / "out", SMALL)
    with pytest.raises(PlanError, match="the number of plans is 0"):
        next(random_recordings(0, SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
