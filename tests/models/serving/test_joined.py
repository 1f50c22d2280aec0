"""Sessions of several inputs: crashes anywhere, and what happens where one of them falls silent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from joined_lab import FILTERED, JOINS, NAMES, SPARSE, JoinedLife, JoinedLog, campaign, joined_operator
from memory_kafka import MemoryKafka, Worker, until

from kymo.models.serving import handover, joined
from kymo.models.serving.joined import decisions_from_json, decisions_to_json
from kymo.models.serving.partition import Limits
from kymo.processors.chain import Chain
from kymo.processors.join import Decision
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import MessageError


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes_anywhere(seed: int) -> None:
    campaign(seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes_anywhere_with_irregular_inputs(seed: int) -> None:
    campaign(seed, joins=SPARSE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_crashes_anywhere_with_filters_in_the_branches(seed: int) -> None:
    campaign(seed, joins=FILTERED)


NEEDED = [
    ("durable", 11),
    ("caught up", 32),
    ("reopen", 41),
    ("floor", 1),
    ("wake", 7),
    ("origin", 7),
    ("idle", 0),
    ("ends", 0),
    ("waiting", 0),
]


@pytest.mark.parametrize(("rule", "seed"), NEEDED)
def test_each_rule_is_needed(rule: str, seed: int) -> None:
    campaign(seed)
    with pytest.raises(AssertionError):
        campaign(seed, rule)


@pytest.mark.chaos
@pytest.mark.timeout(20_000)
@settings(max_examples=20_000, deadline=None)
@given(st.integers(0, 2**64))
def test_crashes_anywhere_at_length(seed: int) -> None:
    campaign(seed, joins=[*JOINS, *SPARSE])


def lives_of(*handed: Decision, chunks: Sequence[Chunk] = ()) -> tuple[JoinedLife, JoinedLog]:
    """A worker that took over what an earlier life had decided of session `s`."""
    log = JoinedLog(
        {"a": list(chunks), "b": []},
        visible={"a": len(chunks)},
        decisions={"s": list(handed)} if handed else {},
        topics={"a": "a", "b": "b"},
    )
    return JoinedLife(log, Chain((JOINS[0], Windows(6, 3))), [0.0], Limits()), log


def test_an_input_that_never_came_is_waited_for_in_vain_whatever_is_stored_meanwhile() -> None:
    header = Header("s", 0, JOINS[0].branches[0].raw)
    chunks = [Chunk(header, i, np.ones((10, 1), np.float32)) for i in range(0, 400, 10)]
    with mock.patch.object(joined, "SNAPSHOT_S", 0.1):  # shorter than the lateness
        log = JoinedLog({"a": chunks, "b": []}, topics={"a": "a", "b": "b"})
        clock = [0.0]
        life = JoinedLife(log, Chain((JOINS[0], Windows(6, 3))), clock, Limits())
        for number in range(1, 21):
            log.visible = {"a": number}
            life.finish()
            clock[0] += 0.2
            life.decide(False)
        life.finish()
    assert log.decisions["s"][0] == Decision("b", 0, behind=5)
    assert len(log.events) > 50


def test_decisions_of_another_join_are_passed_over() -> None:
    chain = Chain((JOINS[0], Windows(6, 3)))
    made = decisions_to_json([Decision("b", 3, 5), Decision("a", 9, behind=2)], chain)
    assert decisions_from_json(made, Chain((JOINS[0], Windows(8, 4)))) == [
        Decision("b", 3, 5),
        Decision("a", 9, behind=2),
    ]
    assert decisions_from_json(made, Chain((replace(JOINS[0], rate="5"), Windows(6, 3)))) == []
    with pytest.raises(MessageError, match="no decisions"):
        decisions_from_json(b'{"join": 1}', chain)


@pytest.mark.parametrize("most", [None, 100])  # bytes of a snapshot: none is small enough
def test_an_input_dies_and_returns_while_workers_come_and_go(most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "BYTES_MAX", most or handover.BYTES_MAX)
    monkeypatch.setattr(joined, "SNAPSHOT_THINGS", 5)
    spec, codec = JOINS[0], ChunkCodec()
    chain, headers = Chain((spec, Windows(6, 3))), [Header("s", 0, b.raw) for b in spec.branches]
    data = [np.random.default_rng(i).standard_normal((400, 1)).astype(np.float32) for i in range(2)]
    chunks = [[Chunk(h, i, d[i : i + 5]) for i in range(0, 400, 5)] for h, d in zip(headers, data, strict=True)]
    silent = range(20, 30)  # chunks of `b` that never come

    async def work() -> None:
        kafka = MemoryKafka()
        inputs = [TopicPartition(f"t.{b.stream}", 0) for b in spec.branches]
        worker = Worker(kafka, joined_operator(spec), NAMES)
        worker.start(*inputs)
        lines = list[str]()
        for number in range(80):
            for tp, items in zip(inputs, chunks, strict=True):
                if tp is inputs[0] or number not in silent:
                    kafka.append(tp.topic, 0, b"s", codec.encode(items[number]))
            if number == 29:  # nobody waits for `b` any more
                await until(
                    lambda: b"decisions" in b"".join(r.key for r in kafka.logs[TopicPartition(NAMES.of("state"), 0)])
                )
            if number % 12 == 11:
                await worker.agent.commit()
                await worker.stop()
                lines += worker.lines
                worker = Worker(kafka, joined_operator(spec), NAMES)
                worker.start(*inputs)
            await asyncio.sleep(0.02)
        for tp, items in zip(inputs, chunks, strict=True):
            kafka.append(
                tp.topic, 0, b"s", codec.encode(replace(items[-1], first_index=400, data=items[-1].data[:0], end=True))
            )
        await until(lambda: any(json.loads(e)["start_index"] == 393 for e in kafka.values(NAMES.of("events"))))
        await worker.stop()
        assert worker.failures == []
        stored = [r.value for r in kafka.logs[TopicPartition(NAMES.of("state"), 0)] if b".decisions" in r.key]
        decided = decisions_from_json(stored[-1], chain)
        stage = chain.build()
        windows = [w for decision in decided for w in stage.decide(decision)]
        windows += [w for number in range(80) for c in chunks[0][number : number + 1] for w in stage.push(c)]
        windows += [w for number in range(80) if number not in silent for w in stage.push(chunks[1][number])]
        for header in headers:
            windows += stage.push(Chunk(header, 400, np.empty((0, 1), np.float32), None, True))
        wanted = {w.start_index: w.data.tobytes().hex() for w in [*windows, *stage.flush()]}
        events = [json.loads(e) for e in kafka.values(NAMES.of("events"))]
        assert len(events) == len({e["start_index"] for e in events})
        assert {e["start_index"]: e["holds"] for e in events} == wanted
        assert any(decision.stop is None for decision in decided)
        assert (most is not None) == any("that a snapshot may have" in line for line in lines)
        of_b = [line for line in lines + worker.lines if line.startswith("two: input b of session s is ")]
        assert most is not None or of_b[:2] == [
            f"two: input b of session s is {what}" for what in ("silent, not waited for any more", "back")
        ]

    asyncio.run(work())
