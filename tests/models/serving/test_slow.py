"""Slow steps: what comes out equals the step in line; in order; dropped by age, and counted; nothing twice; no process is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_kafka import MemoryKafka, Worker, until
from slow_lab import (
    BEHIND,
    DEADLY,
    HUNG,
    MADE_BY,
    NAMES,
    STUCK,
    WRONG,
    Pretended,
    Sluggish,
    described,
    model_operator,
    slow_chain,
    slow_operator,
)

from kymo.deploy.roles import BOTH, Deployment, Part, make_operator, roles_for
from kymo.models.serving.processes import Processes
from kymo.processors.chain import Chain
from kymo.processors.intake import Intake
from kymo.processors.recipe.load import parse_recipe
from kymo.processors.registry import STEPS
from kymo.processors.spec import Spec
from kymo.processors.windows import Windows
from kymo.streams.chunk import Chunk, Header, signal_format
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import FormatError, KymoError, RecipeError

INPUT, LONG_AGO_MS = "t.sensor", 10**12
CODEC = ChunkCodec()


def header(session: str, origin_ns: int = 10**18) -> Header:
    return Header(session, origin_ns, signal_format("imu", ("x",), 10))


def frames(session: str, values: Sequence[float], origin_ns: int = 10**18) -> list[Chunk]:
    """A chunk for each value, and an end mark."""
    head = header(session, origin_ns)
    made = [Chunk(head, i, np.array([[value]], np.float32)) for i, value in enumerate(values)]
    return [*made, Chunk(head, len(values), np.empty((0, 1), np.float32), None, True)]


def put(kafka: MemoryKafka, chunks: Sequence[Chunk], partition: int = 0, **more: Any) -> None:
    for chunk in chunks:
        kafka.append(INPUT, partition, chunk.session.encode(), CODEC.encode(chunk), **more)


def derived(kafka: MemoryKafka, session: str) -> list[Chunk]:
    return [chunk for value in kafka.values("t.pose") if (chunk := CODEC.decode(value)).session == session]


def in_line(spec: Spec, chunks: Sequence[Chunk]) -> list[bytes]:
    """What `kymo run` makes of a session's chunks, as records."""
    stage = slow_chain(spec).build()  # type: ignore[arg-type]
    made = [row for chunk in chunks for row in stage.push(chunk)]
    return [CODEC.encode(replace(row, header=replace(row.header, chain=MADE_BY))) for row in made]


def ended(kafka: MemoryKafka, *sessions: str) -> bool:
    return all(any(chunk.end for chunk in derived(kafka, session)) for session in sessions)


def test_processes_that_die_and_workers_that_come_and_go_change_nothing(tmp_path: Path) -> None:
    spec, pick = Sluggish(0.004, str(tmp_path / "done")), random.Random(5)
    sessions = {f"s{i}": frames(f"s{i}", list(np.arange(1, 61) + 100 * i)) for i in range(4)}

    async def work() -> None:
        kafka = MemoryKafka()
        places = [TopicPartition(INPUT, number) for number in range(2)]
        for number, name in enumerate(sessions):
            put(kafka, sessions[name], number % 2)
        for life in range(2):
            processes = Processes(spec, MADE_BY, 2)
            worker = Worker(kafka, slow_operator(processes), NAMES)
            worker.start(*places)
            for _ in range(1 + life):
                goal = len(kafka.values("t.pose")) + 15
                await until(lambda goal=goal: len(kafka.values("t.pose")) >= goal)
                os.kill(pick.choice(processes.pids), signal.SIGKILL)
            if life == 1:
                await until(lambda: ended(kafka, *sessions))
            pids = processes.pids
            await worker.stop()
            assert worker.failures == []
            await until(lambda pids=pids: not any(map(psutil.pid_exists, pids)))
        done = (tmp_path / "done").read_text().splitlines()
        assert len(set(done)) == 240
        assert len(done) < 260  # what was under way when something ended is done again, and nothing else
        for name, chunks in sessions.items():
            *rows, end = [CODEC.encode(chunk) for chunk in derived(kafka, name)]
            assert rows == in_line(spec, chunks)
            assert CODEC.decode(end).end
        assert kafka.values("t.rejected") == []

    asyncio.run(work())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_dropped_stays_dropped_wherever_a_worker_ends(seed: int) -> None:
    pick = random.Random(seed)
    values = [WRONG if pick.random() < 0.05 else float(i) for i in range(1, 25)]

    async def work() -> None:
        kafka, now_ns, computed = MemoryKafka(), time.time_ns(), 0
        for chunk in frames("s", values, now_ns - 50 * 10**9):
            old = pick.random() < 0.3
            put(kafka, [chunk], timestamp=now_ns // 10**6 - (30_000 if old else -10_000))
        life, most = 0, pick.randint(1, 4)
        while not ended(kafka, "s") or life < most:
            pretended = Pretended(Sluggish(), pick)
            # One life drops, another takes its time.
            worker = Worker(kafka, slow_operator(pretended, pick.choice([0.0, 5.0])), NAMES)
            worker.start(TopicPartition(INPUT, 0), commit_every_s=pick.choice([0.001, 60]))
            if life >= most:
                await until(lambda: ended(kafka, "s"))
            else:
                goal = len(kafka.values("t.pose")) + pick.randint(0, 8)
                await until(lambda goal=goal: len(kafka.values("t.pose")) >= goal or ended(kafka, "s"))
            commits = dict(kafka.commits)
            await worker.stop()
            if pick.random() < 0.5:  # it was killed
                kafka.commits = commits
            assert worker.failures == []
            computed += sum(chunk.data[0, 0] != WRONG for chunk in pretended.done)
            life += 1
        chunks = derived(kafka, "s")
        indices = [chunk.first_index for chunk in chunks]
        assert indices == sorted(set(indices))
        assert [chunk.data.tolist() for chunk in chunks[:-1]] == [[[2 * values[i]]] for i in indices[:-1]]
        assert all(values[i] != WRONG for i in indices[:-1])
        assert [chunk.end for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert computed <= len(chunks) - 1 + 4 * life  # four batches are under way when it ends
        refused = [CODEC.decode(value).first_index for value in kafka.values("t.rejected")]
        assert len(set(refused)) == len(refused)
        assert all(values[i] == WRONG for i in refused)
        stage, source = BEHIND.build(), TopicPartition("t.pose", 0)
        worker = Worker(kafka, model_operator(), NAMES)
        worker.start(source)
        await until(lambda: kafka.committed(*source) == len(chunks))
        await worker.stop()
        assert kafka.values("t.events") == [described(window) for chunk in chunks for window in stage.push(chunk)]

    asyncio.run(work())


def test_what_is_live_and_too_old_is_dropped_and_counted_and_a_replay_is_not() -> None:
    async def work() -> None:
        kafka, now_ns = MemoryKafka(), time.time_ns()
        live, replayed = frames("live", range(8), now_ns - 40 * 10**9), frames("replayed", range(8))
        for place, chunk in enumerate(live):
            age_ms = 30_000 if place in (2, 3, 5) else -3_600_000  # never too old while this runs
            put(kafka, [chunk], timestamp=now_ns // 10**6 - (age_ms if age_ms > 0 else -20_000))
        put(kafka, replayed, timestamp=now_ns // 10**6 - 30_000)
        worker = Worker(kafka, slow_operator(Pretended(Sluggish(), random.Random(1)), 5.0), NAMES)
        worker.start(TopicPartition(INPUT, 0))
        await until(lambda: ended(kafka, "live", "replayed"))
        await until(lambda: kafka.committed(INPUT) == 18)
        await worker.stop()
        assert [c.first_index for c in derived(kafka, "live")] == [0, 1, 4, 6, 7, 8]
        assert [c.first_index for c in derived(kafka, "replayed")] == list(range(9))
        assert worker.dropped == [1, 1, 1]
        windows = Chain((*slow_chain(Sluggish()).specs, Windows(2, 1))).split(signal_format("imu", ("x",), 10))[1]
        stage = windows.build()
        starts = [w.start_index for chunk in derived(kafka, "live") for w in stage.push(chunk)]
        assert starts == [0, 6]  # no window spans what was dropped

    asyncio.run(work())


def test_a_frame_that_ends_two_processes_is_rejected_as_it_came(tmp_path: Path) -> None:
    spec, values = Sluggish(0.0, str(tmp_path / "done")), [1.0, DEADLY, 3.0, WRONG, 5.0, HUNG, 7.0]

    async def work() -> None:
        kafka, chunks = MemoryKafka(), frames("s", values)
        put(kafka, chunks)
        worker = Worker(kafka, slow_operator(Processes(spec, MADE_BY, 2, hung_s=1.0)), NAMES)
        worker.start(TopicPartition(INPUT, 0))
        await until(lambda: ended(kafka, "s"))
        await until(lambda: kafka.committed(INPUT) == 8)
        await worker.stop()
        assert [c.first_index for c in derived(kafka, "s")] == [0, 2, 4, 6, 7]
        rejected = kafka.logs[TopicPartition("t.rejected", 0)]
        assert [r.value for r in rejected] == [CODEC.encode(chunks[i]) for i in (1, 3, 5)]
        why = [dict(r.headers)["message"].decode() for r in rejected]
        assert [text.partition("(")[2] for text in why] == [
            "its process ended)",
            "ValueError: nobody is on it)",
            "no answer within 1 s)",
        ]
        assert [dict(r.headers)["offset"] for r in rejected] == [b"1", b"3", b"5"]

    asyncio.run(work())
    done = (tmp_path / "done").read_text().splitlines()
    assert [done.count(str(value)) for value in (DEADLY, WRONG, HUNG)] == [2, 1, 2]


def test_a_step_that_cannot_begin_fails_the_worker_and_says_why(tmp_path: Path) -> None:
    async def work() -> None:
        worker = Worker(
            MemoryKafka(), slow_operator(Processes(Sluggish(0.0, str(tmp_path / "no" / "where")), MADE_BY, 1)), NAMES
        )
        worker.start(TopicPartition(INPUT, 0))
        await until(lambda: bool(worker.failures))
        await worker.stop()
        assert isinstance(worker.failures[0], KymoError)
        assert "step sluggish cannot begin: FileNotFoundError" in str(worker.failures[0])

    asyncio.run(work())


WORKER = """
import asyncio, sys
import numpy as np
sys.path.insert(0, {tests!r})
from slow_lab import Sluggish
from kymo.models.serving.processes import Processes
from kymo.streams.chunk import Chunk, Header, signal_format

async def work():
    processes = Processes(Sluggish(0.0, {note!r}), "", 3)
    processes.start(print)
    chunk = Chunk(Header("s", 0, signal_format("imu", ("x",), 10)), 0, np.array([[{value}]], np.float32))
    await asyncio.gather(*[processes.values([chunk]) for _ in range(3)])

if __name__ == "__main__":
    asyncio.run(work())
"""


@pytest.mark.parametrize("value", [HUNG, *([STUCK] if sys.platform == "linux" else [])])
def test_no_process_outlives_a_worker_that_is_killed(tmp_path: Path, value: float) -> None:
    note, script = tmp_path / "done", tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parents[2]), note=str(note), value=value))
    worker = subprocess.Popen([sys.executable, str(script)])
    wait_for(lambda: note.exists() and len(note.read_text().splitlines()) == 3)
    left = psutil.Process(worker.pid).children(recursive=True)
    assert len(left) >= 3
    worker.kill()
    worker.wait()
    _, alive = psutil.wait_procs(left, timeout=20)
    assert alive == []


def wait_for(condition: Any, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_chain_is_cut_behind_its_slow_step() -> None:
    chain = Chain((Intake(("x",)), Sluggish(), Windows(4, 2)))
    before, behind = chain.split(header("s").format)
    assert before == Chain(chain.specs[:2])
    assert [spec.name for spec in behind.specs] == ["derived", "windows"]
    stages, joined, values = (before.build(), behind.build()), chain.build(), np.arange(12, dtype=np.float32)[:, None]
    made = [w for c in stages[0].push(Chunk(header("s"), 0, values)) for w in stages[1].push(c)]
    wanted = joined.push(Chunk(header("s"), 0, values))
    assert [(w.start_index, w.data.tobytes()) for w in made] == [(w.start_index, w.data.tobytes()) for w in wanted]
    with pytest.raises(FormatError, match="both slow"):
        Chain((Intake(("x",)), Sluggish(), Sluggish(1.0), Windows(4, 2))).split(header("s").format)


RECIPE = """
name = "poses"
[[input]]
stream = "imu"
rate_hz = 10
channels = ["x"]
{steps}
[window]
length_s = 1
hop_s = 0.5
{behind}
"""
STEP = '[[steps]]\nstep = "sluggish"\n'


def test_a_recipe_has_one_slow_step_before_its_window_and_a_worker_does_it_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(STEPS, "sluggish", Sluggish)
    recipe = parse_recipe(RECIPE.format(steps=STEP, behind=""))
    assert [roles_for(recipe, roles) for roles in ([BOTH], [BOTH, "processor"], ["model"])] == [
        ["processor", "model"],
        ["processor", "model"],
        ["model"],
    ]
    assert roles_for(parse_recipe(RECIPE.format(steps="", behind="")), [BOTH]) == [BOTH]
    for steps, behind in ((STEP + STEP, ""), ("", STEP.replace("[[steps", "[[window.steps"))):
        with pytest.raises(RecipeError, match=r"one slow step|cannot stand behind the window"):
            parse_recipe(RECIPE.format(steps=steps, behind=behind))
    operator = make_operator(Part("processor", Deployment(recipe, None)), NAMES)  # type: ignore[arg-type]
    assert (operator.topic, operator.classify) == ("t.pose", None)
    assert operator.chain == Chain(recipe.chain.specs[:1])
