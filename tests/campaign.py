"""The long campaign: random faults against real workers, a verdict on every event. In: faults, a seed. Out: what is wrong, after what.

python tests/campaign.py --faults 200 --seed 1 [--only KIND,KIND] [--log FILE]
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from campaign_faults import BEHIND, DECK, PACE, RARE, RARE_EVERY, CampaignFeed, Faults
from campaign_lab import PARTS, SLOW_MS, Bundle, CampaignLab, Log, Place, Worker
from fault_feed import Source
from fault_lab import await_that
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from kymo.models.bundle import load_bundle
from kymo.models.predict import Classifier
from kymo.models.run import run
from kymo.processors.recipe.load import load_recipe
from kymo.streams.kafka.client import client_arguments

_HOP = 8


class Watch(threading.Thread):
    """Reads until the lab is over; a broker that is away is waited for."""

    def __init__(self, lab: CampaignLab) -> None:
        super().__init__(name="watch", daemon=True)
        self._lab, self._next = lab, dict[int, int]()
        self._reached: dict[tuple[str, str], int] = {}
        self._seen: set[str] = set()
        self.count: Counter[str] = Counter()

    def run(self) -> None:
        while not self._lab.over.is_set():
            try:
                self._read()
            except (KafkaError, OSError):
                self._lab.over.wait(1)

    def _read(self) -> None:
        topic, settings = self._lab.names.of("events"), self._lab.settings
        places = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer = KafkaConsumer(**client_arguments(settings), group_id=None, metrics_enabled=False)
        try:
            consumer.assign(places)
            for place in places:
                consumer.seek(place, self._next.get(place.partition, 0))
            while not self._lab.over.is_set():
                for place, records in consumer.poll(500).items():
                    for record in records:
                        self._next[place.partition] = record.offset + 1
                        self._take(record.value, place.partition)
        finally:
            consumer.close()

    def _take(self, value: bytes, partition: int) -> None:
        try:
            event = json.loads(value)
            recipe, key = event["recipe"], (event["recipe"], event["session"])
            if recipe not in PARTS:
                return
            if event["id"] in self._seen:
                self._lab.log("doubled", f"{event['id']} in partition {partition} by {event['bundle'][-6:]}")
            self._seen.add(event["id"])
            self._reached[key] = max(self._reached.get(key, 0), event["start_index"])
            self.count[recipe] += 1
        except (ValueError, TypeError, KeyError, RecursionError):
            return

    def behind(self, feed: CampaignFeed) -> int:
        """Windows that the slower recipe has yet to classify, about; of sessions that go on."""
        live = [(source.name, source.at) for source in feed.live]
        return max(
            sum(max(0, at - self._reached.get((recipe, name), 0)) for name, at in live) // _HOP for recipe in PARTS
        )


PROGRESS_S = 90.0


class Campaign(Faults):
    """One campaign."""

    def __init__(self, lab: CampaignLab, seed: int, deck: dict[str, int]) -> None:
        super().__init__(lab, seed)
        self.deck = deck
        self.done: Counter[str] = Counter()
        self._cards: list[str] = []
        self._due: dict[tuple[str, str], float] = {}
        self._rejected = lab.ends("rejected")
        self.watch = Watch(lab)
        self._accounted, self._events = set[str](), 0

    def run(self, faults: int, pause_s: float = 10.0) -> int:
        """Do so many faults, then wait for what must be there; gives the number of events."""
        for recipe, parts in PARTS.items():
            for roles in parts:
                self.lab.start(recipe, roles)
        self.lab.start("lab", PARTS["lab"][0], sleeps=True)
        self.feed.start()
        self.watch.start()
        self._progress("at the start")
        for number in range(1, faults + 1):
            name = RARE if number % RARE_EVERY == 0 else self._card()
            self.done[name] += 1
            self.log("note", f"fault {number}: {name}")
            getattr(self, "do_" + name.replace("-", "_"))()
            self.wait(self.pick.uniform(0.5, pause_s))
            if number % 5 == 0:
                self._progress(f"after fault {number}, {name}")
        self.account()
        self._end()
        return self._events

    def _card(self) -> str:
        if not self._cards:
            self._cards = [name for name, count in self.deck.items() for _ in range(count)]
            self.pick.shuffle(self._cards)
        return self._cards.pop()

    def wait(self, seconds: float) -> None:
        """Let time go by; do what is due, look after the workers and the pace."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            now = time.monotonic()
            for entry in [entry for entry in self.later if entry[0] <= now]:
                self.later.remove(entry)
                entry[1]()
            self.lab.look_after()
            self._fill_up()
            self._set_pace()
            time.sleep(0.1)

    def _fill_up(self) -> None:
        """A role that nobody plays any more gets a worker, after a while."""
        now = time.monotonic()
        for recipe, parts in PARTS.items():
            for roles in parts:
                if self.lab.living(recipe, roles):
                    self._due.pop((recipe, roles), None)
                elif now >= self._due.setdefault((recipe, roles), now + self.pick.uniform(0, 3)):
                    self.start(recipe, roles)

    def _set_pace(self) -> None:
        assert self.feed.failure is None, self.feed.failure
        slow = max(bundle.slow_ms for bundle in self.lab.champion.values())
        self.feed.pace = PACE[slow]
        if not self.quiet:
            self.feed.held = self.watch.behind(self.feed) > BEHIND[slow]

    def _progress(self, when: str) -> None:
        """Events of both recipes come, or all workers are started anew and it is told."""
        before, until = self.watch.count.copy(), time.monotonic() + PROGRESS_S
        latest = before
        while any(self.watch.count[recipe] == before[recipe] for recipe in PARTS):
            self.wait(0.5)
            if (
                self.feed.held and self.watch.count != latest
            ):  # the quick recipe has nothing to do until the slow one has caught up
                latest, until = self.watch.count.copy(), time.monotonic() + PROGRESS_S
            if time.monotonic() > until:
                still = [recipe for recipe in PARTS if self.watch.count[recipe] == before[recipe]]
                states = " || ".join(self._state(worker) for worker in self.lab.living())
                went = self.log.before(time.time(), PROGRESS_S + 30)
                self.log(
                    "wrong", f"no event of {still} for {PROGRESS_S:.0f} s {when}; {went}; {self.feed.state()}; {states}"
                )
                for worker in self.lab.living():
                    self.kill(worker)
                return

    def _state(self, worker: Worker) -> str:
        stands = " (stopped)" if worker.stopped_s else ""
        answers = f"livez {worker.answer('livez')} readyz {worker.answer('readyz')}"
        return f"{worker.child.name}{stands} {answers}: {self.lab.last_lines(worker)}"

    def account(self) -> None:
        """End all sessions, wait for their events, and hold them against what they must be."""
        for worker in self.lab.living():
            worker.go_on()
        self.later.clear()
        self.quiet = True
        self.feed.end_sessions()
        sources = [s for s in self.feed.sources if s.ended and s.name not in self._accounted]
        self._accounted |= {source.name for source in sources}
        self.log("note", f"accounting for {len(sources)} sessions")
        self._events += account(self.lab, self.feed, sources, self.wait)
        rejections(self.lab, self.poison, self._rejected)
        self.poison, self._rejected = {}, self.lab.ends("rejected")

    def _end(self) -> None:
        for worker in self.lab.living():
            self.tell(worker)
        self.later.clear()
        await_that(lambda: self.lab.look_after() or all(w.seen for w in self.lab.all), "the workers' end")


def campaign(folder: Path, jars: Path, faults: int, seed: int, **options: object) -> tuple[Log, int]:
    deck = options.get("deck") or DECK
    log = Log(Path(str(options.get("log") or folder / "campaign.log")), bool(options.get("show")))
    with CampaignLab(folder, jars, f"campaign{seed}", log) as lab:
        made = Campaign(lab, seed, dict(deck))  # type: ignore[call-overload]
        events = made.run(faults, float(str(options.get("pause_s", 10.0))))
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(made.done.items()))
    log(
        "note",
        f"{faults} faults ({kinds}), seed {seed}, models of {SLOW_MS['lab']} ms: {events} events, {len(log.of('wrong'))} findings",
    )
    return log, events


@click.command()
@click.option("--faults", default=200)
@click.option("--seed", default=1)
@click.option("--only", default="", help="Kinds of faults, separated by commas.")
@click.option("--log", default="", help="Where everything goes that was said and done.")
def main(faults: int, seed: int, only: str, log: str) -> None:
    from kymo.streams.settings import Settings

    jars, deck = (
        Settings.from_env().home / "kafka",
        {name: DECK.get(name, 1) for name in only.split(",") if name} or DECK,
    )
    with tempfile.TemporaryDirectory(prefix="kymo-campaign-") as folder:
        found, _ = campaign(Path(folder), jars, faults, seed, deck=deck, log=log, show=True)
    raise SystemExit(1 if found.of("wrong") else 0)


if __name__ == "__main__":
    main()


TOLERANCE = 1e-5


QUIET_S = 60.0


_APART_S = 5.0  # wrong things that are further apart have another cause


#: Members of an event that are compared by more than equality, or say nothing of the window.
_OTHERWISE = ("id", "bundle", "label", "probability", "probabilities", "emitted_ns")


Event = dict[str, Any]


def expected(lab: CampaignLab, sources: Iterable[Source], bundle: Bundle) -> dict[str, Event]:
    """By id, the events of an undisturbed run with a bundle's quick twin."""
    recipe = load_recipe(lab.recipes[bundle.recipe])
    classifier = Classifier.for_recipe(load_bundle(bundle.twin), recipe)
    recordings = [source.recording() for source in sources if source.taken]
    return {e.id: json.loads(e.to_json()) for e in run(recipe, recordings, classifier)}


def equal(event: Event, wanted: Event | None) -> bool:
    """Label and window equal, probabilities within the tolerance."""
    if wanted is None or event["label"] != wanted["label"]:
        return False
    ours, theirs = ({"": e["probability"]} | e["probabilities"] for e in (event, wanted))
    near = ours.keys() == theirs.keys() and all(abs(ours[key] - theirs[key]) <= TOLERANCE for key in ours)
    rest = [{name: value for name, value in e.items() if name not in _OTHERWISE} for e in (event, wanted)]
    return near and rest[0] == rest[1]


def _events(lab: CampaignLab) -> dict[str, list[tuple[float, Event]]]:
    """Of the recipes' own, by id: the time of sending (s) and the event; what strangers put there is left out."""
    found = defaultdict(list)
    for record in lab.records("events"):
        try:
            event = json.loads(record.value or b"")
            if event["recipe"] in PARTS:
                found[event["id"]].append((record.timestamp / 1000, event))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found


def _settle(lab: CampaignLab, due: int, wait: Callable[[float], object]) -> None:
    """Wait until so many events are there, or none has come for a while; what comes too much, comes soon."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < (3 if last >= due else QUIET_S):
        wait(0.2)
        if (now := sum(lab.ends().values())) != last:
            last, since = now, time.monotonic()


def account(lab: CampaignLab, feed: CampaignFeed, sources: list[Source], wait: Callable[[float], object]) -> int:
    """Hold the events of ended sessions against what they must be, once no more come. Gives their number."""
    every = {bundle.id: expected(lab, sources, bundle) for bundle in lab.promoted.values()}
    need: set[str] = set()
    for name in PARTS:
        need |= set.intersection(*(set(found) for id_, found in every.items() if id_.startswith(f"{name}@")))
    _settle(lab, lab.due + len(need), wait)
    lab.due = sum(lab.ends().values())
    sessions = {source.name for source in sources}
    seen = {id_: found for id_, found in _events(lab).items() if str(found[0][1].get("session")) in sessions}
    wrong: dict[str, list[tuple[float, str]]] = {"missing": [], "doubled": [], "different": [], "not expected": []}
    wrong["missing"] = [(_sent_s(feed, id_, every), id_) for id_ in need - seen.keys()]
    possible = set().union(*every.values())
    for id_, found in seen.items():
        if id_ not in possible:
            wrong["not expected"] += [(at, id_) for at, _ in found]
            continue
        wrong["doubled"] += [(at, f"{id_} by {event['bundle'][-6:]}") for at, event in found[1:]]
        wrong["different"] += [
            (at, _apart(event, wanted))
            for at, event in found
            if not equal(event, wanted := (every.get(event["bundle"]) or {}).get(id_))
        ]
    for what, entries in wrong.items():
        for cluster in _clusters(sorted(entries)):
            first_s, last_s = cluster[0][0], cluster[-1][0]
            lab.log(
                "wrong",
                f"{len(cluster)} of {len(need)} events {what}, {'input sent' if what == 'missing' else 'published'} "
                f"{first_s - lab.log.started_s:.1f} to {last_s - lab.log.started_s:.1f} s, such as {cluster[0][1]}; "
                f"before the first: {lab.log.before(first_s)}",
            )
    return len(need)


def _apart(event: Event, wanted: Event | None) -> str:
    """What came, and what should have."""
    if wanted is None:
        return f"{event['id']} by {event['bundle']}, which was never promoted or gives no such window"
    members = {name: (value, wanted[name]) for name, value in event.items() if value != wanted[name]}
    return f"{event['id']} by {event['bundle']} (came, expected): {members}"


def _sent_s(feed: CampaignFeed, id_: str, every: dict[str, dict[str, Event]]) -> float:
    """When the input of an event was sent: the last chunk that begins before its window ends."""
    event = next(found[id_] for found in every.values() if id_ in found)
    end = event["start_index"] + (event["end_ns"] - event["start_ns"]) // 10_000_000
    sent = [at for (session, first), at in feed.sent_at_s.items() if session == event["session"] and first < end]
    return max(sent, default=0.0)


def _clusters(entries: list[tuple[float, str]]) -> list[list[tuple[float, str]]]:
    """Entries that are near each other in time."""
    out: list[list[tuple[float, str]]] = []
    for entry in entries:
        if not out or entry[0] - out[-1][-1][0] > _APART_S:
            out.append([])
        out[-1].append(entry)
    return out


def rejections(lab: CampaignLab, sent: dict[Place, bool], since: dict[int, int]) -> None:
    """Every odd record that must be was rejected, by each reader once at most, and none that is in order."""
    topic = lab.names.of("rejected")
    places = [TopicPartition(topic, number) for number in since]
    consumer = KafkaConsumer(
        **client_arguments(lab.settings), group_id=None, max_partition_fetch_bytes=2**23, metrics_enabled=False
    )
    times: Counter[tuple[str, int, int, str]] = Counter()
    try:
        consumer.assign(places)
        ends = consumer.end_offsets(places)
        for place in places:
            consumer.seek(place, since[place.partition])
        while any(consumer.position(place) < end for place, end in ends.items()):
            for records in consumer.poll(1000).values():
                for record in records:
                    about = {name: value.decode() for name, value in record.headers}
                    where = (about["topic"], int(about["partition"]), int(about["offset"]))
                    times[*where, about.get("recipe", "")] += 1
    finally:
        consumer.close()
    readers = sorted({recipe for *_, recipe in times})
    never = [place for place, must in sent.items() if must and not any(times[*place, reader] for reader in readers)]
    twice = [place for place, count in times.items() if count > 1]
    strange = [place for place in times if place[0].endswith(".sensor") and place[:3] not in sent]
    for what, found in (("never rejected", never), ("rejected more than once", twice), ("rejected, good", strange)):
        if found:
            lab.log("wrong", f"{len(found)} of {len(sent)} odd records {what}, such as {found[:3]} (readers {readers})")
    lab.log("note", f"{len(sent)} odd records, rejected {sum(times.values())} times by {readers}")
