"""`kymo plot`: what thinning keeps, what the page says, which part is shown, what is refused."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap_files import mcap, sample
from verbs import invoke

import kymo
from kymo.lab.look.curves import Band, Curve, bands_of, panel_of, rows_of, split_constant, thin
from kymo.streams.chunk import Format, Header, signal_format
from kymo.streams.labels.labels import Label, interval
from kymo.streams.recording import Recording, StreamData

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
from kymo.lab.look.plot import Excerpt, plot_recording

NAN = float("nan")


def label(start_s: float, end_s: float, name: str, of: str = "activity") -> Label:
    return interval(session="s", set=of, start_ns=int(start_s * 1e9), end_ns=int(end_s * 1e9), label=name)


def stream(indexes: Sequence[int], channels: int = 1, origin_ns: int = 0) -> StreamData:
    header = Header("s", origin_ns, signal_format("imu", tuple("xyz")[:channels], Fraction(10)))
    data = np.repeat(np.array(indexes, np.float32)[:, None], channels, axis=1)
    return StreamData.from_indexes(header, data, np.array(indexes, np.int64))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-5, 5), st.just(NAN)), min_size=1, max_size=120),
    st.integers(1, 12),
    st.data(),
)
def test_thinning_keeps_every_extreme(values: list[float], columns: int, data: st.DataObject) -> None:
    n = len(values)
    breaks = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=4))) if n > 1 else []
    given_values, seconds = np.array(values), np.arange(n) / 7
    found_seconds, found = thin(seconds, given_values, breaks, columns)
    points = {(s, v) for s, v in zip(found_seconds.tolist(), found.tolist(), strict=True) if not np.isnan(v)}
    assert points <= set(zip(seconds.tolist(), values, strict=True))
    assert (np.diff(found_seconds) >= 0).all()
    assert len(found) <= (n + len(breaks) if n <= 2 * columns else 2 * columns + 5 * (len(breaks) + 1))
    for first, end in zip([0, *breaks], [*breaks, n], strict=True):
        finite = [v for v in values[first:end] if not np.isnan(v)]
        inside = [v for s, v in points if seconds[first] <= s <= seconds[end - 1]]
        assert (min(inside, default=None), max(inside, default=None)) == (
            min(finite, default=None),
            max(finite, default=None),
        )
    for at in breaks:  # a number that is none stands between the two sides of a break
        between = found[(found_seconds >= seconds[at - 1]) & (found_seconds <= seconds[at])]
        assert np.isnan(between).any()


def test_short_curves_are_left_as_they_are() -> None:
    seconds, values = thin(np.arange(5.0), np.array([3.0, 1.0, 4.0, 1.0, 5.0]), [2], 600)
    np.testing.assert_array_equal(seconds, [0, 1, 1, 2, 3, 4])
    np.testing.assert_array_equal(values, [3, 1, NAN, 4, 1, 5])


def test_a_panel_has_numbers_gaps_and_times() -> None:
    data = stream([0, 1, 2, 7, 8], 2, origin_ns=5 * 10**9)
    data.data[1, 1] = NAN
    found = panel_of(data, 4 * 10**9)
    assert found.gaps == [(pytest.approx(1.3), pytest.approx(1.7))]
    x, y = found.curves
    assert (x.name, x.low, x.mean, x.high, x.not_finite) == ("x", 0, pytest.approx(3.6), 8, 0)
    assert (y.name, y.low, y.high, y.not_finite) == ("y", 0, 8, 1)
    assert x.seconds.tolist() == pytest.approx([1.0, 1.1, 1.2, 1.2, 1.7, 1.8])


def test_labels_of_one_class_that_touch_are_one_band() -> None:
    labels = [label(2, 3, "b"), label(0, 1, "a"), label(1, 2, "a"), label(4, 5, "a"), label(0, 9, "c", "place")]
    assert bands_of(labels, 10**9) == {
        "activity": [Band(-1, 1, "a"), Band(1, 2, "b"), Band(3, 4, "a")],
        "place": [Band(-1, 8, "c")],
    }


def cut(whole: Recording, start_s: float, duration_s: float | None) -> Recording:
    ((_, part),) = Excerpt(start_s=start_s, duration_s=duration_s).of([whole])
    return part


def test_the_rest_of_an_irregular_stream_has_its_last_sample() -> None:
    header = Header("s", 0, Format("ibi", ("ibi",), ("ms",), Fraction(0), "float32", (1,)))
    times = np.array([0, 1, 5], np.int64) * 10**9
    whole = Recording("s", [StreamData(header, np.ones((3, 1), np.float32), times)], notes=["a note"])
    part = cut(whole, 1.0, None)
    assert part.streams[0].times_ns.tolist() == [10**9, 5 * 10**9]  # type: ignore[union-attr]
    assert part.notes == ["a note"]


def beats(values: list[float], seconds: list[float], indexes: list[int] | None = None) -> StreamData:
    header = Header("s", 7, Format("ibi", ("ibi",), ("s",), Fraction(0), "float32", (1,)))
    data, times = np.array(values, np.float32)[:, None], (np.array(seconds) * 1e9).astype(np.int64)
    return StreamData.from_indexes(header, data, np.array(indexes or range(len(values))), times)


def test_irregular_values_hold_until_the_next_one() -> None:
    (curve,) = panel_of(beats([1, 3, 2], [0, 1, 2.5]), 0).curves
    assert curve.seconds.tolist() == [0, 1, 1, 2.5, 2.5]
    assert curve.values.tolist() == [1, 1, 3, 3, 2]
    assert (curve.low, curve.mean, curve.high) == (1, 2, 3)


def test_tags_are_stems() -> None:
    (curve,) = panel_of(beats([2, 2, 2], [0, 1, 4]), 10**9).curves
    lines = np.column_stack([curve.seconds, curve.values])
    assert lines[~np.isnan(lines).any(1)].tolist() == [[-1, 0], [-1, 2], [0, 0], [0, 2], [3, 0], [3, 2]]
    assert np.flatnonzero(np.isnan(curve.values)).tolist() == [2, 5]
    (curve,) = panel_of(beats([0] * 50_000, np.linspace(0, 1000, 50_000).tolist()), 0).curves
    assert len(curve.values) < 3 * 700
    assert curve.seconds.min() == 0
    assert curve.seconds.max() > 998


def test_what_an_irregular_stream_lost_is_a_gap_between_its_times() -> None:
    assert panel_of(beats([1, 2, 3, 4], [0, 1, 5, 6], [0, 1, 4, 5]), 0).gaps == [(1.0, 5.0)]


def test_a_part_is_cut_by_time() -> None:
    whole = Recording("s", [stream(range(100)), stream([1, 2, 90, 91])], [label(0, 2, "a"), label(8, 9, "b")])
    part = cut(whole, 1.0, 2.0)
    assert [(one.first_index, one.count) for one in part.streams] == [(10, 20)]
    assert part.streams[0].data[:, 0].tolist() == list(range(10, 30))
    assert [one.label for one in part.labels] == ["a"]
    assert [(one.first_index, one.end_index) for one in cut(whole, 8.0, None).streams] == [(80, 100), (90, 92)]


def tall(dtype: str, shape: tuple[int, ...], data: Any) -> StreamData:
    fmt = Format("other", tuple(f"c{i}" for i in range(shape[-1] if shape else 1)), (), Fraction(5), dtype, shape)
    return StreamData(Header("s", 0, fmt), data)


def jpegs(count: int) -> Any:
    image = pytest.importorskip("PIL.Image")
    made = np.empty(count, object)
    for i in range(count):
        out = io.BytesIO()
        image.fromarray(np.full((30, 40, 3), 20 * i, np.uint8)).save(out, "JPEG")
        made[i] = out.getvalue()
    return made


@pytest.mark.parametrize("kind", ["spectrogram", "animation", "jpeg", "irregular", "one sample", "nothing finite"])
def test_streams_of_every_kind_are_drawn(kind: str) -> None:
    random = np.random.default_rng(0)
    if kind == "spectrogram":
        data = tall("float32", (8, 2), random.random((1500, 8, 2)).astype(np.float32))
    elif kind == "animation":
        data = tall("uint8", (6, 9, 3), random.integers(0, 255, (20, 6, 9, 3)).astype(np.uint8))
    elif kind == "jpeg":
        data = tall("jpeg", (30, 40, 3), jpegs(8))
    elif kind == "irregular":
        fmt = Format("ibi", ("ms",), ("ms",), Fraction(0), "float32", (1,))
        data = StreamData(Header("s", 0, fmt), random.random((9, 1)).astype(np.float32), np.arange(9) ** 2 * 10**8)
    else:
        data = stream([3])
        data.data[:] = NAN if kind == "nothing finite" else 1
    drawing, section = plot_recording(Recording("s", [data], [label(0, 0.5, "a")]))
    assert drawing.png.startswith(b"\x89PNG")
    assert drawing.svg in section
    assert (drawing.png, section) == (plot_recording(Recording("s", [data], [label(0, 0.5, "a")]))[0].png, section)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", section, flags=re.DOTALL)


plot = partial(invoke, "plot")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [f"{s},{i / 10},{i},<b>{'walk' if i % 20 < 10 else 'run'}\n" for s in ("one", "two") for i in range(60)]
    path = tmp_path / "two & more.csv"
    path.write_text("session,t,x,label\n" + "".join(rows))
    return path


def test_the_verb_writes_a_page_that_stands_alone(file: Path, tmp_path: Path) -> None:
    done = plot(file, "--out", tmp_path / "out.html", "--json")
    said = json.loads(done.stdout)
    assert [(one["session"], one["labels"], one["streams"][0]["samples"]) for one in said["sessions"]] == [
        ("one", 6, 60),
        ("two", 6, 60),
    ]
    page = (tmp_path / "out.html").read_text()
    assert "://" not in page
    assert "<b>" not in page
    assert page.count("<svg") == 2
    assert '<th scope="row">&lt;b&gt;walk</th><td class="n">2.000</td><td class="n">3.000</td>' in page
    assert "labels &lt;b&gt;run, &lt;b&gt;walk." in page
    assert ">two &amp; more.csv</h1>" in page


def test_the_verb_draws_a_part_as_png(file: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    out = tmp_path / "part.png"
    done = plot(file, "--session", "two", "--start", 2, "--duration", 1.5, "--out", out, "--json")
    assert json.loads(done.stdout)["sessions"][0]["streams"][0]["samples"] == 15
    assert image.open(out).width > 1000


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--out", "x.png"), 1, "a PNG shows one session; name one with --session (one, two …)"),
        (("--out", "x.svg"), 2, "ends in .html or .png"),
        (("--session", "three"), 1, "no session `three`; there are one, two"),
        (("--stream", "eda"), 1, "session one has no stream `eda`, only sensor"),
        (("--start", "100"), 1, "no stream has a sample there"),
        (("--out", "absent/x.html"), 1, "absent/x.html: cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_line(
    file: Path, arguments: tuple[str, ...], status: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = plot(file, *arguments, status=status)
    assert said in done.output
    if status == 1:
        assert done.stderr.count("\n") == 1


def mcap_file(path: Path, topics: dict[str, int]) -> Path:
    """Topics with so many values each, ten messages of 10 Hz."""
    times = [i * 10**8 for i in range(10)]
    return mcap(
        path,
        [
            sample(name, at, [float(i * (k + 1)) for k in range(width)], id=name, timestamp=at)
            for name, width in topics.items()
            for i, at in enumerate(times)
        ],
    )


def labels_file(path: Path, start_s: int = 0, **metadata: str) -> Path:
    event = {"startTime": {"sec": start_s, "nsec": 0}, "endTime": {"sec": start_s + 1, "nsec": 0}, "metadata": metadata}
    path.write_text(json.dumps({"events": [event]}))
    return path


def live_of(page: str) -> list[dict[str, Any]]:
    """What the page's script is given, its arrays decoded."""
    import base64

    found = []
    for text in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL):
        data = json.loads(text)
        data["arrays"] = [np.frombuffer(base64.b64decode(one), "<f4") for one in data["arrays"]]
        found.append(data)
    return found


def test_all_topics_of_an_mcap_are_in_the_page_with_the_labels_beside_it(tmp_path: Path) -> None:
    names = {f"topic_{i:02}": 3 for i in range(12)} | {"pose": 10}
    path = mcap_file(tmp_path / "rec.mcap", names)
    labels_file(tmp_path / "rec.labels.json", level="</script>", who="me")
    done = plot(path, "--out", tmp_path / "out.html", "--json")
    assert json.loads(done.stdout)["sessions"][0]["labels"] == 2
    page = (tmp_path / "out.html").read_text()
    (data,) = live_of(page)
    assert [row["title"] for row in data["rows"] if row["title"]] == list(names)
    assert [[c["name"] for c in row["curves"]] for row in data["rows"]][:2] == [["x", "y", "z"]] * 2
    assert {one["name"]: one["bands"] for one in data["sets"]} == {
        "level": [[0, 1, "</script>"]],
        "who": [[0, 1, "me"]],
    }
    z = data["rows"][0]["curves"][2]
    np.testing.assert_array_equal(data["arrays"][z["values"]], np.arange(10.0, dtype=np.float32) * 3)
    np.testing.assert_allclose(data["arrays"][z["times"]], np.arange(10) / 10, atol=1e-7)
    assert len(data["arrays"]) == 11  # equal numbers are there once: ten columns, and the times
    assert page.count("</script>") == page.count("<script") == 2


def test_the_page_runs_its_own_script_only(file: Path, tmp_path: Path) -> None:
    import base64
    import hashlib

    plot(file, "--out", tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{checksum}'\"" in page
    assert page.count("<noscript>") == 2


def test_labels_may_be_named(tmp_path: Path) -> None:
    path = mcap_file(tmp_path / "rec.mcap", {"acc": 3})
    named = labels_file(tmp_path / "other.json", level="1", who="me")
    for arguments, count in (((), 0), (("--labels", named), 2), (("--labels", named, "--key", "who"), 1)):
        done = plot(path, *arguments, "--out", tmp_path / "out.html", "--json")
        assert json.loads(done.stdout)["sessions"][0]["labels"] == count
    beside = labels_file(tmp_path / "rec.labels.json", 50, level="1")  # found, and of another clock: said, not fatal
    plot(path, "--out", tmp_path / "out.html")
    assert "rec.labels.json: none of its 1 labels lies within session rec" in (tmp_path / "out.html").read_text()
    beside.unlink()
    far = labels_file(tmp_path / "far.json", 50, level="1")
    done = plot(path, "--labels", far, "--out", tmp_path / "out.html", status=1)
    assert "no label lies within session rec" in done.stderr


@pytest.mark.parametrize(
    ("channels", "rows"),
    [
        (("x", "y", "z"), [["x", "y", "z"]]),
        (("ax", "ay", "az", "gx", "gy", "gz"), [["ax", "ay", "az"], ["gx", "gy", "gz"]]),
        (("x", "y", "z", "x", "y", "z"), [["x", "y", "z"], ["x", "y", "z"]]),
        (("w", "x", "y", "z"), [["w", "x", "y", "z"]]),
        (("eda", "bvp"), [["eda"], ["bvp"]]),
        (("v0", "v1", "speed x"), [["v0"], ["v1"], ["speed x"]]),
    ],
)
def test_axes_of_one_vector_share_a_row(channels: tuple[str, ...], rows: list[list[str]]) -> None:
    empty = np.empty(0)
    curves = [Curve(name, "g", empty, empty, 0, 0, 1, 0) for name in channels]
    assert [[one.name for one in row] for row in rows_of(curves)] == rows
    apart = [Curve(name, str(i), empty, empty, 0, 0, 1, 0) for i, name in enumerate(channels)]
    assert [[one.name for one in row] for row in rows_of(apart)] == [[name] for name in channels]


def test_constant_channels_of_many_are_said_in_words() -> None:
    empty = np.empty(0)
    curves = [
        Curve(f"v{i}", "", empty, empty, low, 0, high, 0)
        for i, (low, high) in enumerate([(0, 0), (1, 2), (5, 5), (0, 1), (0, 0)])
    ]
    kept, said = split_constant(curves)
    assert ([one.name for one in kept], said) == (["v1", "v3"], "constant: v0, v4 = 0; v2 = 5")
    assert split_constant(curves[:4]) == (curves[:4], "")


def test_a_zoomed_page_has_more_than_its_picture(tmp_path: Path) -> None:
    rows = "".join(f"{i / 100},{i}\n" for i in range(5000))
    path = tmp_path / "long.csv"
    path.write_text("t,x\n" + rows)
    plot(path, "--out", tmp_path / "out.html")
    (data,) = live_of((tmp_path / "out.html").read_text())
    curve = data["rows"][0]["curves"][0]
    np.testing.assert_array_equal(data["arrays"][curve["values"]], np.arange(5000))


def test_from_python(tmp_path: Path) -> None:
    rows = [f"{i / 10},{i % 7},{i % 3},{'a' if i < 30 else 'b'}" for i in range(60)]
    (tmp_path / "s.csv").write_text("\n".join(["t,x,y,label", *rows]) + "\n")
    made = kymo.plot(tmp_path / "s.csv", start_s=1, duration_s=4)
    assert made._repr_png_().startswith(b"\x89PNG")
    assert sum(stream.count for stream in made.recording.streams) == 40
    assert kymo.plot(next(kymo.read([tmp_path / "s.csv"]))).recording.session == "s"
    page = made.save(tmp_path / "s.html").read_text()
    assert "<html" in page
    assert made.save(tmp_path / "s.png").read_bytes() == made.png
    with pytest.raises(kymo.KymoError, match=r"X.png or X.html"):
        made.save(tmp_path / "s.gif")
    with pytest.raises(kymo.KymoError, match="no session `z`; there are s"):
        kymo.plot([tmp_path / "s.csv"], session="z")


def test_a_synthesis_is_drawn_with_its_levels() -> None:
    levels = [{"duration_s": 2, "mag_distortion": {"level": level, "world_x": 0.3}} for level in ("none", "high")]
    synthesis = kymo.simulate({"initialization": {"sample_rate": 50}, "segments": levels})
    recording = kymo.plot(synthesis, streams=["mag_raw"]).recording
    assert [label.label for label in recording.labels] == ["none", "high"]
    np.testing.assert_array_equal(recording.streams[0].data, synthesis.topics["mag_raw"])
