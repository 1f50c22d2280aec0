"""What is wrong with a session. In: a recipe, what the topics hold of a session. Out: Checks: which of the recipe's inputs came, what they
are good for, and what became of it.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kymo.deploy.broker import located
from kymo.deploy.doctor import NOTE, OK, WRONG, Check, failure
from kymo.processors.intake import Intake, runs_of
from kymo.processors.join import Decision
from kymo.processors.recipe.load import Recipe
from kymo.processors.recipe.tables import InputTable
from kymo.processors.samplers import Sampler, SampleTimes
from kymo.streams.chunk import Chunk, Format
from kymo.streams.errors import EventError, KymoError, TopicError
from kymo.streams.events import Event
from kymo.streams.recording import StreamData
from kymo.streams.schema import nearest
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.words import NS, many

_BEGINNING = 10_000  # samples
UNKNOWN = "unknown"


def check_session(recipe: Recipe, session: str, settings: Settings) -> list[Check]:
    """Say why a session yields no events of a recipe."""
    try:
        return explain(recipe, gather(recipe, session, settings))
    except (KymoError, ModuleNotFoundError) as error:
        return [failure("session", error)]


@dataclass
class StreamFacts:
    """Sums up what the topics hold of one raw stream."""

    format: Format  # of its first chunk
    topic: str  # where it stands
    runs: list[list[int]]  # index ranges without gaps, half open
    ended: bool = False  # whether its end mark is there
    first_offset: int = 0  # of its chunks
    empty: int = 0  # samples that lack a value, each of them a gap
    # where its chunks stand; one, if whoever sent them keyed each with the session's name
    partitions: set[int] = field(default_factory=set)
    beginning: list[Chunk] = field(default_factory=list)  # its first chunks, to see how large its numbers are
    newest_ns: int = 0  # how far it is, by its samples and progress marks
    times_ns: list[int] = field(default_factory=list)  # of an irregular one's samples; those that go back do not count

    def start_ns(self, index: int) -> int:
        """When a sample was taken, by its first chunk."""
        first = next((chunk for chunk in self.beginning if len(chunk.data)), self.beginning[0])
        return first.header.time_ns(index) if self.format.rate else first.start_ns

    def add(self, chunk: Chunk, partition: int) -> None:
        """Take the next chunk; a sample without a value in a channel is none."""
        self.ended |= chunk.end
        self.partitions.add(partition)
        reached_ns = self.newest_ns
        if len(chunk.data):
            last_ns = chunk.header.time_ns(chunk.end_index) if chunk.times_ns is None else int(chunk.times_ns[-1])
            self.newest_ns = max(self.newest_ns, last_ns)
        self.newest_ns = max(self.newest_ns, chunk.complete_ns or 0)
        if not self.beginning or (len(chunk.data) and sum(len(c.data) for c in self.beginning) < _BEGINNING):
            self.beginning.append(chunk)
        new = chunk.data[max(0, self.runs[-1][1] - chunk.first_index) :]
        bad = (
            np.isnan(new.reshape(len(new), math.prod(new.shape[1:]))).any(axis=1)
            if chunk.data.dtype.kind == "f"
            else np.zeros(0, bool)
        )
        self.empty += int(bad.sum())
        if chunk.times_ns is not None:
            times = chunk.times_ns[len(chunk.data) - len(new) :]
            times = times[~bad] if chunk.data.dtype.kind == "f" else times
            self.times_ns += times[times >= reached_ns].tolist()
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
    # by topic, the next offset of the recipe's workers in its partition; empty if they never committed
    committed: dict[str, int] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)  # what workers have decided of inputs that fell silent


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
    if recipe.join is not None:
        return [*checks, *_explain_join(recipe, facts)]
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
    expected = window_count(recipe, stream.runs)
    return checks if windows.state == WRONG else [*checks, _event_check(recipe, facts, expected, [stream])]


def _explain_join(recipe: Recipe, facts: SessionFacts) -> list[Check]:
    """Follow a session of several inputs: which of them came, how far each is, what was decided, and what became of it."""
    taken, wrong = dict[str, StreamFacts](), dict[str, str]()
    for name, stream in facts.streams.items():
        table, why = recipe.input_of(name), recipe.matches(stream.format)
        if table is not None and why is None and stream.beginning:
            taken.setdefault(table.stream, stream)
        elif table is not None:
            wrong[table.stream] = str(why or f"`{name}` is empty")
    if not taken:
        reasons = "; ".join(str(recipe.matches(stream.format)) for stream in facts.streams.values())
        return [Check("input", WRONG, f"recipe `{recipe.name}` takes none of its streams: {reasons}")]
    tables = {table.stream: table for table in recipe.inputs}
    moves = {name: round(tables[name].offset_ms * 10**6) for name in taken}
    newest_ns = max(stream.newest_ns + moves[name] for name, stream in taken.items())
    ticks = _ticks(recipe, facts, taken, moves)
    checks = []
    for name, table in tables.items():
        if name in taken:
            lag_s = (newest_ns - taken[name].newest_ns - moves[name]) / NS
            until_s = (taken[name].newest_ns + moves[name] - ticks.origin_ns) / NS
            checks.append(_came(recipe, table, taken[name], lag_s, until_s))
            if why := _doubt(recipe, facts, taken[name]):
                checks.append(Check("values", NOTE, why))
        else:
            checks.append(_lacks(recipe, table, wrong.get(name, "nothing has come of it"), bool(facts.decisions)))
    checks += [_decided(ticks, decision) for decision in facts.decisions if decision.stream in tables]
    runs = _whole_ticks(recipe, taken, moves, ticks, facts.decisions)
    windows, seconds = window_count(recipe, runs), sum(end - start for start, end in runs) / float(ticks.rate)
    if not windows:
        lacking = (
            f"a window needs {recipe.window_length / float(ticks.rate):g} s of all that are required, without a gap"
        )
        return [*checks, Check("windows", WRONG, f"{seconds:g} s, {lacking}")]
    text = f"{seconds:g} s in which all required inputs are there hold {many(windows, 'window')}"
    return [*checks, Check("windows", OK, text), _event_check(recipe, facts, windows, list(taken.values()))]


def _came(recipe: Recipe, table: InputTable, stream: StreamFacts, lag_s: float, until_s: float) -> Check:
    rate = f"{float(stream.format.rate):g} Hz" if stream.format.rate else "irregular"
    gaps = f", {many(len(stream.runs) - 1, 'gap')}" if len(stream.runs) > 1 and stream.format.rate else ""
    text = f"`{table.stream}`: {stream.format.stream}, {rate}, until {until_s:.1f} s of the session{gaps}"
    if stream.ended:
        return Check("input", OK, f"{text}; it has ended")
    if lag_s <= table.lateness_s:
        return Check("input", OK, text)
    text += f"; silent since then, {lag_s:.1f} s behind the newest of the others: "
    if table.required:
        return Check("input", WRONG, f"{text}the recipe requires it, so there are no windows until it is back")
    return Check("input", NOTE, f"{text}windows go on without it, and their events name it in `absent`")


def _lacks(recipe: Recipe, table: InputTable, why: str, decided: bool) -> Check:
    """Say what it means that an input is not there."""
    assert recipe.join is not None
    text = f"`{table.stream}`: {why}; "
    if recipe.join.grid == table.stream and not decided:
        text += f"it is the grid, whose first sample is tick 0: nothing goes on for {table.lateness_s:g} s; "
    if table.required:
        return Check(
            "input", WRONG, f"{text}the recipe requires it, so there are no windows: is its device on, and sending?"
        )
    return Check("input", NOTE, f"{text}{table.lateness_s:g} s behind the others, windows go on without it")


def _decided(ticks: SampleTimes, decision: Decision) -> Check:
    """Say what a worker has decided of an input."""
    start_s, stop_s = (None if tick is None else tick / float(ticks.rate) for tick in (decision.start, decision.stop))
    if stop_s is None:
        ends = " and counts no more" * decision.ends
        return Check("decision", NOTE, f"`{decision.stream}` is not waited for from {start_s:.1f} s on{ends}")
    return Check(
        "decision", NOTE, f"`{decision.stream}` was back: from {start_s:.1f} to {stop_s:.1f} s it does not count"
    )


def _ticks(recipe: Recipe, facts: SessionFacts, taken: dict[str, StreamFacts], moves: dict[str, int]) -> SampleTimes:
    """Where the ticks of a session stand: at the grid's samples, where it came; else where a decision says."""
    assert recipe.join is not None
    grid = recipe.join.grid if recipe.join.grid in taken else next(iter(taken))
    origins = [decision.origin_ns for decision in facts.decisions if decision.origin_ns is not None]
    return SampleTimes([*origins, taken[grid].start_ns(0) + moves[grid]][0], recipe.join.rate_hz)


def _whole_ticks(
    recipe: Recipe,
    taken: dict[str, StreamFacts],
    moves: dict[str, int],
    ticks: SampleTimes,
    decisions: Sequence[Decision],
) -> list[list[int]]:
    """Runs of ticks at which all required inputs are there; without such, at which any is."""
    required = [table.stream for table in recipe.inputs if table.required]
    if any(name not in taken for name in required):
        return []
    edges, tables = Counter[int](), {table.stream: table for table in recipe.inputs}
    last = max((ticks.first_at(s.newest_ns + moves[n]) for n, s in taken.items() if s.format.rate), default=0)
    for name in required or [name for name, stream in taken.items() if stream.format.rate]:
        stream, void = taken[name], [(d.start, d.stop) for d in decisions if d.stream == name]
        covered = _covered if stream.format.rate else _said
        for first, end in covered(tables[name], stream, moves[name], ticks):
            pieces = [(max(first, 0), end if stream.format.rate else min(end, last))]
            for since, until in void:
                halves = (
                    half for a, b in pieces for half in ((a, min(b, since)), (b if until is None else max(a, until), b))
                )
                pieces = [(a, b) for a, b in halves if a < b]
            for a, b in pieces:
                edges.update({a: 1})
                edges.subtract({b: 1})
    runs, depth, needed = list[list[int]](), 0, len(required) or 1
    for tick in sorted(edges):
        before, depth = depth, depth + edges[tick]
        if before < needed <= depth:
            runs.append([tick, tick])
        elif depth < needed <= before:
            runs[-1][1] = tick
    return runs


def _covered(table: InputTable, stream: StreamFacts, move_ns: int, ticks: SampleTimes) -> list[tuple[int, int]]:
    """Ticks at which an evenly sampled input is there."""
    bridge = round(table.bridge_ms * stream.format.rate / 1000)
    return [
        (ticks.first_at(stream.start_ns(start) + move_ns), ticks.first_at(stream.start_ns(end - 1) + 1 + move_ns))
        for start, end in _merged(stream.runs, bridge)
    ]


def _said(table: InputTable, stream: StreamFacts, move_ns: int, ticks: SampleTimes) -> list[tuple[int, int]]:
    """Ticks at which an irregular input is there: of which it says something."""
    if table.sample == "count":
        return [(0, 2**62 if stream.ended else ticks.first_at(stream.newest_ns + move_ns))]
    times = np.array(stream.times_ns, np.int64) + move_ns
    sampler = Sampler(table.sample, ticks, round(table.bridge_ms * 10**6))
    values = sampler.push(Chunk(stream.beginning[0].header, 0, np.zeros((len(times), 1)), times)) + sampler.close()
    return [(first + a, first + b) for first, rows in values for a, b in runs_of(np.isfinite(rows[:, 0]))]


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


def _merged(runs: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    """Runs, those with gaps of up to `fill` between them as one."""
    merged: list[list[int]] = []
    for start, end in runs:
        if merged and start - merged[-1][1] <= fill:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return merged


def window_count(recipe: Recipe, runs: list[list[int]]) -> int:
    """Windows of the grid that lie inside runs of samples; gaps that the recipe fills do not count as such."""
    intake = recipe.chain.specs[0]
    fill = max(intake.bridge, intake.fill) if isinstance(intake, Intake) else 0
    hop, length = recipe.window_hop, recipe.window_length
    return sum(max(0, (end - length) // hop - -(-start // hop) + 1) for start, end in _merged(runs, fill))


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


def _event_check(recipe: Recipe, facts: SessionFacts, expected: int, streams: Sequence[StreamFacts]) -> Check:
    events = facts.events
    if not events:
        if not facts.committed:
            text = f"none: no worker has ever worked on this recipe; start one: kymo worker {recipe.name}"
        elif any(facts.committed.get(stream.topic, -1) <= stream.first_offset for stream in streams):
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
    for name in [table.stream for table in recipe.inputs if any(table.stream in event.absent for event in events)]:
        text += f", {sum(name in event.absent for event in events)} without `{name}` at times"
    return Check("events", OK if len(events) >= expected else NOTE, text)


def gather(recipe: Recipe, session: str, settings: Settings) -> SessionFacts:
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
    partitions = {stream.topic: n for stream in facts.streams.values() for n in stream.partitions}
    for (topic, partition), offset in _committed(recipe, settings).items():
        if partitions.get(topic) == partition:
            facts.committed[topic] = offset
    if recipe.join is not None:
        facts.decisions = _decisions(recipe, session, settings)
    return facts


def _decisions(recipe: Recipe, session: str, settings: Settings) -> list[Decision]:
    """Read what workers have stored of inputs that fell silent and came back."""
    from kymo.deploy.roles import BOTH, steps_name
    from kymo.models.serving.joined import decisions_from_json
    from kymo.streams.kafka.read import read_records

    names = [f"{recipe.name}.{BOTH}"]
    with contextlib.suppress(KymoError):  # nothing to derive
        names.append(f"{steps_name(recipe)}.processor")
    keys = {f"{name}.decisions\n{session}".encode() for name in names}
    values = [r.value for r in read_records(settings, [Names(settings.prefix).of("state")]) if r.key in keys]
    decisions = decisions_from_json(values[-1], recipe.chain) if values and values[-1] else []
    return list(
        {(decision.stream, decision.start): decision for decision in decisions}.values()
    )  # the last word stands


def _committed(recipe: Recipe, settings: Settings) -> dict[tuple[str, int], int]:
    """Next offsets of the recipe's workers by topic and partition; none if they never committed."""
    from kymo.streams.kafka.client import admin_client

    group = f"{settings.prefix}.{recipe.name}.model"
    with admin_client(settings, f"asking for the offsets of {group}") as client:
        # A broker that never had a group has no coordinator to ask.
        if group not in {g["group_id"] for g in client.list_groups()}:
            return {}
        committed = client.list_group_offsets(group).get(group, {})
    return {(tp.topic, tp.partition): meta.offset for tp, meta in committed.items()}
