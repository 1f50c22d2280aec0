"""Steps whose memory has no end: their numbers against scipy, numpy and neurokit2, gaps, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
from checks import check_cut, check_snapshot, run
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Run, cuttings

from kymo.lab.synth.listeners import simulate
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.registry import make_step
from kymo.processors.spec import Spec
from kymo.processors.steps.conditioning import Filter, Normalise, Repair
from kymo.processors.steps.peaks import Beats, Features, Peaks, Rate
from kymo.streams.chunk import Chunk, Header, Window, signal_format
from kymo.streams.errors import FormatError
from kymo.streams.readers import read

DATA = Path(__file__).parents[4] / "shared" / "data"
PHASIC = Filter(kind="highpass", cutoff_hz=0.05, lag_s=20.0)
PULSE = Filter(kind="bandpass", cutoff_hz=(0.5, 8.0), lag_s=2.0)


IBI = """
name = "heart"
[[input]]
stream = "eda"
rate_hz = 4
channels = ["eda"]
[[input]]
stream = "ibi"
rate_hz = 0
channels = ["ibi"]
sample = "mean"
required = false
[join]
rate_hz = 4
grid = "eda"
[window]
length_s = 30
hop_s = 10
[[window.steps]]
step = "features"
measures = ["ibi.ibi_rate", "ibi.ibi_rmssd", "eda.mean"]
"""


def through(signal: Any, rate: int, *specs: Spec) -> Any:
    """A signal, ``(n,)`` or ``(n, channels)``, through steps before a window; all that comes, by index."""
    data = np.asarray(signal, np.float64).reshape(len(signal), -1)
    fmt = signal_format("s", tuple(f"c{i}" for i in range(data.shape[1])), rate, "float64")
    chunks = run(Chain(specs), [Chunk(Header("s", 0, fmt), 0, data)])
    return np.concatenate([chunk.data for chunk in chunks])


def noise(count: int, channels: int = 1, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, channels)).cumsum(axis=0)


@pytest.mark.parametrize(
    ("kind", "cutoff_hz", "order"), [("lowpass", 5.0, 4), ("highpass", 1.0, 2), ("bandpass", (1.0, 9.0), 3)]
)
def test_a_filter_has_the_numbers_of_scipy(kind: str, cutoff_hz: Any, order: int) -> None:
    data, sections = noise(500, 2), scipy.signal.butter(order, cutoff_hz, kind, fs=50, output="sos")
    start = scipy.signal.sosfilt_zi(sections)[:, :, None] * data[0]
    wanted, _ = scipy.signal.sosfilt(sections, data, axis=0, zi=start)
    assert np.array_equal(through(data, 50, Filter(kind=kind, cutoff_hz=cutoff_hz, order=order)), wanted)
    both = scipy.signal.sosfiltfilt(sections, data, axis=0)
    came = through(data, 50, Filter(kind=kind, cutoff_hz=cutoff_hz, order=order, lag_s=3.0))
    np.testing.assert_allclose(came[200:-150], both[200:-150], atol=1e-4 * np.abs(data).max())


def test_a_notch_takes_its_frequency_alone() -> None:
    times = np.arange(2000) / 200
    hum, rest = np.sin(2 * np.pi * 50 * times), np.sin(2 * np.pi * 3 * times)
    came = through(hum + rest, 200, Filter(kind="notch", cutoff_hz=50.0, quality=10.0))[:, 0]
    np.testing.assert_allclose(came[1000:], rest[1000:], atol=0.02)


def test_behind_a_gap_a_filter_begins_anew_and_normalise_goes_on() -> None:
    data, fmt = noise(60), signal_format("s", ("c0",), 10, "float64")
    chunks = [Chunk(Header("s", 0, fmt), 0, data[:30]), Chunk(Header("s", 0, fmt), 45, data[30:])]
    second = np.concatenate([c.data for c in run(Filter(), chunks) if c.first_index >= 45])
    assert np.array_equal(second, through(data[30:], 10, Filter()))
    both = np.concatenate([c.data for c in run(Normalise(), chunks)])
    assert np.array_equal(both, through(data, 10, Normalise()))


@pytest.mark.parametrize(
    "spec", [Filter(), Filter(channels=("c1",), into=("f",), lag_s=0.2), Normalise(), Rate(channels=("c0",))]
)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_an_input_of_a_join_that_is_not_there_is_as_a_gap(spec: Spec, data: st.DataObject) -> None:
    fmt, rows = signal_format("joined", ("c0", "c1"), 10, "float32"), noise(50, 2).astype(np.float32)
    rows[20:25], rows[:2], rows[40, 1] = np.nan, np.nan, np.nan
    runs = [Run(Header("s", 0, fmt), 0, rows)]
    chunks = data.draw(cuttings(runs))
    check_cut(spec, runs, chunks)
    check_snapshot(spec, chunks, [1, 3])
    came = np.concatenate([c.data for c in run(spec, chunks)])
    assert np.isnan(came[20:25, -1]).all()
    assert np.isfinite(came[[2, 19, 25, 39, 41, 49]]).all()


def test_normalise_knows_what_came_so_far_or_a_baseline() -> None:
    data = noise(300)
    running, based = through(data, 10, Normalise()), through(data, 10, Normalise(baseline_s=10.0))
    for i in (1, 50, 299):
        assert running[i] == pytest.approx((data[i] - data[: i + 1].mean()) / data[: i + 1].std(), rel=1e-9)
    np.testing.assert_allclose(based[100:], (data[100:] - data[:100].mean()) / data[:100].std(), rtol=1e-9)
    assert not through(np.full(20, 7.0), 10, Normalise()).any()


def test_a_blink_is_a_line_from_before_to_behind_its_margins() -> None:
    pupil = np.linspace(3, 4, 200)
    seen, blink = pupil.copy(), slice(60, 72)
    seen[blink], seen[55:60], seen[72:76] = 0.0, 2.0, 2.5  # lids cover a part of it before and behind
    came = through(seen, 60, Repair(low=0.5, margin_s=0.1, longest_s=0.5))[:, 0]
    np.testing.assert_allclose(came, pupil, atol=1e-9)
    seen[100:160] = np.nan  # longer than what is repaired
    fmt = signal_format("pupil", ("size",), 60, "float64")
    chunks = run(
        Repair(low=0.5),
        [Chunk(Header("s", 0, fmt), 0, seen[:100, None]), Chunk(Header("s", 0, fmt), 160, seen[160:, None])],
    )
    indexes = [i for c in chunks for i in range(c.first_index, c.end_index)]
    assert indexes == [*range(100), *range(160, 200)]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), decimals=st.integers(0, 3))
def test_peaks_are_those_of_scipy(seed: int, decimals: int) -> None:
    signal = noise(400, seed=seed)[:, 0].round(decimals)
    places, told = scipy.signal.find_peaks(signal, prominence=1.0, wlen=121, plateau_size=(1, 60))
    came = through(signal, 10, Peaks(min_prominence=1.0, reach_s=6.0))[:, 0]
    assert np.array_equal(np.flatnonzero(came), places)
    assert np.array_equal(came[places], told["prominences"])


def shares(ours: Any, theirs: Any, within: int) -> tuple[float, float]:
    """Of theirs, the share that ours has; of ours, the share that they have."""
    apart = np.abs(np.subtract.outer(ours, theirs))
    return float((apart.min(axis=0) <= within).mean()), float((apart.min(axis=1) <= within).mean())


@pytest.mark.filterwarnings("ignore")
def test_peaks_of_skin_and_beats_are_those_of_neurokit2_on_20_simulated_people() -> None:
    neurokit2, rng, scr, beats = pytest.importorskip("neurokit2"), np.random.default_rng(0), [], []
    for person in range(20):
        drawn = rng.uniform((3, 55, 0.5, 0.002), (10, 95, 10, 0.02))
        signals = simulate(180, person, *drawn)
        phasic = neurokit2.eda_phasic(signals["eda"], sampling_rate=4)["EDA_Phasic"].to_numpy()
        theirs = neurokit2.eda_peaks(phasic, sampling_rate=4)[1]["SCR_Peaks"]  # of a tenth of the largest, at least
        least = 0.1 * scipy.signal.peak_prominences(phasic, theirs)[0].max()
        ours = np.flatnonzero(through(signals["eda"], 4, PHASIC, Peaks(min_prominence=least)))
        scr.append(shares(ours, theirs, 1))
        clean = neurokit2.ppg_clean(signals["bvp"], sampling_rate=64)
        theirs = neurokit2.ppg_findpeaks(clean, sampling_rate=64)["PPG_Peaks"]
        beats.append(shares(np.flatnonzero(through(signals["bvp"], 64, PULSE, Beats())), theirs, 1))  # 16 ms
    print(
        f"\nskin {np.mean(scr, axis=0)}, worst {np.min(scr, axis=0)}; beats {np.mean(beats, axis=0)}, {np.min(beats, axis=0)}"
    )
    assert np.min(scr) >= 0.95
    assert np.min(beats) >= 0.95


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not DATA.is_dir(), reason="no recordings beside the repository")
def test_and_on_real_recordings() -> None:
    neurokit2 = pytest.importorskip("neurokit2")
    (recording,) = read([DATA / "field" / "empatica_e4"])
    (bvp,) = (stream.data[:, 0] for stream in recording.streams if stream.header.format.stream == "bvp")
    theirs = neurokit2.ppg_findpeaks(neurokit2.ppg_clean(bvp, sampling_rate=64), sampling_rate=64)["PPG_Peaks"]
    found = shares(np.flatnonzero(through(bvp, 64, PULSE, Beats())), theirs, 1)
    print(f"\nbeats of a wristband {found} of {len(theirs)}")
    assert min(found) >= 0.9
    table = pytest.importorskip("openpyxl").load_workbook(DATA / "physio_anu" / "P01.xlsx", read_only=True)["P01"]
    eda = np.array([row[0] for row in table.iter_rows(min_row=3, values_only=True)], np.float64)
    phasic = neurokit2.eda_phasic(eda, sampling_rate=4)["EDA_Phasic"].to_numpy()
    theirs = neurokit2.eda_peaks(phasic, sampling_rate=4)[1]["SCR_Peaks"]
    least = 0.1 * scipy.signal.peak_prominences(phasic, theirs)[0].max()
    found = shares(np.flatnonzero(through(eda, 4, PHASIC, Peaks(min_prominence=least, reach_s=60.0))), theirs, 1)
    print(f"\nskin of a participant {found} of {len(theirs)}")
    assert min(found) >= 0.95


def test_rates_are_those_of_the_peaks_that_came_within_the_seconds() -> None:
    pulses, rng = np.zeros(64 * 60), np.random.default_rng(1)
    places = np.cumsum(rng.integers(45, 70, 60))
    pulses[places] = rng.uniform(1, 2, 60)
    measures = ("count", "rate", "interval", "sdnn", "rmssd", "amplitude")
    came = through(pulses, 64, Rate(measures=measures, seconds=20.0))
    for at in (1500, 1501, *(int(places[40]) + 64 * 20 + d for d in (-1, 0)), 3800):
        here = places[(places <= at) & (places > at - 64 * 20)]
        gaps_s = np.diff(here) / 64
        wanted = (3 * len(here), 60 / gaps_s.mean(), gaps_s[-1], 1000 * gaps_s.std(ddof=1))
        wanted += (1000 * np.sqrt((np.diff(gaps_s) ** 2).mean()), pulses[here].mean())
        np.testing.assert_allclose(came[at], wanted)
    assert not came[: places[0]].any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 199), max_size=6))
def test_rates_of_few_peaks_however_they_are_cut(seed: int, cuts: list[int]) -> None:
    pulses = (np.random.default_rng(seed).random((200, 1)) < 0.05).astype(np.float64)
    header = Header("s", 0, signal_format("s", ("c0",), 10, "float64"))
    edges, spec = sorted({0, 200, *cuts}), Rate(measures=("count", "rate"), seconds=3.0)
    chunks = [Chunk(header, a, pulses[a:b]) for a, b in pairwise(edges)]
    check_cut(spec, [Run(header, 0, pulses)], chunks)


@pytest.mark.filterwarnings("ignore")
def test_features_of_a_window() -> None:
    data = noise(640, 3)
    beats = np.cumsum(np.random.default_rng(2).integers(45, 70, 10))
    data[:, 2] = 0
    data[beats, 2] = 1
    data[100:110, 1] = np.nan
    fmt = replace(signal_format("s", ("a", "b.0", "beat"), 64, "float64"), rows=640)
    spec = Features(measures=("a.mean", "a.slope", "b.0.std", "beat.rate", "beat.rmssd", "a.last"))
    (window,) = PerWindow(spec).build().push(Window(Header("s", 0, fmt), 0, 640, 0, 10**10, [data]))
    slope = np.polyfit(np.arange(640) / 64, data[:, 0], 1)[0]
    wanted = [data[:, 0].mean(), slope, np.nanstd(data[:, 1]), 60 * 64 / np.diff(beats).mean()]
    assert window.data.shape == (1, 6)
    np.testing.assert_allclose(window.data[0, [0, 1, 2, 3, 5]], [*wanted, data[-1, 0]])
    neurokit2 = pytest.importorskip("neurokit2")
    assert window.data[0, 4] == pytest.approx(neurokit2.hrv_time(beats, sampling_rate=64)["HRV_RMSSD"].iloc[0])


def test_heart_rate_from_intervals_that_a_wristband_tells() -> None:
    recipe = parse_recipe(IBI)
    beats_s = np.cumsum(np.random.default_rng(4).uniform(0.7, 0.9, 60))
    intervals_s = np.diff(beats_s, prepend=0)
    eda = Chunk(Header("s", 0, signal_format("eda", ("eda",), 4)), 0, np.ones((200, 1), np.float32))
    ibi = Chunk(Header("s", 0, signal_format("ibi", ("ibi",), Fraction(0), "float64", ("s",))), 0, intervals_s[:, None])
    ibi.times_ns, ibi.end, eda.end = (beats_s * 1e9).astype(np.int64), True, True
    windows = run(recipe.chain, [ibi, eda])
    inside = intervals_s[(beats_s >= 10) & (beats_s < 40)]
    window = next(w for w in windows if w.start_index == 40)
    wanted = [60 / inside.mean(), 1000 * np.sqrt((np.diff(inside) ** 2).mean()), 1]
    np.testing.assert_allclose(window.data[0], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("filter", {"cutoff_hz": 3.0}, "less than half of its 4 samples a second"),
        ("filter", {"kind": "bandpass", "cutoff_hz": 1.0}, "expected two, the lower first"),
        ("filter", {"channels": ["bvp"]}, "has no channel bvp"),
        ("filter", {"into": ["eda"]}, "names that are no channel"),
        ("beats", {}, "expected one, or one named"),
        ("rate", {"measures": ["pnn50"], "channels": ["eda"]}, "expected some of count, rate"),
        ("repair", {"channels": ["eda"]}, "takes all channels"),
        ("features", {"measures": ["eda.skew"]}, "expected channel.measure"),
    ],
)
def test_what_does_not_fit_is_said(name: str, parameters: dict[str, Any], text: str) -> None:
    with pytest.raises(FormatError, match=text):
        make_step(name, parameters).output({"eda": replace(signal_format("eda", ("eda", "st"), 4), rows=40)})
