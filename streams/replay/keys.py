"""Keys of a running replay. In: a terminal, which is put back as it was. Out: what they ask for."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from streams.replay.player import PAUSE, QUIT, SEEK, STEP, Controls

HELP = "space pauses · → seeks 10 s · . steps while paused · q quits"
_KEYS = {b" ": PAUSE, b".": STEP, b"q": QUIT, b"Q": QUIT, b"\x1b[C": SEEK, b"\x1bOC": SEEK}


@contextmanager
def keyboard() -> Iterator[Controls | None]:
    """Controls from the terminal on stdin; None where there is none, or where another job owns it."""
    try:
        import termios
        import tty

        fd = sys.stdin.fileno()
        if not os.isatty(fd) or os.tcgetpgrp(fd) != os.getpgrp():
            yield None
            return
        before = termios.tcgetattr(fd)
    except (ImportError, OSError, ValueError):
        yield None
        return
    try:
        tty.setcbreak(fd)
        yield KeyReader(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class KeyReader:
    """Controls from a file descriptor in unbuffered mode."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending: list[str] = []
        self._closed = False

    def __call__(self, seconds: float) -> str | None:
        """Wait up to `seconds` for a key; what it asks for, or None."""
        if self._closed:
            time.sleep(seconds)
        elif not self._pending and select.select([self._fd], [], [], seconds)[0]:
            raw = os.read(self._fd, 64)
            self._closed = not raw  # a terminal that hung up is always readable
            self._pending = _commands(raw)
        return self._pending.pop(0) if self._pending else None


def _commands(raw: bytes) -> list[str]:
    """What a burst of keys asks for; unknown keys nothing."""
    found = []
    at = 0
    while at < len(raw):
        length = 3 if raw[at : at + 1] == b"\x1b" else 1
        command = _KEYS.get(raw[at : at + length])
        if command:
            found.append(command)
        at += length
    return found
