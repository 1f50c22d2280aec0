"""Child processes of this command line, and the signals that end it. In: verbs. Out: running children, their lines, and a new one where
one died.

Children are sessions of their own: Ctrl-C reaches only the parent, which ends them in order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOP_TIMEOUT_S = 25.0  # a worker drains for 20 s at most
TAIL = 20
#: Ctrl-C, SIGTERM and a closed terminal.
ENDING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_ROOT = Path(sys.modules["kymo"].__file__ or "").resolve().parent.parent


def kymo_command(*arguments: str) -> list[str]:
    """A command line that runs ``kymo ARGUMENTS`` with this interpreter.

    The current folder is kept off the path: it may hold a package of the same name as one of ours.
    """
    return [sys.executable, "-P", "-m", "kymo", *arguments]


def kymo_environment(changes: Mapping[str, str], *, keep: bool = True) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if keep or not name.startswith("KYMO_")}
    path = os.pathsep.join([str(_ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return env | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | dict(changes)


class Child:
    """Runs a child process and passes its lines on."""

    def __init__(
        self,
        name: str,  # what to call it
        command: Sequence[str],
        env: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,  # called with each line of its stdout and stderr, in a thread
    ) -> None:
        self.name, self._command, self._env, self._on_line = name, list(command), dict(env), on_line
        self.tail: deque[str] = deque(maxlen=TAIL)  # its last lines
        self._process: subprocess.Popen[str] | None = None
        self._pump = threading.Thread()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._read, args=(self._process,), name=f"{self.name} lines", daemon=True)
        self._pump.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.tail.append(line.rstrip("\n"))
            if self._on_line is not None:
                self._on_line(line.rstrip("\n"))

    @property
    def pid(self) -> int:
        """The process number; 0 before the first start."""
        return self._process.pid if self._process else 0

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll() if self._process else 0

    def ended(self) -> str:
        status = self.status or 0
        if status >= 0:
            return f"exit status {status}"
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"

    def send(self, number: int) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """Wait until it has ended and all its lines are read; its status, or None after `timeout_s`."""
        if self._process is None:
            return 0
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._pump.join(1.0)  # a grandchild may hold the pipe open
        return status


def stop(children: Sequence[Child], timeout_s: float = STOP_TIMEOUT_S) -> list[str]:
    """SIGTERM to all, then wait; gives the names of those that had to be killed."""
    killed = []
    try:
        for child in children:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        for child in children:
            child.wait(max(0.0, deadline - time.monotonic()))
    finally:  # whatever interrupts the waiting, none stays
        for child in children:
            if child.status is None:
                killed.append(child.name)
                child.send(signal.SIGKILL)
                child.wait(timeout_s)
    return killed


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a child is started again, s."""

    first_s: float = 1.0  # after the first death; it doubles with each one up to the maximum
    max_s: float = 30.0
    steady_s: float = 60.0  # a child that ran so long begins at `first_s` again


class Supervisor:
    """Starts children, and starts again those that die."""

    def __init__(
        self,
        children: Sequence[Child],
        tell: Callable[[str], None],  # called with a line for each death and new start
        backoff: Backoff | None = None,  # pace of new starts
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.children, self._tell, self._now_s = list(children), tell, now_s
        self._backoff = backoff or Backoff()
        self._delay_s = dict.fromkeys(self.children, self._backoff.first_s)
        self._started_s: dict[Child, float] = {}
        self._due_s: dict[Child, float] = {}
        self.restarts = 0  # new starts so far

    def start(self) -> None:
        for child in self.children:
            self._start(child)

    def _start(self, child: Child) -> None:
        child.start()
        self._started_s[child] = self._now_s()

    def check(self) -> None:
        """Look after the children; to be called a few times a second."""
        for child in self.children:
            if child.status is None:
                continue
            if child not in self._due_s:
                self._note_death(child)
            elif self._now_s() >= self._due_s[child]:
                del self._due_s[child]
                self.restarts += 1
                self._start(child)

    def _note_death(self, child: Child) -> None:
        now_s = self._now_s()
        if now_s - self._started_s[child] >= self._backoff.steady_s:
            self._delay_s[child] = self._backoff.first_s
        delay_s = self._delay_s[child]
        self._delay_s[child] = min(2 * delay_s, self._backoff.max_s)
        self._due_s[child] = now_s + delay_s
        self._tell(f"{child.name} ended ({child.ended()}); starting it again in {delay_s:g} s")


@contextlib.contextmanager
def stop_event(*, impatient: bool = False) -> Iterator[threading.Event]:
    """An event that is set at each of :data:`ENDING`; who is impatient gives up whatever is under way at a second one."""
    stopped = threading.Event()

    def on_signal(*_: object) -> None:
        if impatient and stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    with at_end_signals(on_signal):
        yield stopped


@contextlib.contextmanager
def at_end_signals(handler: Callable[..., Any]) -> Iterator[None]:
    """Have `handler` called at each of :data:`ENDING`; what was there before is put back afterwards."""
    before = [signal.signal(number, handler) for number in ENDING]
    try:
        yield
    finally:
        for number, former in zip(ENDING, before, strict=True):
            signal.signal(number, former)
