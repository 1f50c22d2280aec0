"""The README and CONTRIBUTING as they stand: the walk-through, live too, the Python of docs/python.md, the two devices of docs/joining.md,
the two examples, notebooks.
Not run: `make` and what installs; those are CI itself."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from checks import check_per_window, check_spec
from documents import ROOT, blocks, commands
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import cuttings, imu, recordings, samples

from kymo.models import zoo
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.models.training.train import TrainRequest, train
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.registry import STEPS
from kymo.streams.errors import FormatError
from kymo.streams.readers import read

WALK, LIVE = "Your own CSV in five minutes", "The same, live"


PYTHON = "docs/python.md"


#: What the README must show that differs from machine to machine, as patterns.
VARYING = ((r"@[0-9a-f]{16}", "@…"), (r"\S+/registry/\S+", "…/registry/…"), (r"\d+(\.\d+)? (ms|in)\b", "N"))


@dataclass(frozen=True)
class Place:
    """A folder with what the walk-through made, and how to run something there."""

    folder: Path
    env: dict[str, str]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words, cwd=self.folder, env=self.env | more, capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done


def lines(text: str) -> list[str]:
    """A text's lines, without what is empty at their ends, and with what varies left out."""
    for pattern, instead in VARYING:
        text = re.sub(pattern, instead, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def place_of(folder: Path) -> Place:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KYMO_")}
    return Place(folder, kept | {"PATH": path, "KYMO_HOME": str(folder / "home"), "COLUMNS": "100"})


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, str]]:
    """The walk-through, run once: the place, and what each command printed."""
    pytest.importorskip("torch", reason="training needs torch")
    place = place_of(tmp_path_factory.mktemp("motions"))
    (script,) = [block.text for block in blocks("README.md", "python", WALK)]
    name = re.match(r"# (\w+\.py)", script)
    assert name is not None
    (place.folder / name[1]).write_text(script, encoding="utf-8")
    printed = {}
    for words in commands("README.md", WALK):
        if words[0] not in ("make", "source"):
            done = place.run(*words)
            printed[" ".join(words[:2])] = done.stdout
    return place, printed


@pytest.mark.slow
def test_the_walk_through_prints_what_the_readme_says(walked: tuple[Place, dict[str, str]]) -> None:
    place, printed = walked
    init, train = (block.text for block in blocks("README.md", "text", WALK))
    assert lines(printed["kymo init"]) == lines(init)
    (recipe,) = blocks("README.md", "toml", WALK)
    assert (place.folder / "recipes" / "motions.toml").read_text(encoding="utf-8") == recipe.text
    assert lines(printed["kymo train"])[-2:] == lines(train)[-2:]


@pytest.mark.slow
def test_events_of_the_walk_through(walked: tuple[Place, dict[str, str]]) -> None:
    (shown,) = blocks("README.md", "json", WALK)
    events = [json.loads(line) for line in walked[1]["kymo run"].splitlines()]
    assert len(events) == 11
    for said, event in zip(map(json.loads, shown.text.splitlines()), events, strict=False):
        for key in ("bundle", "probability"):
            assert said.pop(key)
        assert said.items() <= event.items()


@pytest.mark.slow
def test_python_examples(walked: tuple[Place, dict[str, str]]) -> None:
    examples, outputs = blocks(PYTHON, "python"), blocks(PYTHON, "text")
    assert examples
    # One behind the other in a process: each stands for itself, but none has to load torch again.
    each = "import sys\nfor text in sys.argv[1:]:\n    exec(text, {'__name__': '__main__'})\n    print('=====')"
    printed = walked[0].run(sys.executable, "-c", each, *(example.text for example in examples)).stdout.split("=====\n")
    for came, output in zip(printed[:-1], outputs, strict=True):
        # Another processor may learn a little otherwise: the numbers may differ, the windows and clear labels may not.
        strip = [re.sub(r"(unknown|waving|shaking)? +\d+%", "", line) for line in lines(came)]
        assert strip == [re.sub(r"(unknown|waving|shaking)? +\d+%", "", line) for line in lines(output.text)]


@pytest.mark.slow
def test_the_same_live(walked: tuple[Place, dict[str, str]], broker: str, prefix: str) -> None:
    place, printed = walked
    up, replay, events, doctor = commands("README.md", LIVE)
    _, sent, explained = (block.text for block in blocks("README.md", "text", LIVE))
    offline = sorted(without_time(line) for line in printed["kymo run"].splitlines())
    with served(place, up, broker, prefix) as settings:
        done = place.run(*replay, **settings).stdout
        assert lines(done.replace(f"{prefix}.*", "kymo.*"))[:2] == lines(sent)[:2]
        assert online(place, events, settings, len(offline)) == offline
        assert "events   11 of 11 windows have one" in explained
        assert set(explained.splitlines()[:2]) <= set(place.run(*doctor, **settings).stdout.splitlines())


@contextlib.contextmanager
def served(place: Place, up: list[str], broker: str, prefix: str) -> Iterator[dict[str, str]]:
    """While a command serves, the settings with which others reach the same topics."""
    settings = {"KYMO_BROKERS": broker, "KYMO_PREFIX": prefix, "KYMO_METRICS_PORT": "0"}
    log = place.folder / "up.log"
    with log.open("w") as out:
        running = subprocess.Popen(up, cwd=place.folder, env=place.env | settings, stdout=out, stderr=out)
    try:
        for _ in attempts(running, log):
            if "is ready" in log.read_text():
                break
        yield settings
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0, log.read_text()


def online(place: Place, events: list[str], settings: dict[str, str], count: int) -> list[str]:
    """Events as soon as there are so many, sorted, without their time."""
    for _ in range(600):
        published = place.run(*events, **settings).stdout.splitlines()
        if len(published) >= count:
            break
    return sorted(without_time(line) for line in published)


JOINING, TWO = "docs/joining.md", "Two files, one recipe, one command"


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, str]]:
    """The page of two devices, run once: the place, and what each command printed."""
    pytest.importorskip("torch", reason="training needs torch")
    place = place_of(tmp_path_factory.mktemp("effort"))
    (script,), (recipe,) = (blocks(JOINING, language, TWO) for language in ("python", "toml"))
    (place.folder / "make_devices.py").write_text(script.text, encoding="utf-8")
    (place.folder / "recipes").mkdir()
    (place.folder / "recipes" / "effort.toml").write_text(recipe.text, encoding="utf-8")
    printed = {}
    for words in commands(JOINING, TWO) + commands(JOINING, CLOCKS):
        printed[" ".join(words[:3])] = place.run(*words).stdout
    return place, printed


CLOCKS = "Clocks that were never set together"


@pytest.mark.slow
def test_two_devices(joined: tuple[Place, dict[str, str]]) -> None:
    place, printed = joined
    offset_ms = float(re.search(r"offset_ms = (\d+)", (place.folder / "recipes" / "effort.toml").read_text())[1])  # type: ignore[index]
    assert abs(offset_ms - 3000) < 7  # what the page says of it
    (shown,) = blocks(JOINING, "text", CLOCKS)
    without_numbers = [
        re.sub(r"[\d.]+", "N", text).replace("+", "-") for text in (shown.text, printed["kymo prepare clocks"])
    ]
    assert without_numbers[0] == without_numbers[1]
    assert (place.folder / "clocks.png").stat().st_size > 10_000
    events = {event["id"]: event for event in map(json.loads, printed["kymo run effort"].splitlines())}
    assert len(events) == 35
    (shown,) = blocks(JOINING, "json", TWO)
    for said in map(json.loads, shown.text.splitlines()):
        event = events[said["id"]]
        assert (said["label"], said.get("absent", [])) == (event["label"], event.get("absent", []))
        assert said["missing"] == pytest.approx(event["missing"], abs=0.01)
    silent = [event for event in events.values() if 65 <= event["start_index"] / 50 <= 105]
    assert all(event["absent"] == ["chest"] for event in silent)


@pytest.mark.slow
def test_two_devices_live(joined: tuple[Place, dict[str, str]], broker: str, prefix: str) -> None:
    place, printed = joined
    up, replay, events, doctor = commands(JOINING, "Live")
    (explained,) = blocks(JOINING, "text", "Live")
    offline = sorted(without_time(line) for line in printed["kymo run effort"].splitlines())
    with served(place, up, broker, prefix) as settings:
        place.run(*replay, **settings)
        assert online(place, events, settings, len(offline)) == offline
        assert place.run(*doctor, **settings).stdout.splitlines()[-4:] == explained.text.splitlines()


@pytest.mark.slow
def test_a_few_lines_train_and_serve(tmp_path: Path, broker: str, prefix: str) -> None:
    pytest.importorskip("tensorflow", reason="training needs tensorflow")
    place, random = place_of(tmp_path), np.random.default_rng(0)
    for name, side in (("training_data_guitar", -1), ("training_data_yoga", 1), ("new", 1)):
        body = random.uniform(200, 400, (8, 1, 17, 2)) + [side * 300, 0] * (np.arange(17) < 5)[:, None]  # leant over
        rows = np.repeat(body, 9, axis=1).reshape(-1, 2).tolist()
        text = "".join(f"{chr(65 + i % 17)},{x:.0f},{y:.0f}\n" for i, (x, y) in enumerate(rows))
        (tmp_path / f"{name}.csv").write_text(f"keypoint,x,y\n{text}")
    recipe = (ROOT / "recipes" / "activity.toml").read_text()
    small = {"[128, 128, 128]": "[8, 8, 8]", "epochs = 40": "epochs = 30", "folds = 5": "folds = 0"}
    for old, new in small.items():
        assert old in recipe
        recipe = recipe.replace(old, new)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "activity.toml").write_text(recipe)
    (block,) = blocks("docs/activity.md", "python", "Train and serve")
    assert len(block.text.splitlines()) < 10
    with served(place, [sys.executable, "-c", block.text], broker, prefix) as settings:
        place.run("kymo", "replay", "new.csv", "--recipe", "activity", "--speed", "max", **settings)
        events = online(place, ["kymo", "events", "--recipe", "activity"], settings, 8)
    assert events == sorted(map(without_time, place.run("kymo", "run", "activity", "new.csv").stdout.splitlines()))
    assert len(events) == 8


def without_time(event: str) -> str:
    """An event's line without the one field that may differ."""
    return re.sub(r'"emitted_ns":\d+', "", event)


def attempts(running: subprocess.Popen[bytes], log: Path, most: int = 900) -> Iterator[int]:
    """Ten a second, as long as the process runs."""
    for attempt in range(most):
        yield attempt
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(0.1)
            break
    raise AssertionError(f"in vain: {log.read_text()}")


STEP, MODEL = "Adding a step", "Adding a model"


def example(heading: str, name: str, folder: Path) -> ModuleType:
    """The Python block under a heading, imported as a module of this name."""
    (block,) = blocks("CONTRIBUTING.md", "python", heading)
    (folder / f"{name}.py").write_text(block.text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def norm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return example(STEP, "norm_of_the_example", tmp_path_factory.mktemp("step")).Norm


@pytest.fixture
def _registered(norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "norm", norm)


@pytest.mark.usefixtures("_registered")
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_the_step_keeps_the_laws(norm: Any, data: st.DataObject) -> None:
    fmt = imu(3, data.draw(st.sampled_from(["float32", "float64", "int16"])))
    runs = data.draw(recordings(fmt))
    chunks = data.draw(cuttings(runs))
    kills = data.draw(st.lists(st.integers(0, len(chunks)), max_size=3))
    check_spec(norm(), fmt, runs, chunks, kills)
    check_per_window(norm(), fmt, runs[0])


def test_the_numbers_of_the_step(norm: Any) -> None:
    fmt = imu(9, "float64", units=("g",) * 9)
    data = samples(fmt, 50, 1)
    assert np.allclose(norm().apply(data, fmt)[:, 0], np.linalg.norm(data, axis=1), rtol=1e-12)
    assert norm("total").output({"imu": fmt}).channels == ("total",)
    assert norm().output({"imu": fmt}).units == ("g",)
    with pytest.raises(FormatError, match="the units g, T"):
        norm().output({"imu": imu(2, units=("g", "T"))})


@pytest.mark.usefixtures("_registered")
def test_the_step_stands_in_a_recipe() -> None:
    (block,) = blocks("CONTRIBUTING.md", "toml", STEP)
    recipe = parse_recipe(
        'name = "x"\n[[input]]\nstream = "imu"\nrate_hz = 50\nchannels = ["x", "y", "z"]\n'
        f"{block.text}[window]\nlength_s = 2\nhop_s = 1\n"
    )
    assert (recipe.output_format().rows, recipe.output_format().shape) == (100, (1,))


def test_the_model_becomes_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    example(MODEL, "softmax_of_the_example", tmp_path)
    monkeypatch.setitem(zoo.ARCHITECTURES, "softmax_regression", "softmax_of_the_example:SoftmaxRegression")
    (block,) = blocks("CONTRIBUTING.md", "toml", MODEL)
    recipe = parse_recipe(
        'name = "tilt"\n[[input]]\nstream = "sensor"\nrate_hz = 10\nchannels = ["x", "y"]\n'
        f'[window]\nlength_s = 1\nhop_s = 1\n[[window.steps]]\nstep = "standardise"\n{block.text}'
    )
    rng = np.random.default_rng(0)
    for number in range(8):  # a constant of either sign in noise: easy to tell apart
        level, label = (1, "up") if number % 2 else (-1, "down")
        rows = (f"{x:.3f},{y:.3f},{label}" for x, y in rng.normal(level, 0.3, (60, 2)))
        (tmp_path / f"r{number}.csv").write_text("\n".join(["x,y,label", *rows]))
    trained = train(recipe, TrainRequest((str(tmp_path),), out=tmp_path / "bundle"))
    assert trained.scores["accuracy"] == 1.0
    assert (trained.bundle.layout, trained.bundle.shape) == ("channels_last", (10, 2))
    classifier = Classifier(trained.bundle, recipe.name, 0.5)
    for event in run(recipe, read([tmp_path / "r1.csv"], recipe.read_options()), classifier):
        assert event.label == "up"


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def printed_by() -> Iterator[Callable[[str], str]]:
    """What a cell prints; one kernel for all notebooks: to load torch takes longer than most of their cells."""
    for library in ("ipykernel", "matplotlib", "torch"):
        pytest.importorskip(library)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KYMO_SMALL": "1"}
    manager, client = importlib.import_module("jupyter_client.manager").start_new_kernel(
        startup_timeout=300, env=environment
    )

    def execute(source: str) -> str:
        printed = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = client.execute_interactive(source, timeout=500, allow_stdin=False, output_hook=hear)["content"]
        assert reply["status"] == "ok", "\n".join([source, *printed, *reply.get("traceback", [])])
        return "".join(printed)

    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, printed_by: Callable[[str], str]) -> None:
    notebook = pytest.importorskip("nbformat").read(path, as_version=4)
    printed_by("%reset -f")
    printed = "".join(printed_by(cell.source) for cell in notebook.cells if cell.cell_type == "code")
    right, of = map(int, re.findall(r"(\d+) of (\d+) windows are right", printed)[0])
    assert right / of > 0.5  # guessing gives a third


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small_valid_and_honest(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "recordings are synthetic" in notebook.cells[0].source
    drawn = [c for c in notebook.cells if c.cell_type == "code" and "plt.title" in c.source]
    assert len(drawn) >= {"own_data": 1}.get(path.stem, 4)
    assert all("SYNTHETIC" in cell.source for cell in drawn)
    for cell in drawn:  # the figure is there for those who only read
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
