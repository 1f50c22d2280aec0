"""`kymo prepare phone`: every row and stretch of a log is in the MCAP and its labels, whatever the form; what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from verbs import invoke

import kymo
from kymo.lab.look.arrays import topic_arrays
from kymo.lab.look.summary import mcap_summary
from kymo.lab.prepare.phone import PhoneOptions, convert_phone
from kymo.streams.errors import SourceWarning
from kymo.streams.readers import read
from kymo.streams.recording import ReadOptions

START_NS = 1_700_000_000_123_456_789


FORMS = ("list", "lines", "values", "payload", "elapsed")


@dataclass(frozen=True)
class Log:
    """What a file must give back: by sensor times and values, and stretches."""

    path: Path
    times: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    stretches: list[tuple[int, int, str]] = field(default_factory=list)


def write_log(
    path: Path, form: str, seed: int = 0, seconds: float = 4.0, stretches: tuple[tuple[float, float, str], ...] = ()
) -> Log:
    """Accelerometer at 50 Hz, magnetometer at 20 Hz and a barometer now and then, with jitter; stretches in seconds."""
    random = np.random.default_rng(seed)
    log, rows = Log(path), list[tuple[int, int, dict[str, Any]]]()
    for sensor, rate, names in (
        ("Accelerometer", 50, "xyz"),
        ("Magnetometer", 20, "xyz"),
        ("Barometer", 1, ("pressure", "height")),
    ):
        count = int(seconds * rate)
        times = START_NS + np.arange(count) * 10**9 // rate + random.integers(0, 10**6, count)
        if form == "elapsed":
            times = (times - START_NS) // 1000 * 1000
        values = random.normal(size=(count, len(names))).round(6)
        log.times[sensor], log.values[sensor] = times, values
        rows += [
            (time, 2, _row(form, sensor, time, dict(zip(names, value, strict=True))))
            for time, value in zip(times.tolist(), values.tolist(), strict=True)
        ]
    for begin, end, name in stretches:
        origin = 0 if form == "elapsed" else START_NS
        a, b = (origin + round(s * 10**9) for s in (begin, end))
        log.stretches.append((a, b, name))
        rows += [(a, 1, _mark(form, "START", a) | {"label": name}), (b, 0, _mark(form, "STOP", b))]
    records = [record for _, _, record in sorted(rows, key=lambda one: one[:2])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(form, records))
    return log


def _row(form: str, sensor: str, time_ns: int, members: dict[str, float]) -> dict[str, Any]:
    if form in ("list", "elapsed"):  # numbers as text, axes backwards
        time = (
            {"seconds_elapsed": f"{time_ns / 1e9:.6f}"}
            if form == "elapsed"
            else {"time": str(time_ns), "seconds_elapsed": "0.1"}
        )
        return {"sensor": sensor, **time, **{k: str(v) for k, v in reversed(members.items())}}
    if form == "payload":
        return {"name": sensor, "time": time_ns, "accuracy": 3, "values": members}
    if form == "values":
        return {"type": sensor, "timestamp": time_ns, "values": list(members.values())}
    return {"type": sensor, "timestamp": time_ns, **members}


def _mark(form: str, kind: str, time_ns: int) -> dict[str, Any]:
    if form == "elapsed":
        return {"type": kind.lower(), "seconds_elapsed": time_ns / 1e9}
    return {"type": kind, "timestamp": time_ns if form == "values" else str(time_ns)}


def _text(form: str, records: list[dict[str, Any]]) -> str:
    if form in ("list", "elapsed"):
        head = {"sensor": "Metadata", "version": "3", "device name": "a phone"}
        return json.dumps([head, *records], indent=1)
    if form == "payload":
        parts = [records[i : i + 50] for i in range(0, len(records), 50)]
        return "".join(json.dumps({"messageId": i, "payload": part}) + "\n" for i, part in enumerate(parts))
    return "\n\n".join(json.dumps(record) for record in records) + "\n"


TOPICS = {"Accelerometer": "acc_raw", "Magnetometer": "mag_raw", "Barometer": "barometer"}


phone = partial(invoke, "prepare", "phone")


@pytest.mark.parametrize("form", FORMS)
def test_every_row_and_stretch_comes_through(tmp_path: Path, form: str) -> None:
    stretches = ((0.5, 1.25, "walk"), (1.25, 2.0, "run"), (3.0, 3.5, "walk"))
    log = write_log(tmp_path / "raw" / "one.json", form, stretches=stretches)
    said = json.loads(phone(tmp_path / "raw", tmp_path / "out", "--key", "gait", "--json").stdout)
    (one,) = said["recordings"]
    assert (one["stretches"], one["notes"]) == (3, [])
    assert one["rows"] == {topic: len(log.times[sensor]) for sensor, topic in TOPICS.items()}
    found = topic_arrays(tmp_path / "out" / "one.mcap")
    for sensor, topic in TOPICS.items():
        np.testing.assert_array_equal(found[topic].times_ns, log.times[sensor])
        # Rows of a list bear no names, and a list's axes stand as they come; named ones are put in order.
        order = slice(None, None, -1) if topic == "barometer" and form in ("list", "elapsed") else slice(None)
        np.testing.assert_array_equal(found[topic].values, log.values[sensor][:, order])
    assert found["acc_raw"].channels == ("x", "y", "z")
    names = {"values": ("v0", "v1"), "list": ("height", "pressure"), "elapsed": ("height", "pressure")}
    assert found["barometer"].channels == names.get(form, ("pressure", "height"))
    (recording,) = read([tmp_path / "out" / "phone.experiment.json"], ReadOptions(label_key="gait"))
    assert [(label.start_ns, label.end_ns, label.label) for label in recording.labels] == log.stretches
    if form == "list":
        assert mcap_summary(tmp_path / "out" / "one.mcap").metadata["phone.device name"] == "a phone"


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def row(time: object, *values: float, kind: str = "acc", **more: Any) -> dict[str, Any]:
    return {"type": kind, "timestamp": time, "values": list(values or (1.0, 2.0, 3.0)), **more}


def events(tmp_path: Path, *records: object, key: str = "label") -> list[tuple[int, int, dict[str, str]]]:
    path = write(tmp_path / "log.jsonl", *records)
    phone(path, tmp_path / "out", "--key", key)
    labels = json.loads((tmp_path / "out" / "log.labels.json").read_text())["events"]
    return [
        (*(event[edge]["sec"] * 10**9 + event[edge]["nsec"] for edge in ("startTime", "endTime")), event["metadata"])
        for event in labels
    ]


def test_marks_without_a_time_stand_at_the_rows_beside_them(tmp_path: Path) -> None:
    a = START_NS
    found = events(
        tmp_path,
        row(a),
        {"type": "START", "label": "walk"},
        row(a + 10),
        row(a + 20),
        {"type": "STOP"},
        row(a + 30),
        {"type": "Start", "metadata": {"surface": "grass", "speed": 3.0, "none": None}},
        row(a + 40),
        {"type": "START"},
        row(a + 50),
    )
    assert found == [
        (a + 10, a + 21, {"label": "walk"}),
        (a + 40, a + 50, {"surface": "grass", "speed": "3"}),
        (a + 50, a + 51, {"label": "marked"}),
    ]


def test_a_stop_may_name_the_class_and_the_last_start_lasts(tmp_path: Path) -> None:
    a = START_NS
    found = events(
        tmp_path,
        {"type": "START", "timestamp": a},
        row(a),
        {"type": "STOP", "timestamp": a + 5, "activity": "run"},
        row(a + 9),
        {"type": "START", "timestamp": a + 7},
        key="gait",
    )
    assert found == [(a, a + 5, {"gait": "run"}), (a + 7, a + 10, {"gait": "marked"})]
    assert "the last START has no STOP" in phone(tmp_path / "log.jsonl", tmp_path / "out").stderr


@pytest.mark.parametrize(
    ("first", "second", "unit", "ns"),
    [
        (1_700_000_000, 1_700_000_001, None, 10**9),
        ("1700000000.25", "1700000000.5", None, 25 * 10**7),
        (1_700_000_000_000, 1_700_000_000_001, None, 10**6),
        (1_700_000_000_000_000, 1_700_000_000_000_002, None, 2000),
        (START_NS, START_NS + 1, None, 1),
        ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00.000000007Z", None, 7),
        (50_000_000_000_000, 50_000_000_000_003, "ns", 3),
    ],
)
def test_units_of_times(tmp_path: Path, first: object, second: object, unit: str | None, ns: int) -> None:
    path = write(tmp_path / "log.jsonl", row(first), row(second))
    phone(path, tmp_path / "out", *(("--time-unit", unit) if unit else ()))
    assert np.diff(topic_arrays(tmp_path / "out" / "log.mcap")["acc_raw"].times_ns).tolist() == [ns]


def test_marks_may_have_another_unit_than_rows(tmp_path: Path) -> None:
    a = 1_700_000_000 * 10**9
    found = events(
        tmp_path, {"type": "START", "timestamp": 1_700_000_000_000}, row(a), row(a + 10**7), {"type": "STOP"}
    )
    assert found == [(a, a + 10**7 + 1, {"label": "marked"})]


def test_topics_and_factors(tmp_path: Path) -> None:
    rows = [
        row(START_NS, 9.8, 0.0, -4.9, kind=kind)
        for kind in ("TotalAcceleration", "Accelerometer", "magnetic field", "Light Level")
    ]
    path = write(tmp_path / "log.jsonl", *rows)
    phone(path, tmp_path / "out", "--scale", "acc_raw=0.5", "--topic", "Light Level=lux")
    found = topic_arrays(tmp_path / "out" / "log.mcap")
    assert list(found) == ["acc_raw", "accelerometer", "mag_raw", "lux"]
    assert found["acc_raw"].values.tolist() == [[4.9, 0.0, -2.45]]
    assert found["accelerometer"].values.tolist() == [[9.8, 0.0, -4.9]]


def test_missing_numbers_and_rows_without_any(tmp_path: Path) -> None:
    records = [
        {"sensor": "acc", "time": START_NS, "y": "2", "x": "1", "unit": "g"},
        {"sensor": "acc", "time": START_NS + 2, "x": None, "y": ""},
        {"sensor": "acc", "time": START_NS + 1, "x": "NaN", "y": 5, "new": 7},
        {"sensor": "Annotation", "time": START_NS, "text": "here"},
    ]
    made = phone(write(tmp_path / "log.jsonl", *records), tmp_path / "out")
    assert "1 row of Annotation without a number left out" in made.stderr
    found = topic_arrays(tmp_path / "out" / "log.mcap")["acc_raw"]
    assert found.channels == ("x", "y")
    np.testing.assert_array_equal(found.values, [[1, 2], [np.nan, 5], [np.nan, np.nan]])
    assert not (tmp_path / "out" / "log.labels.json").exists()


def sensor_log(
    path: Path, unit_ns: int = 1000, member: str = "ts", start_ns: int = 1_526_934_747_000, **more: Any
) -> Path:
    """As the published converter takes it: µs since the device started, three sensors that do not wait for each other."""
    random = np.random.default_rng(3)
    rows = [
        (start_ns + 90_000_000 + k * 10_000_000 + late + int(random.integers(0, 900_000)), kind, values)
        for k in range(500)
        for late, kind, values in (
            (96_975, "MAG_AUTOCAL", [14.4, 10.7, -44.1]),
            (0, "ACCEL_AUTOCAL", [-0.15, 0.08, -0.98]),
            (2_000_000, "GYRO_AUTOCAL", [0.001, 0.00001, -0.001]),
            *([(1_000, "MAG_RAW", [100.0, 200.0, 300.0])] if k % 2 else []),
            *([(0, "TEMPERATURE", [31.5])] if k % 100 == 0 else []),
        )
    ]
    records: list[dict[str, Any]] = [{member: start_ns // unit_ns, "type": "START", "values": []}]
    records += [{member: start_ns // unit_ns, "type": "TIMESTAMP_FULL", "values": [1, 2, 3]}]
    records += [{member: at // unit_ns, "type": kind, "values": values} for at, kind, values in sorted(rows)]
    records += [{member: (rows[-1][0] + 50_000_000) // unit_ns, "type": "STOP", "values": []}]
    path.write_text(
        json.dumps({"firmware": "F (848)", "deviceModel": "phone", "userLabel": "", "data": records} | more)
    )
    return path


@pytest.mark.parametrize("unit_ns", [1000, 10**6, 1])
def test_a_published_sensor_log_becomes_what_the_recipe_takes(tmp_path: Path, unit_ns: int) -> None:
    path = sensor_log(tmp_path / "Sensor_Log_sn3360.json", unit_ns)
    made = phone(path, tmp_path / "out", "--key", "mag_distortion", "--label", "2")
    unit = {1000: "us", 10**6: "ms", 1: "ns"}[unit_ns]
    assert f"times are read as {unit} by their steps" in made.stderr
    assert "1 row of TIMESTAMP_FULL without a number left out" in made.stderr
    counts = {"acc_raw": 500, "mag_raw": 500, "gyro_raw": 500, "mag_uncalibrated": 250, "temperature": 5}
    mcap = tmp_path / "out" / "Sensor_Log_sn3360.mcap"
    assert {name: len(array) for name, array in topic_arrays(mcap).items()} == counts
    metadata = mcap_summary(mcap).metadata
    assert (metadata["phone.deviceModel"], metadata["units.mag_raw"], metadata["units.acc_raw"]) == ("phone", "µT", "g")
    experiment = json.loads((tmp_path / "out" / "phone.experiment.json").read_text())
    assert experiment["description"] == "Recorded sensor logs: Sensor_Log_sn3360.json"
    assert experiment["metadata"] == {"classification_type": "mag_distortion"}
    recipe = kymo.load_recipe("magnetic")
    (recording,) = read([tmp_path / "out" / "phone.experiment.json"], recipe.read_options())
    assert [label.label for label in recording.labels] == ["high"]
    assert abs(recording.labels[0].start_ns - 1_526_934_747_000) < 10**6
    (stream,) = recording.streams
    assert recipe.matches(stream.header.format) is None
    assert stream.header.format.units[-1] == "field"
    np.testing.assert_allclose(stream.data[10, 6:], np.array([14.4, 10.7, -44.1]) / 50)


@pytest.mark.parametrize(
    ("times", "steps_ns"),
    [
        ((1527031630, 1527031722, 1527034529), [92_000, 2_807_000]),  # as the published page shows them
        ((5, 10_005), [10_000_000]),
        ((1_700_000_000_000, 1_700_000_000_010), [10_000_000]),  # ms since 1970
        ((1_700_000_000.25, 1_700_000_000.5), [250_000_000]),
        (tuple(range(1_526_934_747, 1_526_954_747, 1000)), [1_000_000] * 19),  # 1,000 Hz
    ],
)
def test_a_few_whole_ts_are_microseconds(tmp_path: Path, times: tuple[float, ...], steps_ns: list[int]) -> None:
    rows = [{"ts": at, "type": "MAG_AUTOCAL", "values": [14.4, 10.7, -44.1]} for at in times]
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"data": [{"ts": times[0], "type": "START", "values": []}, *rows]}))
    phone(path, tmp_path / "out", "--label", "0")
    assert np.diff(topic_arrays(tmp_path / "out" / "log.mcap")["mag_raw"].times_ns).tolist() == steps_ns


def test_a_label_is_of_the_whole_log_without_marks(tmp_path: Path) -> None:
    a = START_NS
    path = write(tmp_path / "log.jsonl", row(a), row(a + 10**7), row(a + 2 * 10**7))
    phone(path, tmp_path / "out", "--key", "mag_distortion", "--label", "0", "--unit", "acc_raw=m/s^2")
    (recording,) = read([tmp_path / "out" / "log.mcap"], ReadOptions(label_key="mag_distortion"))
    assert [(one.start_ns, one.end_ns, one.label) for one in recording.labels] == [(a, a + 2 * 10**7 + 1, "0")]
    assert recording.streams[0].header.format.units == ("m/s^2",) * 3


def test_a_label_does_not_replace_what_a_mark_says(tmp_path: Path) -> None:
    marks = [{"type": "START", "label": "1"}, {"type": "STOP"}, {"type": "START"}, {"type": "STOP"}]
    path = write(tmp_path / "log.jsonl", *(item for n, mark in enumerate(marks) for item in (row(START_NS + n), mark)))
    phone(path, tmp_path / "out", "--label", "2")
    labels = json.loads((tmp_path / "out" / "log.labels.json").read_text())["events"]
    assert [event["metadata"] for event in labels] == [{"label": "1"}, {"label": "2"}]


def test_files_named_alike_keep_apart(tmp_path: Path) -> None:
    for name in ("a/log.json", "b/log.json", "other.jsonl"):
        write_log(tmp_path / "raw" / name, "list", stretches=((1, 2, "w"),))
    phone(tmp_path / "raw", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mcap")) == ["a-log.mcap", "b-log.mcap", "other.mcap"]
    recordings = list(read([tmp_path / "out" / "phone.experiment.json"], ReadOptions(label_key="label")))
    assert [(one.session, len(one.labels)) for one in recordings] == [("a-log", 1), ("b-log", 1), ("other", 1)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no sensor row: expected objects such as"),
        ("[{}", "is no JSON ("),
        ('{"a": 1}\n{"type": "acc"}', ": record 1 has no `sensor`, `type` or `name`"),
        ('{"type": "acc", "timestamp": 1, "values": [1]}\n{"type"', ", row 2: is no JSON ("),
        ("[3]", ": record 1 is 3, expected an object"),
        ('[{"type": "acc", "values": [1]}]', ": record 1 has no `time`, `timestamp` or `seconds_elapsed`"),
        (
            '[{"type": "acc", "time": 1, "x": 1}' + ', {"type": "gyro", "seconds_elapsed": 2, "x": 1}' * 2 + "]",
            ": record 2 has no `time`, `timestamp` or `seconds_elapsed`",
        ),
        ('[{"type": "acc", "time": "noon", "values": [1]}]', ": record 1 has the time 'noon', expected"),
        ('[{"type": "acc", "time": 1, "values": [1, "x"]}]', ": record 1 acc has a value that is no number"),
        (
            '[{"type": "acc", "time": 1, "values": [1]}, {"type": "acc", "time": 2, "values": [1, 2]}]',
            ": record 2 acc has 2 values, its first row had 1",
        ),
        (
            '[{"type": "acc", "time": 1, "x": 1, "y": 2}, {"type": "acc", "time": 2, "x": 1}]',
            ": record 2 acc has no `y`",
        ),
        ('[{"type": "acc", "time": 1, "x": 1}, {"type": "STOP"}]', ": record 2 is a STOP without a START"),
        (
            '[{"type": "START", "time": 9}, {"type": "acc", "time": 10, "x": 1}, {"type": "STOP", "time": 8}]',
            ": record 3 ends a stretch at 8000000000 ns, which began at 9000000000 ns",
        ),
        ('[{"type": "acc", "time": 1, "x": 1}, {"type": "acc", "time": 99999999, "x": 1}]', "its times span 1157 days"),
        ('[{"type": "acc", "time": 1, "x": 1}, {"type": "Accelerometer", "time": 1, "x": 1}]', None),
    ],
)
def test_what_is_wrong_is_told_in_a_line(tmp_path: Path, text: str, said: str | None) -> None:
    path = tmp_path / "log.json"
    path.write_text(text)
    made = phone(path, tmp_path / "out", status=int(said is not None))
    if said is None:
        return
    assert made.stderr.count("\n") == 1
    assert said in made.stderr
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--topic", "nothing=x"), 1, "no sensor `nothing`; there are: acc"),
        (("--unit", "nothing=g"), 1, "no topic `nothing` that has a unit; there are: acc_raw"),
        (("--scale", "nothing=2"), 1, "no topic `nothing` to scale; there are: acc_raw"),
        (("--scale", "acc_raw=two"), 2, "expected TOPIC=FACTOR with a number"),
        (("--topic", "acc"), 2, "'acc': expected SENSOR=TOPIC"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: tuple[str, ...], status: int, said: str) -> None:
    made = phone(write(tmp_path / "log.jsonl", row(1)), tmp_path / "out", *arguments, status=status)
    assert said in made.stderr


def test_a_folder_is_converted_where_it_lies_without_what_is_no_log(tmp_path: Path) -> None:
    write_log(tmp_path / "a.json", "list", stretches=((1, 2, "w"),))
    (tmp_path / "package.json").write_text('{"name": "app"}')
    (tmp_path / "cut.json").write_text('[{"sensor": "acc", "time": 1')
    for _ in range(2):  # the second time labels and experiment lie there
        with pytest.warns(SourceWarning) as warned:
            (log,) = convert_phone(tmp_path, tmp_path, PhoneOptions())
        assert [str(warning.message).partition(": ")[0] for warning in warned] == [
            str(tmp_path / name) for name in ("cut.json", "package.json")
        ]
        assert log.rows["acc_raw"] == 200
    (tmp_path / "a.json").unlink()
    phone(tmp_path, tmp_path, status=1)


def test_a_folder_without_logs(tmp_path: Path) -> None:
    assert "the folder holds no sensor log" in phone(tmp_path, tmp_path / "out", status=1).stderr
    assert "no such file or folder" in phone(tmp_path / "absent", tmp_path / "out", status=1).stderr
