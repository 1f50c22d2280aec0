"""The laws, on every Spec there is: cut invariance, crash invariance, and what else `checks` lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from checks import (
    Example,
    check_going_on,
    check_per_window,
    check_snapshot,
    check_spec,
    check_windows_complete,
    examples,
    outputs,
    run,
    with_borders,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import Run, cuttings, imu, recordings, samples

from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Intake
from kymo.processors.registry import STEPS
from kymo.processors.spec import MapSpec, only
from kymo.processors.steps.conditioning import SignalSpec
from kymo.processors.steps.frames import FramedSpec
from kymo.processors.windows import Windows
from kymo.streams.chunk import Array, Format, Header

LAWS = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@dataclass(frozen=True)
class Frames(FramedSpec):
    """The smallest framed step: per column the sum, the first and the last sample, weighted by place."""

    length: int = 4
    step_samples: int = 2
    name: ClassVar[str] = "frames_of_the_test"

    @property
    def frame_length(self) -> int:
        return self.length

    @property
    def frame_step(self) -> int:
        return self.step_samples

    def kernel(self, samples: Array, fmt: Format) -> Array:
        assert samples.dtype == np.dtype(fmt.dtype)
        assert (
            samples.shape[1] == (self.chunk_frames - 1) * self.frame_step + self.frame_length or self.chunk_frames == 1
        )
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.length, axis=1)[:, :: self.step_samples]
        weights = np.arange(1, self.length + 1)
        return np.stack([frames.astype(np.float64) @ weights, frames[..., 0].astype(np.float64)]).transpose(2, 0, 1)

    def output(self, inputs: Any) -> Format:
        fmt = only(inputs)
        step = fmt.step * self.frame_step
        return replace(
            fmt, dtype="float64", shape=(2, *fmt.shape), rate=fmt.rate / self.frame_step, step=step, span=self.length
        )


@dataclass(frozen=True)
class Double(MapSpec):
    name: ClassVar[str] = "double_of_the_test"

    def apply(self, data: Array, fmt: Format) -> Array:
        return data * 2

    def output(self, inputs: Any) -> Format:
        return only(inputs)


OWN = [
    Example(Double(), imu()),
    Example(Frames(length=4, step_samples=2), imu()),
    Example(Frames(length=5, step_samples=5), imu(1, "int16")),
    Example(Frames(length=2, step_samples=5), imu(3, "float64")),
    Example(Frames(length=1, step_samples=1), imu(1)),
    Example(Chain((Intake(bridge=3), Frames(length=6, step_samples=2), Windows(12, 4))), imu()),
    Example(
        Chain((Intake(fill=9, max_missing=0.4), Double(), Frames(length=3, step_samples=3), Windows(9, 6))),
        imu(1, "int16"),
    ),
    Example(
        Chain((Intake(bridge=5, dtype="float64"), Frames(length=2, step_samples=4), Windows(10, 16))), imu(2, "float64")
    ),
    Example(
        Chain((Intake(bridge=5), Windows(12, 5), PerWindow(Frames(length=4, step_samples=3)), PerWindow(Double()))),
        imu(2),
    ),
]
ALL = [(name, example) for name, some in examples().items() for example in some if example.spec.before_window]
ALL += [(example.spec.name, example) for example in OWN]
BEHIND = [(name, e) for name, e in ALL if e.spec.after_window and not isinstance(e.spec, Chain)]
BEHIND += [(name, e) for name, some in examples().items() for e in some if not e.spec.before_window]


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (Frames, Double):
        monkeypatch.setitem(STEPS, spec.name, spec)


def names(pairs: list[tuple[str, Example]]) -> list[str]:
    return [f"{name}-{i}" for i, (name, _) in enumerate(pairs)]


REGISTERED = tuple(STEPS)


def test_every_step_has_an_example() -> None:
    elsewhere = {
        "per_window",
        "branch",
        "join",
    }  # the first wraps any other, below; several inputs have their own laws: test_join.py
    absent = [name for name in REGISTERED if not examples()[name] and name not in elsewhere]
    assert not absent, f"no example in tests/checks.py for {', '.join(absent)}"
    assert set(examples()) <= set(STEPS)


@pytest.mark.parametrize(("name", "example"), ALL, ids=names(ALL))
@given(data=st.data())
@settings(LAWS, suppress_health_check=list(HealthCheck))
def test_laws(name: str, example: Example, data: st.DataObject) -> None:
    spec = example.spec
    frames, phase = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 7))
    spec = with_borders(spec, frames, phase)
    if isinstance(spec, Chain):
        spec = replace(spec, specs=tuple(with_borders(s, frames, phase) for s in spec.specs))
    runs = data.draw(recordings(example.fmt))
    chunks = data.draw(cuttings(runs))
    kills = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=3))
    check_spec(spec, example.fmt, runs, chunks, kills)


@pytest.mark.parametrize(("name", "example"), ALL, ids=names(ALL))
@given(data=st.data())
@settings(LAWS, max_examples=20, suppress_health_check=list(HealthCheck))
def test_every_window_behind_a_step_comes(name: str, example: Example, data: st.DataObject) -> None:
    leaves_out = isinstance(example.spec, SignalSpec) and example.spec.fills
    if leaves_out or example.spec.output({example.fmt.stream: example.fmt}).rows is not None:
        return
    (recording,) = data.draw(recordings(example.fmt, 90, whole=True))
    check_windows_complete(example.spec, example.fmt, recording)


@pytest.mark.parametrize(("name", "example"), BEHIND, ids=names(BEHIND))
@given(rows=st.integers(16, 60), seed=st.integers(0, 99))
@settings(LAWS, max_examples=20, suppress_health_check=list(HealthCheck))
def test_behind_the_window(name: str, example: Example, rows: int, seed: int) -> None:
    run_ = Run(Header("s", 0, example.fmt), 0, samples(example.fmt, rows, seed))
    check_per_window(example.spec, example.fmt, run_)


def test_a_stage_that_starts_in_mid_session_keeps_the_grid_and_counts_no_gap() -> None:
    fmt = imu()
    recording = Run(Header("s", 0, fmt), 0, samples(fmt, 100, 1))
    chain = Chain((Intake(bridge=4), Frames(length=6, step_samples=2), Windows(12, 4)))
    whole = outputs(run(chain, [_chunk(recording, 0, 100)]))
    stage = chain.build()
    items = stage.push(_chunk(recording, 37, 100))
    assert [w.start_index for w in items] == list(range(40, 89, 4))
    assert all(whole[key] == value for key, value in outputs(items).items())
    assert stage.take_counts()["gaps"] == 0


def _chunk(recording: Run, a: int, b: int) -> Any:
    from kymo.streams.chunk import Chunk

    return Chunk(recording.header, recording.first + a, recording.data[a:b])


def test_laws_hold_over_several_kills_in_a_row() -> None:
    fmt = imu()
    recording = Run(Header("s", 5, fmt), 0, samples(fmt, 90, 2))
    chunks = [_chunk(recording, a, a + 3) for a in range(0, 90, 3)]
    chain = Chain((Intake(), Frames(length=8, step_samples=4, chunk_frames=3, chunk_phase=1), Windows(16, 12)))
    kills = [3, 1, 0, 4, 4, 7, 2]
    for trim in (False, True):
        check_going_on(chain, chunks, kills, trim)
    check_snapshot(chain, chunks, kills)
