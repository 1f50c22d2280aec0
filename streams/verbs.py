"""What the verbs here share. In: options, results. Out: settings; JSON or text on stdout, a bar on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from kymo.streams.settings import Settings

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(as_json: bool, result: Any, lines: str | Iterable[str]) -> None:
    """Print a result, as JSON or for people."""
    text = lines if isinstance(lines, str) else "\n".join(lines)
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else text)


def settings_of_run(run: str | None) -> Settings:
    """Settings of this process, or those of a `replay --run`."""
    settings = Settings.from_env()
    if run is None:
        return settings
    from kymo.streams.kafka.admin import run_prefix

    return settings.under(run_prefix(settings.prefix, run))


@contextmanager
def progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal; to be told how many of how many are done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        number = bar.add_task(task, total=None)
        yield lambda done, of: bar.update(number, completed=done, total=of)
