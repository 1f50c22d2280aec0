"""The command line, in tests. In: words, settings. Out: what it said, here or in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from click.testing import CliRunner, Result
from documents import ROOT

import kymo
from kymo.deploy.children import Child, kymo_command, kymo_environment, stop
from kymo.streams.settings import Settings


def variables(settings: Settings, **more: str) -> dict[str, str]:
    """The environment that says these settings, and that no metrics are served."""
    named = {
        "BROKERS": settings.brokers,
        "PREFIX": settings.prefix,
        "HOME": settings.home,
        "PARTITIONS": settings.partitions,
        "REPLICATION": settings.replication,
        "METRICS_PORT": -1,
    }
    return {f"KYMO_{name}": str(value) for name, value in named.items()} | more


def invoke(*words: object, status: int | None = 0, **options: Any) -> Result:
    """Run a verb here; it must end with this status, if one is given."""
    done = CliRunner().invoke(kymo.cli, [*map(str, words)], prog_name="kymo", **options)
    assert status in (None, done.exit_code), f"{done.output}{done.exception!r}"
    return done


def execute(
    *words: object, status: int | None = 0, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own, without settings of this one; it must end with this status, if one is given."""
    environment, command = kymo_environment(env or {}, keep=False), kymo_command(*map(str, words))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280, **options)
    assert status in (None, done.returncode), done.stdout[-2000:] + done.stderr[-2000:]
    return done


@contextlib.contextmanager
def running(env: Mapping[str, str], *words: object) -> Iterator[Child]:
    """A verb that runs in a process of its own until the end of the block, at the latest."""
    child = Child(str(words[0]), kymo_command(*map(str, words)), kymo_environment(env, keep=False))
    child.start()
    try:
        yield child
    finally:
        stop([child])


def python(code: str, *words: object, **options: Any) -> str:
    """What Python code prints that runs in a process of its own, in the checkout."""
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, **{"cwd": ROOT} | options, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def await_that(condition: Callable[[], bool], what: str, patience_s: float = 120.0) -> float:
    """Seconds until `condition` was true; asks ten times a second."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < patience_s, f"{what}: not within {patience_s:g} s"
        threading.Event().wait(0.1)
    return time.monotonic() - started
