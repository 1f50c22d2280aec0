"""``kymo sessions list|end|delete``. In: options, topics, an archive. Out: what is known of sessions; end marks; what was erased."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kymo.streams.archive.format import default_folder
from kymo.streams.errors import ArchiveError, SourceError
from kymo.streams.messages import Odd
from kymo.streams.settings import Settings
from kymo.streams.verbs import json_option, progress, show
from kymo.streams.words import many, utc

# Exit status of an erasure that leaves what Kafka cannot delete.
_NOT_WHOLLY_ERASED = 3


@click.group("sessions", epilog="Example: kymo sessions list --json")
def sessions() -> None:
    """List sessions, end one, or erase one."""


@sessions.command("list", epilog="Example: kymo sessions list --archive recordings-archive")
@click.option(
    "--archive",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="List those of an archive instead of those in the topics.",
)
@click.option("--announced", is_flag=True, help="Only those on kymo.sessions: quick where much raw data is kept.")
@json_option
def list_command(folder: Path | None, announced: bool, as_json: bool) -> None:
    """Show sessions: subject, time span, streams, whether a replay of it is complete.

    Sessions that have no record on kymo.sessions are found by their chunks, all of which are read for that.
    """
    rows = _archived(folder) if folder else _in_topics(Settings.from_env(), announced)
    show(as_json, rows, map(_line, rows) if rows else "no sessions")


def _line(row: dict[str, Any]) -> str:
    start, end = (utc(row[at]) if isinstance(row[at], int) else "-" for at in ("start_ns", "end_ns"))
    span = f"{start} to {end}" if row["start_ns"] is not None else "-"
    complete = "complete" if row["complete"] else "open"
    return "\t".join((row["session"], row["subject"] or "-", span, ", ".join(row["streams"]) or "-", complete))


def _in_topics(settings: Settings, only_announced: bool) -> list[dict[str, Any]]:
    from kymo.streams.kafka.sessions import announced, seen

    odd = Odd()
    records = announced(settings, odd)
    if not only_announced:
        with progress("looking at all chunks") as tell:
            records = records | seen(settings, tell) | records
    if odd.count:
        click.echo(f"kymo sessions: {odd}", err=True)
    return [session_row(name, record) for name, record in records.items()]


def _archived(folder: Path) -> list[dict[str, Any]]:
    from kymo.streams.archive.read import ArchiveReader

    reader = ArchiveReader(folder)
    about = reader.about()
    return [session_row(name, about.records.get(name, {})) for name in reader.sessions()]


def session_row(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What is listed of a session, of its record as it was checked."""
    return {
        "session": name,
        "subject": record.get("subject"),
        "start_ns": record.get("start_ns"),
        "end_ns": record.get("end_ns"),
        "streams": [str(stream.get("stream")) for stream in record.get("streams", []) if isinstance(stream, dict)],
        "complete": bool(record.get("replayed", {}).get("complete")),
    }


@sessions.command("end", epilog="Example: kymo sessions end watch-7@1770000000")
@click.argument("session")
@json_option
def end_command(session: str, as_json: bool) -> None:
    """Send the end mark of every stream of SESSION, so that its last windows are classified."""
    from kymo.streams.kafka.sessions import end_session

    with progress("looking for its streams") as tell:
        ended = end_session(Settings.from_env(), session, tell)
    text = f"ended {', '.join(ended)}" if ended else "had ended already"
    show(as_json, {"session": session, "ended": ended}, f"{session}: {text}")


@sessions.command("delete", epilog="Example: kymo sessions delete P07-walk --yes")
@click.argument("session")
@click.option(
    "--archive",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Its archive; default: archive/PREFIX under KYMO_HOME, if there is one.",
)
@click.option("--damaged", is_flag=True, help="Delete damaged files that `kymo archive recover` has set aside, too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete_command(session: str, folder: Path | None, damaged: bool, yes: bool, as_json: bool) -> None:
    """Erase SESSION from the topics, as far as Kafka can, and from the archive.

    Kafka cannot delete records between those of others: they go when retention takes them, and it is said how many and when. The
    archive's segments are written anew without the session, and what Kafka still holds of it is not archived again. Copies that
    others made (bundles, data sets, exports, backups) are not touched. Nothing may be sending the session meanwhile. Damaged files
    that `kymo archive recover` has set aside may hold it, too: then nothing is erased without --damaged, which deletes them.

    Exit status 3: done as far as Kafka can, but records of it stay in Kafka until retention takes them.
    """
    from kymo.streams.archive.erase import Erased, erase_session
    from kymo.streams.kafka.sessions import delete_session

    settings = Settings.from_env()
    archive = folder or default_folder(settings)
    if folder is not None and not folder.is_dir():
        raise SourceError("no such archive", folder)
    set_aside = _set_aside(archive, session, damaged)
    if not yes:
        click.confirm(f"Erase session {session} from {settings.prefix}.* and from {archive}?", abort=True, err=True)
    with progress("looking for its records") as tell:
        deletion = delete_session(settings, session, tell)
    records = segments = 0
    if archive.is_dir():
        # First the list: an archive that runs meanwhile must know it.
        Erased(archive).add(session, deletion.ends, deletion.topic_ids)
        records, segments = erase_session(archive, session)
        for path in set_aside:
            path.unlink()
    if not deletion.topics and not records:
        raise SourceError(f"no record of a session {session}, neither in {settings.prefix}.* nor in {archive}")
    archived = {"dir": str(archive), "records": records, "segments": segments, "deleted": list(map(str, set_aside))}
    rows = [asdict(topic) for topic in deletion.topics]
    lines = [topic.line() for topic in deletion.topics]
    lines.append(f"{archive}: {many(records, 'record')} taken out of {many(segments, 'segment')}")
    lines += [f"{path}: deleted" for path in set_aside]
    show(as_json, {"session": session, "topics": rows, "archive": archived}, lines)
    if remaining := sum(topic.left for topic in deletion.topics):
        ends_ms = [topic.until_ms for topic in deletion.topics if topic.left]
        when = "for ever"
        if all(ends_ms):
            when = f"until {utc(max(ends_ms) * 10**6)} at the earliest, when retention takes them"
        click.echo(
            f"kymo: {session} is NOT wholly erased: {many(remaining, 'record')} of it stay in Kafka {when}; to be rid of them "
            "sooner, shorten retention.ms of these topics or delete them",
            err=True,
        )
        click.get_current_context().exit(_NOT_WHOLLY_ERASED)


def _set_aside(folder: Path, session: str, damaged: bool) -> list[Path]:
    from kymo.streams.archive.erase import damaged_files

    files = damaged_files(folder)
    if files and not damaged:
        raise ArchiveError(
            f"{', '.join(map(str, files))} may hold records of {session} that cannot be read; what was whole stands in "
            "the segments: add --damaged to delete what was set aside, too"
        )
    return files
