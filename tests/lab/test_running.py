"""Running: synthetic gait, and models that learn from it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import windows_of
from recipes_made import STANDARDISE, recipe_text

from kymo.lab.prepare.gait import GRAVITY, NO_FAULTS, Faults, GaitPlan, GaitRun, make_runner, write_gait
from kymo.lab.prepare.running import Selection, prepare_running, write_own_recipe
from kymo.models.data.dataset import streams_of
from kymo.models.evaluate import evaluate, without
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import Recipe, load_recipe, parse_recipe
from kymo.streams.chunk import Window
from kymo.streams.errors import SourceError
from kymo.streams.events import Event
from kymo.streams.readers import read
from kymo.streams.recording import Recording

CNN = 'architecture = "spectrogram_cnn"'
SMALL = {
    "length_s = 20": "length_s = 4",
    "hop_s = 10": "hop_s = 2",
    "nperseg = 1000": "nperseg = 500",
    "noverlap = 800": "noverlap = 400",
    "keep_bins = 223": "keep_bins = 112",
}


def changed(name: str, changes: dict[str, str], model: str, epochs: int) -> Recipe:
    """A shipped recipe for two cores: shorter windows, another ``[model]``, fewer epochs."""
    path = load_recipe(name).path
    assert path is not None
    text = path.read_text()
    training = {"epochs = 100": f"epochs = {epochs}\nvalidation = 0", 'results = "Results"': 'results = ""'}
    for old, new in {**changes, **training}.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    head, _, rest = text.partition("[model]")
    return parse_recipe(f"{head}[model]\n{model}\n[labels]{rest.partition('[labels]')[2]}")


@pytest.mark.parametrize(
    ("name", "rows", "shape", "architecture"),
    [
        ("running", 46, (223, 12), "spectrogram_resnet"),
        ("running_feet", 46, (223, 14), "spectrogram_resnet"),
        ("running_recurrent", 10_000, (12,), "recurrent"),
    ],
)
def test_recipes_as_they_are(name: str, rows: int, shape: tuple[int, ...], architecture: str) -> None:
    recipe = load_recipe(name)
    fmt = recipe.output_format()
    assert (recipe.window_length, recipe.window_hop, fmt.rows, fmt.shape) == (10_000, 5_000, rows, shape)
    assert recipe.model is not None
    chosen = {"dropout": 0.5, "learning_rate": 0.001, "batch_size": 32}
    assert recipe.model.architecture == architecture
    assert chosen.items() <= dict(recipe.model.parameters).items()
    assert recipe.train.split == "subject"
    train = recipe.train
    assert (train.epochs, train.patience, train.min_gain, train.results) == (100, 10, 0.001, "Results")
    heads = [(head.name, head.kind, head.set) for head in recipe.heads]
    assert heads == [(n, k, n) for n, k in (("surface", "classes"), ("seconds_10k", "number"), ("score_10k", "number"))]
    one = changed(name, {}, f'architecture = "{architecture}"', 1).path
    assert one is None  # the text alone


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Prepared recordings of six runners, and of three others, on both surfaces; speeds further apart than 2.5, 3 and
    3.5 m/s, which so few and so short recordings would not tell apart."""
    found = []
    for seed, subjects in ((1, 6), (2, 3)):
        folder = tmp_path_factory.mktemp(f"gait{seed}")
        write_gait(folder, GaitPlan(subjects, (2.0, 3.0, 4.0), run_s=8.5, seed=seed))
        prepare_running(folder, folder, Selection())
        found.append(folder / "Prepared" / "csv")
    return found[0], found[1]


def windows_in(recording: Recording) -> int:
    """Windows of 4 s every 2 s; gaps are shorter than what the recipe bridges."""
    stream = recording.streams[0]
    return (stream.end_index - 2000) // 1000 + 1


def test_from_raw_files_to_events_of_unknown_runners(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = 'architecture = "spectrogram_cnn"\nmin_probability = 0.0'
    recipe = changed("running", SMALL, model, 20)
    trained = train(recipe, TrainRequest((str(prepared[0]),), out=tmp_path / "bundle", only=True))
    recordings = list(read([prepared[1]], recipe.read_options()))
    scores = evaluate(recipe, trained.bundle, recordings)
    assert scores["n"] == 18
    assert scores["accuracy"] >= 0.6  # chance is a third
    assert scores["heads"]["surface"]["accuracy"] >= 0.7  # chance is a half
    # Six runners cannot tell how fast a seventh is over 10 km; of the six themselves the numbers are learned, in seconds.
    known = evaluate(recipe, trained.bundle, read([prepared[0]], recipe.read_options()))["heads"]
    assert (known["seconds_10k"]["n"], known["score_10k"]["n"]) == (36, 36)
    assert min(known["seconds_10k"]["r2"], known["score_10k"]["r2"]) > 0.8
    events = list(run(recipe, recordings, Classifier(trained.bundle, recipe.name)))
    check_events(recipe, recordings, events)
    assert len(events) == 4 * scores["windows"]
    numbers = {name: [e.values[name] for e in events if e.head == name] for name in ("seconds_10k", "score_10k")}
    assert 1500 < min(numbers["seconds_10k"]) < max(numbers["seconds_10k"]) < 4500
    assert 35 < min(numbers["score_10k"]) < max(numbers["score_10k"]) < 110


def check_events(recipe: Recipe, recordings: list[Recording], events: list[Event]) -> None:
    """Every window has an event for itself and one for each head, in this order."""
    heads = ["", *(head.name for head in recipe.heads)]
    assert [event.head for event in events] == heads * (len(events) // len(heads))
    for own, surface, *numbers in zip(*(events[i :: len(heads)] for i in range(len(heads))), strict=True):
        assert own.id == f"{own.session}/{recipe.name}/{own.start_index}"
        assert [event.id for event in (surface, *numbers)] == [f"{own.id}/{name}" for name in heads[1:]]
        assert own.label in {"2", "3", "4"}
        assert surface.label in {"treadmill", "overground"}
        assert all(number.label == "" and set(number.values) == {number.head} for number in numbers)
    counted = Counter(event.session for event in events if not event.head)
    assert counted == {recording.session: windows_in(recording) for recording in recordings}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("running", 'architecture = "spectrogram_resnet"\nbackbone = "small"\nwidth = 4'),
        ("running_recurrent", 'architecture = "recurrent"\nunits = 8\npatch = 50'),
        ("running", 'architecture = "minirocket"\nfeatures = 840'),
    ],
)
def test_the_other_models_take_these_recordings(
    name: str, model: str, prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow")
    changes = SMALL if name == "running" else {key: SMALL[key] for key in list(SMALL)[:2]}
    recipe = changed(name, changes, f"{model}\nmin_probability = 0.0", 1)
    request = TrainRequest((str(prepared[1]),), out=tmp_path / "bundle", only=True)
    bundle = train(recipe, request).bundle
    recordings = list(read([min(prepared[1].rglob("*.csv"))], recipe.read_options()))
    check_events(recipe, recordings, list(run(recipe, recordings, Classifier(bundle, recipe.name))))


def windows_in_order(recipe: Recipe, recording: Recording) -> list[Window]:
    return windows_of(streams_of(recording, recipe), recipe.chain.cut_behind_window()[0])


def test_two_devices_give_the_windows_of_one_file(tmp_path: Path) -> None:
    """To the bit, gaps and all: from the prepared file, and from a file a foot; and a foot that is not there is absent."""
    write_gait(tmp_path, GaitPlan(1, (3.0,), run_s=8.5, seed=3))
    report = prepare_running(tmp_path, tmp_path, Selection())
    own = write_own_recipe(tmp_path / "Prepared", load_recipe("running_feet"), report)
    one = changed("running", SMALL, CNN, 1)
    two = changed("running_feet", SMALL, CNN, 1)  # as the devices write it
    prepared = changed(str(own.path), {f"{k}\n": f"{v}\n" for k, v in SMALL.items()}, CNN, 1)
    assert [table.channels[0] for table in prepared.inputs] == ["ax_left", "ax_right"]
    file = min((tmp_path / "Prepared/csv").rglob("*.csv"))
    (recording,) = read([file], one.read_options())
    expected = windows_in_order(one, recording)
    assert len(expected) > 1
    (both,) = read([file], prepared.read_options())
    lines = [line.split(",") for line in file.read_text().splitlines()]
    for foot in ("left", "right"):
        at = [i for i, name in enumerate(lines[0]) if name == "t" or name.endswith(f"_{foot}")]
        part = [",".join(line[i].removesuffix(f"_{foot}") for i in at) for line in lines]
        (tmp_path / "devices").mkdir(exist_ok=True)
        (tmp_path / "devices" / f"{foot}.csv").write_text("\n".join(part) + "\n")
    (apart,) = read([tmp_path / "devices"], two.read_options())
    for recipe, joined in ((prepared, both), (two, apart)):
        came = windows_in_order(recipe, joined)
        assert [w.data.tobytes() for w in came] == [w.data.tobytes() for w in expected]
        assert {w.absent for w in came} == {()}
        (less,) = without([joined], recipe, ["imu.left"])
        left = windows_in_order(recipe, less)
        assert {w.absent for w in left} == {("imu.left",)}
        for ours, theirs in zip(left, expected, strict=True):
            assert np.isnan(ours.data[..., :6]).all()
            assert ours.data[..., 6:].tobytes() == theirs.data[..., 6:].tobytes()


def test_a_recipe_for_both_feet_takes_no_single_one(tmp_path: Path) -> None:
    write_gait(tmp_path, GaitPlan(1, (3.0,), run_s=8.5))
    report = prepare_running(tmp_path, tmp_path, Selection(feet="left"))
    with pytest.raises(SourceError, match="`running_feet` takes both feet, and one was prepared"):
        write_own_recipe(tmp_path / "Prepared", load_recipe("running_feet"), report)


@pytest.mark.parametrize(
    ("steps", "model"),
    [
        (
            [{"step": "spectrogram", "nperseg": 16, "noverlap": 14}, {"step": "log"}],
            {"architecture": "spectrogram_resnet", "backbone": "small", "width": 8},
        ),
        ([], {"architecture": "recurrent", "cell": "gru", "units": 16}),
    ],
    ids=["spectrogram_resnet", "recurrent"],
)
def test_the_same_models_learn_real_walking_and_running(
    steps: list[dict[str, Any]], model: dict[str, Any], tmp_path: Path
) -> None:
    """BasicMotions: 40 recordings to learn from, 40 others to be judged by; four classes."""
    pytest.importorskip("tensorflow")
    pytest.importorskip("aeon")
    tables = {
        "model": model | {"min_probability": 0.0, "dropout": 0.2, "learning_rate": 0.01},
        "train": {"epochs": 15, "validation": 0},
    }
    channels = "ax ay az gx gy gz"
    recipe = parse_recipe(recipe_text("motions", channels, 10, (5, 2.5), steps=steps, behind=STANDARDISE, **tables))
    bundle = train(recipe, TrainRequest(("basicmotions:train",), out=tmp_path / "bundle", only=True)).bundle
    scores = evaluate(recipe, bundle, read(["basicmotions:test"], recipe.read_options()))
    assert scores["n"] == 40
    assert scores["accuracy"] >= 0.8  # chance is 0.25


PLAN = GaitPlan(subjects=1, speeds=(3.0,), surfaces=("treadmill",), run_s=6, stand_s=3, seed=4)


def long_run(speed: float, surface: str = "overground", runner: int = 1) -> GaitRun:
    return GaitRun(make_runner(runner, 0), speed, surface, run_s=120.0, seed=5)


def magnitude(run: GaitRun, foot: str, times: np.ndarray) -> np.ndarray:
    return np.linalg.norm(run.measure(foot, times)[:, :3], axis=1)


def test_stride_rate_is_the_sources_at_the_speeds_that_it_measured() -> None:
    """77, 79 and 80 strides a minute at 2.4, 2.6 and 2.9 m/s, and the mean runner has tempo 1."""
    rates = [60 / long_run(v).stride_s / make_runner(1, 0).tempo for v in (2.4, 2.6, 2.9)]
    np.testing.assert_allclose(rates, [77, 79, 80], atol=1.0)
    assert abs(np.mean([make_runner(i, 0).tempo for i in range(1, 200)]) - 1) < 0.01


@pytest.mark.parametrize("speed", [2.5, 3.5])
def test_the_signal_repeats_every_stride(speed: float) -> None:
    """The stride time is found again in the spectrum of the acceleration, which knows nothing of how it was made."""
    run = long_run(speed)
    times = np.arange(10_000, 50_000) / 500
    power = np.abs(np.fft.rfft(magnitude(run, "left", times) * np.hanning(len(times)))) ** 2
    frequencies = np.fft.rfftfreq(len(times), 1 / 500)
    low = (frequencies > 0.9) & (frequencies < 1.9)
    assert frequencies[low][np.argmax(power[low])] == pytest.approx(1 / run.stride_s, rel=0.03)


def test_feet_strike_in_turns_half_a_stride_apart() -> None:
    left, right = long_run(3.0).strikes_s
    count = min(len(left), len(right)) - 1
    assert ((left[:count] < right[:count]) & (right[:count] < left[1 : count + 1])).all()
    share = np.mean((right[:count] - left[:count]) / np.diff(left)[:count])
    assert share == pytest.approx(0.5 + make_runner(1, 0).asymmetry / 4, abs=0.005)
    assert np.std(np.diff(left)) / np.mean(np.diff(left)) < 0.025


def test_faster_is_harder_and_a_foot_at_rest_feels_gravity() -> None:
    times = np.arange(0, 60_000) / 500
    peaks = [float(np.quantile(magnitude(long_run(v), "left", times), 0.999)) for v in (2.5, 3.0, 3.5)]
    assert peaks == sorted(peaks)
    assert all(4 * GRAVITY < peak < 16 * GRAVITY for peak in peaks)
    still = long_run(3.0).measure("right", np.array([0.5, 1.0]))
    np.testing.assert_allclose(np.linalg.norm(still[:, :3], axis=1), GRAVITY, rtol=1e-12)
    np.testing.assert_allclose(still[:, 3:], 0, atol=1e-12)


def test_a_treadmill_makes_contact_longer_and_flatter() -> None:
    ground, belt = long_run(3.0), long_run(3.0, "treadmill")
    assert (belt.stance - ground.stance) * belt.stride_s == pytest.approx(0.005)
    # Toes sink from the angle at contact to flat: the rotation in between is smaller by 9.8 degrees.
    fall = []
    for walk in (ground, belt):
        strike = walk.strikes_s[0][40]
        times = np.arange(strike, strike + 0.25 * walk.stance * walk.stride_s, 1e-4)
        turned = walk.measure("left", times)[:, 3:]
        fall.append(np.degrees(np.linalg.norm(turned.sum(axis=0)) * 1e-4))
    assert fall[0] - fall[1] == pytest.approx(9.8, abs=1.5)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gait(tmp_path / name, PLAN)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert [f.as_posix() for f in files] == [
        "Raw/SENSOR001/S01_T1_3_tread.csv",
        "Raw/SENSOR002/S01_T1_3_tread.csv",
        "truth.json",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    write_gait(tmp_path / "c", GaitPlan(subjects=1, speeds=(3.0,), surfaces=("treadmill",), run_s=6, seed=5))
    assert (tmp_path / "a" / files[0]).read_bytes() != (tmp_path / "c" / files[0]).read_bytes()


def test_files_and_truth_agree(tmp_path: Path) -> None:
    faults = Faults(spikes_per_minute=60, gaps_per_minute=20, repeats_per_minute=20, loose_s=0.5)
    plan = GaitPlan(subjects=1, speeds=(3.0,), surfaces=("overground",), run_s=6, seed=4, faults=faults)
    write_gait(tmp_path, plan)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert "synthetic" in truth["note"]
    for file in truth["files"]:
        lines = (tmp_path / "Raw" / file["file"]).read_text().splitlines()
        assert lines[0] == (
            "t,ax,ay,az,gx,gy,gz,foot,subject_id,trial_id,speed,tread or overground,seconds_10k,score_10k,usabledata"
        )
        assert len(lines) - 1 == file["rows"]
        times = np.array([float(line.split(",")[0]) for line in lines[1:]])
        steps = np.rint(np.diff(times) * 500).astype(int)
        assert [{"before_row": i + 3, "samples": steps[i] - 1} for i in np.flatnonzero(steps > 1)] == file["gaps"]
        assert (np.flatnonzero(steps == 0) + 3).tolist() == file["repeated_rows"]
        assert sum(line.endswith(",0") for line in lines[1:]) == file["unusable_rows"]
        assert len(file["spikes"]) >= 8


def test_without_faults_there_are_none(tmp_path: Path) -> None:
    plan = GaitPlan(subjects=1, speeds=(3.0,), surfaces=("treadmill",), run_s=6, faults=NO_FAULTS)
    for file in write_gait(tmp_path, plan):
        assert (file["gaps"], file["repeated_rows"], file["spikes"]) == ([], [], [])
        assert file["clock"] in (None, {"offset_s": 0.0, "drift_ppm": 0.0})


@pytest.mark.parametrize(
    ("field", "value"), [("subjects", 0), ("speeds", (30.0,)), ("surfaces", ("ice",)), ("run_s", 1)]
)
def test_refuses_plans_out_of_range(field: str, value: object) -> None:
    with pytest.raises(SourceError, match=f"{field} = "):
        GaitPlan(**{field: value})  # type: ignore[arg-type]
