"""The BasicMotions recordings of the aeon package, against aeon's own loader where it can be imported."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest

from kymo.streams.errors import SourceError
from kymo.streams.readers import basic_motions, read
from kymo.streams.recording import InputOptions, ReadOptions

needs_aeon = pytest.mark.skipif(find_spec("aeon") is None, reason="aeon is not installed")


@needs_aeon
@pytest.mark.parametrize("part", ["train", "test"])
def test_forty_recordings(part: str) -> None:
    recordings = list(read([f"basicmotions:{part}"]))
    assert [r.session for r in recordings] == [f"basicmotions-{part}-{i:02d}" for i in range(40)]
    assert Counter(r.labels[0].label for r in recordings) == dict.fromkeys(
        ("badminton", "running", "standing", "walking"), 10
    )
    for recording in recordings:
        (stream,) = recording.streams
        fmt = stream.header.format
        assert (fmt.stream, fmt.channels, fmt.rate, fmt.units) == (
            "imu.wrist",
            ("ax", "ay", "az", "gx", "gy", "gz"),
            10,
            (),
        )
        assert (stream.data.shape, stream.data.dtype, stream.header.origin_ns) == ((100, 6), np.float64, 0)
        assert (recording.labels[0].start_ns, recording.labels[0].end_ns) == (0, 10 * 10**9)
        assert recording.metadata["placement"] == "wrist"


@needs_aeon
@pytest.mark.parametrize("part", ["train", "test"])
def test_equal_to_aeons_loader(part: str) -> None:
    try:
        from aeon.datasets import load_basic_motions
    except ImportError as error:
        pytest.skip(f"aeon's loader cannot be imported here ({error})")
    data, classes = load_basic_motions(split=part)  # (40, 6, 100)
    recordings = list(read([f"basicmotions:{part}"]))
    np.testing.assert_array_equal(np.stack([r.streams[0].data.T for r in recordings]), data)
    assert [r.labels[0].label for r in recordings] == [str(name).lower() for name in classes]


@needs_aeon
def test_a_recipe_chooses_channels_and_names() -> None:
    whole = next(iter(read(["basicmotions:test"])))
    options = ReadOptions(
        inputs=(InputOptions("imu", ("gz", "ax"), Fraction(10)),), session_name="bm", label_names={"standing": "still"}
    )
    recording = next(iter(read(["BasicMotions:test"], options)))
    assert (recording.session, recording.labels[0].label) == ("bm-00", "still")
    np.testing.assert_array_equal(recording.streams[0].data, whole.streams[0].data[:, [5, 0]])
    assert recording.streams[0].header.format.stream == "imu"


@needs_aeon
@pytest.mark.parametrize(
    ("item", "text"),
    [
        (
            InputOptions("imu", ("ax", "aw")),
            "basicmotions:test: no channel `aw` (did you mean `az`?); there are: ax, ay, az, gx, gy, gz",
        ),
        (
            InputOptions("imu", (), Fraction(50)),
            "basicmotions:test: has 10 Hz, the recipe says 50 Hz; correct `rate_hz`",
        ),
    ],
)
def test_wrong_recipe(item: InputOptions, text: str) -> None:
    with pytest.raises(SourceError) as error:
        list(read(["basicmotions:test"], ReadOptions(inputs=(item,))))
    assert str(error.value) == text


def test_without_aeon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basic_motions, "find_spec", lambda name: None)
    with pytest.raises(
        SourceError, match=r"come with aeon, which is not installed: pip install 'kymo-streams\[demo\]'"
    ):
        list(read(["basicmotions:train"]))
