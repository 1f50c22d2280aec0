"""Recipes of several inputs: what their chain is, what they refuse, and their windows beside arrays put together by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from checks import windows_of
from recipes_made import RecipeText, recipe_text, toml

from kymo.models.data.dataset import chunks_of, streams_of, why_not
from kymo.processors.branch import Branch
from kymo.processors.chain import Chain
from kymo.processors.join import Join
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.chunk import Array, Header, Window, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import RecipeError
from kymo.streams.recording import Recording, StreamData

AXES = ["ax", "ay", "az", "gx", "gy", "gz"]


def joined(*inputs: dict[str, Any], rate: float, window_s: tuple[float, float] = (2, 1), **tables: Any) -> RecipeText:
    defaults = [{"channels": [table["stream"][0]]} | table for table in inputs]
    window = {"length_s": window_s[0], "hop_s": window_s[1]}
    known = {"input": defaults, "join": {"rate_hz": rate, "grid": inputs[0]["stream"]}, "window": window}
    return RecipeText('name = "j"\n' + toml(known | tables))


FEET = joined(
    *({"stream": f"imu.{foot}", "rate_hz": 50, "channels": AXES} for foot in ("left", "right")),
    rate=50,
    steps=[{"step": "spectrogram", "nperseg": 16, "noverlap": 6}],
)
MODEL = {"architecture": "minirocket"}
TWO = joined({"stream": "a", "rate_hz": 20}, {"stream": "b", "rate_hz": 4}, rate=20, model=MODEL)


def stream(name: str, rate: int, data: Array, origin_ns: int = 0, channels: Sequence[str] = ()) -> StreamData:
    fmt = signal_format(name, tuple(channels) or (name[0],), rate, str(data.dtype))
    return StreamData(Header("s", origin_ns, fmt), data)


def noise(count: int, channels: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, channels)).astype(np.float32)


def windows(text: str, *streams: StreamData) -> list[Window]:
    recipe = parse_recipe(text)
    taken = streams_of(Recording("s", list(streams)), recipe)
    return windows_of(taken, recipe.chain) if taken else []


def test_two_feet_are_the_twelve_channels_bit_for_bit() -> None:
    left, right = noise(500, 6, 1), noise(500, 6, 2)
    came = windows(FEET, stream("imu.left", 50, left, 10**18, AXES), stream("imu.right", 50, right, 10**18, AXES))
    both = [f"{foot}.{axis}" for foot in ("left", "right") for axis in AXES]
    wide = recipe_text("w", " ".join(both), 50, (2, 1), steps=[{"step": "spectrogram", "nperseg": 16, "noverlap": 6}])
    expected = windows(wide, stream("imu", 50, np.hstack([left, right]), 10**18, both))
    assert len(came) == len(expected) > 5
    for ours, theirs in zip(came, expected, strict=True):
        assert (ours.start_index, ours.start_ns, ours.end_ns) == (theirs.start_index, theirs.start_ns, theirs.end_ns)
        assert ours.data.tobytes() == theirs.data.tobytes()
        assert (ours.missing, ours.absent) == (0.0, ())
    assert parse_recipe(FEET).input_format().channels == tuple(f"imu.{name}" for name in both)


def test_an_offset_moves_the_times_of_its_input_alone() -> None:
    a, b = noise(400, 1, 1), noise(80, 1, 2)
    late = stream("b", 4, b, -1_500_000_000)
    moved = RecipeText(TWO).replace('stream = "b"\n', 'stream = "b"\noffset_ms = 1500\n')
    straight = windows(TWO, stream("a", 20, a), stream("b", 4, b))
    offset = windows(moved, stream("a", 20, a), late)
    assert [w.data.tobytes() for w in straight] == [w.data.tobytes() for w in offset] != []
    seconds = np.arange(400) / 20
    between = np.interp(seconds, np.arange(80) / 4, b[:, 0])
    for window in straight:
        rows = slice(window.start_index, window.end_index)
        np.testing.assert_allclose(window.data[:, 1], between[rows], atol=1e-6)
        np.testing.assert_array_equal(window.data[:, 0], a[rows, 0])


def test_the_chain_is_a_join_of_branches_with_their_own_steps() -> None:
    text = joined(
        {"stream": "a", "rate_hz": 20, "bridge_ms": 150},
        {"stream": "b", "rate_hz": 5, "sample": "hold", "steps": [{"step": "scale", "factor": 2.0, "offset": 0.0}]},
        rate=10,
    )
    recipe = parse_recipe(text)
    entry = recipe.chain.specs[0]
    assert isinstance(entry, Join)
    assert [type(branch) for branch in entry.branches] == [Branch, Branch]
    assert entry.branches[0].chain.specs[0].bridge == 3  # type: ignore[attr-defined]
    assert [spec.name for spec in entry.branches[1].chain.specs] == ["intake", "scale"]
    assert (recipe.window_length, recipe.window_hop, recipe.rate_hz) == (20, 10, 10)
    assert recipe.output_format().rate == Fraction(10)
    assert Chain(recipe.chain.specs) == recipe.chain


def test_policy_of_the_edge_is_no_part_of_the_chain() -> None:
    patient = TWO.replace('stream = "b"\n', 'stream = "b"\nlateness_s = 99.5\nidle_s = 1000\n')
    assert parse_recipe(patient).chain.digest() == parse_recipe(TWO).chain.digest()
    assert parse_recipe(patient).inputs[1].lateness_s == 99.5


def test_gaps_are_bridged_or_cut_windows_of_an_input_that_is_required() -> None:
    a, b = stream("a", 20, noise(400, 1, 1)), noise(80, 1, 2)
    indexes = np.delete(np.arange(80), [30, 31])
    torn = StreamData.from_indexes(stream("b", 4, b).header, b[indexes], indexes)
    whole = [w.start_index for w in windows(TWO, a, stream("b", 4, b))]
    ends = {start: start + 40 for start in whole}
    cut = [w.start_index for w in windows(TWO, a, torn)]
    assert cut == [start for start in whole if ends[start] <= 146 or start >= 160]
    bridged = windows(TWO.replace('stream = "b"\n', 'stream = "b"\nbridge_ms = 500\n'), a, torn)
    assert [w.start_index for w in bridged] == whole
    assert {w.start_index: w.missing > 0 for w in bridged} == {s: s < 160 and ends[s] > 146 for s in whole}
    assert all(w.absent == () for w in bridged)


def test_what_a_recording_lacks_is_named() -> None:
    recipe, a = parse_recipe(TWO), stream("a", 20, noise(100, 1, 1))
    assert streams_of(Recording("s", [a]), recipe) == []
    assert why_not(Recording("s", [a]), recipe) == "there is no `b`, which the recipe requires"
    wrong = Recording("s", [a, stream("b", 5, noise(9, 1, 1)), stream("c", 5, noise(9, 1, 1))])
    assert why_not(wrong, recipe) == (
        "`b` is 5 Hz, expected 4 Hz; stream `c` is not `a` or `b`; there is no `b`, which the recipe requires"
    )
    assert why_not(Recording("s", []), recipe) == "it holds no raw stream"


def test_an_exact_name_comes_before_a_kind() -> None:
    text = joined({"stream": "a", "rate_hz": 20}, {"stream": "a.left", "rate_hz": 20}, rate=20)
    streams = [stream(name, 20, noise(80, 1, seed)) for seed, name in enumerate(("a.left", "a.right"))]
    came = windows(text, *streams)
    np.testing.assert_array_equal(came[0].data, np.hstack([streams[1].data, streams[0].data])[:40])


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (('[join]\nrate_hz = 20\ngrid = "a"\n', ""), 6, "write [join] with rate_hz and grid"),
        (('grid = "a"', 'grid = "eda"'), 12, 'grid = "eda": expected the stream of an [[input]]: a, b'),
        (('stream = "b"', 'stream = "a"'), 8, "another [[input]] is 'a'"),
        (('stream = "b"\n', 'stream = "b"\nrequired = false\n'), 9, 'add [[window.steps]] step = "mask"'),
        (('stream = "b"\n', 'stream = "b"\nmax_missing = 0.1\n'), 9, "bridge_ms interpolates short gaps"),
        (('stream = "b"\n', 'stream = "b"\nsample = "cubic"\n'), 9, "expected one of linear, hold, nearest"),
        (('stream = "b"\n', 'stream = "b"\nsample = "block"\n'), 11, "a whole number of samples a tick"),
        (('stream = "b"\n', 'stream = "b"\nidle_s = 5\n'), 9, "idle_s = 5 is less than lateness_s = 10"),
        (("rate_hz = 4\n", "rate_hz = 0\n"), 9, "say with bridge_ms how long a value counts, such as bridge_ms = 5000"),
        (("rate_hz = 4\n", 'rate_hz = 0\nsample = "block"\n'), 10, "which an irregular stream has not"),
        (("rate_hz = 4\n", "rate_hz = -1\n"), 9, "or 0 for an irregular stream"),
        (('stream = "a"\nrate_hz = 20', 'stream = "a"\nbridge_ms = 9\nrate_hz = 0'), 11, "grid 'a' is irregular"),
    ],
)
def test_what_does_not_hold_together_is_refused(change: tuple[str, str], line: int, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as refused:
        parse_recipe(TWO.replace(*change))
    assert refused.value.line == line


@pytest.mark.parametrize(
    "key", ['sample = "hold"', "offset_ms = 5", "required = false", "lateness_s = 3", "idle_s = 90"]
)
def test_one_input_alone_takes_no_words_of_a_join(key: str) -> None:
    text = recipe_text("r", "x", 20, (2, 1)).replace('stream = "imu"\n', f'stream = "imu"\n{key}\n')
    with pytest.raises(RecipeError, match="there is no \\[join\\]; leave it out") as refused:
        parse_recipe(text)
    assert refused.value.line == 4


def freed(text: str) -> Chain:
    """A recipe's chain with windows that lack all inputs but the first."""
    first, *rest = parse_recipe(text).chain.specs
    assert isinstance(first, Join)
    free = (replace(branch, required=False) for branch in first.branches[1:])
    return Chain((replace(first, branches=(first.branches[0], *free)), *rest))


def test_an_input_that_never_came_is_absent_where_it_is_not_required() -> None:
    chain = freed(TWO)
    a = stream("a", 20, noise(100, 1, 1))
    came = windows_of([a], chain)
    assert [w.start_index for w in came] == [0, 20, 40, 60]
    assert all(w.absent == ("b",) and w.missing == 1.0 for w in came)
    assert all(np.isnan(w.data[:, 1]).all() and not np.isnan(w.data[:, 0]).any() for w in came)


def test_one_irregular_input_alone_is_refused() -> None:
    text = recipe_text("r", "x", 20, (2, 1)).replace("rate_hz = 20", "rate_hz = 0")
    with pytest.raises(RecipeError, match=r"windows count samples, .* write a second \[\[input\]\]"):
        parse_recipe(text)


def test_irregular_inputs_say_at_each_tick_what_they_had() -> None:
    text = joined(
        {"stream": "a", "rate_hz": 20},
        {
            "stream": "b",
            "rate_hz": 0,
            "sample": "hold",
            "bridge_ms": 700,
            "steps": [{"step": "scale", "factor": 1000.0}],
        },
        {"stream": "c", "rate_hz": 0, "sample": "count"},
        rate=20,
        window_s=(5, 5),
    )
    a, beats = stream("a", 20, noise(200, 1, 1), 10**18), noise(30, 1, 2)
    rng = np.random.default_rng(3)
    seconds, tags = np.cumsum(rng.uniform(0.3, 0.9, 30)), np.sort(rng.uniform(0, 12, 40))
    sparse = [
        replace(stream(name, 0, data, 7), times_ns=10**18 + np.round(at * 1e9).astype(np.int64))
        for name, data, at in (("b", beats, seconds), ("c", np.zeros((40, 1), np.float32), tags))
    ]
    recipe = parse_recipe(text)
    entry = recipe.chain.specs[0]
    assert isinstance(entry, Join)
    free = replace(entry, branches=tuple(replace(branch, required=False) for branch in entry.branches))
    came = windows_of(streams_of(Recording("s", [a, *sparse]), recipe), Chain((free, *recipe.chain.specs[1:])))
    assert [w.start_index for w in came] == [0, 100]
    data, ticks = np.concatenate([w.data for w in came]), np.arange(200) / 20
    np.testing.assert_array_equal(data[:, 0], a.data[:, 0])
    newest = np.searchsorted(seconds, ticks, "right") - 1
    held = (newest >= 0) & (ticks - seconds[newest] <= 0.7)
    np.testing.assert_array_equal(np.isfinite(data[:, 1]), held)
    np.testing.assert_allclose(data[held, 1], beats[newest[held], 0] * 1000, rtol=1e-6)
    np.testing.assert_array_equal(data[:, 2], np.histogram(tags, np.append(ticks, 10))[0])
    assert not held.all()
    assert [w.absent for w in came] == [("b",), ("b",)]


@pytest.mark.parametrize("seconds", [Fraction(1, 10), Fraction(3)])
def test_what_was_absent_is_told_over_a_topic_too(seconds: Fraction) -> None:
    text = joined(
        {"stream": "a", "rate_hz": 20},
        {"stream": "b", "rate_hz": 4, "bridge_ms": 500},
        {"stream": "c", "rate_hz": 20},
        rate=20,
        window_s=(2, 0.4),
        steps=[{"step": "spectrogram", "nperseg": 8, "noverlap": 4}],
    )
    chain = freed(text)
    a, b, c = (noise(count, 1, seed) for seed, count in enumerate((400, 80, 400)))
    torn = np.delete(np.arange(80), [20, 21, 40, 41, 42, 43, 44, 45])
    streams = [
        stream("a", 20, a),
        StreamData.from_indexes(stream("b", 4, b).header, b[torn], torn),
        StreamData(stream("c", 20, c).header, c[50:160], None, 50),
    ]
    before, behind = chain.split(chain.specs[0].output({}))
    codec, first, second = ChunkCodec(), before.build(), behind.build()
    derived = [d for chunk in chunks_of(streams, chain, seconds) for d in first.push(chunk)] + first.flush()
    came = [w for d in derived for w in second.push(codec.decode(codec.encode(d)))]
    expected = windows_of(streams, chain)
    assert [(w.start_index, w.missing, w.absent, w.data.tobytes()) for w in came] == [
        (w.start_index, w.missing, w.absent, w.data.tobytes()) for w in expected
    ]
    told = {w.absent for w in came}
    assert told == {("c",), ("b", "c"), ()}
    assert {w.missing for w in came if not w.absent} - {0.0}


def under(way: str, tick: Fraction, each: Fraction, rate: int) -> set[int]:
    """Numbers of the samples, `rate` a second, that a tick rests on, at `tick` seconds and `each` seconds before the next."""
    at, later = tick * rate, (tick + each) * rate
    before = math.floor(at)
    if way == "linear":
        return {before, math.ceil(at)}
    if way == "hold":
        return {before}
    if way == "nearest":
        return {before if at - before <= before + 1 - at else before + 1}
    return set(range(math.ceil(at), math.ceil(later)))


@pytest.mark.parametrize("way", ["linear", "hold", "nearest", "mean", "block"])
@pytest.mark.parametrize(("rate", "ticks"), [(20, 5), (20, 20), (8, 32), (10, 4)])
def test_ticks_that_rest_on_interpolated_samples_are_missing(way: str, rate: int, ticks: int) -> None:
    if (way == "block" and rate % ticks) or (way == "mean" and rate < ticks):  # the latter has ticks without a sample
        return
    text = joined(
        {"stream": "a", "rate_hz": ticks},
        {"stream": "b", "rate_hz": rate, "bridge_ms": 1000, "sample": way},
        rate=ticks,
        window_s=(1, 0.25 if ticks % 4 == 0 else 0.2),
    )
    recipe, seconds = parse_recipe(text), 12
    b = noise(rate * seconds, 1, 2)
    gone = {*range(3 * rate + 1, 3 * rate + 3), *range(6 * rate, 6 * rate + rate // 2), 9 * rate - 1}
    there = np.array(sorted(set(range(len(b))) - gone))
    streams = [
        stream("a", ticks, noise(ticks * seconds, 1, 1)),
        StreamData.from_indexes(stream("b", rate, b).header, b[there], there),
    ]
    each = Fraction(1, ticks)
    bad = {k for k in range(ticks * seconds) if under(way, k * each, each, rate) & gone}
    for length in (Fraction(1, 20), Fraction(1, 3), Fraction(100)):
        stage = recipe.chain.build()
        came = [w for chunk in chunks_of(streams, recipe.chain, length) for w in stage.push(chunk)] + stage.flush()
        told = {w.start_index: w.missing * ticks for w in came}
        assert told == {start: len(bad & set(range(start, start + ticks))) for start in told}
        assert len(told) > 30
        branch = stage.stages[0]._branches[1]  # type: ignore[attr-defined]
        assert branch.stage.stages[0].filled == []


def test_a_block_of_which_some_is_missing_is_missing() -> None:
    chain = freed(joined({"stream": "a", "rate_hz": 4}, {"stream": "b", "rate_hz": 16, "sample": "block"}, rate=4))
    b, gone = noise(160, 1, 2), [50]
    there = np.delete(np.arange(160), gone)
    streams = [stream("a", 4, noise(40, 1, 1)), StreamData.from_indexes(stream("b", 16, b).header, b[there], there)]
    came = {w.start_index: w for w in windows_of(streams, chain)}
    window = came[8]
    assert (window.absent, window.missing) == (("b",), 1 / 8)
    assert np.isnan(window.data[12 - 8, 1:]).all()
    assert not np.isnan(np.delete(window.data, 12 - 8, 0)).any()


def test_inputs_with_steps_of_their_own_may_be_missing() -> None:
    text = joined(
        {"stream": "a", "rate_hz": 4}, {"stream": "b", "rate_hz": 4, "steps": [{"step": "scale", "factor": 2}]}, rate=4
    )
    why = why_not(Recording("s", [stream("b", 4, noise(40, 1, 1))]), parse_recipe(text))
    assert why == "there is no `a`, which the recipe requires"


@pytest.mark.parametrize("size", [1, 3, 50])
def test_gaps_between_the_samples_of_a_derived_stream_are_told(size: int) -> None:
    steps = [{"step": "resample", "rate_hz": 5}]
    text = recipe_text("r", "a", 20, (2, 1), stream="a", of_input={"bridge_ms": 150, "max_missing": 0.2}, steps=steps)
    recipe, codec = parse_recipe(text), ChunkCodec()
    data, gone = noise(400, 1, 1), [k + i for k in range(100, 140, 8) for i in (1, 2, 3)]
    there = np.delete(np.arange(400), gone)
    torn = StreamData.from_indexes(stream("a", 20, data).header, data[there], there)
    before, behind = (part.build() for part in recipe.chain.split(recipe.input_format()))
    derived = [d for chunk in torn.chunks(size) for d in before.push(chunk)] + before.flush()
    came = [w for d in derived for w in behind.push(codec.decode(codec.encode(d)))]
    expected = windows_of([torn], recipe.chain)
    assert [(w.start_index, w.missing) for w in came] == [(w.start_index, w.missing) for w in expected]
    assert max(w.missing for w in came) > 0.3
