"""Simulated listeners: what is asked for is in the signals, by neurokit2's own measure; the same seed gives the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kymo.lab.synth.listeners import RATES, Part, simulate, simulate_parts, write_e4
from kymo.streams.errors import FormatError
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions

neurokit2 = pytest.importorskip("neurokit2")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("scr_per_min", "heart_rate", "level"), [(4, 60, 1.0), (8, 75, 3.0), (12, 95, 8.0)])
def test_the_rates_that_were_asked_for(scr_per_min: float, heart_rate: float, level: float) -> None:
    signals = simulate(600, 1, scr_per_min, heart_rate, level, 0.005)
    assert {stream: len(signal) for stream, signal in signals.items()} == {s: 600 * r for s, r in RATES.items()}
    beats = neurokit2.ppg_findpeaks(neurokit2.ppg_clean(signals["bvp"], sampling_rate=64), sampling_rate=64)
    assert 60 * 64 / np.mean(np.diff(beats["PPG_Peaks"])) == pytest.approx(heart_rate, rel=0.03)
    phasic = neurokit2.eda_phasic(signals["eda"], sampling_rate=4)["EDA_Phasic"].to_numpy()
    peaks = neurokit2.eda_peaks(phasic, sampling_rate=4)[1]["SCR_Peaks"]
    assert len(peaks) / 10 == pytest.approx(scr_per_min, rel=0.25)
    assert np.median(signals["eda"]) == pytest.approx(level * 1.2, rel=0.4)


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    one, again, other = simulate(30, 5), simulate(30, 5), simulate(30, 6)
    assert all(np.array_equal(one[s], again[s], equal_nan=True) for s in RATES)
    assert not any(np.array_equal(one[s], other[s], equal_nan=True) for s in RATES)


def test_parts_follow_each_other_and_are_written_as_a_wristband_does(tmp_path: Path) -> None:
    parts = [Part(60, 4, 60, "calm"), Part(30, 12, 100, "stress")]
    signals = simulate_parts(parts, 3)
    write_e4(tmp_path / "P1", signals, parts)
    (recording,) = read([tmp_path / "P1"], ReadOptions(label_key="state"))
    assert [(label.label, (label.end_ns - label.start_ns) / 1e9) for label in recording.labels] == [
        ("calm", 60),
        ("stress", 30),
    ]
    streams = {stream.header.format.stream: stream for stream in recording.streams}
    assert "SIMULATED" in (tmp_path / "P1" / "info.txt").read_text()
    for stream in ("eda", "bvp"):
        assert len(signals[stream]) == 90 * RATES[stream]
        assert streams[stream].header.format.rate == RATES[stream]
        np.testing.assert_allclose(streams[stream].data[:, 0], signals[stream], atol=1e-5)


def test_what_cannot_be_simulated() -> None:
    with pytest.raises(FormatError, match="rates above 0"):
        simulate(60, 1, scr_per_min=0)
