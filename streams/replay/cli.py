"""``kymo replay`` and ``kymo runs``. In: options. Out: a replay; exit status 0 only if all is acknowledged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from difflib import get_close_matches

import click

from streams.errors import SourceError
from streams.recording import ReadOptions, Recording
from streams.replay.schedule import ReplayPlan
from streams.settings import Settings


class Speed(click.ParamType):
    """``max``, or a number above 0."""

    name = "speed"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Speed as a number; infinity for ``max``."""
        try:
            speed = float("inf") if str(value) == "max" else float(str(value))
        except ValueError:
            speed = 0.0
        if not speed > 0:
            self.fail(f"{value!r}: expected max, or a number above 0 such as 1 or 20", param, ctx)
        return speed


def make_command(load_options: Callable[[str], ReadOptions]) -> click.Command:
    """The command ``replay``."""

    @click.command("replay", epilog="Example: kymo replay recordings/ --speed 20 --recipe running")
    @click.argument("paths", nargs=-1, required=True, metavar="PATH…")
    @click.option("--recipe", metavar="R", help="Read the files as this recipe says.")
    @click.option(
        "--stream", metavar="S", help="Only this stream, or the name of a file's only one: imu, imu.left, eda."
    )
    @click.option("--session", metavar="ID", help="Only this session, or the name of a file's only one.")
    @click.option("--speed", type=Speed(), default="1", show_default=True, metavar="1|N|max", help="Times the pace.")
    @click.option("--loop", type=click.IntRange(0), default=1, metavar="N", help="Times; 0 until Ctrl-C.")
    @click.option("--start", type=click.FloatRange(0), default=0.0, metavar="S", help="Leave out the first S seconds.")
    @click.option("--duration", type=click.FloatRange(0, min_open=True), metavar="S", help="Only S seconds.")
    @click.option("--now", is_flag=True, help="Shift event times to the present.")
    @click.option("--run", metavar="N", help="Use topics of its own, PREFIX.N.*, beside live sessions.")
    @click.option("--chunk-ms", type=click.FloatRange(1, 60_000), default=100, show_default=True, metavar="N")
    @click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
    def command(paths: tuple[str, ...], as_json: bool, **given: object) -> None:
        """Send recordings to their topics at the pace at which they were recorded.

        Event times are kept. Keys while it runs: space pauses, the right arrow seeks 10 s, a dot sends one chunk while
        paused, q quits.
        """
        sys.exit(_run(paths, as_json, load_options, given))

    return command


def _run(
    paths: tuple[str, ...], as_json: bool, load_options: Callable[[str], ReadOptions], given: dict[str, object]
) -> int:
    """Replay; the exit status."""
    from streams.replay.replay import replay
    from streams.replay.show import connected

    recipe = given["recipe"]
    options = load_options(str(recipe)) if recipe else ReadOptions()
    recordings = choose(paths, options, _text(given["session"]), _text(given["stream"]))
    with connected() as io:
        summary = replay(recordings, Settings.from_env(), _plan(given), io)
    if as_json:
        click.echo(json.dumps(summary.to_dict(), ensure_ascii=False))
    else:
        click.echo("\n".join(summary.lines()))
    if summary.outcome == "interrupted":
        return 130
    if not summary.ok:
        click.echo(f"kymo: {summary.error}", err=True)
    return 0 if summary.ok else 1


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _plan(given: dict[str, object]) -> ReplayPlan:
    speed, duration = float(str(given["speed"])), given["duration"]
    return ReplayPlan(
        speed=None if speed == float("inf") else speed,
        loop=int(str(given["loop"])),
        start_s=float(str(given["start"])),
        duration_s=None if duration is None else float(str(duration)),
        now=bool(given["now"]),
        chunk_ms=float(str(given["chunk_ms"])),
        run=_text(given["run"]),
    )


def choose(paths: Iterable[str], options: ReadOptions, session: str | None, stream: str | None) -> Iterator[Recording]:
    """Read the files and keep, or name, one session and one stream; one recording at a time.

    A name that was read keeps only that session (stream); any other name becomes the name of the only one there is.
    """
    from streams.readers import read

    paths = tuple(paths)
    sessions: set[str] = set()
    streams: set[str] = set()
    for recording in read(paths, options):
        sessions.add(recording.session)
        if session not in (None, recording.session):
            continue
        streams |= {s.header.format.stream for s in recording.streams}
        kept = [s for s in recording.streams if stream in (None, s.header.format.stream)]
        if kept or stream is None:
            yield replace(recording, streams=kept)
    if session is not None and sessions and session not in (options.session_name, *sessions):
        _only("session", session, sorted(sessions))
        yield from choose(paths, replace(options, session_name=session), session, stream)
    elif stream is not None and streams and stream not in (options.stream_name, *streams):
        _only("stream", stream, sorted(streams))
        yield from choose(paths, replace(options, stream_name=stream), session, stream)


def _only(what: str, name: str, there: list[str]) -> None:
    if len(there) > 1:
        near = get_close_matches(name, there, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        shown = ", ".join(there[:10]) + (" …" if len(there) > 10 else "")
        raise SourceError(f"no {what} {name}: there are {shown}{hint}")


@click.group("runs", epilog="Example: kymo runs delete 7")
def runs() -> None:
    """List or delete the topics of `replay --run`."""


@runs.command("list", epilog="Example: kymo runs list --json")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_command(as_json: bool) -> None:
    """Show all runs under the prefix."""
    from streams.kafka.admin import list_runs

    listed = list_runs(Settings.from_env())
    if as_json:
        click.echo(json.dumps([asdict(run) for run in listed]))
        return
    for run in listed:
        click.echo(f"{run.name}\t{run.prefix}\t{run.topics} topics\t{run.messages} messages")
    if not listed:
        click.echo("no runs")


@runs.command("delete", epilog="Example: kymo runs delete 7")
@click.argument("run", metavar="N")
def delete_command(run: str) -> None:
    """Delete the topics and consumer groups of run N."""
    from streams.kafka.admin import delete_run

    topics = delete_run(Settings.from_env(), run)
    click.echo(f"deleted {len(topics)} topics of run {run}")
