"""``kymo label``. In: intervals from the command line; a labels JSON, JSON Lines, a table, labelled recordings. Out: messages on
``kymo.labels``, and labels as text; times in Unix ns.

A table has the columns ``start``, ``end`` and ``label``, and may have ``session`` (or ``folder``), ``set``, ``author``, ``id``,
``replaces``, ``created_ns``. Times are written as on the command line, see :func:`parse_time`.

The topic is never compacted and keeps its messages for ever: nothing is changed, corrections are added. Which labels hold follows from
all of them: :mod:`kymo.streams.labels.labels`.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from kymo.streams.errors import MessageError, SourceError
from kymo.streams.files import read_text, write_whole
from kymo.streams.labels.labels import Label, LabelsJson, canonical, current_labels, interval
from kymo.streams.messages import Odd, read_object
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.verbs import settings_of_run, show
from kymo.streams.words import NS, grouped, many, user

_OnBad = Callable[[str], None]
#: Unix time of a session's first sample, ns; raises SourceError for a session that is not known.
StartOf = Callable[[str], int]
_COLUMNS = tuple(field.name for field in fields(Label))
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
_UNIX_S = 10**8  # from here on (three years of a session) numbers are Unix s, from its thousandfold on Unix ms
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

    >>> parse_time("2.5", lambda: 10**9), parse_time("7ns", lambda: 0), parse_time("1970-01-01T00:00:01.000000001Z", lambda: 0)
    (3500000000, 7, 1000000001)
    >>> parse_time("1700000000.5", lambda: 0), parse_time("1700000000500", lambda: 0)
    (1700000000500000000, 1700000000500000000)
    """
    text = text.strip()
    if whole := _WHOLE.fullmatch(text):
        return int(whole[1] or whole[2])
    if _NUMBER.fullmatch(text):
        number = Decimal(text)
        if number < _UNIX_S:
            return start_ns() + round(number * NS)
        return round(number * (NS if number < 1000 * _UNIX_S else NS // 1000))
    from kymo.streams.readers.moments import iso_ns

    try:
        return iso_ns(text)
    except ValueError:
        raise SourceError(
            f"{text!r} is no time: expected seconds from the session's start (12.5), an ISO 8601 time "
            f"(2026-03-01T12:00:00), or Unix s, ms or ns (1700000000)"
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
    text = read_text(path)
    if ";" in text.partition("\n")[0]:
        separator = ";"
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    columns = rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
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
    session = values.get("session") or values.get("folder") or options.session
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
    events = []
    for label in labels:
        start, end = ({"sec": at // NS, "nsec": at % NS} for at in (label.start_ns, label.end_ns))
        events.append({"id": label.id, "startTime": start, "endTime": end, "metadata": {label.set: label.label}})
    return json.dumps({"events": events}, ensure_ascii=False, indent=1) + "\n"


_RUN = click.option("--run", metavar="N", help="Labels of a `replay --run N`.")
_AUTHOR = click.option("--author", help="Who says so; you, if nobody is named.")
_FORMATS: dict[str, Callable[[list[Label]], str]] = {"jsonl": as_json_lines, "csv": as_table, "json": as_labels_json}


@click.group("label")
def label() -> None:
    """Add, import and export labels of sessions.

    Labels are only ever added: a later one corrects an earlier one of the same session and set where they overlap.

    Example: kymo label add walk-07 12.5 40 walking
    """


@label.command("add")
@click.argument("session")
@click.argument("start")
@click.argument("end")
@click.argument("name", metavar="LABEL")
@click.option("--set", "kind", default="label", show_default=True, help="Which question it answers, such as `surface`.")
@_AUTHOR
@click.option("--replaces", metavar="ID", default="", help="Id of a label that this one takes the place of.")
@click.option("--json", "as_json", is_flag=True, help="Print the label as JSON.")
@_RUN
def add(session: str, name: str, as_json: bool, **options: Any) -> None:
    """Label SESSION from START to END.

    START and END are seconds from the session's first sample (12.5), ISO 8601 times, or Unix s, ms or ns. An empty LABEL
    ("") takes labels away there.

    Example: kymo label add walk-07 12.5 40 walking --set activity
    """
    settings = settings_of_run(options["run"])
    times = _times(settings)
    first_ns = times.start_of(session)
    start, end = (parse_time(options[side], lambda: first_ns) for side in ("start", "end"))
    if end <= start:
        raise SourceError(f"the label would end at {end} ns, not after it starts at {start} ns; END comes second")
    if options["replaces"] and not any(known.id == options["replaces"] for known in read_labels(settings)):
        raise SourceError(f"there is no label {options['replaces']!r} to replace; `kymo label export --all` lists them")
    now_ns = time.time_ns()
    identity, author = f"{session}/{options['kind']}/{start}/{now_ns}", options["author"] or user()
    added = Label(identity, session, options["kind"], start, end, canonical(name), author, now_ns, options["replaces"])
    wholly, outside = times.outside(added)
    if wholly:
        raise SourceError(f"session {session}: {outside}; START and END count from its first sample, or are Unix times")
    if outside:
        click.echo(f"note: session {session}: {outside}", err=True)
    append_labels(settings, [added], now_ns)
    show(as_json, added.to_json(), f"added {added.id}")


@label.command("import")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--session", help="Whose labels they are, where the file does not say.")
@click.option("--set", help="Which question they answer, instead of the column's or key's name.")
@click.option("--column", help="Column of the labels, where PATH holds recordings.")
@click.option("--key", help="Member of `metadata` in a labels JSON.")
@click.option("--beside", metavar="FOLDER", help="Not onto Kafka: as labels JSON beside the recordings of this folder.")
@_AUTHOR
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@_RUN
def import_(paths: tuple[str, ...], run: str | None, as_json: bool, beside: str | None, **options: Any) -> None:
    """Add the labels of files; those that are there already are left out.

    PATH is a table (.csv with start, end, label, session), labels as `kymo label export` writes them (.jsonl), a labels
    JSON (.json, with --key), or recordings with --column or --key.

    Example: kymo label import intervals.csv --set state --beside study/
    """
    settings = settings_of_run(run)
    times = _times(settings) if beside is None else SessionTimes(_recordings(beside))
    labels = [label for path in paths for label in labels_of_path(path, ImportOptions(**options), times.start_of)]
    verdicts = [(label, *times.outside(label)) for label in labels]
    notes = [(label.session, text + "; left out" * wholly) for label, wholly, text in verdicts if text]
    if labels and all(wholly for _, wholly, _ in verdicts):
        raise SourceError(f"no label lies within its session: {grouped(notes)[0]}; is their clock another one?")
    for note in grouped(notes):
        click.echo(f"note: {note}", err=True)
    labels = [label for label, wholly, _ in verdicts if not wholly]
    labels = [label if label.author else replace(label, author=user()) for label in labels]
    added, present = append_labels(settings, labels, time.time_ns()) if beside is None else times.write_beside(labels)
    there = f", {present} were there already" if present else ""
    show(as_json, {"added": added, "there": present}, f"{many(added, 'label')} added{there}")


@label.command("export")
@click.option("--session", "sessions", multiple=True, help="Only this session's; may be said again.")
@click.option("--set", "set_name", help="Only this set.")
@click.option("--all", "everything", is_flag=True, help="All that were ever made, corrected ones too.")
@click.option("--format", "fmt", type=click.Choice(list(_FORMATS)), default="jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file.")
@_RUN
def export(sessions: tuple[str, ...], set_name: str | None, everything: bool, fmt: str, **options: Any) -> None:
    """Print the labels that hold.

    Example: kymo label export --set activity --format csv --out labels.csv
    """
    odd = Odd()
    labels = read_labels(settings_of_run(options["run"]), odd)
    if odd.count:
        click.echo(f"kymo label: {odd}", err=True)
    labels = [
        label for label in labels if (not sessions or label.session in sessions) and set_name in (None, label.set)
    ]
    chosen = labels if everything else current_labels(labels)
    text = _FORMATS[fmt](sorted(chosen, key=lambda label: (label.session, label.set)))
    if options["out"] is None:
        click.echo(text, nl=False)
        return
    try:
        options["out"].write_text(text, encoding="utf-8")
    except OSError as error:
        raise SourceError(f"cannot be written ({error.strerror or error})", options["out"]) from None


def _times(settings: Settings) -> SessionTimes:
    from kymo.streams.kafka.sessions import announced, seen

    odd = Odd()
    times = SessionTimes(announced(settings, odd), lambda: seen(settings))
    if odd.count:
        click.echo(f"kymo label: {odd}", err=True)
    return times


def _recordings(folder: str) -> dict[str, dict[str, Any]]:
    """By session: when its recording in a folder begins and ends, and what the labels beside it are named after."""
    from kymo.streams.readers import read
    from kymo.streams.recording import ReadOptions

    rows: dict[str, dict[str, Any]] = {}
    for recording in read([folder], ReadOptions(label_column=None), lambda note: click.echo(f"note: {note}", err=True)):
        row = {"start_ns": recording.start_ns, "end_ns": recording.end_ns, "path": recording.path}
        if rows.setdefault(recording.session, row) is not row:
            raise SourceError(
                f"holds session {recording.session!r} several times: there labels JSON tell none apart", folder
            )
    return rows


def read_labels(settings: Settings, on_bad: _OnBad = lambda text: None) -> list[Label]:
    """Every label that was ever made, a session's in the order in which they were made."""
    from kymo.streams.kafka.read import read_messages

    messages = read_messages(settings, "labels", lambda record: Label.from_json(read_object(record.value)), on_bad)
    return [label for _, label in messages]


class SessionTimes:
    """When sessions begin and end: as ``kymo.sessions`` or a folder has it, else as their chunks do, which are read when one is missing."""

    def __init__(self, rows: dict[str, dict[str, Any]], chunks: Callable[[], dict[str, dict[str, Any]]] = dict) -> None:
        self._rows, self._chunks = _with_start(rows), chunks

    def start_of(self, session: str) -> int:
        if session not in self._rows:
            self._rows, self._chunks = _with_start(self._chunks()) | self._rows, dict
        if session not in self._rows:
            near = difflib.get_close_matches(session, self._rows, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; {len(self._rows)} sessions are known"
            raise SourceError(f"no session {session!r} is there{hint}")
        return int(self._rows[session]["start_ns"])

    def outside(self, label: Label) -> tuple[bool, str]:
        """Whether all of a label lies outside its session, and what of it does, in words; empty where nothing does, or nobody knows."""
        start_ns, row = self.start_of(label.session), self._rows[label.session]
        looped = row.get("replayed", {}).get("loops", 1) != 1
        end_ns = max(label.end_ns, start_ns) if looped else row.get("end_ns", max(label.end_ns, start_ns))
        if start_ns <= label.start_ns and label.end_ns <= end_ns:
            return False, ""
        wholly = label.end_ns <= start_ns or label.start_ns >= end_ns > start_ns
        from_s, to_s = ((at - start_ns) / NS for at in (label.start_ns, label.end_ns))
        lasts = f"behind its {(end_ns - start_ns) / NS:g} s" if label.end_ns > end_ns else "before it begins"
        return wholly, f"{'' if wholly else 'a part of '}the label from {from_s:g} to {to_s:g} s lies {lasts}"

    def write_beside(self, labels: Iterable[Label]) -> tuple[int, int]:
        """Write labels JSON beside the recordings; gives how many labels are new and how many were there. None is written over."""
        from kymo.streams.readers.files import LABELS_SUFFIX

        by_path: dict[Path, list[Label]] = {}
        for label in labels:
            path = Path(self._rows[label.session]["path"])
            file = next(
                (parent for parent in (path, *path.parents) if parent.is_file()), None
            )  # of a session in a zip that
            name = file.with_suffix(LABELS_SUFFIX) if file else path.with_name(path.name + LABELS_SUFFIX)
            by_path.setdefault(name, []).append(label)
        texts = {path: as_labels_json(labels) for path, labels in by_path.items()}
        there = {path for path in texts if path.exists()}
        if other := sorted(path for path in there if read_text(path) != texts[path]):
            raise SourceError("is there already and says something else; move it away to have it made anew", other[0])
        for path in texts.keys() - there:
            write_whole(path, texts[path])
        present = sum(len(by_path[path]) for path in there)
        return sum(map(len, by_path.values())) - present, present


def _with_start(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {session: row for session, row in rows.items() if "start_ns" in row}


def append_labels(settings: Settings, labels: Iterable[Label], created_ns: int) -> tuple[int, int]:
    """Add labels to the topic; left out are those that say what the last one of their id says, whoever said it when, and
    records of the topic itself.
    """
    from kymo.streams.kafka.publish import Publisher

    log = read_labels(settings)
    last, records = {label.id: _meaning(label) for label in log}, set(log)
    added = present = 0
    with Publisher(settings, Names(settings.prefix)) as publisher:
        for label in labels:
            if last.get(label.id) == _meaning(label) or label in records:
                present += 1
                continue
            last[label.id] = _meaning(label)
            dated = label if label.created_ns else replace(label, created_ns=created_ns)
            publisher.send("labels", dated.session, json.dumps(dated.to_json(), ensure_ascii=False).encode())
            added += 1
        publisher.flush()
    return added, present


def _meaning(label: Label) -> Label:
    return replace(label, author="", created_ns=0)
