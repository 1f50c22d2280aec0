"""`make physio`: a listener's signals through Kafka, as frames."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from documents import ROOT, SHARED
from verbs import invoke

from kymo.deploy.children import kymo_environment
from kymo.examples.physio import Screen, newest_ns, physio, recipe_text, signals_of, write_session
from kymo.lab.look.film import frames_of
from kymo.lab.synth.listeners import Part, simulate_parts, write_e4
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.steps.images import Encode
from kymo.streams.chunk import Array, Chunk, Format, Header
from kymo.streams.readers import read

pytest.importorskip("neurokit2", reason="the extra `physio` is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the recipe `listener`, smaller, learned from four simulated people."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("listener")
    text = (ROOT / "recipes" / "listener.toml").read_text()
    for key, value in {"length_s": 40, "folds": 0, "epochs": 1}.items():
        text = re.sub(rf"(?m)^{key} = \d+", f"{key} = {value}", text)
    (folder / "listener.toml").write_text(text)
    for person in range(4):
        parts = [Part(80, 4, 65, "classical"), Part(80, 6, 70, "instrumental"), Part(80, 9, 75, "pop")]
        write_e4(folder / "study" / f"P{person}", simulate_parts(parts, person), parts)
    invoke("train", folder / "listener.toml", "--data", folder / "study", "--out", folder / "bundle")
    return folder / "bundle"


@pytest.mark.slow
def test_the_recipe_listener_learns_from_signals_and_gives_events(bundle: Path) -> None:
    done = invoke("run", bundle.parent / "listener.toml", bundle.parent / "study" / "P0", "--bundle", bundle)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["start_index"] for event in events] == [80 * i for i in range(1 + (240 - 40) // 20)]
    assert {*events[0]["probabilities"]} == {"classical", "instrumental", "pop"}


def test_the_simulated_session_is_what_its_recipe_takes(tmp_path: Path) -> None:
    signals, start_ns, labels = signals_of(None)
    assert all(stream.endswith(".simulated") for stream in signals)
    assert [label.label for label in labels] == ["classical", "instrumental", "pop"]
    write_session(tmp_path / "listener", signals, start_ns, labels)
    recipe = parse_recipe(recipe_text(signals))
    (recording,) = read([str(tmp_path / "listener")], recipe.read_options())
    fmt, frames = frames_of(recording, recipe)
    assert (fmt.stream, fmt.rate, labels[-1].end_ns) == ("animation", 1, recording.end_ns)
    assert len([*frames]) == 360 - 30
    first = Chunk(Header("s", recording.start_ns, fmt), 0, np.empty(1, object))
    assert newest_ns(first) == recording.start_ns + 30 * 10**9


def test_of_a_workbook_the_conductance_is_real() -> None:
    pytest.importorskip("openpyxl")
    workbook = SHARED / "data" / "physio_anu" / "P11.xlsx"
    if not workbook.is_file():
        pytest.skip("shared/data/physio_anu is absent")
    signals, start_ns, labels = signals_of(workbook)
    assert list(signals) == ["eda", "bvp.simulated", "temperature.simulated", "pupil.simulated"]
    assert (start_ns, signals["eda"][1]) == (1527725335 * 10**9, pytest.approx(0.184412))
    assert [label.label for label in labels] == ["instrumental"] * 4 + ["pop"] * 4


def test_a_frame_in_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pixels: Array = np.full((1, 8, 8, 3), (200, 30, 40), np.uint8)
    (image,) = Encode(quality=95).apply(pixels, Format("video", ("r", "g", "b"), (), 1, "uint8", (8, 8, 3)))  # type: ignore[arg-type]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    screen = Screen()
    for caption in ("00:01", "00:02"):
        screen.show(np.array([image], object), caption)
    first, _, second = capsys.readouterr().out.partition("\x1b[29A")
    assert first.count("▀") == second.count("▀") == 56 * 28
    assert "38;2;200;3" in first
    assert ("00:01" in first, "00:02" in second) == (True, True)


def test_recipe_and_bundle_go_together() -> None:
    result = CliRunner().invoke(physio, ["--bundle", "x"])
    assert (result.exit_code, "--recipe and --bundle go together" in result.output) == (2, True)


@pytest.mark.slow
@pytest.mark.broker
def test_events_of_a_bundle_come_among_the_frames(tmp_path: Path, bundle: Path) -> None:
    recipe = ["--recipe", str(bundle.parent / "listener.toml"), "--bundle", str(bundle)]
    command = [sys.executable, "-m", "kymo.examples.physio", "--speed", "100", "--film", "a.gif", "--json", *recipe]
    done = subprocess.run(
        command, cwd=tmp_path, env=kymo_environment({}), capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["frames"], result["events"]) == (330, 1 + (360 - 40) // 20)


@pytest.mark.slow
@pytest.mark.broker
def test_frames_come_through_kafka_into_a_film(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kymo.examples.physio", "--speed", "300", "--film", "a.gif", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=kymo_environment({}), capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["frames"], result["events"], result["film"]) == (330, 0, "a.gif")
    assert [line.split("  ")[-1] for line in done.stderr.splitlines() if line.endswith("begins")] == [
        "classical begins",
        "instrumental begins",
        "pop begins",
    ]
    assert (tmp_path / "a.gif").stat().st_size > 10**5
