"""Files that hold recordings. In: a path, rows. Out: the one recording in it, or what is said where it is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import pytest

from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData

Write = Callable[..., Path]
DEFAULT = ReadOptions()
PLAIN = ReadOptions(inputs=(InputOptions("imu", ("ax", "ay"), Fraction(10)),))


def at_rate(rate: float) -> ReadOptions:
    """A recipe's rate, for whatever channels there are."""
    return ReadOptions(inputs=(InputOptions("sensor", (), Fraction(rate)),))


def timed(count: int, rate: float = 10.0) -> list[str]:
    return [f"{i / rate:.6f},{i}" for i in range(count)]


def table(path: Path, head: str, rows: Iterable[str]) -> Path:
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def one(path: Path, options: ReadOptions = DEFAULT) -> Recording:
    (recording,) = read([path], options)
    return recording


def refused(path: Path, options: ReadOptions = DEFAULT) -> SourceError:
    with pytest.raises(SourceError) as error:
        list(read([path], options))
    return error.value


def error_of(path: Path, options: ReadOptions = DEFAULT) -> str:
    """What is said of a file, behind its path."""
    text = str(refused(path, options))
    assert text.startswith(str(path))
    return text.removeprefix(str(path)).removeprefix(": ")


def check_read(
    path: Path,
    head: str,
    row: Callable[[int], str],
    count: int,
    rate: float,
    *,
    given: float | None = None,
    channels: tuple[str, ...] = ("ax",),
    pieces: list[tuple[int, int]] | None = None,
    start_s: float | None = None,
    note: str = "",
    rel: float = 0.0,
) -> StreamData:
    """Read a table of so many rows, with a rate `given` by the recipe: one stream, whole, if nothing else is said."""
    recording = one(table(path, head, map(row, range(count))), at_rate(given) if given else DEFAULT)
    (stream,) = recording.streams
    assert float(stream.header.format.rate) == pytest.approx(float(rate), rel=rel), recording.notes
    assert stream.header.format.channels == channels, recording.notes
    assert [(first, len(piece)) for first, piece in stream.pieces] == (pieces or [(0, count)]), recording.notes
    assert start_s is None or stream.header.origin_ns == start_s * 10**9
    assert any(re.search(note, said) for said in recording.notes) or not note, recording.notes
    return stream
