"""Files that are one session: however they lie, the same recording; what is said of those that are not together."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from archive_lab import chunk_record, write_archive
from checks import windows_of

from kymo.models.data.dataset import read_dataset, streams_of
from kymo.processors.recipe.load import parse_recipe
from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, LabelOptions, ReadOptions, Recording
from kymo.streams.replay.cli import choose
from kymo.streams.replay.schedule import ReplayPlan, schedule
from kymo.streams.sessions import session_record
from kymo.streams.topics import topic_of

AXES = ("ax", "ay")
FEET = tuple(InputOptions(f"imu.{foot}", AXES, Fraction(50)) for foot in ("left", "right"))
WRIST = (InputOptions("eda", ("eda",), Fraction(4)), InputOptions("bvp", ("bvp",), Fraction(64)))
NOW = 1_700_000_000.0
SEEDS = {"left": 1, "right": 2, "eda": 3, "bvp": 4}


def values(kind: str, count: int) -> np.ndarray:
    return np.random.default_rng(SEEDS[kind]).integers(-999, 999, (count, 2 if kind in ("left", "right") else 1)) / 100


def table(
    path: Path,
    kind: str,
    seconds: float = 10,
    start: float = NOW,
    more: str = "",
    **columns: Callable[[int], str] | str,
) -> Path:
    """A CSV of one device, whose numbers its kind tells; further columns are texts, or functions of the row."""
    rate = {"left": 50, "right": 50, "eda": 4, "bvp": 64}[kind]
    rows = values(kind, round(seconds * rate))
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ["timestamp" if start > 10**8 else "t", *(AXES if kind in ("left", "right") else [kind]), *columns]
    lines = [
        ",".join(
            [
                f"{start + i / rate:.6f}",
                *(f"{v:.2f}" for v in row),
                *(c if isinstance(c, str) else c(i) for c in columns.values()),
            ]
        )
        for i, row in enumerate(rows)
    ]
    path.write_text("\n".join([",".join(head), *lines, ""]))
    return path


def feet(recording: Recording, seconds: float = 10) -> None:
    """Both feet, each with its own numbers."""
    assert sorted(s.header.format.stream for s in recording.streams) == ["imu.left", "imu.right"]
    for stream in recording.streams:
        kind = stream.header.format.stream.partition(".")[2]
        np.testing.assert_allclose(stream.data, values(kind, round(50 * seconds)), atol=1e-6)
        assert stream.start_ns == round(NOW * 10**9)


@pytest.mark.parametrize(
    ("left", "right", "pattern", "session"),
    [
        ("rec/imu.left.csv", "rec/imu.right.csv", None, "rec"),
        ("rec/imu_left.csv", "rec/imu_right.csv", None, "rec"),
        ("rec/left.csv", "rec/right.csv", None, "rec"),
        ("rec/LeftIMU.csv", "rec/Right-imu.csv", None, "rec"),
        ("rec/walk1_left.csv", "rec/walk1_right.csv", "{session}_{place}", "walk1"),
        ("rec/left/walk1.csv", "rec/right/walk1.csv", "{place}/*", "walk1"),
        ("rec/walk1/imu-left/Raw Data.csv", "rec/walk1/imu-right/Raw Data.csv", "{session}/{stream}/*", "walk1"),
        ("rec/walk1/left_acc.csv", "rec/walk1/right_acc.csv", "{place}_*", "acc"),
        ("rec/walk1-left-v2.csv", "rec/walk1-right-v2.csv", "*-{place}-*", "walk1-v2"),
    ],
)
def test_two_devices_however_their_files_are_named(
    tmp_path: Path, left: str, right: str, pattern: str | None, session: str
) -> None:
    paths = [table(tmp_path / left, "left"), table(tmp_path / right, "right")]
    options = ReadOptions(inputs=FEET, file_names=pattern)
    for named in ([tmp_path / "rec"], paths, paths[::-1]):
        (recording,) = read(named, options)
        feet(recording)
        assert recording.session == session
    # A name that they are given makes them one, too.
    (recording,) = choose(list(map(str, paths)), options, "mine", None)
    feet(recording)
    assert recording.session == "mine"
    (alone,) = choose(list(map(str, paths)), options, None, "imu.right")
    assert [s.header.format.stream for s in alone.streams] == ["imu.right"]
    # Packed, as an app would send them.
    with zipfile.ZipFile(tmp_path / "rec.zip", "w") as packed:
        for path in paths:
            packed.write(path, path.relative_to(tmp_path / "rec"))
    (recording,) = read([tmp_path / "rec.zip"], options)
    feet(recording)
    assert recording.session in (session, f"rec-{session}", "rec")


def test_a_folder_of_folders_and_what_is_said_of_names_that_tell_nothing(tmp_path: Path) -> None:
    for session in ("a", "b"):
        for foot in ("left", "right"):
            table(tmp_path / "d" / session / f"{foot}.csv", foot)
    table(tmp_path / "d" / "c" / "left.csv", "left")
    recordings = {r.session: r for r in read([tmp_path / "d"], ReadOptions(inputs=FEET))}
    assert sorted(recordings) == ["a", "b", "c"]
    feet(recordings["a"])
    feet(recordings["b"])
    assert [s.header.format.stream for s in recordings["c"].streams] == ["imu.left"]
    assert any("no file has stream `imu.right` of it" in note for note in recordings["c"].notes)
    # What each lacks the other has, and nothing says that they are one.
    for name in ("eda", "bvp"):
        table(tmp_path / "f" / f"my_{name}.csv", name)
    for recording in read([tmp_path / "f"], ReadOptions(inputs=WRIST)):
        assert any("files of one session are named after their streams" in note for note in recording.notes)
    # Two streams of the same columns: nothing tells which a file is.
    for name in ("one", "two"):
        table(tmp_path / "e" / f"{name}.csv", "left")
    with pytest.raises(
        SourceError,
        match=r"one.csv: .*ax, ay are those of `imu.left` and of `imu.right`: let its name say which \(imu_left.csv\)",
    ):
        list(read([tmp_path / "e"], ReadOptions(inputs=FEET)))
    # A recipe of one stream takes files as it did.
    assert sorted(r.session for r in read([tmp_path / "d" / "a"], ReadOptions(inputs=FEET[:1]))) == ["left", "right"]


def test_folders_of_two_phones_and_sensors_by_other_names(tmp_path: Path) -> None:
    sensors = [f"{sensor}.{foot}" for sensor in ("accelerometer", "gyroscope") for foot in ("left", "right")]
    inputs = tuple(InputOptions(stream, AXES, Fraction(50)) for stream in sensors)
    for walk in ("w1", "w2"):
        for stream in sensors:
            sensor, _, foot = stream.partition(".")
            table(tmp_path / "d" / walk / foot / f"{sensor.title()}.csv", foot, 4, NOW + (foot == "right"))
    for pattern in ("{session}/{place}/{stream}", "{place}/{stream}"):
        recordings = list(read([tmp_path / "d"], ReadOptions(inputs=inputs, file_names=pattern)))
        assert [r.session for r in recordings] == ["w1", "w2"]
        for recording in recordings:
            begins = {s.header.format.stream: s.start_ns / 1e9 - NOW for s in recording.streams}
            assert begins == {stream: float(stream.endswith("right")) for stream in sensors}
    with pytest.raises(
        SourceError,
        match=r"is one recording of the streams accelerometer, gyroscope; .* can say what tells files apart",
    ):
        list(read([tmp_path / "d"], ReadOptions(inputs=inputs)))
    # A recipe that calls sensors otherwise finds them by their channels.
    text = table(tmp_path / "e" / "Accelerometer.csv", "left").read_text()
    (tmp_path / "e" / "Gyroscope.csv").write_text(text.replace("ax,ay", "gx,gy"))
    called = (InputOptions("acceleration", AXES), InputOptions("rotation", ("gx", "gy")))
    (recording,) = read([tmp_path / "e"], ReadOptions(inputs=called))
    assert [s.header.format.stream for s in recording.streams] == ["acceleration", "rotation"]
    assert not any("read without it" in note for note in recording.notes)


def test_a_session_column_says_more_than_names(tmp_path: Path) -> None:
    def third(rate: int) -> Callable[[int], str]:
        return lambda i: "uvw"[min(2, i // (rate * 4))]

    table(tmp_path / "x" / "skin.csv", "eda", 12, session=third(4))
    table(tmp_path / "y" / "pulse.csv", "bvp", 8, session=third(64))
    found = list(read([tmp_path], ReadOptions(inputs=WRIST)))
    got = {r.session: {s.header.format.stream: s.count for s in r.streams} for r in found}
    assert got == {"u": {"eda": 16, "bvp": 256}, "v": {"eda": 16, "bvp": 256}, "w": {"eda": 16}}
    assert [r.session for r in found] == ["u", "v", "w"]
    assert not any("read without it" in note for r in found[:2] for note in r.notes)
    assert any("no column of stream `bvp`: read without it" in note for note in found[2].notes)
    np.testing.assert_allclose(found[1].streams[1].data, values("bvp", 512)[256:], atol=1e-6)
    # So it does in a folder whose names are streams; what has no such column is a session of its own.
    for name in ("eda", "bvp"):
        table(tmp_path / "z" / f"{name}.csv", name, 12, **({"session": third(4)} if name == "eda" else {}))
    assert sorted(r.session for r in read([tmp_path / "z"], ReadOptions(inputs=WRIST))) == ["u", "v", "w", "z"]
    # A session that comes again stays apart, whoever reads it.
    table(tmp_path / "x" / "again.csv", "eda", 4, session="u")
    assert [r.session for r in read([tmp_path / "x"], ReadOptions(inputs=WRIST))].count("u") == 2


@pytest.mark.parametrize("column", [False, True])
def test_an_exact_name_comes_before_a_kind(tmp_path: Path, column: bool) -> None:
    inputs = (InputOptions("imu", ("gx", "gy")), InputOptions("imu.left", AXES))
    more = {"session": "rec"} if column else {}
    names = ("a", "b") if column else ("imu_left", "imu")
    text = table(tmp_path / "rec" / f"{names[0]}.csv", "left", **more).read_text()
    (tmp_path / "rec" / f"{names[1]}.csv").write_text(text.replace("ax,ay", "gx,gy"))
    (recording,) = read([tmp_path / "rec"], ReadOptions(inputs=inputs))
    assert {s.header.format.stream: s.header.format.channels for s in recording.streams} == {
        "imu": ("gx", "gy"),
        "imu.left": AXES,
    }


def test_labels_and_subject_of_any_one_file_hold_for_all(tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    table(folder / "eda.csv", "eda", person="ann", label=lambda i: "calm" if i < 20 else "stressed", mood="low")
    table(folder / "bvp.csv", "bvp", 10)
    options = ReadOptions(inputs=WRIST, subject="person", more_labels=(LabelOptions("mood"),))
    (recording,) = read([folder], options)
    assert recording.subject == "ann"
    assert [(label.set, label.label, (label.end_ns - label.start_ns) // 10**9) for label in recording.labels] == [
        ("label", "calm", 5),
        ("mood", "low", 10),
        ("label", "stressed", 5),
    ]
    assert not any("without labels" in note for note in recording.notes)
    # So they do where nobody asks for the stream of that file.
    (pulse,) = read([folder], replace(options, inputs=WRIST[1:]))
    assert [s.header.format.stream for s in pulse.streams] == ["bvp"]
    assert (pulse.labels, pulse.subject) == (recording.labels, "ann")
    assert not any("without labels" in note for note in pulse.notes)
    table(folder / "bvp.csv", "bvp", 10, person="ben")
    with pytest.raises(SourceError, match=r"session rec has the subjects ben \(bvp.csv\) and ann \(eda.csv\)"):
        list(read([folder], options))


def test_one_file_that_holds_both_and_one_that_lacks_channels(tmp_path: Path) -> None:
    both = [
        InputOptions(f"imu.{foot}", tuple(f"{foot}_{axis}" for axis in AXES), Fraction(50))
        for foot in ("left", "right")
    ]
    rows = np.hstack([values("left", 500), values("right", 500)])
    lines = [f"{NOW + i / 50:.3f},{','.join(f'{v:.2f}' for v in row)}" for i, row in enumerate(rows)]
    path = tmp_path / "walk.csv"
    path.write_text("\n".join(["timestamp,left_ax,left_ay,right_ax,right_ay", *lines, ""]))
    (recording,) = read([path], ReadOptions(inputs=tuple(both)))
    assert [s.header.format.channels for s in recording.streams] == [item.channels for item in both]
    np.testing.assert_allclose(np.hstack([s.data for s in recording.streams]), rows, atol=1e-6)
    path.write_text(path.read_text().replace("right_ay", "other"))
    with pytest.raises(
        SourceError, match=r"walk.csv: .*no column of stream `imu.right`: `right_ay`.*there are: timestamp, left_ax"
    ):
        list(read([path], ReadOptions(inputs=tuple(both))))
    slow = (replace(both[0], channels=("left_ax",)), replace(both[1], channels=("left_ay",), rate_hz=Fraction(4)))
    with pytest.raises(SourceError, match=r"walk.csv: stream `imu.right`: the times say 50 Hz, the recipe says 4 Hz"):
        list(read([path], ReadOptions(inputs=slow)))
    with pytest.raises(SourceError, match=r"walk.csv: .*asked for: `eda` \(eda\), `bvp` \(bvp\); there are"):
        list(read([path], ReadOptions(inputs=WRIST)))


@pytest.mark.parametrize(
    ("starts", "said", "begins"),
    [
        ((0, 0), "count from one moment", {"eda": 0, "bvp": 0}),
        ((0, 10), "count from one moment", {"eda": 0, "bvp": 10}),
        ((5000, 90), "bvp are taken to begin with eda.csv", {"eda": 5000, "bvp": 5000}),
        ((NOW, NOW + 10), "", {"eda": NOW, "bvp": NOW + 10}),
    ],
)
def test_clocks_of_one_session(
    tmp_path: Path, starts: tuple[float, float], said: str, begins: dict[str, float]
) -> None:
    table(tmp_path / "rec" / "eda.csv", "eda", 30, starts[0])
    table(tmp_path / "rec" / "bvp.csv", "bvp", 20, starts[1], label="on")
    (recording,) = read([tmp_path / "rec"], ReadOptions(inputs=WRIST))
    assert {s.header.format.stream: s.start_ns / 1e9 for s in recording.streams} == begins
    assert [label.start_ns / 1e9 for label in recording.labels] == [begins["bvp"]]
    assert any("times without a date" in note for note in recording.notes) == bool(said)
    assert any(said in note for note in recording.notes)


def test_tags_may_come_before_a_session_but_not_years(tmp_path: Path) -> None:
    table(tmp_path / "rec" / "eda.csv", "eda", 30, NOW)
    inputs = (WRIST[0], InputOptions("tags", ("tag",), Fraction(0)))
    for at, count, years in ((NOW, 2, 0), (NOW - 9, 2, 0), (NOW - 365 * 86400, 1, 1)):
        (tmp_path / "rec" / "tags.csv").write_text(f"timestamp,tag\n{at},1\n")
        told: list[str] = []
        (recording,) = read([tmp_path / "rec"], ReadOptions(inputs=inputs), told.append)
        assert (len(recording.streams), len(told)) == (count, years)


@pytest.mark.parametrize(
    ("starts", "offset_s", "said"),
    [
        ((NOW, 0), 0, r"bvp.csv: shares no time with eda.csv: its times have no date, and those of that do"),
        ((0, NOW), 0, r"bvp.csv: shares no time with eda.csv: its times have a date, and those of that do not"),
        (
            (NOW, NOW - 365 * 86400),
            0,
            r"bvp.csv: shares no time with eda.csv \(365.0 days between them\): is its clock another one\?",
        ),
        ((NOW, NOW - 365 * 86400), 365 * 86400, ""),
        ((NOW, NOW + 31), 0, r"\(1.0 s between them\)"),
    ],
)
def test_clocks_that_are_none_of_one_session(
    tmp_path: Path, starts: tuple[float, float], offset_s: int, said: str
) -> None:
    table(tmp_path / "rec" / "eda.csv", "eda", 30, starts[0])
    table(tmp_path / "rec" / "bvp.csv", "bvp", 20, starts[1])
    bvp = InputOptions("bvp", ("bvp",), Fraction(64), offset_ns=offset_s * 10**9)
    told: list[str] = []
    (recording,) = read([tmp_path / "rec"], ReadOptions(inputs=(WRIST[0], bvp)), told.append)
    assert len(recording.streams) == (1 if said else 2)
    assert len(told) == bool(said)
    assert all(re.search(said, line) for line in told)


def test_what_cannot_be_read_stops_none_of_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    table(folder / "eda.csv", "eda")
    (folder / "bvp.csv").write_text("")
    (folder / "notes.csv").write_text("what\nnothing\n")
    told: list[str] = []
    (recording,) = read([folder], ReadOptions(inputs=WRIST), told.append)
    assert [s.header.format.stream for s in recording.streams] == ["eda"]
    assert {Path(line.partition(": ")[0]).name for line in told} == {"bvp.csv", "notes.csv"}


JOINED = """
name = "walk"
[[input]]
stream = "imu.left"
rate_hz = 50
channels = ["ax", "ay"]
[[input]]
stream = "eda"
rate_hz = 4
channels = ["eda"]
[join]
rate_hz = 50
grid = "imu.left"
[window]
length_s = 2
hop_s = 1
"""


def test_an_archive_of_several_topics_gives_the_same_windows(tmp_path: Path) -> None:
    table(tmp_path / "rec" / "left.csv", "left", 20, NOW + 3)
    table(tmp_path / "rec" / "eda.csv", "eda", 12)
    recipe = parse_recipe(JOINED)
    (recording,) = read([tmp_path / "rec"], recipe.read_options())
    due = list(schedule([recording], [0], ReplayPlan(speed=None)))
    times = [item.chunk.header.time_ns(item.chunk.end_index - 1) for item in due]
    assert times == sorted(times)  # as they lie in time, at any speed
    assert {topic_of(item.chunk.stream) for item in due} == {"physio", "sensor"}
    assert [stream["stream"] for stream in session_record(recording)["streams"]] == ["eda", "imu.left"]
    records = [chunk_record(i, item.chunk, topic_of(item.chunk.stream)) for i, item in enumerate(due)]
    write_archive(tmp_path / "archive", [records[:70], records[70:]])
    (again,) = read([tmp_path / "archive"], recipe.read_options())
    assert again.session == recording.session
    before, after = (windows_of(streams_of(r, recipe), recipe.chain) for r in (recording, again))
    assert len(before) == 7  # of the 8.75 s that both have
    assert [(w.start_index, w.data.tobytes()) for w in after] == [(w.start_index, w.data.tobytes()) for w in before]


def test_labels_are_by_the_clock_of_the_file_that_they_stand_in(tmp_path: Path) -> None:
    """What a recipe adds to the times of its samples is added to theirs."""
    folder = tmp_path / "walk"
    folder.mkdir()
    rows = [f"{i / 4},{i % 3},{'rest' if i < 40 else 'run'}" for i in range(80)]
    (folder / "eda.csv").write_text("\n".join(["t,eda,label", *rows]))
    (folder / "bvp.csv").write_text("\n".join(["t,bvp", *(f"{i / 64},{i % 5}" for i in range(64 * 20))]))
    for offset_ns in (0, 3 * 10**9):
        eda = InputOptions("eda", ("eda",), Fraction(4), offset_ns=offset_ns)
        bvp = InputOptions("bvp", ("bvp",), Fraction(64))
        for paths, inputs in (([folder], (bvp, eda)), ([folder / "eda.csv"], (bvp, eda))):
            (recording,) = read(paths, ReadOptions(inputs=inputs))
            spans = [(label.label, label.start_ns, label.end_ns) for label in recording.labels]
            ends = [offset_ns + seconds * 10**9 for seconds in (0, 10, 20)]
            assert spans == [("rest", ends[0], ends[1]), ("run", ends[1], ends[2])]
            assert {stream.start_ns for stream in recording.streams} == {0}


@pytest.mark.parametrize("column", [False, True])
def test_a_recording_is_given_once_no_file_to_come_can_add_to_it(tmp_path: Path, column: bool) -> None:
    for n in range(8):
        table(tmp_path / f"walk{n}.csv", "left", 1, **({"session": f"s{n}"} if column else {}))
    inputs = (FEET[0], *WRIST)
    told: list[str] = []
    recordings = read([tmp_path], ReadOptions(inputs=inputs), told.append)
    assert [next(recordings).session, next(recordings).session] == (["s0", "s1"] if column else ["walk0", "walk1"])
    (tmp_path / "walk7.csv").unlink()  # nobody has read it yet
    assert len(list(recordings)) == 5
    assert len(told) == 1
    # What comes last may be what a first one waits for.
    table(tmp_path / "walk7.csv", "left", 1, **({"session": "s7"} if column else {}))
    table(tmp_path / "z.csv", "eda", 1, session="s0" if column else "walk0")
    found = {
        r.session: [s.header.format.stream for s in r.streams] for r in read([tmp_path], ReadOptions(inputs=inputs))
    }
    first = "s0" if column else "walk0"
    assert found.pop(first) == ["imu.left", "eda"]
    assert list(found.values()) == [["imu.left"]] * 7


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 1, 3, 2), (2, 0, 3, 1), (3, 2, 1, 0)])
@pytest.mark.parametrize("cut", [10, 4])
def test_parts_of_a_session_are_put_together_by_time(tmp_path: Path, order: tuple[int, ...], cut: int) -> None:
    parts = [("left", 0, 10), ("left", 10, 20), ("eda", 0, cut), ("eda", cut, 20)]
    for place, n in enumerate(order):
        kind, begin, end = parts[n]
        table(tmp_path / f"{place}.csv", kind, end - begin, NOW + begin, session="s")
    told: list[str] = []
    found = list(read([tmp_path], ReadOptions(inputs=(FEET[0], WRIST[0])), told.append))
    assert not told
    spans = [{s.header.format.stream: (s.start_ns / 1e9 - NOW, s.end_ns / 1e9 - NOW) for s in r.streams} for r in found]
    assert sorted(spans, key=lambda span: span["eda"]) == [
        {"imu.left": (0, 10), "eda": (0, cut)},
        {"imu.left": (10, 20), "eda": (cut, 20)},
    ]


def test_labels_of_several_files_are_all_of_the_session(tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    table(folder / "eda.csv", "eda", 10, label=lambda i: "calm" if i < 20 else "")
    table(folder / "bvp.csv", "bvp", 10, label=lambda i: "stressed" if i >= 320 else "calm" if i >= 128 else "")
    table(folder / "acc.csv", "left", 10, label=lambda i: "calm" if i < 25 else "glad" if i >= 450 else "")
    for inputs in (WRIST, (*WRIST, InputOptions("acc", AXES))):  # asked for or not
        (recording,) = read([folder], ReadOptions(inputs=inputs))
        spans = [(label.label, label.start_ns / 1e9 - NOW, label.end_ns / 1e9 - NOW) for label in recording.labels]
        assert spans == [("calm", 0, 5), ("stressed", 5, 10), ("glad", 9, 10)]


LATE = JOINED.replace('channels = ["eda"]', 'channels = ["eda"]\noffset_ms = 3000') + "[labels]\n"


@pytest.mark.parametrize("kind", ["json", "folder's json", "another's"])
def test_labels_move_with_the_clock_of_their_file(tmp_path: Path, kind: str) -> None:
    """The skin's clock is 3 s behind, and its labels change 5 s after it has begun."""
    table(tmp_path / "rec" / "left.csv", "left", 20, NOW + 3)
    table(tmp_path / "rec" / "eda.csv", "eda", 20)
    text = LATE
    begin = NOW if kind == "json" else NOW + 3
    if "json" in kind:
        text += 'key = "mood"\n'
        events = [
            {
                "startTime": {"sec": int(begin) + at, "nsec": 0},
                "endTime": {"sec": int(begin) + until, "nsec": 0},
                "metadata": {"mood": name},
            }
            for name, at, until in (("calm", 0, 5), ("stressed", 5, 20))
        ]
        path = tmp_path / ("rec/eda.labels.json" if kind == "json" else "rec.labels.json")
        path.write_text(json.dumps({"events": events}))
    if kind == "another's":
        table(tmp_path / "rec" / "bvp.csv", "bvp", 20, NOW + 3, label=lambda i: "calm" if i < 320 else "stressed")
    recipe = parse_recipe(text)
    dataset = read_dataset(read([tmp_path / "rec"], recipe.read_options()), recipe, recipe.chain)
    got = [(example.window.start_ns / 1e9 - NOW - 3, example.label) for example in dataset.examples]
    classes_at = [(at, "calm" if at <= 4 else "stressed") for at in range(18)]
    assert got == classes_at


def test_what_a_name_says_holds_where_the_streams_will_be(tmp_path: Path) -> None:
    eda = InputOptions("eda", ("eda",), Fraction(4), offset_ns=3 * 10**9)
    path = table(tmp_path / "calm.csv", "eda", 20)
    (recording,) = read([path], ReadOptions(inputs=(eda, WRIST[1]), file_names="{label}"))
    spans = [(label.label, label.start_ns / 1e9 - NOW, label.end_ns / 1e9 - NOW) for label in recording.labels]
    assert spans == [("calm", 3, 23)]


COUNTED = JOINED.replace(
    "[join]",
    """[[input]]
stream = "tags"
rate_hz = 0
channels = ["tag"]
sample = "count"
[join]""",
)


@pytest.mark.parametrize("text", ["", "timestamp,tag\n", "timestamp,tag"])
def test_where_no_tag_was_pressed_none_is_counted(tmp_path: Path, text: str) -> None:
    recipe, told = parse_recipe(COUNTED), list[str]()
    for name, rows in (("a", f"timestamp,tag\n{NOW + 5},1\n"), ("b", text)):
        table(tmp_path / name / "left.csv", "left", 10)
        table(tmp_path / name / "eda.csv", "eda", 10)
        (tmp_path / name / "tags.csv").write_text(rows)
    table(tmp_path / "c" / "left.csv", "left", 10)
    table(tmp_path / "c" / "eda.csv", "eda", 10)
    counted, silent, absent = read([tmp_path], recipe.read_options(), told.append)
    assert not told
    windows = windows_of(streams_of(silent, recipe), recipe.chain)
    assert len(windows) == len(windows_of(streams_of(counted, recipe), recipe.chain)) > 0
    assert not any(window.data[:, -1].any() or window.absent for window in windows)
    assert not streams_of(absent, recipe)


def test_the_offset_of_an_exact_name_comes_before_that_of_a_kind(tmp_path: Path) -> None:
    year = 365 * 86400
    inputs = (InputOptions("imu", ("gx", "gy")), InputOptions("imu.left", AXES, offset_ns=year * 10**9))
    text = table(tmp_path / "rec" / "imu.csv", "left").read_text()
    (tmp_path / "rec" / "imu.csv").write_text(text.replace("ax,ay", "gx,gy"))
    table(tmp_path / "rec" / "imu_left.csv", "left", start=NOW - year)
    told: list[str] = []
    (recording,) = read([tmp_path / "rec"], ReadOptions(inputs=inputs), told.append)
    assert (len(recording.streams), told) == (2, [])


def test_an_empty_column_of_tags_is_a_stream_without_any(tmp_path: Path) -> None:
    inputs = (WRIST[0], InputOptions("tags", ("tag",), Fraction(0)))
    table(tmp_path / "rec.csv", "eda", 10, tag="")
    (recording,) = read([tmp_path], ReadOptions(inputs=inputs))
    assert [(s.header.format.stream, s.count) for s in recording.streams] == [("eda", 40), ("tags", 0)]
    assert (recording.start_ns, recording.end_ns) == (round(NOW * 10**9), round((NOW + 10) * 10**9))
