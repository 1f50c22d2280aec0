"""``kymo archive``. In: options, topics. Out: segments until it is stopped, and its metrics; its verbs for what is there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kymo.deploy.children import stop_event
from kymo.streams.archive.cli import dir_option, folder_of, verbs
from kymo.streams.archive.format import TOPICS, ArchivePlan
from kymo.streams.settings import Settings
from kymo.streams.topics import BY_NAME, MIB
from kymo.streams.words import many

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from kymo.deploy.metrics_server import Server
    from kymo.streams.archive.writer import Archive


@click.group(
    "archive",
    invoke_without_command=True,
    epilog="Example: kymo archive --segment-s 60; kymo archive list; kymo replay FOLDER --run again",
)
@dir_option
@click.option(
    "--segment-mb", type=click.FloatRange(1), default=256, show_default=True, help="Close a segment at this size."
)
@click.option("--segment-s", type=click.FloatRange(0.1), default=300, show_default=True, help="… or at this age.")
@click.option(
    "--with", "also", multiple=True, type=click.Choice(("state", "rejected")), help="Archive this topic, too."
)
@click.option("--once", is_flag=True, help="End when all that is there now is archived.")
@click.option("--json", "as_json", is_flag=True, help="At the end, print what was done as JSON.")
def archive(
    folder: Path | None, also: tuple[str, ...], segment_mb: float, segment_s: float, once: bool, as_json: bool
) -> None:
    """Write all topics to MCAP segments until stopped, and look after them.

    It goes on where the newest complete segment ends: kill it whenever you like.
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        context.obj = folder
        return
    settings = Settings.from_env()
    topics = (*TOPICS, *(name for name in BY_NAME if name in also))
    plan = ArchivePlan(int(segment_mb * MIB), segment_s, topics)
    _run(settings, folder_of(folder, settings), plan, once=once, as_json=as_json)


for _verb in verbs:
    archive.add_command(_verb)


def _run(settings: Settings, folder: Path, plan: ArchivePlan, *, once: bool, as_json: bool) -> None:
    from kymo.streams.archive.writer import Archive

    archiver = Archive(settings, folder, plan, lambda line: click.echo(line, err=True))
    with stop_event() as stopped, _metrics(archiver, settings):  # the open segment is closed then
        click.echo(f"archiving {settings.prefix}.* to {folder}", err=True)
        counts = archiver.run(stopped.is_set, once=once)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(counts) | {"dir": str(folder)}))
    else:
        click.echo(
            f"{many(counts.records, 'record')} in {many(counts.segments, 'segment')}, {counts.lost} lost; {folder}"
        )


def _metrics(archiver: Archive, settings: Settings) -> contextlib.closing[Server]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    from kymo.deploy.metrics import process_registry
    from kymo.deploy.metrics_server import serve_metrics

    def collect() -> Iterator[Metric]:
        c = archiver.counts
        yield CounterMetricFamily("kymo_archive_records", "Records stored", c.records)
        yield CounterMetricFamily("kymo_archive_bytes", "Bytes of their values", c.bytes)
        yield CounterMetricFamily("kymo_archive_segments", "Segments closed", c.segments)
        yield CounterMetricFamily("kymo_archive_lost_records", "Offsets that Kafka no longer had", c.lost)
        yield CounterMetricFamily("kymo_archive_errors", "Failed looks at the topics", c.errors)
        yield GaugeMetricFamily("kymo_archive_behind_records", "Records that wait in Kafka", c.behind)
        yield GaugeMetricFamily("kymo_archive_partitions", "Partitions that are read", c.partitions)
        closed = "End of the newest segment, Unix seconds"
        yield GaugeMetricFamily("kymo_archive_last_segment_timestamp_seconds", closed, c.last_closed_s)

    return contextlib.closing(serve_metrics(process_registry(collect), settings, "archive", lambda: archiver.ready))
