"""Topics on the broker. In: Settings and a prefix. Out: the table's topics, made and configured; runs."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaTimeoutError, NoError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from streams.broker.client import client_arguments, kafka_errors
from streams.errors import TopicError
from streams.settings import Settings
from streams.topics import BY_NAME, TABLE, Names, Topic

RUN_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
READY_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Topics:
    """What :func:`ensure_topics` did.

    Attributes
    ----------
    created, altered : tuple of str
        Full names.
    partitions : dict
        Partition count of every topic of the table, by full name.
    """

    created: tuple[str, ...]
    altered: tuple[str, ...]
    partitions: dict[str, int]


@dataclass(frozen=True, slots=True)
class Run:
    """A replay's own set of topics.

    Attributes
    ----------
    name, prefix : str
        ``7`` and ``kymo.7``.
    topics : int
        How many there are.
    messages : int
        How many they hold, as far as the offsets tell.
    """

    name: str
    prefix: str
    topics: int
    messages: int


def run_prefix(prefix: str, run: str) -> str:
    """Topic prefix of a run.

    Raises
    ------
    TopicError
        If `run` cannot be part of a topic's name, or is the name of a topic of the table.

    Examples
    --------
    >>> run_prefix("kymo", "7")
    'kymo.7'
    """
    if not RUN_NAME.fullmatch(run) or run in BY_NAME:
        raise TopicError(f"run {run!r}: expected 1 to 60 letters, digits, - and _, and no topic's name")
    return f"{prefix}.{run}"


def ensure_topics(settings: Settings, names: Names) -> Topics:
    """Make the table's topics that are missing and configure the others as the table says; all have leaders afterwards.

    Parameters
    ----------
    settings : Settings
        Broker, partitions and replication of new topics.
    names : Names
        The prefix.

    Raises
    ------
    TopicError
        A topic has another partition count than the settings ask for: it is never changed, since sessions would move.
    BrokerError
        The broker cannot be reached or refuses.
    """
    with kafka_errors(settings, f"making the topics {names.prefix}.*"), _admin(settings) as admin:
        found = _partition_counts(admin, names)
        missing = [topic for topic in TABLE if names.of(topic.name) not in found]
        created = _create(admin, settings, names, missing) if missing else []
        admin.wait_for_topics([names.of(topic.name) for topic in TABLE], timeout_ms=int(READY_TIMEOUT_S * 1000))
        if missing:
            found = _partition_counts(admin, names)
        for topic in TABLE:
            full, wanted = names.of(topic.name), _partitions(settings, topic)
            if found[full] != wanted:
                raise TopicError(
                    f"topic {full} has {found[full]} partitions, {wanted} are asked for, and the count is never "
                    f"changed under one prefix; set KYMO_PARTITIONS={found[full]}, or another KYMO_PREFIX"
                )
        altered = _alter(admin, names, [topic for topic in TABLE if names.of(topic.name) not in created])
        return Topics(tuple(created), tuple(altered), found)


def list_runs(settings: Settings) -> list[Run]:
    """Runs of ``replay --run`` under the settings' prefix, by name."""
    with kafka_errors(settings, "listing runs"), _admin(settings) as admin:
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
    """Delete a run's topics, its workers' included, and its consumer groups; never those of the plain prefix.

    Parameters
    ----------
    settings : Settings
        Broker and prefix.
    run : str
        Its name.

    Returns
    -------
    list of str
        The deleted topics.

    Raises
    ------
    TopicError
        There is no such run.
    """
    start = run_prefix(settings.prefix, run) + "."
    with kafka_errors(settings, f"deleting run {run}"), _admin(settings) as admin:
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


def _admin(settings: Settings) -> Any:
    return KafkaAdminClient(**client_arguments(settings))


def _partitions(settings: Settings, topic: Topic) -> int:
    return topic.partitions or settings.partitions


def _partition_counts(admin: Any, names: Names) -> dict[str, int]:
    wanted = {names.of(topic.name) for topic in TABLE}
    have = wanted.intersection(admin.list_topics())
    return {row["name"]: len(row["partitions"]) for row in admin.describe_topics(sorted(have))} if have else {}


def _create(admin: Any, settings: Settings, names: Names, missing: list[Topic]) -> list[str]:
    wanted = {
        names.of(topic.name): {
            "num_partitions": _partitions(settings, topic),
            "replication_factor": settings.replication,
            "configs": topic.config(),
        }
        for topic in missing
    }
    created = []
    for row in admin.create_topics(wanted, raise_errors=False)["topics"]:
        error = for_code(row["error_code"])
        if error is NoError:
            created.append(row["name"])
        elif error is not TopicAlreadyExistsError:  # another process was quicker
            raise error(f"making {row['name']}: {row.get('error_message') or 'refused'}")
    return created


def _alter(admin: Any, names: Names, topics: list[Topic]) -> list[str]:
    if not topics:
        return []
    asked = [ConfigResource(ConfigResourceType.TOPIC, names.of(topic.name)) for topic in topics]
    have = admin.describe_configs(asked, config_filter="all")["topic"]
    changes = []
    for topic in topics:
        full = names.of(topic.name)
        differ = {key: value for key, value in topic.config().items() if have[full].get(key, {}).get("value") != value}
        if differ:
            changes.append(ConfigResource(ConfigResourceType.TOPIC, full, configs=differ))
    if changes:
        admin.alter_configs(changes)
    return [change.name for change in changes]


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
    with kafka_errors(settings, "asking for topics"), _admin(settings) as admin:
        rows = admin.describe_topics(sorted(topics))
        return {row["name"]: str(row["topic_id"]) for row in rows if row.get("topic_id") and not row.get("error_code")}
