"""Fused events beside what plain code makes of all events at once: any order, silence, crashes."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from documents import blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes_made import recipe_text
from scope_lab import SECOND_NS, ItemLife, ItemLog, act
from tables import table
from tiny_models import RECIPE as TINY
from tiny_models import linear_onnx, manifest
from verbs import invoke

from kymo.deploy.up import usable_recipes
from kymo.models.fusion import Fusion
from kymo.models.registry import write_bundle
from kymo.models.registry.manifest import MODEL
from kymo.models.serving.scopes import EventOperator, Finding, Scopes
from kymo.processors.recipe.fusion import EventInputTable, FusionRecipe, FusionTable, load_fusion
from kymo.processors.recipe.load import Recipe, load_recipe, parse_recipe
from kymo.streams.errors import RecipeError
from kymo.streams.events import Event, event_id
from kymo.streams.readers import read

LABELS = ("low", "middle", "high")
GRIDS = {"a": (2.0, 1.0), "b": (2.0, 1.0), "c": (5.0, 2.5), "d": (0.5, 3.0)}  # of each recipe, s


@cache
def member(name: str) -> Recipe:
    return parse_recipe(recipe_text(name, "x y", 10, GRIDS[name], model={"architecture": "spectrogram_cnn"}))


def fusion_of(names: Sequence[str], weights: Sequence[float] = (1, 2, 0.5), least: float = 0.0) -> FusionRecipe:
    inputs = tuple(
        EventInputTable(name, weight=w, lateness_s=3, idle_s=8) for name, w in zip(names, weights, strict=False)
    )
    recipes = tuple(map(member, names))
    return FusionRecipe(name="both", input=inputs, fusion=FusionTable(least), path=None, recipes=recipes)


def events_of(pick: random.Random, session: str, name: str, seconds: float) -> list[Event]:
    """The events of a session by a recipe; some windows have none."""
    length_s, hop_s = GRIDS[name]
    start_s, number, found = pick.choice([0.0, 0.0, 0.3]), 0, list[Event]()
    while number * hop_s + length_s <= seconds:
        if pick.random() < 0.9:
            row = [pick.randint(1, 9) / 10 for _ in LABELS]
            if pick.random() < 0.1:  # sure, or not to be judged
                row = pick.choice([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
            shares = [share / sum(row) if any(row) else 0.0 for share in row]
            start_ns = int((start_s + number * hop_s) * SECOND_NS)
            start = int(number * hop_s * 10)
            found.append(
                Event(
                    event_id(name, session, start),
                    name,
                    f"{name}@1",
                    session,
                    "imu.left",
                    start,
                    start_ns,
                    start_ns + int(length_s * SECOND_NS),
                    LABELS[int(np.argmax(shares))],
                    max(shares),
                    dict(zip(LABELS, shares, strict=True)),
                    missing=pick.choice([0.0, 0.25]),
                )
            )
        number += 1
    return found


def defined(recipe: FusionRecipe, events: Sequence[Event]) -> dict[str, Event]:
    """By id, the fused events of a session, made of all its events at once."""
    first, *others = (table.events for table in recipe.input)
    weights, out = {t.events: t.weight for t in recipe.input}, dict[str, Event]()
    for window in [event for event in events if event.recipe == first]:
        members, absent = [window], []
        for name in others:
            of_name = [e for e in events if e.recipe == name]
            shared = [min(e.end_ns, window.end_ns) - max(e.start_ns, window.start_ns) for e in of_name]
            if max(shared, default=0) > 0:
                members.append(of_name[int(np.argmax(shared))])
            else:
                absent.append(name)
        rows = np.array([list(e.probabilities.values()) for e in members])
        heavy = np.array([weights[e.recipe] for e in members]) * (rows.sum(1) > 0)
        mean = heavy @ rows / heavy.sum() if heavy.any() else np.zeros(3)
        label = LABELS[int(mean.argmax())] if mean.any() and mean.max() >= recipe.fusion.min_probability else "unknown"
        fused = replace(
            window,
            id=f"{window.session}/both/{window.start_index}",
            recipe="both",
            bundle=" + ".join(e.bundle for e in members),
            label=label,
            probability=float(mean.max()),
            probabilities=dict(zip(LABELS, mean.tolist(), strict=True)),
            missing=max(e.missing for e in members),
            absent=absent,
        )
        out[fused.id] = fused
    return out


def same(found: Event, wanted: Event) -> bool:
    """Equal but for the last digits, which rest on the order of a sum."""
    numbers = list(wanted.probabilities.values())
    if found.probabilities != pytest.approx(wanted.probabilities, abs=1e-12):
        return False
    # Where two classes are equally likely, the last digit decides.
    tied = sum(abs(number - max(numbers)) < 1e-9 for number in numbers) > 1
    plain = {"probabilities": {}, "probability": 0.0, "emitted_ns": 0} | ({"label": ""} if tied else {})
    return replace(found, **plain) == replace(wanted, **plain)


def interleaved(pick: random.Random, queues: Sequence[Sequence[Event]]) -> list[Event]:
    """All of some queues, each in its own order."""
    order = [i for i, queue in enumerate(queues) for _ in queue]
    pick.shuffle(order)
    sources = [iter(queue) for queue in queues]
    return [next(sources[i]) for i in order]


FUSED = [("a", "b"), ("a", "b", "c"), ("c", "a"), ("d", "c", "a"), ("a", "d")]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_any_order_gives_what_all_events_at_once_give(seed: int) -> None:
    pick = random.Random(seed)
    recipe = fusion_of(pick.choice(FUSED), least=pick.choice([0.0, 0.4871]))
    seconds = pick.uniform(0, 30)
    queues = [events_of(pick, "s", t.events, pick.choice([seconds, seconds / 2])) for t in recipe.input]
    lines = []
    for _ in range(3):
        stage, found = Fusion(recipe), list[Event]()
        for event in interleaved(pick, queues):
            found += stage.push(event, 0)
            if pick.random() < 0.2:
                stored = json.loads(json.dumps(stage.snapshot()))
                stage = Fusion(recipe)
                stage.restore(stored, 0)
        found += stage.flush()
        assert stage.over
        lines.append([event.to_json() for event in found])
        assert [Event.from_json(line) for line in lines[-1]] == found
    assert lines[0] == lines[1] == lines[2]
    wanted = defined(recipe, [event for queue in queues for event in queue])
    assert [event.id for event in found] == list(wanted)
    assert all(same(event, wanted[event.id]) for event in found)


def test_windows_that_are_the_same_are_fused_with_the_last_of_them() -> None:
    pick = random.Random(3)
    recipe = fusion_of(("a", "b"))
    ours, theirs = ([replace(e, start_ns=e.start_index * 10**8) for e in events_of(pick, "s", n, 9)] for n in "ab")
    theirs = [e for e in theirs if e.start_index in {o.start_index for o in ours}]
    ours = [o for o in ours if o.start_index in {e.start_index for e in theirs}]
    stage = Fusion(recipe)
    for own, other in zip(ours, theirs, strict=True):
        end_ns = own.start_ns + 2 * SECOND_NS
        assert stage.push(replace(own, end_ns=end_ns), 0) == []
        assert len(stage.push(replace(other, end_ns=end_ns), 0)) == 1


def test_a_recipe_that_falls_silent_is_waited_for_then_left_out_and_taken_again() -> None:
    pick = random.Random(1)
    recipe = fusion_of(("a", "b"))  # 2 s windows, 3 s lateness, 8 s idleness
    ours, theirs = (events_of(pick, "s", name, 60) for name in "ab")
    stage, now_ns, found, silent = Fusion(recipe), 10**18, list[tuple[int, Event]](), range(10, 40)
    for number in range(70):
        now_ns += SECOND_NS
        for own in [e for e in ours if e.start_index == 10 * number]:
            found += [(number, event) for event in stage.push(own, now_ns)]
        for other in [e for e in theirs if e.start_index == 10 * number and number not in silent]:
            found += [(number, event) for event in stage.push(other, now_ns)]
        if stage.due_ns is not None and stage.due_ns <= now_ns:
            found += [(number, event) for event in stage.tick(now_ns)]
    absent = {event.start_index // 10 for _, event in found if event.absent}
    delays = {event.start_index // 10: number - event.start_index // 10 for number, event in found}
    missing = set(range(60)) - {e.start_index // 10 for e in theirs}
    assert set(range(11, 38)) <= absent | (set(range(60)) - {e.start_index // 10 for e in ours})
    assert absent <= {*silent, 40} | missing  # it is back with 40, which waited for nobody
    assert max(delay for start, delay in delays.items() if start < 10 or 41 < start < 55) <= 3
    assert {delay for start, delay in delays.items() if 11 < start < 15} == {5}  # its own length, and the lateness
    assert {delay for start, delay in delays.items() if 25 < start < 38} == {0}  # idle: not waited for any more
    assert [event.id for _, event in found] == [f"s/both/{e.start_index}" for e in ours]


def item_of(record: Any) -> tuple[str, Event]:
    event = Event.from_json(record.value)
    return event.session, event


class FusionLab:
    """A log of events, and what every life has found, with how much it had read then."""

    def __init__(self, seed: int) -> None:
        self.pick, self.clock, self.tp = random.Random(seed), [10**18], TopicPartition("in", 0)
        self.recipe = fusion_of(self.pick.choice(FUSED))
        seconds = [self.pick.uniform(5, 30) for _ in range(self.pick.randint(1, 2))]
        queues = [
            events_of(self.pick, f"s{number}", table.events, self.pick.choice([most_s, most_s / 2]))
            for number, most_s in enumerate(seconds)
            for table in self.recipe.input
        ]
        self.events = interleaved(self.pick, queues)
        self.log = ItemLog({self.tp: [(e.session, e.to_json().decode()) for e in self.events]}, whole=False)
        self.made: dict[bytes, tuple[int, int, bool]] = {}  # by finding: read, to be read, and whether by a tick
        self.ticking = False

    def life(self) -> ItemLife:
        def finding(event: Event, now_ns: int) -> Finding:
            value = event.to_json(now_ns)
            self.made[value] = life.scopes.next_offset[self.tp], life.asked.get(self.tp, 0), self.ticking
            return Finding(event.id, event.session.encode(), value)

        fused = EventOperator("both", "both", ("in",), "out", item_of, lambda _: Fusion(self.recipe), finding, str)
        life = ItemLife(self.log, fused, self.clock)
        tick = life.tick

        def noted_tick() -> None:
            self.ticking = True
            tick()
            self.ticking = False

        life.tick = noted_tick  # type: ignore[method-assign]
        return life

    def check(self) -> None:
        """Every window is fused once, of what had come when it was; and all had been read that had come where a tick fused it."""
        found = [Event.from_json(f.value) for f in self.log.found]
        firsts = [e for e in self.events if e.recipe == self.recipe.input[0].events]
        assert sorted(event.id for event in found) == sorted(f"{e.session}/both/{e.start_index}" for e in firsts)
        for event, record in zip(found, self.log.found, strict=True):
            read, asked, ticked = self.made[record.value]
            assert not ticked or read >= asked
            come = [e for e in self.events[:read] if e.session == event.session]
            assert same(replace(event, emitted_ns=0), defined(self.recipe, come)[event.id])

    def campaign(self) -> None:
        life = self.life()
        for _ in range(self.pick.randint(20, 150)):
            if not act(life, self.pick):
                life = self.life()
            if self.pick.random() < 0.05:  # a recipe is silent for long
                life.read(self.tp, 50)
                self.clock[0] += 12 * SECOND_NS
                life.tick()
        self.log.visible = {self.tp: len(self.events)}
        for _ in range(2):
            self.life().finish()
            self.check()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes_anywhere(seed: int) -> None:
    FusionLab(seed).campaign()


@pytest.mark.chaos
@pytest.mark.timeout(20_000)
@settings(max_examples=20_000, deadline=None)
@given(st.integers(0, 2**64))
def test_crashes_anywhere_at_length(seed: int) -> None:
    FusionLab(seed).campaign()


def test_a_tick_waits_until_all_is_read() -> None:
    FusionLab(1).campaign()
    ask = Scopes.ask
    with mock.patch.object(Scopes, "ask", lambda self, at, ends: ask(self, at, {})), pytest.raises(AssertionError):
        FusionLab(1).campaign()


def test_some_campaigns_make_choices_and_some_make_none() -> None:
    choices = set()
    for seed in range(20):
        lab = FusionLab(seed)
        lab.campaign()
        found = [replace(Event.from_json(f.value), emitted_ns=0) for f in lab.log.found]
        whole = [defined(lab.recipe, [e for e in lab.events if e.session == f.session])[f.id] for f in found]
        choices.add(all(map(same, found, whole)))
    assert choices == {True, False}


def foot_recipes(folder: Path, home: Path) -> Path:
    """The recipe that the documents show, with two recipes beside it, of channel x and of channel y."""
    weights = {"left": [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], "right": [[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]]}
    for name, numbers in weights.items():
        (folder / f"{name}.toml").write_text(TINY.replace('name = "tiny"', f'name = "{name}"'))
        write_bundle(None, manifest(recipe=name), {MODEL: linear_onnx(np.array(numbers))}, home)
    path = folder / "feet.toml"
    (block,) = blocks("docs/recipes.md", "toml", "Late fusion")
    path.write_text(block.text)
    return path


def test_what_the_documents_show_runs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = foot_recipes(tmp_path, home)
    rows = [(i / 10, math.sin(i / 4) * 6, math.cos(i / 3) * 6) for i in range(60)]
    for name in ("one", "two"):
        table(tmp_path / f"{name}.csv", "t,x,y", (f"{t:.1f},{x:.4f},{y:.4f}" for t, x, y in rows))
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    found = {}
    for recipe in ("left", "right", "feet"):
        done = invoke("run", tmp_path / f"{recipe}.toml", *files, env={"KYMO_HOME": str(home)})
        found[recipe] = [Event.from_json(line) for line in done.stdout.splitlines()]
    fusion = load_fusion(path)
    assert fusion is not None
    wanted = {}
    for session in ("one", "two"):
        wanted |= defined(fusion, [e for name in ("left", "right") for e in found[name] if e.session == session])
    wanted = {name.replace("/both/", "/feet/"): event for name, event in wanted.items()}
    assert [event.id for event in found["feet"]] == list(wanted)
    plain = {"emitted_ns": 0, "recipe": "", "id": ""}
    assert all(same(replace(e, **plain), replace(wanted[e.id], **plain)) for e in found["feet"])
    assert {event.label for event in found["feet"]} > {"unknown"}
    assert all(re.fullmatch(r"left@\w+ \+ right@\w+", event.bundle) for event in found["feet"])


REFUSED = {
    "nobody": ('events = "left"', 'events = "nobody"', "no recipe 'nobody'"),
    "twice": ('events = "right"', 'events = "left"', "events of `left` are an input already"),
    "itself": ('events = "right"', 'events = "feet"', "a recipe cannot take its own events"),
    "alone": ('[[input]]\nevents = "right"\nweight = 2\n', "", "two or more [[input]] with events"),
    "weight": ("weight = 2", "weight = 0", "expected a number above 0"),
    "unknown key": ("weight = 2", "wait = 2", "no key 'wait'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_recipes_that_cannot_be_fused_are_refused_with_their_line(case: str, tmp_path: Path) -> None:
    path = foot_recipes(tmp_path, tmp_path / "home")
    old, new, words = REFUSED[case]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RecipeError, match=rf"feet\.toml(:\d+)?: .*{re.escape(words)}"):
        load_fusion(path)


def test_what_takes_streams_refuses_a_recipe_that_takes_events(tmp_path: Path) -> None:
    path = foot_recipes(tmp_path, tmp_path / "home")
    with pytest.raises(RecipeError, match="takes the events of others"):
        load_recipe(path)
    done = invoke("run", path, tmp_path, "--bundle", "x", status=1)
    assert "leave --bundle and --write-derived out" in done.stderr
    assert load_fusion(tmp_path / "left.toml") is None


def test_recipes_without_a_class_in_common_are_not_fused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = foot_recipes(tmp_path, home)
    described = manifest(recipe="right", labels=["sit", "stand", "lie"])
    write_bundle(None, described, {MODEL: linear_onnx(np.zeros((3, 2)))}, home)
    (tmp_path / "one.csv").write_text("t,x,y\n0,1,2\n")
    done = invoke("run", path, tmp_path / "one.csv", status=1, env={"KYMO_HOME": str(home)})
    assert "no class in common" in done.stderr


def test_a_folder_with_a_file_for_each_foot_is_one_session(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = foot_recipes(tmp_path, home)
    (tmp_path / "walk").mkdir()
    for name in ("left", "right"):
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(recipe.read_text().replace('stream = "imu"', f'stream = "imu.{name}"'))
        table(tmp_path / "walk" / f"imu.{name}.csv", "t,x,y", (f"{i / 10:.1f},{i % 7},{i % 5}" for i in range(40)))
    done = invoke("run", path, tmp_path / "walk", env={"KYMO_HOME": str(home)})
    found = [Event.from_json(line) for line in done.stdout.splitlines()]
    assert [(event.session, event.start_index, event.absent) for event in found] == [
        ("walk", start, []) for start in range(0, 38, 2)
    ]
    fusion = load_fusion(path)
    assert fusion is not None
    (recording,) = read([tmp_path / "walk"], fusion.read_options())  # as a replay reads it
    assert sorted(stream.header.format.stream for stream in recording.streams) == ["imu.left", "imu.right"]
    checked = invoke("doctor", "--recipe", path, status=None, env={"KYMO_HOME": str(home)}).stdout
    assert "feet: fuses the events of left, right" in checked
    assert checked.count("windows of 0.4 s every 0.2 s") == 2


def test_up_runs_what_is_fused_as_well(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = foot_recipes(tmp_path, home)
    left, right = str(tmp_path / "left.toml"), str(tmp_path / "right.toml")
    assert usable_recipes([str(path)], home) == [left, right, str(path)]
    assert usable_recipes([right, str(path)], home) == [left, right, str(path)]
