"""What an MCAP file holds: `kymo inspect`, arrays by topic, windows of time against one message after the other."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from mcap_files import FOREIGN, needs_foreign
from verbs import invoke

import kymo
from kymo.lab.look.arrays import extract_imu_windows, topic_arrays
from kymo.lab.look.summary import mcap_summary
from kymo.streams.errors import SourceError

Sample = tuple[str, int, list[float | None]]


def write(path: Path, samples: Iterable[Sample], empty: Iterable[str] = (), log_ns: int = 0) -> Path:
    """JSON samples in the order given; logged at their time plus `log_ns`."""
    out = io.BytesIO()
    writer = Writer(out, compression=CompressionType.ZSTD)
    writer.start(profile="x-imu", library="a test")
    schema = writer.register_schema("sensor_event", "jsonschema", b"{}")
    channels: dict[str, int] = {}
    for name in empty:
        channels[name] = writer.register_channel(name, "json", schema)
    for topic, time, values in samples:
        if topic not in channels:
            channels[topic] = writer.register_channel(topic, "json", schema)
        data = json.dumps({"id": topic, "timestamp": time, "values": values}).encode()
        writer.add_message(channels[topic], time + log_ns, data, time + log_ns)
    writer.add_metadata("rig", {"name": "seven"})
    writer.add_attachment(0, 0, "note.txt", "text/plain", b"hello")
    writer.finish()
    path.write_bytes(out.getvalue())
    return path


def regular(topic: str, times: Iterable[int]) -> list[Sample]:
    return [(topic, time, [float(time), 1.0, 2.0]) for time in times]


inspect = partial(invoke, "inspect")


def test_a_summary_counts_what_is_there(tmp_path: Path) -> None:
    times = [i * 10**7 for i in range(100) if i not in (10, 50, 51)]
    random = np.random.default_rng(0)
    taps = np.cumsum(random.exponential(10**8, 40)).astype(int).tolist()
    path = write(tmp_path / "a.mcap", [*regular("acc", times), *regular("tap", taps)], ["pose"], log_ns=5)
    events = [
        {"startTime": {"sec": 0}, "endTime": {"sec": 1}, "metadata": {"level": 0, "who": "me", "": "x", "no": ""}}
    ]
    path.with_suffix(".labels.json").write_text(json.dumps({"events": events}))
    found = mcap_summary(path)
    acc, tap, pose = (next(one for one in found.topics if one.topic == name) for name in ("acc", "tap", "pose"))
    assert (acc.messages, acc.rate_hz, acc.gaps, acc.missing, acc.longest_step_s) == (
        97,
        pytest.approx(100),
        2,
        3,
        0.03,
    )
    assert (acc.start_ns, acc.end_ns, acc.backwards, acc.channels) == (5, 99 * 10**7 + 5, 0, 1)
    assert acc.bytes == sum(
        len(json.dumps({"id": "acc", "timestamp": t, "values": [float(t), 1.0, 2.0]})) for t in times
    )
    assert (acc.schema, acc.schema_encoding, acc.encoding) == ("sensor_event", "jsonschema", "json")
    assert (tap.messages, tap.rate_hz, tap.gaps) == (40, None, None)
    assert (pose.messages, pose.start_ns, pose.rate_hz) == (0, None, None)
    assert (found.messages, found.bytes, found.library, found.profile) == (137, path.stat().st_size, "a test", "x-imu")
    assert found.duration_s == pytest.approx((max(taps[-1], times[-1]) - min(taps[0], 0)) / 1e9)
    assert (found.metadata, found.attachments, found.notes) == ({"rig.name": "seven"}, ("note.txt",), ())
    assert found.compression == {"zstd": 1}
    assert found.labels == {str(path.with_suffix(".labels.json")): ("level", "who")}


def test_the_verb_prints_the_summary(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", regular("acc_raw", range(0, 10**9, 10**7)), ["pose"])
    done = inspect(path)
    assert [line.split() for line in done.stdout.splitlines()[4:7]] == [
        ["topic", "messages", "rate", "(Hz)", "gaps", "missing", "encoding", "schema"],
        ["acc_raw", "100", "100", "0", "0", "json", "sensor_event", "(jsonschema)"],
        ["pose", "0", "–", "–", "–", "json", "sensor_event", "(jsonschema)"],
    ]
    (tmp_path / "b.mcap").write_bytes(path.read_bytes())
    said = [json.loads(line) for line in inspect(tmp_path, "--json").stdout.splitlines()]
    assert [Path(one["path"]).name for one in said] == ["a.mcap", "b.mcap"]
    assert said[0] == json.loads(json.dumps(asdict(mcap_summary(path))))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty; expected an MCAP file"), (b"not at all an mcap file", "is no MCAP file"), (None, "no such file")],
)
def test_what_is_no_mcap_is_told_in_a_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.mcap"
    if content is not None:
        path.write_bytes(content)
    done = inspect(path, status=1)
    assert (said in done.stderr, done.stderr.count("\n")) == (True, 1)
    with pytest.raises(SourceError):
        topic_arrays(path)


def test_a_cut_file_is_summed_up_as_far_as_it_is_whole(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = Writer(out, chunk_size=2000, compression=CompressionType.NONE)
    writer.start()
    channel = writer.register_channel("acc", "json", writer.register_schema("s", "jsonschema", b""))
    for i in range(200):
        writer.add_message(channel, i, b'{"values": [1]}', i)
    writer.finish()
    path = tmp_path / "a.mcap"
    path.write_bytes(out.getvalue()[: len(out.getvalue()) // 2])
    found = mcap_summary(path)
    assert 50 < found.messages < 150
    assert "the rest is not read" in found.notes[0]
    assert len(topic_arrays(path)["acc"]) == found.messages


def test_a_file_without_messages_has_a_summary(tmp_path: Path) -> None:
    found = mcap_summary(write(tmp_path / "a.mcap", [], ["acc"]))
    assert (found.messages, found.start_ns, found.duration_s, [one.topic for one in found.topics]) == (
        0,
        None,
        0,
        ["acc"],
    )


@needs_foreign
def test_arrays_are_the_file_s_messages() -> None:
    found = topic_arrays(FOREIGN)
    assert {name: one.values.shape for name, one in found.items()} == {
        **{f"{kind}_{what}": (1808, 3) for kind in ("mag", "acc", "gyro") for what in ("truth", "raw")},
        "pose_truth": (1808, 10),
        "pose": (0, 0),
    }
    with FOREIGN.open("rb") as file:
        expected = [json.loads(m.data) for _, _, m in make_reader(file).iter_messages(["mag_raw"])]
    np.testing.assert_array_equal(found["mag_raw"].values, [one["values"] for one in expected])
    np.testing.assert_array_equal(found["mag_raw"].times_ns, [one["timestamp"] for one in expected])
    assert list(topic_arrays(FOREIGN, ["pose", "acc_raw"])) == ["acc_raw", "pose"]
    with pytest.raises(SourceError, match=r"no topic `acc_rav` \(did you mean `acc_raw`\?\)"):
        topic_arrays(FOREIGN, ["acc_rav"])


def test_arrays_are_sorted_and_not_repaired(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", [("a", 30, [1.0]), ("a", 10, [2.0]), ("a", 30, [3.0]), ("a", 20, [None])])
    (found,) = topic_arrays(path).values()
    np.testing.assert_array_equal(found.times_ns, [10, 20, 30, 30])
    np.testing.assert_array_equal(found.values[:, 0], [2, np.nan, 1, 3])


def brute_force(
    samples: list[Sample], size: int, step: int, partial: bool
) -> list[tuple[int, dict[str, list[tuple[int, float]]]]]:
    """Windows by one look at each message after the other."""
    names = sorted({topic for topic, _, _ in samples})
    start = min(time for _, time, _ in samples)
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for topic, time, values in sorted(samples, key=lambda one: one[1]):
        for k in range((time - start) // step + 1):
            if time < start + k * step + size:
                found.setdefault(k, {name: [] for name in names})[topic].append((time, float(values[0] or 0)))
    reach = -math.inf
    for name in names:
        times = sorted(time for topic, time, _ in samples if topic == name)
        steps = sorted(b - a for a, b in pairwise(times) if b > a)
        middle = (steps[(len(steps) - 1) // 2] + steps[len(steps) // 2]) / 2 if steps else 0
        reach = max(reach, times[-1] + 1.5 * middle)
    return sorted((k, window) for k, window in found.items() if partial or start + k * step + size <= reach)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["acc_raw", "phone/Gyro", "mag"]), st.integers(-40, 160)), min_size=1, max_size=60
    ),
    st.integers(1, 70),
    st.integers(1, 90) | st.none(),
    st.booleans(),
)
def test_windows_equal_one_look_at_each_message(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int]], size: int, step: int | None, partial: bool
) -> None:
    samples: list[Sample] = [(topic, time, [float(i)]) for i, (topic, time) in enumerate(drawn)]
    path = write(tmp_path_factory.mktemp("w") / "a.mcap", [*samples, ("pose", -90, [0.0])], ["gyro_never"], log_ns=1000)
    found = [
        (
            window.index,
            {
                name: list(zip(one.times_ns.tolist(), one.values[:, 0].tolist(), strict=True))
                for name, one in window.topics.items()
            },
        )
        for window in extract_imu_windows(path, size, step, partial=partial)
    ]
    expected = brute_force(samples, size, step or size, partial)
    assert [(k, dict(sorted(topics.items()))) for k, topics in found] == expected


def test_edges_and_tails(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", regular("acc", range(100, 130, 10)))  # 100, 110, 120
    cut = [
        (w.start_ns, w.end_ns, w.topics["acc"].times_ns.tolist()) for w in extract_imu_windows(path, 20, partial=True)
    ]
    assert cut == [(100, 120, [100, 110]), (120, 140, [120])]
    assert [w.index for w in extract_imu_windows(path, 20)] == [0]  # the second lacks its sample at 130
    assert [w.index for w in extract_imu_windows(path, 30)] == [0]  # whole: the last sample is a step before its end
    assert [w.index for w in extract_imu_windows(path, 10)] == [0, 1, 2]
    assert [w.end_ns for w in extract_imu_windows(path, 10**12, partial=True)] == [100 + 10**12]


@needs_foreign
def test_windows_of_the_recording() -> None:
    windows = list(extract_imu_windows(FOREIGN, 3 * 10**9))
    assert len(windows) == 20
    assert {name for window in windows for name in window.topics} == {"mag_raw", "acc_raw", "gyro_raw"}
    assert [(w.start_ns, w.end_ns) for w in extract_imu_windows(FOREIGN)][:2] == [(0, 10**9), (10**9, 2 * 10**9)]
    overlapping = list(extract_imu_windows(FOREIGN, 2 * 10**9, 10**9, topics=["mag_truth"]))
    assert (len(overlapping), overlapping[58].start_ns, list(overlapping[58].topics)) == (59, 58 * 10**9, ["mag_truth"])
    whole = topic_arrays(FOREIGN)["acc_raw"].values
    joined = np.concatenate([window.topics["acc_raw"].values for window in windows])
    np.testing.assert_array_equal(joined, whole[: len(joined)])
    assert {len(window.topics["acc_raw"]) for window in windows} == {90, 91}


@pytest.mark.parametrize("size", [0, -5, 2.5])
def test_a_window_has_a_size(tmp_path: Path, size: Any) -> None:
    path = write(tmp_path / "a.mcap", regular("acc", range(3)))
    with pytest.raises(ValueError, match="expected a whole number above 0"):
        extract_imu_windows(path, size)
    with pytest.raises(ValueError, match=r"step_size_ns is .*, expected a whole number above 0"):
        extract_imu_windows(path, 5, size)


def test_a_file_without_an_imu_says_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", [*regular("pose", range(3)), *regular("fdmagic", range(3))], ["acc"])
    with pytest.raises(SourceError, match=r"no topic of an IMU .* there are: pose, fdmagic, acc; name some"):
        extract_imu_windows(path, 1)
    assert [w.topics["pose"].times_ns.tolist() for w in extract_imu_windows(path, 3, topics=["pose", "acc"])] == [
        [0, 1, 2]
    ]


def test_the_facade_has_them() -> None:
    assert kymo.topic_arrays is topic_arrays
    assert kymo.extract_imu_windows is extract_imu_windows
    assert kymo.mcap_summary is mcap_summary
