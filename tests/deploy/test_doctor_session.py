"""`kymo doctor` on sessions of several inputs: which came, which did not, what was decided, and the windows that are left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checks import windows_of
from recipes_made import RecipeText, toml

from kymo.deploy.doctor import Check
from kymo.deploy.doctor_session import SessionFacts, StreamFacts, explain
from kymo.processors.join import Decision
from kymo.processors.recipe.load import Recipe, parse_recipe
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.events import Event
from kymo.streams.recording import StreamData

TABLES = [
    {"stream": "wrist", "rate_hz": 20, "channels": ["x"]},
    {"stream": "chest", "rate_hz": 4, "channels": ["x"], "lateness_s": 5, "offset_ms": 3000},
]
JOINED = RecipeText(
    'name = "both"\n'
    + toml({"input": TABLES, "join": {"rate_hz": 4, "grid": "wrist"}, "window": {"length_s": 10, "hop_s": 5}})
)
OPTIONAL = replace(
    parse_recipe(JOINED),
    input=(parse_recipe(JOINED).input[0], replace(parse_recipe(JOINED).input[1], required=False)),
    window=replace(parse_recipe(JOINED).window, steps=({"step": "mask"},)),
)
ORIGIN = 1_764_500_000_000_000_000


def stream(
    name: str, rate: int, seconds: float, start_s: float = 0.0, *, end: bool = False, **more: Any
) -> StreamFacts:
    channels = more.get("channels", ("x",))
    fmt = signal_format(name, channels, rate)
    header = Header("s", ORIGIN + round(start_s * 1e9), fmt)
    facts = StreamFacts(fmt, "kymo.sensor", [[0, 0]], first_offset=3)
    data = np.zeros((round(seconds * rate), len(channels)), np.float32)
    for first, last in more.get("runs", [(0, len(data))]):
        facts.add(Chunk(header, first, data[first:last], end=end and last == len(data)), 0)
    return facts


def checks(recipe: Recipe, *streams: StreamFacts, **more: Any) -> list[Check]:
    return explain(recipe, SessionFacts("s", streams={facts.format.stream: facts for facts in streams}, **more))


def lines(found: list[Check]) -> list[tuple[str, str, str]]:
    return [(check.name, check.state, check.text) for check in found]


def test_both_inputs_are_there() -> None:
    found = checks(parse_recipe(JOINED), stream("wrist", 20, 60), stream("chest", 4, 60, -3))
    assert lines(found)[:3] == [
        ("input", "ok", "`wrist`: wrist, 20 Hz, until 60.0 s of the session"),
        ("input", "ok", "`chest`: chest, 4 Hz, until 60.0 s of the session"),
        ("windows", "ok", "60 s in which all required inputs are there hold 11 windows"),
    ]
    assert "start one: kymo worker both" in found[3].text


def test_an_input_that_fell_silent_is_named_with_since_when() -> None:
    streams = stream("wrist", 20, 60), stream("chest", 4, 30, -3)
    required, optional = (checks(recipe, *streams)[1] for recipe in (parse_recipe(JOINED), OPTIONAL))
    assert required.state == "wrong"
    assert required.text == (
        "`chest`: chest, 4 Hz, until 30.0 s of the session; silent since then, 30.0 s behind the newest of the others: the recipe "
        "requires it, so there are no windows until it is back"
    )
    assert (optional.state, "windows go on without it" in optional.text) == ("note", True)
    ended = checks(parse_recipe(JOINED), streams[0], stream("chest", 4, 30, -3, end=True))[1]
    assert (ended.state, ended.text.endswith("it has ended")) == ("ok", True)


def test_an_input_that_never_came() -> None:
    required, optional = (checks(recipe, stream("wrist", 20, 60)) for recipe in (parse_recipe(JOINED), OPTIONAL))
    assert (required[1].state, required[-1].name, required[-1].state) == ("wrong", "windows", "wrong")
    assert "`chest`: nothing has come of it; the recipe requires it, so there are no windows" in required[1].text
    assert (optional[1].state, "5 s behind the others, windows go on without it" in optional[1].text) == ("note", True)
    assert optional[2].text == "60 s in which all required inputs are there hold 11 windows"
    grid = checks(parse_recipe(JOINED), stream("chest", 4, 60, -3))[0]
    assert "it is the grid, whose first sample is tick 0: nothing goes on for 10 s" in grid.text


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (stream("chest", 8, 60, -3), "`chest` is 8 Hz, expected 4 Hz"),
        (stream("chest", 4, 60, -3, channels=("resp",)), "`chest` has no channel x; it has resp"),
    ],
)
def test_an_input_that_is_another_one(other: StreamFacts, says: str) -> None:
    found = checks(parse_recipe(JOINED), stream("wrist", 20, 60), other)
    assert (found[1].state, says in found[1].text) == ("wrong", True)


def test_decisions_are_told_and_their_ticks_count_no_more() -> None:
    decided = [Decision("chest", 80, 120), Decision("chest", 200)]
    streams = stream("wrist", 20, 60), stream("chest", 4, 60, -3)
    found = checks(parse_recipe(JOINED), *streams, decisions=decided)
    assert lines(found)[2:4] == [
        ("decision", "note", "`chest` was back: from 20.0 to 30.0 s it does not count"),
        ("decision", "note", "`chest` is not waited for from 50.0 s on"),
    ]
    assert found[4].text == "40 s in which all required inputs are there hold 6 windows"


def test_windows_are_as_many_as_the_chain_gives() -> None:
    """Gaps, another origin and clock of the second stream, against the chain itself."""
    generator, recipe = np.random.default_rng(5), parse_recipe(JOINED)
    for _ in range(20):
        streams, facts = list[StreamData](), list[StreamFacts]()
        for name, rate in (("wrist", 20), ("chest", 4)):
            cut = sorted(generator.integers(1, 80 * rate, 2).tolist())
            runs = [(0, cut[0]), (min(cut[0] + 2, cut[1]), cut[1])]
            own = stream(name, rate, 80, float(generator.uniform(-6, 6)), runs=runs)
            header = own.beginning[0].header
            indexes = np.concatenate([np.arange(a, b) for a, b in runs])
            streams.append(StreamData.from_indexes(header, np.zeros((len(indexes), 1), np.float32), indexes))
            facts.append(own)
        windows = windows_of(streams, recipe.chain)
        found = next(check for check in checks(recipe, *facts) if check.name == "windows")
        assert (f" {len(windows)} window" in found.text) or (found.state == "wrong" and not windows), found.text


def test_events_say_how_many_were_without_an_input() -> None:
    events = [
        Event(f"s/both/{i}", "both", "b", "s", "joined", i, 0, 1, "calm", 0.9, absent=["chest"] * (i > 6))
        for i in range(11)
    ]
    found = checks(OPTIONAL, stream("wrist", 20, 60), events=events, committed={"kymo.sensor": 9})
    assert found[-1].text.endswith("`unknown` (below 0), 4 without `chest` at times")


BEATS = RecipeText(
    'name = "beats"\n'
    + toml(
        {
            "input": [
                {"stream": "wrist", "rate_hz": 20, "channels": ["x"]},
                {"stream": "ibi", "rate_hz": 0, "channels": ["x"], "sample": "hold", "bridge_ms": 1500},
                {"stream": "tag", "rate_hz": 0, "channels": ["x"], "sample": "count"},
            ],
            "join": {"rate_hz": 4, "grid": "wrist"},
            "window": {"length_s": 10, "hop_s": 5},
        }
    )
)


def sparse(name: str, seconds: list[float], mark_s: float | None = None, *, end: bool = False) -> StreamFacts:
    """An irregular stream, one chunk a sample, with a progress mark before and behind."""
    facts = StreamFacts(signal_format(name, ("x",), 0), "kymo.sensor", [[0, 0]])
    header = Header("s", ORIGIN, facts.format)
    none, no_times = np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
    facts.add(Chunk(header, 0, none, no_times, complete_ns=ORIGIN), 0)
    for number, at in enumerate(seconds):
        time = np.array([ORIGIN + round(at * 1e9)], np.int64)
        facts.add(Chunk(header, number, np.zeros((1, 1), np.float32), time), 0)
    mark = None if mark_s is None else ORIGIN + round(mark_s * 1e9)
    facts.add(Chunk(header, len(seconds), none, no_times, end, complete_ns=mark), 0)
    return facts


def test_irregular_inputs_are_where_they_say_something() -> None:
    wrist, tag = stream("wrist", 20, 60), sparse("tag", [3.0], 60.0)
    beats = sparse("ibi", [i * 0.9 for i in range(70)], 60.0)
    found = checks(parse_recipe(BEATS), wrist, beats, tag)
    assert lines(found)[2] == ("input", "ok", "`tag`: tag, irregular, until 60.0 s of the session")
    assert found[3].text == "60 s in which all required inputs are there hold 11 windows"
    torn = sparse("ibi", [*(i * 0.9 for i in range(20)), *(30 + i * 0.9 for i in range(40))], 60.0)
    # Held until 18.6 s, and from 30 s on.
    assert checks(parse_recipe(BEATS), wrist, torn, tag)[3].text.endswith("hold 7 windows")
    silent = checks(parse_recipe(BEATS), wrist, beats, sparse("tag", [3.0]))
    assert "silent since then, 59.1 s behind the newest of the others" in silent[2].text
    over = checks(parse_recipe(BEATS), wrist, beats, sparse("tag", [3.0], end=True))
    assert over[3].text == "60 s in which all required inputs are there hold 11 windows"
