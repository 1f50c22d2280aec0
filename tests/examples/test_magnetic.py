"""The examples: a loop in Python, and magnetic distortion."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from documents import ROOT

from kymo.examples import magnetic
from kymo.examples.loop import LIVE, RECIPE, LiveScore
from kymo.models.bundle import load_bundle
from kymo.models.registry import SHIPPED
from kymo.processors.recipe.load import load_recipe, parse_recipe
from kymo.streams.events import Event
from kymo.streams.readers import read
from kymo.streams.settings import Settings

#: What the shipped bundle says of the flight: labels, each with how many windows in a row; digest of the events' ids.
GOLDEN = json.loads((ROOT / "tests/golden/magnetic_drone.json").read_text())


#: The episodes of the plan: from and to, s of the flight; their class.
EPISODES = ((70, 100, "low"), (165, 185, "high"), (260, 305, "low"), (390, 415, "high"), (520, 560, "high"))


Judged = list[tuple[Event, str, bool]]


@pytest.fixture(scope="module")
def drone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flight as MCAP, its labels beside it."""
    path = tmp_path_factory.mktemp("magnetic") / "drone.mcap"
    magnetic.make_drone(path)
    return path


@pytest.fixture(scope="module")
def judged(drone: Path) -> Judged:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KYMO_HOME", str(drone.parent / "home"))
        return magnetic.offline(drone)


def runs(labels: list[str]) -> list[list[object]]:
    """Labels, each with how many there are in a row."""
    return [[label, len(list(group))] for label, group in itertools.groupby(labels)]


def test_the_flight_gives_the_golden_events(judged: Judged) -> None:
    assert runs([event.label for event, _, _ in judged]) == GOLDEN["labels"]
    digest = hashlib.sha256("\n".join(event.id for event, _, _ in judged).encode()).hexdigest()
    assert digest == GOLDEN["ids"]
    assert {event.bundle for event, _, _ in judged} == {load_bundle(str(SHIPPED / "magnetic")).id}


def test_every_episode_is_found_and_nothing_else(judged: Judged) -> None:
    origin = judged[0][0].start_ns
    truths = {truth for _, truth, _ in judged}
    assert truths == {"none", "low", "high"}
    for event, truth, whole in judged:
        start_s, end_s = (event.start_ns - origin) / 1e9, (event.end_ns - origin) / 1e9
        wanted = [label for a, b, label in EPISODES if a + 1 <= start_s and end_s <= b]
        if wanted:
            assert (truth, whole, event.label) == (wanted[0], True, wanted[0]), event.id
        if whole and truth == "none":
            assert event.label == "none", event.id


def test_the_shipped_bundle_is_of_the_recipe() -> None:
    recipe = load_recipe("magnetic")
    bundle = load_bundle(str(SHIPPED / "magnetic"))
    bundle.check(recipe)
    assert bundle.manifest["architecture"]["name"] == recipe.model.architecture == "ast"  # type: ignore[union-attr]
    assert sorted(bundle.labels) == ["high", "low", "none"]


def test_a_replay_gives_the_same_events_live(
    drone: Path, judged: Judged, broker: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kymo.streams.kafka.admin import ensure_topics
    from kymo.streams.topics import Names

    changes = {"KYMO_BROKERS": broker, "KYMO_PREFIX": prefix, "KYMO_HOME": str(tmp_path / "home")}
    for name, value in (changes | {"KYMO_METRICS_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    settings, said = Settings.from_env(), list[str]()
    ensure_topics(settings, Names(prefix))
    events = magnetic.live(settings, drone, 100.0, len(judged), said.append)
    result = magnetic.verdict(events, judged, judged[0][0].bundle, said.append)
    assert result["ok"], said
    assert (result["events"], result["twice"], result["missing"], result["unlike_offline"]) == (len(judged), 0, 0, 0)


def test_the_verdict_sees_what_is_wrong(judged: Judged) -> None:
    bundle, say = judged[0][0].bundle, list[str]().append
    events = [event for event, _, _ in judged]
    assert magnetic.verdict(events, judged, bundle, say)["ok"]
    assert not magnetic.verdict(events[1:], judged, bundle, say)["ok"]
    assert not magnetic.verdict([*events, events[0]], judged, bundle, say)["ok"]
    assert not magnetic.verdict(events, judged, "magnetic@another", say)["ok"]
    wrong = [(event, "none" if whole else truth, whole) for event, truth, whole in judged]
    assert magnetic.verdict(events, wrong, bundle, say)["accuracy"] < magnetic.CHECKED


def test_events_are_counted_by_bundle() -> None:
    recordings = list(read((LIVE,), parse_recipe(RECIPE).read_options()))
    live, (first, second) = LiveScore({r.session: r.labels[0].label for r in recordings}), recordings[::39]
    event = Event(
        "a", "loop", "loop@1", first.session, "imu", 0, 0, 1, first.labels[0].label, 0.9, emitted_ns=5 * 10**9
    )
    live.add(event)
    live.add(replace(event, id="b", label=second.labels[0].label))
    live.add(replace(event, id="c", session="somebody else's"))
    live.add(replace(event, id="d", bundle="loop@2", emitted_ns=9 * 10**9))
    live.add(replace(event, id="d", bundle="loop@2", emitted_ns=8 * 10**9))
    assert live.score("loop@1") == {"bundle": "loop@1", "windows": 2, "accuracy": 0.5}
    assert live.score("loop@2") == {"bundle": "loop@2", "windows": 2, "accuracy": 1.0}
    assert live.score("loop@3") == {"bundle": "loop@3", "windows": 0, "accuracy": 0.0}
    assert (live.repeated, live.first_s("loop@2", 6 * 10**9), live.first_s("loop@3", 0)) == (1, 2.0, None)
