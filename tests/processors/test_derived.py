"""A chain cut in two at its window, with Kafka's bytes between the halves, gives the windows of the whole chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from kymo.processors.chain import Chain
from kymo.processors.intake import Derived, Intake
from kymo.processors.spec import Stage
from kymo.processors.steps.maps import Log
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header, Window, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import FormatError

HEADER = Header("s", 0, signal_format("imu.wrist", ("a", "b"), 100))
SAMPLES = np.random.default_rng(7).standard_normal((3000, 2)).astype(np.float32)
WHOLE = Chain(
    (
        Intake(bridge=5, fill=30, max_missing=0.1),
        Spectrogram(nperseg=20, noverlap=16, chunk_frames=6, chunk_phase=3),
        Log(),
        Windows(100, 24),
    )
)


def recording(cut: int) -> Iterator[Chunk]:
    """A gap to bridge, one to fill, one that no window spans."""
    for a, b in [(0, 500), (503, 900), (908, 2000), (2100, 3000)]:
        for i in range(a, b, cut):
            yield Chunk(HEADER, i, SAMPLES[i : min(b, i + cut)])


def run(stage: Stage, items: Iterable[Any]) -> list[Any]:
    out = [made for item in items for made in stage.push(item)]
    return out + stage.flush()


def fields(w: Window) -> tuple[Any, ...]:
    return w.start_index, w.start_ns, w.end_ns, w.missing, w.header.format, w.data.shape, w.data.tobytes()


@pytest.mark.parametrize("cut", [7, 37, 400])
def test_halves_give_the_windows_of_the_whole(cut: int) -> None:
    first, rest = WHOLE.split()
    codec = ChunkCodec()
    derived = [codec.decode(codec.encode(chunk)) for chunk in run(first.build(), recording(cut))]
    assert {c.header.chain for c in derived} == {first.derived_digest()}
    expected = run(WHOLE.build(), recording(cut))
    assert {w.missing for w in expected} == {0.0, 0.03, 0.08}
    assert list(map(fields, run(rest.build(), derived))) == list(map(fields, expected))


def test_repeated_chunks_change_nothing() -> None:
    first, rest = WHOLE.split()
    derived = run(first.build(), recording(50))
    again = [chunk for i, chunk in enumerate(derived) for chunk in (chunk, *derived[max(0, i - 1) : i])]
    assert list(map(fields, run(rest.build(), again))) == list(map(fields, run(rest.build(), derived)))


def test_digest_tells_recipes_apart() -> None:
    other = Chain((Intake(bridge=6), *WHOLE.specs[1:])).split()[0]
    assert other.derived_digest() != WHOLE.split()[0].derived_digest()


def test_a_chain_without_steps_before_the_window_has_no_derived_stream() -> None:
    with pytest.raises(FormatError, match="no step stands before the window"):
        Chain((Intake(), Windows(10, 5))).split()


def test_range_is_checked() -> None:
    with pytest.raises(FormatError, match="max_missing"):
        Derived(max_missing=2.0)


def test_a_gap_that_two_chunks_rest_on_counts_once_however_they_are_joined() -> None:
    fmt = replace(signal_format("spectrogram", ("x",), 1), step=Fraction(8), span=16)
    header = Header("s", 0, fmt, "c")
    gap = ((7, 10, True),)

    def missing(*chunks: Chunk) -> list[float]:
        stage = Chain((Derived("c", 1.0), Windows(32, 32))).build()
        return [window.missing for item in chunks for window in stage.push(item)]

    rows = np.zeros((3, 1), np.float32)
    apart = missing(*(Chunk(header, i, rows[i : i + 1], filled=gap if i < 2 else ()) for i in range(3)))
    joined = missing(Chunk(header, 0, rows, filled=gap + gap))
    assert apart == joined == [3 / 32]
