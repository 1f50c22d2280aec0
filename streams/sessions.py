"""Session metadata for the compacted topic ``kymo.sessions``. In: a Recording. Out: a JSON object, one a session, keyed
by its name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from streams.chunk import DTYPES
from streams.codec import CONTROL
from streams.errors import MessageError
from streams.messages import fits, read_object
from streams.recording import Recording, StreamData

_TEXT, _INTEGER = {"type": "string"}, {"type": "integer"}
_NAMES = {"type": "array", "items": _TEXT}
#: JSON Schema (draft 2020-12) of a session's record.
SESSION_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Session",
    "description": "What is known of a session; times are Unix nanoseconds. Producers may leave out any member.",
    "type": "object",
    "additionalProperties": True,
    "properties": {
        "session": {"type": "string", "minLength": 1, "description": "also the record's key"},
        "subject": {**_TEXT, "description": "a pseudonym"},
        "start_ns": _INTEGER,
        "end_ns": {**_INTEGER, "description": "not before start_ns"},
        "streams": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "stream": {**_TEXT, "description": "kind[.place]"},
                    "placement": _TEXT,
                    "channels": _NAMES,
                    "units": {**_NAMES, "description": "one a channel, or none"},
                    "rate_hz": {"type": "number"},
                    "rate": {**_TEXT, "description": "samples per second, as a fraction; 0/1 for an irregular stream"},
                    "dtype": {"enum": list(DTYPES)},
                    "samples": _INTEGER,
                },
            },
        },
        **dict.fromkeys(("device", "placement", "axes", "software", "source"), _TEXT),
        "metadata": {"type": "object", "additionalProperties": _TEXT},
        "notes": _NAMES,
        "replayed": {"type": "object", "description": "what `kymo replay` keeps there"},
    },
}
#: Metadata that has a member of its own in the record.
_OWN = ("device", "placement", "axes")
_KINDS: dict[str, type] = {
    **dict.fromkeys(("session", "subject"), str),
    **dict.fromkeys(("start_ns", "end_ns"), int),
    **dict.fromkeys(("metadata", "replayed"), dict),
    "streams": list,
}


def session_record(recording: Recording) -> dict[str, Any]:
    """What is known of a session: who, with what, which streams, read by which software."""
    known = {name.lower(): text for name, text in recording.metadata.items()}
    return {
        "session": recording.session,
        "subject": recording.subject,
        "start_ns": recording.start_ns,
        "end_ns": recording.end_ns,
        "streams": [_stream(data) for data in recording.streams],
        **{name: known.get(name, "") for name in _OWN},
        "software": f"kymo {software_version()}",
        "source": recording.path.replace("\\", "/").rpartition("/")[2],
        "metadata": {name: text for name, text in recording.metadata.items() if name.lower() not in _OWN},
        "notes": list(recording.notes),
    }


def read_session(raw: bytes | None) -> dict[str, Any]:
    """A session's record, its members of the types that :func:`session_record` gives them, or absent.

    Examples
    --------
    >>> read_session(b'{"session": "s1", "subject": null}')
    {'session': 's1'}
    """
    return checked_session(read_object(raw))


def checked_session(found: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`read_session` gives, of the JSON object."""
    members = {name: value for name, value in found.items() if value is not None}
    for name, kind in _KINDS.items():
        value = members.get(name)
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


def software_version() -> str:
    """Version of the installed package, or ``unknown`` where it runs from a bare folder."""
    try:
        return version("kymo")
    except PackageNotFoundError:
        return "unknown"


def _stream(data: StreamData) -> dict[str, Any]:
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
