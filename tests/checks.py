"""What every Spec must satisfy. In: a Spec and its Format. Out: nothing, or an AssertionError that says what broke.

Every step of `kymo.processors.registry.STEPS` needs a line in `STEP_EXAMPLES`; the tests fail when one is absent. To check
a new step by hand: ``check_spec(MySpec(...), fmt, runs, chunks, kills)``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from strategies import Run, chunks_from, fresh_headers, imu, one_chunk_a_run

from kymo.models.data.dataset import iter_windows
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Intake
from kymo.processors.registry import STEPS, make_step, spec_from_json
from kymo.processors.spec import Spec
from kymo.processors.steps.frames import FramedSpec
from kymo.processors.steps.images import Decode, Encode
from kymo.processors.steps.maps import Scale
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import PaddedWindows, Windows
from kymo.streams.chunk import Array, Chunk, Format, Window, signal_format
from kymo.streams.recording import StreamData

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Example:
    """A step with the format that it takes."""

    spec: Spec
    fmt: Format


def examples() -> dict[str, list[Example]]:
    """Examples of every registered step, small enough for a few dozen samples."""
    out: dict[str, list[Example]] = {
        "intake": [
            Example(Intake(), imu()),
            Example(Intake(("c1",), ("m/s^2",), "float64", bridge=3), imu(2, "int16", units=("g", "g"))),
            Example(Intake(bridge=2, fill=9, max_missing=0.5), imu(3, "float64")),
            Example(Intake(dtype="jpeg"), IMAGES),
            Example(Intake(("green", "red"), dtype="uint8"), PIXELS),
        ],
        "windows": [
            Example(Windows(10, 4), imu()),
            Example(Windows(3, 7), imu(1, "int16")),
            Example(Windows(1, 1), imu(1, "float64")),
            Example(Windows(7, 3), PIXELS),
            Example(Windows(7, 3), IMAGES),
        ],
        "padded_windows": [
            Example(PaddedWindows(10, 4), imu()),
            Example(PaddedWindows(3, 7), imu(1, "int16")),
            Example(PaddedWindows(5, 5), imu(1, "float64")),
            Example(PaddedWindows(6, 4), PIXELS),
        ],
        "per_window": [],
        "chain": [
            Example(Chain((Intake(), Windows(8, 3))), imu()),
            Example(Chain((Intake(bridge=2, fill=9, max_missing=0.5), Windows(12, 5))), imu(2, "float64")),
            Example(Chain((Intake(bridge=30), Windows(5, 9))), imu(1)),
            Example(Chain((Intake(dtype="jpeg"), Windows(8, 3), PerWindow(Decode(3, 4)))), IMAGES),
            Example(Chain((Intake(dtype="jpeg"), Decode(3, 4), Scale(1 / 255), PaddedWindows(6, 2))), IMAGES),
            Example(Chain((Intake(dtype="uint8"), Encode(), Windows(5, 5), PerWindow(Decode(3, 4)))), PIXELS),
            Example(Chain((Intake(bridge=2), PaddedWindows(9, 6), PerWindow(Scale(2.0, 1.0)))), imu(2)),
            Example(Chain((Intake(), Spectrogram(nperseg=4, noverlap=2), PaddedWindows(12, 8))), imu(1)),
            Example(Chain((Intake(), PaddedWindows(12, 5), PerWindow(Spectrogram(nperseg=4, noverlap=2)))), imu(1)),
        ],
    }
    for name, parameters, fmt in STEP_EXAMPLES:
        if name in STEPS:
            out.setdefault(name, []).append(Example(make_step(name, parameters), fmt))
    return {name: [] for name in STEPS} | out


COLUMNS = Format("spectrogram", ("a", "b"), ("g", "g"), Fraction(10), "float32", (3, 2), Fraction(4), 8)
IMAGES = Format("video", ("red", "green", "blue"), (), Fraction(15), "jpeg", ())
PIXELS = replace(IMAGES, dtype="uint8", shape=(4, 5, 3))
G = ("g", "g")
_BODY = tuple(f"left_{joint}_{axis}" for joint in ("shoulder", "hip", "knee") for axis in "xy")
POSE = signal_format("pose", _BODY, 10, "float64", ("px",) * 6)
STEP_EXAMPLES: list[tuple[str, dict[str, Any], Format]] = [
    ("derived", {}, COLUMNS),
    ("spectrogram", {"nperseg": 8, "noverlap": 6}, imu()),
    (
        "spectrogram",
        {"nperseg": 8, "noverlap": 0, "keep_bins": 3, "detrend": "linear", "mode": "magnitude"},
        imu(1, "float64", units=("g",)),
    ),
    (
        "spectrogram",
        {"nperseg": 5, "nfft": 7, "window": "hann", "detrend": False, "scaling": "spectrum"},
        imu(3, units=("g", "g", "T")),
    ),
    ("spectrogram", {"nperseg": 7, "noverlap": 6, "mode": "phase"}, imu()),
    ("select", {"channels": ("c1",)}, imu(3, "int16")),
    ("select", {"channels": ("b", "a")}, COLUMNS),
    ("anew", {"channel": "c1"}, imu(3, "int16")),
    ("anew", {"channel": "a"}, COLUMNS),
    ("scale", {"factor": (2.0, 3.0), "offset": -1.5, "units": ("V", "V")}, imu(2, "int16", units=G)),
    ("scale", {"factor": 0.1}, COLUMNS),
    ("log", {}, COLUMNS),
    ("decibels", {}, COLUMNS),
    ("decibels", {"top_db": 20.0, "amin": 1e-3, "per": "window", "scaled": False}, imu(2, "float64")),
    ("log", {"floor": 1e-3, "eps": 0.0, "db": True}, imu(2, "float64")),
    ("standardise", {"mean": (1.0, 2.0), "std": (0.5, 2.5)}, imu(2, "float64", units=G)),
    (
        "standardise",
        {"mean": ((1.0, 2.0), (0.0, 0.5), (3.0, 1.0)), "std": ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)), "per": "bin"},
        COLUMNS,
    ),
    ("mel", {"n_fft": 16, "hop_length": 4, "n_mels": 3}, imu()),
    (
        "log_mel",
        {"n_fft": 12, "hop_length": 5, "win_length": 8, "n_mels": 2, "htk": True, "power": 1.0},
        imu(1, "float64"),
    ),
    ("resample", {"up": 2, "down": 1}, imu()),
    ("resample", {"up": 2, "down": 3}, imu(1, "float64")),
    ("field", {"acc": ("c0", "c1", "c2"), "mag": ("c3", "c4", "c5")}, imu(6)),
    (
        "field",
        {"acc": ("c5", "c1", "c2"), "mag": ("c3", "c0", "c4")},
        imu(7, "int16", units=("T", "g", "g", "T", "T", "g", "s")),
    ),
    ("derived", {}, IMAGES),
    ("derived", {}, PIXELS),
    ("select", {"channels": ("blue",)}, PIXELS),
    ("decode", {"height": 3, "width": 4}, IMAGES),
    ("encode", {}, PIXELS),
    ("scale", {"factor": 1 / 255}, PIXELS),
    ("audio_fbank", {"n_mels": 7, "frames": 30}, imu(2)),
    ("audio_fbank", {"n_mels": 3, "rate_hz": 8000, "frames": 0}, imu(1, "int16")),
    ("deviation", {"channels": ("b",), "usual": (1.5,)}, COLUMNS),
    ("mask", {"inputs": ("imu.left", "eda"), "groups": (("c0", "c2"), ("c1",))}, imu(3)),
    ("mask", {"inputs": ("imu",), "groups": (("b",),)}, COLUMNS),
    ("filter", {"cutoff_hz": 20.0}, imu()),
    (
        "filter",
        {"kind": "highpass", "channels": ("c1",), "into": ("phasic",), "lag_s": 0.1},
        imu(2, "float64", units=G),
    ),
    ("filter", {"kind": "bandpass", "cutoff_hz": (5.0, 30.0), "order": 3, "lag_s": 0.03}, imu(3, "int16")),
    ("filter", {"kind": "notch", "cutoff_hz": 30.0, "channels": ("c0",)}, imu(2)),
    ("normalise", {}, imu(2, units=G)),
    ("normalise", {"baseline_s": 0.15, "channels": ("c1",), "into": ("z",)}, imu(2, "float64")),
    ("repair", {"low": -10.0, "margin_s": 0.02, "longest_s": 0.06}, imu(2)),
    ("repair", {"low": -20000.0, "high": 20000.0, "margin_s": 0.0, "longest_s": 0.03}, imu(1, "int16")),
    ("peaks", {"min_prominence": 0.3, "reach_s": 0.06}, imu(2)),
    ("peaks", {"reach_s": 0.15, "channels": ("c0",), "into": ("peak",)}, imu(2, "int16")),
    ("beats", {"peak_s": 0.02, "beat_s": 0.05, "min_delay_s": 0.02, "longest_s": 0.04}, imu(1)),
    ("beats", {"channels": ("c1",), "into": ("beat",), "peak_s": 0.01, "beat_s": 0.06}, imu(2, "int16")),
    ("rate", {"seconds": 0.1, "low": 0.0, "high": 1e6, "measures": ("rate", "amplitude")}, imu(1)),
    (
        "rate",
        {"channels": ("c0",), "into": ("n", "sd"), "measures": ("count", "sdnn"), "seconds": 0.2, "high": 1e9},
        imu(2, "int16"),
    ),
    ("features", {"measures": ("c0.mean", "c1.slope", "c0.rmssd", "c1.ibi_rate", "c0.last")}, imu(2)),
    (
        "animation",
        {
            "height": 9,
            "width": 7,
            "rate_hz": 25,
            "from_hz": 100,
            "channels": ("c1", "", "", "c0"),
            "reach_s": (0.07, 1, 1, 0.02),
        },
        imu(),
    ),
    (
        "animation",
        {
            "height": 4,
            "width": 6,
            "look": "strips",
            "from_hz": "100",
            "channels": ("", "c0", "", ""),
            "reach_s": (1, 0.05, 1, 1),
        },
        imu(1, "float64"),
    ),
    ("fill_joints", {"longest_s": 0.3}, POSE),
    ("fill_joints", {"by": "line", "longest_s": 0.2, "channels": ("left_hip_x", "left_hip_y")}, POSE),
    ("normalise_pose", {"found": True, "place": True, "limit": 3}, POSE),
    ("normalise_pose", {"by": "shoulders"}, POSE),
    ("normalise_pose", {"by": "image", "width": 640, "height": 480}, replace(POSE, dtype="int16")),
    ("one_euro", {"beta": 0.1}, POSE),
    ("joint_features", {"velocities": True}, POSE),
    ("equally_spaced", {}, POSE),
    ("equally_spaced", {"frames": 4, "stride": 3}, imu()),
    ("deviation", {"channels": ("c1", "c0"), "joint": ("c0", "c1"), "usual": (1.5, -2.0)}, imu(3, "int16")),
]


def outputs(items: Sequence[Any]) -> dict[Key, tuple[Any, ...]]:
    """Items by identity: each window, and each sample of each chunk. Nothing may come twice, and indices rise."""
    out: dict[Key, tuple[Any, ...]] = {}
    last = -1
    for item in items:
        if isinstance(item, Window):
            key: Key = (item.header.session, item.header.format.stream, item.header.chain, item.start_index)
            times = (item.end_index, item.start_ns, item.end_ns, item.missing)
            _put(out, key, (item.header, *times, item.data.dtype.str, item.data.shape, bytes_in(item.data)))
            assert item.start_index > last, f"window {item.start_index} came after {last}"
            last = item.start_index
            continue
        for i in range(item.count):
            key = (item.session, item.stream, item.header.chain, item.first_index + i)
            _put(out, key, (item.header, item.data.dtype.str, item.data.shape[1:], bytes_in(item.data[i : i + 1])))
        assert not item.count or item.first_index > last, f"sample {item.first_index} came after {last}"
        last = item.end_index - 1 if item.count else last
    return out


def bytes_in(data: Array) -> bytes:
    """What an array holds: of images, the images."""
    return repr(data.tolist()).encode() if data.dtype.hasobject else data.tobytes()


def _put(out: dict[Key, tuple[Any, ...]], key: Key, value: tuple[Any, ...]) -> None:
    assert key not in out, f"{key} came twice"
    out[key] = value


def run(spec: Spec, chunks: Sequence[Any], end: bool = True) -> list[Any]:
    stage = spec.build()
    out = [item for chunk in chunks for item in stage.push(chunk)]
    return out + stage.flush() if end else out


def same(came: dict[Key, tuple[Any, ...]], wanted: dict[Key, tuple[Any, ...]]) -> None:
    """The two are the same, ids and bytes."""
    assert list(came) == list(wanted), f"other ids: {list(came)[:5]}… for {list(wanted)[:5]}…"
    for key, value in wanted.items():
        assert came[key] == value, f"{key} differs"


def check_cut(spec: Spec, runs: list[Run], chunks: list[Chunk]) -> None:
    """Law 1: however it is cut, the same comes out."""
    same(outputs(run(spec, chunks)), outputs(run(spec, one_chunk_a_run(runs))))


def check_going_on(spec: Spec, chunks: list[Chunk], kills: Sequence[int], trim: bool) -> None:
    """Law 2 from `needs_from`: every part is as in the undisturbed run, and nothing is lost."""
    wanted = outputs(run(spec, chunks))
    got: dict[Key, tuple[Any, ...]] = {}
    feed, stage = list(chunks), spec.build()
    for kill in [*kills, None]:
        stop = len(feed) if kill is None else min(kill, len(feed))
        items = [item for chunk in feed[:stop] for item in stage.push(chunk)]
        part = outputs(items + stage.flush() if kill is None else items)
        for key, value in part.items():
            assert key in wanted, f"{key} came only after a restart"
            assert value == wanted[key], f"{key} differs after a restart"
        got |= part
        if kill is None:
            break
        needs = stage.needs_from
        assert len(needs) <= 1
        assert stop == 0 or not any(c.count for c in feed[:stop]) or needs, (
            "samples were taken, but needs_from is empty"
        )
        index = next(iter(needs.values()), None)
        assert index is None or index >= 0
        feed, stage = chunks_from(fresh_headers(feed), index, trim), spec.build()
    lost = [key for key in wanted if key not in got]
    assert not lost, f"lost: {lost[:5]}"


def check_snapshot(spec: Spec, chunks: list[Chunk], kills: Sequence[int]) -> None:
    """Law 2 from a snapshot: exactly the undisturbed run, and the memory itself goes both ways."""
    at = sorted({min(k, len(chunks)) for k in kills})
    stage, items, needs = spec.build(), [], {}
    for i, chunk in enumerate(fresh_headers(chunks)):
        if i in at:
            kept, needs = stage.snapshot(), stage.needs_from
            stage = spec.build()
            stage.restore(kept)
            assert stage.needs_from == needs, f"needs_from {stage.needs_from} after restore, {needs} before"
            assert stage.snapshot() == kept, "a restored stage has another snapshot"
        items += stage.push(chunk)
    kept, stage = stage.snapshot(), spec.build()
    stage.restore(kept)
    same(outputs(items + stage.flush()), outputs(run(spec, chunks)))


def check_declared(spec: Spec, fmt: Format, chunks: list[Chunk]) -> None:
    """What comes out is what was declared, and it comes out the same twice."""
    declared = spec.output({fmt.stream: fmt})
    items = run(spec, chunks)
    assert declared.dtype == "jpeg" or len(declared.channels) == declared.shape[-1]
    assert len(declared.units) in (0, len(declared.channels))
    for item in items:
        assert item.header.format == declared
        assert item.data.dtype == declared.array_dtype
        assert item.data.shape[1:] == declared.shape
        if declared.rows is not None:
            assert isinstance(item, Window)
            assert len(item.data) == declared.rows
            assert 0 <= item.missing <= 1
            assert type(item.start_ns) is type(item.end_ns) is type(item.start_index) is int
    same(outputs(run(spec, fresh_headers(chunks))), outputs(items))


def check_json(spec: Spec) -> None:
    """JSON both ways, and the same digest."""
    described = spec.to_json()
    again = spec_from_json(json.loads(json.dumps(described, allow_nan=False)))
    assert again == spec
    assert type(again) is type(spec)
    assert again.to_json() == described
    assert described["step"] == spec.name
    assert hash(again) == hash(spec)
    assert Chain((again,)).digest() == Chain((spec,)).digest()


def check_small(spec: Spec, fmt: Format, one: Chunk) -> None:
    """Empty and one-sample input, before and behind anything else."""
    stage = spec.build()
    assert stage.needs_from == {}
    assert stage.flush() == []
    empty = replace(one, data=one.data[:0])
    assert not outputs(run(spec, [empty]))
    same(outputs(run(spec, [empty, one, replace(empty, first_index=one.end_index)])), outputs(run(spec, [one])))
    kept, stage = spec.build().snapshot(), spec.build()
    stage.restore(kept)
    same(outputs([*stage.push(one), *stage.flush()]), outputs(run(spec, [one])))


def check_two_sessions(spec: Spec, chunks: list[Chunk]) -> None:
    """Two stages of one Spec, fed by turns, do not know of each other."""
    others = [replace(c, header=replace(c.header, session="other"), data=c.data[::-1]) for c in chunks]
    a, b = spec.build(), spec.build()
    out_a, out_b = [], []
    for mine, theirs in zip(chunks, others, strict=True):
        out_a += a.push(mine)
        out_b += b.push(theirs)
    same(outputs(out_a + a.flush()), outputs(run(spec, chunks)))
    same(outputs(out_b + b.flush()), outputs(run(spec, others)))


def check_windows_complete(spec: Spec, fmt: Format, recording: Run) -> None:
    """Behind a step before the window, every window inside a gapless recording comes, with the declared rows."""
    out = spec.output({fmt.stream: fmt})
    hop = int(out.step * out.step.denominator)
    length = out.span + 3 * hop
    chain = Chain((spec, Windows(length, hop)))
    starts = [w.start_index for w in run(chain, one_chunk_a_run([recording]))]
    raw = (len(recording.data) - 1) * fmt.step + fmt.span if len(recording.data) else 0
    assert starts == list(range(0, int(raw) - length + 1, hop))


def check_per_window(spec: Spec, fmt: Format, run_: Run) -> None:
    """Behind the window: declared output = real output, the same twice, from arrays that cannot be written to."""
    rows = len(run_.data)
    behind = PerWindow(spec)
    declared = behind.output({fmt.stream: replace(fmt, rows=rows)})
    header = replace(run_.header, format=replace(fmt, rows=rows))
    window = Window(header, 0, rows, 0, 1, run_.data)
    before = bytes_in(run_.data)
    (once,), (again,) = behind.build().push(window), behind.build().push(window)
    assert bytes_in(run_.data) == before
    assert once.header.format == declared
    assert once.data.shape == (declared.rows, *declared.shape), (
        f"{once.data.shape}, declared {(declared.rows, *declared.shape)}"
    )
    assert once.data.dtype == declared.array_dtype
    assert bytes_in(once.data) == bytes_in(again.data)
    check_json(behind)


def check_spec(spec: Spec, fmt: Format, runs: list[Run], chunks: list[Chunk], kills: Sequence[int]) -> None:
    """All that holds for a step before the window."""
    check_json(spec)
    check_declared(spec, fmt, chunks)
    check_cut(spec, runs, chunks)
    for trim in (False, True) if not spec.endless else ():  # else a snapshot alone goes on
        check_going_on(spec, chunks, kills, trim)
    check_snapshot(spec, chunks, kills)
    check_two_sessions(spec, chunks)
    first = runs[0]
    if len(first.data):
        check_small(spec, fmt, Chunk(first.header, first.first, first.data[:1]))


def with_borders(spec: Spec, chunk_frames: int, chunk_phase: int) -> Spec:
    """A framed step with other chunk borders; any other step as it is."""
    if isinstance(spec, FramedSpec):
        return replace(spec, chunk_frames=chunk_frames, chunk_phase=chunk_phase)
    return spec


def windows_of(streams: Sequence[StreamData], chain: Chain) -> list[Window]:
    """All windows that a chain makes of the streams that feed it."""
    return list(iter_windows(streams, chain))
