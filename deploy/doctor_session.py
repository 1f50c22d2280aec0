"""Why a session yields no events. In: a recipe, a session, what the topics hold of it. Out: Checks along the flow."""

from __future__ import annotations

import contextlib

from deploy.doctor import NOTE, OK, WRONG, Check
from deploy.doctor_facts import Facts, StreamFacts
from processors.intake import Intake
from processors.recipe.load import Recipe
from processors.registry import nearest
from streams.archive.erase import session_of
from streams.chunk import Chunk
from streams.errors import EventError, MessageError
from streams.events import Event
from streams.kafka.client import admin_client
from streams.kafka.read import Record, read_topics
from streams.kafka.sessions import raw_chunks
from streams.readers.words import many
from streams.sessions import read_session
from streams.settings import Settings
from streams.topics import Names

UNKNOWN = "unknown"


def explain(recipe: Recipe, facts: Facts) -> list[Check]:
    """Follow a session from its chunks to its events."""
    out: list[Check] = []
    if facts.rejected:
        text = ", ".join(f"{reason} {n}" for reason, n in facts.rejected.items())
        out.append(Check("rejected", WRONG, f"messages of this session were refused: {text}"))
    if not facts.streams:
        return [*out, _nothing(facts)]
    if apart := [_apart(name, stream) for name, stream in facts.streams.items() if len(stream.partitions) > 1]:
        return [*out, *apart]
    verdicts = {name: recipe.matches(stream.format) for name, stream in facts.streams.items()}
    taken = [name for name, why in verdicts.items() if why is None]
    if not taken:
        reasons = "; ".join(str(why) for why in verdicts.values())
        return [*out, Check("input", WRONG, f"recipe `{recipe.name}` takes none of its streams: {reasons}")]
    stream = facts.streams[taken[0]]
    extra = f"; {', '.join(taken[1:])} would fit too, but a session feeds a recipe once" if taken[1:] else ""
    out.append(Check("input", OK, f"recipe `{recipe.name}` takes {taken[0]}{extra}"))
    windows = _window_check(recipe, stream)
    out.append(windows)
    return out if windows.state == WRONG else [*out, _event_check(recipe, facts, stream)]


def _apart(name: str, stream: StreamFacts) -> Check:
    text = (
        f"chunks of {name} stand in partitions {', '.join(map(str, sorted(stream.partitions)))} of {stream.topic}, where no "
        "worker sees them in order; key every record with the session's name and let one partitioner place them"
    )
    return Check("partitions", WRONG, text)


def _nothing(facts: Facts) -> Check:
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


def _event_check(recipe: Recipe, facts: Facts, stream: StreamFacts) -> Check:
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


def gather(recipe: Recipe, session: str, settings: Settings) -> Facts:
    """Read what the topics hold of a session."""
    names, facts = Names(settings.prefix), Facts(session)
    for r in read_topics(settings, [names.of("sessions")]):
        key = (r.key or b"").decode(errors="replace")
        if key not in facts.known:
            facts.known.append(key)
        if key == session and r.value is not None:
            with contextlib.suppress(MessageError):  # an odd one says nothing; `kymo sessions list` tells of it
                facts.record = read_session(r.value)
    for r, chunk in raw_chunks(settings, session):
        _add(facts, chunk, r)
    for r in read_topics(settings, [names.of("events"), names.of("rejected")]):
        if session_of(r) != session.encode():
            continue
        if r.topic == names.of("rejected"):
            facts.rejected[(dict(r.headers).get("reason") or b"?").decode(errors="replace")] += 1
            continue
        with contextlib.suppress(EventError):
            event = Event.from_json(r.value or b"")
            if event.recipe == recipe.name and not event.head:  # one a window
                facts.events.append(event)
    topic = names.for_stream(recipe.inputs[0].stream)
    if offsets := _committed(recipe, topic, settings):
        places = [n for stream in facts.streams.values() if stream.topic == topic for n in stream.partitions]
        facts.committed = max((offsets.get(n, -1) for n in places), default=-1)
    return facts


def _add(facts: Facts, chunk: Chunk, r: Record) -> None:
    stream = facts.streams.get(chunk.stream)
    if stream is None:
        runs = [[chunk.first_index, chunk.first_index]]
        stream = facts.streams[chunk.stream] = StreamFacts(
            chunk.header.format, r.topic, runs, False, r.offset, r.offset
        )
    stream.partitions.add(r.partition)
    stream.add(chunk, r.offset)


def _committed(recipe: Recipe, topic: str, settings: Settings) -> dict[int, int]:
    """Next offsets of the recipe's workers by partition; none if they never committed."""
    group = f"{settings.prefix}.{recipe.name}.model"
    with admin_client(settings, f"asking for the offsets of {group}") as client:
        # A broker that never had a group has no coordinator to ask.
        if topic not in client.list_topics() or group not in {g["group_id"] for g in client.list_groups()}:
            return {}
        committed = client.list_group_offsets(group).get(group, {})
    return {place.partition: meta.offset for place, meta in committed.items() if place.topic == topic}
