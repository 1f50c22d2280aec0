"""Intake by example: what is bridged, late, missing, refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checks import outputs, run
from strategies import imu, read_only

from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header, Window
from kymo.streams.errors import FormatError


def rows(first: int, *values: float, header: Header | None = None) -> Chunk:
    header = header or Header("s", 0, imu(1))
    return Chunk(header, first, read_only(np.array(values, header.format.dtype).reshape(-1, 1)))


def test_a_bridged_gap_is_a_straight_line_and_counts_as_missing() -> None:
    chain = Chain((Intake(bridge=3), Windows(4, 4)))
    (first, second) = run(chain, [rows(0, 0, 1), rows(5, 5, 6, 7)])
    assert first.data.ravel().tolist() == [0, 1, 2, 3]
    assert second.data.ravel().tolist() == [4, 5, 6, 7]
    assert (first.missing, second.missing) == (0.5, 0.25)


def test_a_gap_beyond_the_limit_is_not_filled_and_its_windows_do_not_come() -> None:
    chain = Chain((Intake(bridge=2), Windows(4, 2)))
    stage = chain.build()
    out = stage.push(rows(0, 0, 1, 2, 3)) + stage.push(rows(7, 7, 8, 9, 10, 11))
    assert [w.start_index for w in out] == [0, 8]
    assert stage.take_counts() == {"gaps": 1}


def test_a_long_run_of_nan_does_not_hold_back_the_commit() -> None:
    stage = Chain((Intake(bridge=3),)).build()
    stage.push(rows(0, 1, 2, 3))
    assert stage.needs_from == {"imu": 2}
    stage.push(rows(3, np.nan, np.nan))
    assert stage.needs_from == {"imu": 2}
    stage.push(rows(5, np.nan, np.nan))
    assert stage.needs_from == {"imu": 7}


def test_late_is_told_from_duplicate() -> None:
    stage = Intake().build()
    for chunk in (rows(0, 1, 2), rows(4, 5), rows(2, 3, 4), rows(0, 1)):
        stage.push(chunk)
    assert stage.counts == {"late": 1, "duplicates": 1, "gaps": 1}


def test_an_old_chunk_of_the_clock_before_changes_nothing() -> None:
    old, new = Header("s", 0, imu(1)), Header("s", 99, imu(1))
    chain = Chain((Intake(bridge=3), Windows(6, 10)))
    chunks = [rows(8, 8, 9, header=old), rows(10, 10, 11, 12, header=new), rows(14, 14, 15, 16, header=new)]
    again = [*chunks[:2], chunks[0], chunks[2]]
    assert [w.start_index for w in run(chain, again)] == [10]
    assert outputs(run(chain, again)) == outputs(run(chain, chunks))


def test_what_float32_cannot_hold_is_missing() -> None:
    header = Header("s", 0, imu(1, "float64"))
    stage = Intake().build()
    assert [c.first_index for c in stage.push(rows(0, 1.0, 1e300, 3.0, header=header))] == [0, 2]
    assert stage.counts["not_a_number"] == 1


def test_a_stream_whose_unit_changes_is_not_interpolated_across() -> None:
    a, b = Header("s", 0, imu(1, units=("g",))), Header("s", 0, imu(1, units=("m/s^2",)))
    assert [c.count for c in run(Intake(bridge=3), [rows(0, 1, 1, header=a), rows(3, 9.8, header=b)])] == [2, 1]


@pytest.mark.parametrize(
    ("spec", "fmt", "says"),
    [
        (Intake(("z",)), imu(), "has no channel z"),
        (Intake(("c0",), ("V",)), imu(2, units=("g", "g")), "'g' cannot be converted to 'V'"),
        (Intake((), ("g",)), imu(2), "1 units for the 2 channels"),
        (Intake(), imu(rate=0), "no fixed rate"),
        (Intake(), replace(imu(), shape=(3, 2)), "expected one number a channel"),
        (Intake(), replace(imu(), dtype="jpeg", shape=()), "expected one number a channel"),
    ],
)
def test_what_it_cannot_take_is_named(spec: Intake, fmt: Any, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        spec.output({"imu": fmt})


def test_a_window_carries_what_was_interpolated_only_in_it() -> None:
    out: list[Window] = run(
        Chain((Intake(fill=4, max_missing=0.5), Windows(8, 8))), [rows(0, *range(7)), rows(11, *range(11, 24))]
    )
    assert [(w.start_index, w.missing) for w in out] == [(0, 1 / 8), (8, 3 / 8), (16, 0.0)]


def test_what_no_column_covers_does_not_count_as_missing_however_it_is_cut() -> None:
    chain = Chain((Intake(fill=3, max_missing=0.5), Spectrogram(nperseg=4, noverlap=2), Windows(5, 10)))
    values = [0.0, 1, 2, 3, np.nan, 5, 6, 7]
    for chunks in (
        [rows(0, *values)],
        [rows(i, v) for i, v in enumerate(values)],
        [rows(0, *values[:4]), rows(5, 5, 6)],
    ):
        assert [(w.start_index, w.missing) for w in run(chain, chunks)] == [(0, 0.0)]
