"""What the verbs here share. In: paths, values, counts. Out: files or a KymoError that names them; a bar that nobody sees in a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kymo.streams.errors import PlanError, SourceError

Progress = Callable[[int, int], None]  # how many are done, and of how many


@contextmanager
def writing(path: str | Path, kind: type[PlanError | SourceError] = SourceError) -> Iterator[None]:
    """Turn the failure of whatever writes there into an error that a user can act on."""
    try:
        yield
    except OSError as error:
        raise kind(f"cannot be written ({error.strerror or error})", path) from None


def write_json(path: Path, value: Mapping[str, Any], kind: type[PlanError | SourceError] = SourceError) -> None:
    """Write a JSON file for people and programs."""
    with writing(path, kind):
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def progress_bar(work: str) -> Iterator[Progress]:
    """Show how far some work is; on stderr, and nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(work), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    # Where nobody watches, a bar would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(work, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
