"""What the examples share. In: verbs, recordings, events. Out: a broker and a home of their own, verbs that run, events as they come.

And what a run proves: whether every window's event came once and equals the offline one, and how long it took, ms. These are pure: the
numbers come from what was read back, none is assumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from kymo.deploy.children import Child, kymo_command, kymo_environment, stop
from kymo.streams.chunk import Chunk
from kymo.streams.errors import KymoError
from kymo.streams.events import Event, event_id, read_events
from kymo.streams.recording import Recording
from kymo.streams.settings import Settings
from kymo.streams.topics import Names
from kymo.streams.words import some

if TYPE_CHECKING:
    from kymo.processors.recipe.load import Recipe

PATIENCE_S = 20.0  # without a new event, once everything is sent
_SHOWN = 3  # examples of a complaint
Say = Callable[[str], None]


def perform(
    name: str, play: Callable[[Settings, Say], dict[str, Any]], as_json: bool, home: Path | None = None
) -> None:
    """Play an example on a broker of its own: what is being done is said with its second, on stderr where stdout is for JSON."""
    started = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - started:6.1f} s  {text}", err=as_json)

    with own_broker(name, lambda _: say("starting Kafka"), home=home) as settings:
        result = play(settings, say)
    result["seconds"] = round(time.monotonic() - started, 1)
    say("done" if result["ok"] else "something is wrong, see above")
    if as_json:
        click.echo(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


def run_example(command: click.Command) -> None:
    """Run an example's command; whatever goes wrong is a line and an exit status, as `kymo` has it."""
    try:
        command.main(standalone_mode=False)
    except (KymoError, click.ClickException) as failure:
        click.echo(f"kymo: {failure}", err=True)
        sys.exit(1)
    except click.Abort:
        sys.exit(130)


@contextlib.contextmanager
def own_broker(
    name: str, on_start: Callable[[Path], None], *, home: Path | None = None, keep: bool = False
) -> Iterator[Settings]:
    """A broker with its topics in a temporary home, or in that one, which then stays; nothing of the user's own deployment is used but
    Kafka's jars. Its settings are those of this process and of its children.

    Both are gone afterwards; with `keep` only where something went wrong.
    """
    from kymo.deploy import broker
    from kymo.streams.kafka.admin import ensure_topics

    jars, place = Settings.from_env().home / "kafka", home or Path(tempfile.mkdtemp(prefix=f"kymo-{name}-"))
    done = False
    try:
        on_start(place)
        settings = Settings(brokers=broker.start(place / "broker", jars_dir=jars).bootstrap, home=place, metrics_port=0)
        for variable in [variable for variable in os.environ if variable.startswith("KYMO_")]:
            del os.environ[variable]
        os.environ |= {"KYMO_HOME": str(place), "KYMO_BROKERS": settings.brokers, "KYMO_METRICS_PORT": "0"}
        ensure_topics(settings, Names(settings.prefix))
        yield settings
        done = True
    finally:
        if not (done and keep):
            broker.stop(place / "broker", timeout_s=10.0)
            if home is None:
                shutil.rmtree(place, ignore_errors=True)


def verb(*words: str) -> Child:
    return Child(words[0], kymo_command(*words), kymo_environment({}))


def run_verb(*words: str, quiet: bool = True) -> str:
    """Run a verb to its end, however long it takes; the last line that it printed."""
    command, env, pipe = kymo_command(*words), kymo_environment({}), subprocess.PIPE
    done = subprocess.run(command, env=env, stdout=pipe, stderr=pipe if quiet else None, text=True, check=False)
    if done.returncode:
        last = (done.stderr or ("it said nothing" if quiet else "see above")).splitlines()[-1]
        raise KymoError(f"kymo {' '.join(words[:2])} failed: {last}")
    return (done.stdout.splitlines() or [""])[-1]


def died(child: Child, how: str = "has ended") -> KymoError:
    """Say that a child has ended, how, and its last lines."""
    status = f" ({child.ended()})" if child.status is not None else ""
    return KymoError(f"the {child.name} {how}{status}: {' | '.join(list(child.tail)[-3:]) or 'it said nothing'}")


@contextlib.contextmanager
def ended_after(worker: Child, replay: Child) -> Iterator[None]:
    """End both where the block ends; only when the worker has ended in order is it certain that no event comes twice."""
    try:
        yield
    finally:
        stop([worker, replay])
    if worker.status:  # of one that had to be killed, too
        raise died(worker, "could not be ended in order")


def live_events(settings: Settings, worker: Child, replay: Child, count: int) -> Iterator[Event]:
    """Events as they come while a worker follows a replay, until all that are expected have come, or none comes any more."""
    ids: set[str] = set()
    heard = time.monotonic()

    def over() -> bool:
        nonlocal heard
        if len(ids) < count and worker.status is not None:
            raise died(worker, "ended before its time")
        if replay.status:
            raise died(replay)
        if replay.status is None:
            heard = time.monotonic()
        return replay.status == 0 and (len(ids) >= count or time.monotonic() - heard > PATIENCE_S)

    for event in read_events(settings, follow=True, stop=over):
        heard = time.monotonic()
        ids.add(event.id)
        yield event
        if over():
            return


def expected_ids(recordings: Iterable[Recording], recipe: Recipe) -> list[str]:
    """Ids of the events of all whole windows, by arithmetic alone.

    Windows of length L stand at multiples of the hop H: a piece of samples ``[a, b)`` holds those that begin at
    ``H*ceil(a/H)``, and on by H, as long as they end by b.
    """
    ids = []
    length, hop = recipe.window_length, recipe.window_hop
    for recording in recordings:
        streams = [s for s in recording.streams if not s.header.chain and recipe.matches(s.header.format) is None]
        for first, samples in streams[0].pieces if streams else ():
            begin = -(-first // hop) * hop
            starts = range(begin, first + len(samples) - length + 1, hop)
            heads = ("", *(head.name for head in recipe.heads))
            ids += [event_id(recipe.name, recording.session, start, head) for start in starts for head in heads]
    return ids


#: What may be wrong with a run's events, in words.
WRONG = {
    "missing": "did not come",
    "repeated": "came more than once",
    "unexpected": "belong to no window of the recordings",
    "different": "are not as offline",
    "offline_missing": "did not come offline",
    "offline_unexpected": "came offline but belong to no window",
}


def compare(expected: Sequence[str], online: Sequence[Event], offline: Sequence[Event]) -> dict[str, list[str]]:
    """Compare the topic with the ids that were expected, and with the offline run: what is wrong, and with which ids."""
    ids, counts = set(expected), Counter(event.id for event in online)
    reference = {event.id: event for event in offline}
    twins = [(event, reference[event.id]) for event in online if event.id in reference]
    return {
        "missing": [name for name in expected if not counts[name]],
        "repeated": [name for name, count in counts.items() if count > 1],
        "unexpected": [name for name in counts if name not in ids],
        "different": [f"{event.id} ({text})" for event, twin in twins if (text := _difference(event, twin))],
        "offline_missing": [name for name in expected if name not in reference],
        "offline_unexpected": [name for name in reference if name not in ids],
    }


def complaints(wrong: Mapping[str, Sequence[str]], expected: int) -> list[str]:
    """Give a line for each thing that is not as it must be; none if all is well."""
    lines = [] if expected else ["no event was expected: the recordings hold no window"]
    return lines + [
        f"{len(ids)} of {expected} events {WRONG[name]}: {some(ids, _SHOWN)}" for name, ids in wrong.items() if ids
    ]


def _difference(online: Event, offline: Event) -> str:
    """The first field that differs, in words; when an event was emitted is its own affair."""
    if replace(online, emitted_ns=0).to_json() == replace(offline, emitted_ns=0).to_json():
        return ""
    ours, theirs = online.to_dict(), offline.to_dict()
    name = next(name for name in ours if name != "emitted_ns" and repr(ours[name]) != repr(theirs[name]))
    return f"{name}: online {ours[name]}, offline {theirs[name]}"


class SentChunks:
    """When which samples were sent, from the chunks of the input topic."""

    def __init__(self) -> None:
        self.chunks = self.samples = 0
        self._ends: dict[str, list[tuple[int, int]]] = {}

    def add(self, chunk: Chunk, time_ms: int) -> None:
        """Note a chunk, in the topic's order, and the time of its record, Unix ms."""
        self.chunks += 1
        self.samples += chunk.count
        self._ends.setdefault(chunk.session, []).append((chunk.end_index, time_ms))

    @property
    def sessions(self) -> int:
        """How many sessions sent something."""
        return len(self._ends)

    def last_chunk_ms(self, event: Event, length: int) -> int | None:
        """When the chunk was sent that made an event's window of `length` samples whole, Unix ms."""
        ends = self._ends.get(event.session, [])
        at = bisect_left(ends, (event.start_index + length, 0))
        return ends[at][1] if at < len(ends) else None


def latency(
    events: Iterable[Event], length: int, sent: SentChunks, when_ms: Callable[[Event], float | None]
) -> dict[str, float] | None:
    """Percentiles of the time from the sending of each window's last chunk, ms to a tenth, and of how many events."""
    pairs = ((sent.last_chunk_ms(event, length), when_ms(event)) for event in events)
    delays = [when - since for since, when in pairs if since is not None and when is not None]
    if not delays:
        return None
    names, percentiles = ("p50", "p95", "p99", "max"), np.percentile(delays, [50, 95, 99, 100])
    return {name: round(float(p), 1) for name, p in zip(names, percentiles, strict=True)} | {"n": len(delays)}
