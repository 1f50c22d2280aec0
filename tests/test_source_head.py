"""Where a table begins: what loggers write before it, and how they write numbers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from kymo.streams.errors import SourceError, SourceWarning
from kymo.streams.readers import read
from kymo.streams.recording import InputOptions, ReadOptions, Recording

SAMPLES = [f"{i / 50:.2f},{np.sin(i):.4f},{-i}" for i in range(100)]


def one(path: Path, *lines: str, options: ReadOptions | None = None) -> Recording:
    path.write_text("\n".join(lines) + "\n")
    (found,) = read([path], options or ReadOptions())
    return found


def check(recording: Recording, *notes: str) -> None:
    (stream,) = recording.streams
    assert stream.header.format.channels == ("ax", "ay")
    assert (stream.count, stream.header.format.rate) == (100, 50)
    np.testing.assert_array_equal(np.concatenate([data for _, data in stream.pieces])[:, 1], -np.arange(100.0))
    for note in notes:
        assert any(note in told for told in recording.notes), recording.notes


@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("quoted", [False, True])
def test_the_line_that_says_what_parts_columns(tmp_path: Path, sign: str, quoted: bool) -> None:
    rows = [row.replace(",", sign) for row in ("t,ax,ay", *SAMPLES)]
    check(one(tmp_path / "a.csv", f'"sep={sign}"' if quoted else f"sep={sign}", *rows))


@pytest.mark.parametrize("blank", [[], [""]])
@pytest.mark.parametrize("count", [1, 9, 60])
def test_lines_about_the_device(tmp_path: Path, count: int, blank: list[str]) -> None:
    about = [f"Setting {n},{n * 7}" for n in range(count)]
    check(one(tmp_path / "a.csv", *about, *blank, "t,ax,ay", *SAMPLES), f"{count} line")


def test_comments(tmp_path: Path) -> None:
    check(one(tmp_path / "a.csv", "# made by a logger", "# rate: 50", "t,ax,ay", *SAMPLES), "2 lines before the table")
    check(one(tmp_path / "b.csv", "# made by a logger", "# t,ax,ay", *SAMPLES))


@pytest.mark.parametrize("units", ["s,m/s^2,m/s^2", "ms,g,", "(s),(g),(g)"])
def test_a_row_of_units(tmp_path: Path, units: str) -> None:
    check(one(tmp_path / "a.csv", "t,ax,ay", units, *SAMPLES), "row 2 holds units")


@pytest.mark.parametrize(
    "line", ["OutputRate:,50Hz", "# Sampling Rate (Hz):= 50.00", "Measurement Frequency,50 Hz", "sampling_rate,50"]
)
def test_the_rate_that_the_head_says(tmp_path: Path, line: str) -> None:
    rows = [row.partition(",")[2] for row in SAMPLES]
    check(one(tmp_path / "a.csv", line, "", "ax,ay", *rows), "as the head of the file says")
    options = ReadOptions(inputs=(InputOptions("imu", ("ax", "ay"), Fraction(25)),))
    recording = one(tmp_path / "b.csv", line, "", "ax,ay", *rows, options=options)
    assert recording.streams[0].header.format.rate == 25  # the recipe's word counts


def test_a_table_without_names_behind_lines_about_the_device(tmp_path: Path) -> None:
    rows = [f"2024-05-01 18:36:{i / 50:06.3f},{i},{-i}" for i in range(100)]
    recording = one(tmp_path / "a.csv", "Device,A", "Serial,12", "Begin,2024-05-01", *rows)
    (stream,) = recording.streams
    assert (stream.header.format.channels, stream.header.format.rate) == (("c2", "c3"), 50)
    assert any("no column names" in note for note in recording.notes)


def test_a_trailing_sign_is_no_column(tmp_path: Path) -> None:
    check(one(tmp_path / "a.csv", "t,ax,ay,", *(row + "," for row in SAMPLES)))
    check(one(tmp_path / "b.csv", "t,ax,ay", *(row + "," for row in SAMPLES)))


def test_a_last_text_that_most_rows_lack(tmp_path: Path) -> None:
    rows = [row + (",blink" if i == 40 else "") for i, row in enumerate(SAMPLES)]
    check(one(tmp_path / "a.csv", "t,ax,ay,event", *rows))


def test_a_row_that_lacks_a_channel_is_an_error(tmp_path: Path) -> None:
    rows = [row.rpartition(",")[0] if i == 40 else row for i, row in enumerate(SAMPLES)]
    with pytest.raises(SourceError, match="row 42: 2 columns where the header has 3"):
        one(tmp_path / "a.csv", "t,ax,ay", *rows)


def test_thousands_are_no_decimals(tmp_path: Path) -> None:
    """Where points part decimals, commas part thousands; without a point they part decimals."""
    rows = [f"{i / 50:.2f};{1000 * i:,};{i}" for i in range(100)]
    (stream,) = one(tmp_path / "a.csv", "t;ax;ay", *rows).streams
    np.testing.assert_array_equal(np.concatenate([data for _, data in stream.pieces])[:, 0], 1000.0 * np.arange(100))
    rows = [f"{i / 50:.2f};{i / 8:.3f};{i}".replace(".", ",") for i in range(100)]
    (stream,) = one(tmp_path / "b.csv", "t;ax;ay", *rows).streams
    np.testing.assert_array_equal(np.concatenate([data for _, data in stream.pieces])[:, 0], np.arange(100) / 8)


def test_numbers_alone_are_asked_for_names(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="where column names are expected"):
        one(tmp_path / "a.csv", *SAMPLES)


def test_a_broken_file_in_a_folder_is_left_out_and_said(tmp_path: Path) -> None:
    """One that was named by itself is an error, and so is a folder of nothing else."""
    for name in ("b", "d"):
        (tmp_path / f"{name}.csv").write_text("\n".join(("t,ax,ay", *SAMPLES)))
    foreign = {"a": "invoice,amount\nx,y\n", "c": "t,ax\n0,1\n1,x\n2,3\n3,4", "e": "", "f": "\x00\x01"}
    for name, text in foreign.items():
        (tmp_path / f"{name}.csv").write_text(text)
        with pytest.raises(SourceError):
            list(read([tmp_path / f"{name}.csv"]))
    with pytest.warns(SourceWarning) as told:
        assert [recording.session for recording in read([tmp_path])] == ["b", "d"]
    assert [Path(str(one.message).split(",")[0].split(": ")[0]).stem for one in told] == ["a", "c", "e", "f"]
    for name in ("b", "d"):
        (tmp_path / f"{name}.csv").unlink()
    with pytest.raises(SourceError, match=r"a\.csv"):
        list(read([tmp_path]))
