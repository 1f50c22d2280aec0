"""``kymo plot``. In: recordings. Out: a page (HTML) or a picture (PNG) of their streams over time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click

from streams.errors import SourceError
from streams.labels.labels import keys_of_labels_json, read_labels_json
from streams.readers import label_keys, read
from streams.recording import LabelOptions, ReadOptions, Recording

MOST_SESSIONS = 20
_KINDS = (".html", ".png")
_LABELS = click.Path(path_type=Path, dir_okay=False)


def make_command(options_of: Callable[[str], ReadOptions]) -> click.Command:
    """The verb; `options_of` gives how a recipe reads files."""

    @click.command("plot")
    @click.argument("paths", nargs=-1, required=True, metavar="PATH…")
    @click.option("--recipe", help="Says which columns, units and labels to read.")
    @click.option(
        "--labels", type=_LABELS, help="Labels JSON of the one recording, where it is not X.labels.json beside it."
    )
    @click.option("--key", help="Member of `metadata` in the labels JSON whose classes are to be shown; else all.")
    @click.option("--session", help="Only this one; else the first twenty.")
    @click.option("--stream", "streams", multiple=True, help="Only this stream (again for more).")
    @click.option(
        "--start", "start_s", type=click.FloatRange(0), default=0.0, help="Seconds to leave out at the start."
    )
    @click.option("--duration", "duration_s", type=click.FloatRange(0, min_open=True), help="Seconds to show.")
    @click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="X.html, or X.png of one session.")
    @click.option("--json", "as_json", is_flag=True, help="Print what is shown as JSON.")
    def plot(paths: tuple[str, ...], recipe: str | None, as_json: bool, out: Path | None, **chosen: Any) -> None:
        """Draw recordings: their streams over time, labels shaded.

        Writes NAME.html into the current folder, or whatever --out says: a page that can be zoomed and read with the pointer. All
        streams of a recording are drawn, of an MCAP file all topics.

        Example: kymo plot recording.csv --start 60 --duration 10 --out part.png
        """
        options = options_of(recipe) if recipe else ReadOptions()
        if chosen["key"]:
            options = replace(options, label_key=None if chosen["labels"] else chosen["key"])
        elif not recipe and not chosen["labels"]:
            options = replace(options, more_labels=tuple(LabelOptions(key=key) for key in label_keys(paths)))
        target = out or Path(f"{_stem(paths[0])}.html")
        if target.suffix.lower() not in _KINDS:
            raise click.BadParameter(
                f"{target}: expected a name that ends in {' or '.join(_KINDS)}", param_hint="--out"
            )
        recordings = read(paths, options)
        if chosen["labels"]:
            recordings = _labelled(recordings, chosen["labels"], chosen["key"])
        written = _write(target, list(_parts(recordings, chosen)), ", ".join(map(_name, paths)))
        click.echo(
            json.dumps({"out": str(target), "sessions": written}, ensure_ascii=False) if as_json else str(target)
        )

    return plot


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _stem(path: str) -> str:
    name = _name(path).replace(":", "-").strip("/")
    return name.rpartition(".")[0] or name.strip(".") or "plot"


def _labelled(recordings: Iterator[Recording], path: Path, key: str | None) -> Iterator[Recording]:
    """The one recording with the labels of a file."""
    for number, recording in enumerate(recordings):
        if number:
            raise SourceError("labels one recording, and several are named; name one", path)
        keys = [key] if key else keys_of_labels_json(path)
        found = [label for name in keys for label in read_labels_json(path, name, session=recording.session)]
        if not any(one.end_ns > recording.start_ns and one.start_ns < recording.end_ns for one in found):
            raise SourceError(f"no label lies within session {recording.session}; is its clock another one?", path)
        yield replace(recording, labels=[*recording.labels, *found])


def _parts(recordings: Iterator[Recording], chosen: dict[str, Any]) -> Iterator[tuple[int, Recording]]:
    """What is asked for of each recording, with the start of the whole, Unix ns; one more than can be shown, so that it can be said."""
    from lab.look.plot import cut

    def asked() -> Iterator[tuple[int, Recording]]:
        seen = []
        for recording in recordings:
            seen.append(recording.session)
            if chosen["session"] not in (None, recording.session):
                continue
            named = [s.header.format.stream for s in recording.streams]
            if missing := [name for name in chosen["streams"] if name not in named]:
                raise SourceError(f"session {recording.session} has no stream `{missing[0]}`, only {', '.join(named)}")
            kept = [
                s for s in recording.streams if not chosen["streams"] or s.header.format.stream in chosen["streams"]
            ]
            part = replace(recording, streams=kept)
            if chosen["start_s"] or chosen["duration_s"]:
                part = cut(part, chosen["start_s"], chosen["duration_s"])
            yield recording.start_ns, part
        if chosen["session"] is not None and chosen["session"] not in seen:
            raise SourceError(f"no session `{chosen['session']}`; there are {', '.join(seen[:20]) or 'none'}")

    return islice(asked(), MOST_SESSIONS + 1)


def _write(target: Path, found: list[tuple[int, Recording]], title: str) -> list[dict[str, Any]]:
    from lab.look.recording_page import columns_of, facts, plot_page, plot_recording

    there = [(start_ns, one) for start_ns, one in found if any(stream.count for stream in one.streams)]
    if not there:
        raise SourceError(f"{title}: nothing to draw, no stream has a sample there; look at --start and --stream")
    shown, notes = there[:MOST_SESSIONS], []
    if len(there) > MOST_SESSIONS:
        notes = [f"Only the first {MOST_SESSIONS} sessions are shown; name another with --session."]
    if target.suffix.lower() == ".png":
        if len(there) > 1:
            named = ", ".join(one.session for _, one in there[:5])
            raise SourceError(f"{title}: a PNG shows one session; name one with --session ({named} …), or write HTML")
        data = plot_recording(there[0][1], origin_ns=there[0][0])[0].png
    else:
        classes = sorted({label.label for _, one in shown for label in one.labels})
        columns = columns_of([one for _, one in shown])
        sections = [
            (one.session, plot_recording(one, f"r{i}", start_ns, classes, columns)[1])
            for i, (start_ns, one) in enumerate(shown)
        ]
        data = plot_page(title, sections, notes).encode()
    try:
        target.write_bytes(data)
    except OSError as error:
        raise SourceError(f"{target}: cannot be written ({error.strerror}); choose another place with --out") from None
    return [facts(one) for _, one in shown]
