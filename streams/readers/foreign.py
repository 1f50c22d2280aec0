"""Formats that are known but not read. In: the first bytes of a file and its suffix, or what JSON holds. Out: in words, what it is,
and how a table is made of it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

LOOKED_AT = 4096  # of a file's first bytes
_SAVE = ".to_csv('a.csv', index=False)"
_MNE = f"`mne.io.read_raw(FILE).to_data_frame(){_SAVE}` makes CSV of it"
_ROWS = "save its rows as CSV or Parquet, a column a channel, and one of times, `t` in s"


class _Foreign(NamedTuple):
    name: str
    how: str  # to make a table of it
    suffixes: str = ""  # parted by spaces
    begins: bytes = b""  # a pattern of its first bytes; without one its suffix says it all


_FORMATS = (
    _Foreign("a pointer of Git LFS, not the file itself", "fetch that with `git lfs pull`", "", rb"version https://git-lfs"),
    _Foreign("a pointer of git-annex, not the file itself", "fetch that with `git annex get`", "", rb"(\.\./|\.git)*/annex/objects/"),
    _Foreign("a web page, not the file itself", "download the file anew", ".html .htm", rb"\s*<(?i:!doctype html|html)"),
    _Foreign("a recording of EyeLink", "`edf2asc -s` makes text of it; save its samples as CSV", "", rb"SR_RESEARCH|\*\* CONVERTED FROM"),
    _Foreign("EDF", _MNE, ".edf .rec", rb"0 {7}[ -~]{160}\d\d\.\d\d\.\d\d"),
    _Foreign("BDF", _MNE, ".bdf", rb"\xffBIOSEMI"),
    _Foreign("XDF (Lab Streaming Layer)", f"`pyxdf.load_xdf(FILE)` gives its streams; for each, {_ROWS}", ".xdf .xdfz", rb"XDF:"),
    _Foreign("BrainVision (EEG)", _MNE.replace("FILE", "'X.vhdr'"), ".vhdr .vmrk .eeg .avg", rb"Brain ?Vision Data Exchange"),
    _Foreign("EEGLAB", _MNE.replace("FILE", "'X.set'"), ".set .fdt"),
    _Foreign("EEG or MEG", _MNE, ".gdf .cnt .fif .egi .nxe .snirf", rb"GDF \d"),
    _Foreign("MATLAB", f"`writetimetable` in MATLAB, or `scipy.io.loadmat(FILE)`: {_ROWS}", ".mlx", rb"MATLAB 5\.0 MAT"),
    _Foreign("MATLAB 7.3", f"`writetimetable` in MATLAB, or `h5py.File(FILE)`: {_ROWS}", ".mat", rb"MATLAB 7\.3 MAT"),
    _Foreign("HDF5", f"open it with `h5py.File(FILE)` and {_ROWS}", ".h5 .hdf5 .hdf .nwb .slp", rb"\x89HDF\r\n"),
    _Foreign("a NumPy array", f"`numpy.load(FILE)`: {_ROWS}", ".npy", rb"\x93NUMPY"),
    _Foreign("NumPy arrays", f"`numpy.load(FILE)`: {_ROWS}", ".npz"),
    _Foreign("a Python pickle", f"if you trust it, `pandas.read_pickle(FILE)`: {_ROWS}", ".pkl .pickle .joblib", rb"\x80[\x02-\x05]"),
    _Foreign("a bag of ROS 2", f"`rosbags.highlevel.AnyReader`, or PlotJuggler's export of CSV: {_ROWS}", ".db3"),
    _Foreign("a bag of ROS 1", "`rostopic echo -b FILE -p /TOPIC > a.csv` makes CSV of a topic", ".bag", rb"#ROSBAG"),
    _Foreign("ULog (PX4)", "`ulog2csv FILE` of pyulog makes CSV of each topic", ".ulg .ulog", rb"ULog"),
    _Foreign("a log of ArduPilot", "`mavlogdump.py --format csv --types IMU FILE > a.csv` of pymavlink", ".tlog", rb"\xa3\x95"),
    _Foreign("a data base of SQLite", f"`pandas.read_sql`: {_ROWS}", ".sqlite .sqlite3 .db", rb"SQLite format 3"),
    _Foreign("CWA (Axivity)", "export CSV with OmGui, or read it with `skdh.io.ReadCwa`", ".cwa", rb"MD\xfc\x03"),
    _Foreign("GT3X (ActiGraph)", "export raw CSV with ActiLife or CentrePoint, or read it with pygt3x", ".gt3x .agd"),
    _Foreign("GENEActiv's own format", "export CSV with its software, or read it with `skdh.io.ReadBin`", "", rb"Device Identity"),
    _Foreign("Xsens' own format", "export CSV, text or Excel with the software of Xsens", ".mtb .mvn .mvnx", rb"[^\n]*\n?\s*<mvnx\b"),
    _Foreign("AcqKnowledge (Biopac)", f"export text with AcqKnowledge, or `bioread.read_file(FILE)`: {_ROWS}", ".acq"),
    _Foreign("WFDB (PhysioNet)", f"`s, f = wfdb.rdsamp(NAME)`, `pandas.DataFrame(s, columns=f['sig_name']){_SAVE}`; its rate is `f['fs']`",
             ".hea .atr .qrs", rb"[\w/-]{1,40} \d+ \d+(\.\d+)?[^\n]*\n[\w~-]+\.[a-z]{2}\w* \d+"),
    _Foreign("C3D (motion capture)", f"`ezc3d.c3d(FILE)`: {_ROWS}", ".c3d"),
    _Foreign("BVH (motion capture)", "`bvh-converter FILE` makes CSV of it", ".bvh", rb"HIERARCHY\b"),
    _Foreign("FIT (sports watches)", f"`fitparse.FitFile(FILE).get_messages('record')`: {_ROWS}", ".fit", rb"(?s:.{8})\.FIT"),
    _Foreign("TCX (sports watches)", f"""`pandas.read_xml(FILE, xpath='//*[local-name()="Trackpoint"]'){_SAVE}` makes CSV of it""",
             ".tcx", rb"(?s:.{0,200})<TrainingCenterDatabase"),
    _Foreign("GPX (positions)", f"""`pandas.read_xml(FILE, xpath='//*[local-name()="trkpt"]'){_SAVE}` makes CSV of it""",
             ".gpx", rb"(?s:.{0,200})<gpx\b"),
    _Foreign("an export of Apple Health", f"`pandas.read_xml(FILE, xpath='//Record')`: {_ROWS}",
             "", rb"(?s:.{0,200})<!?(DOCTYPE )?HealthData"),
    _Foreign("XML", f"`pandas.read_xml(FILE)`: {_ROWS}", ".xml", rb"\s*<\?xml"),
    _Foreign("Avro (EmbracePlus)", f"`fastavro.reader(open(FILE, 'rb'))`: {_ROWS}", ".avro", rb"Obj\x01"),
    _Foreign("TFRecord", f"`tensorflow.data.TFRecordDataset(FILE)`: {_ROWS}", ".tfrecord .tfrecords"),
    _Foreign("Arrow (Feather)", "`pandas.read_feather(FILE).to_parquet('a.parquet')`", ".feather .arrow", rb"(ARROW1|FEA1)\0"),
    _Foreign("a workbook", f"save it as CSV, or `pandas.read_excel(FILE){_SAVE}`", ".ods .numbers .xlsb"),
    _Foreign("an old Excel workbook, or one with a password", "save it as .xlsx or CSV, without", ".xls", rb"\xd0\xcf\x11\xe0"),
    _Foreign("a table of a statistics program", "save it as CSV there", ".sav .dta .sas7bdat .rds .rdata"),
    _Foreign("acquisition data of Edge Impulse", f"`cbor2.load`: {_ROWS}", ".cbor"),
    _Foreign("JSON in lines", "`kymo prepare phone FILE OUT` makes MCAP of rows of a phone's sensors", ".jsonl .ndjson", rb'\s*\{\s*"'),
    _Foreign("a video", "a table of the poses in it can be read, a column a coordinate",
             ".mov .avi .mkv .webm .mp4 .m4v .mpg .wmv", rb"(?s:.{4})ftyp|(?s:RIFF....AVI )|\x1aE\xdf\xa3"),
    _Foreign("sound", f"`scipy.io.wavfile.read(FILE)`: {_ROWS}", ".mp3 .m4a .flac .ogg .wav", rb"(?s:RIFF....WAVE)|fLaC|OggS|ID3[\0-\x08]"),
    _Foreign("a picture", "the numbers that it shows are needed as a table",
             ".gif .tif .tiff .bmp .svg .png .jpg .jpeg .pdf", rb"\x89PNG|\xff\xd8\xff|%PDF|GIF8"),
    _Foreign("a packed file (zip, gzip …; Excel's workbooks are such, too)", "unpack it first; the name of a workbook ends in .xlsx",
             ".zip .gz .tar .tgz .bz2 .xz .7z .rar .zst", rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd"),
)  # fmt: skip
_NOT_THE_FILE = _FORMATS[:3]


def foreign_format(start: bytes, suffix: str, known: bool) -> str | None:
    """What a file is, and how to make a table of it; None where it may be text or of a format that is read. Where files
    of a suffix are `known` to be read, only what one holds speaks against it.

    >>> foreign_format(b"ULog....", ".bin", False)
    'is ULog (PX4): `ulog2csv FILE` of pyulog makes CSV of each topic'
    """
    named = [] if known or not suffix else [row for row in _FORMATS if suffix in row.suffixes.split()]
    begun = [row for row in _FORMATS if row.begins and re.match(row.begins, start)]
    rows = [row for row in begun if row in _NOT_THE_FILE] + [row for row in named if not row.begins] + begun + named
    if rows:
        return f"is {rows[0].name}: {rows[0].how}"
    if known or _is_text(start):
        return None
    beside = "; if X.hea stands beside it, it is WFDB: `wfdb.rdsamp('X')`" if suffix == ".dat" else ""
    return f"is a binary file of no known format{beside}; {_ROWS}"


def foreign_json(content: Any) -> str:
    """What JSON is that is no data set, and what to do with it; empty where nothing is known."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return ""
    if first.keys() & {"sensor", "payload", "messageId"} and not first.keys() & {"protected", "signature"}:
        return "it is a phone's log: `kymo prepare phone FILE OUT` makes MCAP of it"
    if "protected" in first and "payload" in first:
        return f"it is acquisition data of Edge Impulse: save its `payload` as CSV, a column a sensor, a row each `interval_ms`; {_ROWS}"
    if "people" in first or first.keys() & {"keypoints", "annotations", "pose_keypoints_2d"}:
        return "it holds poses (OpenPose, COCO): make one table of all frames, a column a coordinate, with a column `t` in s"
    if isinstance(first.get("events"), list):
        return "labels alone are found beside their recording, name that"
    return f"if it holds samples, {_ROWS}"


def _is_text(start: bytes) -> bool:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    return sum(byte < 9 or 13 < byte < 32 for byte in start) <= len(start) // 20
