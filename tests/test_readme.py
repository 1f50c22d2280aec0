"""The README as it stands: its walk-through in an empty folder, the same live, and the Python of docs/python.md. Not
run: `make` and what installs; those are CI itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from documents import blocks, commands

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
        """A command of the README; it must succeed."""
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


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, str]]:
    """The walk-through, run once: the place, and what each command printed."""
    pytest.importorskip("torch", reason="training needs torch")
    folder = tmp_path_factory.mktemp("motions")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KYMO_")}
    place = Place(folder, kept | {"PATH": path, "KYMO_HOME": str(folder / "home"), "COLUMNS": "100"})
    (script,) = [block.text for block in blocks("README.md", "python", WALK)]
    name = re.match(r"# (\w+\.py)", script)
    assert name is not None
    (folder / name[1]).write_text(script, encoding="utf-8")
    printed = {}
    for words in commands("README.md", WALK):
        if words[0] not in ("make", "source"):
            done = place.run(*words)
            printed[" ".join(words[:2])] = done.stdout
    return place, printed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_walk_through_prints_what_the_readme_says(walked: tuple[Place, dict[str, str]]) -> None:
    place, printed = walked
    init, train = (block.text for block in blocks("README.md", "text", WALK))
    assert lines(printed["kymo init"]) == lines(init)
    (recipe,) = blocks("README.md", "toml", WALK)
    assert (place.folder / "recipes" / "motions.toml").read_text(encoding="utf-8") == recipe.text
    assert lines(printed["kymo train"])[-2:] == lines(train)[-2:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_events_of_the_walk_through(walked: tuple[Place, dict[str, str]]) -> None:
    (shown,) = blocks("README.md", "json", WALK)
    events = [json.loads(line) for line in walked[1]["kymo run"].splitlines()]
    assert len(events) == 11
    for said, event in zip(map(json.loads, shown.text.splitlines()), events, strict=False):
        for key in ("bundle", "probability"):
            assert said.pop(key)
        assert said.items() <= event.items()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_python_examples(walked: tuple[Place, dict[str, str]]) -> None:
    examples, outputs = blocks(PYTHON, "python"), blocks(PYTHON, "text")
    assert examples
    for example, output in zip(examples, outputs, strict=True):
        printed = walked[0].run(sys.executable, "-c", example.text).stdout
        # Another processor may learn a little otherwise: the numbers may differ, the windows and clear labels may not.
        strip = [re.sub(r"(unknown|waving|shaking)? +\d+%", "", line) for line in lines(printed)]
        assert strip == [re.sub(r"(unknown|waving|shaking)? +\d+%", "", line) for line in lines(output.text)]


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_live(walked: tuple[Place, dict[str, str]], broker: str, prefix: str) -> None:
    place, printed = walked
    settings = {"KYMO_BROKERS": broker, "KYMO_PREFIX": prefix, "KYMO_METRICS_PORT": "0"}
    up, replay, events, doctor = commands("README.md", LIVE)
    _, sent, explained = (block.text for block in blocks("README.md", "text", LIVE))
    log = place.folder / "up.log"
    with log.open("w") as out:
        running = subprocess.Popen(up, cwd=place.folder, env=place.env | settings, stdout=out, stderr=out)
    try:
        for _ in attempts(running, log):
            if "is ready" in log.read_text():
                break
        done = place.run(*replay, **settings).stdout
        assert lines(done.replace(f"{prefix}.*", "kymo.*"))[:2] == lines(sent)[:2]
        offline = sorted(without_time(line) for line in printed["kymo run"].splitlines())
        for _ in attempts(running, log):
            online = sorted(without_time(line) for line in place.run(*events, **settings).stdout.splitlines())
            if len(online) >= len(offline):
                break
        assert online == offline
        assert "events   11 of 11 windows have one" in explained
        assert set(explained.splitlines()[:2]) <= set(place.run(*doctor, **settings).stdout.splitlines())
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0, log.read_text()


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
