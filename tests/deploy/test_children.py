"""Child processes: their lines, their ends, and a new start where one died."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest

from kymo.deploy.children import Backoff, Child, Supervisor, kymo_environment, stop

PATIENCE_S = 30.0


def python(code: str, said: Callable[[str], None] | None = None) -> Child:
    return Child("child", [sys.executable, "-uc", code], kymo_environment({}), said)


class Lines:
    """Lines of a child, to wait for."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._came = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._came:
            self.all.append(line)
            self._came.notify_all()

    def wait_for(self, line: str) -> None:
        with self._came:
            assert self._came.wait_for(lambda: line in self.all, PATIENCE_S), self.all


def test_lines_of_both_outputs_are_passed_on_and_kept() -> None:
    lines = Lines()
    child = python("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)", lines)
    child.start()
    assert child.wait(PATIENCE_S) == 3
    assert lines.all == list(child.tail) == ["one", "two"]
    assert child.ended() == "exit status 3"


def test_stop_ends_those_that_obey_and_kills_those_that_do_not() -> None:
    lines = Lines()
    forever = "import threading; print('up'); threading.Event().wait()"
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + forever
    obedient, stubborn = python(forever, lines), python(deaf, lines)
    stubborn.name = "stubborn"
    for child in (obedient, stubborn):
        child.start()
        lines.wait_for("up")
        lines.all.clear()
    assert stop([obedient, stubborn], timeout_s=0.5) == ["stubborn"]
    assert obedient.status == -signal.SIGTERM
    assert obedient.ended() == "killed by SIGTERM"
    assert stubborn.status == -signal.SIGKILL


def test_a_child_never_started_is_stopped_already() -> None:
    assert stop([python("")]) == []


def test_the_folder_of_this_process_is_no_package_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYMO_PREFIX", "mine")
    assert kymo_environment({"KYMO_HOME": "h"})["KYMO_PREFIX"] == "mine"
    alone = kymo_environment({"KYMO_HOME": "h"}, keep=False)
    assert {name for name in alone if name.startswith("KYMO_")} == {"KYMO_HOME"}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def checked_until_dead(supervisor: Supervisor, child: Child) -> None:
    assert child.wait(PATIENCE_S) is not None
    supervisor.check()


def test_a_child_that_dies_is_started_again_ever_more_slowly() -> None:
    clock, told = Clock(), []
    child = python("import sys; sys.exit(1)")
    supervisor = Supervisor([child], told.append, Backoff(first_s=1, max_s=3, steady_s=60), clock)
    supervisor.start()
    for delay in (1, 2, 3, 3):
        checked_until_dead(supervisor, child)
        before = supervisor.restarts
        clock.now_s += delay - 0.1
        supervisor.check()
        assert supervisor.restarts == before
        clock.now_s += 0.2
        supervisor.check()
        assert supervisor.restarts == before + 1
    child.wait(PATIENCE_S)
    clock.now_s += 60  # it ran for long: the next death counts as the first
    supervisor.check()
    assert told == [f"child ended (exit status 1); starting it again in {delay} s" for delay in (1, 2, 3, 3, 1)]


def test_a_child_that_lives_is_left_alone() -> None:
    told: list[str] = []
    child = python("import threading; threading.Event().wait()")
    supervisor = Supervisor([child], told.append)
    supervisor.start()
    try:
        pid, until = child.pid, time.monotonic() + 0.3
        while time.monotonic() < until:
            supervisor.check()
        assert child.pid == pid
        assert supervisor.restarts == 0
        assert told == []
    finally:
        stop([child])
