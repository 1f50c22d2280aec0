"""The faults and the input of the long campaign. In: a lab with workers, a pace. Out: hurt workers and brokers, and a line in the log
for each thing done; sessions that are recorded badly, ended and begun again when it is asked for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from campaign_lab import PARTS, Bundle, CampaignLab, Place, Worker
from fault_feed import FLUSH_S, Feed, Source
from fault_lab import Lab, await_that
from kafka.admin import KafkaAdminClient

from kymo.streams.kafka.admin import ensure_topics
from kymo.streams.kafka.client import client_arguments
from kymo.streams.kafka.publish import Publisher


class CampaignFeed(Feed):
    """A feed whose pace can be changed, and whose sessions can all be ended at once."""

    def __init__(self, lab: Lab, seed: int) -> None:
        super().__init__(lab, seed, ending=0.01)
        self.pace, self.held, self.burst = 5.0, False, 0  # chunks a second; nothing; so many more, at once
        self.publisher: Publisher | None = None
        self._renew, self.sent_at_s = False, dict[tuple[str, int], float]()

    def run(self) -> None:
        try:
            while not self._end.is_set():
                with Publisher(self.lab.settings, self.lab.names) as publisher:
                    self._renew, self.publisher = False, publisher
                    self._publish(publisher)
        except BaseException as error:
            self.failure = error

    def _publish(self, publisher: Publisher) -> None:
        while not self._end.wait(1 / self.pace) and not self._renew:
            for _ in range(0 if self.held else 1 + self.burst):
                self._step(publisher)
            self.burst = 0
        for place, source in enumerate(self.live):
            if source.sent:
                self._send(publisher, [source.end()])
                self.live[place] = Source(self.lab.next_name(source.name), random.Random(self.pick.randrange(2**32)))
                self.sources.append(self.live[place])
        publisher.flush(FLUSH_S)

    def _send(self, publisher: Publisher, chunks: list[Any]) -> None:
        for chunk in chunks:
            self.sent_at_s.setdefault((chunk.session, chunk.first_index), time.time())
        super()._send(publisher, chunks)

    def state(self) -> str:
        counts = (
            f"{self.publisher.acknowledged} of {self.publisher.sent} acknowledged" if self.publisher else "nothing sent"
        )
        return f"the feed: {'held, ' if self.held else ''}{counts}, failure {self.failure}"

    def end_sessions(self) -> None:
        """End every session, begin new ones under a new connection; nothing is sent until `held` is taken back."""
        self.held = self._renew = True
        await_that(lambda: not self._renew or not self.is_alive(), "the end of all sessions")
        assert self.failure is None, self.failure


#: Kinds of faults, and how often each is in the deck that they are drawn from.
DECK = {
    "kill": 4,
    "kill-while-starting": 1,
    "kill-all": 1,
    "rolling-update": 4,
    "stop": 3,
    "sleep": 2,
    "broker-killed": 1,
    "broker-stopped": 1,
    "broker-and-worker-killed": 1,
    "join": 2,
    "leave": 2,
    "end-while-starting": 1,
    "promote-same-kind": 2,
    "promote-other-kind": 3,
    "other-user": 2,
    "mixed-roles": 2,
    "poison": 2,
    "poison-everywhere": 2,
    "burst": 2,
}


RARE = "topic-made-again"  # once in so many faults


RARE_EVERY = 40


PACE = {
    0: 8.0,
    50: 12.0,
    500: 2.0,
}  # chunks a second, by the slower champion's ms: more than it can do, a chunk has 4 windows


MOST = {"lab": 3, "split": 2}  # workers of a role


BEHIND = {0: 1600, 50: 300, 500: 24}  # windows behind, at which the feed waits: what is done takes some seconds


def named(bundle: Bundle) -> str:
    return f"{bundle.recipe} {'raw' if bundle.raw else 'spectra'} {bundle.slow_ms} ms ({bundle.id[-6:]})"


class Faults:
    """What can be done to a lab."""

    def __init__(self, lab: CampaignLab, seed: int) -> None:
        self.lab, self.log, self.pick = lab, lab.log, random.Random(seed)
        self.feed = CampaignFeed(lab, seed)
        self.later: list[tuple[float, Callable[[], object]]] = []  # when, and what
        self.poison: dict[Place, bool] = {}  # odd records, and whether each must be rejected
        self.quiet = False  # nothing is to be sent

    def wait(self, seconds: float) -> None:
        raise NotImplementedError

    def account(self) -> None:
        raise NotImplementedError

    # what faults are made of

    def start(self, recipe: str, roles: str, *, other_user: bool = False, sleeps: bool | None = None) -> Worker:
        sleeps = self.pick.random() < 0.25 if sleeps is None else sleeps
        worker = self.lab.start(recipe, roles, other_user=other_user, sleeps=sleeps)
        self.log("fault", f"{worker.child.name} starts")
        return worker

    def some(self, workers: Sequence[Worker] | None = None, still: bool = True) -> Worker | None:
        """One that runs, oftener one of `lab`."""
        found = [w for w in (self.lab.living() if workers is None else workers) if still or w.stopped_s is None]
        return self.pick.choices(found, [2 if w.recipe == "lab" else 1 for w in found])[0] if found else None

    def kill(self, worker: Worker) -> None:
        self.log("fault", f"kill -9 of {worker.child.name}{' (stopped)' if worker.stopped_s else ''}")
        worker.killed = True
        worker.child.send(9)
        worker.go_on()

    def tell(self, worker: Worker) -> None:
        self.wait(
            max(0.0, worker.started_s + 1 - time.time())
        )  # before that no line of ours has run that could heed it
        if not worker.lives:
            return
        self.log("fault", f"SIGTERM to {worker.child.name}")
        worker.told_s = time.time()
        worker.child.send(15)

    def stop(self, worker: Worker | None) -> None:
        if worker is None:
            return
        seconds = self.pick.uniform(1, 20)
        self.log("fault", f"SIGSTOP of {worker.child.name} for {seconds:.1f} s")
        worker.stop()

        def go_on() -> None:
            if worker.stopped_s is not None:
                worker.go_on()
                self.log("fault", f"SIGCONT of {worker.child.name}")

        self.later.append((time.monotonic() + seconds, go_on))

    def promote(self, other_kind: bool) -> None:
        recipe = self.pick.choice(["lab", "lab", "split"])
        now = self.lab.champion[recipe]
        choice = [
            b for b in self.lab.bundles if b.recipe == recipe and (b.raw != now.raw) == other_kind and b is not now
        ]
        bundle = self.pick.choices(choice, [{0: 2, 50: 4, 500: 1}[b.slow_ms] for b in choice])[0]
        self.log("fault", f"promotion of {named(bundle)} after {named(now)}")
        self.lab.promote(bundle)

    # the faults

    def do_kill(self) -> None:
        if worker := self.some():
            self.kill(worker)

    def do_kill_while_starting(self) -> None:
        worker = self.start("lab", PARTS["lab"][0])
        self.wait(self.pick.uniform(0.5, 6))
        if worker.lives:
            self.kill(worker)

    def do_kill_all(self) -> None:
        recipe = self.pick.choice(list(PARTS))
        for worker in self.lab.living(recipe):
            self.kill(worker)

    def do_rolling_update(self) -> None:
        old = self.some(still=False)
        if old is None:
            return
        self.start(old.recipe, old.roles)
        self.wait(self.pick.uniform(0, 6))
        if old.lives and old.stopped_s is None:
            self.tell(old)

    def do_stop(self) -> None:
        self.stop(self.some([w for w in self.lab.living() if w.clock is None], still=False))

    def do_sleep(self) -> None:
        asleep = [w for w in self.lab.living() if w.clock is not None and w.stopped_s is None]
        if not asleep:
            self.start("lab", PARTS["lab"][0], sleeps=True)
            self.wait(6)
            asleep = [w for w in self.lab.living() if w.clock is not None and w.stopped_s is None]
        self.stop(self.some(asleep))

    def do_broker_killed(self, worker: Worker | None = None) -> None:
        away_s = self.pick.uniform(0, 6)
        self.log("fault", f"kill -9 of the broker, started again {away_s:.1f} s later")
        if worker is not None:
            self.kill(worker)
        self.lab.kill_broker(away_s)
        self.log("fault", "the broker is back")

    def do_broker_and_worker_killed(self) -> None:
        self.do_broker_killed(self.some())

    def do_broker_stopped(self) -> None:
        seconds = self.pick.uniform(1, 10)
        self.log("fault", f"SIGSTOP of the broker for {seconds:.1f} s")
        self.lab.stop_broker(seconds)
        self.log("fault", "SIGCONT of the broker")

    def do_join(self) -> None:
        recipe = self.pick.choice(["lab", "lab", "split"])
        roles = self.pick.choice(PARTS[recipe])
        if len(self.lab.living(recipe, roles)) < MOST[recipe]:
            self.start(recipe, roles)
        else:
            self.do_leave()

    def do_leave(self) -> None:
        if worker := self.some(still=False):
            self.tell(worker)

    def do_end_while_starting(self) -> None:
        worker = self.start("lab", PARTS["lab"][0])
        self.wait(self.pick.uniform(1.0, 5))
        if worker.lives:
            self.tell(worker)

    def do_promote_same_kind(self) -> None:
        self.promote(False)

    def do_promote_other_kind(self) -> None:
        self.promote(True)

    def do_other_user(self) -> None:
        theirs = [w for w in self.lab.living() if not w.own]
        if theirs:
            self.tell(theirs[0]) if theirs[0].stopped_s is None else self.kill(theirs[0])
        else:
            self.start("lab", PARTS["lab"][0], other_user=True)

    def do_mixed_roles(self) -> None:
        """One that reads derived chunks, beside those that make them in memory."""
        if theirs := self.lab.living("lab", "model"):
            self.tell(theirs[0]) if theirs[0].stopped_s is None else self.kill(theirs[0])
        else:
            self.start("lab", "model")

    def do_poison(self) -> None:
        number = self.pick.randint(10, 60)
        self.log("fault", f"{number} odd records on the input")
        self.poison |= dict.fromkeys(self.lab.send_fuzzed(self.pick.randrange(2**32), number), True)

    def do_poison_everywhere(self) -> None:
        number = self.pick.randint(20, 200)
        self.log("fault", f"{number} odd records on all topics")
        self.poison |= self.lab.send_odd(self.pick, number)

    def do_burst(self) -> None:
        slow = max(bundle.slow_ms for bundle in self.lab.champion.values())
        self.feed.burst = BEHIND[slow] // 5
        self.log("fault", f"{self.feed.burst} chunks at once")

    def do_topic_made_again(self) -> None:
        """At a quiet point: all sessions ended, all their events there."""
        self.account()
        stopped = self.pick.random() < 0.5
        if stopped:
            for worker in self.lab.living():
                self.tell(worker)
            await_that(
                lambda: self.lab.look_after() or not any(w.child.status is None for w in self.lab.all),
                "the workers' end",
            )
        topic = self.lab.names.of("sensor")
        self.log("fault", f"{topic} deleted, made again, workers {'stopped' if stopped else 'running'}")
        with KafkaAdminClient(**client_arguments(self.lab.settings)) as admin:
            admin.delete_topics([topic])
            await_that(lambda: topic not in admin.list_topics(), "the topic's end")
        ensure_topics(self.lab.settings, self.lab.names)
        self.quiet = False
