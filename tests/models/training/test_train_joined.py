"""Recipes of several inputs, from files to events: windows beside arrays put together by hand, data sets kept and exported, training,
scores, the gate, and events while an input is silent."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes_made import RecipeText, toml
from verbs import invoke

from kymo.models.bundle import Bundle, raw_chain
from kymo.models.data.cache import build_dataset
from kymo.models.data.dataset import read_dataset, streams_of
from kymo.models.data.examples import Example
from kymo.models.data.samples import split_chain, to_samples
from kymo.models.data.tfrecord import read_records, tf_features
from kymo.models.evaluate import evaluate, without
from kymo.models.lengths import FirstSamples
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.serving.outputs import window_kinds
from kymo.models.training.train import TrainRequest, train
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.processors.steps.maps import Mask
from kymo.streams.chunk import Array, Chunk, Header, Window, signal_format
from kymo.streams.errors import BundleError, KymoError, TrainingError
from kymo.streams.readers import read

SECONDS, PULSE, SKIN = 24, 16, 4  # of a session; samples a second
CLASSES = ("calm", "stress")


SPECTRA = [{"step": "spectrogram", "nperseg": 16, "noverlap": 8, "detrend": False, "keep_bins": 4}, {"step": "log"}]


def text_of(skin: Mapping[str, Any] | None = None, **tables: Any) -> RecipeText:
    inputs = [
        {"stream": "bvp", "rate_hz": PULSE, "channels": ["bvp"], "required": False},
        {"stream": "eda", "rate_hz": SKIN, "channels": ["eda"], "required": False, **(skin or {})},
    ]
    known = {
        "input": inputs,
        "join": {"rate_hz": PULSE, "grid": "bvp"},
        "window": {"length_s": 4, "hop_s": 2, "steps": [{"step": "standardise"}, {"step": "mask"}]},
        "steps": SPECTRA,
        "model": {"architecture": "spectrogram_cnn", "width": 8, "learning_rate": 0.01},
        "train": {
            "split": "subject",
            "folds": 0,
            "epochs": 25,
            "compare": False,
            "validation": 0.25,
            "augment": [{"kind": "modality_dropout", "p": 0.6, "share": 0.8}],
        },
    }
    return RecipeText('name = "wrist"\n' + toml(known | tables))


SAMPLES = text_of(steps=[])  # windows of the ticks themselves


def signals(label: str, subject: int) -> dict[str, Array]:
    """What each sensor feels of a class; either would tell it alone."""
    random, stress = np.random.default_rng([CLASSES.index(label), subject]), label == "stress"
    pulse, skin = (np.arange(SECONDS * rate) / rate for rate in (PULSE, SKIN))
    return {
        "bvp": (3 if stress else 1) * np.sin(2 * np.pi * 1.5 * pulse) + 0.3 * random.standard_normal(len(pulse)),
        "eda": (4 if stress else 1) + 0.4 * random.standard_normal(len(skin)),
    }


def write_session(folder: Path, label: str, subject: int, absent: str = "", outage_s: float = 0) -> dict[str, Array]:
    """A folder with a file a sensor; of one of them nothing, or nothing from 10 s on for so long. The other says the label."""
    folder.mkdir(parents=True)
    came = signals(label, subject)
    for name, rate in (("bvp", PULSE), ("eda", SKIN)):
        if name == absent and not outage_s:
            continue
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            labelled = name == ("bvp" if absent == "eda" else "eda")
            writer.writerow(["t", name, "label" if labelled else "remark", "subject"])
            for i, value in enumerate(came[name]):
                if name != absent or not 10 <= i / rate < 10 + outage_s:
                    writer.writerow([f"{i / rate:.4f}", f"{value:.6f}", label, f"S{subject}"])
    return came


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight people, calm and under stress; in some sessions a sensor drops out for a while."""
    folder = tmp_path_factory.mktemp("wrist")
    for subject in range(8):
        for label in CLASSES:
            absent = {2: "bvp", 5: "eda"}.get(subject, "")
            write_session(folder / f"{label}{subject}", label, subject, absent, 5.0 if absent else 0)
    return folder


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(text_of())


@pytest.fixture(scope="module")
def bundle(data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("torch")
    return train(recipe, TrainRequest((str(data),), out=tmp_path_factory.mktemp("b") / "bundle")).bundle


def by_hand(came: dict[str, Array], absent: str = "", outage_s: float = 0) -> Array:
    """Ticks of a session ``(n, 2)`` by numpy alone: the pulse as it is, the other on lines between its samples."""
    pulse, skin = (np.arange(SECONDS * rate) / rate for rate in (PULSE, SKIN))
    ticks = np.full((len(pulse), 2), np.nan)
    ticks[:, 0] = came["bvp"]
    ticks[:, 1] = np.interp(pulse, skin, came["eda"], right=np.nan)
    gone = (pulse >= 10) & (pulse < 10 + outage_s)
    if absent == "eda":  # no line leads across a gap: to be on one, there must be a sample on either side
        gone = (pulse > 10 - 1 / SKIN) & (pulse < 10 + outage_s)
    if absent:
        ticks[gone if outage_s else slice(None), ["bvp", "eda"].index(absent)] = np.nan
    return ticks[: 1 + np.flatnonzero(~np.isnan(ticks).all(1))[-1]].astype(np.float32)


@pytest.mark.parametrize(("absent", "outage_s"), [("", 0), ("eda", 5.0), ("bvp", 5.0), ("eda", 0)])
def test_windows_of_a_data_set_are_put_together_by_hand(absent: str, outage_s: float, tmp_path: Path) -> None:
    recipe = parse_recipe(SAMPLES)
    came = write_session(tmp_path / "s", "stress", 3, absent, outage_s)
    ticks = by_hand(came, absent, outage_s)
    chain = split_chain(recipe.chain)[0]
    known = read_dataset(read([tmp_path / "s"], recipe.read_options()), recipe, chain)
    kept = build_dataset([tmp_path / "s"], recipe, chain)
    length, hop = 4 * PULSE, 2 * PULSE
    for dataset in (known, kept):  # as they are made, and as they come out of the cache
        assert [e.window.start_index for e in dataset.examples] == list(range(0, len(ticks) - length + 1, hop))
        for example in dataset.examples:
            window = example.window
            expected = ticks[window.start_index : window.start_index + length]
            np.testing.assert_allclose(window.data, expected, atol=2e-6)
            missing = [name for i, name in enumerate(("bvp", "eda")) if np.isnan(expected[:, i]).any()]
            assert window.absent == tuple(missing)
            assert (example.label, example.subject) == ("stress", "S3")


def test_a_model_that_knew_drop_outs_says_what_is_absent(bundle: Bundle, recipe: Recipe, tmp_path: Path) -> None:
    assert bundle.shape == (4, 7, 4)  # channels, of which two say what is there; columns; bins
    for absent, outage_s in (("", 0.0), ("bvp", 0.0), ("eda", 0.0), ("eda", 5.0)):
        for label in CLASSES:
            folder = tmp_path / f"{absent}{outage_s}" / label
            came = write_session(folder, label, 20, absent, outage_s)
            events = list(run(recipe, read([folder], recipe.read_options()), Classifier(bundle, "wrist")))
            ticks = by_hand(came, absent, outage_s)
            assert len(events) == (len(ticks) - 4 * PULSE) // (2 * PULSE) + 1
            for event in events:
                rows = ticks[event.start_index : event.start_index + 4 * PULSE]
                assert event.absent == [n for i, n in enumerate(("bvp", "eda")) if np.isnan(rows[:, i]).any()]
                assert sum(event.probabilities.values()) == pytest.approx(1)
            right = [event.label == label for event in events]
            assert np.mean(right) > 0.8, (absent, label)


def test_evaluate_without_an_input(bundle: Bundle, recipe: Recipe, data: Path, tmp_path: Path) -> None:
    (tmp_path / "wrist.toml").write_text(text_of())
    arguments = ["evaluate", tmp_path / "wrist.toml", "--data", data, "--bundle", bundle.path, "--json"]
    scores = json.loads(invoke(*arguments, "--without", "eda").stdout)
    less = without(read([data], recipe.read_options()), recipe, ["eda"])
    streams = [[stream.header.format.stream for stream in streams_of(r, recipe)] for r in less]
    assert streams == [["bvp"]] * 16
    assert scores["window_accuracy"] > 0.8
    fewer = without(read([data], recipe.read_options()), recipe, ["eda"])
    assert evaluate(recipe, bundle, fewer)["window_accuracy"] == scores["window_accuracy"]
    wrong = invoke(*arguments, "--without", "ed", status=1)
    assert "`ed` is no input of recipe `wrist` with required = false; there are bvp, eda" in wrong.output


@pytest.mark.parametrize("fmt", ["csv", "parquet", "tfrecord"])
def test_export_says_what_is_absent(fmt: str, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "wrist.toml").write_text(SAMPLES)
    out = tmp_path / "out"
    invoke("dataset", "export", tmp_path / "wrist.toml", "--data", data, "--format", fmt, "--out", out)
    about = json.loads((out / "dataset.json").read_text())
    assert about["channels"] == ["bvp", "eda", "mask.bvp", "mask.eda"]
    assert about["streams"] == ["bvp", "eda"]
    rows = [row for side in ("training", "validation") for row in exported(out / f"{side}.{fmt}")]
    assert len(rows) == 16 * 11
    assert {row["absent"] for row in rows} == {"", "bvp", "eda"}  # the last window ends with the last line of the skin
    for row in rows:
        mask = row["window"].reshape(-1, 4)[:, 2:]
        assert np.isfinite(row["window"]).all()
        assert row["absent"].split() == [n for i, n in enumerate(("bvp", "eda")) if not mask[:, i].all()]


def exported(path: Path) -> Iterable[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open() as file:
            for row in csv.DictReader(file):
                values = np.array([float(row[f"v{i}"]) for i in range(4 * PULSE * 4)])
                yield {"absent": row["absent"], "window": values}
    elif path.suffix == ".parquet":
        from pyarrow import parquet

        for row in parquet.read_table(path).to_pylist():
            yield {"absent": row["absent"], "window": np.array(row["window"])}
    else:
        for record in read_records(path):
            features = tf_features(record)
            yield {"absent": features["absent"], "window": np.asarray(features["window"])}


def test_windows_by_subject_keep_what_is_missing(data: Path, tmp_path: Path) -> None:
    """They were not learned from yet, so what is not there is NaN; and they are learned from as recordings are."""
    recipe = parse_recipe(SAMPLES)
    (tmp_path / "wrist.toml").write_text(SAMPLES)
    out = tmp_path / "subjects"
    words = ("dataset", "export", tmp_path / "wrist.toml", "--data", data, "--format", "tfrecord", "--by", "subject")
    invoke(*words, "--out", out)
    chain = split_chain(recipe.chain)[0]
    ours = {e.place: e for e in build_dataset([out], recipe, chain).examples}
    theirs = {e.place: e for e in build_dataset([data], recipe, chain).examples}
    assert ours.keys() == theirs.keys()
    for place, example in theirs.items():
        np.testing.assert_array_equal(ours[place].window.data, example.window.data)
        assert ours[place].window.absent == example.window.absent


def test_a_model_of_raw_windows_takes_the_ticks_and_the_mask(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    own = parse_recipe(text_of(model={"architecture": "minirocket", "features": 840}))
    chain = raw_chain(own.chain)
    assert chain.specs == (
        *parse_recipe(SAMPLES).chain.cut_behind_window()[0].specs,
        PerWindow(Mask(("bvp", "eda"), (("bvp",), ("eda",)))),
    )
    bundle = train(own, TrainRequest((str(data),), out=tmp_path / "rocket")).bundle
    assert (bundle.takes, bundle.shape) == ("raw", (4, 4 * PULSE))
    bundle.check(recipe)  # its chain is cut to the same
    scores = evaluate(own, bundle, without(read([data], own.read_options()), own, ["eda"]))
    assert scores["window_accuracy"] > 0.6
    for text, kinds in ((SAMPLES, 0), (text_of(), 2)):  # no step, or some, stand before the window
        both = (parse_recipe(text).chain, raw_chain(parse_recipe(text).chain))
        assert len(window_kinds(own.input_format(), *(each.cut_behind_window()[0] for each in both))) == kinds


def test_the_gate_judges_models_of_several_inputs(
    data: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    (tmp_path / "wrist.toml").write_text(text_of())
    invoke("models", "promote", bundle.path)
    done = invoke("refresh", tmp_path / "wrist.toml", "--data", data, "--epochs", 2, "--json", status=None)
    told = json.loads(done.stdout)
    assert told["champion"] == bundle.id
    assert told["verdict"]["sessions"] == told["held_out"] > 0


@pytest.mark.parametrize(
    ("skin", "words"),
    [
        ({"bridge_ms": 500}, "step 1 `join`, intake bridge of input `eda` is 0 in the bundle and 2 in the recipe"),
        ({"sample": "hold"}, 'sample of input `eda` is "linear" in the bundle and "hold" in the recipe'),
        (
            {"steps": [{"step": "scale"}]},
            r'input.steps\]\] of input `eda` is \[\] in the bundle and \["scale"\] in the recipe',
        ),
        ({"required": True}, "required of input `eda` is false in the bundle and true in the recipe"),
        ({"lateness_s": 3}, ""),
    ],
)
def test_a_bundle_says_which_input_differs(bundle: Bundle, skin: dict[str, Any], words: str) -> None:
    other = parse_recipe(text_of(skin))
    if not words:  # how long it is waited for is no part of a model
        bundle.check(other)
        return
    with pytest.raises(BundleError, match=words):
        bundle.check(other)


def test_training_on_what_is_missing_is_refused(recipe: Recipe) -> None:
    header = Header("s1", 0, replace(recipe.input_format(), rows=2))
    data = np.array([[1, np.nan], [2, 3]], np.float32)
    window = Window(header, 0, 2, 0, 1, data, absent=("eda",))
    with pytest.raises(TrainingError, match=r"session s1, window from sample 0: eda missing.*make `mask` the last"):
        to_samples([Example(window, "calm", "s1", "S1", "", {}, {})], ("calm",), "channels_last")
    with pytest.raises(TrainingError, match="a number is not finite behind the chain"):
        to_samples([Example(replace(window, absent=()), "calm", "s1", "S1", "", {}, {})], ("calm",), "channels_last")


def test_an_input_that_was_never_there_cannot_be_learned(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for subject in range(4):
        for label in CLASSES:
            write_session(tmp_path / f"{label}{subject}", label, subject, "eda")
    with pytest.raises(KymoError, match="standardise: eda missing in all windows that are learned from"):
        train(parse_recipe(text_of()), TrainRequest((str(tmp_path),), out=tmp_path / "b"))


def test_first_samples_of_each_input_are_heard(recipe: Recipe) -> None:
    """In another unit than what was learned; inputs come by turns, each at its rate."""
    learned = {"bvp bvp": [0.5, 1.5, 3.0], "eda eda": [0.9, 4.2, 4.5]}
    for factor, doubted in ((1.0, False), (1e4, True)):
        first, told = FirstSamples(), None
        for second in range(0, SECONDS, 2):
            for stream, rate, size in (("bvp", PULSE, 1.0), ("eda", SKIN, factor)):
                header = Header("s", 0, signal_format(stream, (stream,), Fraction(rate)))
                chunk = Chunk(header, second * rate, np.full((2 * rate, 1), size, np.float32))
                told = told if told is not None else first.doubt(learned, chunk, recipe)
        assert told is not None
        assert ("eda eda of about" in told) == doubted


def test_a_mask_needs_what_a_join_gives() -> None:
    with pytest.raises(KymoError, match=r"mask: no channel of a \[join\] comes to it"):
        parse_recipe(
            RecipeText(
                'name = "one"\n'
                + toml(
                    {
                        "input": [{"stream": "a", "rate_hz": 4, "channels": ["a"]}],
                        "window": {"length_s": 2, "hop_s": 1, "steps": [{"step": "mask"}]},
                    }
                )
            )
        )
    chosen = parse_recipe(text_of(steps=[{"step": "select", "channels": ["eda"]}]))
    mask = chosen.chain.specs[-1]
    assert isinstance(chosen.chain, Chain)
    assert isinstance(mask, PerWindow)
    assert isinstance(mask.spec, Mask)
    assert (mask.spec.inputs, mask.spec.groups) == (("eda",), (("eda",),))
