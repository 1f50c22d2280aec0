"""What tests of CSV files share. In: text. Out: recordings, or the error."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from kymo.streams.errors import SourceError
from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, ReadOptions, Recording

Write = Callable[..., Path]
DEFAULT = ReadOptions()
PLAIN = ReadOptions(inputs=(InputOptions("imu", ("ax", "ay"), Fraction(10)),))


def one(path: Path, options: ReadOptions = DEFAULT) -> Recording:
    (recording,) = read([path], options)
    return recording


def error_of(path: Path, options: ReadOptions = DEFAULT) -> SourceError:
    with pytest.raises(SourceError) as error:
        list(read([path], options))
    return error.value


def timed(count: int, rate: float = 10.0) -> list[str]:
    return [f"{i / rate:.6f},{i}" for i in range(count)]
