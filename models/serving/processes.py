"""Processes that do a slow step. In: chunks, a few at a time, of any sessions. Out: the values of their records, or why there is none.

A process is begun afresh (no copy of the worker), loads what the step needs, and then does for each chunk what `kymo run` does in line. A
thread of the worker waits for each. Where one dies, or hangs, another takes its place, and what it was given is given once more, each chunk
by itself: what ends two processes is of no use. None outlives the worker, however that ends: each waits for its parent's end, and on Linux
the kernel ends it even where the step lets no other thread run.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import numpy as np

from kymo.processors.spec import SlowSpec, derived_header
from kymo.streams.chunk import Chunk
from kymo.streams.codec import ChunkCodec
from kymo.streams.errors import KymoError

#: The value of a chunk's record, or why there is none.
Value = bytes | str
_LOADING_S, _TRIES = 120.0, 3  # how long a process may load, and how often it may end before that is done
_PR_SET_PDEATHSIG = 1
_Task = tuple[Sequence[Chunk], "Future[list[Value]]"]


class Processes:
    """Some processes that do a slow step."""

    def __init__(
        self,
        spec: SlowSpec,
        chain: str,  # what the records say made them
        count: int,
        hung_s: float = 30.0,  # one that does not answer for so long hangs
    ) -> None:
        self.spec, self.count, self._chain, self._hung_s = spec, count, chain, hung_s
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._members: list[_Member] = []

    def start(self, failed: Callable[[BaseException], None]) -> None:
        """Begin; `failed` is called in the running event loop where the step cannot be done at all."""
        loop = asyncio.get_running_loop()
        for number in range(self.count):
            self._members.append(_Member(self.spec, self._chain, self._hung_s))
            arguments = self._members[-1], lambda error: loop.call_soon_threadsafe(failed, error)
            threading.Thread(target=self._work, args=arguments, name=f"slow {number}", daemon=True).start()

    async def values(self, chunks: Sequence[Chunk]) -> list[Value]:
        """The value of each chunk's record; all are of one format."""
        future: Future[list[Value]] = Future()
        self._tasks.put((chunks, future))
        return await asyncio.wrap_future(future)

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that are there now."""
        return [pid for member in self._members if (pid := member.pid) is not None]

    def close(self) -> None:
        """End the processes, with whatever they are at."""
        for member in self._members:
            self._tasks.put(None)
            member.close()

    def _work(self, member: _Member, failed: Callable[[BaseException], None]) -> None:
        try:
            member.begin()
            while (task := self._tasks.get()) is not None:
                chunks, future = task
                if future.set_running_or_notify_cancel():
                    future.set_result(_asked(member, chunks))
        except BaseException as error:
            if not member.closed:
                failed(error)
        finally:
            member.end()


def _asked(member: _Member, chunks: Sequence[Chunk]) -> list[Value]:
    try:
        return member.ask(chunks)
    except EOFError:
        values = list[Value]()
    for chunk in chunks:
        try:
            values += member.ask([chunk])
        except EOFError as error:
            values.append(f"the step {member.spec.name} fails on it twice ({error})")
    return values


class _Member:
    """A process, or the next in its place, of one thread."""

    def __init__(self, spec: SlowSpec, chain: str, hung_s: float) -> None:
        self.spec, self._chain, self._hung_s, self.closed = spec, chain, hung_s, False
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def begin(self) -> Connection:
        """The pipe to a process that is ready; another is begun where there is none."""
        for _ in range(_TRIES):
            if self._pipe is not None:
                return self._pipe
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.spec, self._chain), daemon=True)
            self._process.start()
            theirs.close()
            try:
                if said := self._answer(self._pipe, _LOADING_S):
                    raise KymoError(f"step {self.spec.name} cannot begin: {said}")
            except EOFError:
                continue
        raise KymoError(f"step {self.spec.name} cannot begin: its process ended {_TRIES} times before it was ready")

    def ask(self, chunks: Sequence[Chunk]) -> list[Value]:
        """What a process makes of some chunks; EOFError where it ended or hung over it."""
        pipe = self.begin()
        try:
            pipe.send(chunks)
        except OSError:
            self.end()
            raise EOFError("its process ended") from None
        answer: list[Value] = self._answer(pipe, self._hung_s)
        return answer

    def _answer(self, pipe: Connection, patience_s: float) -> Any:
        why = "its process ended"
        try:
            if not self.closed and pipe.poll(patience_s):
                return pipe.recv()
            why = f"no answer within {patience_s:g} s"
        except (EOFError, OSError):
            pass
        self.end()
        raise EOFError(why)

    def end(self) -> None:
        """End the process, and wait until it is gone."""
        self._pipe = None
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def close(self) -> None:
        """End the process; to be called in any thread."""
        self.closed = True
        if self._process is not None and self._process.pid is not None:
            self._process.kill()


def _serve(pipe: Connection, spec: SlowSpec, chain: str) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which finishes what is under way
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        spec.prepare()
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")
    codec = ChunkCodec()
    while True:
        pipe.send(values_of(spec, chain, codec, pipe.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def values_of(spec: SlowSpec, chain: str, codec: ChunkCodec, chunks: Sequence[Chunk]) -> list[Value]:
    """What a step makes of some chunks of one format."""
    try:
        rows = spec.apply(np.concatenate([chunk.data for chunk in chunks]), chunks[0].header.format)
        parts = np.split(rows, np.cumsum([chunk.count for chunk in chunks])[:-1])
        headers = [replace(derived_header(chunk.header, spec), chain=chain) for chunk in chunks]
        return [
            codec.encode(replace(c, header=header, data=part))
            for c, header, part in zip(chunks, headers, parts, strict=True)
        ]
    except Exception as error:  # of one of them
        if len(chunks) > 1:
            return [value for chunk in chunks for value in values_of(spec, chain, codec, [chunk])]
        return [f"the step {spec.name} fails on it ({type(error).__name__}: {error})"]
