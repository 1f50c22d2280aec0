"""A replay on the terminal. In: ReplayProgress. Out: a progress bar on stderr; keys from stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from streams.replay.keys import HELP, keyboard
from streams.replay.summary import ReplayIO, ReplayProgress


@contextmanager
def connected() -> Iterator[ReplayIO]:
    """Progress and keys as far as there is a terminal for them."""
    if not sys.stderr.isatty():
        yield ReplayIO()
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[state]}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.fields[length]} s"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with keyboard() as keys, Progress(*columns, console=console, transient=True) as bar:
        if keys:
            console.print(HELP, style="dim")
        task = bar.add_task("", total=None, state="replay", length="…", detail="")

        def show(now: ReplayProgress) -> None:
            bar.update(
                task,
                completed=now.event_s,
                total=now.total_s or None,
                state="paused" if now.paused else "replay",
                length=f"{now.total_s:.1f}" if now.total_s else "∞",
                detail=(
                    f"speed {now.speed:.3g} · lag {now.lag_ms:.2f} ms · {now.sessions_done}/{now.sessions} sessions · "
                    f"{now.unacknowledged} under way"
                ),
            )

        yield ReplayIO(controls=keys, progress=show)
