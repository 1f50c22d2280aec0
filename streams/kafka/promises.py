"""Topics that are there against the table. In: their settings and partition counts. Out: sentences; the settings, altered when told to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType

from streams.errors import TopicError
from streams.kafka.client import admin_client
from streams.settings import Settings
from streams.topics import FENCE_MS, TABLE, Names, Topic

REPAIR = "`kymo doctor --repair-topics`"
#: Kafka has this since 3.6.
FENCE = "message.timestamp.before.max.ms"
UNREAD = "what is not read by then is lost"
DOUBLE = "a worker that was stopped and wakes up may write an event twice"


def _less(have: str, wanted: str) -> bool:
    """Of two limits, of which -1 is none."""
    return int(have) != -1 and (int(wanted) == -1 or int(have) < int(wanted))


def _broken(topic: Topic, have: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """Settings that fall short of the table's, and what follows."""
    table, policy = topic.config(), set(have["cleanup.policy"].split(","))
    if topic.compact and policy != {"compact"}:
        yield "cleanup.policy", "what workers, models and sessions are known by is deleted"
    if not topic.compact and "compact" in policy:
        yield "cleanup.policy", "all but a session's newest record is deleted"
    for key in ("retention.ms", "retention.bytes") if "delete" in policy else ():
        if _less(have[key], table[key]):
            yield key, UNREAD
    if _less(have["max.message.bytes"], table["max.message.bytes"]):
        yield "max.message.bytes", "larger messages are refused"
    if topic.fenced:
        if have["message.timestamp.type"] != table["message.timestamp.type"]:
            yield "message.timestamp.type", DOUBLE
        if not have.get(FENCE, "").isdigit() or int(have[FENCE]) > FENCE_MS:
            yield FENCE, DOUBLE


@dataclass(frozen=True, slots=True)
class Topics:
    """What :func:`ensure_topics` did and found."""

    created: tuple[str, ...]
    partitions: dict[str, int]  # partition count of every topic of the table, by full name
    # what topics that somebody else made do not keep of the table and Kymo rests on, a sentence each
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # … and what may be meant so

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that is worth telling at a start, a sentence each."""
        told = (f"topics that are there are never altered unless asked to: {REPAIR}",)
        return (*self.broken, *self.notes, *(told if self.broken or self.notes else ()))

    def require_equal(self, topics: Iterable[str]) -> None:
        """Refuse topics that one worker reads and writes: a session's partition has one number in all of them."""
        counts = {topic: self.partitions[topic] for topic in topics}
        if len(set(counts.values())) > 1:
            raise TopicError(
                f"{', '.join(f'{topic} has {count} partitions' for topic, count in counts.items())}; a worker's input and "
                "output need equal counts: make them anew, or set another KYMO_PREFIX"
            )


def look_at_topics(settings: Settings, names: Names) -> Topics:
    """The same without making any: only those that are there stand in `partitions`."""
    with admin_client(settings, f"looking at the topics {names.prefix}.*") as admin:
        found = partition_counts(admin, names)
        return Topics((), found, *against_table(admin, settings, names, found))


def repair_topics(settings: Settings, names: Names) -> list[str]:
    """Configure the topics that are there as the table says; partition counts stay."""
    with admin_client(settings, f"altering the topics {names.prefix}.*") as admin:
        have, changes = settings_of(admin, list(partition_counts(admin, names))), []
        for topic in TABLE:
            full = names.of(topic.name)
            own = have.get(full)
            if own == {}:
                raise TopicError(f"{full}: this user may not read its settings; the right DescribeConfigs is needed")
            differ = {k: v for k, v in topic.config().items() if own.get(k) != v} if own else {}
            if differ:
                changes.append(ConfigResource(ConfigResourceType.TOPIC, full, configs=differ))
        done = admin.alter_configs(changes, raise_on_unknown=False)["topic"] if changes else {}
        if refused := [f"{full}: {said}" for full, said in done.items() if said != "OK"]:
            rights = "; the right AlterConfigs is needed" if "AUTHORIZATION" in refused[0].upper() else ""
            raise TopicError("; ".join(refused) + rights)
        return [change.name for change in changes]


def broken_promises(names: Names, settings: Mapping[str, Mapping[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the topics' settings do not keep: sentences of what Kymo rests on, and of what may be meant so.

    Examples
    --------
    >>> from streams.topics import BY_NAME
    >>> broken_promises(Names("k"), {"k.events": BY_NAME["events"].config() | {"retention.ms": "1000"}})
    ((), ('k.events: retention.ms is 1000, not 2592000000: what is not read by then is lost',))
    """
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for topic in TABLE:
        have, wanted = settings.get(full := names.of(topic.name)) or {}, topic.config()
        for key, then in _broken(topic, have) if have else ():
            text = f"{key} is {have.get(key, 'not known to this broker')}, not {wanted[key]}"
            together[text, then].append(full)
    broken = tuple(f"{', '.join(t)}: {text}: {then}" for (text, then), t in together.items() if then != UNREAD)
    notes = [f"{', '.join(t)}: {text}: {then}" for (text, then), t in together.items() if then == UNREAD]
    if unread := sorted(name for name, have in settings.items() if not have):
        notes.append(
            f"{', '.join(unread)}: this user may not read their settings (right DescribeConfigs), so it is not known "
            "whether they keep records long enough and fence stopped workers"
        )
    return broken, tuple(notes)


def counts_apart(names: Names, found: Mapping[str, int], asked: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What partition counts are not as they should be, as :func:`broken_promises`."""
    fixed = {
        full: t.partitions for t in TABLE if t.partitions and found.get(full := names.of(t.name), 1) != t.partitions
    }
    broken = [
        f"{full} has {found[full]} partitions, not {n}: what its readers see may stand in another order"
        for full, n in fixed.items()
    ]
    by_count: dict[int, list[str]] = defaultdict(list)
    for topic in TABLE:
        if topic.partitions is None and (full := names.of(topic.name)) in found:
            by_count[found[full]].append(full)
    if len(by_count) > 1:
        text = "; ".join(f"{count}: {', '.join(by_count[count])}" for count in sorted(by_count))
        broken.append(f"partition counts differ, and a worker can serve only topics of equal ones: {text}")
    elif by_count and asked not in by_count:
        ((count, topics),) = by_count.items()
        more = f" and {len(topics) - 1} more topics" if len(topics) > 1 else ""
        text = f"{topics[0]}{more}: {count} partitions, not the {asked} of KYMO_PARTITIONS; {count} are used"
        return tuple(broken), (text,)
    return tuple(broken), ()


def partition_counts(admin: Any, names: Names) -> dict[str, int]:
    """Of the table's topics that are there, by full name."""
    wanted = {names.of(topic.name) for topic in TABLE}
    have = wanted.intersection(admin.list_topics())
    return {row["name"]: len(row["partitions"]) for row in admin.describe_topics(sorted(have))} if have else {}


def partitions_used(names: Names, found: Mapping[str, int], asked: int) -> int:
    """Of topics keyed by session that are made now: as many as those that are there have, where they agree best."""
    counts = Counter(found[full] for t in TABLE if t.partitions is None and (full := names.of(t.name)) in found)
    return max(counts, key=lambda count: (counts[count], count == asked, count), default=asked)


def against_table(
    admin: Any, settings: Settings, names: Names, found: Mapping[str, int]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What of the topics that are there is not as the table says: `broken` and `notes` of :class:`Topics`."""
    broken, notes = broken_promises(names, settings_of(admin, list(found)))
    also_broken, also_notes = counts_apart(names, found, settings.partitions)
    return broken + also_broken, notes + also_notes


def settings_of(admin: Any, topics: Sequence[str]) -> dict[str, dict[str, str]]:
    """Every setting of topics that are there; none of one whose settings this user may not read."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, full) for full in topics]
    found = admin.describe_configs(asked, config_filter="all").get("topic", {}) if asked else {}
    return {full: {key: row["value"] for key, row in rows.items()} for full, rows in found.items()}
