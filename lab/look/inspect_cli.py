"""``kymo inspect``. In: MCAP files. Out: what they hold, as lines or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import click

from lab.look.arrays import SUFFIXES
from lab.look.summary import McapSummary, TopicSummary, mcap_summary
from models.reports.html import duration
from streams.chunk import NS
from streams.readers.files import find

_HEAD = ("topic", "messages", "rate (Hz)", "gaps", "missing", "encoding", "schema")
_RIGHT = range(1, 5)
_DAY_NS = 86_400 * NS


@click.command("inspect")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each file, one a line.")
def inspect(paths: tuple[str, ...], as_json: bool) -> None:
    """Say what MCAP files hold: topics, schemas, encodings, counts, rates, gaps.

    Any MCAP will do; times are those at which messages were logged. Folders are searched. What Kymo reads from a file, and how
    it looks: kymo plot.

    Example: kymo inspect recording.mcap
    """
    for number, file in enumerate(find(paths, SUFFIXES, SUFFIXES)):
        name = file.system.unstrip_protocol(file.path) if file.system else file.path
        found = mcap_summary(name)
        if as_json:
            click.echo(json.dumps(asdict(found), ensure_ascii=False))
        else:
            click.echo("\n" * (number > 0) + "\n".join(_lines(found)))


def _lines(found: McapSummary) -> list[str]:
    packed = ", ".join(f"{count} {kind}" for kind, count in found.compression.items()) or "none"
    lasts = duration(found.duration_s).replace("\u00a0", " ")
    out = [
        f"{found.path}: {found.bytes:,} bytes, {found.messages:,} messages, {lasts}",
        f"written by {found.library or 'an unnamed library'}; chunks: {packed}",
    ]
    if found.start_ns is not None and found.end_ns is not None:
        out.append(f"logged from {_moment(found.start_ns)} to {_moment(found.end_ns)}")
    out += ["", *_table([_HEAD, *(_row(topic) for topic in found.topics)]), ""]
    for topic in found.topics:
        if topic.backwards:
            out.append(f"{topic.topic}: {topic.backwards:,} messages logged earlier than the one before")
    for path, keys in found.labels.items():
        out.append(f"labels: {path}, keys {', '.join(keys)}" if keys else f"labels: {path}, without a label")
    out += [f"attachment: {name}" for name in found.attachments]
    out += [f"metadata: {name} = {text}" for name, text in found.metadata.items()]
    out += [f"damaged: {note}" for note in found.notes]
    return out[:-1] if not out[-1] else out


def _moment(time_ns: int) -> str:
    """A date, or seconds where there is none."""
    if time_ns < _DAY_NS:
        return f"{time_ns / NS:.3f} s"
    try:
        return datetime.fromtimestamp(time_ns / NS, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # beyond the year 9999
        return f"{time_ns} ns"


def _row(topic: TopicSummary) -> tuple[str, ...]:
    rate = "irregular" if topic.rate_hz is None else f"{topic.rate_hz:.4g}"
    if topic.messages < 2:
        rate = "–"
    counts = ["–" if n is None else f"{n:,}" for n in (topic.gaps, topic.missing)]
    schema = f"{topic.schema} ({topic.schema_encoding})" if topic.schema else "–"
    return topic.topic, f"{topic.messages:,}", rate, *counts, topic.encoding or "–", schema


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in _RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
