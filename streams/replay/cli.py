"""``kymo replay`` and ``kymo runs``. In: options; a terminal, which is put back as it was. Out: a replay, with a progress bar on stderr and
keys from stdin; exit status 0 only if all is acknowledged."""

from __future__ import annotations

import math
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from kymo.streams.errors import SourceError
from kymo.streams.replay.pacing import PAUSE, QUIT, SEEK, STEP, Controls, ReplayIO, ReplayProgress
from kymo.streams.settings import Settings
from kymo.streams.verbs import show

if TYPE_CHECKING:
    from kymo.streams.recording import ReadOptions, Recording
    from kymo.streams.replay.schedule import ReplayPlan

_HELP = "space pauses · → seeks 10 s · . steps while paused · q quits"
_KEYS = {b" ": PAUSE, b".": STEP, b"q": QUIT, b"Q": QUIT, b"\x1b[C": SEEK, b"\x1bOC": SEEK}


def _speed(_context: click.Context, _option: click.Parameter, value: str) -> float | None:
    """Speed as a number above 0; None for ``max``."""
    with suppress(ValueError):
        if (speed := float("inf" if value == "max" else value)) > 0:
            return None if math.isinf(speed) else speed
    raise click.BadParameter(f"{value!r}: expected max, or a number above 0 such as 1 or 20")


def make_command(load_options: Callable[[str], ReadOptions]) -> click.Command:
    @click.command("replay", epilog="Example: kymo replay recordings/ --speed 20 --recipe running")
    @click.argument("paths", nargs=-1, required=True, metavar="PATH…")
    @click.option("--recipe", metavar="R", help="Read the files as this recipe says.")
    @click.option(
        "--stream", metavar="S", help="Only this stream, or the name of a file's only one: imu, imu.left, eda."
    )
    @click.option(
        "--session",
        metavar="ID",
        help="Only this session, or a name for the only one (of files with a stream each, too).",
    )
    @click.option("--speed", callback=_speed, default="1", show_default=True, metavar="1|N|max", help="Times the pace.")
    @click.option("--loop", type=click.IntRange(0), default=1, metavar="N", help="Times; 0 until Ctrl-C.")
    @click.option(
        "--start", "start_s", type=click.FloatRange(0), default=0.0, metavar="S", help="Leave out the first S seconds."
    )
    @click.option(
        "--duration", "duration_s", type=click.FloatRange(0, min_open=True), metavar="S", help="Only S seconds."
    )
    @click.option("--now", is_flag=True, help="Shift event times to the present.")
    @click.option("--run", metavar="N", help="Use topics of its own, PREFIX.N.*, beside live sessions.")
    @click.option("--chunk-ms", type=click.FloatRange(1, 60_000), default=100, show_default=True, metavar="N")
    @click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
    def command(
        paths: tuple[str, ...], recipe: str | None, session: str | None, stream: str | None, as_json: bool, **plan: Any
    ) -> None:
        """Send recordings to their topics at the pace at which they were recorded.

        Event times are kept. Keys while it runs: space pauses, the right arrow seeks 10 s, a dot sends one chunk while
        paused, q quits.
        """
        from kymo.streams.recording import ReadOptions
        from kymo.streams.replay.schedule import ReplayPlan

        recordings = choose(paths, load_options(recipe) if recipe else ReadOptions(), session, stream)
        sys.exit(_run(recordings, ReplayPlan(**plan), as_json))

    return command


def _run(recordings: Iterable[Recording], plan: ReplayPlan, as_json: bool) -> int:
    from kymo.streams.replay.replay import replay

    with _connected() as io:
        summary = replay(recordings, Settings.from_env(), plan, io)
    show(as_json, summary.to_dict(), summary.lines())
    if summary.outcome == "interrupted":
        return 130
    if not summary.ok:
        click.echo(f"kymo: {summary.error}", err=True)
    return 0 if summary.ok else 1


def choose(paths: Iterable[str], options: ReadOptions, session: str | None, stream: str | None) -> Iterator[Recording]:
    """Read the files and keep, or name, one session and one stream; one recording at a time.

    A name that was read keeps only that session (stream); any other name becomes the name of the only one there is.
    """
    from kymo.streams.readers import read

    paths = tuple(paths)
    if len(options.inputs) > 1 and any(item.stream == stream for item in options.inputs):
        options = replace(options, stream_name=stream)
    sessions: dict[str, list[str]] = {}  # with the streams of each
    streams: set[str] = set()
    for recording in read(paths, options):
        sessions.setdefault(recording.session, []).extend(s.header.format.stream for s in recording.streams)
        if session not in (None, recording.session):
            continue
        streams |= {s.header.format.stream for s in recording.streams}
        chosen = [s for s in recording.streams if stream in (None, s.header.format.stream)]
        if chosen or stream is None:
            yield replace(recording, streams=chosen)
    if session is not None and sessions and session not in (options.session_name, *sessions):
        every = [name for names in sessions.values() for name in names]
        # Files with a stream each are one session where it is given a name.
        if len(options.inputs) < 2 or len(every) > len(set(every)):
            _check_only("session", session, sorted(sessions))
        yield from choose(paths, replace(options, session_name=session), session, stream)
    elif stream is not None and streams and stream not in (options.stream_name, *streams):
        _check_only("stream", stream, sorted(streams))
        yield from choose(paths, replace(options, stream_name=stream), session, stream)


def _check_only(kind: str, name: str, names: list[str]) -> None:
    if len(names) > 1:
        near = get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        listed = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
        raise SourceError(f"no {kind} {name}: there are {listed}{hint}")


@contextmanager
def _connected() -> Iterator[ReplayIO]:
    """Progress and keys as far as there is a terminal for them."""
    if not sys.stderr.isatty():
        yield ReplayIO()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[state]}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.fields[length]} s"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with _keyboard() as keys, Progress(*columns, console=console, transient=True) as bar:
        if keys:
            console.print(_HELP, style="dim")
        task = bar.add_task("", total=None, state="replay", length="…", detail="")

        def show(progress: ReplayProgress) -> None:
            bar.update(
                task,
                completed=progress.event_s,
                total=progress.total_s or None,
                state="paused" if progress.paused else "replay",
                length=f"{progress.total_s:.1f}" if progress.total_s else "∞",
                detail=(
                    f"speed {progress.speed:.3g} · lag {progress.lag_ms:.2f} ms · {progress.sessions_done}/{progress.sessions} sessions · "
                    f"{progress.unacknowledged} under way"
                ),
            )

        yield ReplayIO(controls=keys, progress=show)


@contextmanager
def _keyboard() -> Iterator[Controls | None]:
    """Controls from the terminal on stdin; None where there is none, or where another job owns it."""
    try:
        import termios
        import tty

        fd = sys.stdin.fileno()
        if not os.isatty(fd) or os.tcgetpgrp(fd) != os.getpgrp():
            yield None
            return
        before = termios.tcgetattr(fd)
    except (ImportError, OSError, ValueError):
        yield None
        return
    try:
        tty.setcbreak(fd)
        yield _key_reader(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _key_reader(fd: int) -> Controls:
    """Controls from a file descriptor in unbuffered mode; unknown keys ask for nothing."""
    pending: list[str] = []
    hung_up = False

    def wait(seconds: float) -> str | None:
        nonlocal hung_up
        if hung_up:
            time.sleep(seconds)
        elif not pending and select.select([fd], [], [], seconds)[0]:
            raw = os.read(fd, 64)
            hung_up = not raw  # such a terminal is always readable
            keys: list[bytes] = re.findall(rb"\x1b.{0,2}|.", raw, re.DOTALL)
            pending.extend(_KEYS[key] for key in keys if key in _KEYS)
        return pending.pop(0) if pending else None

    return wait


@click.group("runs", epilog="Example: kymo runs delete 7")
def runs() -> None:
    """List or delete the topics of `replay --run`."""


@runs.command("list", epilog="Example: kymo runs list --json")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def list_command(as_json: bool) -> None:
    """Show all runs under the prefix."""
    from kymo.streams.kafka.admin import list_runs

    listed = list_runs(Settings.from_env())
    lines = [f"{run.name}\t{run.prefix}\t{run.topics} topics\t{run.messages} messages" for run in listed]
    show(as_json, [asdict(run) for run in listed], lines or "no runs")


@runs.command("delete", epilog="Example: kymo runs delete 7")
@click.argument("run", metavar="N")
def delete_command(run: str) -> None:
    """Delete the topics and consumer groups of run N."""
    from kymo.streams.kafka.admin import delete_run

    topics = delete_run(Settings.from_env(), run)
    click.echo(f"deleted {len(topics)} topics of run {run}")
