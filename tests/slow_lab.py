"""A slow step that does as its samples say, and a pool without processes; what tests of slow steps share."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from kymo.models.serving.operator import Operator
from kymo.models.serving.outputs import DerivedChunks, Events
from kymo.models.serving.processes import Value, values_of
from kymo.processors.chain import Chain
from kymo.processors.intake import Derived, Intake
from kymo.processors.spec import SlowSpec, only
from kymo.processors.windows import Windows
from kymo.streams.chunk import Array, Chunk, Format, Window
from kymo.streams.codec import ChunkCodec
from kymo.streams.topics import Names

DEADLY, HUNG, WRONG, STUCK = -1.0, -2.0, -3.0, -4.0
NAMES, MADE_BY = Names("t"), "0123456789abcdef"


@dataclass(frozen=True)
class Sluggish(SlowSpec):
    """Twice a sample, after a while; some samples end the process, or hang it."""

    wait_s: float = 0.0
    note: str = ""  # a file that gets a line for each sample
    name: ClassVar[str] = "sluggish"

    def prepare(self) -> None:
        """Fail if there is nowhere to note anything."""
        if self.note:
            Path(self.note).touch()

    def output(self, inputs: Mapping[str, Format]) -> Format:
        return replace(only(inputs), stream="pose")

    def apply(self, data: Array, fmt: Format) -> Array:
        for number in data[:, 0]:
            if self.note:
                with Path(self.note).open("a") as file:
                    file.write(f"{number}\n")
            if number == DEADLY:
                os.kill(os.getpid(), signal.SIGKILL)
            elif number == HUNG:
                time.sleep(600)
            elif number == STUCK:
                ctypes.PyDLL(None).sleep(600)  # no other thread of the process may run
            elif number == WRONG:
                raise ValueError("nobody is on it")
            time.sleep(self.wait_s)
        return data * 2


class Pretended:
    """What does a slow step at once, after some turns of the loop, in any order."""

    def __init__(self, spec: SlowSpec, pick: random.Random, count: int = 3) -> None:
        self.spec, self.count, self._pick = spec, count, pick
        self.done: list[Chunk] = []

    def start(self, _: Callable[[BaseException], None]) -> None:
        """Nothing to begin."""

    def close(self) -> None:
        """Nothing to end."""

    async def values(self, chunks: Sequence[Chunk]) -> list[Value]:
        for _ in range(self._pick.randint(0, 30)):
            await asyncio.sleep(0)
        self.done += chunks
        return values_of(self.spec, MADE_BY, ChunkCodec(), chunks)


def slow_chain(spec: SlowSpec) -> Chain:
    return Chain((Intake(("x",)), spec))


def slow_operator(processes: Any, age_s: float = 0.0) -> Operator:
    """A processor whose step is slow."""
    chain = slow_chain(processes.spec)
    operator = Operator(
        "slow",
        "slow.x",
        ("t.sensor",),
        Chain(chain.specs[:-1]),
        DerivedChunks(chain, MADE_BY),
        NAMES.of("pose"),
        _takes,
        None,
    )
    return replace(operator, processes=processes, age_s=age_s)


def _takes(fmt: Format) -> str | None:
    return None if fmt.stream == "imu" else "another stream"


BEHIND = Chain((Derived(MADE_BY), Windows(3, 1)))


def model_operator() -> Operator:
    """A model agent on what the processor made, which says what its windows hold."""

    def classify(windows: Sequence[Window], _: object) -> list[list[bytes]]:
        return [[described(window)] for window in windows]

    return Operator("m", "m.x", (NAMES.of("pose"),), BEHIND, Events("m"), NAMES.of("events"), lambda _: None, classify)


def described(window: Window) -> bytes:
    about = {"session": window.session, "start_index": window.start_index, "holds": window.data.tolist()}
    return json.dumps({"recipe": "m"} | about).encode()
