"""``kymo events``. In: options. Out: events as JSON Lines on stdout; what is no event is told on stderr."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from kymo.streams.errors import RecipeError
from kymo.streams.events import Event
from kymo.streams.verbs import settings_of_run
from kymo.streams.words import NS, utc

#: A length of time, and what a unit of it has.
LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _moment(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """A time as a user writes it, as Unix ns."""
    try:
        return None if value is None else parse_moment(value, time.time_ns())
    except ValueError:
        expected = "2026-03-01T12:00:00, 2026-03-01, Unix seconds, or 10m (s, h, d) ago"
        raise click.BadParameter(f"{value!r} is no time: expected {expected}") from None


def parse_moment(text: str, now_ns: int) -> int:
    """Unix ns of a date, an ISO 8601 time (UTC unless it says otherwise), Unix seconds, or a length of time ago.

    >>> parse_moment("10m", 700 * 10**9), parse_moment("1970-01-01T00:00:01.5", 0), parse_moment("1.25", 0)
    (100000000000, 1500000000, 1250000000)
    """
    from kymo.streams.readers.moments import iso_ns

    text = text.strip()
    if ago := LENGTH.fullmatch(text):
        return now_ns - round(Decimal(ago[1]) * SECONDS[ago[2]] * NS)
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        return int(Decimal(text) * NS)
    try:
        return iso_ns(text)
    except ValueError:  # an hour alone, days of weeks
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def recipe_name(recipe: str) -> str:
    """Name of a recipe that is given by name or by its file."""
    if not recipe.endswith(".toml"):
        return recipe
    try:
        tables = tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot be read ({error})", recipe) from None
    if not isinstance(tables.get("name"), str):
        raise RecipeError('has no name: expected name = "…" in its first lines', recipe)
    return str(tables["name"])


def _csv(event: Event) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([_cell(event, name) for name in _COLUMNS])
    return line.getvalue().encode()


def _cell(event: Event, name: str) -> Any:
    if name in ("start", "end"):
        return utc(getattr(event, f"{name}_ns"), 9)
    if name == "value":
        return next(iter(event.values.values()), "")
    if name == "absent":
        return " ".join(event.absent)
    return getattr(event, name)


def _row(event: Event) -> bytes:
    result = f"{event.label:<16} {event.probability:6.1%}"
    if event.values:
        result = ", ".join(f"{name} {value:g}" for name, value in event.values.items())
    if event.absent:
        result += f"  without {', '.join(event.absent)}"
    head = f"  {event.head}" if event.head else ""
    start = utc(event.start_ns, 3).removesuffix("Z")
    return f"{start}  {event.session:<24} {event.recipe}{head:<12} {result}\n".encode()


_COLUMNS = (
    *("start", "end", "session", "recipe", "head", "label", "probability", "value", "missing", "absent"),
    *("bundle", "stream", "start_index", "id"),
)
_FORMS: dict[str | None, Callable[[Event], bytes]] = {
    None: lambda event: event.to_json() + b"\n",
    "csv": _csv,
    "table": _row,
}


@click.command("events", epilog="Example: kymo events --follow --recipe basicmotions")
@click.option("--follow", is_flag=True, help="Go on with events as they are published, until Ctrl-C.")
@click.option("--recipe", metavar="R", help="Only this recipe's events: its name or its .toml file.")
@click.option("--since", callback=_moment, metavar="T", help="Only windows that end after this event time.")
@click.option("--since-emitted", callback=_moment, metavar="T", help="Only events published since this wall time.")
@click.option("--head", metavar="H", help='Only this head of a model with several; "" for the recipe\'s own classes.')
@click.option("--session", metavar="S", help="Only this session's events.")
@click.option("--run", metavar="N", help="Events of a `replay --run N`.")
@click.option(
    "--csv", "form", flag_value="csv", help="Print a table for a table program, without probabilities but the label's."
)
@click.option("--table", "form", flag_value="table", help="Print lines for people.")
def events(run: str | None, recipe: str | None, follow: bool, form: str | None, **filters: Any) -> None:
    """Print labelled events as JSON Lines, one a line.

    T is a date, an ISO 8601 time (UTC unless it says otherwise), Unix seconds, or a length of time ago such as 10m.
    """
    from kymo.streams.events import EventFilter, read_events

    try:
        settings = settings_of_run(run)
        only = EventFilter(recipe_name(recipe) if recipe else None, **filters)
        out, line_of = sys.stdout.buffer, _FORMS[form]
        if form == "csv":
            out.write(",".join(_COLUMNS).encode() + b"\n")
        none = True
        for event in read_events(
            settings, follow=follow, only=only, on_odd=lambda text: click.echo(f"kymo events: {text}", err=True)
        ):
            none = False
            out.write(line_of(event))
            if follow:
                out.flush()
        out.flush()
        if none:
            click.echo("kymo events: none; why, says kymo doctor --recipe R --session S", err=True)
    except BrokenPipeError:
        # The reader has gone (`kymo events | head`): an ordinary end. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
