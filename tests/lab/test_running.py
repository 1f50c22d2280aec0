"""The running system: its recipes, and the way from raw files to events. Two-foot recordings here are SYNTHETIC (no public
copy of such data exists); BasicMotions is real walking and running."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kymo.lab.prepare.gait import GaitPlan, write_gait
from kymo.lab.prepare.running import Selection, prepare_running
from kymo.models.evaluate import evaluate
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import Recipe, load_recipe, parse_recipe
from kymo.streams.events import Event
from kymo.streams.readers import read
from kymo.streams.recording import Recording

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
    [("running", 46, (223, 12), "spectrogram_resnet"), ("running_recurrent", 10_000, (12,), "recurrent")],
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
    (stream,) = recording.streams
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
    """Learning well takes longer than a test may; here they run from the files to labelled events."""
    pytest.importorskip("tensorflow")
    changes = SMALL if name == "running" else {key: SMALL[key] for key in list(SMALL)[:2]}
    recipe = changed(name, changes, f"{model}\nmin_probability = 0.0", 1)
    request = TrainRequest((str(prepared[1]),), out=tmp_path / "bundle", only=True)
    bundle = train(recipe, request).bundle
    recordings = list(read([min(prepared[1].rglob("*.csv"))], recipe.read_options()))
    check_events(recipe, recordings, list(run(recipe, recordings, Classifier(bundle, recipe.name))))


@pytest.mark.parametrize(
    ("steps", "model"),
    [
        ('[[steps]]\nstep = "spectrogram"\nnperseg = 16\nnoverlap = 14\n[[steps]]\nstep = "log"', "spectrogram_resnet"),
        ("", "recurrent"),
    ],
)
def test_the_same_models_learn_real_walking_and_running(steps: str, model: str, tmp_path: Path) -> None:
    """BasicMotions: 40 recordings to learn from, 40 others to be judged by; four classes."""
    pytest.importorskip("tensorflow")
    pytest.importorskip("aeon")
    own = {"spectrogram_resnet": 'backbone = "small"\nwidth = 8', "recurrent": 'cell = "gru"\nunits = 16'}[model]
    recipe = parse_recipe(f"""
name = "motions"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
{steps}
[window]
length_s = 5
hop_s = 2.5
[[window.steps]]
step = "standardise"
[model]
architecture = "{model}"
min_probability = 0.0
dropout = 0.2
learning_rate = 0.01
{own}
[train]
epochs = 15
validation = 0
""")
    bundle = train(recipe, TrainRequest(("basicmotions:train",), out=tmp_path / "bundle", only=True)).bundle
    scores = evaluate(recipe, bundle, read(["basicmotions:test"], recipe.read_options()))
    assert scores["n"] == 40
    assert scores["accuracy"] >= 0.8  # chance is 0.25
