"""What names of files say. In: a pattern such as ``{label}_{subject}``, a recording and its file. Out: its class, subject, metadata."""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePosixPath

from kymo.streams.errors import SourceError
from kymo.streams.labels.labels import canonical, interval
from kymo.streams.readers.zip_file import SUFFIX as ZIP_SUFFIX
from kymo.streams.recording import Recording

_FIELD = re.compile(r"\{(\w+)\}|\*")


@cache
def pattern_of(text: str) -> re.Pattern[str]:
    """A pattern of the end of a path: a field holds none of the signs that stand beside it, ``*`` is anything.

    Examples
    --------
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


def add_what_the_name_says(recording: Recording, path: str, pattern: str, label_set: str) -> None:
    """Take class, subject and metadata from the name of a recording's file, or of a folder that it is in, where it does not say so."""
    place = PurePosixPath(path.replace("\\", "/"))
    stem = place.with_name(place.stem) if place.name else place
    names = (str(name).removesuffix(ZIP_SUFFIX) for name in (stem, place, *place.parents))
    matches = (pattern_of(pattern).search(name) for name in names)
    match = next((match for match in matches if match), None)
    if match is None:
        recording.notes.append(f"its file is not named like {pattern}")
        return
    fields = match.groupdict()
    recording.subject = recording.subject or fields.pop("subject", None)
    if (name := fields.pop("label", None)) and not any(label.set == label_set for label in recording.labels):
        span = {"start_ns": recording.start_ns, "end_ns": max(recording.end_ns, recording.start_ns + 1)}
        label = interval(session=recording.session, set=label_set, label=canonical(name), author=place.name, **span)
        recording.labels = [*recording.labels, label]
    recording.metadata.update({key: text for key, text in fields.items() if key not in recording.metadata})
