"""Live accuracy. In: the events topic, the truth of each session. Out: by bundle, how many windows were right, and since when."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from processors.recipe.load import Recipe
from streams.events import Event, read_events
from streams.readers import read
from streams.settings import Settings

_EVERY_S = 2.0
_PATIENCE_S = 60.0


class Live:
    """Counts what is right while events come, in a thread of its own."""

    def __init__(self, settings: Settings, recipe: Recipe, data: str) -> None:
        self._truths = {r.session: r.labels[0].label for r in read((data,), recipe.read_options()) if r.labels}
        self._settings, self._stop = settings, threading.Event()
        self._seen: set[str] = set()
        self._right: Counter[str] = Counter()
        self._windows: Counter[str] = Counter()
        self._first_ns: dict[str, int] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="live", daemon=True)
        self.repeated = 0

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _read(self) -> None:
        for event in read_events(self._settings, follow=True, stop=self._stop.is_set):
            self.add(event)

    def add(self, event: Event) -> None:
        """Count an event; those of other sessions count only as seen."""
        with self._lock:
            self.repeated += event.id in self._seen
            self._seen.add(event.id)
            first = self._first_ns.get(event.bundle, event.emitted_ns)
            self._first_ns[event.bundle] = min(first, event.emitted_ns)
            truth = None if event.head else self._truths.get(event.session)
            if truth is not None:
                self._windows[event.bundle] += 1
                self._right[event.bundle] += event.label == truth

    def score(self, bundle: str) -> dict[str, Any]:
        """What a bundle did so far."""
        with self._lock:
            windows, right = self._windows[bundle], self._right[bundle]
        return {"bundle": bundle, "windows": windows, "accuracy": right / windows if windows else 0.0}

    def first_s(self, bundle: str, since_ns: int) -> float | None:
        """Seconds from a moment to a bundle's first event; None if it made none."""
        return (self._first_ns[bundle] - since_ns) / 1e9 if bundle in self._first_ns else None

    def watch(self, seconds: float, say: Callable[[str], None], check: Callable[[], None], bundle: str = "") -> None:
        """Tell the accuracy of the last seconds, again and again, for some time from a bundle's (or any) first event on."""
        began, until = time.monotonic(), None
        right, windows = Counter(self._right), Counter(self._windows)
        while until is None or time.monotonic() < until:
            self._stop.wait(_EVERY_S)
            check()
            with self._lock:
                now_right, now_windows = Counter(self._right), Counter(self._windows)
            for name in sorted(now_windows):
                count = now_windows[name] - windows[name]
                if count:
                    say(f"live: {(now_right[name] - right[name]) / count:6.1%} of {count:4} windows, {name}")
            right, windows = now_right, now_windows
            if until is None and (now_windows[bundle] if bundle else now_windows.total()):
                until = time.monotonic() + seconds
            if until is None and time.monotonic() - began > _PATIENCE_S:
                return
