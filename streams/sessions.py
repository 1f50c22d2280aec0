"""Session metadata for the compacted topic ``kymo.sessions``. In: a Recording. Out: a JSON object, one a session, keyed
by its name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from kymo.streams.chunk import DTYPES
from kymo.streams.codec import CONTROL
from kymo.streams.errors import MessageError
from kymo.streams.messages import read_object
from kymo.streams.recording import Recording, StreamData
from kymo.streams.schema import Name, fits, json_schema, kinds_of

#: Metadata that has a member of its own in the record.
OWN_METADATA = ("device", "placement", "axes")
_CHECKED = ("session", "subject", "start_ns", "end_ns", "metadata", "replayed", "streams")


class StreamRecord(TypedDict, total=False):
    """One stream of a session."""

    stream: Annotated[str, "kind[.place]"]
    placement: str
    channels: list[str]
    units: Annotated[list[str], "one a channel, or none"]
    rate_hz: float
    rate: Annotated[str, "samples per second, as a fraction; 0/1 for an irregular stream"]
    dtype: Annotated[str, {"enum": list(DTYPES)}]
    samples: int


class SessionRecord(TypedDict, total=False):
    """What is known of a session; times are Unix nanoseconds. Producers may leave out any member."""

    session: Annotated[Name, "also the record's key"]
    subject: Annotated[str, {"type": ["string", "null"], "description": "a pseudonym"}]
    start_ns: int
    end_ns: Annotated[int, "not before start_ns"]
    streams: list[StreamRecord]
    device: str
    placement: str
    axes: str
    software: str
    source: str
    metadata: dict[str, str]
    notes: list[str]
    replayed: Annotated[dict[str, Any], "what `kymo replay` keeps there"]


SESSION_SCHEMA = json_schema(SessionRecord, "Session")


def session_record(recording: Recording) -> dict[str, Any]:
    """What is known of a session: who, with what, which streams, read by which software."""
    known = {name.lower(): text for name, text in recording.metadata.items()}
    return {
        "session": recording.session,
        "subject": recording.subject,
        "start_ns": recording.start_ns,
        "end_ns": recording.end_ns,
        "streams": [_stream(data) for data in recording.streams],
        **{name: known.get(name, "") for name in OWN_METADATA},
        "software": f"kymo {software_version()}",
        "source": recording.path.replace("\\", "/").rpartition("/")[2],
        "metadata": {name: text for name, text in recording.metadata.items() if name.lower() not in OWN_METADATA},
        "notes": list(recording.notes),
    }


def read_session(raw: bytes | None) -> dict[str, Any]:
    """A session's record, its members of the types that :func:`session_record` gives them, or absent.

    >>> read_session(b'{"session": "s1", "subject": null}')
    {'session': 's1'}
    """
    return checked_session(read_object(raw))


def checked_session(record: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`read_session` gives, of the JSON object."""
    members = {name: value for name, value in record.items() if value is not None}
    for name in _CHECKED:
        value, kind = members.get(name), kinds_of(SessionRecord)[name].base
        if name in members and (type(value) is not kind or (isinstance(value, int) and not fits(value))):
            raise MessageError(f"session: `{name}` is {str(value)[:40]!r}, expected {kind.__name__}")
    for name in ("session", "subject"):
        plain_name(members.get(name, ""))
    return members


def plain_name(name: str) -> str:
    """A name that can be printed on a line."""
    if CONTROL.search(name) or "\ufffd" in name:
        raise MessageError(f"session: the name {name[:40]!r} holds what cannot be printed on a line")
    return name


def version_of(package: str) -> str:
    """Empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def software_version() -> str:
    """Version of the installed package, or ``unknown`` where it runs from a bare folder."""
    return version_of("kymo-streams") or "unknown"


def _stream(data: StreamData) -> StreamRecord:
    fmt = data.header.format
    return {
        "stream": fmt.stream,
        "placement": fmt.stream.partition(".")[2],
        "channels": list(fmt.channels),
        "units": list(fmt.units),
        "rate_hz": float(fmt.rate),
        "rate": f"{fmt.rate.numerator}/{fmt.rate.denominator}",
        "dtype": fmt.dtype,
        "samples": data.count,
    }
