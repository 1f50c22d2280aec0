"""Bundles whose windows are of another kind take over while sessions are open: no window lost, none twice, none different."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import pytest
from crash_lab import BUNDLE, LIMITS, STEPS, Life, Log, act, chunk, recorded, settle
from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from kymo.models.bundle import raw_chain
from kymo.models.serving.outputs import ENDLESS, Events, window_kinds
from kymo.models.serving.partition import Limits, Partition, Pending
from kymo.models.serving.snapshots import SessionSnapshot
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.steps.conditioning import Filter
from kymo.processors.steps.resample import Resample
from kymo.processors.steps.spectrogram import Spectrogram
from kymo.processors.windows import Windows
from kymo.streams.chunk import Window, signal_format

FORMAT = signal_format("imu.left", ("x",), 10)
#: Chains with steps before their window; each has a raw one beside it.
CHAINS = {
    "abutting": Chain((Intake(), Spectrogram(nperseg=4, noverlap=2), Windows(8, 8))),
    "overlapping": Chain((Intake(), Spectrogram(nperseg=4, noverlap=2), Windows(8, 4))),
    "uncovered": Chain((Intake(), Spectrogram(nperseg=4, noverlap=1), Windows(9, 6))),
    "bridged": Chain((Intake(bridge=2, fill=4, max_missing=0.5), Spectrogram(nperseg=4, noverlap=2), Windows(10, 4))),
    "resampled": Chain((Intake(), Resample(up=1, down=2), Windows(8, 4))),
}


def judged(window: Window) -> bytes:
    return np.ascontiguousarray(window.data).tobytes() + repr((window.data.shape, window.missing)).encode()


@dataclass
class Pair:
    chains: tuple[Chain, Chain]
    now: int = 0
    outputs: Events = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = Events("", kinds=window_kinds(FORMAT, *self.chains))

    @property
    def chain(self) -> Chain:
        return self.chains[self.now]


class KindLife(Life):
    """A worker whose champion may be of either kind."""

    def __init__(self, log: Log, pair: Pair, clock: list[float], limits: Limits) -> None:
        self.pair, self._clock = pair, clock
        super().__init__(log, pair.chain, clock, limits)
        outputs = Events("", Fraction(1), log.memory, log.heads, pair.outputs.kinds)
        self.partition = Partition(0, pair.chain, lambda fmt: None, lambda: clock[0], limits, outputs)
        self.partition.load(log.left())

    def _judge(self, pending: Pending) -> None:
        window = pending.output
        if not pending.unacknowledged:
            self.partition.acknowledge(pending)
        else:
            self.judged.append((pending, (window.session, window.start_index, "", judged(window))))

    def exchange(self) -> KindLife:
        """As the agent does: what was published is committed, the rest forgotten, and taken up with the other chain."""
        self.hear(10**6)
        for topic, (offset, mark) in self.partition.committable().items():
            self.log.commits[topic] = (offset, mark)
        self.pair.now = 1 - self.pair.now
        return KindLife(self.log, self.pair, self._clock, self.partition.limits)


def undisturbed(log: Log, chain: Chain) -> dict[tuple[str, int], bytes]:
    """By one kind's chain alone."""
    found: dict[tuple[str, int], bytes] = {}
    for items in log.inputs.values():
        for name in {c.session for c in items}:
            mine = [c for c in items if c.session == name]
            stage = chain.build()
            for c in mine:
                if c.stream == mine[0].stream:
                    windows = stage.push(c) + (stage.flush() if c.end else [])
                    found |= {(name, w.start_index): judged(w) for w in windows}
    return found


def verdict(log: Log, pair: Pair) -> None:
    """What both kinds have is there once; what one has at most once; each as one of the kinds makes it."""
    both = none_lost(log, pair)
    for session, index, _, found in log.events:
        assert found in [kind[session, index] for kind in both if (session, index) in kind]


def none_lost(log: Log, pair: Pair) -> list[dict[tuple[str, int], bytes]]:
    both = [undisturbed(log, chain) for chain in pair.chains]
    times = Counter((session, index) for session, index, *_ in log.events)
    assert max(times.values(), default=1) == 1
    missing = (both[0].keys() & both[1].keys()) - times.keys()
    assert not missing, sorted(missing)
    return both


def finish(log: Log, pair: Pair, clock: list[float], limits: Limits) -> None:
    log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    KindLife(log, pair, clock, limits).finish()
    verdict(log, pair)
    before = len(log.events)
    KindLife(log, pair, clock, limits).finish()
    assert len(log.events) == before


def campaign(seed: int) -> None:
    pick = random.Random(seed)
    chain, log, limits, clock = CHAINS[pick.choice(sorted(CHAINS))], recorded(pick), pick.choice(LIMITS), [0.0]
    pair = Pair((chain, raw_chain(chain)), pick.randrange(2))
    log.memory = pick.choice([0, 0, 2, ENDLESS])
    log.large = pick.random() < 0.2
    if pick.random() < 0.5:
        log.visible = {topic: len(items) for topic, items in log.inputs.items()}
    life = KindLife(log, pair, clock, limits)
    for _ in range(pick.randint(1, 60)):
        if pick.random() < 0.15:
            note("exchange")
            life = life.exchange()
        name, most = pick.choice(STEPS)
        step, topic = (name, pick.randint(0 if "commit" in name else 1, most)), pick.choice(sorted(log.inputs))
        note(f"{step} {topic}")
        if not act(life, step, clock, topic):
            pair.now = pick.choice([pair.now, pair.now, 1 - pair.now])
            life = KindLife(log, pair, clock, limits)
    finish(log, pair, clock, limits)


@settings(max_examples=500, deadline=None)
@example(587_235_489)  # one that an earlier life had published, and a later one learned of by a snapshot alone
@example(169_340_083_207_684_822)
@example(4_043)  # a session that is read again gives a window of the other kind when more is committed than it has read
@example(102_540)  # published by the other kind of what a snapshot holds, and nothing comes behind it
@example(32_517)  # a window published before a crash, whose other kind becomes whole only with what came behind it
@given(st.integers(0, 2**32))
def test_exchanges_and_crashes_anywhere(seed: int) -> None:
    campaign(seed)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@settings(max_examples=50_000, deadline=None)
@given(st.integers(0, 2**64))
def test_exchanges_and_crashes_anywhere_at_length(seed: int) -> None:
    campaign(seed)


@pytest.mark.parametrize("name", sorted(CHAINS))
@pytest.mark.parametrize("first", [0, 1])
def test_an_exchange_between_any_two_chunks(name: str, first: int) -> None:
    items = [chunk("s", i, 3, i == 57) for i in range(0, 60, 3)]
    for at in range(1, len(items)):
        log, pair = Log({"a": items}, visible={"a": len(items)}), Pair((CHAINS[name], raw_chain(CHAINS[name])), first)
        life = KindLife(log, pair, [0.0], Limits())
        settle(life, "a", at)
        life = life.exchange()
        life.finish()
        verdict(log, pair)
        both = [undisturbed(log, chain) for chain in pair.chains]
        kinds = [both[first].get((s, i)) == found for s, i, _, found in log.events]
        assert kinds == sorted(kinds, reverse=True)  # first those of the one, then those of the other
        assert at > 8 or not all(kinds)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("limits", [Limits(), Limits(lag=0)], ids=["read again", "from snapshots"])
def test_a_filter_that_is_later_than_its_window_is_long_loses_none(first: int, limits: Limits) -> None:
    """With a memory that has no end: what follows the exchange is by a filter that begins there."""
    chain = Chain((Intake(), Filter(kind="highpass", lag_s=1.5), Windows(4, 2)))
    items = [chunk("s", i, 3, i == 117) for i in range(0, 120, 3)]
    for at in range(1, len(items)):
        log, pair = Log({"a": items}, visible={"a": at}), Pair((chain, raw_chain(chain)), first)
        life = KindLife(log, pair, [0.0], limits)
        settle(life, "a", at)
        life.commit()
        life = life.exchange()
        log.visible["a"] = len(items)
        life.finish()
        none_lost(log, pair)
        assert len(log.events) > 50


def test_a_window_published_before_two_restarts_stands_in_the_snapshot() -> None:
    log, clock = Log({"a": [chunk("s", 0, 8), chunk("s", 8, 8)]}, visible={"a": 1}), [0.0]
    pair = Pair((CHAINS["uncovered"], raw_chain(CHAINS["uncovered"])))  # whole with 7 samples, and with 9
    life = KindLife(log, pair, clock, Limits(quiet_s=5.0))
    life.read("a", 9)
    life.publish(9)
    assert [e[:2] for e in log.events] == [("s", 0)]
    pair.now = 1
    life = KindLife(log, pair, clock, Limits(quiet_s=5.0))
    life.read("a", 9)
    clock[0] = 9.0
    life.commit()
    assert set(log.state) == {"s"}
    KindLife(log, pair, clock, Limits(quiet_s=5.0)).commit()  # from here on no event is read back
    finish(log, pair, clock, Limits(quiet_s=5.0))


def test_a_chain_without_kinds_knows_what_another_one_published() -> None:
    log, chain = Log({"a": [chunk("s", 0, 8), chunk("s", 8, 8)]}, visible={"a": 1}), CHAINS["uncovered"]
    life = Life(log, chain, [0.0], Limits())
    life.read("a", 9)
    life.publish(9)
    life = Life(log, raw_chain(chain), [0.0], Limits())
    settle(life, "a", 9)
    log.visible["a"] = 2
    life.finish()
    assert [e[1] for e in log.events] == [0, 6]


def test_marks_in_a_snapshot_are_of_open_windows_alone() -> None:
    pair, items = (
        Pair((CHAINS["overlapping"], raw_chain(CHAINS["overlapping"]))),
        [chunk("s", i, 4) for i in range(0, 800, 4)],
    )
    log = Log({"a": items}, visible={"a": 200})
    life = KindLife(log, pair, [0.0], Limits())
    life.read("a", 200)
    life.publish(999)  # and crash: nothing is committed
    again = KindLife(log, pair, [0.0], Limits(lag=0))
    again.read("a", 20)
    ((_, make),) = again.partition.snapshots()
    assert make is not None
    assert len(log.events) > 190
    assert make().meta["published"] == [(76, "", BUNDLE)]


def test_recipes_without_steps_before_the_window_keep_nothing() -> None:
    chain = Chain((Intake(), Windows(8, 4)))
    assert window_kinds(FORMAT, chain, raw_chain(chain)) == ()


def test_a_snapshot_whose_members_are_odd_ends_no_life() -> None:
    log, pair = (
        Log({"a": [chunk("s", 0, 8), chunk("s", 8, 8)]}, visible={"a": 1}),
        Pair((CHAINS["overlapping"], raw_chain(CHAINS["overlapping"]))),
    )
    life = KindLife(log, pair, [0.0], Limits(lag=0))
    settle(life, "a", 1)
    life.commit()
    log.commits.clear()
    odd = SessionSnapshot.decode(log.state["s"])
    for published in ([7], [["x", 0]], "x"):
        log.state["s"] = replace(odd, meta={**odd.meta, "published": published, "given_to": "x"}).encode()
        log.visible["a"] = 2
        life = KindLife(log, pair, [0.0], Limits())
        life.read("a", 9)
        assert list(life.partition.damaged) == ["s"]


def test_a_snapshot_of_a_topic_that_was_made_again_is_not_stored_for_the_new_one() -> None:
    """Although events stand that it does not know of: its offsets are of the old topic."""
    pair, clock = Pair((CHAINS["overlapping"], raw_chain(CHAINS["overlapping"]))), [0.0]
    log = Log({"a": [chunk("s", 0, 9), chunk("s", 9, 3)]}, visible={"a": 1})
    life = KindLife(log, pair, clock, Limits())
    settle(life, "a", 1)
    clock[0] = 100.0
    life.commit()  # quiet, and so stored
    log.state["s"] = replace(SessionSnapshot.decode(log.state["s"]), topic_id="old").encode()
    log.visible["a"] = 2
    life.read("a", 1)
    life.publish(99)
    log.inputs, log.commits, log.visible = {"a": [chunk("t", 0, 4)]}, {}, {"a": 1}
    log.topic_ids = {"a": "new"}
    again = KindLife(log, pair, clock, Limits())
    again.commit()
    assert SessionSnapshot.decode(log.state["s"]).topic_id == "old"
    assert again.read("a", 9) == 1
