"""Topics on the broker. In: Settings and a prefix. Out: the table's topics, made, looked at, altered when told to; runs; offsets.

Topics that are there are never altered unless asked to: what their settings and partition counts do not keep of the table is told.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, OffsetSpec
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

from kymo.streams.errors import TopicError
from kymo.streams.kafka.client import admin_client, client_arguments
from kymo.streams.settings import Settings
from kymo.streams.topics import BY_NAME, FENCE_MS, TABLE, Names, Place, Topic

RUN_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")
READY_TIMEOUT_S = 20.0
OLDEST_KAFKA = "3.6"
#: Kafka has this since 3.6.
FENCE = "message.timestamp.before.max.ms"
REPAIR = "`kymo doctor --repair-topics`"
UNREAD = "what is not read by then is lost"
DOUBLE = "a worker that was stopped and wakes up may write an event twice"


#: A sentence of what topics do not keep of the table, and whether Kymo rests on it; else it may be meant so.
Finding = tuple[str, bool]


@dataclass(frozen=True, slots=True)
class Topics:
    created: tuple[str, ...]
    partitions: dict[str, int]  # partition count of every topic of the table, by full name
    findings: tuple[Finding, ...] = ()  # of topics that somebody else made

    @property
    def broken(self) -> tuple[str, ...]:
        """What Kymo rests on, and is not kept."""
        return tuple(text for text, needed in self.findings if needed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that is worth telling at a start, a sentence each."""
        texts = sorted(self.findings, key=lambda finding: not finding[1])
        advice = (f"topics that are there are never altered unless asked to: {REPAIR}",)
        return (*(text for text, _ in texts), *(advice if texts else ()))

    def require_equal(self, topics: Iterable[str]) -> None:
        """Refuse topics that one worker reads and writes: a session's partition has one number in all of them."""
        counts = {topic: self.partitions[topic] for topic in topics}
        if len(set(counts.values())) > 1:
            raise TopicError(
                f"{', '.join(f'{topic} has {count} partitions' for topic, count in counts.items())}; a worker's input and "
                "output need equal counts: make them anew, or set another KYMO_PREFIX"
            )


def ensure_topics(settings: Settings, names: Names) -> Topics:
    """Make the table's topics that are missing; those that are there are never altered. All have leaders afterwards."""
    with admin_client(settings, f"making the topics {names.prefix}.*") as admin:
        counts = _partition_counts(admin, names)
        by_count = _by_count(names, counts)
        # As many as those that are there have, where they agree best.
        used = max(by_count, key=lambda n: (len(by_count[n]), n == settings.partitions, n), default=settings.partitions)
        missing = [topic for topic in TABLE if names.of(topic.name) not in counts]
        created = _create(admin, replace(settings, partitions=used), names, missing) if missing else []
        admin.wait_for_topics([names.of(topic.name) for topic in TABLE], timeout_ms=int(READY_TIMEOUT_S * 1000))
        counts = _partition_counts(admin, names) if missing else counts
        older = {full: count for full, count in counts.items() if full not in created}
        return Topics(tuple(created), counts, _against_table(admin, settings, names, older))


def _create(admin: Any, settings: Settings, names: Names, missing: list[Topic]) -> list[str]:
    configurations = {}
    for topic in missing:
        counts = {"num_partitions": topic.partitions or settings.partitions, "replication_factor": settings.replication}
        configurations[names.of(topic.name)] = counts | {"configs": topic.config()}
    created = []
    for row in admin.create_topics(configurations, raise_errors=False)["topics"]:
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


def look_at_topics(settings: Settings, names: Names) -> Topics:
    """The same without making any: only those that are there stand in `partitions`."""
    with admin_client(settings, f"looking at the topics {names.prefix}.*") as admin:
        counts = _partition_counts(admin, names)
        return Topics((), counts, _against_table(admin, settings, names, counts))


def repair_topics(settings: Settings, names: Names) -> list[str]:
    """Configure the topics that are there as the table says; partition counts stay."""
    with admin_client(settings, f"altering the topics {names.prefix}.*") as admin:
        current, changes = settings_of(admin, list(_partition_counts(admin, names))), []
        for topic in TABLE:
            full = names.of(topic.name)
            values = current.get(full)
            if values == {}:
                raise TopicError(f"{full}: this user may not read its settings; the right DescribeConfigs is needed")
            if values and (differ := {k: v for k, v in topic.config().items() if values.get(k) != v}):
                changes.append(ConfigResource(ConfigResourceType.TOPIC, full, configs=differ))
        results = admin.alter_configs(changes, raise_on_unknown=False)["topic"] if changes else {}
        if refused := [f"{full}: {result}" for full, result in results.items() if result != "OK"]:
            rights = "; the right AlterConfigs is needed" if "AUTHORIZATION" in refused[0].upper() else ""
            raise TopicError("; ".join(refused) + rights)
        return [change.name for change in changes]


def broken_promises(names: Names, settings: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """What the topics' settings do not keep.

    >>> from kymo.streams.topics import BY_NAME
    >>> list(broken_promises(Names("k"), {"k.events": BY_NAME["events"].config() | {"retention.ms": "1000"}}))
    [('k.events: retention.ms is 1000, not 2592000000: what is not read by then is lost', False)]
    """
    topics: dict[tuple[str, str], list[str]] = defaultdict(list)
    for topic in TABLE:
        values, table = settings.get(full := names.of(topic.name)) or {}, topic.config()
        for key, then in _shortfalls(topic, values) if values else ():
            topics[f"{key} is {values.get(key, 'not known to this broker')}, not {table[key]}", then].append(full)
    for (text, then), fulls in topics.items():
        yield f"{', '.join(fulls)}: {text}: {then}", then != UNREAD
    if unread := sorted(name for name, values in settings.items() if not values):
        doubt = "so it is not known whether they keep records long enough and fence stopped workers"
        yield f"{', '.join(unread)}: this user may not read their settings (right DescribeConfigs), {doubt}", False


def _shortfalls(topic: Topic, values: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    table, policy = topic.config(), set(values["cleanup.policy"].split(","))
    if topic.compact and policy != {"compact"}:
        yield "cleanup.policy", "what workers, models and sessions are known by is deleted"
    if not topic.compact and "compact" in policy:
        yield "cleanup.policy", "all but a session's newest record is deleted"
    for key in ("retention.ms", "retention.bytes") if "delete" in policy else ():
        if _less(values[key], table[key]):
            yield key, UNREAD
    if _less(values["max.message.bytes"], table["max.message.bytes"]):
        yield "max.message.bytes", "larger messages are refused"
    if topic.fenced:
        if values["message.timestamp.type"] != table["message.timestamp.type"]:
            yield "message.timestamp.type", DOUBLE
        if not values.get(FENCE, "").isdigit() or int(values[FENCE]) > FENCE_MS:
            yield FENCE, DOUBLE


def _less(limit: str, least: str) -> bool:
    """Of two limits, of which -1 is none."""
    return int(limit) != -1 and (int(least) == -1 or int(limit) < int(least))


def _counts_apart(names: Names, counts: Mapping[str, int], configured: int) -> Iterator[Finding]:
    """What partition counts are not as they should be."""
    for topic in TABLE:
        count = counts.get(full := names.of(topic.name), topic.partitions)
        if topic.partitions and count != topic.partitions:
            what = f"{full} has {count} partitions, not {topic.partitions}"
            yield f"{what}: what its readers see may stand in another order", True
    by_count = _by_count(names, counts)
    if len(by_count) > 1:
        text = "; ".join(f"{count}: {', '.join(by_count[count])}" for count in sorted(by_count))
        yield f"partition counts differ, and a worker can serve only topics of equal ones: {text}", True
    elif by_count and configured not in by_count:
        ((count, topics),) = by_count.items()
        more = f" and {len(topics) - 1} more topics" if len(topics) > 1 else ""
        yield f"{topics[0]}{more}: {count} partitions, not the {configured} of KYMO_PARTITIONS; {count} are used", False


def _by_count(names: Names, counts: Mapping[str, int]) -> dict[int, list[str]]:
    by_count: dict[int, list[str]] = defaultdict(list)
    for topic in TABLE:
        if topic.partitions is None and (full := names.of(topic.name)) in counts:
            by_count[counts[full]].append(full)
    return by_count


def _partition_counts(admin: Any, names: Names) -> dict[str, int]:
    """Of the table's topics that are there, by full name."""
    rows = described(admin, [names.of(topic.name) for topic in TABLE])
    return {row["name"]: len(row["partitions"]) for row in rows}


def _against_table(admin: Any, settings: Settings, names: Names, counts: Mapping[str, int]) -> tuple[Finding, ...]:
    promises = broken_promises(names, settings_of(admin, list(counts)))
    return (*promises, *_counts_apart(names, counts, settings.partitions))


def described(admin: Any, topics: Iterable[str]) -> list[dict[str, Any]]:
    """What Kafka says of those topics that are there."""
    there = sorted(set(topics).intersection(admin.list_topics()))
    return list(admin.describe_topics(there)) if there else []


def ids_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Kafka's ids of described topics; empty where it has none."""
    return {row["name"]: str(row.get("topic_id") or "") for row in rows}


def places_of(rows: Iterable[Mapping[str, Any]]) -> list[Place]:
    return [(row["name"], part["partition_index"]) for row in rows for part in row["partitions"]]


def settings_of(admin: Any, topics: Sequence[str]) -> dict[str, dict[str, str]]:
    """Every setting of topics that are there; none of one whose settings this user may not read."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, full) for full in topics]
    answers = admin.describe_configs(resources, config_filter="all").get("topic", {}) if resources else {}
    return {full: {key: row["value"] for key, row in rows.items()} for full, rows in answers.items()}


@dataclass(frozen=True, slots=True)
class RunTopics:
    """A replay's own set of topics."""

    name: str  # ``7`` and ``kymo.7``
    prefix: str
    topics: int  # how many there are
    messages: int  # how many they hold, as far as the offsets tell


def run_prefix(prefix: str, run: str) -> str:
    """Topic prefix of a run.

    >>> run_prefix("kymo", "7")
    'kymo.7'
    """
    if not RUN_NAME.fullmatch(run) or run in BY_NAME:
        raise TopicError(f"run {run!r}: expected 1 to 60 letters, digits, - and _, and no topic's name")
    return f"{prefix}.{run}"


def list_runs(settings: Settings) -> list[RunTopics]:
    """Runs of ``replay --run`` under the settings' prefix, by name."""
    with admin_client(settings, "listing runs") as admin:
        runs: dict[str, list[str]] = defaultdict(list)
        for topic in admin.list_topics():
            if name := _run_of(settings.prefix, topic):
                runs[name].append(topic)
        return [
            RunTopics(name, f"{settings.prefix}.{name}", len(topics), _messages(admin, topics))
            for name, topics in sorted(runs.items())
        ]


def delete_run(settings: Settings, run: str) -> list[str]:
    """Delete a run's topics, its workers' included, and its consumer groups; never those of the plain prefix."""
    start = run_prefix(settings.prefix, run) + "."
    with admin_client(settings, f"deleting run {run}") as admin:
        all_topics = admin.list_topics()
        topics = sorted(topic for topic in all_topics if topic.startswith(start))
        if not any(_run_of(settings.prefix, topic) == run for topic in topics):
            runs = sorted({name for topic in all_topics if (name := _run_of(settings.prefix, topic))})
            raise TopicError(f"no run {run} under {settings.prefix}; there are {', '.join(runs) or 'none'}")
        for result in admin.delete_topics(topics, raise_errors=False)["topics"]:
            error = for_code(result["error_code"])
            if error not in (NoError, UnknownTopicOrPartitionError):
                raise error(f"deleting {result['name']}")
        _await_gone(admin, topics)
        groups = [group["group_id"] for group in admin.list_groups() if group["group_id"].startswith(start)]
        if groups:
            admin.delete_groups(groups)
        return topics


def _run_of(prefix: str, topic: str) -> str:
    """Name of the run that a topic of the table belongs to, or empty."""
    if not topic.startswith(prefix + "."):
        return ""
    run, _, name = topic[len(prefix) + 1 :].partition(".")
    return run if name in BY_NAME and run not in BY_NAME and RUN_NAME.fullmatch(run) else ""


def _await_gone(admin: Any, topics: list[str]) -> None:
    """Wait until the broker's metadata no longer show them: deletion is acknowledged before."""
    give_up = time.monotonic() + READY_TIMEOUT_S
    while remaining := sorted(set(topics).intersection(admin.list_topics())):
        if time.monotonic() > give_up:
            raise KafkaTimeoutError(f"{len(remaining)} topics are still there, such as {remaining[0]}")
        time.sleep(0.05)


def _messages(admin: Any, topics: list[str]) -> int:
    try:
        return sum(ends.end - ends.begin for ends in ends_of(admin, places_of(described(admin, topics))).values())
    except UnknownTopicOrPartitionError:  # deleted since they were listed
        return 0


def topic_ids(settings: Settings, topics: Collection[str]) -> dict[str, str]:
    """Kafka's ids of topics, by name: a topic that was deleted and made again has another; without those that are not there."""
    with admin_client(settings, "asking for topics") as admin:
        return ids_of(described(admin, topics))


class Ends(NamedTuple):
    """Offsets that a partition has: ``[begin, end)``."""

    begin: int
    end: int


def ends_of(admin: Any, places: Sequence[Place]) -> dict[Place, Ends]:
    partitions = [TopicPartition(*place) for place in places]
    if not partitions:
        return {}
    begins = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
    ends = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return {(p.topic, p.partition): Ends(begins[p].offset, ends[p].offset) for p in partitions}


class TopicFinder:
    """Looks for a prefix's topics; an error of Kafka is its user's to deal with."""

    def __init__(self, settings: Settings, topics: Sequence[str]) -> None:
        names = Names(settings.prefix)
        self._topics = {names.of(name) for name in topics}
        self._admin = KafkaAdminClient(**client_arguments(settings))

    @property
    def cluster(self) -> str:
        try:
            cluster = self._admin.describe_cluster().get("cluster_id")
        except KeyError:  # the client expects a member that Kafka has since 3.7; the metadata have the id, too
            cluster = self._admin._manager.cluster.cluster_id
        return str(cluster or "")

    def partitions(self) -> dict[Place, str]:
        """The topic's id, of every partition that is there and has a leader."""
        return {
            (row["name"], part["partition_index"]): str(row.get("topic_id") or "")
            for row in described(self._admin, self._topics)
            for part in row["partitions"]
            if part.get("leader_id", 0) >= 0
        }

    def ends(self, places: Sequence[Place]) -> dict[Place, Ends]:
        return ends_of(self._admin, places)

    def close(self) -> None:
        self._admin.close()
