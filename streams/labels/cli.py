"""``kymo label``. In: intervals from the command line or files. Out: messages on ``kymo.labels``, and labels as text.

The topic is never compacted and keeps its messages for ever: nothing is changed, corrections are added. Which labels hold follows from
all of them: :mod:`kymo.streams.labels.labels`.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kymo.streams.errors import SourceError
from kymo.streams.labels.files import ImportOptions, as_json_lines, as_labels_json, as_table, labels_of_path, parse_time
from kymo.streams.labels.labels import Label, canonical, current_labels
from kymo.streams.messages import Odd, read_object
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.verbs import settings_of_run, show
from kymo.streams.words import NS, grouped, many, user

_OnBad = Callable[[str], None]
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

    START and END are seconds from the session's first sample (12.5), ISO 8601 times, or Unix nanoseconds. An empty LABEL
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
        raise SourceError(
            f"session {session}: {outside}; START and END count from its first sample, or are Unix nanoseconds"
        )
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
@_AUTHOR
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@_RUN
def import_(paths: tuple[str, ...], run: str | None, as_json: bool, **options: Any) -> None:
    """Add the labels of files; those that are there already are left out.

    PATH is a table (.csv with start, end, label, session), labels as `kymo label export` writes them (.jsonl), a labels
    JSON (.json, with --key), or recordings with --column or --key.

    Example: kymo label import recordings/ --column activity
    """
    settings = settings_of_run(run)
    times = _times(settings)
    labels = [label for path in paths for label in labels_of_path(path, ImportOptions(**options), times.start_of)]
    verdicts = [(label, *times.outside(label)) for label in labels]
    notes = [(label.session, text + "; left out" * wholly) for label, wholly, text in verdicts if text]
    if labels and all(wholly for _, wholly, _ in verdicts):
        raise SourceError(f"no label lies within its session: {grouped(notes)[0]}; is their clock another one?")
    for note in grouped(notes):
        click.echo(f"note: {note}", err=True)
    labels = [label for label, wholly, _ in verdicts if not wholly]
    labels = [label if label.author else replace(label, author=user()) for label in labels]
    added, present = append_labels(settings, labels, time.time_ns())
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
    odd = Odd()
    times = SessionTimes(settings, odd)
    if odd.count:
        click.echo(f"kymo label: {odd}", err=True)
    return times


def read_labels(settings: Settings, on_bad: _OnBad = lambda text: None) -> list[Label]:
    """Every label that was ever made, a session's in the order in which they were made."""
    from kymo.streams.kafka.read import read_messages

    messages = read_messages(settings, "labels", lambda record: Label.from_json(read_object(record.value)), on_bad)
    return [label for _, label in messages]


class SessionTimes:
    """When sessions begin and end: as ``kymo.sessions`` has it, else as their chunks do, which are read when one is missing."""

    def __init__(self, settings: Settings, on_odd: _OnBad = lambda text: None) -> None:
        from kymo.streams.kafka.sessions import announced

        self._settings, self._all = settings, False
        self._rows = _with_start(announced(settings, on_odd))

    def start_of(self, session: str) -> int:
        from kymo.streams.kafka.sessions import seen

        if session not in self._rows and not self._all:
            self._all, self._rows = True, _with_start(seen(self._settings)) | self._rows
        if session not in self._rows:
            near = difflib.get_close_matches(session, self._rows, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; {len(self._rows)} sessions are known"
            raise SourceError(f"no session {session!r} has been sent{hint}")
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
