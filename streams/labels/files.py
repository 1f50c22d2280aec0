"""Labels from files, and to files. In: a labels JSON, JSON Lines, a table, labelled recordings. Out: Labels, and text;
times in Unix ns.

A table has the columns ``start``, ``end`` and ``label``, and may have ``session``, ``set``, ``author``, ``id``,
``replaces``, ``created_ns``. Times are written as on the command line, see :func:`parse_time`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from kymo.streams.errors import MessageError, SourceError
from kymo.streams.files import read_text
from kymo.streams.labels.labels import Label, LabelsJson, canonical, interval
from kymo.streams.messages import read_object
from kymo.streams.words import NS

#: Unix time of a session's first sample, ns; raises SourceError for a session that is not known.
StartOf = Callable[[str], int]
_COLUMNS = tuple(field.name for field in fields(Label))
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
_WHOLE = re.compile(r"(-?\d{1,19})\s*ns|(\d{16,19})")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    session: str | None = None  # where the file does not say them
    set: str | None = None
    author: str | None = None
    column: str | None = None  # column of the class in recordings
    key: str | None = None  # member of `metadata` in a labels JSON


def parse_time(text: str, start_ns: Callable[[], int]) -> int:
    """Unix ns of a time as a user writes it.

    Examples
    --------
    >>> parse_time("2.5", lambda: 10**9), parse_time("7ns", lambda: 0), parse_time("1970-01-01T00:00:01.000000001Z", lambda: 0)
    (3500000000, 7, 1000000001)
    """
    text = text.strip()
    if whole := _WHOLE.fullmatch(text):
        return int(whole[1] or whole[2])
    if _NUMBER.fullmatch(text):
        return start_ns() + round(Decimal(text) * NS)
    from kymo.streams.readers.moments import iso_ns

    try:
        return iso_ns(text)
    except ValueError:
        raise SourceError(
            f"{text!r} is no time: expected seconds from the session's start (12.5), an ISO 8601 time "
            f"(2026-03-01T12:00:00), or Unix nanoseconds (1700000000000000000)"
        ) from None


def labels_of_path(path: str, options: ImportOptions, start_of: StartOf) -> list[Label]:
    """Labels of a file, or of the recordings in a file or folder."""
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        labels = list(_lines(path))
    elif suffix == ".json":
        if options.key is None:
            raise SourceError("which member of `metadata` is the label? Name it with --key", path)
        labels = LabelsJson(path).labels(options.key, session=options.session)
    elif suffix in (".csv", ".tsv") and options.column is None and options.key is None:
        labels = list(_table(path, "\t" if suffix == ".tsv" else ",", options, start_of))
    else:
        labels = _recorded(path, options)
    changes: dict[str, Any] = {name: value for name in ("set", "author") if (value := getattr(options, name))}
    return [_with(label, changes) for label in labels]


def _with(label: Label, changes: dict[str, Any]) -> Label:
    """A label with other members; an id that is made of them follows."""
    changed = replace(label, **changes)
    made = label.id == _made_id(label)
    return replace(changed, id=_made_id(changed)) if made else changed


def _made_id(label: Label) -> str:
    return f"{label.session}/{label.set}/{label.start_ns}"


def _recorded(path: str, options: ImportOptions) -> list[Label]:
    from kymo.streams.readers import read

    if options.column is None and options.key is None:
        raise SourceError("where do its labels stand? Name the column with --column, or the key of X.labels.json", path)
    from kymo.streams.recording import ReadOptions

    read_options = ReadOptions(label_column=options.column, label_key=options.key, session_name=options.session)
    labels = [label for recording in read([path], read_options) for label in recording.labels]
    if not labels:
        raise SourceError(
            f"holds no labels ({f'column `{options.column}`' if options.column else f'key `{options.key}`'})", path
        )
    return labels


def _lines(path: str) -> Iterator[Label]:
    for row, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield Label.from_json(read_object(line))
        except SourceError as error:
            raise SourceError(error.message, path, row) from None
        except MessageError as error:
            raise SourceError(f"holds no label: {error}", path, row) from None


def _table(path: str, separator: str, options: ImportOptions, start_of: StartOf) -> Iterator[Label]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=separator)
    columns = rows.fieldnames or ()
    absent = [name for name in ("start", "end", "label") if name not in columns and f"{name}_ns" not in columns]
    if absent:
        raise SourceError(
            f"has no column `{absent[0]}` (there are {', '.join(columns) or 'none'}); expected start, end and label, "
            f"or, in recordings, a label column named with --column",
            path,
        )
    for values in rows:
        try:
            yield _row(values, options, start_of)
        except (SourceError, ValueError) as error:
            text = error.message if isinstance(error, SourceError) else f"a time is no whole number ({error})"
            raise SourceError(text, path, rows.line_num) from None


def _row(values: dict[str, Any], options: ImportOptions, start_of: StartOf) -> Label:
    session = values.get("session") or options.session
    if not session:
        raise SourceError("names no session: add a column `session`, or say --session")
    if None in values or values.get("label") is None:
        raise SourceError("has another number of cells than the header")

    def time_ns(side: str) -> int:
        exact = values.get(f"{side}_ns")
        return int(exact) if exact else parse_time(values.get(side) or "", lambda: start_of(session))

    start, end, label = time_ns("start"), time_ns("end"), canonical(values["label"])
    if end <= start:
        raise SourceError(f"label {label!r} does not end after it starts")
    members = {name: values[name] for name in ("id", "author", "replaces") if values.get(name)}
    members |= {"session": session, "set": values.get("set") or "label", "label": label}
    return interval(start_ns=start, end_ns=end, created_ns=int(values.get("created_ns") or 0), **members)


def as_json_lines(labels: Iterable[Label]) -> str:
    """One JSON object a line, as the topic carries them."""
    return "".join(json.dumps(label.to_json(), ensure_ascii=False) + "\n" for label in labels)


def as_table(labels: Iterable[Label]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(label.to_json() for label in labels)
    return text.getvalue()


def as_labels_json(labels: Sequence[Label]) -> str:
    """The labels JSON of one session: ``events`` with ``startTime``, ``endTime`` and ``metadata`` {set: class}."""
    sessions = sorted({label.session for label in labels})
    if len(sessions) > 1:
        raise SourceError(
            f"a labels JSON holds one session, these labels are of {len(sessions)} ({', '.join(sessions[:3])}, …); "
            f"choose one with --session, or another --format"
        )
    events = [
        {
            "id": label.id,
            "startTime": {"sec": label.start_ns // NS, "nsec": label.start_ns % NS},
            "endTime": {"sec": label.end_ns // NS, "nsec": label.end_ns % NS},
            "metadata": {label.set: label.label},
        }
        for label in labels
    ]
    return json.dumps({"events": events}, ensure_ascii=False, indent=1) + "\n"
