"""The recipe `stress` on simulated listeners: its features tell what was simulated, however the signals are cut and interleaved."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from checks import outputs, run, same
from documents import ROOT
from physio_files import e4_files, write_e4

from kymo.lab.synth.listeners import RATES, simulate
from kymo.models.data.dataset import streams_of
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.recipe.load import load_recipe, parse_recipe
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.readers import read

pytest.importorskip("neurokit2")
UNITS = {"eda": "uS", "bvp": "", "temperature": "°C"}


def cut(seconds: int, seed: int, pick: random.Random, **person: float) -> list[Chunk]:
    """A listener's signals as chunks of up to some seconds, as they come: each may be a few seconds ahead of the others."""
    signals, chunks = simulate(seconds, seed, **person), list[tuple[float, int, Chunk]]()
    for stream, unit in UNITS.items():
        header = Header("s", 10**18, signal_format(stream, (stream,), Fraction(RATES[stream]), "float64", (unit,)))
        data, at = signals[stream][:, None], 0
        while at < len(data):
            stop = at + pick.randint(1, 8 * RATES[stream])
            time_s = stop / RATES[stream] + pick.uniform(0, 5)
            chunks.append((time_s, len(chunks), Chunk(header, at, data[at:stop], None, stop >= len(data))))
            at = stop
    ordered = sorted(chunks, key=lambda item: item[0])
    places = {s: iter([c for _, _, c in sorted(ordered, key=lambda item: item[1]) if c.stream == s]) for s in UNITS}
    return [next(places[chunk.stream]) for _, _, chunk in ordered]


def test_features_of_simulated_listeners_however_they_are_cut() -> None:
    specs = load_recipe(ROOT / "recipes" / "stress.toml").chain.specs
    at = next(i for i, s in enumerate(specs) if isinstance(s, PerWindow) and s.spec.learned)
    chain, features = Chain(specs[:at]), specs[at - 1].spec  # type: ignore[attr-defined]
    responses = []
    for scr_per_min, heart_rate in ((3.0, 62.0), (9.0, 90.0)):
        person = {"scr_per_min": scr_per_min, "heart_rate": heart_rate, "level": 3.0, "noise": 0.003}
        windows = run(chain, cut(240, 1, random.Random(1), **person))
        assert [w.start_index for w in windows] == list(range(0, 4 * 181, 40))
        told = dict(zip(features.measures, np.mean([w.data[0] for w in windows[3:]], axis=0), strict=True))
        assert told["rate.mean"] == pytest.approx(heart_rate, rel=0.03)
        responses.append(told["scr.count"])
        same(outputs(run(chain, cut(240, 1, random.Random(2), **person))), outputs(windows))
    assert responses[1] > 1.5 * responses[0]


@pytest.mark.parametrize(("place", "pattern"), [("P0{}_{}", "{subject}_{visit}"), ("P0{}/{}", "{subject}/*")])
def test_several_exports_of_one_person_are_sessions_of_one_subject(tmp_path: Path, place: str, pattern: str) -> None:
    for number in range(4):
        start = 1_600_000_000 + 1000 * number
        write_e4(tmp_path / place.format(number // 2, start), e4_files(5, start))
    text = (ROOT / "recipes" / "stress.toml").read_text()
    recipe = parse_recipe(f'{text}\n[source]\nfile_names = "{pattern}"\n')
    recordings = list(read([tmp_path], recipe.read_options()))
    assert sorted(str(recording.subject) for recording in recordings) == ["P00", "P00", "P01", "P01"]
    assert len({recording.session for recording in recordings}) == 4
    assert all(len(streams_of(recording, recipe)) == 3 for recording in recordings)


def test_an_export_without_temperature_has_zeros_in_its_place() -> None:
    specs = load_recipe(ROOT / "recipes" / "stress.toml").chain.specs
    features, mask = specs[-3].spec, specs[-1].spec  # type: ignore[attr-defined]
    fmt = signal_format("wrist", features.measures, Fraction(4), "float64")
    whole = np.arange(1.0, 13.0)[None]
    row = np.where([name.startswith("temperature.") for name in features.measures], np.nan, whole)
    expected = [*np.nan_to_num(row[0]), 1, 1, 0]
    assert mask.apply(row, fmt)[0].tolist() == expected
    assert mask.apply(whole, fmt)[0].tolist() == [*whole[0], 1, 1, 1]
    assert mask.output({"wrist": fmt}).channels[-3:] == ("mask.eda", "mask.bvp", "mask.temperature")
