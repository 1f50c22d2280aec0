"""Where a table begins: what loggers write before it, and how they write numbers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from kymo.processors.recipe.load import parse_recipe
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


@pytest.mark.parametrize("sign", [" ", "   ", "|", ", "])
def test_what_else_parts_columns(tmp_path: Path, sign: str) -> None:
    rows = [row.replace(",", sign) for row in ("t,ax,ay", *SAMPLES)]
    check(one(tmp_path / "a.txt", *rows))
    check(one(tmp_path / "b.txt", *(" " * (sign == "   ") + row for row in rows)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "\n".join(["t;ax (m/s²);ay (°/s)", *(row.replace(",", ";") for row in SAMPLES), ""])
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    (recording,) = read([tmp_path / "a.csv"])
    fmt = recording.streams[0].header.format
    assert (fmt.channels, fmt.units) == (("ax (m/s²)", "ay (°/s)"), ("m/s^2", "deg/s"))


def test_numbers_alone_get_names(tmp_path: Path) -> None:
    """The column that goes up evenly is the time; without one the rate is asked for."""
    recording = one(tmp_path / "a.csv", *SAMPLES)
    (stream,) = recording.streams
    assert (stream.header.format.channels, stream.header.format.rate, stream.count) == (("c2", "c3"), 50, 100)
    assert "no column names: they are time, c2, c3" in recording.notes
    with pytest.raises(SourceError, match="nothing gives the sampling rate"):
        one(tmp_path / "b.csv", *(row.partition(",")[2] for row in SAMPLES))
    options = ReadOptions(inputs=(InputOptions("ppg", (), Fraction(100)),))
    (stream,) = one(tmp_path / "c.csv", *(str(500 + i % 7) for i in range(50)), options=options).streams
    assert (stream.header.format.channels, stream.count) == (("c1",), 50)
    for head in (["0,1"], ["1,2"], ["# two", "1,2"]):  # as pandas and others name columns
        (stream,) = one(tmp_path / "d.csv", *head, *("1.5,2.5" for _ in range(50)), options=options).streams
        assert (stream.header.format.channels, stream.count) == (tuple(head[-1].split(",")), 50)
    (stream,) = one(tmp_path / "e.csv", *(f"{i},{i + 1}" for i in range(1, 51)), options=options).streams
    assert stream.count == 50


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (["t,acc,acc", ",x,y"], ("acc.x", "acc.y")),
        ([",Left,Right", "Time [s],a,a"], ("Left.a", "Right.a")),
        (["Trajectories", "50", ",LASI,", "Time (s),X,Y", "s,mm,mm"], ("X", "Y")),
        (["Trajectories", "50", ",S1:LASI,S1:RASI", "Time (s),X,X", "s,mm,mm"], ("S1:LASI.X", "S1:RASI.X")),
        (["Format Version,1.23,Rotation,Quaternion,Units,Meters,Rate,50", "", ",A,B", "Time (s),X,X"], ("A.X", "B.X")),
        (["Rate,Frames,Units", "50,100,mm", "Time,LASI,", ",X1,Y1", ""], ("LASI.X1", "LASI.Y1")),
        (["Name,Sport,Date", "A,RUN,04-03-2021", "Time,HR (bpm),Speed"], ("HR (bpm)", "Speed")),
    ],
)
def test_names_in_several_rows(tmp_path: Path, head: list[str], names: tuple[str, ...]) -> None:
    (stream,) = one(tmp_path / "a.csv", *head, *SAMPLES).streams
    assert (stream.header.format.channels, stream.count) == (names, 100)


@pytest.mark.parametrize(
    ("first", "count"),
    [
        (["0.0,0.5,walk,a", "NaN,NaN,walk,a"], 52),
        (["0.0,0.5,walk,a", ",,walk,a"], 52),
        (["NaN,NaN,walk,a"], 51),
        (["1,2,walk,a", "ax,10 Hz,label,session"], 51),  # files one after the other
        (["1,2,walk,a", "\ufeffax,10 Hz,label,session"], 51),
    ],
)
def test_a_first_row_without_values_or_with_names_again_makes_no_sample_a_name(
    tmp_path: Path, first: list[str], count: int
) -> None:
    options = ReadOptions(inputs=(InputOptions("imu", (), Fraction(50)),))
    rows = [f"{i % 7}.5,{i % 3},walk,a" for i in range(50)]
    recording = one(tmp_path / "a.csv", "ax,10 Hz,label,session", *first, *rows, options=options)
    (stream,) = recording.streams
    assert (stream.header.format.channels, stream.count, recording.session) == (("ax", "10 Hz"), count, "a")
    assert {label.label for label in recording.labels} == {"walk"}


def test_names_of_parts_of_a_body(tmp_path: Path) -> None:
    head = ["scorer,net,net,net,net", "bodyparts,nose,nose,tail,tail", "coords,x,y,x,y"]
    options = ReadOptions(inputs=(InputOptions("pose", (), Fraction(30)),))
    (stream,) = one(tmp_path / "a.csv", *head, *(f"{i},1,2,{i},4" for i in range(60)), options=options).streams
    assert stream.header.format.channels == ("nose.x", "nose.y", "tail.x", "tail.y")


def units_of(path: Path, *lines: str) -> dict[str, str]:
    fmt = one(path, *lines).streams[0].header.format
    return dict(zip(fmt.channels, fmt.units or ("",) * len(fmt.channels), strict=True))


@pytest.mark.parametrize(
    ("head", "units"),
    [
        (["t,ax (m/s^2),gy [deg/s]"], {"ax (m/s^2)": "m/s^2", "gy [deg/s]": "deg/s"}),
        (["t,accX(G),magX(µT)"], {"accX(G)": "g", "magX(µT)": "uT"}),
        (["t,x (Î¼T),y (m/sÂ²)"], {"x (Î¼T)": "uT", "y (m/sÂ²)": "m/s^2"}),
        (["t,x [g],x [g]"], {"x [g].1": "g", "x [g].2": "g"}),
        (["t,ax,ay", "s,m/(s^2),mV"], {"ax": "m/s^2", "ay": "mV"}),
        (["'Elapsed time','MLII','V1'", "'seconds','mV','mV'"], {"MLII": "mV", "V1": "mV"}),
        (["t,ax,ay", "s,local_flux,no_units"], {"ax": "local_flux", "ay": ""}),
        (["# Units:= m/s^2", "t,ax,ay"], {"ax": "m/s^2", "ay": "m/s^2"}),
        (["# t,ax,ay", "# s,g,deg/s"], {"ax": "g", "ay": "deg/s"}),
        (["Sensor type,x axis", "Units,g", "Sensor type,light", "Units,lux"], {"x axis": "g", "light": "lux"}),
        (["t,mag_x (mG),mag (Gs)"], {"mag_x (mG)": "mgauss", "mag (Gs)": "gauss"}),
        (["t,Bx (mG),accX (mG)"], {"Bx (mG)": "mgauss", "accX (mG)": "mg"}),
        (["t,mag_y (g),acc magnitude (g)"], {"mag_y (g)": "gauss", "acc magnitude (g)": "g"}),
        (["t,q (w),p (W)"], {"q (w)": "", "p (W)": "W"}),
        (["t,a (c),b (C)"], {"a (c)": "", "b (C)": "°C"}),
        (["t,gx [mdps],gy (mdeg/s)"], {"gx [mdps]": "mdeg/s", "gy (mdeg/s)": "mdeg/s"}),
        (["t,ax (left),ay"], {"ax (left)": "", "ay": ""}),
    ],
)
def test_units_are_kept(tmp_path: Path, head: list[str], units: dict[str, str]) -> None:
    assert units_of(tmp_path / "a.csv", *head, *SAMPLES) == units


def test_units_of_the_file_are_converted_or_refused(tmp_path: Path) -> None:
    """Whatever the recipe says, the file's word on its own numbers counts."""
    text = '[[input]]\nstream = "imu"\nrate_hz = 50\nchannels = ["ax (g)"]\nunits = ["{}"]\n[window]\nlength_s = 1\nhop_s = 1\n'
    for unit, refusal in (("m/s^2", None), ("", None), ("V", "cannot be converted")):
        recipe = parse_recipe('name = "r"\n' + text.format(unit))
        (stream,) = one(tmp_path / "a.csv", "t,ax (g),ay", *SAMPLES, options=recipe.read_options()).streams
        assert stream.header.format.units == ("g",)
        assert (
            refusal in str(recipe.matches(stream.header.format))
            if refusal
            else recipe.matches(stream.header.format) is None
        )


@pytest.mark.parametrize(
    ("line", "rate"),
    [
        ("Data File Created By X date format M/d/yyyy at 30 Hz  Filter Normal", Fraction(30)),
        ("Interval=\t0.001 s", Fraction(1000)),
        ("0.5 msec/sample", Fraction(2000)),
        ("title:s1, sampling:128, chan:2", Fraction(128)),
        ("Export Frame Rate,120.000000", Fraction(120)),
        ("Epoch Period (hh:mm:ss) 00:01:00", Fraction(1, 60)),
        ("// fs: 50 Hz", Fraction(50)),
        ("Rate=50", Fraction(50)),
        ("Low pass filter at 40 Hz; notch at 50 Hz; sampling rate: 200 Hz", Fraction(200)),
        ("Sampling rate 250 Hz - line frequency 50 Hz", Fraction(250)),
        ("Wristband at 25 Hz", Fraction(25)),
    ],
)
def test_rates_as_heads_say_them(tmp_path: Path, line: str, rate: Fraction) -> None:
    rows = [row.partition(",")[2] for row in SAMPLES]
    (stream,) = one(tmp_path / "a.csv", line, "Serial: A", "", "ax,ay", *rows).streams
    assert (stream.header.format.rate, stream.count) == (rate, 100)


@pytest.mark.parametrize(
    "line",
    [
        "Line frequency: 50 Hz",
        "# Notch filter at 50 Hz",
        "Cut-off frequency 20 Hz",
        "Screen refresh rate: 60 Hz",
        "I2C clock at 100 kHz",
        "Video frame rate: 30",
        "Heart rate: 1 Hz",
        "Anti-aliasing at 400 Hz",
        "RR interval: 800 ms",
    ],
)
def test_rates_of_something_else_are_no_sampling_rate(tmp_path: Path, line: str) -> None:
    with pytest.raises(SourceError, match="nothing gives the sampling rate"):
        one(tmp_path / "a.csv", line, "ax,ay", *(row.partition(",")[2] for row in SAMPLES))


def test_names_in_json_before_the_table(tmp_path: Path) -> None:
    told = '# {"00:07": {"sampling rate": 100, "column": ["nSeq", "A1", "A2"], "sensor": ["ECG"]}}'
    rows = [f"{i}\t{i % 5}\t{i % 3}\t" for i in range(100)]
    (stream,) = one(tmp_path / "a.txt", "# OpenSignals Text File Format", told, "# EndOfHeader", *rows).streams
    assert (stream.header.format.channels, stream.header.format.rate) == (("A1", "A2"), 100)


def test_of_names_in_json_the_outer_come_first(tmp_path: Path) -> None:
    told = '# {"sensor": {"column": ["a", "b"], "sampling rate": 100}, "column": ["A1", "A2"]}'
    (stream,) = one(tmp_path / "a.txt", told, *(f"{i % 5}\t{i % 3}" for i in range(100))).streams
    assert stream.header.format.channels == ("A1", "A2")


@pytest.mark.parametrize(
    ("name", "width", "channels", "units"),
    [
        ("ACC", 3, ("x", "y", "z"), "g"),
        ("EDA", 1, ("eda",), "uS"),
        ("BVP", 1, ("bvp",), ""),
        ("other", 1, ("c1",), ""),
    ],
)
@pytest.mark.parametrize("start", ["1551453301.000000", "1551453301000", "1551453301000000", "1551453301000000000"])
def test_a_start_and_a_rate_in_the_place_of_names(
    tmp_path: Path, name: str, width: int, channels: tuple[str, ...], units: str, start: str
) -> None:
    rows = [", ".join([number] * width) for number in (start, "32.000000", *map(str, range(64)))]
    (stream,) = one(tmp_path / f"{name}.csv", *rows).streams
    fmt = stream.header.format
    assert (fmt.channels, fmt.rate, stream.count, stream.start_ns) == (channels, 32, 64, 1_551_453_301 * 10**9)
    assert fmt.units == ((units,) * width if units else ())


def test_beats_and_tags_of_a_wristband_are_irregular_streams(tmp_path: Path) -> None:
    (beats,) = one(tmp_path / "IBI.csv", "1551453301.000000, IBI", "145.6,0.62", "146.500001,0.89").streams
    fmt = beats.header.format
    assert (fmt.channels, fmt.units, fmt.rate) == (("ibi",), ("s",), 0)
    assert beats.times_ns is not None
    assert beats.times_ns.tolist() == [1_551_453_446_600_000_000, 1_551_453_447_500_001_000]
    np.testing.assert_allclose(beats.data[:, 0], [0.62, 0.89])
    (tags,) = one(tmp_path / "tags.csv", "1551453311.68", "1551453318.17", "1551453319.49").streams
    assert (tags.header.format.channels, tags.header.format.rate, tags.data.tolist()) == (("tag",), 0, [[1]] * 3)
    assert tags.times_ns is not None
    assert tags.times_ns.tolist() == [1_551_453_311_680_000_000, 1_551_453_318_170_000_000, 1_551_453_319_490_000_000]
    (single,) = one(tmp_path / "tags.csv", "1551453311.68").streams
    assert single.count == 1
    with pytest.raises(SourceError, match=r"no column holds numbers .* but times or counts, so there is no signal"):
        one(tmp_path / "other.csv", "1551453311.68", "1551453318.17", "1551453319.49")


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


@pytest.mark.parametrize(
    ("name", "told", "rate", "unit"),
    [
        ("meta.json", '{"sample_freqs": {"ECG": 500.0, "ACC": 25}, "units": {"ECG": "uV", "ACC": "mg"}}', 500, "uV"),
        ("ecg.json", '{"SamplingFrequency": 128, "Manufacturer": "A"}', 128, ""),
        ("info.json", '{"signals": 2, "ECG": {"sampling_rate": 250, "unit": "mV"}, "ACC": {"fs": 10}}', 250, "mV"),
        ("meta.json", '{"heart_rate": 70}', None, ""),
        *(("meta.json", f'{{"fs": {fs}}}', None, "") for fs in ("Infinity", "1e999", '"1e999999999"', "1e-300")),
        ("meta.json", '{"sample_freqs": {"ACC": 25}}', None, ""),
        ("meta.json", "{", None, ""),
    ],
)
def test_the_rate_that_json_beside_says(tmp_path: Path, name: str, told: str, rate: int | None, unit: str) -> None:
    (tmp_path / name).write_text(told)
    rows = ["value", *map(str, range(50))]
    if rate is None:
        with pytest.raises(SourceError, match="nothing gives the sampling rate"):
            one(tmp_path / "ecg.csv", *rows)
        return
    recording = one(tmp_path / "ecg.csv", *rows)
    fmt = recording.streams[0].header.format
    assert (fmt.rate, fmt.units) == (rate, (unit,) if unit else ())
    assert f"rate {rate} Hz, as {name} says" in recording.notes


@pytest.mark.parametrize("name", ["timestamp", "Time"])
@pytest.mark.parametrize(("told", "rate"), [('{"fs": 64}', 100), ('{"fs": 100}', 100)])
def test_times_count_more_than_the_rate_of_another_file(tmp_path: Path, name: str, told: str, rate: int) -> None:
    (tmp_path / "meta.json").write_text(told)
    recording = one(tmp_path / "a.csv", f"{name},x,y", *(f"{10 * i},{i % 7},{i}" for i in range(100)))
    assert (recording.streams[0].header.format.rate, recording.streams[0].header.format.channels) == (rate, ("x", "y"))


def test_a_unit_that_nobody_knows_is_doubted(tmp_path: Path) -> None:
    inputs = (InputOptions("imu", ("ax [foo]", "ay"), None, ("deg/s", "deg/s")),)
    recording = one(tmp_path / "a.csv", "t,ax [foo],ay", *SAMPLES, options=ReadOptions(inputs=inputs))
    assert "`ax [foo]`: `foo` is no known unit, the numbers are taken for deg/s, as the recipe says" in recording.notes
    assert sum("no known unit" in note for note in recording.notes) == 1


def test_columns_of_one_name_are_numbered(tmp_path: Path) -> None:
    rows = [f"{row}, {i}, 0" for i, row in enumerate(SAMPLES)]
    recording = one(tmp_path / "a.txt", "%Sample Rate = 50 Hz", "t, ax, ay, Other, Other", *rows)
    assert recording.streams[0].header.format.channels == ("ax", "ay", "Other.1", "Other.2")
    assert any("`Other`: there several times, so numbered" in note for note in recording.notes)
