"""`kymo init`: a recipe from data that loads, fits its recordings and says what was found."""

from __future__ import annotations

import csv
import math
import tomllib
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from checks import windows_of
from documents import SHARED
from verbs import invoke

import kymo
from kymo.models.data.dataset import streams_of
from kymo.processors.recipe.init import frames, recipe_text, survey_of, window_samples
from kymo.processors.recipe.load import Recipe, load_recipe, parse_recipe
from kymo.streams.errors import SourceWarning
from kymo.streams.readers import read

RATE = 32


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: Path, seconds: float, rate: float = RATE, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["t", "x", "y", "z", *columns])
        for i in range(round(seconds * rate)):
            rows.writerow([i / rate, math.sin(i), math.cos(i), i % 7, *columns.values()])
    return path


init = partial(invoke, "init")


def made(name: str) -> Recipe:
    """The recipe that was written, which must take every window of its data."""
    recipe = load_recipe(name)
    assert recipe.notes == (), "columns must be shared by overlapping windows"
    return recipe


def test_from_a_file() -> None:
    write(Path("walk.csv"), 12, label="walk", subject="s1")
    result = init("shaking", "--from", "walk.csv")
    assert result.stdout.splitlines() == [
        "recipes/shaking.toml: 1 recording, sensor at 32 Hz, 3 channels (x, y, z), windows of 4 s every 2 s",
        "next: kymo train shaking --data walk.csv",
    ]
    recipe = made("shaking")
    assert recipe.inputs[0].rate_hz == RATE
    assert recipe.inputs[0].channels == ("x", "y", "z")
    assert (recipe.window_length, recipe.window_hop) == (128, 64)
    assert recipe.train.split == "subject"  # which is decided by what training finds
    assert recipe.labels.column == "label"
    (recording,) = read(["walk.csv"], recipe.read_options())
    assert recipe.matches(recording.streams[0].header.format) is None


def test_from_a_folder_with_subjects() -> None:
    for i, (label, seconds) in enumerate([("walk", 20), ("run", 9), ("rest", 30)]):
        write(Path("data") / f"{label}.csv", seconds, label=label, subject=f"s{i}", age=30 + i)
    result = init("moves", "--from", "data", "--out", "there")
    assert "next: kymo train there/moves.toml --data data" in result.output
    assert "not taken: age" in result.stderr
    recipe = made("there/moves.toml")
    assert recipe.train.split == "subject"
    assert recipe.window_length == 3 * RATE, "a third of the shortest, which has 9 s"
    text = Path("there/moves.toml").read_text()
    assert "rest, run, walk" in text
    lines = [line for line in text.splitlines() if " = " in line and not line.startswith(("step", "arch", "column"))]
    assert all("#" in line for line in lines), "every line is explained"


def test_windows_fit_the_shortest_recording() -> None:
    write(Path("a.csv"), 1.5)
    write(Path("b.csv"), 60)
    init("short", "--from", "a.csv", "--from", "b.csv")
    assert made("short").window_length <= 48


@pytest.mark.parametrize("rate", [Fraction(1, 10), Fraction(4), Fraction(10), Fraction(100, 3), Fraction(30000, 1001)])
@pytest.mark.parametrize("shortest", [8, 9, 31, 100, 1001, 10**6])
def test_any_window_can_be_cut_into_frames(rate: Fraction, shortest: int) -> None:
    length = window_samples(shortest, rate)
    assert 0 < length <= shortest
    assert length % 2 == 0
    nperseg, noverlap = frames(length, length // 2)
    assert 0 <= noverlap < nperseg <= max(4, length // 3)
    assert length // 2 % (nperseg - noverlap) == 0


def test_odd_rates_are_written_exactly() -> None:
    write(Path("film.csv"), 20, 30000 / 1001)
    init("film", "--from", "film.csv")
    assert made("film").inputs[0].rate_hz == Fraction(30000, 1001)


def test_a_file_without_times_needs_a_rate() -> None:
    Path("n.csv").write_text("x,y\n" + "".join(f"{i % 5},{i % 3}\n" for i in range(400)))
    result = init("n", "--from", "n.csv", status=1)
    assert "say --rate-hz" in result.stderr
    assert "name the column of times `t` (s), `t_ns` or `timestamp`" in result.stderr
    init("n", "--from", "n.csv", "--rate-hz", "0", status=2)
    init("n", "--from", "n.csv", "--rate-hz", "50")
    assert made("n").inputs[0].rate_hz == 50


def test_never_overwrites_unasked() -> None:
    write(Path("a.csv"), 12)
    (Path("recipes")).mkdir()
    file = Path("recipes/mine.toml")
    file.write_text("precious")
    result = init("mine", "--from", "a.csv", status=1)
    assert file.read_text() == "precious"
    assert "--force" in result.stderr
    init("mine", "--from", "a.csv", "--force")
    assert tomllib.loads(file.read_text())["name"] == "mine"


@pytest.mark.parametrize("label", ['a"b', "a\nb", "#", "ü"])
def test_odd_labels_do_not_break_the_file(label: str) -> None:
    write(Path("a.csv"), 12, label=label)
    init("odd", "--from", "a.csv")
    made("odd")


def test_failures() -> None:
    init("a/b", "--from", "x.csv", status=2)
    init("a", status=2)
    result = init("a", "--from", "x.csv", status=1)
    assert result.stderr == "kymo: x.csv: no such file or folder\n"
    write(Path("tiny.csv"), 0.2)
    result = init("a", "--from", "tiny.csv", status=1)
    assert "holds 6 samples, expected at least 8" in result.stderr
    assert not Path("recipes/a.toml").exists()


def test_from_a_foreign_mcap() -> None:
    file = SHARED / "data/imu_mcap/basic_synthetic.mcap"
    if not file.exists():
        pytest.skip("../shared is not there")
    init("mag", "--from", file, "--stream", "acc_raw", "--stream", "mag_raw")
    recipe = made("mag")
    expected = {f"{topic}_raw.{axis}" for topic in ("acc", "mag") for axis in "xyz"}
    assert set(recipe.inputs[0].channels) == expected
    (recording,) = read([file], recipe.read_options())
    assert recipe.matches(recording.streams[0].header.format) is None


def test_of_a_synthetic_recording_the_raw_topics_are_taken_with_their_units(tmp_path: Path) -> None:
    counts = {"calibration": {"matrix": [[0.00053, 0, 0], [0, 0.00053, 0], [0, 0, 0.00053]]}}
    segments = [{"duration_s": 5, "rotation_rpy_degrees": {"roll": 30, "pitch": 20, "yaw": 40 * n}} for n in (1, 2, 3)]
    kymo.synth({"initialization": {"sample_rate": 50, "mag": counts}, "segments": segments}, tmp_path / "x.mcap")
    init("plain", "--from", tmp_path / "x.mcap")
    source = made("plain").inputs[0]
    assert {name.partition(".")[0] for name in source.channels} == {"mag_raw", "acc_raw", "gyro_raw"}
    units = {name.partition("_")[0]: unit for name, unit in zip(source.channels, source.units, strict=True)}
    assert units == {"mag": "counts", "acc": "g", "gyro": "rad/s"}
    (tmp_path / "e.json").write_text('{"dirname": ".", "labelFiles": [{"filePath": "x.labels.json"}]}')
    (tmp_path / "x.labels.json").write_text('{"events": []}')
    init("listed", "--from", tmp_path / "e.json")
    assert made("listed").inputs == made("plain").inputs


def test_odd_rates_give_plain_numbers(tmp_path: Path) -> None:
    """A clock that runs at 19.905 Hz: no fraction of two long numbers stands in the recipe, and it is read as it stands."""
    rows = [f"{1.7e9 + i / 19.90497:.4f},{math.sin(i / 3):.3f},{i % 7},{'ab'[i // 200]}" for i in range(400)]
    (tmp_path / "a.csv").write_text("\n".join(["timestamp,ax,ay,label", *rows]))
    text = recipe_text("odd", survey_of([tmp_path / "a.csv"]))
    assert '"' not in "".join(
        line.partition("#")[0] for line in text.splitlines() if "_s =" in line or "rate_hz" in line
    )
    recipe = parse_recipe(text)
    assert recipe.window_length % 2 == 0
    (recording,) = read([tmp_path / "a.csv"], recipe.read_options())
    assert recording.streams[0].count == 400


def test_what_says_the_label_or_counts_is_no_channel(tmp_path: Path) -> None:
    for n in range(3):
        rows = [f"{i / 50:.2f},{i},{i // 100},{math.sin(i):.3f},{i % 7},{'abc'[i // 100]}" for i in range(300)]
        (tmp_path / f"{n}.csv").write_text("\n".join(["t,frame,label_id,ax,ay,label", *rows]))
    found = survey_of([tmp_path])
    assert found.channels == ("ax", "ay")
    assert any("label_id" in remark for remark in found.remarks)


def test_rates_that_a_recipe_takes_are_counted_in(tmp_path: Path) -> None:
    for name, rate in (("a", 50), ("b", 50.2), ("c", 80)):
        rows = [f"{i / rate:.5f},{math.sin(i):.3f},{i % 7}" for i in range(300)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["t,ax,ay", *rows]))
    found = survey_of([tmp_path])
    assert [remark.partition(";")[0] for remark in found.remarks if "rates" in remark] == [
        "recordings of other rates are not taken: 80 Hz (1)"
    ]
    with pytest.warns(SourceWarning, match="80 Hz"):
        taken = [one.session for one in read([tmp_path], parse_recipe(recipe_text("r", found)).read_options())]
    assert taken == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tick", lambda i: 20 * i, "rises evenly"),
        ("sensor_clk", lambda i: 20 * i + i * 7919 % 5, "rises evenly"),
        ("code", lambda i: max(i - 2, 0) // 100, "whole numbers that stay"),  # the label's, two samples late
        ("activity", lambda i: i // 75, "whole numbers that stay"),
        ("age", lambda i: 31, "the same number"),
    ],
)
def test_clocks_and_codes_are_no_channels(tmp_path: Path, name: str, value: Any, said: str) -> None:
    for n in range(2):
        rows = [f"{i / 50:.2f},{value(i)},{math.sin(i):.3f},{i * i % 7},{'abc'[i // 100]}" for i in range(300)]
        (tmp_path / f"{n}.csv").write_text("\n".join([f"t,{name},ax,state,label", *rows]))
    found = survey_of([tmp_path])
    assert found.channels == ("ax", "state")
    assert [remark for remark in found.remarks if said in remark and remark.count(name) == 1], found.remarks


def test_what_cannot_be_read_in_a_folder_or_is_too_short_does_not_end_it(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 12, label="walk")
    write(tmp_path / "b.csv", 0.1, label="walk")
    for name in ("c.mcap", "d.parquet", "e.csv", "._a.csv"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7 nothing")
    with pytest.warns(SourceWarning, match="left out"):
        found = survey_of([tmp_path])
    assert (found.recordings, found.shortest) == (2, 384)
    assert "fewer than 8 samples without a gap, too few for a window: b" in found.remarks


def test_a_channel_that_is_mostly_empty_is_none(tmp_path: Path) -> None:
    rows = [f"{i / 100:.2f},{i % 7},{'' if i % 9 else i}" for i in range(600)]
    (tmp_path / "a.csv").write_text("\n".join(["t,ax (g),hr", *rows]))
    found = survey_of([tmp_path])
    assert (found.channels, found.units, found.shortest) == (("ax (g)",), ("g",), 600)
    assert "empty in most samples, so not taken: hr" in found.remarks


def test_what_was_doubted_in_reading_is_said() -> None:
    """What the recipe holds, such as the rate, needs no word."""
    for name in "ab":
        rows = "\n".join(f"{20 * i},{math.sin(i)},{i % 7}" for i in range(100))
        Path(f"data/{name}.csv").parent.mkdir(exist_ok=True)
        Path(f"data/{name}.csv").write_text(f"t,x,y\n{rows}\n")
    result = init("slow", "--from", "data")
    said = "`t` is read as seconds, its steps are 20; if they are ms, name it `time_ms`"
    assert result.stderr.splitlines() == [f"a and 1 more: {said}"]


def write_sensors(folder: Path, seconds: float, rates: dict[str, float], **columns: Any) -> None:
    """A recording as a folder with a file a sensor."""
    for name, rate in rates.items():
        write(folder / f"{name}.csv", seconds, rate, **columns)


def test_irregular_streams_are_named_and_left_to_the_user(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/EDA.csv").write_text("946684801.0\n4.0\n" + "".join(f"{math.sin(i)}\n" for i in range(160)))
    (tmp_path / "s/IBI.csv").write_text("946684801.0, IBI\n1.5,0.8\n2.4,0.9\n")
    result = init("beats", "--from", tmp_path / "s")
    assert "irregular, so not taken: ibi; an [[input]] with rate_hz = 0 takes it" in result.stderr
    assert [table.stream for table in made("beats").inputs] == ["eda"]


def test_streams_that_every_recording_has_are_joined(tmp_path: Path) -> None:
    for number, seconds in enumerate((24, 30, 40)):
        rates = {"eda": 4.0, "bvp": 64.0} | ({"temp": 2.0} if number else {})
        write_sensors(
            tmp_path / f"s{number}", seconds, rates, label="calm" if number else "stress", subject=f"p{number}"
        )
    result = init("wrist", "--from", tmp_path)
    assert result.stdout.splitlines()[0] == (
        "recipes/wrist.toml: 3 recordings, bvp at 64 Hz and eda at 4 Hz, 6 channels (x, y, z, x, y, z), windows of 5 s every 2.5 s"
    )
    assert "took streams bvp, eda; also there: temperature (choose with --stream)" in result.stderr
    recipe = made("wrist")
    assert [(table.stream, table.rate_hz, table.required) for table in recipe.inputs] == [
        ("bvp", 64, False),
        ("eda", 4, False),
    ]
    assert recipe.join is not None
    assert (recipe.join.grid, recipe.rate_hz) == ("bvp", 64)
    assert [type(variation).__name__ for variation in recipe.train.augment] == ["ModalityDropout"]
    assert recipe.output_format().channels[-2:] == ("mask.bvp", "mask.eda")
    for recording, seconds in zip(read([tmp_path], recipe.read_options()), (24, 30, 40), strict=True):
        windows = windows_of(streams_of(recording, recipe), recipe.chain.cut_behind_window()[0])
        assert [window.absent for window in windows[:-1]] == [()] * (int((seconds - 5) / 2.5))
    alone = init("one", "--from", tmp_path, "--stream", "eda")
    assert "eda at 4 Hz, 3 channels" in alone.stdout
    assert load_recipe("one").join is None
    both = init("two", "--from", tmp_path / "s1", "--stream", "eda", "--stream", "temp")
    assert "eda at 4 Hz and temp at 2 Hz" in both.stdout


def test_files_that_are_named_as_streams_are_one_session(tmp_path: Path) -> None:
    """Two devices write the same columns: only the user knows whether their files are one session, and is asked."""
    for number in range(3):
        for foot in ("left", "right"):
            write(
                tmp_path / f"run{number}" / f"{foot}.csv", 20, label="slow" if number else "fast", subject=f"p{number}"
            )
    apart = init("apart", "--from", tmp_path)
    assert apart.stdout.startswith("recipes/apart.toml: 6 recordings, sensor at 32 Hz, 3 channels")
    said = "each folder holds left and right: if a folder is one session, say --stream left --stream right"
    assert said in apart.stderr.splitlines()
    joined = init("feet", "--from", tmp_path, "--stream", "imu.left", "--stream", "imu.right")
    assert joined.stdout.startswith(
        "recipes/feet.toml: 3 recordings, imu.left at 32 Hz and imu.right at 32 Hz, 6 channels"
    )
    recipe = made("feet")
    assert [table.stream for table in recipe.inputs] == ["imu.left", "imu.right"]
    for recording in read([tmp_path], recipe.read_options()):
        windows = windows_of(streams_of(recording, recipe), recipe.chain.cut_behind_window()[0])
        assert [window.absent for window in windows] == [()] * 7


def test_one_file_is_not_several_streams(tmp_path: Path) -> None:
    write(tmp_path / "walk.csv", 12)
    result = init("both", "--from", tmp_path, "--stream", "acc", "--stream", "gyr", status=1)
    assert "walk.csv: acc and gyr would each be all its channels (x, y, z)" in result.stderr
    assert "leave out --stream" in result.stderr


def test_a_stream_without_a_signal_is_no_input(tmp_path: Path) -> None:
    for number in range(2):
        write_sensors(tmp_path / f"s{number}", 20, {"eda": 4.0, "bvp": 64.0})
        rows = "".join(f"{second},0.8\n" for second in range(20))
        (tmp_path / f"s{number}/battery.csv").write_text(f"t,level\n{rows}")
    result = init("wrist", "--from", tmp_path)
    assert [table.stream for table in made("wrist").inputs] == ["bvp", "eda"]
    assert "without a channel that is a signal, so not taken: battery" in result.stderr.splitlines()
    init("asked", "--from", tmp_path, "--stream", "bvp", "--stream", "battery")
    assert [table.stream for table in made("asked").inputs] == ["bvp", "battery"]
