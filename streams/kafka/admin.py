"""Topics on the broker. In: Settings and a prefix. Out: the table's topics, made, looked at, altered when told to; runs."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidConfigurationError,
    KafkaTimeoutError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from streams.errors import TopicError
from streams.kafka.client import admin_client
from streams.kafka.promises import FENCE, Topics, against_table, partition_counts, partitions_used
from streams.settings import Settings
from streams.topics import BY_NAME, TABLE, Names, Topic

RUN_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
READY_TIMEOUT_S = 20.0
OLDEST_KAFKA = "3.6"


@dataclass(frozen=True, slots=True)
class Run:
    """A replay's own set of topics."""

    name: str  # ``7`` and ``kymo.7``
    prefix: str
    topics: int  # how many there are
    messages: int  # how many they hold, as far as the offsets tell


def run_prefix(prefix: str, run: str) -> str:
    """Topic prefix of a run.

    Examples
    --------
    >>> run_prefix("kymo", "7")
    'kymo.7'
    """
    if not RUN_NAME.fullmatch(run) or run in BY_NAME:
        raise TopicError(f"run {run!r}: expected 1 to 60 letters, digits, - and _, and no topic's name")
    return f"{prefix}.{run}"


def ensure_topics(settings: Settings, names: Names) -> Topics:
    """Make the table's topics that are missing; those that are there are never altered. All have leaders afterwards."""
    with admin_client(settings, f"making the topics {names.prefix}.*") as admin:
        found = partition_counts(admin, names)
        used = partitions_used(names, found, settings.partitions)
        missing = [topic for topic in TABLE if names.of(topic.name) not in found]
        created = _create(admin, replace(settings, partitions=used), names, missing) if missing else []
        admin.wait_for_topics([names.of(topic.name) for topic in TABLE], timeout_ms=int(READY_TIMEOUT_S * 1000))
        found = partition_counts(admin, names) if missing else found
        others = {full: count for full, count in found.items() if full not in created}
        return Topics(tuple(created), found, *against_table(admin, settings, names, others))


def list_runs(settings: Settings) -> list[Run]:
    """Runs of ``replay --run`` under the settings' prefix, by name."""
    with admin_client(settings, "listing runs") as admin:
        found: dict[str, list[str]] = defaultdict(list)
        for topic in admin.list_topics():
            name = _run_of(settings.prefix, topic)
            if name:
                found[name].append(topic)
        return [
            Run(name, f"{settings.prefix}.{name}", len(topics), _messages(admin, topics))
            for name, topics in sorted(found.items())
        ]


def delete_run(settings: Settings, run: str) -> list[str]:
    """Delete a run's topics, its workers' included, and its consumer groups; never those of the plain prefix."""
    start = run_prefix(settings.prefix, run) + "."
    with admin_client(settings, f"deleting run {run}") as admin:
        every = admin.list_topics()
        topics = sorted(topic for topic in every if topic.startswith(start))
        if not any(_run_of(settings.prefix, topic) == run for topic in topics):
            have = sorted({name for topic in every if (name := _run_of(settings.prefix, topic))})
            raise TopicError(f"no run {run} under {settings.prefix}; there are {', '.join(have) or 'none'}")
        for result in admin.delete_topics(topics, raise_errors=False)["topics"]:
            error = for_code(result["error_code"])
            if error not in (NoError, UnknownTopicOrPartitionError):
                raise error(f"deleting {result['name']}")
        _await_gone(admin, topics)
        groups = [group["group_id"] for group in admin.list_groups() if group["group_id"].startswith(start)]
        if groups:
            admin.delete_groups(groups)
        return topics


def _create(admin: Any, settings: Settings, names: Names, missing: list[Topic]) -> list[str]:
    wanted = {
        names.of(topic.name): {
            "num_partitions": topic.partitions or settings.partitions,
            "replication_factor": settings.replication,
            "configs": topic.config(),
        }
        for topic in missing
    }
    created = []
    for row in admin.create_topics(wanted, raise_errors=False)["topics"]:
        error, full = for_code(row["error_code"]), row["name"]
        if error is NoError:
            created.append(full)
        elif error is InvalidConfigurationError and FENCE in (row.get("error_message") or ""):
            raise TopicError(
                f"{full} cannot be made: Kafka at {settings.brokers} is older than {OLDEST_KAFKA} and does not know {FENCE}, "
                f"which keeps a stopped worker from writing twice; Kymo needs Kafka {OLDEST_KAFKA} or newer"
            )
        elif error in (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
            raise TopicError(
                f"{full} is not there, or this user may not see it, and may not make it: have the topics of "
                "docs/formats.md made by who may, and give this user the rights of docs/operation.md"
            )
        elif error is not TopicAlreadyExistsError:  # another process was quicker
            raise error(f"making {full}: {row.get('error_message') or 'refused'}")
    return created


def _run_of(prefix: str, topic: str) -> str:
    """Name of the run that a topic of the table belongs to, or empty."""
    if not topic.startswith(prefix + "."):
        return ""
    run, _, rest = topic[len(prefix) + 1 :].partition(".")
    return run if rest in BY_NAME and run not in BY_NAME and RUN_NAME.fullmatch(run) else ""


def _await_gone(admin: Any, topics: list[str]) -> None:
    """Wait until the broker's metadata no longer show them: deletion is acknowledged before."""
    give_up = time.monotonic() + READY_TIMEOUT_S
    while left := sorted(set(topics).intersection(admin.list_topics())):
        if time.monotonic() > give_up:
            raise KafkaTimeoutError(f"{len(left)} topics are still there, such as {left[0]}")
        time.sleep(0.05)


def _messages(admin: Any, topics: list[str]) -> int:
    parts = [
        TopicPartition(row["name"], part["partition_index"])
        for row in admin.describe_topics(topics)
        for part in row["partitions"]
    ]
    try:
        first = admin.list_partition_offsets(dict.fromkeys(parts, OffsetSpec.EARLIEST))
        end = admin.list_partition_offsets(dict.fromkeys(parts, OffsetSpec.LATEST))
    except UnknownTopicOrPartitionError:  # deleted since they were listed
        return 0
    return sum(end[part].offset - first[part].offset for part in parts)


def topic_ids(settings: Settings, topics: Collection[str]) -> dict[str, str]:
    """Kafka's ids of topics, by name: a topic that was deleted and made again has another; without those that are not there."""
    with admin_client(settings, "asking for topics") as admin:
        rows = admin.describe_topics(sorted(topics))
        return {row["name"]: str(row["topic_id"]) for row in rows if row.get("topic_id") and not row.get("error_code")}
