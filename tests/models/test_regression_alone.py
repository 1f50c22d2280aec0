"""A recipe without classes: numbers alone, from training to report and events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import kymo
from kymo.models.predict import Memory, Predictor
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.errors import RecipeError
from kymo.streams.events import Event

RECIPE = """
name = "tiny"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["x", "y"]
[window]
length_s = 2
hop_s = 1
[[window.steps]]
step = "standardise"
[model]
{model}
[labels]
classes = false
[[heads]]
name = "seconds_10k"
kind = "number"
[train]
split = "subject"
folds = 2
epochs = 2
"""


@pytest.mark.parametrize(
    "model",
    [
        'architecture = "minirocket"\nfeatures = 84',
        'architecture = "spectrogram_cnn"',
        'architecture = "recurrent"\nunits = 4',
    ],
)
def test_from_training_to_report_and_events(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cnn" in model:
        pytest.importorskip("torch")
    if "recurrent" in model:
        pytest.importorskip("tensorflow")
    monkeypatch.setenv("KYMO_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny.toml").write_text(RECIPE.format(model=model))
    for person in range(8):
        values = np.random.default_rng(person).standard_normal((60, 2)) * (1 + person)
        rows = [f"{i / 10},{x:.3f},{y:.3f},p{person},{2000 + 100 * person}" for i, (x, y) in enumerate(values)]
        (tmp_path / f"s{person}.csv").write_text("\n".join(["t,x,y,subject,seconds_10k", *rows]) + "\n")
    files, recipe, bundle = (
        [str(tmp_path / f"s{i}.csv") for i in range(8)],
        str(tmp_path / "tiny.toml"),
        str(tmp_path / "b"),
    )
    run = CliRunner().invoke
    done = run(kymo.cli, ["train", recipe, "--data", *files, "--out", bundle])
    assert done.exit_code == 0, done.output
    assert "seconds_10k:" in done.stdout
    assert "accuracy" not in done.stdout
    page = (tmp_path / "b" / "report" / "report.html").read_text()
    assert "seconds_10k" in page
    assert "Recordings right" not in page
    assert "Confusion" not in page
    scores = json.loads(run(kymo.cli, ["evaluate", recipe, "--data", *files, "--bundle", bundle, "--json"]).stdout)
    assert (scores["n"], scores["windows"], scores["heads"]["seconds_10k"]["n"]) == (8, 40, 8)
    assert "accuracy" not in scores
    done = run(kymo.cli, ["evaluate", recipe, "--data", *files, "--bundle", bundle, "--report", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    assert "seconds_10k: 8 recordings: mean error" in done.stdout
    assert "accuracy" not in done.stdout
    events = [
        json.loads(line) for line in run(kymo.cli, ["run", recipe, files[3], "--bundle", bundle]).stdout.splitlines()
    ]
    assert len(events) == 2 * 5
    assert {event["label"] for event in events} == {""}
    assert all(event["values"].keys() == {"seconds_10k"} for event in events)
    assert events[0]["values"] == events[1]["values"]


def numbers(pool: str = "") -> Recipe:
    """A recipe of two numbers, pooled where asked."""
    text = RECIPE.format(model=f'architecture = "minirocket"\n{pool}')
    return parse_recipe(text.replace("[train]", '[[heads]]\nname = "cadence"\nkind = "number"\n[train]'))


@pytest.mark.parametrize("kind", ["mean", "hmm"])
def test_pooled_numbers_do_not_mix(kind: str) -> None:
    """The window's own event says what its heads say."""
    recipe = numbers(f'pool = {{kind = "{kind}", windows = 2}}')

    def classify(windows: Sequence[Any]) -> list[Event]:
        said = [{"seconds_10k": 40.0 + 2 * n, "cadence": 3.0 + n} for n in windows]
        return [
            Event(f"{n}", "tiny", "b", "s", "imu", n, n, n + 1, "", 0.0, {}, v, head)
            for n, values in zip(windows, said, strict=True)
            for head, v in (("", values), *((name, {name: value}) for name, value in values.items()))
        ]

    heads = [SimpleNamespace(name=head.name) for head in recipe.heads]
    learned = {"kind": "hmm", "transitions": [[1.0]], "start": [1.0]}
    bundle = SimpleNamespace(heads=heads, chain=recipe.chain, state=0, id="b", manifest={"pool": learned})
    fake: Any = SimpleNamespace(bundle=bundle, classify=classify)
    predictor, memory = Predictor(fake, recipe), Memory()
    windows: Any = [0, 1, 2]
    *_, (own, *others) = predictor.predict(windows, [memory] * 3)
    last = {"seconds_10k": 43.0, "cadence": 4.5} if kind == "mean" else {"seconds_10k": 44.0, "cadence": 5.0}
    assert own.values == last
    assert [head.values for head in others] == [{name: value} for name, value in last.items()]


def test_without_a_number_there_is_nothing_to_learn() -> None:
    text = RECIPE.format(model='architecture = "minirocket"').replace('kind = "number"', "")
    with pytest.raises(RecipeError, match=r"classes = false.*add \[\[heads\]\] with kind = \"number\""):
        parse_recipe(text)
