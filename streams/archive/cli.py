"""``kymo archive list|check|recover|export``. In: a folder of segments. Out: what it holds, whether it is whole, files for others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from kymo.streams.archive.format import default_folder
from kymo.streams.settings import Settings
from kymo.streams.verbs import json_option, progress, show
from kymo.streams.words import many, utc

dir_option = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the segments; default: archive/PREFIX under KYMO_HOME.",
)


def folder_of(folder: Path | None, settings: Settings | None = None) -> Path:
    """The folder that is meant: that of the verb, of `kymo archive --dir`, or the default."""
    context = click.get_current_context(silent=True)
    above = context.obj if context is not None else None
    return folder or (above if isinstance(above, Path) else None) or default_folder(settings or Settings.from_env())


@click.command("list", epilog="Example: kymo archive list --json")
@dir_option
@json_option
def list_command(folder: Path | None, as_json: bool) -> None:
    """Show segments: time span, sessions, records by topic, size, offsets."""
    from kymo.streams.archive.read import ArchiveReader

    rows = [_summary(segment) for segment in ArchiveReader(folder_of(folder)).segments]
    show(as_json, rows, map(_line, rows))


def _line(row: dict[str, Any]) -> str:
    topics = ", ".join(f"{name} {count}" for name, count in row["topics"].items()) or "no records"
    absent = f"  {many(row['absent'], 'offset')} absent" if row["absent"] else ""
    size = f"{row['bytes'] / 1e6:.1f} MB  {many(len(row['sessions']), 'session')}"
    return f"{row['segment']}  {row['start']} to {row['end']}  {size}  {topics}{absent}"


def _summary(segment: Any) -> dict[str, Any]:
    topics: Counter[str] = Counter()
    for channel in segment.channels:
        topics[channel.name] += channel.count
    spans = segment.contents.spans
    return {
        "segment": segment.path.name,
        "start_ns": segment.start_ns,
        "end_ns": segment.end_ns,
        "start": utc(segment.start_ns),
        "end": utc(segment.end_ns),
        "bytes": segment.size,
        "records": segment.count,
        "topics": dict(sorted(topics.items())),
        "sessions": segment.sessions,
        "offsets": {f"{topic}/{part}": [s.first, s.next] for (topic, part), s in spans.items() if s.next > s.first},
        "absent": sum(a.end - a.start for a in segment.contents.absent),
    }


@click.command("check", epilog="Example: kymo archive check")
@dir_option
@json_option
def check_command(folder: Path | None, as_json: bool) -> None:
    """Verify every checksum, the index and that no offset is missing; exit status 1 if anything is wrong."""
    from kymo.streams.archive.check import check_archive

    folder = folder_of(folder)
    with progress("checking") as tell:
        wrong = check_archive(folder, tell)
    show(as_json, {"dir": str(folder), "ok": not wrong, "wrong": wrong}, wrong or f"{folder}: whole")
    if wrong:
        click.get_current_context().exit(1)


@click.command("recover", epilog="Example: kymo archive recover")
@dir_option
@json_option
def recover_command(folder: Path | None, as_json: bool) -> None:
    """Keep what is whole of damaged segments and of one that was not closed; no `kymo archive` may run meanwhile.

    The damaged file stays as `….mcap.damaged`.
    """
    from kymo.streams.archive.check import recover

    segments = recover(folder_of(folder))
    rows = [{"segment": row.path.name, "records": row.records, "notes": row.notes} for row in segments]
    show(as_json, rows, [row.text for row in segments] or "nothing to recover")


@click.command("export", epilog="Example: kymo archive export --format parquet --out tables --session P07-walk")
@dir_option
@click.option(
    "--format", "fmt", type=click.Choice(("csv", "parquet", "foxglove")), required=True, help="What to write."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the files.")
@click.option("--session", "chosen", multiple=True, metavar="ID", help="Only this session; may be given several times.")
@json_option
def export_command(folder: Path | None, fmt: str, out: Path, chosen: tuple[str, ...], as_json: bool) -> None:
    """Write sessions for other programs.

    csv, parquet: a table a session and stream, with t_ns, the channels, and a column of labels where there are any. foxglove: an MCAP
    file a session with one message a sample, and its events and labels, which Foxglove and Lichtblick show as it is.
    """
    from kymo.streams.archive.export import check_format, export_recordings
    from kymo.streams.archive.read import ArchiveReader
    from kymo.streams.errors import ArchiveError

    check_format(fmt)
    reader = ArchiveReader(folder_of(folder))
    sessions = reader.sessions()
    if unknown := [name for name in chosen if name not in sessions]:
        raise ArchiveError(f"{reader.folder}: no session {unknown[0]}; there are {', '.join(sessions[:10]) or 'none'}")
    sessions = [name for name in sessions if not chosen or name in chosen]
    written: list[str] = []
    with progress("exporting") as tell:
        tell(0, len(sessions))
        recordings = reader.recordings(sessions=sessions)
        exports = export_recordings(recordings, fmt, out, lambda line: click.echo(line, err=True), reader.events)
        for number, (_, paths) in enumerate(exports, 1):
            written += map(str, paths)
            tell(number, len(sessions))
    show(as_json, {"files": written}, f"{many(len(written), 'file')} in {out}")


verbs: list[click.Command] = [list_command, check_command, recover_command, export_command]
