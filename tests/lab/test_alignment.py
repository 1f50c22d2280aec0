"""Clocks that were never set together: what was put between two simulated sensors is found within what it is said to be uncertain by, and
where they have nothing in common it is said so."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from recipes_made import toml
from verbs import invoke

from kymo.lab.prepare.alignment import align_streams
from kymo.lab.prepare.lines import Alignment, Lines
from kymo.lab.prepare.offsets import find_offsets
from kymo.processors.recipe.load import load_recipe
from kymo.streams.chunk import Format, Header, signal_format
from kymo.streams.recording import StreamData

Floats = NDArray[np.float64]
WORLD_HZ = 400.0
Pair = tuple[Lines, Lines, float, float]  # with offset (s, in the second one's middle) and drift (ppm)


def coloured(g: np.random.Generator, count: int, cut_hz: float) -> Floats:
    spectrum = np.fft.rfft(g.standard_normal(count))
    hz = np.fft.rfftfreq(count, 1 / WORLD_HZ)
    line = np.fft.irfft(spectrum / (1 + (hz / cut_hz) ** 2) * np.where(hz < 0.3, 0.2, 1), count)
    return np.asarray(line / line.std())


def bouts(g: np.random.Generator, count: int, rest: float = 0.05) -> Floats:
    """How strongly somebody moves: now and then, for some seconds."""
    strength, at_s = np.full(count, rest), 0.0
    while at_s < count / WORLD_HZ:
        at_s += g.exponential(6)
        i, j = int(at_s * WORLD_HZ), int((at_s + g.uniform(1, 8)) * WORLD_HZ)
        strength[i:j] += g.uniform(0.3, 2) * np.hanning(j - i)[: max(0, min(j, count) - i)]
        at_s = j / WORLD_HZ
    return strength


def beats(g: np.random.Generator, count: int, every_s: float, jitter: float, shape: Floats) -> Floats:
    line, at_s = np.zeros(count), g.uniform(0, 1)
    while (i := int(at_s * WORLD_HZ)) < count:
        line[i : i + len(shape)] += g.uniform(0.8, 1.2) * shape[: count - i]
        at_s += every_s * (1 + jitter * g.standard_normal())
    return line


def world(kind: str, g: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """What happens, as two sensors would feel it: ``(count, channels)`` each."""
    seconds = np.arange(count) / WORLD_HZ
    if kind == "imu":
        strength = bouts(g, count)
        axes = np.column_stack([coloured(g, count, 4) * strength for _ in range(3)])
        return axes, axes
    if kind == "slow":
        line = np.cumsum(coloured(g, count, 0.5) * bouts(g, count, 0.3))
        line -= np.convolve(line, np.ones(8000) / 8000, "same")
        return line[:, None], -line[:, None]
    if kind == "pulse":  # a movement disturbs a pulse wave, in its own way
        strength = bouts(g, count)
        axes = np.column_stack([coloured(g, count, 4) * strength for _ in range(3)])
        wave = np.exp(-np.arange(320) / 60)
        return axes, (beats(g, count, g.uniform(0.7, 1), 0.03, wave) + 1.5 * strength * coloured(g, count, 2))[:, None]
    if kind == "heart":
        line = beats(g, count, g.uniform(0.7, 1), 0.04, np.hanning(15)[1:-1])[:, None]
        return line, -line
    if kind == "knocks":
        line = np.zeros(count)
        for start_s in (35.0, seconds[-1] - 40):
            for at_s in start_s + np.cumsum(g.uniform(0.3, 0.9, 6)):
                line[int(at_s * WORLD_HZ) :][:5] += g.uniform(15, 40)
        apart = [np.column_stack([coloured(g, count, 4) * bouts(g, count) for _ in range(3)]) for _ in range(2)]
        return apart[0] + line[:, None], apart[1] + 0.7 * line[:, None]
    if kind == "rhythm":
        line = np.sin(2 * np.pi * g.uniform(0.5, 2.5) * seconds)[:, None]
        return line, line**3
    if kind == "start":  # both begin with the same disturbance
        line = coloured(g, count, 4)
        line[int(30 * WORLD_HZ) :][:400] += 30 * np.exp(-np.arange(400) / 100)
        return line[:, None], line[:, None]
    assert kind == "moment"  # something happens once
    line = 0.1 * coloured(g, count, 4)
    line[int(g.uniform(35, 60) * WORLD_HZ) :][:1200] *= 30
    return line[:, None], line[:, None]


def sensed(g: np.random.Generator, line: Floats, rate: float, start_s: float, drift: float, seconds: float) -> Lines:
    """What a sensor makes of it: its own rate and clock, turned, with noise and perhaps a gap."""
    width = int(WORLD_HZ / rate) // 2 * 2 + 1
    at_s = start_s + np.arange(int(seconds * rate)) / rate * (1 + drift * 1e-6)
    smooth = [np.convolve(column, np.ones(width) / width, "same") for column in line.T]
    values = np.column_stack([np.interp(at_s, np.arange(len(line)) / WORLD_HZ, column) for column in smooth])
    values += g.uniform(0.05, 0.5) * values.std() * g.standard_normal(values.shape)
    values = values @ np.linalg.qr(g.standard_normal((values.shape[1],) * 2))[0]
    if g.random() < 0.4:
        values[g.integers(len(values)) :][: int(g.uniform(0.1, 5) * rate)] = np.nan
    channels = ("ax", "ay", "az")[: values.shape[1]] if values.shape[1] > 1 else ("v",)
    fmt = signal_format("s", channels, round(rate), "float64")
    return Lines.of(StreamData(Header("s", 0, fmt), values))


def pair(kind: str, seed: int, seconds: float, *, alike: bool) -> Pair:
    g = np.random.default_rng([seed, *kind.encode(), alike])
    count = int((seconds + 60) * WORLD_HZ)
    first, second = world(kind, g, count)
    if not alike:
        second = world(kind, g, count)[1]
    slow, sharp = kind == "slow", kind in ("heart", "knocks")
    rates = (
        [(4, 8, 10), (4, 8, 25)] if slow else [(100, 200, 500), (128, 250)] if sharp else [(25, 64, 200), (32, 50, 100)]
    )
    rate_a, rate_b = (float(g.choice(each)) for each in rates)
    drift, start_s, offset_s = g.choice([0.0, g.uniform(-60, 60)]), g.uniform(25, 35), g.uniform(-8, 8)
    a = sensed(g, first, rate_a, 30, 0, seconds)
    b = sensed(g, second, rate_b, start_s, drift, seconds * g.uniform(0.8, 1))
    b = Lines(start_s - 30 - offset_s, b.rate_hz, b.values)
    return a, b, offset_s + (b.end_s - b.start_s) / 2 * drift * 1e-6, drift


def found(kind: str, seed: int, seconds: float, *, alike: bool = True) -> tuple[Alignment, float, float]:
    a, b, offset_s, drift = pair(kind, seed, seconds, alike=alike)
    return align_streams(a, b, 0.0, 30.0), offset_s, drift


ALIKE = {"imu": (120, 0.7), "slow": (120, 0.7), "pulse": (600, 0.7), "heart": (60, 0.9), "knocks": (120, 0.6)}
UNLIKE = ("imu", "slow", "pulse", "heart", "knocks", "rhythm", "start", "moment")


def check_alike(kind: str, seeds: range) -> None:
    """At least so many are found, and 95 of 100 of these within what they say of themselves (all but one of a few)."""
    seconds, share = ALIKE[kind]
    sure = [(a, offset, drift) for a, offset, drift in (found(kind, seed, seconds) for seed in seeds) if a.sure]
    assert len(sure) >= share * len(seeds), f"{kind}: {len(sure)} of {len(seeds)}"
    wrong = [(a, offset) for a, offset, _ in sure if abs(a.offset_s - offset) > a.offset_uncertainty_s]
    assert len(wrong) <= max(1, 0.05 * len(sure)), wrong
    assert all(abs(a.offset_s - offset) <= 3 * a.offset_uncertainty_s + 0.001 for a, offset in wrong)
    drifts = [(a, drift) for a, _, drift in sure if np.isfinite(a.drift_uncertainty_ppm)]
    outside = [(a, drift) for a, drift in drifts if abs(a.drift_ppm - drift) > a.drift_uncertainty_ppm]
    assert len(outside) <= max(1, 0.07 * len(drifts)), outside


@pytest.mark.parametrize("kind", ALIKE)
def test_an_offset_is_found_within_its_uncertainty(kind: str) -> None:
    check_alike(kind, range(6 if kind == "pulse" else 10))


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_has_nothing_in_common_is_refused(kind: str) -> None:
    assert [seed for seed in range(8) if found(kind, seed, 90, alike=False)[0].sure] == []


def test_a_rhythm_alone_is_refused_although_it_is_the_same() -> None:
    for seed in range(4):
        alignment, _, _ = found("rhythm", seed, 90)
        assert not alignment.sure
        assert "no offset fits better than all others" in alignment.why


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ALIKE)
def test_offsets_of_many(kind: str) -> None:
    check_alike(kind, range(100, 200))


@pytest.mark.chaos
def test_false_alarms_are_below_one_in_a_hundred() -> None:
    wrong = [(k, seed) for k in UNLIKE for seed in range(100, 200) if found(k, seed, 90, alike=False)[0].sure]
    assert len(wrong) < 0.01 * 100 * len(UNLIKE), wrong


def test_knocks_are_sharper_than_movement() -> None:
    alignment, offset_s, _ = found("knocks", 3, 120)
    assert alignment.method == "taps"
    assert alignment.why.endswith("knocks that both show")
    assert abs(alignment.offset_s - offset_s) <= alignment.offset_uncertainty_s < 0.012


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (np.zeros(4000), np.arange(4000) % 7.0, "one of them has no channel that changes"),
        (np.arange(300) % 7.0, np.arange(4000) % 7.0, "6 s are too short, expected 20 s or more of both"),
    ],
)
def test_what_cannot_be_compared_is_said(first: Floats, second: Floats, why: str) -> None:
    lines = []
    for values in (first, second):
        data = values[:, None].astype(np.float32)
        lines.append(Lines.of(StreamData(Header("s", 0, signal_format("s", ("v",), 50)), data)))
    assert align_streams(*lines, 0.0, 30.0).why == why


# The command


def rows(name: str, lines: Lines, clock_s: float) -> Iterator[list[Any]]:
    yield ["t", *[f"{name}_{i}" for i in range(len(lines.values))]]
    for i, values in enumerate(zip(*lines.values, strict=True)):
        if np.isfinite(values).all():
            yield [f"{lines.start_s + clock_s + i / lines.rate_hz:.4f}", *(f"{value:.5f}" for value in values)]


def write(
    folder: Path, seed: int, *, alike: bool = True, clock_s: float = 1_764_500_000.0, later_s: float = 0.0
) -> float:
    """``wrist.csv`` and ``chest.csv`` of a session; what the chest's clock lacks."""
    g = np.random.default_rng(seed)
    axes = world("imu", g, int(120 * WORLD_HZ))[0]
    wrist = sensed(g, axes, 50, 30, 0, 60)
    chest = sensed(g, axes if alike else world("imu", g, int(120 * WORLD_HZ))[0], 25, 31, 0, 60)
    folder.mkdir(parents=True)
    for name, lines, start_s in (("wrist", wrist, 0.0), ("chest", chest, 1.0 - 3.0 - later_s)):
        with (folder / f"{name}.csv").open("w", newline="") as out:
            csv.writer(out).writerows(rows(name, lines, clock_s + start_s))
    return 3.0 + later_s


TABLES = [
    {"stream": name, "rate_hz": rate, "channels": [f"{name}_0", f"{name}_1"]}
    for name, rate in (("wrist", 50), ("chest", 25))
]
RECIPE = 'name = "both"  # of two\n' + toml(
    {"input": TABLES, "join": {"rate_hz": 50, "grid": "wrist"}, "window": {"length_s": 10, "hop_s": 5}}
)


def offsets(*words: Any, status: int = 0) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(invoke("prepare", "clocks", *map(str, words), "--json", status=status).stdout)
    return answer


def test_two_files(tmp_path: Path) -> None:
    missing_s = write(tmp_path / "a", 1)
    answer = offsets(tmp_path / "a" / "wrist.csv", tmp_path / "a" / "chest.csv", "--out", tmp_path / "clocks.png")
    (offset,) = answer["offsets"]
    assert (offset["stream"], offset["reference"], offset["sure"]) == ("chest", "wrist", True)
    assert abs(offset["offset_s"] - missing_s) <= offset["offset_uncertainty_s"] < 0.05
    assert abs(answer["offset_ms"]["chest"] - 3000) < 50
    assert (tmp_path / "clocks.png").read_bytes().startswith(b"\x89PNG")


def test_files_days_apart(tmp_path: Path) -> None:
    """Where their times share nothing, it is said from where was looked."""
    missing_s = write(tmp_path / "a", 1, later_s=86_400.0)
    done = invoke("prepare", "clocks", str(tmp_path / "a" / "wrist.csv"), str(tmp_path / "a" / "chest.csv"))
    assert "their times share nothing: looked for within 60 s of where both begin together" in done.stderr
    said_ms = float(done.stdout.splitlines()[-1].removeprefix("chest: offset_ms = "))
    assert abs(said_ms - 1000 * missing_s) < 50


def test_an_offset_goes_into_the_recipe_where_all_sessions_have_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "both.toml"
    recipe.write_text(RECIPE)
    for seed in (1, 2):
        write(tmp_path / "data" / f"s{seed}", seed)
    done = invoke("prepare", "clocks", str(tmp_path / "data"), "--recipe", str(recipe), "--write")
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:2]] == ["s1", "s2"]
    assert abs(load_recipe(recipe).inputs[1].offset_ms - 3000) < 40
    first = recipe.read_text()
    lines = [line for line in first.splitlines() if "offset_ms" not in line]
    assert lines == RECIPE.splitlines()
    # What is there is measured anew, not added to, and takes the place of what was there.
    invoke("prepare", "clocks", str(tmp_path / "data"), "--recipe", str(recipe), "--write")
    assert recipe.read_text() == first
    # The grid's own offset moves the grid, and what is put onto it.
    moved = re.sub(r"offset_ms = \d+", "offset_ms = 7  # at home", first)
    recipe.write_text(moved.replace('stream = "wrist"', 'stream = "wrist"\noffset_ms = 500'))
    invoke("prepare", "clocks", str(tmp_path / "data"), "--recipe", str(recipe), "--write")
    assert abs(load_recipe(recipe).inputs[1].offset_ms - 3500) < 40
    assert "  # at home\n" in recipe.read_text()


def test_sessions_whose_clocks_were_set_between_have_no_one_offset(tmp_path: Path) -> None:
    recipe = tmp_path / "both.toml"
    recipe.write_text(RECIPE)
    for seed in (1, 2):
        write(tmp_path / "data" / f"s{seed}", seed, later_s=2.0 * seed)
    done = invoke("prepare", "clocks", str(tmp_path / "data"), "--recipe", str(recipe), "--write", status=1)
    assert "another one in each session, and a recipe has one for all" in done.stdout
    assert recipe.read_text() == RECIPE


def test_two_people_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, alike=False)
    paths = [str(tmp_path / "a" / f"{name}.csv") for name in ("wrist", "chest")]
    done = invoke("prepare", "clocks", *paths, status=1)
    assert "chest to wrist: not sure: no knocks that both show; no offset fits better than all others" in done.stdout
    assert "no offset for chest: knock all sensors together" in done.stderr
    assert offsets(*paths, status=1)["offset_ms"] == {"chest": "not sure"}
    invoke("prepare", "clocks", *paths, "--write", status=2)
    invoke("prepare", "clocks", paths[0], status=1)


def test_pictures_tell_no_clock() -> None:
    still = Format("video", ("grey",), (), Fraction(10), "uint8", (4, 4, 1))
    wave = (np.arange(4000) % 7)[:, None].astype(np.float32)
    streams = {
        "wrist": StreamData(Header("s", 0, signal_format("wrist", ("v",), 50)), wave),
        "video": StreamData(Header("s", 0, still), np.zeros((400, 4, 4, 1), np.uint8)),
    }
    (offset,) = find_offsets({"s": streams}, "wrist", 30.0, lambda done, of: None)
    assert offset.words == "not sure: `video` has no numbers by channel, so that nothing tells its clock"


@pytest.mark.parametrize("times_s", [[], [1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.1, 1.1, 1.2, 1.2]])
def test_few_or_equal_times_tell_no_clock(times_s: list[float]) -> None:
    fmt = Format("tags", ("mark",), (), Fraction(0), "float32", (1,))
    times = (np.array(times_s) * 1e9).astype(np.int64)
    stream = StreamData(Header("s", 0, fmt), np.arange(len(times), dtype=np.float32)[:, None], times)
    assert math.isfinite(Lines.of(stream).rate_hz)
