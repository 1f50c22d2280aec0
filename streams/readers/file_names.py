"""What names of files say. In: files, and a pattern such as ``{label}_{subject}``. Out: which stream of which session each is; of a
recording class, subject and metadata.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import canonical, interval
from kymo.streams.readers.zip_file import SUFFIX as ZIP_SUFFIX
from kymo.streams.recording import ReadOptions, Recording

if TYPE_CHECKING:
    from kymo.streams.readers.files import File

_FIELD = re.compile(r"\{(\w+)\}|\*")
#: Fields of a pattern that say which stream a file holds, and so which files are one session.
_PLACES = ("stream", "place")
#: How apps of phones and wristbands call the file of a sensor.
_SENSOR = re.compile(
    "(watch|wrist|headphones?)?(acc(el)?|(total|linear)?accelerat(ion|ometer)|accelerometer(uncalibrated)?|linearaccelerometer|gravity|gyro?|gyroscope(uncalibrated)?"
    "|mag|magnetometer(uncalibrated)?|magneticfield|orientation|attitude|(game)?rotation(vector)?|(device|wrist|watch)motion|baro(meter)?"
    "|pressure|light(sensor)?|proximity|location|gps|compass|heading|heartrate|hr|pedometer|stepcounter|microphone|audiolevel|humidity"
    "|(ambient)?temp(erature)?|battery|bvp|eda|gsr|ppg|ecg|emg|eeg|resp|ibi|tags|imu|pupil(s|positions|lometry|diameter)?|3deyestates|eyetrack(er|ing)|gaze)"
)
_EYES = re.compile("pupil|3deye|eyetrack")
_OF_STREAMS = ".mcap"
#: Suffixes of workbooks.
WORKBOOKS = (".xlsx", ".xlsm")


@cache
def pattern_of(text: str) -> re.Pattern[str]:
    """A pattern of the end of a path: a field holds none of the signs that stand beside it, ``*`` is anything.

    >>> pattern_of("{label}-{subject}-*").search("walks/run-ann-2024-05-01").groupdict()
    {'label': 'run', 'subject': 'ann'}
    >>> pattern_of("{label}_{subject}").search("walks/run_fast_ann") is None
    True
    """
    out, end = "(?:^|/)", 0
    for field in _FIELD.finditer(text):
        beside = re.escape(text[end : field.start()][-1:] + text[field.end() : field.end() + 1].strip("{*") + "/")
        out += re.escape(text[end : field.start()]) + (f"(?P<{field[1]}>[^{beside}]+)" if field[1] else "[^/]*")
        end = field.end()
    try:
        return re.compile(out + re.escape(text[end:]) + "$")
    except re.error as error:
        raise SourceError(
            f"[source] file_names {text!r} is no pattern ({error}): expected one such as {{label}}_{{subject}}"
        ) from None


def add_what_the_name_says(recording: Recording, path: str, options: ReadOptions, label_set: str) -> None:
    """Take class, subject and metadata from the name of a recording's file, or of a folder that it is in, where it does not say so."""
    pattern = options.file_names or ""
    match = next((match for name in _names(path) if (match := pattern_of(pattern).search(name))), None)
    if match is None:
        recording.notes.append(f"its file is not named like {pattern}")
        return
    fields = {name: text for name, text in match.groupdict().items() if name not in (*_PLACES, "session")}
    recording.subject = recording.subject or fields.pop("subject", None)
    if (name := fields.pop("label", None)) and not any(label.set == label_set for label in recording.labels):
        start_ns, end_ns = recording.span_ns(options.inputs)
        end_ns, author = max(end_ns, start_ns + 1), PurePosixPath(path.replace("\\", "/")).name
        label = interval(recording.session, label_set, start_ns, end_ns, canonical(name), author=author)
        recording.labels = [*recording.labels, label]
    recording.metadata.update({key: text for key, text in fields.items() if key not in recording.metadata})


def _names(path: str) -> Iterator[str]:
    """What a pattern may be of: the path without suffix, as it is, and the folders that it is in."""
    place = PurePosixPath(path.replace("\\", "/"))
    stem = place.with_name(place.stem) if place.name else place
    return (str(name).removesuffix(ZIP_SUFFIX) for name in (stem, place, *place.parents))


def tells_streams(pattern: str | None) -> bool:
    return any(f"{{{field}}}" in (pattern or "") for field in _PLACES)


def with_streams(files: Iterable[File], options: ReadOptions | None) -> list[File]:
    """Files with the streams that they hold, where a session is several of them.

    It is so where the pattern of names says ``{stream}`` or ``{place}``; where files in a folder are named after the streams that a
    recipe of several inputs asks for; and where a folder has a file for each of several sensors.
    """
    inputs = [item.stream for item in options.inputs] if options else []
    asked = inputs if len(inputs) > 1 else []
    pattern = options.file_names or "" if options else ""
    streams: dict[File, tuple[str, str]] = {}  # which, of what
    certain = set[str]()
    for file in files:
        streams[file] = "", ""
        if file.no_recording:
            continue
        if tells_streams(pattern):
            streams[file] = _stream_by(pattern, file.path, inputs)
        elif stream := asked_stream(file.place.stem, asked):
            streams[file] = stream, file.folder
        elif (
            file.in_folder
            and file.suffix != _OF_STREAMS
            and _SENSOR.fullmatch("".join(words := _words(file.place.stem)))
        ):
            streams[file] = "pupil" if _EYES.match("".join(words)) else "_".join(words), file.folder
            continue
        certain.add(streams[file][1])
    if not tells_streams(pattern):
        _add_devices(streams)
    counts = Counter(place for place in streams.values() if all(place))
    several = Counter(part_of for _, part_of in counts)
    twice = {part_of for (_, part_of), count in counts.items() if count > 1}
    return [
        replace(file, stream=stream, part_of=part_of)
        if stream and part_of not in twice and (part_of in certain or several[part_of] > 1)
        else file
        for file, (stream, part_of) in streams.items()
    ]


def _add_devices(streams: dict[File, tuple[str, str]]) -> None:
    """Let a folder be one session where files of sensors, or a workbook with a signal, lie beside one folder or zip file of others."""
    places: dict[str, list[File]] = {}
    books: dict[str, list[File]] = {}
    below: dict[str, list[str]] = {}
    for file, (_, place) in streams.items():
        if place:
            places.setdefault(place, []).append(file)
        elif file.in_folder and file.suffix in WORKBOOKS and not file.no_recording:
            books.setdefault(file.folder, []).append(file)
    for place in places:
        for parent in PurePosixPath(place).parents:
            below.setdefault(str(parent), []).append(place)
    for outer in {*places, *books}:
        inner = [file for place in below.get(outer, ()) for file in places[place]]
        beside = {streams[file][0] for file in places.get(outer, ())}
        names = beside | {streams[file][0] for file in inner}
        if not names or len(below.get(outer, ())) > 1:
            continue
        if len(books.get(outer, ())) == 1 and _holds_signal(book := books[outer][0]):
            # It has what the wristband's file has, and labels.
            streams[book] = "eda.sheet" if "eda" in names else "eda", outer
            beside.add(streams[book][0])
        if beside and beside.isdisjoint(streams[file][0] for file in inner):
            streams |= {file: (streams[file][0], outer) for file in inner}


def _holds_signal(file: File) -> bool:
    from kymo.streams.readers.xlsx_file import holds_signal

    return holds_signal(file)


def _words(name: str) -> list[str]:
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return ["temperature" if word == "temp" else word for word in words]


def asked_stream(name: str, streams: Sequence[str]) -> str:
    """The one of some streams that a name says, if it says one: all its words in any order, or those of its place.

    >>> feet = ["imu.left", "imu.right", "eda"]
    >>> [asked_stream(name, feet) for name in ("imu_left", "RightImu", "left", "EDA", "imu", "walk_left")]
    ['imu.left', 'imu.right', 'imu.left', 'eda', '', '']
    """
    said = _words(name)
    of_all = [s for s in streams if sorted(_words(s)) == sorted(said) or "".join(_words(s)) == "".join(said)]
    at_place = [s for s in streams if said and _words(s.partition(".")[2]) == said]
    found = of_all or at_place
    return found[0] if len(found) == 1 else ""


def _stream_by(pattern: str, path: str, asked: Sequence[str]) -> tuple[str, str]:
    """The stream that a file's path says by a pattern, and the path without what says it; empty where it is not like the pattern."""
    match = next((match for name in _names(path) if (match := pattern_of(pattern).search(name))), None)
    if match is None:
        return "", ""
    fields = match.groupdict()
    said = [field for field in _PLACES if field in fields]
    texts = [fields[field] for field in said]
    if "session" in fields:
        in_folder = match.string[: match.start()] + match[0][: match[0].startswith("/")]
        return asked_stream(".".join(texts), asked) or _as_stream(texts), in_folder + fields["session"]
    rest = match.string
    for begin, end in sorted((match.span(field) for field in said), reverse=True):
        rest = f"{rest[:begin]}\0{rest[end:]}"
    rest = re.sub("([-_. ]?)\0([-_. ]?)", lambda beside: beside[1] and beside[2] and beside[1], rest)
    # A folder that says nothing else is none of its session's name.
    return asked_stream(".".join(texts), asked) or _as_stream(texts), re.sub("(?<=.)/+", "/", rest).rstrip("/") or "."


def _as_stream(texts: Sequence[str]) -> str:
    return ".".join("_".join(_words(text)) for text in texts)
