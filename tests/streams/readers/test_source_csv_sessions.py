"""CSV files into sessions: columns that name them, rows to keep, labels, metadata, folders and URLs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from tables import PLAIN, Write, error_of, one, refused, timed

from kymo.streams.errors import SourceError, SourceWarning
from kymo.streams.readers import csv_file, read
from kymo.streams.recording import InputOptions, ReadOptions


def test_large_files_are_given_away_session_by_session(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(csv_file, "_HEAD_BYTES", 64)
    monkeypatch.setattr(csv_file, "_TOGETHER_BYTES", 100)
    lines = [f"{i / 10},{i},{name}" for name in "abc" for i in range(50)]
    path = write("\n".join(["t,ax,session", *lines]))
    source = read([path])
    assert next(source).session == "a"
    with path.open("a") as file:  # what is behind is not read yet
        file.write("\n0,1,a\n")
    assert next(source).session == "b"
    with pytest.raises(SourceError) as error:
        list(source)
    assert str(error.value) == f"{path}, row 152: session a comes again after others; sort a file this large by session"


def test_sessions_of_several_columns_keep_and_names(write: Write) -> None:
    rows = ["subject_id,trial_id,usabledata,ax,ay,speed"]
    rows += [
        f"7,{trial}.0,{int(trial != 2)},{i},0,{speed}"
        for trial, speed in ((1, "2.5"), (2, "3"), (3, "3.50"))
        for i in range(4)
    ]
    options = ReadOptions(
        inputs=PLAIN.inputs,
        session=("subject_id", "trial_id"),
        subject="subject_id",
        keep="usabledata == 1",
        label_column="speed",
        label_names={"3.5": "fast"},
    )
    first, second = read([write("\n".join(rows))], options)
    assert (first.session, first.subject, first.labels[0].label) == ("7-1", "7", "2.5")
    assert (second.session, second.labels[0].label, second.labels[0].set) == ("7-3", "fast", "speed")
    assert (first.notes, second.notes) == (["keep leaves no row of session 7-2"], [])


def test_rows_left_out_by_keep_are_a_gap(write: Write) -> None:
    path = write("ax,ay,ok\n" + "".join(f"{i},0,{int(i != 3)}\n" for i in range(6)))
    recording = one(path, ReadOptions(inputs=PLAIN.inputs, keep="not ok == 0"))
    assert [(first, piece[:, 0].tolist()) for first, piece in recording.streams[0].pieces] == [
        (0, [0, 1, 2]),
        (4, [4, 5]),
    ]
    assert recording.notes == [
        "keep leaves 5 of 6 rows",
        "rows left out between others make 1 gap, first before row 6",
    ]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("a == 1", [True, True, False, False]),
        ("a > 1 and b != 'y'", [False, False, True, False]),
        ("b in ('x', 'y') or a < 0", [True, True, False, False]),
        ("a not in (1, -3)", [False, False, True, True]),
        ("a not in ()", [True, True, True, True]),
        ("0 < a <= 2", [True, True, True, False]),
        ("b == 'x'", [True, False, False, False]),
        ("a == -3", [False] * 4),
        ("a != b", [True, True, True, True]),
        ("a == '1.0'", [False, True, False, False]),
    ],
)
def test_keep(write: Write, keep: str, expected: list[bool]) -> None:
    path = write("a,b,ax,ay\n1,x,0,0\n1.0,y,1,0\n2,z,2,0\n,w,3,0\n")
    options = ReadOptions(inputs=PLAIN.inputs, keep=keep)
    if not any(expected):
        assert error_of(path, options) == f"keep = {keep!r} leaves no row"
        return
    assert one(path, options).streams[0].data[:, 0].tolist() == [float(i) for i, kept in enumerate(expected) if kept]


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        ("__import__('os').system('x') == 1", "is not allowed"),
        ("a ==", "is no expression"),
        ("a + 1 == 2", "'a + 1' is not allowed"),
        ("1 == 1", "names no column"),
        ("a", "'a' is not allowed"),
        ("a in b", "'b' is not allowed"),
        ("(lambda: a)() == 1", "is not allowed"),
        ("[a for a in (1,)] == 1", "is not allowed"),
    ],
)
def test_keep_is_no_python(write: Write, keep: str, text: str) -> None:
    assert text in str(refused(write("a,b,ax,ay\n1,2,3,4\n"), ReadOptions(inputs=PLAIN.inputs, keep=keep)))


def test_label_runs_break_at_empty_cells_and_gaps(write: Write) -> None:
    cells = ["", "a", "a", "b", "", "b", "b", "b"]
    rows = [f"{(i + 5 * (i > 6)) / 10},{i},{cell}" for i, cell in enumerate(cells)]
    recording = one(write("\n".join(["t,ax,label", *rows])))
    ms = [(label.label, label.start_ns // 10**6, label.end_ns // 10**6) for label in recording.labels]
    assert ms == [("a", 100, 300), ("b", 300, 400), ("b", 500, 700), ("b", 1200, 1300)]


def test_sessions_and_subjects_are_texts_and_no_numbers(write: Write) -> None:
    """But for whole numbers that a table program wrote as fractions."""
    names = ["1.1", "1.10", "007", "7", "7.0", "0", "-0", "1e1", "10"]
    rows = [f"{t / 10},{name},p{name},{t}" for name in names for t in range(4)]
    options = ReadOptions(session=("run",), subject="who")
    path = write("\n".join(["t,run,who,ax", *(row for row in rows if ",7.0," not in row)]))
    found = {r.session: r for r in read([path], options)}
    assert list(found) == [name for name in names if name != "7.0"]
    assert all(r.streams[0].count == 4 and r.subject == f"p{name}" for name, r in found.items())
    path = write(
        "\n".join(["t,run,who,ax", *(f"{t / 10},{('3', '3.0')[t % 2]},{('4.00', '4')[t % 2]},{t}" for t in range(6))])
    )
    (whole,) = read([path], options)
    assert (whole.session, whole.subject, whole.streams[0].count) == ("3", "4", 6)


def test_a_label_that_is_no_value_is_none(write: Write) -> None:
    texts = ["walk", "walk", "nan", "NaN", "<NA>", "", "run", "none"]
    path = write("\n".join(["t,label,ax", *(f"{t / 10},{text},{t}" for t, text in enumerate(texts))]))
    assert [label.label for label in one(path).labels] == ["walk", "run", "none"]
    (found,) = read([path], ReadOptions(label_names={"nan": "rest"}))  # unless somebody says what it means
    assert [label.label for label in found.labels] == ["walk", "rest", "run", "none"]


def test_an_absent_label_column_is_said(write: Write) -> None:
    recording = one(write("ax,ay\n1,2\n"), ReadOptions(inputs=PLAIN.inputs, label_column="speed"))
    assert (recording.labels, recording.notes) == ([], ["no label column `speed`: read without labels"])


def test_stream_and_session_names_from_the_user(write: Write) -> None:
    path = write("ax,ay\n1,2\n")
    recording = one(path, ReadOptions(inputs=PLAIN.inputs, session_name="mine", stream_name="imu.left"))
    assert (recording.session, recording.streams[0].header.format.stream) == ("mine", "imu.left")
    two = ReadOptions(
        inputs=(InputOptions("a", ("ax",), Fraction(1)), InputOptions("b", ("ay",), Fraction(1))), stream_name="c"
    )
    assert error_of(path, two) == "the stream name `c` is none of the recipe's a, b"


def test_labels_json_beside_the_file(write: Write) -> None:
    path = write("\n".join(["t,ax", *timed(50)]))
    options = ReadOptions(label_key="k", label_names={"1": "on"})
    assert one(path, options).notes[-1] == "no walk.labels.json beside it: read without labels"
    event = (
        '{{"startTime": {{"sec": {0}, "nsec": 0}}, "endTime": {{"sec": {1}, "nsec": 5}}, "metadata": {{"k": "{2}"}}}}'
    )
    write(
        '{"events": ['
        + ",".join([event.format(1, 2, "1.0"), event.format(90, 91, "0"), event.format(0, 1, "")])
        + "]}",
        "walk.labels.json",
    )
    recording = one(path, options)
    assert [(label.label, label.start_ns, label.end_ns) for label in recording.labels] == [("on", 10**9, 2 * 10**9 + 5)]
    assert recording.notes[-2:] == [
        "walk.labels.json: 1 events without `k` left out",
        "walk.labels.json: 1 labels outside the recording left out",
    ]


def test_folders_names_and_wrong_paths(write: Write, tmp_path: Path) -> None:
    write("ax,ay\n1,2\n", "d/p2/walk.csv")
    write("ax,ay\n3,4\n", "d/p1/walk.csv")
    write("ax,ay\n5,6\n", "d/run.csv")
    write("read me", "d/readme.txt")
    write("ax,ay\n7,8\n", "d/.hidden/x.csv")
    found = [(r.session, r.streams[0].data[0, 0]) for r in read([tmp_path / "d"], PLAIN)]
    assert found == [("d-p1-walk", 3.0), ("d-p2-walk", 1.0), ("run", 5.0)]
    assert error_of(tmp_path / "nowhere") == "no such file or folder"
    assert "has a header but no rows" in error_of(write("x", "x.doc"))
    (tmp_path / "empty").mkdir()
    assert "the folder holds no file that can be read" in error_of(tmp_path / "empty")


def test_urls(write: Write) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    path = write("ax,ay\n1,2\n")
    (recording,) = read([f"file://{path}"], PLAIN)
    assert (recording.session, recording.streams[0].data.tolist()) == ("walk", [[1, 2]])
    with pytest.raises(SourceError, match="no such file or folder"):
        list(read([f"file://{path}x.csv"], PLAIN))


def test_files_of_which_keep_leaves_nothing_are_passed_over_and_counted(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.csv").write_text(f"t,ax,trial\n0,1,{number}\n0.1,2,{number}\n")
    options = ReadOptions(inputs=(InputOptions("imu", ("ax",)),), keep="trial == 2")
    files = sorted(tmp_path.iterdir())
    for paths in ([tmp_path], files):
        with pytest.warns(
            SourceWarning, match=r"keep = 'trial == 2' leaves no row of 3 files, such as .*0.csv; left out"
        ):
            assert [recording.session for recording in read(paths, options)] == ["2"]
    with pytest.raises(SourceError, match="leaves no row"):
        list(read(files, ReadOptions(inputs=options.inputs, keep="trial == 9")))


def test_each_session_has_a_clock_of_its_own(write: Write) -> None:
    """One begins anew when it is full, one is set back, one begins where the one before ended early."""
    clocks = {
        "full": lambda i: (2**32 - 2000 + 20 * i) % 2**32,
        "back": lambda i: 900_000 + 20 * i - 500 * (i >= 200),
        "new": lambda i: 20 * i,
    }
    rows = [f"{name},{clock(i)},{i}" for name, clock in clocks.items() for i in range(300)]
    for recording in read([write("\n".join(["session,millis,ax", *rows]))]):
        assert [(first, len(piece)) for first, piece in recording.streams[0].pieces] == [(0, 300)]
        assert recording.streams[0].data[:, 0].tolist() == list(range(300))
        assert any("read as going on" in note for note in recording.notes) == (recording.session != "new")
