"""CSV files of keypoints, as PoseNet's are kept. In: rows ``keypoint,x,y[,action]``, a joint each, 17 (A to Q) a frame, nine frames
a video. Out: a Recording a video, pixels of the image; a joint that was not found is at (0, 0).

The files say neither where a video begins, nor when its frames were, nor who is in it. Frames stand at the recipe's rate, video after
video from 0 ns (1970); exact copies of a video count as one person. The class is that of `action` where the recipe asks for that column,
else what the file's name says (``yoga`` of `training_data_yoga.csv` or `yoga1.csv`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np

from kymo.streams.chunk import Header, signal_format
from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import canonical, interval, rename
from kymo.streams.readers.cells import is_missing
from kymo.streams.readers.columns import no_such_name, requested_inputs
from kymo.streams.readers.files import File
from kymo.streams.recording import InputOptions, ReadOptions, Recording, StreamData
from kymo.streams.words import brief, many

_PARTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
JOINTS = ("nose", *(f"{side}_{part}" for part in _PARTS for side in ("left", "right")))
#: In a sample's order.
CHANNELS = tuple(f"{joint}_{axis}" for joint in JOINTS for axis in "xy")
FRAMES = 9  # a video
_LETTERS = "ABCDEFGHIJKLMNOPQ"
_COLUMNS = ("keypoint", "x", "y", "action")
_NAME = re.compile(r"(?:training_data_)?(.*?)[ _-]*\d*$", re.DOTALL)


def read_keypoints(file: File, options: ReadOptions) -> Iterator[Recording]:
    item = next(iter(requested_inputs(options, file.path)), InputOptions("pose"))
    channels = item.channels or CHANNELS
    for channel in channels:
        if channel not in CHANNELS:
            raise no_such_name(channel, CHANNELS, file.path, "channel")
    if not item.rate_hz:
        why = "nothing gives the rate of its frames: say `rate_hz` in the recipe's [[input]], such as 1 for a frame each second"
        raise SourceError(why, file.path)
    fmt = signal_format(item.stream, channels, item.rate_hz, "float64", item.units)
    columns = [CHANNELS.index(channel) for channel in channels]
    names, first, rows = _rows(file)
    size, prefix = FRAMES * len(JOINTS), options.session_name or file.session
    rest = len(rows) % size
    for number, start in enumerate(range(0, len(rows) - rest, size)):
        video, row = rows[start : start + size], first + start
        poses = _poses(video, file.path, row)  # (frames, 34)
        session = f"{prefix}-{number:03d}"
        stream = StreamData(Header(session, 0, fmt), np.ascontiguousarray(poses[:, columns]))
        person = hashlib.sha256(poses.tobytes()).hexdigest()[:12]
        recording = Recording(session, [stream], [], person, {}, file.path)
        if empty := int((poses == 0).all(axis=1).sum()):
            recording.notes.append(f"{many(empty, 'frame')} without any joint: read without labels")
        for column, renamed in {} if empty else options.label_columns.items():
            text = _text(column, names, video, file, row)
            label = rename(canonical(text), renamed)
            recording.labels.append(interval(session, column, 0, stream.end_ns, label, author=file.place.name))
        if rest and start + size + rest == len(rows):
            recording.notes.append(f"behind it {many(rest, 'row')} that make no video of {size} are left out")
        yield recording
    if len(rows) < size:
        raise SourceError(f"holds {many(len(rows), 'row')} of keypoints, fewer than a video of {size}", file.path)


def _rows(file: File) -> tuple[Sequence[str], int, list[list[str]]]:
    """Names of the columns, the number of the first row, and the cells of all."""
    with file.open() as raw:
        try:
            text = raw.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"is no text in UTF-8 ({error})", file.path) from None
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if row]
    has_names = rows[0][0] == _COLUMNS[0]
    names = rows.pop(0) if has_names else _COLUMNS[: len(rows[0])]
    first = 2 if has_names else 1
    for number, row in enumerate(rows, first):
        expected = _LETTERS[(number - first) % len(JOINTS)]
        if len(row) != len(names) or row[0] != expected:
            what = f"keypoint {expected} with {len(names)} cells, as A to Q come in turn"
            raise SourceError(f"has {brief(','.join(row))!r}, expected {what}", file.path, number)
    return names, first, rows


def _poses(video: Sequence[Sequence[str]], path: str, first: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Poses ``(frames, 34)`` of the rows of a video; of a joint without a number, (0, 0)."""
    places = np.zeros((len(video), 2))
    for i, row in enumerate(video):
        if any(map(is_missing, row[1:3])):
            continue
        try:
            places[i] = float(row[1]), float(row[2])
        except ValueError:
            raise SourceError(f"has x,y {brief(','.join(row[1:3]))!r}, expected numbers", path, first + i) from None
    places[~np.isfinite(places).all(axis=1)] = 0
    return places.reshape(FRAMES, -1)


def _text(column: str, names: Sequence[str], video: Sequence[Sequence[str]], file: File, first: int) -> str:
    """What a column says of a video; its file's name, where there is no such column."""
    if column not in names[3:]:
        match = _NAME.match(file.place.stem)
        return match[1] if match and match[1] else file.place.stem
    at = list(names).index(column)
    for i, row in enumerate(video):
        if row[at] != video[0][at]:
            why = f"column `{column}` has {brief(row[at])!r}, the video's first row has {brief(video[0][at])!r}"
            raise SourceError(f"{why}; a video is {len(video)} rows of one", file.path, first + i)
    return video[0][at]
