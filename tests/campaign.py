"""The long campaign: random faults against real workers, a verdict on every event. In: faults, a seed. Out: what is wrong, after what.

python tests/campaign.py --faults 200 --seed 1 [--only KIND,KIND] [--log FILE]
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import click
from campaign_faults import BEHIND, DECK, PACE, RARE, RARE_EVERY, CampaignFeed, Faults
from campaign_lab import PARTS, SLOW_MS, CampaignLab, Log, Worker
from campaign_verdict import account, rejections
from fault_lab import await_that
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from kymo.streams.kafka.client import client_arguments

_HOP = 8


class Watch(threading.Thread):
    """Reads until the lab is over; a broker that is away is waited for.

    Attributes
    ----------
    count : Counter
        Events, by recipe.
    """

    def __init__(self, lab: CampaignLab) -> None:
        super().__init__(name="watch", daemon=True)
        self._lab, self._next = lab, dict[int, int]()
        self._reached: dict[tuple[str, str], int] = {}
        self._seen: set[str] = set()
        self.count: Counter[str] = Counter()

    def run(self) -> None:
        """Read."""
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
    """One campaign.

    Parameters
    ----------
    lab : CampaignLab
        Where.
    seed : int
        Of everything random.
    deck : dict of str to int
        Kinds of faults with their numbers.
    """

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
    """Run one; gives its log and the number of events."""
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
    """Run a campaign against the Kymo on the path."""
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
